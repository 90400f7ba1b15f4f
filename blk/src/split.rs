//! How much of a bio the disk can take at once, and whether its memory has to be bounced.
//!
//! The counterpart of `bio_split_to_limits` and of `blk_queue_bounce`. Linux bounces a bio and then cuts it. Here it
//! is cut first: each piece is at most what one bounce buffer holds, so that a reserve of one buffer is enough to
//! make progress, however large the guest's request was.

use crate::bio::{Bio, Op};
use crate::limits::QueueLimits;

/// Why the memory of a piece cannot be given to the disk. (Linux bounced for one reason, memory above the `bounce_pfn` of
/// the queue; and it copies for the page cache's stable writes where it waits for them.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BounceReason {
    /// An address or a length is no multiple of what the disk asks for.
    Misaligned,
    /// The kernel cannot hold on to the memory, as direct I/O asks it to.
    Unaddressable,
    /// The disk needs memory that does not change while it is written.
    StableWrites,
    /// The disk may use the memory for longer than the guest lends it.
    Detached,
    /// The memory of one logical block is in more pieces than one bio has.
    Fragmented,
    /// The piece is a part of what the disk reads and writes at once.
    PartialBlock,
    /// There is no memory: the zeroes that are written come from pages of ours.
    Zeroes,
}

impl BounceReason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Misaligned,
        Self::Unaddressable,
        Self::StableWrites,
        Self::Detached,
        Self::Fragmented,
        Self::PartialBlock,
        Self::Zeroes,
    ];
}

/// The front of a bio (Linux: what `bio_split_rw_at` returns).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// How many bytes of the range; all of it when the bio moves no data. More than the bio has, namely one logical
    /// block, when the bio ends within a block: then the next bios of its chain have the rest of it.
    pub bytes: u64,
    /// Whether, and why, other memory has to stand in for the bio's.
    pub bounce: Option<BounceReason>,
}

/// The largest front of `bio` that a disk with `limits` can take (Linux: `bio_split_to_limits`).
///
/// It is whole logical and disk blocks, but where that is not possible: then it is what the bio has of one disk block,
/// with [`BounceReason::PartialBlock`]. It is never of no bytes unless the bio is.
///
/// ```text
///                    disk block          disk block          disk block
/// bio          |          [=========|===================|=====]             |
/// pieces                   partial     whole, in place    partial
/// ```
///
/// ```
/// use sluice_blk::bio::{BioSet, Op};
/// use sluice_blk::limits::QueueLimits;
/// use sluice_blk::sector::{DiskRange, Sector};
/// use sluice_blk::split::{BounceReason, Piece, next_piece};
///
/// // Zeroes from sector 7 on, on a disk with blocks of eight sectors.
/// let limits = QueueLimits { disk_block_size: 4096, ..QueueLimits::default() };
/// let range = DiskRange::new(Sector(7), 20 * 512, Sector(1000), 512)?;
/// let mut bio = BioSet::new(1).try_take(Op::WriteZeroes { unmap: true, fua: false }, range).expect("a bio");
/// let part = next_piece(&bio, &limits);
/// assert_eq!(part, Piece { bytes: 512, bounce: Some(BounceReason::PartialBlock) });
/// let _ = bio.range.take_front(part.bytes);
/// assert_eq!(next_piece(&bio, &limits), Piece { bytes: 2 * 4096, bounce: None });
/// # Ok::<(), sluice_blk::sector::RangeError>(())
/// ```
#[must_use]
#[inline]
pub fn next_piece(bio: &Bio, limits: &QueueLimits) -> Piece {
    let len = bio.range.len();
    // Whether the disk is given memory for the bio.
    let moves_data = match bio.op {
        Op::Read | Op::Write { .. } => true,
        Op::Flush | Op::DeviceId => return Piece { bytes: len, bounce: None },
        Op::Discard { .. } | Op::SecureErase | Op::WriteZeroes { .. } => bio.zero_by_writing,
    };
    let unit = limits.unit();
    if limits.has_partial_blocks() {
        let skip = bio.range.offset() & (unit - 1);
        if skip > 0 || len < unit {
            return Piece { bytes: len.min(unit - skip), bounce: Some(BounceReason::PartialBlock) };
        }
    }
    let most = if moves_data { len.min(u64::from(limits.max_bytes)) } else { len };
    // Units are powers of two.
    let whole = most & !(unit - 1);
    if whole == 0 && len > 0 {
        return Piece { bytes: unit, bounce: Some(BounceReason::Fragmented) };
    }
    let bounce = if moves_data { bounce_reason(bio, whole, limits) } else { None };
    Piece { bytes: whole, bounce }
}

/// What a transfer has to be like for the disk to take all of it, as it is, and nobody to be in its way: as most are. Says in
/// a few comparisons that [`next_piece`] would say so; what it does not say so of may still be such a one.
#[derive(Debug)]
pub(crate) struct AsItIs {
    reads: bool,
    writes: bool,
    needs_pinning: bool,
    max_bytes: u64,
    /// Bits that the range and the memory must not have.
    block_mask: u64,
    address_mask: usize,
}

impl AsItIs {
    /// What `limits` make of it.
    pub(crate) fn within(limits: &QueueLimits) -> Self {
        let mask = |unit: u32| unit as usize - 1;
        let reads = !limits.detached;
        Self {
            reads,
            // Where others may write to the same block, a write has to wait for them.
            writes: reads && !limits.stable_writes && !limits.has_partial_blocks(),
            needs_pinning: limits.needs_pinning,
            max_bytes: limits.max_bytes.into(),
            block_mask: limits.unit() - 1,
            address_mask: mask(limits.dma_alignment),
        }
    }

    /// Whether the disk is known to take `bio` like that.
    #[inline(always)]
    pub(crate) fn takes(&self, bio: &Bio) -> bool {
        let is_taken = match bio.op {
            Op::Read => self.reads,
            Op::Write { .. } => self.writes,
            _ => false,
        };
        let Some(piece) = bio.sg.only_piece() else { return false };
        let (offset, len) = (bio.range.offset(), bio.range.len());
        is_taken
            && (1..=self.max_bytes).contains(&len)
            // A length of whole blocks is as aligned as lengths have to be (`QueueLimits::are_sound`).
            && (offset | len) & self.block_mask == 0
            && piece.as_ptr().addr() & self.address_mask == 0
            && (!self.needs_pinning || bio.sg.is_pinnable())
    }
}

/// Why the memory of a piece of `bytes`, whole blocks, that moves data has to be bounced, if it has to.
#[inline]
fn bounce_reason(bio: &Bio, bytes: u64, limits: &QueueLimits) -> Option<BounceReason> {
    if bio.zero_by_writing {
        return Some(BounceReason::Zeroes);
    }
    let count = usize::try_from(bytes).expect("a piece that moves data is small");
    if !bio.sg.is_aligned(count, limits.dma_alignment as usize, limits.length_alignment as usize) {
        return Some(BounceReason::Misaligned);
    }
    if limits.needs_pinning && !bio.sg.is_pinnable() {
        return Some(BounceReason::Unaddressable);
    }
    if limits.stable_writes && matches!(bio.op, Op::Write { .. }) {
        return Some(BounceReason::StableWrites);
    }
    limits.detached.then_some(BounceReason::Detached)
}

#[cfg(test)]
mod tests;
