/* Text on the first serial port. */
#pragma once

/* printf with %s, %c, %lu and %lx only. */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
