/* Makes device registers reachable, wherever they are. */
#pragma once

#include <stdint.h>

/* Maps `bytes` at the physical address `address` to the same virtual one, uncached. */
volatile void *map_registers(uint64_t address, uint64_t bytes);
