//! The bare-metal guest on QEMU: what a driver sees of the product, in a real virtual machine that boots in a blink.
//!
//! The guest's checks are listed in `guests/bare/README.md`. Here they are made for every engine and cache mode, number
//! of queues, size of blocks and of rings, on several disks and several machines at once; the guest is told what the
//! disk is, and the daemon must have nothing to complain about.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::subject::Engine;
use sluice_tests::vm::{BareReport, Daemon, Machine, Vm};

/// The guest uses no more of a disk's queues.
const QUEUES_USED_MAX: u16 = 4;

/// A disk with everything chosen, so that the guest can be told what to expect.
fn spec(queues: u16, block: u32, serial: &str) -> DiskSpec {
    let (serial, logical_block) = (Some(serial.to_owned()), Some(block));
    DiskSpec { content: None, queues, logical_block, serial, ..DiskSpec::default() }
}

/// Adds a disk to a VM, and to the guest's command line what it has to find.
fn attach(vm: Vm, number: usize, disk: &Disk, daemon: &Daemon, properties: &str) -> Vm {
    let spec = &disk.spec;
    let word = |vm: Vm, key: &str, value: String| vm.word(&format!("sluice.disk{number}.{key}={value}"));
    let vm = vm.disk_with(daemon.socket(number), spec.queues, properties);
    let vm = word(vm, "serial", spec.serial.clone().unwrap());
    let vm = word(vm, "sectors", (spec.bytes / 512).to_string());
    let vm = word(vm, "block-size", spec.logical_block.unwrap().to_string());
    let vm = word(vm, "read-only", u8::from(spec.read_only).to_string());
    word(vm, "queues", spec.queues.min(QUEUES_USED_MAX).to_string())
}

/// A VM on the one disk of a daemon.
fn vm_on(disk: &Disk, daemon: &Daemon, properties: &str) -> Vm {
    attach(Vm::bare().word("sluice.disks=1"), 0, disk, daemon, properties)
}

/// Every check on disks of every shape, each by a daemon of its own.
fn every_check_passes(engine: Engine, cache: &str) {
    for queues in [1, 4] {
        for block in [512, 4096] {
            eprintln!("{engine}, {cache}: {queues} queues, blocks of {block}");
            let disk = Disk::new(&spec(queues, block, "sluice-bare-20-bytes"));
            let mut daemon = Daemon::start(engine, cache, &[&disk]);
            let report = BareReport::passed(vm_on(&disk, &daemon, "").run());
            if queues > 1 {
                report.assert_nothing_skipped();
            }
            assert!(report.passed.len() > 30, "{report:?}");
            daemon.assert_well();
            assert!(disk.bytes().iter().any(|&byte| byte != 0), "what the guest wrote is in the file");
        }
    }
}

#[test]
fn every_check_passes_with_io_uring_and_direct_io() {
    every_check_passes(Engine::Uring, "none");
}

#[test]
fn every_check_passes_with_io_uring_through_the_page_cache() {
    every_check_passes(Engine::Uring, "writeback");
}

#[test]
fn every_check_passes_with_pread_and_direct_io() {
    every_check_passes(Engine::Sync, "none");
}

#[test]
fn every_check_passes_with_pread_through_the_page_cache() {
    every_check_passes(Engine::Sync, "writeback");
}

#[test]
fn every_check_passes_in_the_other_cache_modes() {
    for cache in ["writethrough", "directsync", "unsafe"] {
        for engine in [Engine::Uring, Engine::Sync] {
            let disk = Disk::new(&spec(4, 512, "mode"));
            let mut daemon = Daemon::start(engine, cache, &[&disk]);
            BareReport::passed(vm_on(&disk, &daemon, "").run()).assert_nothing_skipped();
            daemon.assert_well();
        }
    }
}

