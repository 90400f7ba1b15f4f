//! How much of a file waits in memory to be written: the way to see whether a flush flushed.
//!
//! A device that answers FLUSH without syncing is not found by reading the file back, since the page cache answers.
//! The kernel counts the dirty pages of a file, though (cachestat(2), Linux 6.5).

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

/// The number of cachestat(2) on every architecture.
const CACHESTAT: libc::c_long = 451;

/// struct cachestat of linux/mman.h.
#[repr(C)]
#[derive(Default)]
struct CacheStat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Pages of a file that are not on the disk yet; none if this kernel cannot tell.
///
/// # Panics
/// If the file cannot be looked at.
pub fn unwritten_pages(path: &Path) -> Option<u64> {
    let file = File::open(path).expect("a disk file can be opened");
    // struct cachestat_range: offset and length, where length 0 is up to the end.
    let range = [0u64; 2];
    let mut stat = CacheStat::default();
    let (range_ptr, stat_ptr) = (range.as_ptr(), &raw mut stat);
    // SAFETY: the call reads 16 bytes at `range_ptr` and writes 40 at `stat_ptr`; both point to live locals of that
    // size, and `file` is open.
    #[expect(unsafe_code, reason = "no crate of ours wraps this system call")]
    let result = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range_ptr, stat_ptr, 0) };
    match std::io::Error::last_os_error().raw_os_error() {
        _ if result == 0 => Some(stat.dirty + stat.writeback),
        Some(libc::ENOSYS) => None,
        error => panic!("cachestat of {}: error {error:?}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::disk::{Disk, DiskSpec};

    #[test]
    fn a_write_waits_until_a_sync() {
        let disk = Disk::new(&DiskSpec { bytes: 1 << 20, ..DiskSpec::default() });
        let file = File::options().write(true).open(disk.path()).unwrap();
        file.write_all_at(&[1; 65536], 0).unwrap();
        if let Some(pages) = unwritten_pages(&disk.path()) {
            assert!(pages >= 16, "{pages} pages");
            file.sync_data().unwrap();
            assert_eq!(unwritten_pages(&disk.path()), Some(0));
        }
    }
}
