/*
 * One line per check on the console, and the counts at the end.
 *
 *   ok SUBJECT/NAME
 *   FAIL SUBJECT/NAME: expected .. got ..
 *   skip SUBJECT/NAME: WHY
 *   done: N ok, N failed, N skipped
 *
 * A check lies between check_begin and check_end. Its first failure is the one that is printed.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "console.h"

/* The checks from here on are about disk `index`. */
void report_subject(unsigned index);

void check_begin(const char *name);

/* Fails the open check; the text is what follows its name: "expected .. got ..". */
#define check_fail(...)                \
    do {                               \
        if (check_fails_now())         \
            print(__VA_ARGS__);        \
    } while (0)

/* Counts a failure and prints the start of its line, unless the open check failed before. */
bool check_fails_now(void);

/* Fails the open check if the two numbers differ. */
void expect_number(const char *what, uint64_t expected, uint64_t got);

/* Closes the open check. */
void check_end(void);

/* A check that does not apply to this disk. */
void check_skip(const char *name, const char *why);

/* Prints the last line; true if nothing failed. */
bool report_totals(void);
