//! The front-end's part of a migration: a log of written pages, and a copy of the guest's memory that follows it.
//!
//! What a front-end does, and nothing else: it takes the bits of the log away, all at a time with one atomic operation for
//! 64 of them, and copies the pages that they stand for. So a page that the device has written without a bit, or with one that
//! came too early, is another in the copy than in the memory ([`Replica::differing`]).

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vhost::VhostUserDirtyLogRegion;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::memory::{GuestMemory, memory_file};

/// Bytes of guest memory for each bit.
pub const PAGE: u64 = 4096;
const WORD: usize = size_of::<u64>();

/// A log, as the front-end has it.
#[derive(Debug)]
pub struct Log {
    file: Arc<File>,
    map: MmapRegion<()>,
    offset: u64,
}

impl Log {
    /// A log without a bit set, of `bytes` bytes, which begins so many bytes into its file.
    pub fn new(bytes: u64, offset: u64) -> Self {
        let size = bytes.next_multiple_of(PAGE);
        let file = memory_file(offset + size);
        let place = FileOffset::new(file.try_clone().expect("a file can be cloned"), offset);
        let map = MmapRegion::from_file(place, usize::try_from(size).expect("a small log"));
        Self { file, map: map.expect("a log can be mapped"), offset }
    }

    /// One that is large enough for a memory, and for what else is logged below `end`.
    pub fn for_memory(memory: &GuestMemory, end: u64, offset: u64) -> Self {
        let ends = memory.regions().iter().map(|region| region.guest_addr + region.size);
        Self::new(ends.max().unwrap_or(0).max(end).div_ceil(8 * PAGE), offset)
    }

    /// What the back-end is told of it.
    pub fn region(&self) -> VhostUserDirtyLogRegion {
        VhostUserDirtyLogRegion {
            mmap_size: self.map.size() as u64,
            mmap_offset: self.offset,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// The file that it is in.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Takes all bits: the pages that they stand for.
    pub fn take(&self) -> BTreeSet<u64> {
        let words = self.map.size() / WORD;
        (0..words).flat_map(|n| bits(n, self.word(n).swap(0, Ordering::AcqRel))).collect()
    }

    /// Whether all pages that the bytes are in are marked.
    pub fn has(&self, bytes: Range<u64>) -> bool {
        let pages = bytes.start / PAGE..bytes.end.div_ceil(PAGE);
        pages.into_iter().all(|page| {
            let (word, bit) = (usize::try_from(page / 64).expect("a small log"), page % 64);
            u64::from_le(self.word(word).load(Ordering::Acquire)) & 1 << bit != 0
        })
    }

    fn word(&self, n: usize) -> &AtomicU64 {
        self.map.get_atomic_ref(n * WORD).expect("a word of the log")
    }
}

/// The pages of the bits of a word.
fn bits(word: usize, value: u64) -> impl Iterator<Item = u64> {
    let value = u64::from_le(value);
    (0..64).filter(move |bit| value & 1 << bit != 0).map(move |bit| 64 * word as u64 + bit)
}

/// A copy of a guest's memory.
#[derive(Debug)]
pub struct Replica {
    memory: Arc<GuestMemory>,
    /// Of each region.
    bytes: Vec<Vec<u8>>,
}

impl Replica {
    /// All of the memory as it is now.
    pub fn new(memory: &Arc<GuestMemory>) -> Self {
        let mut replica = Self { memory: Arc::clone(memory), bytes: Vec::new() };
        replica.copy_all();
        replica
    }

    /// Copies all of it.
    pub fn copy_all(&mut self) {
        let read = |addr, size| self.memory.read(addr, usize::try_from(size).expect("a small region"));
        self.bytes = self.memory.regions().iter().map(|r| read(r.guest_addr, r.size)).collect();
    }

    /// Copies the pages that a log has, which it does not have afterwards.
    pub fn follow(&mut self, log: &Log) {
        for page in log.take() {
            let addr = page * PAGE;
            if let Some((region, at)) = self.find(addr) {
                let now = self.memory.read(addr, usize::try_from(PAGE).expect("a small page"));
                self.bytes[region][at..at + now.len()].copy_from_slice(&now);
            }
        }
    }

    /// The bytes of a range that is in one region, as they were copied last.
    pub fn at(&self, range: Range<u64>) -> &[u8] {
        let (region, at) = self.find(range.start).expect("the test asks for memory that exists");
        &self.bytes[region][at..][..usize::try_from(range.end - range.start).expect("a small range")]
    }

    /// Pages that are not what the memory has, but for bytes that the driver writes.
    pub fn differing(&self, driver: &Range<u64>) -> Vec<u64> {
        let page_bytes = usize::try_from(PAGE).expect("a small page");
        let mut pages = Vec::new();
        for (region, old) in self.memory.regions().iter().zip(&self.bytes) {
            let now = self.memory.read(region.guest_addr, old.len());
            let pairs = old.chunks(page_bytes).zip(now.chunks(page_bytes));
            for ((old, now), n) in pairs.zip(0..) {
                let page = region.guest_addr + n * PAGE;
                let is_drivers = |at: u64| driver.contains(&at);
                let differ = |(at, (old, now)): (u64, (&u8, &u8))| old != now && !is_drivers(page + at);
                if old != now && (0..).zip(old.iter().zip(now)).any(differ) {
                    pages.push(page);
                }
            }
        }
        pages
    }

    fn find(&self, addr: u64) -> Option<(usize, usize)> {
        let regions = self.memory.regions();
        let region = regions.iter().position(|r| (r.guest_addr..r.guest_addr + r.size).contains(&addr))?;
        let offset = usize::try_from(addr - regions[region].guest_addr).expect("a small region");
        Some((region, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_was_written_without_a_mark_is_another_in_the_copy() {
        let memory = GuestMemory::new();
        let log = Log::for_memory(&memory, 0, 4096);
        let mut replica = Replica::new(&memory);
        assert!(replica.differing(&(0..0)).is_empty());
        memory.write(0x5ffe, &[1; 4]);
        assert_eq!(replica.differing(&(0..0)), [0x5000, 0x6000]);
        assert_eq!(replica.differing(&(0x5000..0x6001)), [0x6000]);
        assert!(!log.has(0x5000..0x5001));
        log.word(0).store((1_u64 << 5).to_le(), Ordering::Release);
        assert!(log.has(0x5000..0x6000) && !log.has(0x5000..0x6001));
        replica.follow(&log);
        assert_eq!(replica.differing(&(0..0)), [0x6000]);
        assert_eq!(log.take(), BTreeSet::new(), "it was taken");
    }
}
