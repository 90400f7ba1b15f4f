//! One front-end fd mapped: a contiguous range of guest memory.
//!
//! A front-end describes a region by numbers and an fd, and both may be wrong or hostile, so everything is checked
//! before the mapping is made: the arithmetic, the kind of the fd, and that the file is as long as the region
//! claims, since touching a mapping past its file's end is a SIGBUS. No Linux counterpart; the shape of the message
//! is that of `VHOST_USER_SET_MEM_TABLE` and `VHOST_USER_ADD_MEM_REG` in vhost-user.rst.

mod pin;

use std::fs::File;
use std::sync::Arc;

use crate::sigbus::{Alarm, Watch, page_size_of};
use rustix::fs::{FileType, fstat};
use vm_memory::{FileOffset, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

/// What a front-end says about a region (Linux: `struct vhost_memory_region`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionInfo {
    /// Where the guest sees it (guest physical address).
    pub guest_addr: u64,
    /// How many bytes it has.
    pub size: u64,
    /// Where the front-end sees it: ring addresses are given in these terms.
    pub user_addr: u64,
    /// Where in the fd it starts.
    pub mmap_offset: u64,
}

/// Why a region cannot be mapped. All of these are the front-end's mistake, but for the last.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// A region of no bytes.
    #[error("the region at guest address {guest_addr:#x} has size 0")]
    Empty {
        /// The region's guest address.
        guest_addr: u64,
    },
    /// An address or offset plus the size does not fit 64 bits.
    #[error("the region {0:x?} ends past the end of the address space")]
    Wraps(RegionInfo),
    /// The offset is not on a page boundary.
    #[error("offset {offset:#x} into the file is not on a page boundary")]
    Misaligned {
        /// The offset.
        offset: u64,
    },
    /// The fd is not one that can be mapped.
    #[error("the fd is a {kind}, not a file in memory or on disk")]
    NotAFile {
        /// What it is.
        kind: &'static str,
    },
    /// The file is shorter than the region claims.
    #[error("the region ends at {end:#x} in a file of {len:#x} bytes")]
    PastFile {
        /// Where the region ends in the file.
        end: u64,
        /// The file's length.
        len: u64,
    },
    /// Two regions share guest or user addresses.
    #[error("the region at guest address {guest_addr:#x} overlaps another one")]
    Overlaps {
        /// The second region's guest address.
        guest_addr: u64,
    },
    /// The kernel refused.
    #[error("cannot map the region at guest address {guest_addr:#x}")]
    Map {
        /// The region's guest address.
        guest_addr: u64,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// A mapped region. Unmapped when the last user is gone (nearest in Linux: `struct kvm_memory_slot`).
#[derive(Debug, Clone)]
pub struct Region {
    // Before the mapping: it is not watched any more when it is unmapped.
    watch: Option<Arc<Watch>>,
    map: Arc<MmapRegion>,
    guest_addr: u64,
    user_addr: u64,
    pinnable: bool,
}

impl Region {
    /// Checks what the front-end says and maps it, readable and writable and shared.
    ///
    /// # Errors
    /// Each kind of [`RegionError`] but [`RegionError::Overlaps`], which only [`GuestMem`](crate::guest::GuestMem)
    /// can see.
    pub fn map(info: RegionInfo, file: File) -> Result<Self, RegionError> {
        let guest_addr = info.guest_addr;
        check_numbers(info)?;
        check_file(info, &file)?;
        let size = usize::try_from(info.size).map_err(|_| RegionError::Wraps(info))?;
        let map = MmapRegion::from_file(FileOffset::new(file, info.mmap_offset), size)
            .map_err(|e| RegionError::Map { guest_addr, source: std::io::Error::other(e) })?;
        let pinnable = pin::is_pinnable(map.as_ptr());
        Ok(Self { watch: None, map: Arc::new(map), guest_addr, user_addr: info.user_addr, pinnable })
    }

    /// As [`Region::map`]; and `alarm` rings when the memory was taken away, if the process survives that
    /// ([`survive`](crate::sigbus::survive)).
    ///
    /// # Errors
    /// As [`Region::map`].
    pub fn map_watched(info: RegionInfo, file: File, alarm: &Arc<Alarm>) -> Result<Self, RegionError> {
        let page = page_size_of(&file);
        let region = Self::map(info, file)?;
        let watch = Watch::new(region.map.as_ptr(), region.map.size(), page, Arc::clone(alarm));
        Ok(Self { watch: Some(Arc::new(watch)), ..region })
    }

    /// What rings when the memory was taken away.
    #[must_use]
    pub fn alarm(&self) -> Option<&Arc<Alarm>> {
        self.watch.as_ref().map(|watch| watch.alarm())
    }

    /// The file behind it, and where in that it begins.
    #[must_use]
    pub fn file(&self) -> Option<(&File, u64)> {
        self.map.file_offset().map(|offset| (offset.file(), offset.start()))
    }

    /// A region that vm-memory has mapped already. Its user addresses are its guest addresses.
    #[must_use]
    pub fn from_mapped(region: &GuestRegionMmap) -> Self {
        let guest_addr = region.start_addr().0;
        let pinnable = pin::is_pinnable(region.as_ptr());
        Self { watch: None, map: region.get_mmap(), guest_addr, user_addr: guest_addr, pinnable }
    }

    /// The first guest address.
    #[must_use]
    pub fn guest_addr(&self) -> u64 {
        self.guest_addr
    }

    /// The first user address.
    #[must_use]
    pub fn user_addr(&self) -> u64 {
        self.user_addr
    }

    /// How many bytes it has; address plus size does not wrap.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.map.size() as u64
    }

    /// Whether the kernel can hold on to the memory, as direct I/O needs it to. It cannot where only the CPU can reach
    /// the memory, such as secret memory or a device's.
    #[must_use]
    pub fn is_pinnable(&self) -> bool {
        self.pinnable
    }

    /// Where it is mapped, `size` bytes, for as long as this value or a clone of it lives.
    #[must_use]
    pub fn host_ptr(&self) -> *mut u8 {
        self.map.as_ptr()
    }
}

