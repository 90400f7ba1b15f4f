/*
 * The checks beside plain transfers: many requests at once, wrong ones, the other commands, and
 * starting the device anew.
 */
#include "checks.h"

#include "areas.h"
#include "memory.h"
#include "options.h"
#include "pattern.h"
#include "report.h"
#include "transfers.h"

#define TYPE_UNKNOWN 0x5eed

static uint32_t block_sectors(const struct disk *d)
{
    return d->block_bytes / SECTOR_BYTES;
}

/* Writing a block between two others leaves those alone. */
static void check_neighbours(struct disk *d)
{
    uint32_t block = d->block_bytes;
    check_begin("neighbours");
    write_plainly(d, 0, 3 * block);
    memcpy(got_data, expected_data, 3 * block);
    write_plainly(d, block_sectors(d), block);
    memcpy(got_data + block, expected_data, block);
    memcpy(expected_data, got_data, 3 * block);
    read_plainly_and_compare(d, 0, 3 * block);
    check_end();
}

/* `count` requests of one block each, in flight together, between dma_area and the first blocks. */
static void all_at_once(struct disk *d, unsigned queue, uint32_t type, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        struct buffer b = {dma_area + i * d->block_bytes, d->block_bytes};
        disk_submit(d, queue, type, i * block_sectors(d), &b, 1);
    }
    disk_kick(d, queue);
    for (unsigned i = 0; i < count; i++)
        expect_status(DISK_OK, disk_collect(d, queue));
}

/* Fills a queue with writes, then another with reads of the same blocks. */
static void check_full_queue(struct disk *d, unsigned writer, unsigned reader)
{
    unsigned count = disk_depth(d, writer);
    if (count > d->sectors / block_sectors(d))
        count = (unsigned)(d->sectors / block_sectors(d));
    uint32_t bytes = count * d->block_bytes;
    if (!d->read_only) {
        pattern_fill(expected_data, 0, bytes);
        memcpy(dma_area, expected_data, bytes);
        all_at_once(d, writer, DISK_WRITE, count);
    } else {
        all_at_once(d, writer, DISK_READ, count);
        memcpy(expected_data, dma_area, bytes);
    }
    memset(dma_area, 0, bytes);
    all_at_once(d, reader, DISK_READ, count);
    expect_same(expected_data, dma_area, bytes);
}

/* As often as it takes for the rings' positions to wrap around. */
static void check_depth(struct disk *d)
{
    check_begin("full-queue");
    for (unsigned round = 0; round < 4; round++)
        check_full_queue(d, 0, 0);
    check_end();
}

static void check_other_queues(struct disk *d)
{
    if (d->queue_count == 1) {
        check_skip("every-queue", "the disk has one");
        return;
    }
    check_begin("every-queue");
    for (unsigned q = 0; q < d->queue_count; q++)
        check_full_queue(d, q, (q + 1) % d->queue_count);
    check_end();
}

static void check_flush(struct disk *d)
{
    if (!d->can_flush) {
        check_skip("flush", "the disk does not offer it");
        return;
    }
    check_begin("flush");
    if (!d->read_only)
        write_plainly(d, 0, d->block_bytes);
    expect_status(DISK_OK, disk_do(d, DISK_FLUSH, 0, NULL, 0));
    if (!d->read_only)
        read_plainly_and_compare(d, 0, d->block_bytes);
    check_end();
}

/* The id is text, padded with zeroes: the expected one if an option says so, else not empty. */
static void check_id(struct disk *d)
{
    char id[ID_BYTES + 1] = {0};
    struct buffer b = {id, ID_BYTES};
    check_begin("id");
    expect_status(DISK_OK, disk_do(d, DISK_GET_ID, 0, &b, 1));
    char wanted[ID_BYTES + 1];
    if (option_text(d->index, "serial", wanted, sizeof wanted)) {
        if (!same_text(wanted, id))
            check_fail("expected \"%s\" got \"%s\"", wanted, id);
    } else if (id[0] <= ' ' || id[0] > '~') {
        check_fail("expected text got a first byte of %lu", (uint64_t)(uint8_t)id[0]);
    }
    check_end();
}

static void check_refused(struct disk *d, const char *name, uint32_t type, uint64_t sector,
                          uint32_t bytes, uint8_t expected)
{
    struct buffer b = {dma_area, bytes};
    check_begin(name);
    expect_status(expected, disk_do(d, type, sector, &b, bytes == 0 ? 0 : 1));
    check_end();
}

/* A write of zeroes that must fail and leave the block at `sector` as expected_data has it. */
static void refuse_write(struct disk *d, uint64_t sector, uint32_t bytes)
{
    memset(dma_area, 0, bytes);
    struct buffer b = {dma_area, bytes};
    expect_status(DISK_IOERR, disk_do(d, DISK_WRITE, sector, &b, 1));
    read_plainly_and_compare(d, sector, d->block_bytes);
}

