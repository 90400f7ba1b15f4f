/*
 * The instructions that C has no words for: ports, the time stamp, barriers, string copies.
 *
 * None of them is SSE or AVX. Where /dev/kvm emulates each instruction, a string instruction is
 * one exit for hundreds of words, and a C loop is one exit for each of its steps.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline void out32(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline uint32_t in32(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* Cycles since some start; between one and five thousand million a second on any host. */
static inline uint64_t cycles(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

static inline void pause(void)
{
    __asm__ volatile("pause");
}

/* The compiler keeps memory accesses on their side; the processor keeps stores in order anyway. */
static inline void compiler_barrier(void)
{
    __asm__ volatile("" : : : "memory");
}

/* Stores before it are visible before loads after it happen. (mfence belongs to SSE2.) */
static inline void full_barrier(void)
{
    __asm__ volatile("lock orl $0, (%%rsp)" : : : "memory", "cc");
}

/* How many of the `count` 8-byte words at `a` and `b` are equal before the first difference. */
static inline size_t equal_words(const void *a, const void *b, size_t count)
{
    size_t left = count;
    bool equal = true;
    if (count != 0)
        __asm__ volatile("repe cmpsq"
                         : "+S"(a), "+D"(b), "+c"(left), "=@cce"(equal)
                         :
                         : "memory");
    return equal ? count : count - left - 1;
}
