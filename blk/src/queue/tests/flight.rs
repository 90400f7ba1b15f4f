//! A chain under way, and what is expected of its memory.

use std::ops::Range;

use crate::bio::Op;
use crate::doubles::dice::Dice;

/// A chain under way.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) op: Op,
    /// What it concerns of the disk.
    pub(super) ranges: Vec<Range<u64>>,
    /// The part of memory around its pieces, and what was there when it was submitted.
    pub(super) memory: (u64, Vec<u8>),
    /// Its pieces of memory.
    pub(super) pieces: Vec<(u64, usize)>,
    /// What the queue calls it.
    pub(super) chain: u32,
    /// How many changes the disk had seen.
    pub(super) changes: u64,
}

impl Flight {
    pub(super) fn writes(&self) -> bool {
        matches!(self.op, Op::Write { .. } | Op::Discard { .. } | Op::WriteZeroes { .. } | Op::SecureErase)
    }

    pub(super) fn fua(&self) -> bool {
        matches!(
            self.op,
            Op::Write { fua: true } | Op::Discard { fua: true } | Op::WriteZeroes { fua: true, .. }
        )
    }

    /// What is in its pieces when `memory` is in the memory around them.
    pub(super) fn gather(&self, memory: &[u8]) -> Vec<u8> {
        self.pieces.iter().flat_map(|piece| &memory[self.place(piece)]).copied().collect()
    }

    /// What was in the memory, with `data` in the pieces.
    pub(super) fn scatter(&self, mut data: &[u8]) -> Vec<u8> {
        let mut memory = self.memory.1.clone();
        for piece in &self.pieces {
            let (now, later) = data.split_at(data.len().min(piece.1));
            memory[self.place(piece)][..now.len()].copy_from_slice(now);
            data = later;
        }
        memory
    }

    /// Checks that the pieces have `data`, or some of it if the read failed, and that nothing else changed.
    pub(super) fn check_memory(&self, memory: &[u8], data: &[u8], failed: bool) {
        let expected = self.scatter(data);
        let same = |(i, is): (usize, &u8)| *is == expected[i] || failed && *is == self.memory.1[i];
        let wrong = memory.iter().enumerate().position(|at| !same(at));
        assert_eq!(wrong, None, "a wrong byte in memory after {:?} to {:?}", self.op, self.pieces);
    }

    fn place(&self, piece: &(u64, usize)) -> Range<usize> {
        let start = usize::try_from(piece.0 - self.memory.0).expect("pieces are in the memory around them");
        start..start + piece.1
    }
}

/// Whether an operation has memory.
pub(super) fn moves_memory(op: Op) -> bool {
    matches!(op, Op::Read | Op::Write { .. } | Op::DeviceId)
}

/// Pieces of memory for so many bytes, each of up to `most` units, from the start of a window on; with gaps between them, as far
/// as all of them stay in it.
pub(super) fn pieces(
    dice: &mut Dice,
    bytes: u64,
    (unit, most): (u64, u64),
    window: Range<u64>,
) -> Vec<(u64, usize)> {
    let (mut pieces, mut at, mut left) = (Vec::new(), window.start, bytes);
    while left > 0 {
        let len = (dice.within(1..most + 1) * unit).min(left);
        pieces.push((at, usize::try_from(len).expect("a small piece")));
        left -= len;
        // Without a gap it is the neighbour of the next one.
        let gap = dice.within(0..4) * unit;
        let fits = at + len + gap + left <= window.end;
        at += len + if fits { gap } else { 0 };
    }
    pieces
}

/// A range of the disk as one of its bytes.
pub(super) fn place(range: &Range<u64>) -> Range<usize> {
    let at = |at: u64| usize::try_from(at).expect("a small disk");
    at(range.start)..at(range.end)
}
