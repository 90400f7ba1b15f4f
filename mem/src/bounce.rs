//! Bounce buffers: a stand-in, in memory of ours, for memory that the disk cannot take.
//!
//! The counterpart of Linux's `block/bounce.c`. A bounce buffer is as long as what it stands in for, page-aligned,
//! made of kzalloc'ed pages, all or nothing. Before a write the data is copied in, after a read it is copied out,
//! and only as much as was read: the rest of the pages is zero and stays here.

use crate::gfp::Gfp;
use crate::kzalloc::{AllocError, Arena};
use crate::sglist::SgList;

/// Memory that stands in for another list.
#[derive(Debug)]
pub struct Bounce {
    pages: SgList,
}

impl Bounce {
    /// The most bytes that one buffer can stand in for.
    pub const BYTES_MAX: usize = SgList::CAPACITY * crate::PAGE_SIZE;

    /// The most memory that one buffer can take: its pages and the table that lists them.
    pub const RESERVE_BYTES: usize = Self::BYTES_MAX + crate::PAGE_SIZE;

    /// A buffer of `bytes` bytes.
    ///
    /// # Errors
    /// When `gfp` gets too few pages; then none was taken.
    pub fn alloc(arena: &Arena, bytes: usize, gfp: Gfp) -> Result<Self, AllocError> {
        Ok(Self { pages: SgList::alloc(arena, bytes, gfp)? })
    }

    /// The buffer, for the disk.
    #[must_use]
    pub fn pages(&self) -> &SgList {
        &self.pages
    }

    /// Copies in all of `from`, which is to be written, at `offset`.
    pub fn copy_in(&self, offset: usize, from: &SgList) {
        self.pages.copy_from(offset, from, from.bytes());
    }

    /// Copies out the first `count` bytes, which were read.
    pub fn copy_out(&self, to: &SgList, count: usize) {
        to.copy_from(0, &self.pages, count);
    }

    /// Drops the first `count` bytes, which are done.
    pub fn advance(&mut self, count: usize) {
        self.pages.advance(count);
    }
}
