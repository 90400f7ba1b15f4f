/* Everything that is checked beside starting a disk, in order. */
#pragma once

#include "disk.h"

#define DISKS_MAX 4

/* All checks of a disk that disk_start has started. */
void check_disk(struct disk *d);

/* Checks that several disks do not answer for each other. */
void check_disks_apart(struct disk *disks, unsigned count);
