//! A ring as it is described before it runs, and whether that can be (virtio 1.3, 2.7).
//!
//! A description is plain: addresses and numbers, of which none was believed yet. Its three areas have a size and an alignment
//! that follow from the number of descriptors; whether they are in the memory is seen when it starts.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use sluice_mem::guest::MemPin;
use sluice_mem::slice::GuestSlice;

use super::{avail_entry, used_element};
use crate::inflight::InflightFault;

/// The largest ring of the specification (virtio 1.3, 2.7).
pub const SIZE_MAX: u16 = 32768;

/// A ring as the front-end describes it. Addresses are the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RingSetup {
    /// How many descriptors; a power of two.
    pub size: u16,
    /// Where the descriptor table is.
    pub desc: u64,
    /// Where the driver area (available ring) is.
    pub avail: u64,
    /// Where the device area (used ring) is.
    pub used: u64,
    /// The index of the next available entry to take.
    pub next_avail: u16,
    /// RING_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// RING_INDIRECT_DESC was negotiated.
    pub indirect: bool,
    /// Chains are given back in the order in which they were made available, and whoever served the ring before has done so
    /// too: then it goes on at `used.idx`, whatever `next_avail` says.
    pub in_order: bool,
    /// What is written to the used ring is marked in the memory's log, if it has one, as if the ring began at this address.
    pub used_log: Option<u64>,
}

/// Why a ring cannot be started: the front-end's mistake.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SetupError {
    /// Not a size for a ring.
    #[error("a ring of {size} descriptors: 1 to {SIZE_MAX} and a power of two is possible")]
    Size {
        /// The size that was asked for.
        size: u32,
    },
    /// A part of the ring is not aligned as virtio asks (2.7), in the guest or within its region.
    #[error("the {part} at {addr:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// Which part.
        part: &'static str,
        /// Where it is.
        addr: u64,
        /// What its address must be a multiple of.
        align: u64,
    },
    /// What a front-end has kept of what was in flight cannot be.
    #[error(transparent)]
    Inflight(#[from] InflightFault),
    /// The used ring is to be marked where the log has no bits.
    #[error(
        "the used ring's {len} bytes are to be logged at {addr:#x}, past the end of a log of {size} bytes"
    )]
    Log {
        /// Where.
        addr: u64,
        /// How many bytes it has.
        len: usize,
        /// How many bytes the log has.
        size: u64,
    },
    /// A part of the ring is not, or not wholly, in one region of memory.
    #[error("the {part}, {len} bytes at {addr:#x}, is not in the memory table")]
    Unmapped {
        /// Which part.
        part: &'static str,
        /// Where it is.
        addr: u64,
        /// How many bytes it has.
        len: usize,
    },
}

/// Whether a ring can have so many descriptors.
///
/// # Errors
/// [`SetupError::Size`] when not.
pub fn check_size(size: u32) -> Result<u16, SetupError> {
    let small = u16::try_from(size).ok().filter(|n| *n <= SIZE_MAX && n.is_power_of_two());
    small.ok_or(SetupError::Size { size })
}

/// One of the three areas of memory that make a ring.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// What it is called.
    pub name: &'static str,
    /// How many bytes it has.
    pub len: usize,
    align: u64,
}

/// The descriptor table, the driver area and the device area of a ring (virtio 1.3, 2.7).
#[must_use]
pub fn parts(setup: &RingSetup) -> [Part; 3] {
    let n = usize::from(setup.size);
    let event = if setup.event_idx { 2 } else { 0 };
    [
        Part { name: "descriptor table", len: n.saturating_mul(16), align: 16 },
        Part { name: "available ring", len: avail_entry(n).saturating_add(event), align: 2 },
        Part { name: "used ring", len: used_element(n).saturating_add(event), align: 4 },
    ]
}

impl Part {
    /// Whether it may be at `addr`.
    ///
    /// # Errors
    /// [`SetupError::Misaligned`] when not.
    pub fn check_align(self, addr: u64) -> Result<(), SetupError> {
        let Self { name: part, align, .. } = self;
        if addr.is_multiple_of(align) { Ok(()) } else { Err(SetupError::Misaligned { part, addr, align }) }
    }

    pub(super) fn slice(self, pin: &MemPin, addr: u64) -> Result<GuestSlice, SetupError> {
        self.check_align(addr)?;
        let unmapped = SetupError::Unmapped { part: self.name, addr, len: self.len };
        let slice = pin.slice(addr, self.len).map_err(|_| unmapped)?;
        // Regions are mapped at pages, wherever they are in the guest: what is aligned there need not be so here.
        let region = pin.memory().regions().iter().rfind(|region| region.guest_addr() <= addr);
        match region.and_then(|region| addr.checked_sub(region.guest_addr())) {
            Some(offset) if offset.is_multiple_of(self.align) => Ok(slice),
            _ => Err(SetupError::Misaligned { part: self.name, addr, align: self.align }),
        }
    }
}
