/* A virtio block device (virtio 1.3, section 5.2): its configuration and its requests. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "virtio.h"

#define SECTOR_BYTES 512
#define ID_BYTES 20
#define DISK_QUEUES_MAX 4
/* Beside the header and the status. */
#define DISK_SEGMENTS_MAX (QUEUE_SIZE_MAX - 2)

#define DISK_READ 0
#define DISK_WRITE 1
#define DISK_FLUSH 4
#define DISK_GET_ID 8

#define DISK_OK 0
#define DISK_IOERR 1
#define DISK_UNSUPP 2

struct request {
    struct {
        uint32_t type, reserved;
        uint64_t sector;
    } header;
    uint32_t data_bytes;
    uint8_t status;
};

struct disk {
    struct virtio_device device;
    /* Its place among the disks found, which names it in the report. */
    unsigned index;
    bool read_only, can_flush;
    uint64_t sectors;
    uint32_t block_bytes;
    /* Of one request. */
    uint32_t segments_max, segment_bytes_max;
    uint16_t queue_count;
    struct virtqueue queues[DISK_QUEUES_MAX];
    /* By queue and head descriptor. */
    struct request requests[DISK_QUEUES_MAX][QUEUE_SIZE_MAX];
    /* Completions with a wrong used length, and what the first of them said. */
    uint64_t used_wrong, used_expected, used_got;
};

bool is_virtio_disk(const struct pci_function *f);

/* Finds the registers. NULL, or why it cannot be used. */
const char *disk_open(struct disk *d, unsigned index, const struct pci_function *f);

/* From reset to DRIVER_OK with empty queues; also for a disk in use. NULL, or why it failed. */
const char *disk_start(struct disk *d);

/* How many requests of one segment `queue` has room for at once. */
unsigned disk_depth(const struct disk *d, unsigned queue);

/* Adds a request to a queue with room for it. The device is told by disk_kick. */
void disk_submit(struct disk *d, unsigned queue, uint32_t type, uint64_t sector,
                 const struct buffer *segments, unsigned count);

void disk_kick(struct disk *d, unsigned queue);

/*
 * Waits for a completion and returns its status, 0xff if the device wrote none. Ends the run if
 * there is no completion: nothing is known about the queue then.
 */
uint8_t disk_collect(struct disk *d, unsigned queue);

/* One request on queue 0 from submission to status. */
uint8_t disk_do(struct disk *d, uint32_t type, uint64_t sector, const struct buffer *segments,
                unsigned count);

/* Fails the open check if the two statuses differ. */
void expect_status(uint8_t expected, uint8_t got);