/// One daemon serves a driver that does without something after another that did not, and rings larger than it was
/// told to expect.
#[test]
fn every_check_passes_whatever_qemu_offers_of_the_ring() {
    let disk = Disk::new(&DiskSpec { queue_size: 256, ..spec(4, 512, "offers") });
    let mut daemon = Daemon::start(Engine::Uring, "none", &[&disk]);
    let offers = [
        "queue-size=16",
        "queue-size=1024",
        "indirect_desc=off",
        "indirect_desc=off,queue-size=1024",
        "event_idx=off",
        "indirect_desc=off,event_idx=off,queue-size=16",
        "disable-legacy=on",
        "packed=on",
    ];
    for properties in offers {
        eprintln!("with {properties}");
        BareReport::passed(vm_on(&disk, &daemon, properties).run()).assert_made("disk0/every-queue");
    }
    let old_board = vm_on(&disk, &daemon, "").machine(Machine::Pc);
    BareReport::passed(old_board.run()).assert_nothing_skipped();
    daemon.assert_well();
}

#[test]
fn a_read_only_disk_is_read_and_stays_as_it_is() {
    for (engine, cache) in [(Engine::Uring, "none"), (Engine::Sync, "writeback")] {
        for block in [512, 4096] {
            let disk =
                Disk::new(&DiskSpec { content: Some(2), read_only: true, ..spec(1, block, "read-only") });
            let mut daemon = Daemon::start(engine, cache, &[&disk]);
            let report = BareReport::passed(vm_on(&disk, &daemon, "").run());
            report.assert_made("disk0/write-to-read-only");
            report.assert_made("disk0/1m-most-segments-scattered");
            daemon.assert_well();
            assert!(disk.bytes() == disk.model().data(), "the file has changed");
        }
    }
}

#[test]
fn two_disks_of_one_daemon_keep_their_own_data_in_one_vm() {
    let disks = [Disk::new(&spec(1, 512, "first")), Disk::new(&spec(4, 4096, "second"))];
    let mut daemon = Daemon::start(Engine::Uring, "none", &[&disks[0], &disks[1]]);
    let mut vm = Vm::bare().word("sluice.disks=2");
    for (number, disk) in disks.iter().enumerate() {
        vm = attach(vm, number, disk, &daemon, "");
    }
    let report = BareReport::passed(vm.run());
    for check in ["disk0/beside-others", "disk1/beside-others", "disk0/untouched-by-others"] {
        report.assert_made(check);
    }
    daemon.assert_well();
}

#[test]
fn two_vms_on_two_disks_of_one_daemon_run_at_once() {
    const ROUNDS: usize = 3;
    let disks = [Disk::new(&spec(4, 512, "first")), Disk::new(&spec(4, 512, "second"))];
    let mut daemon = Daemon::start(Engine::Uring, "none", &[&disks[0], &disks[1]]);
    for _ in 0..ROUNDS {
        let running: Vec<_> = (0..2)
            .map(|number| {
                let vm = Vm::bare().word("sluice.disks=1");
                let serial = disks[number].spec.serial.clone().unwrap();
                let vm = vm.word(&format!("sluice.disk0.serial={serial}"));
                vm.disk(daemon.socket(number), 4).start()
            })
            .collect();
        for vm in running {
            BareReport::passed(vm.finish()).assert_nothing_skipped();
        }
    }
    daemon.assert_well();
}

/// QEMU dies with requests in flight, each time at another point; the socket stays, and the next guest finds a disk
/// that is well.
#[test]
fn a_vm_that_is_killed_leaves_a_daemon_that_serves_the_next() {
    for engine in [Engine::Uring, Engine::Sync] {
        let disk = Disk::new(&spec(4, 512, "killed"));
        let mut daemon = Daemon::start(engine, "none", &[&disk]);
        for check in ["start", "block-in-crumbs", "64k-pages", "1m", "full-queue", "every-queue"] {
            let mut vm = vm_on(&disk, &daemon, "").start();
            let line = format!("ok disk0/{check}\n");
            vm.wait_until(&line, |vm| vm.console().contains(&line));
            vm.kill();
            daemon.assert_serves();
        }
        BareReport::passed(vm_on(&disk, &daemon, "").run()).assert_nothing_skipped();
        daemon.assert_serves();
    }
}
