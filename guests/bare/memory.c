/*
 * memcpy and memset, which the compiler may call on its own.
 *
 * As string instructions, eight bytes at a time: see x86.h.
 */
#include "memory.h"

void *memcpy(void *to, const void *from, size_t bytes)
{
    void *cursor = to;
    size_t words = bytes / 8;
    size_t rest = bytes % 8;
    __asm__ volatile("rep movsq" : "+D"(cursor), "+S"(from), "+c"(words) : : "memory");
    __asm__ volatile("rep movsb" : "+D"(cursor), "+S"(from), "+c"(rest) : : "memory");
    return to;
}

void *memset(void *to, int byte, size_t bytes)
{
    void *cursor = to;
    uint64_t word = (uint8_t)byte * 0x0101010101010101;
    size_t words = bytes / 8;
    size_t rest = bytes % 8;
    __asm__ volatile("rep stosq" : "+D"(cursor), "+c"(words) : "a"(word) : "memory");
    __asm__ volatile("rep stosb" : "+D"(cursor), "+c"(rest) : "a"(word) : "memory");
    return to;
}
