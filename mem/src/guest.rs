//! All memory of a guest: an immutable snapshot of its regions, and the way from addresses to memory.
//!
//! A change of the memory table makes a new snapshot; whatever is in flight keeps the old one mapped through its
//! [`MemPin`]. Lookups are checked: a range that is not wholly backed by regions is an error, and nothing of it is
//! touched. Ranges over adjacent regions are several pieces. No Linux counterpart in the block layer (KVM's
//! memslots are the nearest).
//!
//! ```
//! use std::sync::Arc;
//! use sluice_mem::{guest::{GuestMem, MemPin}, region::{Region, RegionInfo}};
//!
//! let region = |guest_addr| {
//!     let file = tempfile::tempfile()?;
//!     file.set_len(4096)?;
//!     let info = RegionInfo { guest_addr, size: 4096, user_addr: guest_addr, mmap_offset: 0 };
//!     Ok::<_, Box<dyn std::error::Error>>(Region::map(info, file)?)
//! };
//! let pin = MemPin::new(Arc::new(GuestMem::new(vec![region(0x1000)?, region(0x2000)?])?));
//! pin.slice(0x1ff8, 8)?.write(0, 7_u64);
//! let mut bytes = [0; 16];
//! pin.read(0x1ff8, &mut bytes)?;
//! assert_eq!(bytes[0], 7, "over two regions");
//! assert!(pin.read(0x2ff8, &mut bytes).is_err(), "and not past the last");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]
#![expect(unsafe_code, reason = "turns checked addresses into pointers into mapped regions")]

use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use vm_memory::{ByteValued, GuestMemoryBackend, GuestMemoryMmap};

use crate::dirty::DirtyLog;
use crate::region::{Region, RegionError};
use crate::sglist::IoVec;
use crate::sigbus::Alarm;
use crate::slice::GuestSlice;

/// An address is not, or not wholly, in any region: the guest's or the front-end's mistake.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[error("{len} bytes at {addr:#x} are not in the guest's memory")]
pub struct BadAddress {
    /// Where the range starts.
    pub addr: u64,
    /// How many bytes it has.
    pub len: u64,
}

/// A guest's memory: regions sorted by guest address, none overlapping another (Linux: `struct vhost_iotlb`, and
/// `struct kvm_memslots`).
#[derive(Debug, Clone, Default)]
pub struct GuestMem {
    regions: Vec<Region>,
    alarm: Option<Arc<Alarm>>,
    log: Option<Arc<DirtyLog>>,
}

impl GuestMem {
    /// The memory made of `regions`, in any order.
    ///
    /// # Errors
    /// [`RegionError::Overlaps`] when two share guest addresses or user addresses.
    pub fn new(mut regions: Vec<Region>) -> Result<Self, RegionError> {
        check_overlap(&mut regions, Region::user_addr)?;
        check_overlap(&mut regions, Region::guest_addr)?;
        let alarm = regions.iter().find_map(Region::alarm).cloned();
        Ok(Self { regions, alarm, log: None })
    }

    /// The memory that vm-memory has mapped. User addresses are guest addresses.
    #[must_use]
    pub fn from_vm_memory(memory: &GuestMemoryMmap) -> Self {
        // vm-memory keeps its regions sorted and disjoint.
        let regions = memory.iter().map(Region::from_mapped).collect();
        Self { regions, alarm: None, log: None }
    }

    /// Whether some of it was taken away: what is read from it may not be the guest's. Of one alarm for all regions.
    #[must_use]
    #[inline]
    pub fn is_lost(&self) -> bool {
        self.alarm.as_ref().is_some_and(|alarm| alarm.has_rung())
    }

    /// The regions, by ascending guest address.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The same memory, of which what is written is marked in `log` from now on, or not any more.
    ///
    /// # Panics
    /// When the log does not cover it.
    #[must_use]
    pub fn with_log(self, log: Option<Arc<DirtyLog>>) -> Self {
        assert!(
            log.as_ref().is_none_or(|log| log.covers(self.end())),
            "a log has bits for all of the memory"
        );
        Self { log, ..self }
    }

