//! Anonymous memory that threads share and copy in and out of: what a disk in memory keeps its data in.
//!
//! Any thread may read and write any part at any time. As with a guest's memory, all access is a copy between raw
//! addresses, there is never a reference into it, and two that write to the same bytes at once leave a mixture, as they
//! do on any disk. It is zero where nothing was written, and takes up physical memory only where something was. (Linux:
//! the pages of `drivers/block/brd.c`.)
//!
//! The kernel is asked for the memory in advance (no `MAP_NORESERVE`): where it can see at once that there is not so much,
//! it says so here, and not by killing the process when a guest has filled its disk. It is advised to use huge pages: a
//! random access then misses the TLB once, not twice, and faults come one for 2 MiB.
//!
//! ```
//! use sluice_mem::{anon::AnonMem, gfp::Gfp, kzalloc::Arena, sglist::SgList};
//!
//! let memory = AnonMem::new(1 << 20)?;
//! let arena = Arena::new(1 << 20, 0)?;
//! let list = SgList::alloc(&arena, 512, Gfp::NOWAIT)?;
//! list.write(&[7; 512]);
//! assert_eq!(memory.write(4096, &list), 512);
//! memory.zero(4096, 100);
//! assert_eq!(memory.read(4000, &list), 512);
//! let mut bytes = [1; 512];
//! list.read(&mut bytes);
//! assert_eq!((bytes[95], bytes[195], bytes[196]), (0, 0, 7));
//! assert_eq!(memory.read((1 << 20) - 10, &list), 10, "no more than there is");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![expect(unsafe_code, reason = "copies from and to a mapping that threads share")]

use std::io;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use rustix::param::page_size;

use crate::sglist::SgList;
use crate::slice::copy_blocks;

/// A fixed number of bytes, zero at first, given back to the kernel when dropped.
#[derive(Debug)]
pub struct AnonMem {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: it is an address and a length; what is there belongs to no thread, and is only accessed by copies.
unsafe impl Send for AnonMem {}
// SAFETY: as above. Copies of several threads at the same time leave a mixture of bytes, and every byte is valid.
unsafe impl Sync for AnonMem {}

impl AnonMem {
    /// Memory of `len` bytes, at least one.
    ///
    /// # Errors
    /// When the kernel sees that it does not have so much, or there is no address space.
    pub fn new(len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a null hint and no MAP_FIXED: the kernel chooses a range that nothing else uses.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, access, MapFlags::PRIVATE) }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = Self { base, len };
        // Advice: a kernel without huge pages does without.
        // SAFETY: the range was mapped above, and which pages are behind it is not seen.
        let _ = unsafe { madvise(base.as_ptr().cast(), len, Advice::LinuxHugepage) };
        Ok(memory)
    }

    /// How many bytes there are, at least one.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "there is at least one byte")]
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Copies the bytes from `at` on to the start of `to`, as far as both go. Returns how many bytes that was.
    pub fn read(&self, at: u64, to: &SgList) -> usize {
        self.copy(at, to, |own, piece, count| {
            // SAFETY: `count` bytes of the mapping, and of a piece, which its list keeps mapped (`copy`).
            unsafe { copy_blocks(own, piece, count) }
        })
    }

    /// Copies the start of `from` to the bytes from `at` on, as far as both go. Returns how many bytes that was.
    pub fn write(&self, at: u64, from: &SgList) -> usize {
        self.copy(at, from, |own, piece, count| {
            // SAFETY: `count` bytes of a piece, which its list keeps mapped, and of the mapping (`copy`).
            unsafe { copy_blocks(piece, own, count) }
        })
    }

    /// Sets the bytes from `at` on to zero, `count` of them as far as there are so many. Whole pages are given back to
    /// the kernel: they take up no physical memory any more, until they are written again.
    pub fn zero(&self, at: u64, count: u64) {
        let (start, end) = (self.clamp(at), self.clamp(at.saturating_add(count)));
        let first = start.next_multiple_of(page_size()).min(end);
        let last = (end - end % page_size()).max(first);
        self.clear(start, first);
        self.give_back(first, last);
        self.clear(last, end);
    }

    fn clamp(&self, at: u64) -> usize {
        usize::try_from(at).unwrap_or(usize::MAX).min(self.len)
    }

    /// Calls `copy` with addresses of ours from `at` on, those of the pieces of a list, and how many bytes both have.
    fn copy(&self, at: u64, list: &SgList, copy: impl Fn(*mut u8, *mut u8, usize)) -> usize {
        let start = self.clamp(at);
        let mut done = start;
        for piece in list.pieces() {
            let count = piece.len().min(self.len - done);
            copy(self.at(done), piece.as_ptr(), count);
            done += count;
        }
        done - start
    }

    fn clear(&self, start: usize, end: usize) {
        debug_assert!(start <= end && end <= self.len);
        // SAFETY: start <= end <= len, and all of the mapping can be written; every byte is valid.
        unsafe { self.at(start).write_bytes(0, end - start) };
    }

    /// Gives whole pages back. Where they are locked in memory they are cleared.
    fn give_back(&self, start: usize, end: usize) {
        if start == end {
            return;
        }
        // SAFETY: whole pages of the mapping. They read as zeroes afterwards, which are valid, and nothing borrows them.
        let given = unsafe { madvise(self.at(start).cast(), end - start, Advice::LinuxDontNeed) };
        if given.is_err() {
            self.clear(start, end);
        }
    }

    fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.len, "byte {offset} of {}", self.len);
        // SAFETY: at most one past the end of the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }
}

