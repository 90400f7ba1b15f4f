/* Data that cannot be mistaken for other data, and comparing it. */
#pragma once

#include <stdint.h>

/*
 * Fills `bytes`, a multiple of 512, that belong at `sector`. Each call's data is different, and so
 * is each sector's and each word's within a sector.
 */
void pattern_fill(void *data, uint64_t sector, uint32_t bytes);

/* Fails the open check if the two differ, and says at which word. */
void expect_same(const void *expected, const void *got, uint32_t bytes);
