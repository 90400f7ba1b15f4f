/*
 * Requests as chains of header, data and status.
 *
 * Each queue is polled; a request's header and status live beside the queue, at the index of its
 * head descriptor.
 */
#include "disk.h"

#include <stddef.h>

#include "exit.h"
#include "report.h"

#define VENDOR_VIRTIO 0x1af4
#define DEVICE_BLOCK_TRANSITIONAL 0x1001
#define DEVICE_BLOCK 0x1042

#define FEATURE_SIZE_MAX (1u << 1)
#define FEATURE_SEG_MAX (1u << 2)
#define FEATURE_RO (1u << 5)
#define FEATURE_BLK_SIZE (1u << 6)
#define FEATURE_FLUSH (1u << 9)
#define FEATURE_MQ (1u << 12)
#define FEATURES_USED                                                                       \
    (VIRTIO_F_VERSION_1 | FEATURE_SIZE_MAX | FEATURE_SEG_MAX | FEATURE_RO | FEATURE_BLK_SIZE | \
     FEATURE_FLUSH | FEATURE_MQ)

#define CONFIG_CAPACITY 0
#define CONFIG_SIZE_MAX 8
#define CONFIG_SEG_MAX 12
#define CONFIG_BLK_SIZE 20
#define CONFIG_NUM_QUEUES 34

/* So that a full queue of blocks fits into the shared buffers. */
#define BLOCK_BYTES_MAX 16384

#define STATUS_UNWRITTEN 0xff

bool is_virtio_disk(const struct pci_function *f)
{
    return f->vendor_id == VENDOR_VIRTIO &&
           (f->device_id == DEVICE_BLOCK || f->device_id == DEVICE_BLOCK_TRANSITIONAL);
}

const char *disk_open(struct disk *d, unsigned index, const struct pci_function *f)
{
    d->index = index;
    if (!virtio_open(&d->device, f))
        return "no virtio 1 registers (common, notify, device)";
    return NULL;
}

/* A field that exists if `feature` was negotiated, else `otherwise`. */
static uint32_t field32(const struct disk *d, uint64_t features, uint32_t feature, unsigned offset,
                        uint32_t otherwise)
{
    return (features & feature) != 0 ? (uint32_t)virtio_config(&d->device, offset, 4) : otherwise;
}

static void read_config(struct disk *d, uint64_t features)
{
    d->read_only = (features & FEATURE_RO) != 0;
    d->can_flush = (features & FEATURE_FLUSH) != 0;
    d->sectors = virtio_config(&d->device, CONFIG_CAPACITY, 8);
    d->block_bytes = field32(d, features, FEATURE_BLK_SIZE, CONFIG_BLK_SIZE, SECTOR_BYTES);
    d->segment_bytes_max = field32(d, features, FEATURE_SIZE_MAX, CONFIG_SIZE_MAX, UINT32_MAX);
    if (d->segment_bytes_max == 0) /* qemu-storage-daemon offers SIZE_MAX and leaves it at 0 */
        d->segment_bytes_max = UINT32_MAX;
    /* Without SEG_MAX one is all that may be counted on; Linux counts on one too. */
    d->segments_max = field32(d, features, FEATURE_SEG_MAX, CONFIG_SEG_MAX, 1);
    d->queue_count = (features & FEATURE_MQ) != 0
                         ? (uint16_t)virtio_config(&d->device, CONFIG_NUM_QUEUES, 2)
                         : 1;
    if (d->queue_count > DISK_QUEUES_MAX)
        d->queue_count = DISK_QUEUES_MAX;
}

static const char *config_problem(const struct disk *d)
{
    if (d->block_bytes < SECTOR_BYTES || d->block_bytes > BLOCK_BYTES_MAX ||
        (d->block_bytes & (d->block_bytes - 1)) != 0)
        return "a block size that is no power of two from 512 to 16384";
    if (d->segments_max == 0 || d->queue_count == 0)
        return "a limit of zero segments or queues";
    if (d->sectors < d->block_bytes / SECTOR_BYTES * 16)
        return "a capacity below 16 blocks";
    return NULL;
}

