//! Where the requests of a workload go, and the stamps by which data is known.
//!
//! The next request is computed when it is needed: a multiplication costs less than looking into a long list would.
//! A seed makes the same requests for every backend.

use super::workload::{Op, Order, Workload};

/// The unit of stamps and of misfortune.
pub(super) const SECTOR: u64 = 512;
/// What the client writes at the start of each sector.
pub(super) const WRITTEN: u64 = 0x7374_6f72_6564_2121;
/// Makes a stamp of a position; no stamp is [`WRITTEN`] or zero.
const STAMP: u64 = 0x5b1c_0000_0000_0000;

/// What a file has at the start of the sector at this byte, unless the client has written there.
pub(super) fn stamp(position: u64) -> u64 {
    STAMP ^ position
}

/// Whether `word` can be what the sector at this byte starts with.
pub(super) fn belongs(word: u64, position: u64) -> bool {
    word == stamp(position) || word == WRITTEN
}

/// Numbers that look random: SplitMix64.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: u64) -> u64 {
        let product = u128::from(self.next()) * u128::from(bound);
        u64::try_from(product >> 64).expect("128 bits less 64")
    }
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) position: u64,
    pub(super) write: bool,
}

/// The requests of one queue, one after the other, without an end.
#[derive(Debug, Clone)]
pub(super) struct Pattern {
    random: Random,
    op: Op,
    order: Order,
    block: u64,
    blocks: u64,
    next: u64,
}

impl Pattern {
    /// The requests of a workload on a disk of so many bytes, which hold at least one.
    pub(super) fn new(workload: &Workload, bytes: u64, seed: u64) -> Self {
        let block = u64::from(workload.block);
        let blocks = bytes / block;
        assert!(blocks > 0, "a disk of {bytes} bytes has no block of {block}");
        Self { random: Random::new(seed), op: workload.op, order: workload.order, block, blocks, next: 0 }
    }

    pub(super) fn next(&mut self) -> Step {
        let index = match self.order {
            Order::Random => self.random.below(self.blocks),
            Order::Sequential => {
                let index = self.next;
                self.next = if index + 1 == self.blocks { 0 } else { index + 1 };
                index
            }
        };
        let write = match self.op {
            Op::Read => false,
            Op::Write => true,
            Op::Mixed => self.random.below(10) < 3,
        };
        Step { position: index * self.block, write }
    }
}

#[cfg(test)]
mod tests {
    use super::super::workload::Medium;
    use super::*;

    const BYTES: u64 = 10 * 4096 + 100;

    fn steps(workload: &Workload, count: usize) -> Vec<Step> {
        let mut pattern = Pattern::new(workload, BYTES, 7);
        std::iter::repeat_with(|| pattern.next()).take(count).collect()
    }

    #[test]
    fn random_requests_reach_every_whole_block_and_nothing_else() {
        let steps = steps(&Workload::new(Medium::Disk, Op::Write, 1), 1000);
        let mut positions: Vec<_> = steps.iter().map(|step| step.position).collect();
        positions.sort_unstable();
        positions.dedup();
        assert_eq!(positions, (0..10).map(|block| block * 4096).collect::<Vec<_>>());
        assert!(steps.iter().all(|step| step.write));
    }

    #[test]
    fn sequential_requests_start_over_at_the_end() {
        let workload = Workload { order: Order::Sequential, ..Workload::new(Medium::Disk, Op::Read, 1) };
        let positions: Vec<_> = steps(&workload, 12).iter().map(|step| step.position / 4096).collect();
        assert_eq!(positions, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]);
    }

    #[test]
    fn a_mixture_is_three_tenths_writes() {
        let steps = steps(&Workload::new(Medium::Disk, Op::Mixed, 1), 10_000);
        let writes = steps.iter().filter(|step| step.write).count();
        assert!((2800..3200).contains(&writes), "{writes}");
    }

    #[test]
    fn a_stamp_belongs_to_one_place() {
        assert!(belongs(stamp(4096), 4096) && belongs(WRITTEN, 4096));
        for word in [0, stamp(0), stamp(4096 + SECTOR)] {
            assert!(!belongs(word, 4096));
        }
    }
}
