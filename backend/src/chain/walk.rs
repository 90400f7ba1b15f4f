//! From a head to the buffers of its chain, in the ring and in an indirect table (virtio 1.3, 2.7.5).
//!
//! A walk ends: at the last descriptor, or with a [`RingFault`] when the chain is longer than what it is in, leads out of it,
//! or has a table where there may be none. Each descriptor is copied out once. Buffers without bytes, which mean nothing, are
//! no part of what is found; a chain without a status byte is a fault, as nothing could be answered.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use sluice_mem::guest::MemPin;
use sluice_mem::slice::GuestSlice;
use virtio_queue::desc::split::Descriptor;

use super::ChainParser;
use super::buffers::Buffer;
use crate::config::DiskConfig;
use crate::vring::{RingFault, Vring};

/// Bytes of a descriptor (virtio 1.3, 2.7.5).
pub(super) const DESCRIPTOR_BYTES: u32 = 16;

/// The most descriptors in an indirect table: the segments that are advertised, header and status.
pub(super) const INDIRECT_MAX: u32 = DiskConfig::SEG_MAX + 2;

/// What a chain consists of.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Walk {
    /// How many descriptors were read, those of an indirect table included: each has a place among the buffers, but the
    /// one that refers to the table.
    pub(super) descriptors: usize,
    /// How many of them are readable. They are the first, unless there is disorder.
    pub(super) readable: usize,
    /// A readable descriptor came after a writable one.
    pub(super) disorder: bool,
    /// A descriptor has no bytes.
    has_empty: bool,
    /// A readable descriptor has no bytes: seen to only where one has none.
    has_empty_readable: bool,
}

impl Walk {
    /// Adds a descriptor, whose buffer goes to `place`.
    #[inline(always)]
    fn add(&mut self, descriptor: Descriptor, place: &mut Buffer) {
        *place = Buffer::of(descriptor);
        self.count(*place);
    }

    #[inline(always)]
    fn count(&mut self, buffer: Buffer) {
        let readable = !buffer.is_writable();
        self.disorder |= readable && self.readable != self.descriptors;
        self.readable = self.readable.wrapping_add(usize::from(readable));
        self.descriptors = self.descriptors.wrapping_add(1);
        self.has_empty |= buffer.len == 0;
    }

    /// The same chain without the buffers that have no bytes, of which `buffers` is rid too.
    #[cold]
    fn without_empty(self, buffers: &mut [Buffer]) -> Self {
        let mut walk = Self::default();
        for at in 0..self.descriptors {
            let Some(buffer) = buffers.get(at).copied() else { break };
            if buffer.len == 0 {
                walk.has_empty_readable |= !buffer.is_writable();
            } else if let Some(place) = buffers.get_mut(walk.descriptors) {
                *place = buffer;
                walk.count(buffer);
            }
        }
        walk
    }
}

impl ChainParser {
    /// Walks the chain and lists its buffers.
    #[inline(never)] // A loop of few values: they fit the registers where there is nothing else.
    pub(super) fn walk(&mut self, vring: &Vring, head: u16, pin: &MemPin) -> Result<Walk, RingFault> {
        let fault = |reason| RingFault::Chain { head, reason };
        let mut walk = Walk::default();
        let mut index = head;
        // A chain that is longer than its ring is a loop.
        for place in self.buffers.iter_mut().take(vring.size().into()) {
            let Some(descriptor) = vring.descriptor(index) else {
                return Err(fault("leads to a descriptor past the end of the table"));
            };
            if descriptor.refers_to_indirect_table() {
                if !vring.has_indirect() {
                    return Err(fault("has an indirect descriptor, which was not negotiated"));
                }
                if descriptor.has_next() {
                    return Err(fault("goes on after an indirect descriptor"));
                }
                return self.walk_indirect(walk, descriptor, head, pin);
            }
            walk.add(descriptor, place);
            if !descriptor.has_next() {
                return Ok(self.walked(walk));
            }
            index = descriptor.next();
        }
        Err(fault("is longer than the ring"))
    }

    fn walk_indirect(
        &mut self,
        mut walk: Walk,
        table: Descriptor,
        head: u16,
        pin: &MemPin,
    ) -> Result<Walk, RingFault> {
        let fault = |reason| RingFault::Chain { head, reason };
        let (addr, len) = (table.addr().0, table.len());
        if len == 0 || !len.is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(fault("has an indirect table that is not whole descriptors"));
        }
        let count = len / DESCRIPTOR_BYTES;
        if count > INDIRECT_MAX {
            return Err(fault("has an indirect table with more descriptors than were advertised"));
        }
        let in_one_region = pin.slice(addr, len as usize).ok();
        let places = self.buffers.get_mut(walk.descriptors..).unwrap_or_default();
        let mut index = 0;
        for place in places.iter_mut().take(count as usize) {
            let descriptor = match &in_one_region {
                Some(table) => table.read(DESCRIPTOR_BYTES.wrapping_mul(index) as usize),
                None => indirect_descriptor(addr, index, pin)
                    .ok_or_else(|| fault("has an indirect table outside of the guest's memory"))?,
            };
            if descriptor.refers_to_indirect_table() {
                return Err(fault("has an indirect descriptor in an indirect table"));
            }
            walk.add(descriptor, place);
            if !descriptor.has_next() {
                return Ok(self.walked(walk));
            }
            index = u32::from(descriptor.next());
            if index >= count {
                return Err(fault("leads to a descriptor past the end of its indirect table"));
            }
        }
        Err(fault("is longer than its indirect table"))
    }

    /// The whole chain was walked.
    #[inline(always)]
    fn walked(&mut self, walk: Walk) -> Walk {
        self.cost = self.cost.wrapping_add(walk.descriptors as u64);
        if walk.has_empty { walk.without_empty(&mut self.buffers) } else { walk }
    }

    /// Where the last writable byte is.
    #[inline(always)]
    pub(super) fn status(&self, walk: Walk, head: u16, pin: &MemPin) -> Result<GuestSlice, RingFault> {
        let fault = |reason| RingFault::Chain { head, reason };
        if walk.readable == 0 && !walk.has_empty_readable {
            return Err(fault("has no readable header"));
        }
        let Some(last) = self
            .buffers
            .get(..walk.descriptors)
            .unwrap_or_default()
            .iter()
            .rfind(|buffer| buffer.is_writable())
        else {
            return Err(fault("has no writable status byte"));
        };
        let status = last.end().and_then(|addr| pin.slice(addr, 1).ok());
        status.ok_or_else(|| fault("has a status byte outside of the guest's memory"))
    }
}

/// A copy of a descriptor of an indirect table that lies across regions of memory.
#[cold]
fn indirect_descriptor(table: u64, index: u32, pin: &MemPin) -> Option<Descriptor> {
    let addr = table.checked_add(u64::from(DESCRIPTOR_BYTES).wrapping_mul(u64::from(index)))?;
    pin.read_value(addr).ok()
}
