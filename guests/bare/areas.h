/* The three big buffers, which the checks share. */
#pragma once

#include <stdint.h>

#define AREA_BYTES (1u << 20)
/* Room in `dma_area` for starting late and for gaps between segments. */
#define DMA_SLACK_BYTES (128u << 10)

/* What the disk is to hold. */
extern uint8_t expected_data[AREA_BYTES];
/* What it was found to hold. */
extern uint8_t got_data[AREA_BYTES];
/* What the device writes to and reads from: never the two above. */
extern uint8_t dma_area[AREA_BYTES + DMA_SLACK_BYTES];
