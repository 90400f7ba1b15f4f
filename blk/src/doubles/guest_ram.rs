//! A guest's memory, made of files in memory, that tests read and write as files: not through what they test.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use sluice_mem::PAGE_SIZE;
use sluice_mem::guest::{GuestMem, MemPin};
use sluice_mem::kzalloc::Arena;
use sluice_mem::region::{Region, RegionInfo};
use sluice_mem::sglist::SgList;

/// Memory of a guest from address 0 on, in adjacent regions.
#[derive(Debug)]
pub(crate) struct GuestRam {
    regions: Vec<(u64, File)>,
    pin: MemPin,
    region_bytes: usize,
    /// For the tables of lists of its pieces.
    arena: Arena,
}

impl GuestRam {
    /// `count` regions of `region_pages` pages each.
    pub(crate) fn new(count: usize, region_pages: usize) -> Self {
        let bytes = region_pages * PAGE_SIZE;
        Self::of((0..count).map(|_| memory_file(bytes as u64)).collect(), bytes)
    }

    /// Memory of so many pages that the kernel cannot hold on to, so that direct I/O on it fails. `None`, and a word
    /// about it, where there is none. It cannot be read or written as a file.
    pub(crate) fn secret(pages: usize) -> Option<Self> {
        let bytes = pages * PAGE_SIZE;
        Some(Self::of(vec![secret_file(bytes as u64)?], bytes))
    }

    fn of(files: Vec<File>, region_bytes: usize) -> Self {
        let regions: Vec<(u64, File)> =
            files.into_iter().enumerate().map(|(i, file)| ((i * region_bytes) as u64, file)).collect();
        let map = |(guest_addr, file): &(u64, File)| {
            let info = RegionInfo {
                guest_addr: *guest_addr,
                size: region_bytes as u64,
                user_addr: *guest_addr,
                mmap_offset: 0,
            };
            Region::map(info, file.try_clone().expect("an fd is free")).expect("a good region")
        };
        let memory = GuestMem::new(regions.iter().map(map).collect()).expect("disjoint regions");
        let arena = Arena::new(64 * PAGE_SIZE, 0).expect("64 pages");
        Self { regions, pin: MemPin::new(Arc::new(memory)), region_bytes, arena }
    }

    /// The memory as the code under test sees it.
    pub(crate) fn pin(&self) -> &MemPin {
        &self.pin
    }

    /// A list of the pieces that each address and length names.
    pub(crate) fn list(&self, pieces: impl IntoIterator<Item = (u64, usize)>) -> SgList {
        let mut list = SgList::new();
        for (addr, len) in pieces {
            assert_eq!(list.push_guest(&self.pin, addr, len, &self.arena), Ok(len));
        }
        list
    }

    /// Reads memory.
    pub(crate) fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.for_parts(addr, len, |file, at, part| file.read_exact_at(&mut bytes[part], at));
        bytes
    }

    /// Writes memory.
    pub(crate) fn write(&self, addr: u64, bytes: &[u8]) {
        self.for_parts(addr, bytes.len(), |file, at, part| file.write_all_at(&bytes[part], at));
    }

    /// Calls `part` with the file, the offset in it, and the part of the range, for each region of a range.
    fn for_parts(
        &self,
        addr: u64,
        len: usize,
        mut part: impl FnMut(&File, u64, std::ops::Range<usize>) -> std::io::Result<()>,
    ) {
        let mut done = 0;
        while done < len {
            let at = usize::try_from(addr).expect("a small address") + done;
            let (region, offset) = (at / self.region_bytes, at % self.region_bytes);
            let count = (len - done).min(self.region_bytes - offset);
            part(&self.regions[region].1, offset as u64, done..done + count).expect("a range of the memory");
            done += count;
        }
    }
}

/// A file of `len` zeroes in memory that the kernel cannot hold on to.
#[expect(unsafe_code, reason = "no crate of ours wraps this system call")]
fn secret_file(len: u64) -> Option<File> {
    // SAFETY: the system call takes a number and returns an fd or an error.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let Some(fd) = i32::try_from(fd).ok().filter(|fd| *fd >= 0) else {
        eprintln!("SKIPPED: there is no secret memory here ({})", std::io::Error::last_os_error());
        return None;
    };
    // SAFETY: an fd that was just made and that nobody else has.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len).expect("an empty file");
    Some(file)
}

/// A file in memory of `len` zeroes.
pub(crate) fn memory_file(len: u64) -> File {
    let file = File::from(memfd_create("sluice-test", MemfdFlags::CLOEXEC).expect("memfd_create(2)"));
    file.set_len(len).expect("address space");
    file
}
