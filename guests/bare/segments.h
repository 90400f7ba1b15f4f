/* Cutting a transfer into segments and laying them out in memory. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "disk.h"

enum cut {
    /* As few segments as the disk allows: one, usually. */
    CUT_WHOLE,
    /* As many equal ones as the disk allows, of whatever odd length comes out. */
    CUT_MOST,
    /* Of 4096 bytes. */
    CUT_PAGES,
    /* Of all kinds of lengths from 1 byte on. */
    CUT_ODD,
};

enum layout {
    /* One after the other, so that they are one range. */
    LAYOUT_ADJACENT,
    /* The first highest in memory, and gaps between them. */
    LAYOUT_SCATTERED,
};

struct segments {
    struct buffer list[DISK_SEGMENTS_MAX];
    unsigned count;
    enum layout layout;
};

/*
 * Cuts `bytes` (at most AREA_BYTES) for disk `d` into segments that lie in dma_area from offset
 * `misalignment` (at most 4096) on. False if the disk's limits do not allow this cut.
 */
bool segments_cut(struct segments *s, const struct disk *d, uint32_t bytes, enum cut cut,
                  enum layout layout, uint32_t misalignment);

/* Copies `data` into the segments. */
void segments_fill(const struct segments *s, const void *data);

/* Fills the segments and the memory around them with bytes that no pattern has so many of. */
void segments_poison(const struct segments *s);

/* Copies the segments to `data`; fails the open check if memory around them has changed. */
void segments_take(const struct segments *s, void *data);
