/* The PCI bus: finding functions, their capabilities and their registers. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct pci_function {
    uint8_t bus, device, function;
    uint16_t vendor_id, device_id;
};

#define PCI_CAPABILITY_MSIX 0x11
#define PCI_CAPABILITY_VENDOR 0x09

uint8_t pci_read8(const struct pci_function *f, unsigned offset);
uint16_t pci_read16(const struct pci_function *f, unsigned offset);
uint32_t pci_read32(const struct pci_function *f, unsigned offset);

/*
 * Stores up to `limit` functions for which `wanted` holds, in bus order, the buses behind bridges
 * included (as far as the firmware numbered them), and returns how many.
 */
unsigned pci_find(struct pci_function *found, unsigned limit,
                  bool (*wanted)(const struct pci_function *));

/* Lets the function answer to memory accesses and read and write memory itself. */
void pci_enable(const struct pci_function *f);

/* The offset of the first capability `id` after offset `previous` (0: the first at all), or 0. */
uint8_t pci_next_capability(const struct pci_function *f, uint8_t id, uint8_t previous);

/* The address in base address register `bar`; 0 if it is no memory, or was not assigned. */
uint64_t pci_bar_address(const struct pci_function *f, unsigned bar);
