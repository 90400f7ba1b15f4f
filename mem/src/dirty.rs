//! Which pages of a guest's memory were written: the log that a front-end copies a running guest by.
//!
//! ```text
//! bit p of the log (byte p / 8, bit p % 8): the page of 4096 bytes at guest address 4096 * p was written
//! ```
//!
//! The log is memory of the front-end (vhost-user.rst, "Migration"), which takes the bits away while we set them, so a bit is
//! set by one atomic operation. It is set after the page was written, and before the driver is told: who finds the bit finds
//! what was written, and who finds no bit has copied the page when it was the same already or will find one. Whatever is
//! written to guest memory is marked by [`GuestMem::mark`](crate::guest::GuestMem) with the exception of used rings, which
//! have an address of their own in the log. Linux: `log_write` of vhost.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]
#![expect(unsafe_code, reason = "sets bits in memory that another process shares")]

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::region::{Region, RegionError, RegionInfo};
use crate::sigbus::Alarm;

/// Bytes of guest memory for each bit (vhost-user.rst, `VHOST_LOG_PAGE`).
pub const LOG_PAGE: u64 = 4096;
/// Bytes of guest memory for each byte of the log.
const LOG_BYTE: u64 = 8 * LOG_PAGE;

/// A front-end's log, mapped (Linux: `log_base` of `struct vhost_dev`).
#[derive(Debug)]
pub struct DirtyLog {
    map: Region,
}

impl DirtyLog {
    /// Maps `size` bytes of `file` from `offset` on. `alarm` rings when the front-end takes them away.
    ///
    /// # Errors
    /// As [`Region::map`].
    pub fn map(size: u64, offset: u64, file: File, alarm: &Arc<Alarm>) -> Result<Self, RegionError> {
        let info = RegionInfo { guest_addr: 0, size, user_addr: 0, mmap_offset: offset };
        Ok(Self { map: Region::map_watched(info, file, alarm)? })
    }

