//! The power goes, at any time: what was flushed is there, and what was acknowledged to a driver that has no cache to flush.
//!
//! A daemon is driven through its socket, by overlapping writes, zeroes and flushes; its disk is a file of which the test
//! itself answers each system call, out of order and late, and keeps a log ([`sluice_tests::fuse_disk`]). Afterwards the log
//! is cut, after each flush that was answered and anywhere else, and what the disk could then hold
//! ([`sluice_tests::power`]) is compared with what the driver was promised ([`story`]).
//!
//! `SLUICE_POWER_CUTS` says how many cuts there are. The seed of a run is its number and `SLUICE_SEED`; the same seed asks
//! for the same things, and cuts the same log in the same places, but how far the disk comes in the meantime is up to the
//! machine. So what is printed has the whole story of the sector that is wrong.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

mod rig;
mod story;

use sluice_tests::fuse_disk::{Change, Event, FuseDisk};
use sluice_tests::power::{Luck, disk_after};
use sluice_tests::request::SECTOR;
use sluice_tests::rng::Rng;
use sluice_tests::subject::Engine;

use crate::rig::{Rig, SECTORS, Way};

/// A driver that flushes, on direct I/O.
const PLAIN: Way = Way {
    engine: Engine::Uring,
    cache: "none",
    flushes: true,
    switches: false,
    dies: false,
    in_order: "off",
    block: 512,
};

/// All ways in which writes become durable.
const WAYS: [Way; 13] = [
    PLAIN,
    Way { switches: true, ..PLAIN },
    Way { flushes: false, ..PLAIN },
    Way { block: 4096, ..PLAIN },
    Way { block: 4096, flushes: false, ..PLAIN },
    Way { dies: true, ..PLAIN },
    Way { dies: true, switches: true, ..PLAIN },
    Way { flushes: false, dies: true, ..PLAIN },
    Way { in_order: "on", switches: true, ..PLAIN },
    Way { cache: "writeback", switches: true, ..PLAIN },
    Way { cache: "directsync", switches: true, dies: true, ..PLAIN },
    Way { cache: "writethrough", ..PLAIN },
    Way { engine: Engine::Sync, switches: true, ..PLAIN },
];

/// Cuts of one log.
const CUTS_PER_RUN: usize = 100;

fn cuts() -> usize {
    std::env::var("SLUICE_POWER_CUTS").map_or(2000, |count| count.parse().unwrap())
}

fn is_possible() -> bool {
    FuseDisk::is_here().inspect_err(|why| eprintln!("skipped: no disk with a log: {why}")).is_ok()
}

/// Where a log is cut, and how lucky its disk is: just after something was promised, in half of the cases with no luck at
/// all, and anywhere.
fn places(log: &[Event], promised: &[usize], rng: &mut Rng) -> Vec<(usize, Luck)> {
    let place = |at| match at % 4 {
        0 => (rng.below(log.len() + 1), Luck::any(rng)),
        1 => (*rng.pick(promised), Luck::any(rng)),
        _ => (*rng.pick(promised), Luck::None),
    };
    (0..CUTS_PER_RUN).map(place).collect()
}

/// Drives a daemon, then cuts the log of what it did. Returns how many cuts there were.
fn run(way: Way, seed: u64) -> usize {
    let mut rig = Rig::new(way, seed);
    rig.work(100);
    rig.end();
    let log = rig.disk.logged().take_log();
    let note_at = |note: usize| log.iter().position(|event| *event == Event::Note(note)).unwrap() + 1;
    let promised: Vec<_> = rig.story.promises().map(note_at).collect();
    assert!(!promised.is_empty(), "nothing was promised");
    let mut rng = Rng::new(!seed);
    let places = places(&log, &promised, &mut rng);
    for (at, luck) in &places {
        let log = &log[..*at];
        let time = log.iter().filter(|event| matches!(event, Event::Note(_))).count();
        let disk = disk_after(log, SECTORS * SECTOR, *luck, &mut rng);
        if let Err(why) = rig.story.check(time, &disk) {
            panic!("{way:?}, seed {seed}, cut after {at} events, {luck:?}: {why}");
        }
    }
    let (writes, flushes, safe) = rig.story.counts();
    eprintln!(
        "{writes} writes, {flushes} flushes, {safe} writes safe in the end, {} events: {way:?}",
        log.len()
    );
    places.len()
}

#[test]
fn what_was_flushed_or_written_through_is_there_when_the_power_goes_at_any_time() {
    if !is_possible() {
        return;
    }
    let mut seeds = Rng::for_test(1);
    let (mut count, cuts) = (0, cuts());
    for way in WAYS.into_iter().cycle() {
        if count >= cuts {
            break;
        }
        count += run(way, seeds.next_u64());
    }
    eprintln!("{count} cuts");
}

#[test]
fn a_flush_is_answered_when_a_sync_has_ended_that_began_after_all_writes_were_done() {
    if !is_possible() {
        return;
    }
    for engine in [Engine::Uring, Engine::Sync] {
        let mut rig = Rig::new(Way { engine, ..PLAIN }, 3);
        for _ in 0..20 {
            (0..rig.rng.between(1, 12)).for_each(|_| rig.write(true));
            rig.settle();
            let asked = rig.story.now();
            rig.flush();
            rig.settle();
            let log = rig.disk.logged().take_log();
            let begin = log.iter().position(|event| *event == Event::Begin(Change::Sync)).unwrap();
            let before = &log[..begin];
            assert!(before.contains(&Event::Note(asked)), "it begins when the flush was submitted");
            let begun = before.iter().filter(|event| matches!(event, Event::Begin(_))).count();
            let ended = before.iter().filter(|event| matches!(event, Event::End(_))).count();
            assert_eq!(begun, ended, "all writes had ended");
            let [.., Event::End(last), Event::Note(_)] = log[..] else {
                panic!("the answer comes last: {log:?}")
            };
            assert_eq!(last, begun, "the sync has ended before the answer");
        }
    }
}
