/* Writing and reading back, in many sizes, places and shapes. */
#pragma once

#include "disk.h"

/*
 * One check per shape. A disk that can be written is written; of a read-only one, every shape of
 * read must give what the plainest gives.
 */
void check_transfers(struct disk *d);

/* Writes fresh data with one plain request; expected_data holds it then. */
void write_plainly(struct disk *d, uint64_t sector, uint32_t bytes);

/* Reads with one plain request into got_data. */
void read_plainly(struct disk *d, uint64_t sector, uint32_t bytes);

/* The same, and compares it with expected_data. */
void read_plainly_and_compare(struct disk *d, uint64_t sector, uint32_t bytes);