    /// Where it is marked what was written; none while nobody wants to know.
    #[must_use]
    #[inline]
    pub fn log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref()
    }

    /// The guest address after the last one; 0 of no memory.
    #[must_use]
    pub fn end(&self) -> u64 {
        // Does not wrap: checked when the region was mapped.
        self.regions.last().map_or(0, |last| last.guest_addr().saturating_add(last.size()))
    }

    /// Marks what was written where it is mapped: `len` bytes at `ptr`, in one region or in several that are mapped one after
    /// another. The one place that all writes but those to used rings come by.
    #[cold]
    pub(crate) fn mark(&self, ptr: *const u8, len: usize) {
        let Some(log) = &self.log else { return };
        let (start, len) = (ptr.addr() as u64, len as u64);
        for region in &self.regions {
            // A mapping does not wrap.
            let at = region.host_ptr().addr() as u64;
            let (from, to) = (start.max(at), start.saturating_add(len).min(at.saturating_add(region.size())));
            if let Some(count) = to.checked_sub(from).filter(|count| *count > 0) {
                log.mark(region.guest_addr().saturating_add(from.saturating_sub(at)), count);
            }
        }
    }

    /// Marks all of it, if it has a log: somebody else has written to it, and nobody knows where.
    pub fn mark_all(&self) {
        let Some(log) = &self.log else { return };
        self.regions.iter().for_each(|region| log.mark(region.guest_addr(), region.size()));
    }

    /// The guest address of a user address, if `len` bytes from there are in one region.
    #[must_use]
    pub fn user_to_guest(&self, user_addr: u64, len: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let offset = user_addr.checked_sub(region.user_addr())?;
            let is_inside = offset.checked_add(len)? <= region.size();
            is_inside.then(|| region.guest_addr().checked_add(offset)).flatten()
        })
    }

    /// The region that `addr` is in, and the bytes from there to the region's end.
    #[inline]
    fn find(&self, addr: u64) -> Option<(&Region, u64)> {
        // The last region that starts at or before `addr`.
        let after = self.regions.partition_point(|region| region.guest_addr() <= addr);
        let region = self.regions.get(after.checked_sub(1)?)?;
        let left = region.size().checked_sub(addr.checked_sub(region.guest_addr())?)?;
        (left > 0).then_some((region, left))
    }

    /// The memory at `addr`: as much of `len` bytes (at least one) as is contiguous, and whether it can be pinned.
    ///
    /// # Errors
    /// [`BadAddress`] when `addr` is in no region.
    #[inline]
    pub(crate) fn piece(&self, addr: u64, len: usize) -> Result<(IoVec, bool), BadAddress> {
        let (region, room) = self.find(addr).ok_or(BadAddress { addr, len: len as u64 })?;
        let take = len.min(usize::try_from(room).unwrap_or(usize::MAX));
        Ok((IoVec::new(self.pointer(region, addr), take), region.is_pinnable()))
    }

    /// The pointer of a guest address that `find` has found in `region`.
    #[inline]
    fn pointer(&self, region: &Region, addr: u64) -> NonNull<u8> {
        let offset = addr.checked_sub(region.guest_addr()).and_then(|offset| usize::try_from(offset).ok());
        let offset = offset.expect("an address in a region, which fits the address space");
        // SAFETY: `addr` is in the region (`find`), so the offset is inside its mapping.
        let ptr = unsafe { region.host_ptr().add(offset) };
        NonNull::new(ptr).expect("a mapping is not at address 0")
    }
}

/// Keeps a snapshot of a guest's memory mapped.
///
/// Made once per memory table and thread; cloning counts without atomics, so that each I/O can hold one. (Linux: the
/// `srcu_read_lock` under which KVM uses its memslots; a vhost device stops instead.)
#[derive(Debug, Clone)]
#[expect(clippy::redundant_allocation, reason = "the inner count is shared by threads, the outer one is not")]
pub struct MemPin(Rc<Arc<GuestMem>>);

impl MemPin {
    /// Pins `memory` on this thread.
    #[must_use]
    pub fn new(memory: Arc<GuestMem>) -> Self {
        Self(Rc::new(memory))
    }

