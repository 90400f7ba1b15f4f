/* A split virtqueue, driven by polling (virtio 1.3, section 2.7). */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#define QUEUE_SIZE_MAX 128
#define NO_HEAD UINT32_MAX

/* Memory that the device reads, or writes, as one descriptor. */
struct buffer {
    void *address;
    uint32_t bytes;
};

struct descriptor {
    uint64_t address;
    uint32_t bytes;
    uint16_t flags;
    uint16_t next;
};

struct available_ring {
    uint16_t flags;
    uint16_t index;
    uint16_t heads[QUEUE_SIZE_MAX];
};

struct used_ring {
    uint16_t flags;
    uint16_t index;
    struct {
        uint32_t head;
        uint32_t bytes;
    } elements[QUEUE_SIZE_MAX];
};

struct virtqueue {
    struct descriptor descriptors[QUEUE_SIZE_MAX] __attribute__((aligned(16)));
    struct available_ring available __attribute__((aligned(2)));
    volatile struct used_ring used __attribute__((aligned(4)));
    uint16_t size;
    uint16_t free_head, free_count;
    uint16_t used_seen;
    /* By head: handed to the device and not yet returned. */
    bool in_flight[QUEUE_SIZE_MAX];
    uint16_t index;
    volatile uint16_t *doorbell;
};

/* Makes the queue empty, with `size` (a power of two, at most QUEUE_SIZE_MAX) entries. */
void virtqueue_init(struct virtqueue *q, uint16_t size);

/* The head that the next virtqueue_add uses, for whoever keeps something per head. */
uint16_t virtqueue_next_head(const struct virtqueue *q);

/*
 * Makes a chain of `readable` buffers that the device reads and `writable` that it writes, and
 * makes it available. The caller has seen that free_count suffices. No kick yet.
 */
void virtqueue_add(struct virtqueue *q, const struct buffer *buffers, unsigned readable,
                   unsigned writable);

/* Tells the device about what was added, unless it said that it looks by itself. */
void virtqueue_kick(struct virtqueue *q);

/*
 * Waits for the next completed chain, in whatever order the device completes them, frees its
 * descriptors and stores its head and the number of bytes that the device says it wrote. False
 * if none arrives in about forty seconds (`*head` is NO_HEAD then), or one that is not in flight.
 */
bool virtqueue_wait(struct virtqueue *q, uint32_t *head, uint32_t *bytes);
