/*
 * Four-level page tables, grown on demand.
 *
 * entry.S maps the first 16 MiB. Registers are mapped when their address is known, in pages of
 * 2 MiB: mapping 4 GiB at start would be two thousand stores, and some registers lie above that.
 */
#include "paging.h"

#include "console.h"
#include "exit.h"

#define PAGE_PRESENT_WRITE 0x3u
#define PAGE_UNCACHED 0x18u
#define PAGE_LARGE 0x80u
#define PAGE_ADDRESS 0x000ffffffffff000u
#define LARGE_PAGE ((uint64_t)2 << 20)
#define ENTRIES 512

typedef uint64_t table[ENTRIES];

extern table page_root;

/* At most two new tables a mapping, two mappings a disk of up to four, and some spare. */
static table spare_tables[24] __attribute__((aligned(4096)));
static unsigned spare_used;

static uint64_t *next_level(uint64_t *entry)
{
    if (*entry == 0) {
        if (spare_used == sizeof spare_tables / sizeof spare_tables[0])
            give_up("no page table is left to map a device with");
        *entry = (uintptr_t)spare_tables[spare_used++] | PAGE_PRESENT_WRITE;
    }
    return (uint64_t *)(*entry & PAGE_ADDRESS);
}

static void map_large_page(uint64_t address)
{
    uint64_t *gigabytes = next_level(&page_root[address >> 39 & (ENTRIES - 1)]);
    uint64_t *megabytes = next_level(&gigabytes[address >> 30 & (ENTRIES - 1)]);
    uint64_t *entry = &megabytes[address >> 21 & (ENTRIES - 1)];
    if (*entry == 0)
        *entry = address | PAGE_LARGE | PAGE_UNCACHED | PAGE_PRESENT_WRITE;
}

volatile void *map_registers(uint64_t address, uint64_t bytes)
{
    uint64_t end = address + bytes;
    for (uint64_t page = address & ~(LARGE_PAGE - 1); page < end; page += LARGE_PAGE)
        map_large_page(page);
    return (volatile void *)address;
}
