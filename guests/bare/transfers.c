/*
 * A shape is written in its own way and read back twice, plainly and in its own way, so that a
 * mistake that undoes itself shows too.
 */
#include "transfers.h"

#include "areas.h"
#include "pattern.h"
#include "report.h"
#include "segments.h"

enum place { PLACE_FIRST, PLACE_MIDDLE, PLACE_LAST };

struct shape {
    const char *name;
    /* Rounded up to whole blocks; so 1 is one block. */
    uint32_t bytes;
    enum place place;
    enum cut cut;
    enum layout layout;
    uint32_t misalignment;
};

static const struct shape shapes[] = {
    {"first-block", 1, PLACE_FIRST, CUT_WHOLE, LAYOUT_ADJACENT, 0},
    {"last-block", 1, PLACE_LAST, CUT_WHOLE, LAYOUT_ADJACENT, 0},
    {"block-unaligned-by-1", 1, PLACE_MIDDLE, CUT_WHOLE, LAYOUT_ADJACENT, 1},
    {"block-unaligned-by-511", 1, PLACE_FIRST, CUT_WHOLE, LAYOUT_ADJACENT, 511},
    {"block-in-crumbs", 1, PLACE_MIDDLE, CUT_MOST, LAYOUT_SCATTERED, 3},
    {"1536-bytes", 1536, PLACE_MIDDLE, CUT_WHOLE, LAYOUT_ADJACENT, 0},
    {"3584-bytes-last-odd-segments", 3584, PLACE_LAST, CUT_ODD, LAYOUT_SCATTERED, 0},
    {"4k", 4096, PLACE_MIDDLE, CUT_WHOLE, LAYOUT_ADJACENT, 0},
    {"4k-unaligned-by-512", 4096, PLACE_MIDDLE, CUT_WHOLE, LAYOUT_ADJACENT, 512},
    {"16k-odd-segments", 16 << 10, PLACE_MIDDLE, CUT_ODD, LAYOUT_SCATTERED, 1},
    {"64k", 64 << 10, PLACE_FIRST, CUT_WHOLE, LAYOUT_ADJACENT, 0},
    {"64k-pages", 64 << 10, PLACE_LAST, CUT_PAGES, LAYOUT_ADJACENT, 0},
    {"64k-pages-scattered", 64 << 10, PLACE_MIDDLE, CUT_PAGES, LAYOUT_SCATTERED, 0},
    {"130k-unaligned-by-2", 130 << 10, PLACE_MIDDLE, CUT_WHOLE, LAYOUT_ADJACENT, 2},
    {"1m", 1 << 20, PLACE_MIDDLE, CUT_WHOLE, LAYOUT_ADJACENT, 0},
    {"1m-last-unaligned-by-4", 1 << 20, PLACE_LAST, CUT_WHOLE, LAYOUT_ADJACENT, 4},
    {"1m-first-most-segments", 1 << 20, PLACE_FIRST, CUT_MOST, LAYOUT_ADJACENT, 0},
    {"1m-most-segments-scattered", 1 << 20, PLACE_MIDDLE, CUT_MOST, LAYOUT_SCATTERED, 1},
};

static uint8_t transfer(struct disk *d, uint32_t type, uint64_t sector, const struct segments *s)
{
    return disk_do(d, type, sector, s->list, s->count);
}

static void read_to(struct disk *d, uint64_t sector, const struct segments *s, void *data)
{
    segments_poison(s);
    expect_status(DISK_OK, transfer(d, DISK_READ, sector, s));
    segments_take(s, data);
}

static void write_from(struct disk *d, uint64_t sector, const struct segments *s, const void *data)
{
    segments_fill(s, data);
    expect_status(DISK_OK, transfer(d, DISK_WRITE, sector, s));
}

/* The plainest way, which every disk allows: few aligned segments. */
static void cut_plainly(struct segments *s, const struct disk *d, uint32_t bytes)
{
    if (!segments_cut(s, d, bytes, CUT_WHOLE, LAYOUT_ADJACENT, 0))
        check_fail("expected room for %lu bytes in a request got less", (uint64_t)bytes);
}

void write_plainly(struct disk *d, uint64_t sector, uint32_t bytes)
{
    struct segments plain;
    cut_plainly(&plain, d, bytes);
    pattern_fill(expected_data, sector, bytes);
    write_from(d, sector, &plain, expected_data);
}

void read_plainly(struct disk *d, uint64_t sector, uint32_t bytes)
{
    struct segments plain;
    cut_plainly(&plain, d, bytes);
    read_to(d, sector, &plain, got_data);
}

void read_plainly_and_compare(struct disk *d, uint64_t sector, uint32_t bytes)
{
    read_plainly(d, sector, bytes);
    expect_same(expected_data, got_data, bytes);
}

static uint64_t sector_of(const struct disk *d, enum place place, uint32_t bytes)
{
    uint64_t block_sectors = d->block_bytes / SECTOR_BYTES;
    uint64_t blocks = d->sectors / block_sectors;
    uint64_t needed = bytes / d->block_bytes;
    switch (place) {
    case PLACE_MIDDLE: /* an odd block, so that it is aligned to nothing bigger */
        return (((blocks - needed) / 2) | 1) * block_sectors;
    case PLACE_LAST:
        return (blocks - needed) * block_sectors;
    default:
        return 0;
    }
}

static void check_shape(struct disk *d, const struct shape *shape)
{
    uint32_t bytes = (shape->bytes + d->block_bytes - 1) & ~(d->block_bytes - 1);
    if (bytes / SECTOR_BYTES > d->sectors / 2) {
        check_skip(shape->name, "the disk is too small");
        return;
    }
    struct segments plain, s;
    if (!segments_cut(&s, d, bytes, shape->cut, shape->layout, shape->misalignment) ||
        !segments_cut(&plain, d, bytes, CUT_WHOLE, LAYOUT_ADJACENT, 0)) {
        check_skip(shape->name, "more segments than the disk takes");
        return;
    }

    check_begin(shape->name);
    uint64_t sector = sector_of(d, shape->place, bytes);
    if (d->read_only) {
        read_to(d, sector, &plain, expected_data);
    } else {
        pattern_fill(expected_data, sector, bytes);
        write_from(d, sector, &s, expected_data);
        read_plainly_and_compare(d, sector, bytes);
    }
    read_to(d, sector, &s, got_data);
    expect_same(expected_data, got_data, bytes);
    check_end();
}

void check_transfers(struct disk *d)
{
    for (unsigned i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        check_shape(d, &shapes[i]);
}
