//! How much of a bio the disk can take at once, and whether its memory has to be bounced.
//!
//! The counterpart of `bio_split_to_limits` and of `blk_queue_bounce`. Linux bounces a bio and then cuts it. Here it
//! is cut first: each piece is at most what one bounce buffer holds, so that a reserve of one buffer is enough to
//! make progress, however large the guest's request was.

use crate::bio::{Bio, Op};
use crate::limits::QueueLimits;

/// Why the memory of a piece cannot be given to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BounceReason {
    /// An address or a length is no multiple of what the disk's direct I/O asks for.
    Misaligned,
    /// The memory of one logical block is in more pieces than one bio has.
    Fragmented,
    /// There is no memory: the zeroes that are written come from pages of ours.
    Zeroes,
}

/// The front of a bio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// How many bytes of the range; all of it when the bio moves no data. More than the bio has, namely one logical
    /// block, when the bio ends within a block: then the next bios of its chain have the rest of it.
    pub bytes: u64,
    /// Whether, and why, other memory has to stand in for the bio's.
    pub bounce: Option<BounceReason>,
}

/// The largest front of `bio` that a disk with `limits` can take.
///
/// It is whole logical blocks, and never of no bytes unless the bio is.
#[must_use]
pub fn next_piece(bio: &Bio, limits: &QueueLimits) -> Piece {
    let len = bio.range.len();
    if bio.zero_by_writing {
        return Piece { bytes: len.min(u64::from(limits.max_bytes)), bounce: Some(BounceReason::Zeroes) };
    }
    match bio.op {
        Op::Read | Op::Write { .. } => {}
        Op::Flush | Op::Discard { .. } | Op::WriteZeroes { .. } | Op::DeviceId => {
            return Piece { bytes: len, bounce: None };
        }
    }
    let block = u64::from(limits.logical_block_size);
    let most = len.min(u64::from(limits.max_bytes));
    let whole = most - most % block;
    if whole == 0 {
        return Piece { bytes: block, bounce: Some(BounceReason::Fragmented) };
    }
    let aligned = bio.sg.is_aligned(limits.dma_alignment as usize);
    Piece { bytes: whole, bounce: (!aligned).then_some(BounceReason::Misaligned) }
}

#[cfg(test)]
mod tests;
