/* In a section that entry.S need not zero. */
#include "areas.h"

#define BUFFER __attribute__((section(".buffers,\"aw\",@nobits#"), aligned(4096)))

BUFFER uint8_t expected_data[AREA_BYTES];
BUFFER uint8_t got_data[AREA_BYTES];
BUFFER uint8_t dma_area[AREA_BYTES + DMA_SLACK_BYTES];
