//! A daemon is killed and started again in the middle of a migration, the one at the source or the one at the destination, while
//! the guest writes and verifies all the time. It notices nothing, also not in what was read for it into its memory: the migration
//! goes on, or is given up, and the guest with it.
//!
//! What the front-end does then is QEMU's: it connects again, and gives the source's new daemon a new log. Of the old one it loses
//! what it has not looked at.

use std::path::Path;
use std::time::{Duration, Instant};

use sluice_tests::disk::Disk;
use sluice_tests::rng::Rng;
use sluice_tests::vm::{Daemon, LinuxReport, Running};

use crate::setup::{MIB, PC, Setup, assert_unnoticed, endure};

/// How often the guest moves: `SLUICE_VM_MIGRATION_KILLS`, else so often.
fn moves(default: usize) -> usize {
    std::env::var("SLUICE_VM_MIGRATION_KILLS").map_or(default, |count| count.parse().unwrap())
}

/// When a daemon is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// The source's, while memory is copied and what it writes is logged.
    Copying,
    /// The same, and the guest stays after all.
    GivenUp,
    /// The destination's, while it is connected to and has nothing to do yet.
    Waiting,
    /// Both, one after the other.
    Both,
    /// The destination's, just before the guest runs there, then, or just after that.
    Arriving,
    /// The destination's, as soon as the guest is known to run there.
    Arrived,
}

impl When {
    const ALL: [Self; 6] =
        [Self::Copying, Self::Arrived, Self::Both, Self::GivenUp, Self::Arriving, Self::Waiting];
}

/// Two daemons on one file.
struct Hosts {
    setup: Setup,
    daemons: [Daemon; 2],
    rng: Rng,
    disk: Disk,
}

impl Hosts {
    fn new(setup: Setup, seed: u64) -> Self {
        let disk = setup.disk(64 * MIB, None);
        let daemons = [setup.daemon(&[&disk]), setup.daemon(&[&disk])];
        Self { setup, daemons, rng: Rng::for_test(seed), disk }
    }

    fn socket(&self, number: usize) -> &Path {
        self.daemons[number].socket(0)
    }

    /// Sometime within so many milliseconds a daemon is killed, and started again. Returns when its front-end has come back.
    fn kill(&mut self, number: usize, within_ms: usize) {
        let pause = self.rng.between(0, within_ms);
        std::thread::sleep(Duration::from_millis(pause as u64));
        let daemon = &mut self.daemons[number];
        daemon.kill();
        daemon.start_again(self.setup.engine, self.setup.cache, &self.disk);
    }

    /// A daemon whose front-end would have it serve a guest that has gone is kept from the disk by its lock, which the other one has:
    /// so says what it logged after `before`, once it has waited for long enough or the guest has ended.
    fn assert_kept_out(&self, number: usize, before: usize) {
        let daemon = &self.daemons[number];
        let begun = Instant::now();
        let says =
            |log: &str| log.contains("another process uses") || log.contains("the disk's file was in use");
        while !says(&daemon.log()[before..]) {
            assert!(begun.elapsed() < Duration::from_secs(60), "it is served:\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Of both daemons, which have one log, of nothing but that.
    fn assert_no_complaints(&self) {
        let log = self.daemons[0].log();
        let is_expected =
            |line: &str| line.contains("another process uses") || line.contains("connection closed");
        let is_complaint = |line: &&str| line.contains(" WARN ") || line.contains(" ERROR ");
        let complaint = log.lines().filter(is_complaint).find(|line| !is_expected(line));
        assert_eq!(complaint, None, "{log}");
    }
}

#[test]
fn a_guest_that_moves_does_not_notice_that_daemons_are_killed() {
    let setup = Setup { queues: 2, ..PC };
    let count = moves(When::ALL.len());
    let mut hosts = Hosts::new(setup, 19);
    let vm = setup.vm(&hosts.daemons[0], &["smoke", "held", "mkfs"]).word("sluice.fio=endure").memory(256);
    let seconds = u32::try_from(2 * count + 2).unwrap();
    let vm = vm.file("fio/endure.fio", endure(seconds).as_bytes()).reconnecting();
    let mut running = vm.start();
    running.wait_until("fio runs", |vm| vm.console().contains("fio: endure"));
    let mut at = 0;
    for turn in 0..count {
        let when = When::ALL[turn % When::ALL.len()];
        // On a machine that has other work there may be fewer.
        if running.results().contains("ran.held=") {
            assert!(turn >= 3, "it has ended before the third move");
            eprintln!("it has ended before this: {when:?}");
            break;
        }
        let to = vm.clone().incoming().on_sockets(&[hosts.socket(1 - at)]).start();
        if when == When::GivenUp {
            running.migrate_in_vain(to, || hosts.kill(at, 200));
            continue;
        }
        let (there, migration) = running.migrate_while(to, |moving| match when {
            When::Copying => hosts.kill(at, 200),
            When::Waiting => hosts.kill(1 - at, 100),
            When::Both => [at, 1 - at].into_iter().for_each(|number| hosts.kill(number, 100)),
            When::Arriving => {
                moving.let_go();
                hosts.kill(1 - at, 500);
            }
            When::Arrived | When::GivenUp => {}
        });
        (running, at) = (there, 1 - at);
        if when == When::Arrived {
            hosts.kill(at, 20);
        }
        eprintln!("{when:?}: {migration:?}");
        assert_unnoticed(&running.console());
    }
    // The source's once more, when the guest has gone from there and QEMU has not.
    let to = vm.clone().incoming().on_sockets(&[hosts.socket(1 - at)]).start();
    let (there, left) = running.migrate_and_stay(to);
    let before = hosts.daemons[at].log().len();
    hosts.kill(at, 20);
    assert_all_is_well(there);
    hosts.assert_kept_out(at, before);
    drop(left);
    hosts.daemons.iter_mut().for_each(Daemon::assert_serves);
    hosts.assert_no_complaints();
}

fn assert_all_is_well(running: Running) {
    let mut ended = running.finish();
    // QEMU tells of each back-end that is gone.
    ended.errors.clear();
    let console = ended.console.clone();
    let report = LinuxReport::passed(ended);
    for check in ["fio.endure", "held", "fsck", "checksums", "fsck.again", "checksums.again"] {
        report.assert_made(check);
    }
    assert_unnoticed(&console);
}
