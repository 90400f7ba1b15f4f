//! Guest memory as a VMM makes it: several shared regions, with holes, with offsets into their files.
//!
//! A guest address, the front-end's user address and this process's mapping are three different numbers here, so
//! that a back-end that confuses them fails. The default layout:
//!
//! ```text
//! 0          4 MiB              32 MiB        4 GiB     4 GiB + 8 MiB
//! | file A @0 | file B @64 KiB   |   hole      | file A @4 MiB |
//!             ^ seam: adjacent guest addresses, separate mappings
//! ```
//!
//! Allocation is first fit; the surroundings of the seam are kept out of it for requests that are to straddle it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use rustix::fs::MemfdFlags;
use vm_memory::{AtomicAccess, Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

/// Added to a guest address to get the front-end's user address.
const USER_BASE: u64 = 0x7e00_0000_0000;
const MIB: u64 = 1 << 20;
/// The first address of the second region of the default layout, right after the last of the first.
pub const SEAM: u64 = 4 * MIB;
/// An address in the hole of the default layout.
pub const HOLE: u64 = 64 * MIB;
/// How far around the seam nothing is allocated.
const SEAM_MARGIN: u64 = MIB;

/// One region of guest memory, backed by a part of a file that the back-end maps too.
#[derive(Clone, Debug)]
pub struct Region {
    /// The first guest address.
    pub guest_addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// The address in the front-end's address space, by which ring addresses are given.
    pub user_addr: u64,
    /// The backing file.
    pub file: Arc<File>,
    /// Where in the file the region starts.
    pub file_offset: u64,
}

impl Region {
    /// A region at `guest_addr` of `size` bytes, `file_offset` bytes into `file`.
    pub fn new(guest_addr: u64, size: u64, file: &Arc<File>, file_offset: u64) -> Self {
        let user_addr = guest_addr + USER_BASE;
        Region { guest_addr, size, user_addr, file: Arc::clone(file), file_offset }
    }

    fn end(&self) -> u64 {
        self.guest_addr + self.size
    }
}

/// An anonymous shared file of `size` bytes.
pub fn memory_file(size: u64) -> Arc<File> {
    let fd: OwnedFd =
        rustix::fs::memfd_create("guest-memory", MemfdFlags::CLOEXEC).expect("memfd_create works");
    let file = File::from(fd);
    file.set_len(size).expect("a memfd grows");
    Arc::new(file)
}

/// The memory of one guest, mapped here, with an allocator.
#[derive(Debug)]
pub struct GuestMemory {
    map: GuestMemoryMmap<()>,
    regions: Vec<Region>,
    /// Free ranges: start to length.
    free: Mutex<BTreeMap<u64, u64>>,
}

impl GuestMemory {
    /// The default layout (see the head of this file).
    pub fn new() -> Arc<Self> {
        let a = memory_file(12 * MIB);
        let b = memory_file(28 * MIB + 64 * 1024);
        let regions = vec![
            Region::new(0, SEAM, &a, 0),
            Region::new(SEAM, 28 * MIB, &b, 64 * 1024),
            Region::new(4096 * MIB, 8 * MIB, &a, 4 * MIB),
        ];
        Self::with_seam(regions)
    }

    /// Memory of the given regions, of which two meet at [`SEAM`]: what is around it is not handed out.
    pub fn with_seam(regions: Vec<Region>) -> Arc<Self> {
        let memory = Self::with_regions(regions);
        memory.reserve(SEAM - SEAM_MARGIN, 2 * SEAM_MARGIN);
        memory
    }

    /// Memory of the given regions, all of it free. Address 0 is not handed out.
    pub fn with_regions(regions: Vec<Region>) -> Arc<Self> {
        let ranges = regions.iter().map(|r| {
            let file = r.file.try_clone().expect("a file descriptor can be cloned");
            let size = usize::try_from(r.size).expect("a region fits the address space");
            (GuestAddress(r.guest_addr), size, Some(FileOffset::new(file, r.file_offset)))
        });
        let map = GuestMemoryMmap::from_ranges_with_files(ranges).expect("the regions can be mapped");
        let mut free = BTreeMap::new();
        for region in &regions {
            let start = region.guest_addr.max(4096);
            free.insert(start, region.end() - start);
        }
        Arc::new(GuestMemory { map, regions, free: Mutex::new(free) })
    }

    /// What the front-end announces.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The memory as it is mapped here, for a device that is in this process.
    pub fn mapped(&self) -> &GuestMemoryMmap<()> {
        &self.map
    }

    /// The front-end's user address of a guest address.
    ///
    /// # Panics
    /// If no region holds the address.
    pub fn user_addr(&self, addr: u64) -> u64 {
        let region = self.regions.iter().find(|r| (r.guest_addr..r.end()).contains(&addr));
        let region = region.unwrap_or_else(|| panic!("guest address {addr:#x} is in no region"));
        addr - region.guest_addr + region.user_addr
    }

    /// Takes `len` bytes whose address is a multiple of `align`; never across two regions.
    ///
    /// # Panics
    /// If no hole is that large: tests know what they need.
    pub fn alloc(&self, len: usize, align: usize) -> u64 {
        let (len, align) = (len.max(1) as u64, align as u64);
        let mut free = self.free.lock().expect("no holder of the lock panics");
        let fits = |(&start, &room): (&u64, &u64)| {
            let addr = start.next_multiple_of(align);
            (addr + len <= start + room).then_some((start, room, addr))
        };
        let found = free.iter().find_map(fits);
        let (start, room, addr) = found.unwrap_or_else(|| panic!("no {len} free bytes of guest memory"));
        free.remove(&start);
        if addr > start {
            free.insert(start, addr - start);
        }
        if addr + len < start + room {
            free.insert(addr + len, start + room - addr - len);
        }
        addr
    }

    /// Gives back what [`alloc`](Self::alloc) took.
    pub fn free(&self, addr: u64, len: usize) {
        let (mut start, mut len) = (addr, len.max(1) as u64);
        let mut free = self.free.lock().expect("no holder of the lock panics");
        if let Some((&before, &room)) = free.range(..start).next_back() {
            assert!(before + room <= start, "{start:#x} was free already");
            if before + room == start && !self.regions.iter().any(|r| r.guest_addr == start) {
                free.remove(&before);
                (start, len) = (before, room + len);
            }
        }
        let end = start + len;
        if let Some(room) = free.get(&end).copied()
            && !self.regions.iter().any(|r| r.guest_addr == end)
        {
            free.remove(&end);
            len += room;
        }
        free.insert(start, len);
    }

    /// Zeroes everything that is not taken.
    pub fn wipe(&self) {
        let free = self.free.lock().expect("no holder of the lock panics");
        for (&start, &room) in free.iter() {
            self.write(start, &vec![0; usize::try_from(room).expect("a hole fits the address space")]);
        }
    }

    /// Takes exactly this range out of the allocator, from several regions if need be.
    fn reserve(&self, addr: u64, len: u64) {
        let mut free = self.free.lock().expect("no holder of the lock panics");
        let end = addr + len;
        let hit: Vec<_> =
            free.iter().map(|(&s, &l)| (s, l)).filter(|&(s, l)| s < end && addr < s + l).collect();
        for (start, room) in hit {
            free.remove(&start);
            if start < addr {
                free.insert(start, addr - start);
            }
            if end < start + room {
                free.insert(end, start + room - end);
            }
        }
    }

    /// Copies bytes in; they may span regions.
    pub fn write(&self, addr: u64, bytes: &[u8]) {
        self.map.write_slice(bytes, GuestAddress(addr)).expect("the test writes to memory that exists");
    }

    /// Copies bytes out; they may span regions.
    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.map.read_slice(&mut bytes, GuestAddress(addr)).expect("the test reads memory that exists");
        bytes
    }

    /// One atomic load, as a driver reads what the device may write at the same time.
    pub fn load<T: AtomicAccess>(&self, addr: u64, order: Ordering) -> T {
        self.map.load(GuestAddress(addr), order).expect("the test loads from memory that exists")
    }

    /// One atomic store, as a driver writes what the device may read at the same time.
    pub fn store<T: AtomicAccess>(&self, addr: u64, value: T, order: Ordering) {
        self.map.store(value, GuestAddress(addr), order).expect("the test stores to memory that exists");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_memory_is_one_hole_again() {
        let memory = GuestMemory::new();
        let before = memory.free.lock().unwrap().clone();
        let taken: Vec<_> = (1..50).map(|n| (memory.alloc(n * 37, 16), n * 37)).collect();
        for i in (0..taken.len()).step_by(2).chain((1..taken.len()).step_by(2)) {
            memory.free(taken[i].0, taken[i].1);
        }
        assert_eq!(*memory.free.lock().unwrap(), before);
    }

    #[test]
    fn bytes_cross_the_seam_of_two_regions() {
        let memory = GuestMemory::new();
        memory.write(SEAM - 3, b"abcdef");
        assert_eq!(memory.read(SEAM - 3, 6), b"abcdef");
        assert_eq!(memory.user_addr(SEAM), SEAM + USER_BASE);
    }
}
