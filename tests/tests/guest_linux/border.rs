//! Data crosses the border between host and guest in both directions: what one side wrote, the other compares with what it
//! knows; and what the guest gives up comes back to the host.

use sluice_tests::disk::Disk;
use sluice_tests::page_cache;
use sluice_tests::rng::Rng;
use sluice_tests::subject::Engine;
use sluice_tests::vm::{Daemon, LinuxReport, Machine, Vm};

use crate::setup::{MIB, PC, Setup, allocated, assert_bytes};

/// Data that goes both ways between the host and a guest.
pub(crate) struct Exchange {
    pub(crate) host_wrote_at: usize,
    pub(crate) guest_writes_at: usize,
    pub(crate) guest_writes: Vec<u8>,
}

impl Exchange {
    const BYTES: usize = 2 * MIB;

    /// Tells the guest: what the disk holds in one place, and what to write in another.
    pub(crate) fn prepare(&self, vm: Vm, image: &[u8]) -> Vm {
        vm.word(&format!("sluice.host_wrote={}", self.host_wrote_at))
            .word(&format!("sluice.guest_writes={}", self.guest_writes_at))
            .file("host-wrote", &image[self.host_wrote_at..][..Self::BYTES])
            .file("guest-writes", &self.guest_writes)
    }

    /// What the guest does to the disk.
    pub(crate) fn apply(&self, image: &mut [u8]) {
        image[self.guest_writes_at..][..self.guest_writes.len()].copy_from_slice(&self.guest_writes);
    }
}

/// What the guest discards, zeroes with permission to unmap, and zeroes without. No sum of two lengths is one of the
/// others, so that the allocated size tells which were freed.
const DISCARDED: (usize, usize) = (4 * MIB, 4 * MIB);
const UNMAPPED: (usize, usize) = (9 * MIB, 2 * MIB);
const ZEROED: (usize, usize) = (12 * MIB, MIB);
/// What the file system of the host may need for the holes themselves.
const SLACK: u64 = 64 * 1024;

/// A guest that read the host's data, wrote data for the host, and gave up and zeroed parts of the disk.
struct Crossing {
    // Dropped first: its log is beside the disk.
    daemon: Daemon,
    disk: Disk,
    /// What the file has to hold now.
    image: Vec<u8>,
    /// What of it was allocated before.
    allocated: u64,
}

impl Crossing {
    fn boot(setup: Setup, jobs: &[&str]) -> Self {
        eprintln!("{setup:?}");
        let disk = setup.disk(32 * MIB, Some(11));
        let allocated = allocated(&disk);
        let mut image = disk.bytes();
        let mut daemon = setup.daemon(&[&disk]);
        let guest_writes = Rng::new(12).bytes(3 * MIB);
        let exchange = Exchange { host_wrote_at: 17 * MIB, guest_writes_at: 24 * MIB, guest_writes };
        let mut vm = exchange.prepare(setup.vm(&daemon, jobs), &image);
        for (key, (offset, bytes)) in [("discard", DISCARDED), ("unmap", UNMAPPED), ("zero", ZEROED)] {
            vm = vm.word(&format!("sluice.{key}={offset}:{bytes}"));
            image[offset..][..bytes].fill(0);
        }
        exchange.apply(&mut image);
        let report = LinuxReport::passed(vm.run());
        for check in ["host.wrote", "guest.writes", "unmap.discard", "unmap.hole.zeros", "unmap.zero.zeros"] {
            report.assert_made(check);
        }
        daemon.assert_well();
        Crossing { daemon, disk, image, allocated }
    }

    /// The whole file is what the guest made of it; what the guest gave up is free, what it zeroed stays allocated.
    fn assert_file(&self) {
        assert_bytes("the file after the guest", &self.disk.bytes(), &self.image);
        let freed = self.allocated - allocated(&self.disk);
        let given_up = (DISCARDED.1 + UNMAPPED.1) as u64;
        assert!(
            freed.abs_diff(given_up) <= SLACK,
            "{freed} bytes were freed, of {given_up} that were given up"
        );
    }
}

#[test]
fn data_crosses_the_border_and_the_next_guest_finds_it() {
    let mut crossing = Crossing::boot(PC, &["exchange", "unmap"]);
    crossing.assert_file();
    // Another VM on the same daemon, over another bus.
    let guest_writes = Rng::new(13).bytes(MIB);
    let exchange = Exchange { host_wrote_at: 25 * MIB, guest_writes_at: 5 * MIB, guest_writes };
    let next = Setup { machine: Machine::Microvm, ..PC };
    let vm = exchange.prepare(next.vm(&crossing.daemon, &["exchange"]), &crossing.image);
    LinuxReport::passed(vm.run()).assert_made("host.wrote");
    exchange.apply(&mut crossing.image);
    crossing.daemon.assert_well();
    assert_bytes("the file after the second guest", &crossing.disk.bytes(), &crossing.image);
}

#[test]
fn data_crosses_the_border_and_is_durable_when_the_guest_wants_no_write_cache() {
    let (machine, cache) = (Machine::Microvm, "writeback");
    let setup = Setup { machine, queues: 1, block: 4096, engine: Engine::Sync, cache };
    let crossing = Crossing::boot(setup, &["exchange", "write-through", "unmap"]);
    assert_all_written(&crossing.disk);
    crossing.assert_file();
}

/// Requires that the host's page cache holds nothing of the file that is not on the disk.
fn assert_all_written(disk: &Disk) {
    match page_cache::unwritten_pages(&disk.path()) {
        Some(pages) => assert_eq!(pages, 0, "pages were written to the page cache only"),
        None => eprintln!("not looked at: this kernel does not count a file's dirty pages"),
    }
}
