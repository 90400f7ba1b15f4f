//! Random numbers that a seed repeats.
//!
//! A test that fails prints its seed, and the command that runs it with that seed alone.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A source of random numbers (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The dice of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number in a range.
    pub(crate) fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.roll() % (range.end - range.start)
    }

    /// A number in a range, as a size in memory.
    pub(crate) fn size(&mut self, range: Range<usize>) -> usize {
        usize::try_from(self.within(range.start as u64..range.end as u64)).expect("in a range of sizes")
    }

    /// True so many times in a hundred.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.within(0..100) < percent
    }

    /// One of several.
    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.size(0..of.len())]
    }

    /// Bytes, each of which may be any.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..count.div_ceil(8)).flat_map(|_| self.roll().to_ne_bytes()).collect();
        bytes.truncate(count);
        bytes
    }
}

/// Runs `test` with `count` seeds that no other run had, or with the one in `SLUICE_SEED`.
pub(crate) fn for_seeds(count: u64, test: impl Fn(Dice)) {
    seeds(count).for_each(|seed| run(seed, &mut (), &|(), dice| test(dice)));
}

/// The same with all cores, or with as many seeds as `SLUICE_SEEDS` says. Each thread makes a `state` for itself, which
/// one seed after the other uses. Returns how many seeds were run.
pub(crate) fn for_seeds_on_all_cores<S>(
    count: u64,
    state: impl Fn() -> S + Sync,
    test: impl Fn(&mut S, Dice) + Sync,
) -> u64 {
    let count = number("SLUICE_SEEDS").unwrap_or(count);
    let seeds = seeds(count);
    let run_count = seeds.end - seeds.start;
    let next = AtomicU64::new(seeds.start);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let this = std::thread::current();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let thread = std::thread::Builder::new().name(this.name().unwrap_or_default().to_owned());
            let work = || {
                let mut state = state();
                // After a failure no other seed is begun.
                let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| seeds.contains(seed));
                while let Some(seed) = take() {
                    let stop = StopOthers(&next);
                    run(seed, &mut state, &test);
                    std::mem::forget(stop);
                }
            };
            thread.spawn_scoped(scope, work).expect("a thread can be had");
        }
    });
    run_count
}

/// Leaves no seed to other threads when it is dropped, which is when a seed fails.
struct StopOthers<'a>(&'a AtomicU64);

impl Drop for StopOthers<'_> {
    fn drop(&mut self) {
        self.0.store(u64::MAX / 2, Ordering::Relaxed);
    }
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

fn seeds(count: u64) -> Range<u64> {
    if let Some(seed) = number("SLUICE_SEED") {
        return seed..seed + 1;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let first = now.as_secs() << 20 | u64::from(now.subsec_micros());
    first..first + count
}

fn run<S>(seed: u64, state: &mut S, test: &impl Fn(&mut S, Dice)) {
    let _told = Told(seed);
    test(state, Dice::new(seed));
}

/// Tells how to run a seed again if it fails.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let thread = std::thread::current();
            let test = thread.name().unwrap_or_default();
            eprintln!("to run this again: SLUICE_SEED={} cargo test -p sluice-blk {test}", self.0);
        }
    }
}
