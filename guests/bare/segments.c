/*
 * Segments within dma_area, with guard bytes around them.
 *
 *   adjacent:   guard | 0 | 1 | 2 | guard
 *   scattered:  guard | 2 | guard | 1 | guard | 0 | guard
 *
 * Only the device touches dma_area between filling and taking, so whatever changed in a guard was
 * written by it.
 */
#include "segments.h"

#include "areas.h"
#include "memory.h"
#include "report.h"
#include "x86.h"

#define GUARD_BYTES 64
#define POISON 0xa5

static const uint16_t odd_lengths[] = {1, 511, 3, 64, 513, 7, 2048, 13, 130, 1021};

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* How long segment `index` of a transfer of `bytes` wants to be. */
static uint32_t piece_bytes(const struct disk *d, uint32_t bytes, enum cut cut, unsigned index)
{
    switch (cut) {
    case CUT_MOST:
        return (bytes + d->segments_max - 1) / d->segments_max;
    case CUT_PAGES:
        return 4096;
    case CUT_ODD:
        return odd_lengths[index % (sizeof odd_lengths / sizeof odd_lengths[0])];
    default:
        return bytes;
    }
}

static uint32_t gap_bytes(enum layout layout)
{
    return layout == LAYOUT_SCATTERED ? GUARD_BYTES : 0;
}

/* Gives the segments, whose lengths are known, their places. */
static void place(struct segments *s, uint32_t misalignment)
{
    /* Pages stay aligned: the first guard takes a page. */
    uint8_t *at = dma_area + 4096 + misalignment;
    for (unsigned i = 0; i < s->count; i++) {
        struct buffer *b = &s->list[s->layout == LAYOUT_SCATTERED ? s->count - 1 - i : i];
        b->address = at;
        at += b->bytes + gap_bytes(s->layout);
    }
}

bool segments_cut(struct segments *s, const struct disk *d, uint32_t bytes, enum cut cut,
                  enum layout layout, uint32_t misalignment)
{
    s->count = 0;
    s->layout = layout;
    for (uint32_t left = bytes; left != 0;) {
        if (s->count == d->segments_max)
            return false;
        uint32_t piece = piece_bytes(d, bytes, cut, s->count);
        piece = smaller(smaller(piece, left), d->segment_bytes_max);
        s->list[s->count++].bytes = piece;
        left -= piece;
    }
    place(s, misalignment);
    return true;
}

void segments_fill(const struct segments *s, const void *data)
{
    for (unsigned i = 0; i < s->count; i++) {
        memcpy(s->list[i].address, data, s->list[i].bytes);
        data = (const uint8_t *)data + s->list[i].bytes;
    }
}

void segments_poison(const struct segments *s)
{
    for (unsigned i = 0; i < s->count; i++)
        memset((uint8_t *)s->list[i].address - GUARD_BYTES, POISON,
               s->list[i].bytes + 2 * GUARD_BYTES);
}

static void expect_guard(const uint8_t *guard)
{
    uint64_t untouched[GUARD_BYTES / 8];
    memset(untouched, POISON, GUARD_BYTES);
    size_t same = equal_words(untouched, guard, GUARD_BYTES / 8);
    if (same != GUARD_BYTES / 8)
        check_fail("expected memory beside a segment untouched got word %lx",
                   ((const uint64_t *)guard)[same]);
}

void segments_take(const struct segments *s, void *data)
{
    bool between = s->layout == LAYOUT_SCATTERED;
    for (unsigned i = 0; i < s->count; i++) {
        const uint8_t *segment = s->list[i].address;
        memcpy(data, segment, s->list[i].bytes);
        data = (uint8_t *)data + s->list[i].bytes;
        if (between || i == 0)
            expect_guard(segment - GUARD_BYTES);
        if (between || i == s->count - 1)
            expect_guard(segment + s->list[i].bytes);
    }
}
