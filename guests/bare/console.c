/*
 * The serial port at 0x3f8, as all three VMMs have it, and as much of printf as is needed.
 *
 * The port is used as it was found: no virtual UART cares about the bit rate, and line settings
 * only cost exits.
 */
#include "console.h"

#include <stdarg.h>

#include "x86.h"

#define SERIAL_PORT 0x3f8
#define SERIAL_STATUS (SERIAL_PORT + 5)
#define STATUS_CAN_SEND 0x20

static void put(char c)
{
    while ((in8(SERIAL_STATUS) & STATUS_CAN_SEND) == 0)
        pause();
    out8(SERIAL_PORT, (uint8_t)c);
}

static void put_text(const char *text)
{
    while (*text != '\0')
        put(*text++);
}

static void put_number(uint64_t value, unsigned radix)
{
    char digits[20];
    unsigned count = 0;
    do {
        digits[count++] = "0123456789abcdef"[value % radix];
        value /= radix;
    } while (value != 0);
    while (count != 0)
        put(digits[--count]);
}

void print(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    for (; *format != '\0'; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        switch (*++format) {
        case 's':
            put_text(va_arg(arguments, const char *));
            break;
        case 'c':
            put((char)va_arg(arguments, int));
            break;
        case 'l':
            put_number(va_arg(arguments, uint64_t), *++format == 'x' ? 16 : 10);
            break;
        }
    }
    va_end(arguments);
}
