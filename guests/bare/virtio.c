/*
 * The registers of virtio over PCI, and the order in which a driver goes through them.
 *
 * Fields are accessed with their own width, 64-bit ones as two halves, as section 4.1.3.1 wants:
 * some VMMs refuse everything else. Nothing but the status is written before ACKNOWLEDGE: Cloud
 * Hypervisor resets all registers at each write until then. A queue gets MSI-X vector 0 although
 * no interrupt is ever taken: Firecracker wants a vector before it starts a vhost-user device.
 */
#include "virtio.h"

#include "paging.h"
#include "x86.h"

#define CAPABILITY_COMMON 1
#define CAPABILITY_NOTIFY 2
#define CAPABILITY_DEVICE 4

#define COMMON_DEVICE_FEATURE_SELECT 0x00
#define COMMON_DEVICE_FEATURE 0x04
#define COMMON_DRIVER_FEATURE_SELECT 0x08
#define COMMON_DRIVER_FEATURE 0x0c
#define COMMON_STATUS 0x14
#define COMMON_GENERATION 0x15
#define COMMON_QUEUE_SELECT 0x16
#define COMMON_QUEUE_SIZE 0x18
#define COMMON_QUEUE_VECTOR 0x1a
#define COMMON_QUEUE_ENABLE 0x1c
#define COMMON_QUEUE_NOTIFY_OFFSET 0x1e
#define COMMON_QUEUE_DESCRIPTORS 0x20
#define COMMON_QUEUE_AVAILABLE 0x28
#define COMMON_QUEUE_USED 0x30

/* How often to ask whether a reset is done. The answer is usually there at once. */
#define RESET_POLLS_MAX 1000000

static uint16_t get16(volatile uint8_t *at)
{
    return *(volatile uint16_t *)at;
}

static uint32_t get32(volatile uint8_t *at)
{
    return *(volatile uint32_t *)at;
}

static void set16(volatile uint8_t *at, uint16_t value)
{
    *(volatile uint16_t *)at = value;
}

static void set32(volatile uint8_t *at, uint32_t value)
{
    *(volatile uint32_t *)at = value;
}

static void set_address(volatile uint8_t *at, volatile const void *address)
{
    set32(at, (uint32_t)(uintptr_t)address);
    set32(at + 4, (uint32_t)((uintptr_t)address >> 32));
}

/* Takes one vendor capability into account. Its layout is struct virtio_pci_cap. */
static void take_capability(struct virtio_device *v, uint8_t at)
{
    uint8_t type = pci_read8(&v->pci, at + 3u);
    if (type != CAPABILITY_COMMON && type != CAPABILITY_NOTIFY && type != CAPABILITY_DEVICE)
        return;
    uint64_t bar = pci_bar_address(&v->pci, pci_read8(&v->pci, at + 4u));
    if (bar == 0)
        return;
    uint64_t address = bar + pci_read32(&v->pci, at + 8u);
    uint32_t bytes = pci_read32(&v->pci, at + 12u);
    volatile uint8_t *registers = map_registers(address, bytes);

    /* A type may come again; the first is the one that the device prefers. */
    if (type == CAPABILITY_COMMON && !v->common) {
        v->common = registers;
    } else if (type == CAPABILITY_NOTIFY && !v->notify) {
        v->notify = registers;
        v->notify_multiplier = pci_read32(&v->pci, at + 16u);
    } else if (type == CAPABILITY_DEVICE && !v->config) {
        v->config = registers;
        v->config_bytes = bytes;
    }
}

bool virtio_open(struct virtio_device *v, const struct pci_function *f)
{
    *v = (struct virtio_device){.pci = *f};
    pci_enable(f);
    uint8_t at = 0;
    while ((at = pci_next_capability(f, PCI_CAPABILITY_VENDOR, at)) != 0)
        take_capability(v, at);
    v->has_msix = pci_next_capability(f, PCI_CAPABILITY_MSIX, 0) != 0;
    return v->common && v->notify && v->config;
}

uint8_t virtio_status(const struct virtio_device *v)
{
    return v->common[COMMON_STATUS];
}

static void add_status(struct virtio_device *v, uint8_t bits)
{
    v->common[COMMON_STATUS] = virtio_status(v) | bits;
}

bool virtio_begin(struct virtio_device *v)
{
    v->common[COMMON_STATUS] = 0;
    for (unsigned polls = 0; virtio_status(v) != 0; polls++) {
        if (polls == RESET_POLLS_MAX)
            return false;
        pause();
    }
    add_status(v, STATUS_ACKNOWLEDGE);
    add_status(v, STATUS_DRIVER);
    return virtio_status(v) == (STATUS_ACKNOWLEDGE | STATUS_DRIVER);
}

uint64_t virtio_offered_features(const struct virtio_device *v)
{
    uint64_t features = 0;
    for (uint32_t half = 0; half < 2; half++) {
        set32(v->common + COMMON_DEVICE_FEATURE_SELECT, half);
        features |= (uint64_t)get32(v->common + COMMON_DEVICE_FEATURE) << half * 32;
    }
    return features;
}

bool virtio_negotiate(struct virtio_device *v, uint64_t features)
{
    for (uint32_t half = 0; half < 2; half++) {
        set32(v->common + COMMON_DRIVER_FEATURE_SELECT, half);
        set32(v->common + COMMON_DRIVER_FEATURE, (uint32_t)(features >> half * 32));
    }
    add_status(v, STATUS_FEATURES_OK);
    return (virtio_status(v) & STATUS_FEATURES_OK) != 0;
}

bool virtio_add_queue(struct virtio_device *v, struct virtqueue *q, uint16_t index)
{
    set16(v->common + COMMON_QUEUE_SELECT, index);
    uint16_t size = get16(v->common + COMMON_QUEUE_SIZE);
    if (size == 0)
        return false;
    if (size > QUEUE_SIZE_MAX) {
        size = QUEUE_SIZE_MAX;
        set16(v->common + COMMON_QUEUE_SIZE, size);
    }
    virtqueue_init(q, size);
    q->index = index;
    uint32_t offset = get16(v->common + COMMON_QUEUE_NOTIFY_OFFSET) * v->notify_multiplier;
    q->doorbell = (volatile uint16_t *)(v->notify + offset);
    set_address(v->common + COMMON_QUEUE_DESCRIPTORS, q->descriptors);
    set_address(v->common + COMMON_QUEUE_AVAILABLE, &q->available);
    set_address(v->common + COMMON_QUEUE_USED, &q->used);
    if (v->has_msix)
        set16(v->common + COMMON_QUEUE_VECTOR, 0);
    set16(v->common + COMMON_QUEUE_ENABLE, 1);
    return true;
}

void virtio_driver_ok(struct virtio_device *v)
{
    add_status(v, STATUS_DRIVER_OK);
}

static uint64_t config_once(const struct virtio_device *v, unsigned offset, unsigned bytes)
{
    switch (bytes) {
    case 1:
        return v->config[offset];
    case 2:
        return get16(v->config + offset);
    case 4:
        return get32(v->config + offset);
    default:
        return get32(v->config + offset) | (uint64_t)get32(v->config + offset + 4) << 32;
    }
}

uint64_t virtio_config(const struct virtio_device *v, unsigned offset, unsigned bytes)
{
    if (offset + bytes > v->config_bytes)
        return 0;
    uint8_t generation;
    uint64_t value;
    do { /* again if the device changed it meanwhile */
        generation = v->common[COMMON_GENERATION];
        value = config_once(v, offset, bytes);
    } while (v->common[COMMON_GENERATION] != generation);
    return value;
}
