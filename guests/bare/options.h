/*
 * What the host expects, from the kernel command line: "sluice.disk0.serial=abc".
 *
 * Unknown words are ignored: VMMs add their own.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Remembers where the command line is. `start_info` is what PVH passes in ebx. */
void options_init(uint32_t start_info);

/* The value of sluice.disk<index>.<key>, cut to what `value` holds; false if there is none. */
bool option_text(unsigned index, const char *key, char *value, size_t value_bytes);

/* The value as a decimal number. */
bool option_number(unsigned index, const char *key, uint64_t *value);

/* The value of sluice.<key>, which is about the whole machine, as a decimal number. */
bool machine_option_number(const char *key, uint64_t *value);

bool same_text(const char *a, const char *b);