fn check_numbers(info: RegionInfo) -> Result<(), RegionError> {
    if info.size == 0 {
        return Err(RegionError::Empty { guest_addr: info.guest_addr });
    }
    let fits = |start: u64| start.checked_add(info.size).is_some();
    if !(fits(info.guest_addr) && fits(info.user_addr) && fits(info.mmap_offset)) {
        return Err(RegionError::Wraps(info));
    }
    // The system's page size, a property of the mapping; may be larger than PAGE_SIZE.
    if !info.mmap_offset.is_multiple_of(rustix::param::page_size() as u64) {
        return Err(RegionError::Misaligned { offset: info.mmap_offset });
    }
    Ok(())
}

fn check_file(info: RegionInfo, file: &File) -> Result<(), RegionError> {
    let stat = fstat(file).map_err(|e| RegionError::Map { guest_addr: info.guest_addr, source: e.into() })?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Fifo => return Err(RegionError::NotAFile { kind: "pipe" }),
        FileType::Socket => return Err(RegionError::NotAFile { kind: "socket" }),
        FileType::CharacterDevice => return Err(RegionError::NotAFile { kind: "character device" }),
        FileType::BlockDevice => return Err(RegionError::NotAFile { kind: "block device" }),
        FileType::Directory => return Err(RegionError::NotAFile { kind: "directory" }),
        _ => return Err(RegionError::NotAFile { kind: "event fd or the like" }),
    }
    let end = info.mmap_offset + info.size;
    let len = u64::try_from(stat.st_size).unwrap_or(0);
    if end > len {
        return Err(RegionError::PastFile { end, len });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