static void check_write_to_read_only(struct disk *d)
{
    check_begin("write-to-read-only");
    read_plainly(d, 0, d->block_bytes);
    memcpy(expected_data, got_data, d->block_bytes);
    refuse_write(d, 0, d->block_bytes);
    check_end();
}

/* The part of it that is on the disk is not written either. */
static void check_write_across_the_end(struct disk *d, uint64_t last)
{
    check_begin("write-across-the-end");
    write_plainly(d, last, d->block_bytes);
    refuse_write(d, last, 2 * d->block_bytes);
    check_end();
}

static void check_errors(struct disk *d)
{
    uint32_t block = d->block_bytes;
    uint64_t end = d->sectors, last = end - block_sectors(d);
    uint64_t far = ((uint64_t)1 << 55) - block_sectors(d);
    check_refused(d, "read-past-the-end", DISK_READ, end, block, DISK_IOERR);
    check_refused(d, "read-across-the-end", DISK_READ, last, 2 * block, DISK_IOERR);
    check_refused(d, "read-where-bytes-overflow", DISK_READ, far, 2 * block, DISK_IOERR);
    check_refused(d, "unknown-type", TYPE_UNKNOWN, 0, 0, DISK_UNSUPP);
    check_refused(d, "unknown-type-with-data", TYPE_UNKNOWN, 0, block, DISK_UNSUPP);
    if (d->read_only) {
        check_write_to_read_only(d);
    } else {
        check_refused(d, "write-past-the-end", DISK_WRITE, end, block, DISK_IOERR);
        check_write_across_the_end(d, last);
    }
}

static void check_used_lengths(const struct disk *d)
{
    check_begin("used-lengths");
    if (d->used_wrong != 0)
        check_fail("expected %lu got %lu, and %lu more wrong ones", d->used_expected, d->used_got,
                   d->used_wrong - 1);
    check_end();
}

/*
 * A device that is reset in use and started again still has the data. Resetting it is the VMM's
 * work, and Firecracker cannot with vhost-user: it goes on using the rings as they are, and so do
 * we.
 */
static void check_restart(struct disk *d)
{
    if (!d->read_only) /* a failure shows as wrong data */
        write_plainly(d, block_sectors(d), d->block_bytes);
    if (!virtio_begin(&d->device)) {
        check_skip("restart", "the VMM cannot reset the device");
        return;
    }
    check_begin("restart");
    const char *problem = disk_start(d);
    if (problem != NULL)
        check_fail("expected a disk that starts got %s", problem);
    else if (d->read_only)
        read_plainly(d, 0, d->block_bytes);
    else
        read_plainly_and_compare(d, block_sectors(d), d->block_bytes);
    check_end();
}

/* The device never asked for a reset, whatever it was sent. */
static void check_healthy(const struct disk *d)
{
    check_begin("device-status");
    expect_number("status",
                  STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK,
                  virtio_status(&d->device));
    check_end();
}

static void check_option(const struct disk *d, const char *key, uint64_t got)
{
    uint64_t wanted;
    if (!option_number(d->index, key, &wanted))
        return;
    check_begin(key);
    expect_number(key, wanted, got);
    check_end();
}

void check_disk(struct disk *d)
{
    check_option(d, "sectors", d->sectors);
    check_option(d, "block-size", d->block_bytes);
    check_option(d, "read-only", d->read_only);
    check_option(d, "queues", d->queue_count);
    check_transfers(d);
    if (!d->read_only)
        check_neighbours(d);
    check_depth(d);
    check_other_queues(d);
    check_flush(d);
    check_id(d);
    check_errors(d);
    check_healthy(d);
    check_restart(d);
    check_used_lengths(d);
}

/* The first block of each disk is written before the first block of any is read again. */
void check_disks_apart(struct disk *disks, unsigned count)
{
    static uint8_t kept[DISKS_MAX][SECTOR_BYTES];
    for (unsigned i = 0; i < count; i++) {
        report_subject(i);
        check_begin("beside-others");
        if (!disks[i].read_only)
            write_plainly(&disks[i], 0, disks[i].block_bytes);
        read_plainly(&disks[i], 0, disks[i].block_bytes);
        memcpy(kept[i], got_data, SECTOR_BYTES);
        check_end();
    }
    for (unsigned i = 0; i < count; i++) {
        report_subject(i);
        check_begin("untouched-by-others");
        read_plainly(&disks[i], 0, disks[i].block_bytes);
        expect_same(kept[i], got_data, SECTOR_BYTES);
        check_end();
    }
}
