//! Bios, chains of them, and the pool they come from.
//!
//! A [`Bio`] says what shall happen to one range of a disk and which memory takes part (Linux: `struct bio`). It has
//! at most [`BIO_MAX_VECS`] pieces of memory; what needs more is a [`BioChain`]. All bios come from a [`BioSet`],
//! made once, so that what is in flight is bounded and nothing is allocated per I/O. Unlike Linux's, a bio is
//! owned: there is no reference count and no `bi_end_io`; it moves into a request and comes back.
//!
//! ```
//! use sluice_blk::bio::{BioChain, BioSet, Op};
//! use sluice_blk::sector::{DiskRange, Sector};
//!
//! let mut set = BioSet::new(1);
//! let mut chain = BioChain::new();
//! // Two ranges of a disk of 1 MiB that a guest discards with one request.
//! for start in [0, 1024] {
//!     let range = DiskRange::new(Sector(start), 4096, Sector(2048), 512)?;
//!     let op = Op::Discard { fua: false };
//!     chain.push(set.try_take(op, range).expect("a set has bios for a chain"));
//! }
//! assert!(chain.has_one_direction());
//! assert_eq!(chain.iter().map(|bio| bio.range.len()).sum::<u64>(), 8192);
//! set.put_chain(chain);
//! assert_eq!(set.available(), set.capacity());
//! # Ok::<(), sluice_blk::sector::RangeError>(())
//! ```

use sluice_mem::bounce::Bounce;
use sluice_mem::mempool::Mempool;
use sluice_mem::sglist::SgList;

use crate::request::RequestState;
use crate::sector::DiskRange;

/// The most pieces of memory in one bio (Linux: `BIO_MAX_VECS`, 256 there too).
pub const BIO_MAX_VECS: usize = SgList::CAPACITY;

/// What a bio asks for (Linux: `enum req_op`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)] // Which one it is has a byte of its own, to be compared as it is.
pub enum Op {
    /// Disk to memory.
    Read,
    /// Memory to disk. With `fua` the data is durable when the write completes (Linux: `REQ_FUA`).
    Write {
        /// Durable on completion.
        fua: bool,
    },
    /// What was written and completed before becomes durable.
    Flush,
    /// The range's contents are not needed any more. Advisory.
    Discard {
        /// Durable on completion.
        fua: bool,
    },
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// Its space may be given back (Linux: the absence of `REQ_NOUNMAP`).
        unmap: bool,
        /// Durable on completion.
        fua: bool,
    },
    /// The range is erased so that nothing can be recovered (Linux: `REQ_OP_SECURE_ERASE`).
    SecureErase,
    /// Who the disk is, written to the memory. A pass-through command (Linux: `REQ_OP_DRV_IN`).
    DeviceId,
}

/// The direction of a transfer (Linux: `bio_data_dir`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The memory is written.
    FromDisk,
    /// The memory is read, or none takes part.
    ToDisk,
}

impl Op {
    /// Which way the data goes.
    #[must_use]
    pub fn direction(self) -> Direction {
        match self {
            Self::Read | Self::DeviceId => Direction::FromDisk,
            Self::Write { .. }
            | Self::Flush
            | Self::Discard { .. }
            | Self::SecureErase
            | Self::WriteZeroes { .. } => Direction::ToDisk,
        }
    }
}

/// One operation on one range of a disk (Linux: `struct bio`).
#[derive(Debug)]
pub struct Bio {
    /// What shall happen.
    pub op: Op,
    /// Where on the disk. For reads and writes as long as `sg`.
    pub range: DiskRange,
    /// The memory that takes part.
    pub sg: SgList,
    /// What stands in for the memory, of this bio and those after it, while they are a request.
    pub(crate) bounce: Option<Bounce>,
    /// What is to be known of the request that this bio and those after it are.
    pub(crate) state: RequestState,
    /// The next bio of the chain.
    pub(crate) next: Option<Box<Bio>>,
    /// Which submitted chain it belongs to: an index of the queue's.
    pub(crate) chain: u32,
    /// The disk cannot write zeroes by itself: data that is zero is written.
    pub(crate) zero_by_writing: bool,
}

impl Bio {
    fn new() -> Self {
        Self {
            op: Op::Flush,
            range: DiskRange::none(),
            sg: SgList::new(),
            bounce: None,
            state: RequestState::NONE,
            next: None,
            chain: 0,
            zero_by_writing: false,
        }
    }

    /// Whether a transfer concerns as much of the disk as of memory.
    #[inline]
    pub(crate) fn is_sound(&self) -> bool {
        let moves_data = matches!(self.op, Op::Read | Op::Write { .. });
        !moves_data || self.range.len() == self.sg.bytes() as u64
    }

    /// Marks the memory as written that it may have written, as far as it was not used up. All of it, whatever has become of
    /// the bio: what failed may have written some. What is used up was marked before.
    #[inline(always)]
    pub(crate) fn mark_written(&self) {
        if self.op.direction() == Direction::FromDisk {
            self.sg.mark_written();
        }
    }

    /// This bio and those after it.
    pub(crate) fn list(&self) -> impl Iterator<Item = &Bio> {
        list(Some(self))
    }

    /// The bios after this one.
    pub(crate) fn rest(&self) -> impl Iterator<Item = &Bio> {
        list(self.next.as_deref())
    }

    /// Appends a bio at the end.
    pub(crate) fn append(&mut self, bio: Box<Bio>) -> &mut Self {
        let mut end = &mut self.next;
        while let Some(next) = end {
            end = &mut next.next;
        }
        end.insert(bio)
    }

