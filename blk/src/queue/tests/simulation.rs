//! A deterministic simulation: everything that can happen to queues on one disk, thrown with dice, without real I/O.
//!
//! One to four queues share a disk and a budget. Their guests ask for anything anywhere, at the same time and in the
//! same place; memory runs out and comes back, down to the smallest legal reserve; the disk refuses requests, cuts them
//! short, fails them, does not know them, and executes them in any order; queues are dropped in the middle. What is
//! checked: every chain completes exactly once and as it must; data is right in memory and on the disk, by a naive
//! [model]; what was to be durable is; all bios, tags and pages come back; and a queue that is only dispatched when it
//! or another queue says so is never left waiting for nothing.
//!
//! A seed decides everything. `SLUICE_SEEDS=n cargo test --release -p sluice-blk simulation` runs so many of them; a seed
//! that fails is printed, with the command that runs it again.

mod ask;
mod model;
mod seen;
mod setup;
mod world;

use std::ops::Range;
use std::sync::Mutex;

use crate::doubles::dice::for_seeds_on_all_cores;

use self::seen::Seen;
use self::world::{Stage, World};

/// How many seeds `cargo test` runs: a few seconds' worth.
const SEEDS: u64 = 10_000;

#[test]
fn simulation_every_chain_completes_once_data_is_right_and_there_is_always_progress() {
    let all = Mutex::new(Seen::default());
    let seeds = for_seeds_on_all_cores(SEEDS, Stage::new, |stage, dice| {
        let seen = World::new(dice, stage).run();
        all.lock().expect("no seed has failed").add(&seen);
    });
    let seen = all.into_inner().expect("no seed has failed");
    println!("{seeds} seeds: {seen:?}");
    assert!(seeds < SEEDS || seen.is_complete(), "the simulation does not reach everything: {seen:?}");
}

/// The sectors of a range of bytes.
fn sectors(range: &Range<u64>) -> Range<usize> {
    let sector = |at: u64| usize::try_from(at / 512).expect("a small disk");
    sector(range.start)..sector(range.end)
}
