/*
 * A sector is its number, the number of the call, and 62 words that are the same in every sector
 * but different from each other: whatever is swapped, shifted, torn or stale shows, and filling a
 * sector is one string copy.
 */
#include "pattern.h"

#include "disk.h"
#include "memory.h"
#include "report.h"
#include "x86.h"

#define SECTOR_WORDS (SECTOR_BYTES / 8)

static const uint64_t *words(void)
{
    static uint64_t made[SECTOR_WORDS];
    if (made[0] == 0)
        for (unsigned i = 0; i < SECTOR_WORDS; i++)
            made[i] = (i + 1) * 0x9e3779b97f4a7c15; /* odd, so no two are equal */
    return made;
}

void pattern_fill(void *data, uint64_t sector, uint32_t bytes)
{
    static uint64_t calls;
    calls++;
    uint64_t *at = data;
    for (uint32_t done = 0; done < bytes; done += SECTOR_BYTES) {
        memcpy(at, words(), SECTOR_BYTES);
        at[0] = sector++;
        at[1] = calls;
        at += SECTOR_WORDS;
    }
}

void expect_same(const void *expected, const void *got, uint32_t bytes)
{
    size_t at = equal_words(expected, got, bytes / 8);
    if (at == bytes / 8)
        return;
    check_fail("expected word %lx got %lx at byte %lu", ((const uint64_t *)expected)[at],
               ((const uint64_t *)got)[at], (uint64_t)at * 8);
}
