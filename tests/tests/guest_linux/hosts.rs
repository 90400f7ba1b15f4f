//! Hosts of other kinds: a disk with blocks larger than the guest's, and guest memory of huge pages.

use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::huge_pages::HugePages;
use sluice_tests::rng::Rng;
use sluice_tests::vm::LinuxReport;

use crate::border::Exchange;
use crate::setup::{MIB, PC, Setup, assert_bytes, assert_described, assert_fio_verified, run};

/// What ATA disks call 512e: Linux is told of both sizes, and may write parts of what is written at once, many at a time.
#[test]
fn a_guest_writes_sectors_and_small_blocks_on_a_disk_with_large_ones() {
    let setup = Setup { queues: 2, ..PC };
    let Some(DiskSpec { device, .. }) = DiskSpec::on_device(4096) else { return };
    let disk = Disk::new(&DiskSpec { device, ..setup.spec(64 * MIB, None) });
    let mut daemon = setup.daemon(&[&disk]);
    let vm = setup.vm(&daemon, &["info", "fio", "small-blocks"]);
    let report = LinuxReport::passed(vm.word("sluice.fio=sectors").run());
    assert_described(&report, "vda", &disk.spec);
    report.assert_value("vda.queue.logical_block_size", "512");
    report.assert_value("vda.queue.physical_block_size", "4096");
    report.assert_value("vda.queue.minimum_io_size", "4096");
    for check in ["fio.sectors", "small.fill", "small.fsck", "small.checksums"] {
        report.assert_made(check);
    }
    daemon.assert_well();
    run("e2fsck", &["-f", "-n", &disk.path().display().to_string()], "e2fsprogs");
}

/// Of a host that lends them: else there is nothing to be tested.
#[test]
fn a_guest_whose_memory_is_huge_pages_does_its_io() {
    const MEMORY_MIB: u32 = 512;
    let _pages = match HugePages::set_aside(u64::from(MEMORY_MIB) / 2) {
        Ok(pages) => pages,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let disk = PC.disk(32 * MIB, Some(31));
    let mut image = disk.bytes();
    let mut daemon = PC.daemon(&[&disk]);
    let guest_writes = Rng::new(32).bytes(2 * MIB);
    let exchange = Exchange { host_wrote_at: 20 * MIB, guest_writes_at: 28 * MIB, guest_writes };
    let vm = exchange.prepare(PC.vm(&daemon, &["exchange", "fio"]), &image);
    let report = LinuxReport::passed(vm.huge_pages(MEMORY_MIB).word("sluice.fio=quick").run());
    report.assert_made("host.wrote");
    assert_fio_verified(&report);
    daemon.assert_well();
    exchange.apply(&mut image);
    assert_bytes("the file behind fio's part", &disk.bytes()[16 * MIB..], &image[16 * MIB..]);
}
