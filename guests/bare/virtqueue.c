/*
 * Descriptors are kept in a free list; a chain is taken from its front and returned to it.
 *
 * Interrupts are off in this machine, and the available ring says so (NO_INTERRUPT).
 */
#include "virtqueue.h"

#include <stddef.h>

#include "memory.h"
#include "x86.h"

#define DESCRIPTOR_NEXT 1u
#define DESCRIPTOR_WRITE 2u
#define AVAILABLE_NO_INTERRUPT 1
#define USED_NO_NOTIFY 1u

/* Fifty seconds on a 2 GHz time stamp counter; the disk may be slow, the host busy. */
#define PATIENCE_CYCLES 100000000000u

void virtqueue_init(struct virtqueue *q, uint16_t size)
{
    memset(q, 0, sizeof *q);
    q->size = size;
    q->free_count = size;
    q->available.flags = AVAILABLE_NO_INTERRUPT;
    for (uint16_t i = 0; i < size; i++)
        q->descriptors[i].next = (uint16_t)(i + 1);
}

uint16_t virtqueue_next_head(const struct virtqueue *q)
{
    return q->free_head;
}

void virtqueue_add(struct virtqueue *q, const struct buffer *buffers, unsigned readable,
                   unsigned writable)
{
    uint16_t head = q->free_head;
    struct descriptor *d = NULL;
    for (unsigned i = 0; i < readable + writable; i++) {
        d = &q->descriptors[q->free_head];
        d->address = (uintptr_t)buffers[i].address;
        d->bytes = buffers[i].bytes;
        d->flags = DESCRIPTOR_NEXT | (i < readable ? 0 : DESCRIPTOR_WRITE);
        q->free_head = d->next;
    }
    d->flags &= (uint16_t)~DESCRIPTOR_NEXT;
    q->free_count = (uint16_t)(q->free_count - readable - writable);

    q->available.heads[q->available.index & (q->size - 1)] = head;
    q->in_flight[head] = true;
    compiler_barrier(); /* the entry before the index */
    q->available.index++;
}

void virtqueue_kick(struct virtqueue *q)
{
    full_barrier(); /* our index before their flag, or both sides may sleep */
    if ((q->used.flags & USED_NO_NOTIFY) == 0)
        *q->doorbell = q->index;
}

static void free_chain(struct virtqueue *q, uint16_t head)
{
    struct descriptor *d = &q->descriptors[head];
    q->free_count++;
    while ((d->flags & DESCRIPTOR_NEXT) != 0) {
        d = &q->descriptors[d->next];
        q->free_count++;
    }
    d->next = q->free_head;
    q->free_head = head;
}

bool virtqueue_wait(struct virtqueue *q, uint32_t *head, uint32_t *bytes)
{
    uint64_t start = cycles();
    while (q->used.index == q->used_seen) {
        if (cycles() - start > PATIENCE_CYCLES) {
            *head = NO_HEAD;
            return false;
        }
        pause();
    }
    compiler_barrier(); /* the index before the element */
    *head = q->used.elements[q->used_seen & (q->size - 1)].head;
    *bytes = q->used.elements[q->used_seen & (q->size - 1)].bytes;
    if (*head >= q->size || !q->in_flight[*head])
        return false;
    q->in_flight[*head] = false;
    q->used_seen++;
    free_chain(q, (uint16_t)*head);
    return true;
}