    /// The memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMem {
        &self.0
    }

    /// The place at `addr`, which is in a region.
    #[must_use]
    #[inline(always)]
    pub fn near(&self, addr: u64) -> Option<Near<'_>> {
        let (region, _) = self.memory().find(addr)?;
        Some(Near { pin: self, region })
    }

    /// `len` bytes at `addr`, within one region.
    ///
    /// # Errors
    /// [`BadAddress`] when they are in none, or not in one.
    #[inline]
    pub fn slice(&self, addr: u64, len: usize) -> Result<GuestSlice, BadAddress> {
        let bad = BadAddress { addr, len: len as u64 };
        let (region, room) = self.memory().find(addr).ok_or(bad)?;
        if room < len as u64 {
            return Err(bad);
        }
        let ptr = self.memory().pointer(region, addr);
        // SAFETY: the range is in one region of this memory (`find` and the check of `room`).
        Ok(unsafe { GuestSlice::new(ptr, len, self.clone()) })
    }

    /// Copies out the bytes at `addr`, which may span regions.
    ///
    /// # Errors
    /// [`BadAddress`]; then part of `bytes` may have been written.
    pub fn read(&self, addr: u64, bytes: &mut [u8]) -> Result<(), BadAddress> {
        let bad = BadAddress { addr, len: bytes.len() as u64 };
        let (mut at, mut left) = (addr, bytes);
        while !left.is_empty() {
            let (piece, _) = self.memory().piece(at, left.len())?;
            let (now, later) = left.split_at_mut(piece.len());
            piece.copy_out(now);
            left = later;
            at = at.checked_add(piece.len() as u64).ok_or(bad)?;
        }
        Ok(())
    }

    /// Copies out a value, once; it may be torn if the guest writes meanwhile, and may span regions.
    ///
    /// # Errors
    /// [`BadAddress`].
    #[inline]
    pub fn read_value<T: ByteValued>(&self, addr: u64) -> Result<T, BadAddress> {
        let mut value = T::zeroed();
        let (piece, _) = self.memory().piece(addr, size_of::<T>())?;
        if piece.len() == size_of::<T>() {
            piece.copy_out(value.as_mut_slice());
        } else {
            self.read(addr, value.as_mut_slice())?;
        }
        Ok(value)
    }

    /// Whether both pin the same snapshot.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

/// A place in a guest's memory: what is asked for near it is likely to be in the same region, which is looked at first.
#[derive(Debug, Clone, Copy)]
pub struct Near<'a> {
    pin: &'a MemPin,
    region: &'a Region,
}

impl<'a> Near<'a> {
    /// As [`GuestMem::find`].
    #[inline(always)]
    fn find(&self, addr: u64) -> Option<(&'a Region, u64)> {
        // What is before the region is past its end, too, as numbers wrap.
        match self.region.size().checked_sub(addr.wrapping_sub(self.region.guest_addr())) {
            Some(left) if left > 0 => Some((self.region, left)),
            _ => self.pin.memory().find(addr),
        }
    }

    /// As [`MemPin::slice`].
    ///
    /// # Errors
    /// As there.
    #[inline(always)]
    pub fn slice(&self, addr: u64, len: usize) -> Result<GuestSlice, BadAddress> {
        let bad = BadAddress { addr, len: len as u64 };
        let (region, room) = self.find(addr).ok_or(bad)?;
        if room < len as u64 {
            return Err(bad);
        }
        let ptr = self.pin.memory().pointer(region, addr);
        // SAFETY: the range is in one region of this memory (`find` and the check of `room`).
        Ok(unsafe { GuestSlice::new(ptr, len, self.pin.clone()) })
    }

    /// As [`MemPin::read_value`] of a value that is in one region; `None` where it is not.
    #[must_use]
    #[inline(always)]
    pub fn read_value<T: ByteValued>(&self, addr: u64) -> Option<T> {
        let mut value = T::zeroed();
        let (piece, _) = self.piece(addr, size_of::<T>())?;
        piece.copy_out(value.as_mut_slice());
        Some(value)
    }

    /// The `len` bytes at `addr`, if they are in one region, and whether they can be pinned.
    #[inline(always)]
    pub(crate) fn piece(&self, addr: u64, len: usize) -> Option<(IoVec, bool)> {
        let (region, room) = self.find(addr)?;
        let is_in_one = room >= len as u64;
        is_in_one.then(|| (IoVec::new(self.pin.memory().pointer(region, addr), len), region.is_pinnable()))
    }

    /// What keeps the memory mapped.
    #[inline(always)]
    pub(crate) fn pin(&self) -> &'a MemPin {
        self.pin
    }
}

/// Sorts by the start that `start` gives and checks that no region reaches into the next.
fn check_overlap(regions: &mut [Region], start: impl Fn(&Region) -> u64) -> Result<(), RegionError> {
    regions.sort_by_key(&start);
    for pair in regions.windows(2) {
        let [one, next] = pair else { continue };
        // Does not wrap: checked when the region was mapped.
        if start(one).checked_add(one.size()).is_none_or(|end| end > start(next)) {
            return Err(RegionError::Overlaps { guest_addr: next.guest_addr() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
