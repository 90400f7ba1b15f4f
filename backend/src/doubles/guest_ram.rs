//! A guest's memory, made of files in memory, that tests read and write as files: not through what they test.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::param::page_size;
use sluice_mem::guest::{GuestMem, MemPin};
use sluice_mem::region::{Region, RegionInfo};

/// Memory of a guest: regions, all of them parts of one file.
#[derive(Debug)]
pub(crate) struct GuestRam {
    file: File,
    regions: Vec<RegionInfo>,
    memory: Arc<GuestMem>,
    /// Where in the file tests have written, and how many bytes.
    written: Mutex<Vec<(u64, usize)>>,
}

impl GuestRam {
    /// Regions at these guest addresses, of these sizes. Their user addresses are the guest's and
    /// [`GuestRam::USER_OFFSET`].
    pub(crate) fn new(ranges: &[Range<u64>]) -> Self {
        let (mut regions, mut mmap_offset) = (Vec::new(), 0);
        for Range { start, end } in ranges.iter().cloned() {
            let user_addr = start.wrapping_add(Self::USER_OFFSET);
            regions.push(RegionInfo { guest_addr: start, size: end - start, user_addr, mmap_offset });
            mmap_offset += (end - start).next_multiple_of(page_size() as u64);
        }
        let file = memory_file(mmap_offset);
        let memory = Arc::new(map(&file, &regions));
        Self { file, regions, memory, written: Mutex::default() }
    }

    /// One region.
    pub(crate) fn flat(range: Range<u64>) -> Self {
        Self::new(&[range])
    }

    /// What a user address is more than its guest address.
    pub(crate) const USER_OFFSET: u64 = 0x7f00_0000_0000;

    /// The memory as the code under test sees it.
    pub(crate) fn memory(&self) -> &Arc<GuestMem> {
        &self.memory
    }

    /// The memory, pinned on this thread.
    pub(crate) fn pin(&self) -> MemPin {
        MemPin::new(Arc::clone(&self.memory))
    }

    /// The same memory, mapped again.
    pub(crate) fn map_again(&self) -> GuestMem {
        map(&self.file, &self.regions)
    }

    /// The regions as a front-end describes them.
    pub(crate) fn regions(&self) -> &[RegionInfo] {
        &self.regions
    }

    /// The file that they are parts of.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Sets all of the memory to zero.
    pub(crate) fn clear(&self) {
        let len = self.file.metadata().expect("fstat(2)").len();
        self.file.set_len(0).and_then(|()| self.file.set_len(len)).expect("address space");
    }

    /// Sets what tests have written to zero: cheaper than all of it, where the code under test writes nothing.
    pub(crate) fn take_back(&self) {
        for (at, len) in self.written.lock().expect("no test panics with it").drain(..) {
            self.file.write_all_at(&vec![0; len], at).expect("it is in the file");
        }
    }

    /// Reads memory; `None` where some of it is in no region.
    pub(crate) fn try_read(&self, addr: u64, len: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; len];
        for (at, part) in self.parts(addr, len)? {
            self.file.read_exact_at(&mut bytes[part], at).expect("it is in the file");
        }
        Some(bytes)
    }

    /// Reads memory that is there.
    pub(crate) fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        self.try_read(addr, len).unwrap_or_else(|| panic!("{len} bytes at {addr:#x} are not all there"))
    }

    /// Reads a little-endian number.
    pub(crate) fn read_u16(&self, addr: u64) -> u16 {
        u16::from_le_bytes(self.read(addr, 2).try_into().expect("2 bytes"))
    }

    /// Writes memory that is there.
    pub(crate) fn write(&self, addr: u64, bytes: &[u8]) {
        assert!(self.try_write(addr, bytes), "{} bytes at {addr:#x} are not all there", bytes.len());
    }

    /// Writes memory. False, and nothing is written, where some of it is in no region.
    pub(crate) fn try_write(&self, addr: u64, bytes: &[u8]) -> bool {
        let Some(parts) = self.parts(addr, bytes.len()) else { return false };
        for (at, part) in parts {
            self.written.lock().expect("no test panics with it").push((at, part.len()));
            self.file.write_all_at(&bytes[part], at).expect("it is in the file");
        }
        true
    }

    /// Where the code under test has the byte at `addr`, and how many bytes from there are in the same region.
    pub(crate) fn host(&self, addr: u64) -> Option<(usize, u64)> {
        let regions = self.memory.regions().iter();
        regions.map(|region| (addr.wrapping_sub(region.guest_addr()), region)).find_map(|(offset, region)| {
            let left = region.size().checked_sub(offset).filter(|left| *left > 0)?;
            Some((region.host_ptr().addr() + usize::try_from(offset).expect("a small region"), left))
        })
    }

    /// A range of memory as offsets in the file, and the parts of the range that are there.
    fn parts(&self, addr: u64, len: usize) -> Option<Vec<(u64, Range<usize>)>> {
        let (mut parts, mut done) = (Vec::new(), 0);
        while done < len {
            let at = addr.checked_add(done as u64)?;
            let is_in = |info: &&RegionInfo| at.checked_sub(info.guest_addr).is_some_and(|o| o < info.size);
            let info = self.regions.iter().find(is_in)?;
            let offset = at - info.guest_addr;
            let count = usize::try_from(info.size - offset).expect("a small region").min(len - done);
            parts.push((info.mmap_offset + offset, done..done + count));
            done += count;
        }
        Some(parts)
    }
}

fn map(file: &File, regions: &[RegionInfo]) -> GuestMem {
    let map = |info: &RegionInfo| {
        Region::map(*info, file.try_clone().expect("an fd is free")).expect("a good region")
    };
    GuestMem::new(regions.iter().map(map).collect()).expect("disjoint regions")
}

/// A file in memory of `len` zeroes.
pub(crate) fn memory_file(len: u64) -> File {
    let file = File::from(memfd_create("sluice-test", MemfdFlags::CLOEXEC).expect("memfd_create(2)"));
    file.set_len(len).expect("address space");
    file
}
