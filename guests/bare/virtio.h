/* A virtio 1 device behind PCI (virtio 1.3, section 4.1): finding its registers, negotiating. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "pci.h"
#include "virtqueue.h"

#define VIRTIO_F_VERSION_1 ((uint64_t)1 << 32)

/* The device status register. */
#define STATUS_ACKNOWLEDGE 1
#define STATUS_DRIVER 2
#define STATUS_DRIVER_OK 4
#define STATUS_FEATURES_OK 8
#define STATUS_NEEDS_RESET 0x40

struct virtio_device {
    struct pci_function pci;
    bool has_msix;
    volatile uint8_t *common;
    volatile uint8_t *notify;
    uint32_t notify_multiplier;
    volatile uint8_t *config;
    uint32_t config_bytes;
};

/* Finds the three register blocks that a modern device has; false if one is missing. */
bool virtio_open(struct virtio_device *v, const struct pci_function *f);

/*
 * Resets the device and tells it that a driver is here. False if it is not reset within a while,
 * or takes no driver after that.
 */
bool virtio_begin(struct virtio_device *v);

uint8_t virtio_status(const struct virtio_device *v);
uint64_t virtio_offered_features(const struct virtio_device *v);

/* From there to FEATURES_OK; false if the device refuses these features. */
bool virtio_negotiate(struct virtio_device *v, uint64_t features);

/* Enables queue `index` with at most QUEUE_SIZE_MAX entries; false if it does not exist. */
bool virtio_add_queue(struct virtio_device *v, struct virtqueue *q, uint16_t index);

void virtio_driver_ok(struct virtio_device *v);

/* Reads `bytes` (1, 2, 4 or 8) of the device's own configuration; 0 past its end. */
uint64_t virtio_config(const struct virtio_device *v, unsigned offset, unsigned bytes);