const char *disk_start(struct disk *d)
{
    struct virtio_device *v = &d->device;
    if (!virtio_begin(v))
        return "no reset";
    uint64_t offered = virtio_offered_features(v);
    if ((offered & VIRTIO_F_VERSION_1) == 0)
        return "no VERSION_1 among the features";
    if (!virtio_negotiate(v, offered & FEATURES_USED))
        return "FEATURES_OK refused";

    read_config(d, offered & FEATURES_USED);
    const char *problem = config_problem(d);
    if (problem != NULL)
        return problem;

    for (uint16_t i = 0; i < d->queue_count; i++) {
        if (!virtio_add_queue(v, &d->queues[i], i))
            return "a queue without entries";
        uint32_t room = d->queues[i].size - 2u;
        if (d->segments_max > room)
            d->segments_max = room;
    }
    virtio_driver_ok(v);
    return NULL;
}

unsigned disk_depth(const struct disk *d, unsigned queue)
{
    return d->queues[queue].free_count / 3;
}

void disk_submit(struct disk *d, unsigned queue, uint32_t type, uint64_t sector,
                 const struct buffer *segments, unsigned count)
{
    static struct buffer chain[QUEUE_SIZE_MAX];
    struct virtqueue *q = &d->queues[queue];
    struct request *r = &d->requests[queue][virtqueue_next_head(q)];
    *r = (struct request){.header = {.type = type, .sector = sector}, .status = STATUS_UNWRITTEN};

    chain[0] = (struct buffer){&r->header, sizeof r->header};
    for (unsigned i = 0; i < count; i++) {
        chain[1 + i] = segments[i];
        r->data_bytes += segments[i].bytes;
    }
    chain[1 + count] = (struct buffer){&r->status, 1};
    unsigned readable = type == DISK_WRITE ? 1 + count : 1;
    virtqueue_add(q, chain, readable, count + 2 - readable);
}

void disk_kick(struct disk *d, unsigned queue)
{
    virtqueue_kick(&d->queues[queue]);
}

/*
 * The used length counts the bytes that the device wrote, the status byte included. After an
 * error it may or may not have written data.
 */
static void check_used_length(struct disk *d, const struct request *r, uint32_t used)
{
    bool reads = r->header.type != DISK_WRITE;
    uint32_t most = 1 + (reads ? r->data_bytes : 0);
    uint32_t least = r->status == DISK_OK ? most : 1;
    if (used >= least && used <= most)
        return;
    if (d->used_wrong++ == 0) {
        d->used_expected = least;
        d->used_got = used;
    }
}

uint8_t disk_collect(struct disk *d, unsigned queue)
{
    uint32_t head, used;
    if (!virtqueue_wait(&d->queues[queue], &head, &used)) {
        if (head == NO_HEAD)
            check_fail("expected a completion got none");
        else
            check_fail("expected a completion got one of head %lu, which is not in flight",
                       (uint64_t)head);
        report_totals();
        power_off(false);
    }
    struct request *r = &d->requests[queue][head];
    check_used_length(d, r, used);
    return r->status;
}

uint8_t disk_do(struct disk *d, uint32_t type, uint64_t sector, const struct buffer *segments,
                unsigned count)
{
    disk_submit(d, 0, type, sector, segments, count);
    disk_kick(d, 0);
    return disk_collect(d, 0);
}

static const char *status_name(uint8_t status)
{
    switch (status) {
    case DISK_OK:
        return "OK";
    case DISK_IOERR:
        return "IOERR";
    case DISK_UNSUPP:
        return "UNSUPP";
    case STATUS_UNWRITTEN:
        return "no status byte";
    default:
        return "an unknown status";
    }
}

void expect_status(uint8_t expected, uint8_t got)
{
    if (expected != got)
        check_fail("expected %s got %s (%lu)", status_name(expected), status_name(got),
                   (uint64_t)got);
}
