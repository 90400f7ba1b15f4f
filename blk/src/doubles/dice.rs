//! Random numbers that a seed repeats.
//!
//! A test that fails prints its seed; `SLUICE_SEED=n cargo test -p sluice-blk NAME` runs it with that seed alone.

use std::ops::Range;
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
    if let Ok(seed) = std::env::var("SLUICE_SEED") {
        return run(seed.parse().expect("SLUICE_SEED is a number"), &test);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let first = now.as_secs() << 20 | u64::from(now.subsec_micros());
    (first..first + count).for_each(|seed| run(seed, &test));
}

fn run(seed: u64, test: &impl Fn(Dice)) {
    struct Told(u64);
    impl Drop for Told {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("to run this again: SLUICE_SEED={}", self.0);
            }
        }
    }
    let _told = Told(seed);
    test(Dice::new(seed));
}
