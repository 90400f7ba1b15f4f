//! The daemon is killed and started again, over and over, while a guest writes and verifies: the guest notices nothing. QEMU
//! connects again by itself, and keeps what was in flight.

use std::time::Duration;

use sluice_tests::rng::Rng;
use sluice_tests::vm::{LinuxReport, Machine};

use crate::setup::{MIB, PC, Setup, assert_unnoticed, endure};

/// How often the daemon is killed: `SLUICE_VM_KILLS`, else so often.
fn kills(default: u32) -> u32 {
    std::env::var("SLUICE_VM_KILLS").map_or(default, |count| count.parse().unwrap())
}

/// How often it is ended by SIGTERM after that.
const ENDS: u32 = 5;

fn is_killed_under_a_guest(setup: Setup, count: u32) {
    eprintln!("{setup:?}");
    let disk = setup.disk(64 * MIB, None);
    let mut daemon = setup.daemon(&[&disk]);
    // A kill every 0.2 s, and some time to come back and to boot.
    let seconds = (count + ENDS) / 5 + 5;
    let vm = setup.vm(&daemon, &["smoke", "fio", "mkfs"]).word("sluice.fio=endure").reconnecting();
    let mut running = vm.file("fio/endure.fio", endure(seconds).as_bytes()).start();
    running.wait_until("fio runs", |vm| vm.console().contains("fio: endure"));
    let mut rng = Rng::for_test(12);
    let mut returns: Vec<Duration> = Vec::new();
    for _ in 0..count {
        std::thread::sleep(Duration::from_millis(rng.between(20, 250) as u64));
        daemon.kill();
        returns.push(daemon.start_again(setup.engine, setup.cache, &disk));
    }
    // As a service manager restarts it.
    for _ in 0..ENDS {
        std::thread::sleep(Duration::from_millis(rng.between(20, 250) as u64));
        daemon.end();
        daemon.start_again(setup.engine, setup.cache, &disk);
    }
    let mut ended = running.finish();
    // QEMU tells of each back-end that is gone.
    ended.errors.clear();
    let console = ended.console.clone();
    let report = LinuxReport::passed(ended);
    report.assert_made("fio.endure");
    for check in ["fsck", "checksums", "fsck.again", "checksums.again"] {
        report.assert_made(check);
    }
    assert_unnoticed(&console);
    daemon.assert_serves();
    returns.sort_unstable();
    let p99 = returns[(returns.len() * 99).div_ceil(100) - 1];
    eprintln!("{count} kills; back in {:?} (median), {p99:?} (p99)", returns[returns.len() / 2]);
}

#[test]
fn a_guest_with_four_queues_does_not_notice_kills() {
    is_killed_under_a_guest(PC, kills(20));
}

#[test]
fn a_guest_over_mmio_with_one_queue_does_not_notice_kills() {
    let setup = Setup { machine: Machine::Microvm, queues: 1, block: 4096, cache: "writeback", ..PC };
    is_killed_under_a_guest(setup, kills(20));
}
