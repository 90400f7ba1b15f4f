/*
 * A guest that exercises every virtio disk of its machine and powers off.
 *
 * It writes to the disks without asking, so they are scratch disks.
 */
#include <stddef.h>

#include "checks.h"
#include "console.h"
#include "exit.h"
#include "options.h"
#include "pci.h"
#include "report.h"

_Noreturn void bare_main(uint32_t start_info);

static struct disk disks[DISKS_MAX];

static unsigned find_disks(struct pci_function *found)
{
    unsigned count = pci_find(found, DISKS_MAX, is_virtio_disk);
    uint64_t wanted;
    check_begin("disks");
    if (count == 0)
        check_fail("expected a virtio disk got none");
    if (machine_option_number("disks", &wanted))
        expect_number("disks", wanted, count);
    check_end();
    return count;
}

static void describe(const struct disk *d)
{
    const struct pci_function *f = &d->device.pci;
    print("# disk%lu: PCI %lx:%lx.%lx, device %lx, %lu sectors of 512, blocks of %lu%s, "
          "%lu queue(s) of %lu, %lu segments\n",
          (uint64_t)d->index, (uint64_t)f->bus, (uint64_t)f->device, (uint64_t)f->function,
          (uint64_t)f->device_id, d->sectors, (uint64_t)d->block_bytes,
          d->read_only ? ", read-only" : "", (uint64_t)d->queue_count, (uint64_t)d->queues[0].size,
          (uint64_t)d->segments_max);
}

static bool start(struct disk *d, unsigned index, const struct pci_function *f)
{
    check_begin("start");
    const char *problem = disk_open(d, index, f);
    if (problem == NULL)
        problem = disk_start(d);
    if (problem != NULL)
        check_fail("expected a disk that starts got %s", problem);
    check_end();
    if (problem == NULL)
        describe(d);
    return problem == NULL;
}

_Noreturn void bare_main(uint32_t start_info)
{
    struct pci_function found[DISKS_MAX];
    unsigned started = 0;

    options_init(start_info);
    unsigned count = find_disks(found);
    for (unsigned i = 0; i < count; i++) {
        report_subject(i);
        if (start(&disks[i], i, &found[i]))
            started++;
    }
    if (started == count) {
        for (unsigned i = 0; i < count; i++) {
            report_subject(i);
            check_disk(&disks[i]);
        }
        if (count > 1)
            check_disks_apart(disks, count);
    }
    power_off(report_totals());
}