    /// How many bytes it has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.map.size()
    }

    /// How many bytes a log has to have for guest addresses below `end`.
    #[must_use]
    pub fn size_for(end: u64) -> u64 {
        end.div_ceil(LOG_BYTE)
    }

    /// Whether it has bits for all guest addresses below `end`.
    #[must_use]
    pub fn covers(&self, end: u64) -> bool {
        Self::size_for(end) <= self.size()
    }

    /// Marks the pages that the `len` bytes at guest address `addr` are in. What was written to them before is seen by who
    /// finds the marks.
    ///
    /// # Panics
    /// When the log has no bits for them: that is to be known before.
    #[cold]
    pub fn mark(&self, addr: u64, len: u64) {
        let Some(more) = len.checked_sub(1) else { return };
        let last = addr.checked_add(more).filter(|last| last / LOG_BYTE < self.size());
        let last =
            last.unwrap_or_else(|| panic!("{len} bytes at {addr:#x} of a log of {} bytes", self.size()));
        let (first_page, last_page) = (addr / LOG_PAGE, last / LOG_PAGE);
        for byte in first_page / 8..=last_page / 8 {
            // Of the first byte the bits from the first page on, of the last one those up to the last page.
            let from = if byte == first_page / 8 { u8::MAX << (first_page % 8) } else { u8::MAX };
            // 7 less the page's bit.
            let to = if byte == last_page / 8 { u8::MAX >> (7 ^ (last_page % 8)) } else { u8::MAX };
            self.set(byte, from & to);
        }
    }

    /// Sets bits of a byte that the log has.
    fn set(&self, byte: u64, bits: u8) {
        let offset = usize::try_from(byte).expect("an offset in a mapping");
        // SAFETY: the byte is in the mapping: `mark` has compared the largest one with the mapping's size.
        let byte = unsafe { self.map.host_ptr().add(offset) };
        // SAFETY: mapped while `self` lives, and accessed by nothing here but atomic operations; the other process is outside
        // of Rust's memory model and takes bits away atomically by the specification.
        let byte = unsafe { AtomicU8::from_ptr(byte) };
        // Release: what was written comes before the bit.
        byte.fetch_or(bits, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::FileExt;

    use super::*;

    fn log(size: u64, file_bytes: u64, offset: u64) -> Result<(DirtyLog, File), RegionError> {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(file_bytes).expect("an empty file");
        let alarm = Alarm::new().expect("an fd is free");
        let log = DirtyLog::map(size, offset, file.try_clone().expect("an fd is free"), &alarm)?;
        Ok((log, file))
    }

    /// The pages whose bits are set, in a log of `size` bytes.
    fn pages(file: &File, size: usize, offset: u64) -> BTreeSet<u64> {
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, offset).expect("it is as long");
        let bits = bytes.iter().enumerate().flat_map(|(n, byte)| {
            (0..8).filter(move |bit| byte & (1 << bit) != 0).map(move |bit| 8 * n as u64 + bit)
        });
        bits.collect()
    }

    #[test]
    fn each_page_that_is_touched_is_marked_and_no_other() {
        for (addr, len, expected) in [
            (0, 0, vec![]),
            (0, 1, vec![0]),
            (4095, 1, vec![0]),
            (4095, 2, vec![0, 1]),
            (4096, 4096, vec![1]),
            (7 * 4096, 4097, vec![7, 8]),
            (6 * 4096 + 5, 10 * 4096, (6..=16).collect()),
            (8 * 4096, 16 * 4096, (8..24).collect()),
            (31 * 4096, 4096, vec![31]),
            (0, 32 * 4096, (0..32).collect()),
        ] {
            let (log, file) = log(4, 4096, 0).expect("a good log");
            log.mark(addr, len);
            let expected: BTreeSet<u64> = expected.into_iter().collect();
            assert_eq!(pages(&file, 4096, 0), expected, "{len} bytes at {addr:#x}");
        }
    }

    #[test]
    fn marks_of_others_stay() {
        let (log, file) = log(8, 8192, 4096).expect("a good log");
        file.write_all_at(&[0b1000_0001], 4096).expect("it is as long");
        log.mark(4096, 1);
        assert_eq!(pages(&file, 8, 4096), BTreeSet::from([0, 1, 7]));
        assert_eq!(pages(&file, 4096, 0), BTreeSet::new(), "the log begins at its offset");
    }

    #[test]
    fn threads_that_mark_pages_of_one_byte_lose_none() {
        let (log, file) = log(1, 4096, 0).expect("a good log");
        for _ in 0..200 {
            file.write_all_at(&[0], 0).expect("it is as long");
            std::thread::scope(|threads| {
                for page in 0..8 {
                    let log = &log;
                    threads.spawn(move || log.mark(page * 4096, 4096));
                }
            });
            assert_eq!(pages(&file, 1, 0), (0..8).collect());
        }
    }

    #[test]
    fn a_log_covers_what_it_has_bits_for() {
        let (log, _file) = log(2, 4096, 0).expect("a good log");
        assert!(
            log.covers(0) && log.covers(16 * 4096) && !log.covers(16 * 4096 + 1) && !log.covers(u64::MAX)
        );
        assert_eq!([1, 32768, 32769].map(DirtyLog::size_for), [1, 1, 2]);
    }

    #[test]
    #[should_panic(expected = "of a log of 2 bytes")]
    fn pages_without_bits_are_a_mistake_of_ours() {
        log(2, 4096, 0).expect("a good log").0.mark(16 * 4096 - 1, 2);
    }

    #[test]
    fn a_log_that_cannot_be_is_refused() {
        for (size, file, offset) in [
            (0, 4096, 0),
            (4097, 4096, 0),
            (1, 4096, 1),
            (1, 4096, 4096),
            (u64::MAX, 4096, 0),
            (4096, 8192, u64::MAX - 4095),
        ] {
            assert!(log(size, file, offset).is_err(), "{size} bytes at {offset} of {file}");
        }
    }
}