    #[inline(always)]
    fn reset(&mut self) {
        self.mark_written();
        self.range = DiskRange::none();
        self.sg.clear();
        self.zero_by_writing = false;
        debug_assert!(self.bounce.is_none(), "a bio that is done needs no other memory");
        debug_assert!(self.next.is_none(), "a bio that goes back to its pool is in no chain");
    }
}

/// `first` and the bios after it.
#[inline]
fn list(first: Option<&Bio>) -> impl Iterator<Item = &Bio> {
    std::iter::successors(first, |bio| bio.next.as_deref())
}

/// Bios that are one request of the guest: done when all of them are (Linux: bios linked by `bi_next`, and `bio_chain`).
#[derive(Debug, Default)]
pub struct BioChain {
    /// The last, and how many there are, is found by walking: chains have at most [`BioSet::CHAIN_MAX`] bios.
    head: Option<Box<Bio>>,
}

impl From<Box<Bio>> for BioChain {
    /// A chain of one.
    #[inline]
    fn from(bio: Box<Bio>) -> Self {
        Self { head: Some(bio) }
    }
}

impl BioChain {
    /// A chain of none.
    #[must_use]
    pub const fn new() -> Self {
        Self { head: None }
    }

    /// Appends a bio, and gives it back to be filled.
    #[inline]
    pub fn push(&mut self, bio: Box<Bio>) -> &mut Bio {
        debug_assert!(bio.next.is_none(), "a bio is in one chain");
        match &mut self.head {
            Some(head) => head.append(bio),
            head => head.insert(bio),
        }
    }

    /// Takes the first bio.
    #[inline]
    pub fn pop(&mut self) -> Option<Box<Bio>> {
        let mut bio = self.head.take()?;
        self.head = bio.next.take();
        Some(bio)
    }

    /// The bios in order.
    pub fn iter(&self) -> impl Iterator<Item = &Bio> {
        list(self.head.as_deref())
    }

    /// The bio, where there is one only.
    #[inline(always)]
    pub(crate) fn only(&self) -> Option<&Bio> {
        self.head.as_deref().filter(|bio| bio.next.is_none())
    }

    /// How many bios it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.head.is_none()
    }

    /// Whether all bios go in the direction of the first, as blk_make_request(9) demands (Linux has a BUG where they do not,
    /// since the driver has made the mistake; here a chain is handed back).
    #[must_use]
    #[inline]
    pub fn has_one_direction(&self) -> bool {
        let Some(first) = &self.head else { return true };
        first.next.is_none() || first.rest().all(|bio| bio.op.direction() == first.op.direction())
    }
}

/// The bios of a queue, made once (Linux: `struct bio_set`).
#[derive(Debug)]
pub struct BioSet {
    pool: Mempool<Bio>,
}

impl BioSet {
    /// The most bios in one chain: 1024 segments and some that cross regions, or so many discarded ranges.
    pub const CHAIN_MAX: usize = 16;

    /// Kept back for cutting bios that are too large for the disk, so that cutting can never starve.
    const SPLIT_RESERVE: usize = 8;

    /// Bios for `depth` requests of the guest at the same time.
    #[must_use]
    pub fn new(depth: usize) -> Self {
        Self { pool: Mempool::new(depth + Self::CHAIN_MAX + Self::SPLIT_RESERVE, Bio::new) }
    }

    /// Whether a chain of any legal length can be built now.
    #[must_use]
    #[inline]
    pub fn has_chain(&self) -> bool {
        self.pool.available() >= Self::CHAIN_MAX + Self::SPLIT_RESERVE
    }

    /// An empty bio for `op` on `range`; `None` while all are in use (Linux: `bio_alloc_bioset`, which may sleep for the
    /// first bio of a caller and has a rescuer thread for the others).
    #[must_use]
    #[inline]
    pub fn try_take(&mut self, op: Op, range: DiskRange) -> Option<Box<Bio>> {
        let mut bio = self.pool.try_take()?;
        bio.op = op;
        bio.range = range;
        Some(bio)
    }

    /// Returns a bio; it lets go of its memory (Linux: `bio_put`).
    #[inline(always)]
    pub fn put(&mut self, mut bio: Box<Bio>) {
        bio.reset();
        self.pool.put(bio);
    }

    /// Returns all bios of a chain.
    pub fn put_chain(&mut self, mut chain: BioChain) {
        while let Some(bio) = chain.pop() {
            self.put(bio);
        }
    }

    /// How many bios are free.
    #[must_use]
    pub fn available(&self) -> usize {
        self.pool.available()
    }

    /// How many bios there are.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.pool.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_keeps_its_order() {
        let mut set = BioSet::new(1);
        let mut chain = BioChain::new();
        for op in [Op::Read, Op::DeviceId, Op::Read] {
            chain.push(set.try_take(op, DiskRange::none()).expect("a bio is free"));
        }
        assert_eq!(chain.len(), 3);
        assert_eq!(chain.iter().map(|bio| bio.op).collect::<Vec<_>>(), [Op::Read, Op::DeviceId, Op::Read]);
        assert!(chain.has_one_direction());
        set.put_chain(chain);
        assert_eq!(set.available(), set.capacity());
    }

    #[test]
    fn a_chain_of_two_directions_is_seen() {
        let mut set = BioSet::new(1);
        let mut chain = BioChain::new();
        chain.push(set.try_take(Op::Read, DiskRange::none()).expect("a bio is free"));
        chain.push(set.try_take(Op::Write { fua: false }, DiskRange::none()).expect("a bio is free"));
        assert!(!chain.has_one_direction());
    }
}
