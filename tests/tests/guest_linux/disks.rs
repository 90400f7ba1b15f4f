//! Disks of other kinds and several of them: read-only, two in a VM, two VMs at once on one daemon, and a VM that is reset.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::rng::Rng;
use sluice_tests::vm::{LinuxReport, Machine, Vm};

use crate::border::Exchange;
use crate::events::Stage;
use crate::setup::{
    MIB, PC, QUICK_BYTES, SECTOR, Setup, assert_bytes, assert_described, assert_fio_verified, run,
};

#[test]
fn a_read_only_disk_is_read_and_stays_as_it_is() {
    let spec = DiskSpec { read_only: true, ..PC.spec(QUICK_BYTES, Some(14)) };
    let disk = Disk::new(&spec);
    let mut daemon = PC.daemon(&[&disk]);
    let report = LinuxReport::passed(PC.vm(&daemon, &["readonly"]).run());
    assert_described(&report, "vda", &spec);
    for check in ["ro", "read", "write", "write.buffered", "discard", "zeroout", "unchanged"] {
        report.assert_made(check);
    }
    daemon.assert_well();
    let sum = run("md5sum", &[&disk.path().display().to_string()], "coreutils");
    report.assert_value("md5", sum.split_whitespace().next().unwrap());
    assert_bytes("the file", &disk.bytes(), disk.model().data());
}

#[test]
fn two_disks_of_one_daemon_work_in_one_vm() {
    let specs = [PC.spec(64 * MIB, None), Setup { queues: 1, block: 4096, ..PC }.spec(48 * MIB, None)];
    let disks = specs.clone().map(|spec| Disk::new(&spec));
    let mut daemon = PC.daemon(&[&disks[0], &disks[1]]);
    let vm = PC.vm(&daemon, &["two-disks"]).disk(daemon.socket(1), specs[1].queues);
    let report = LinuxReport::passed(vm.word("sluice.fio_size=16m").run());
    assert_described(&report, "vda", &specs[0]);
    assert_described(&report, "vdb", &specs[1]);
    for check in ["read.one", "read.two", "serials.differ", "fio.two-disks"] {
        report.assert_made(check);
    }
    daemon.assert_well();
    let patterns = [0x1111_aaaa, 0x2222_bbbb];
    assert_fio_pattern(&disks[0], patterns[0], patterns[1]);
    assert_fio_pattern(&disks[1], patterns[1], patterns[0]);
}

/// The job file `two-disks` fills each block with its pattern of 4 bytes and the block's offset, in turn. Blocks are 4
/// KiB or more: many pages start with both, and none with the other disk's pattern.
fn assert_fio_pattern(disk: &Disk, own: u32, other: u32) {
    let bytes = disk.bytes();
    let pages = || bytes[..QUICK_BYTES].chunks(4096).enumerate();
    let start = |page: usize| [&own.to_be_bytes()[..], &(page as u64 * 4096).to_le_bytes()].concat();
    let starts = pages().filter(|&(page, data)| data.starts_with(&start(page))).count();
    assert!(starts > 64, "{starts} pages start with pattern {own:x} and their own offset");
    let strange =
        pages().filter(|(_, data)| data.windows(4).any(|window| window == other.to_be_bytes())).count();
    assert_eq!(strange, 0, "pages that hold pattern {other:x} of the other disk");
}

#[test]
fn two_vms_on_two_disks_of_one_daemon_work_at_once() {
    let setups = [PC, Setup { machine: Machine::Microvm, block: 4096, queues: 2, ..PC }];
    let disks = [setups[0].disk(32 * MIB, Some(15)), setups[1].disk(32 * MIB, Some(16))];
    let mut daemon = setups[0].daemon(&[&disks[0], &disks[1]]);
    let mut images = disks.each_ref().map(Disk::bytes);
    let mut running: Vec<_> = (0..2)
        .map(|n| {
            let guest_writes = Rng::new(17 + n as u64).bytes(2 * MIB);
            let exchange = Exchange { host_wrote_at: 20 * MIB, guest_writes_at: 28 * MIB, guest_writes };
            let jobs = ["info", "exchange", "fio"];
            let vm = Vm::linux(setups[n].machine, setups[n].queues, &jobs).word("sluice.fio=quick");
            let vm = exchange.prepare(vm.disk(daemon.socket(n), setups[n].queues), &images[n]);
            exchange.apply(&mut images[n]);
            vm.start()
        })
        .collect();
    // Each is waited for while it runs: one that had ended would fail the test.
    for vm in running.iter_mut().rev() {
        vm.wait_until("fio starts", |vm| vm.console().contains("fio: quick"));
    }
    for (n, vm) in running.into_iter().enumerate() {
        let report = LinuxReport::passed(vm.finish());
        assert_described(&report, "vda", &disks[n].spec);
        report.assert_made("guest.writes");
        assert_fio_verified(&report);
        let (found, expected) = (disks[n].bytes(), &images[n]);
        assert_bytes(&format!("disk {n} behind fio's part"), &found[QUICK_BYTES..], &expected[QUICK_BYTES..]);
    }
    daemon.assert_well();
}

/// The reset button, with 128 requests in flight: the device starts again, and everything works.
#[test]
fn a_guest_that_is_reset_in_the_middle_of_its_io_starts_again() {
    let Stage { mut daemon, before, disk } = Stage::new(PC, &[]);
    let vm = PC.vm(&daemon, &["fio"]).word("sluice.fio=mixed").word("sluice.fio_size=16m");
    let mut vm = vm.rebooting().start();
    vm.wait_until("fio has written 4 MiB", |_| file_blocks(&disk.path()) > 4 * MIB as u64 / SECTOR);
    vm.reset();
    let ended = vm.finish();
    match ended.results.split("sluice-guest=1\n").skip(1).collect::<Vec<_>>()[..] {
        [interrupted, _] if !interrupted.contains("exit=") => {}
        _ => ended.fail("there is no interrupted boot and one more"),
    }
    let report = LinuxReport::passed(ended);
    for job in ["mixed-d32", "odd-d8", "flush-d4"] {
        report.assert_value(&format!("fio.{job}.error"), "0");
    }
    daemon.assert_well();
    before.await_of(daemon.pid());
}

fn file_blocks(path: &Path) -> u64 {
    path.metadata().unwrap().blocks()
}