impl Drop for AnonMem {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, with this length, and nothing borrows it.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "unmapping what was mapped: {unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PAGE_SIZE;
    use crate::gfp::Gfp;
    use crate::kzalloc::Arena;

    const LEN: usize = 4 << 20;

    fn list(bytes: &[u8]) -> SgList {
        let arena = Arena::new(bytes.len() + 2 * PAGE_SIZE, 0).expect("address space");
        let list = SgList::alloc(&arena, bytes.len(), Gfp::NOWAIT).expect("enough pages");
        list.write(bytes);
        list
    }

    fn read(memory: &AnonMem, at: usize, count: usize) -> Vec<u8> {
        let list = list(&vec![0xee; count]);
        let read = memory.read(at as u64, &list);
        list.to_vec()[..read].to_vec()
    }

    /// How many of the kernel's pages from `start` to `end` have physical memory.
    fn resident(memory: &AnonMem, start: usize, end: usize) -> usize {
        let mut pages = vec![0_u8; (end - start).div_ceil(page_size())];
        // SAFETY: a range of the mapping, and room for a byte for each of its pages.
        let answer =
            unsafe { libc::mincore(memory.at(start).cast(), end - start, pages.as_mut_ptr().cast()) };
        assert_eq!(answer, 0, "mincore(2)");
        pages.iter().filter(|page| **page & 1 == 1).count()
    }

    #[test]
    fn what_was_not_written_is_zero_and_takes_no_memory() {
        let memory = AnonMem::new(LEN as u64).expect("some memory");
        assert_eq!(read(&memory, 12345, 6789), vec![0; 6789]);
        memory.write(0, &list(&[1; 10]));
        assert_eq!(resident(&memory, 2 << 20, LEN), 0, "the other huge page");
    }

    #[test]
    fn what_was_written_is_read_wherever_it_begins() {
        let memory = AnonMem::new(LEN as u64).expect("some memory");
        let mut expected = vec![0; LEN];
        for (at, count) in [(0, 4096), (4096, 100_000), (77_777, 3333), (LEN - 5, 5)] {
            let data: Vec<u8> = (1..=251).cycle().skip(at % 7).take(count).collect();
            assert_eq!(memory.write(at as u64, &list(&data)), count);
            expected[at..at + count].copy_from_slice(&data);
            assert!(read(&memory, at, count) == data, "{count} bytes at {at}");
        }
        let all: Vec<u8> = (0..LEN).step_by(1 << 20).flat_map(|at| read(&memory, at, 1 << 20)).collect();
        assert!(all == expected, "and nothing else");
    }

    #[test]
    fn a_copy_ends_where_the_memory_ends() {
        let memory = AnonMem::new(LEN as u64).expect("some memory");
        assert_eq!(memory.write(LEN as u64 - 3, &list(&[9; 5])), 3);
        assert_eq!(read(&memory, LEN - 4, 10), [0, 9, 9, 9]);
        for past in [LEN as u64, LEN as u64 + 1, u64::MAX] {
            assert_eq!(memory.write(past, &list(&[9; 5])), 0);
            assert_eq!(memory.read(past, &list(&[9; 5])), 0);
            memory.zero(past, u64::MAX);
        }
        assert_eq!(read(&memory, LEN - 4, 10), [0, 9, 9, 9]);
    }

    #[test]
    fn exactly_the_range_is_zeroed_and_its_whole_pages_are_given_back() {
        let page = page_size();
        for (start, end) in
            [(0, 10 * page), (page + 1, page + 2), (page - 1, page + 1), (page, 3 * page), (5, 7 * page - 1)]
        {
            let memory = AnonMem::new(LEN as u64).expect("some memory");
            memory.write(0, &list(&vec![0xff; 11 * page]));
            memory.zero(start as u64, (end - start) as u64);
            let mut expected = vec![0xff; 11 * page];
            expected[start..end].fill(0);
            let (first, last) = (start.next_multiple_of(page), end - end % page);
            if first < last {
                assert_eq!(resident(&memory, first, last), 0, "{start}..{end}");
            }
            assert!(read(&memory, 0, 11 * page) == expected, "{start}..{end}");
        }
    }

    #[test]
    fn more_than_the_address_space_is_refused() {
        assert!(AnonMem::new(1 << 60).is_err());
        assert!(AnonMem::new(0).is_err());
    }
}
