//! A guest that writes and verifies all the time moves between two QEMUs, each on a daemon of its own, and both daemons on one
//! file that one of them has locked at a time: back and forth, over and over, and now and then it stays after all. It notices
//! nothing: what it writes is there, and what was read for it into its memory too.

use std::path::Path;
use std::time::Duration;

use sluice_tests::rng::Rng;
use sluice_tests::vm::{LinuxReport, Machine, Migration};

use crate::setup::{MIB, PC, Setup, assert_unnoticed, endure};

/// How often the guest moves: `SLUICE_VM_MIGRATIONS`, else so often.
fn moves(default: u32) -> u32 {
    std::env::var("SLUICE_VM_MIGRATIONS").map_or(default, |count| count.parse().unwrap())
}

/// Before each so many moves one is begun and given up.
const GIVE_UP_EVERY: usize = 4;

fn median(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[times.len() / 2], times[times.len() - 1])
}

fn moves_and_notices_nothing(setup: Setup, count: u32) {
    eprintln!("{setup:?}");
    let disk = setup.disk(64 * MIB, None);
    let mut daemons = [setup.daemon(&[&disk]), setup.daemon(&[&disk])];
    let sockets: Vec<_> = daemons.iter().map(|daemon| daemon.socket(0).to_path_buf()).collect();
    let vm = setup.vm(&daemons[0], &["smoke", "cached", "mkfs"]).word("sluice.fio=endure").memory(256);
    // The clock of a guest stands still while it does: this is time in which it runs.
    let vm = vm.file("fio/endure.fio", endure(3 * count).as_bytes());
    let mut running = vm.start();
    running.wait_until("fio runs", |vm| vm.console().contains("fio: endure"));
    let mut rng = Rng::for_test(14);
    let mut migrations: Vec<Migration> = Vec::new();
    for turn in 1..=count as usize {
        std::thread::sleep(Duration::from_millis(rng.between(200, 1000) as u64));
        let socket: &Path = &sockets[turn % 2];
        let to = || vm.clone().incoming().on_sockets(&[socket]).start();
        if turn % GIVE_UP_EVERY == 0 {
            running.migrate_in_vain(to(), || ());
        }
        let to = to();
        let (there, migration) = running.migrate(to);
        running = there;
        migrations.push(migration);
        assert!(!running.results().contains("ran.cached="), "fio has ended before the last move");
    }
    let ended = running.finish();
    let console = ended.console.clone();
    let report = LinuxReport::passed(ended);
    for check in ["fio.endure", "cached"] {
        report.assert_made(check);
    }
    for check in ["fsck", "checksums", "fsck.again", "checksums.again"] {
        report.assert_made(check);
    }
    assert_unnoticed(&console);
    daemons.iter_mut().for_each(|daemon| daemon.assert_well());
    let (total, total_max) = median(migrations.iter().map(|migration| migration.total).collect());
    let (down, down_max) = median(migrations.iter().map(|migration| migration.downtime).collect());
    eprintln!(
        "{count} migrations: {total:?} (median), {total_max:?} (most); the guest stood still for {down:?} (median), \
         {down_max:?} (most)"
    );
}

#[test]
fn a_guest_with_two_queues_moves_and_notices_nothing() {
    let setup = Setup { queues: 2, ..PC };
    moves_and_notices_nothing(setup, moves(20));
}

#[test]
fn a_guest_over_mmio_moves_and_notices_nothing() {
    let setup = Setup { machine: Machine::Microvm, queues: 1, block: 4096, cache: "writeback", ..PC };
    moves_and_notices_nothing(setup, moves(4).min(4));
}
