//! Bounce buffers: a stand-in, in memory of ours, for memory that the disk cannot take.
//!
//! The counterpart of Linux's `block/bounce.c`. A bounce buffer is as long as what it stands in for, page-aligned,
//! made of kzalloc'ed pages, all or nothing. Before a write the data is copied in, after a read it is copied out,
//! and only as much as was read: the rest of the pages is zero and stays here. Linux bounced what was in high memory, a
//! page at a time and by a clone of the bio; here it is what direct I/O does not take, at once and by a copy.
//!
//! ```
//! use sluice_mem::{bounce::Bounce, gfp::Gfp, kzalloc::Arena, sglist::SgList};
//!
//! let arena = Arena::new(1 << 20, 0)?;
//! # let memory = SgList::alloc(&arena, 1000, Gfp::NOWAIT)?;
//! // `memory` is a guest's, and not as aligned as the disk asks for.
//! let bounce = Bounce::alloc(&arena, memory.bytes(), Gfp::NOWAIT)?;
//! assert!(bounce.pages().is_aligned(0, 4096, 512));
//! bounce.pages().write(&[7; 600]); // A read that was cut short.
//! bounce.copy_out(0, &memory, 600);
//! let mut bytes = [1; 601];
//! memory.read(&mut bytes);
//! assert_eq!((bytes[599], bytes[600]), (7, 0), "what was not read is as it was");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

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
    pub fn alloc(arena: &Arena, bytes: usize, gfp: Gfp<'_>) -> Result<Self, AllocError> {
        Ok(Self { pages: SgList::alloc(arena, bytes, gfp)? })
    }

    /// The buffer, for the disk.
    #[must_use]
    pub fn pages(&self) -> &SgList {
        &self.pages
    }

    /// Copies in all of `from`, which is to be written, at `offset`.
    pub fn copy_in(&self, offset: usize, from: &SgList) {
        self.pages.copy_from(offset, from, 0, from.bytes());
    }

    /// Copies out `count` bytes from `offset` on, which were read, to the start of `to`.
    pub fn copy_out(&self, offset: usize, to: &SgList, count: usize) {
        to.copy_from(0, &self.pages, offset, count);
    }

    /// Sets `count` bytes from `offset` on to zero.
    pub fn zero(&self, offset: usize, count: usize) {
        self.pages.zero(offset, count);
    }

    /// Drops the first `count` bytes, which are done.
    pub fn advance(&mut self, count: usize) {
        self.pages.advance(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PAGE_SIZE;

    #[test]
    fn the_reserve_holds_the_largest_buffer() {
        let arena = Arena::new(Bounce::RESERVE_BYTES, Bounce::RESERVE_BYTES).expect("address space");
        let largest = Bounce::alloc(&arena, Bounce::BYTES_MAX, Gfp::ATOMIC).expect("the reserve is free");
        assert_eq!(largest.pages().bytes(), Bounce::BYTES_MAX);
        assert!(Bounce::alloc(&arena, 1, Gfp::ATOMIC).is_err(), "and nothing more");
        drop(largest);
        let too_large = Bounce::alloc(&arena, Bounce::BYTES_MAX + 1, Gfp::ATOMIC);
        assert!(matches!(too_large, Err(AllocError::TooLarge { .. })));
        assert_eq!(arena.used_pages(), 0, "a failure takes nothing");
    }

    #[test]
    fn a_buffer_that_gets_no_table_takes_no_pages() {
        // Five pages are more than a list has room for without a table, which would be the sixth.
        let arena = Arena::new(5 * PAGE_SIZE, 0).expect("five pages");
        assert!(Bounce::alloc(&arena, 5 * PAGE_SIZE, Gfp::NOWAIT).is_err());
        assert_eq!(arena.used_pages(), 0);
        assert!(Bounce::alloc(&arena, 4 * PAGE_SIZE, Gfp::NOWAIT).is_ok());
    }

    #[test]
    fn only_what_was_read_is_copied_out() {
        let arena = Arena::new(8 * PAGE_SIZE, 0).expect("eight pages");
        let list = |byte| {
            let list = SgList::alloc(&arena, 100, Gfp::NOWAIT).expect("a page");
            list.write(&[byte; 100]);
            list
        };
        let (data, memory) = (list(7), list(1));
        let mut bounce = Bounce::alloc(&arena, 200, Gfp::NOWAIT).expect("a page");
        bounce.copy_in(50, &data);
        bounce.copy_out(0, &memory, 60);
        let expected = |zeroes: usize, sevens: usize| {
            let mut bytes = vec![0; zeroes];
            bytes.extend(vec![7; sevens]);
            bytes.resize(100, 1);
            bytes
        };
        assert_eq!(memory.to_vec(), expected(50, 10));
        bounce.advance(40);
        bounce.copy_out(0, &memory, 30);
        assert_eq!(memory.to_vec(), [&expected(10, 20)[..30], &expected(50, 10)[30..]].concat());
    }
}
