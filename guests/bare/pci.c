/*
 * Configuration space through ports 0xcf8 and 0xcfc.
 *
 * QEMU, Cloud Hypervisor and Firecracker all have this mechanism; their memory-mapped one lies at
 * a different address on each. Addresses of registers are taken as firmware or VMM assigned them
 * and never changed: Firecracker's cannot be moved.
 */
#include "pci.h"

#include <stddef.h>

#include "x86.h"

#define CONFIG_ADDRESS 0xcf8
#define CONFIG_DATA 0xcfc
#define CONFIG_ENABLE 0x80000000u

#define OFFSET_ID 0x00
#define OFFSET_COMMAND 0x04
#define OFFSET_STATUS 0x06
#define OFFSET_HEADER_TYPE 0x0e
#define OFFSET_BARS 0x10
#define OFFSET_SECONDARY_BUS 0x19
#define OFFSET_CAPABILITIES 0x34

#define COMMAND_MEMORY_AND_MASTER 0x6u
#define STATUS_HAS_CAPABILITIES 0x10
#define HEADER_MULTIFUNCTION 0x80
#define HEADER_BRIDGE 0x01
#define NO_VENDOR 0xffff

static void select_dword(const struct pci_function *f, unsigned offset)
{
    out32(CONFIG_ADDRESS, CONFIG_ENABLE | (uint32_t)f->bus << 16 | (uint32_t)f->device << 11 |
                              (uint32_t)f->function << 8 | (offset & 0xfc));
}

uint32_t pci_read32(const struct pci_function *f, unsigned offset)
{
    select_dword(f, offset);
    return in32(CONFIG_DATA);
}

uint16_t pci_read16(const struct pci_function *f, unsigned offset)
{
    return (uint16_t)(pci_read32(f, offset) >> (offset & 2) * 8);
}

uint8_t pci_read8(const struct pci_function *f, unsigned offset)
{
    return (uint8_t)(pci_read32(f, offset) >> (offset & 3) * 8);
}

struct search {
    struct pci_function *found;
    unsigned count, limit;
    bool (*wanted)(const struct pci_function *);
};

static void search_bus(struct search *s, uint8_t bus);

/* Looks at one function and behind it; false if there is none. */
static bool search_function(struct search *s, struct pci_function *f)
{
    uint32_t id = pci_read32(f, OFFSET_ID);
    f->vendor_id = (uint16_t)id;
    f->device_id = (uint16_t)(id >> 16);
    if (f->vendor_id == NO_VENDOR)
        return false;
    if (s->count < s->limit && s->wanted(f))
        s->found[s->count++] = *f;
    if ((pci_read8(f, OFFSET_HEADER_TYPE) & ~HEADER_MULTIFUNCTION) == HEADER_BRIDGE) {
        uint8_t secondary = pci_read8(f, OFFSET_SECONDARY_BUS);
        if (secondary > f->bus) /* numbered, and no loop */
            search_bus(s, secondary);
    }
    return true;
}

static void search_bus(struct search *s, uint8_t bus)
{
    for (uint8_t device = 0; device < 32; device++) {
        struct pci_function f = {.bus = bus, .device = device};
        if (!search_function(s, &f))
            continue;
        if ((pci_read8(&f, OFFSET_HEADER_TYPE) & HEADER_MULTIFUNCTION) == 0)
            continue;
        for (f.function = 1; f.function < 8; f.function++)
            search_function(s, &f);
    }
}

unsigned pci_find(struct pci_function *found, unsigned limit,
                  bool (*wanted)(const struct pci_function *))
{
    struct search s = {.found = found, .limit = limit, .wanted = wanted};
    search_bus(&s, 0);
    return s.count;
}

void pci_enable(const struct pci_function *f)
{
    uint32_t command = pci_read16(f, OFFSET_COMMAND) | COMMAND_MEMORY_AND_MASTER;
    select_dword(f, OFFSET_COMMAND);
    out32(CONFIG_DATA, command); /* status, the upper half, ignores zeroes */
}

uint8_t pci_next_capability(const struct pci_function *f, uint8_t id, uint8_t previous)
{
    if ((pci_read16(f, OFFSET_STATUS) & STATUS_HAS_CAPABILITIES) == 0)
        return 0;
    uint8_t at = pci_read8(f, previous == 0 ? OFFSET_CAPABILITIES : previous + 1u);
    for (unsigned steps = 0; at != 0 && steps < 64; steps++) { /* 64 fit into the space */
        if (pci_read8(f, at) == id)
            return at;
        at = pci_read8(f, at + 1u);
    }
    return 0;
}

uint64_t pci_bar_address(const struct pci_function *f, unsigned bar)
{
    uint32_t low = pci_read32(f, OFFSET_BARS + bar * 4);
    if ((low & 1) != 0)
        return 0;
    bool wide = (low >> 1 & 3) == 2;
    uint64_t high = wide ? pci_read32(f, OFFSET_BARS + (bar + 1) * 4) : 0;
    return high << 32 | (low & ~0xfu);
}
