//! The pieces of the guest's memory that a chain names, and how they are used up from the front.
//!
//! They are what descriptors say, not yet checked against the memory: that is done where a value is read out of them or
//! they become a bio's. Where one buffer ends and the next begins means nothing (virtio 1.3, 2.7.4), so a value may lie in
//! several; nearly always it does not.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use sluice_mem::guest::MemPin;
use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::desc::split::Descriptor;
use vm_memory::ByteValued;

use super::BlkStatus;

/// A piece of a chain's memory, of at least one byte.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buffer {
    pub(super) addr: u64,
    pub(super) len: u32,
    flags: u16,
}

impl Buffer {
    pub(super) const NONE: Self = Self { addr: 0, len: 0, flags: 0 };

    #[inline]
    pub(super) fn of(descriptor: Descriptor) -> Self {
        Self { addr: descriptor.addr().0, len: descriptor.len(), flags: descriptor.flags() }
    }

    #[inline]
    pub(super) fn is_writable(&self) -> bool {
        u32::from(self.flags) & VRING_DESC_F_WRITE != 0
    }

    /// The address of the last byte, unless that wraps.
    #[inline]
    pub(super) fn end(&self) -> Option<u64> {
        self.addr.checked_add(u64::from(self.len).checked_sub(1)?)
    }
}

/// The pieces of a chain's memory that go one way, in order, and are not used up.
#[derive(Debug)]
pub(super) struct Buffers<'a>(pub(super) &'a mut [Buffer]);

impl Buffers<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes, in numbers so wide that nothing wraps.
    #[inline]
    pub(super) fn bytes(&self) -> u64 {
        self.0.iter().map(|buffer| u64::from(buffer.len)).sum()
    }

    /// Drops the last byte, if there is one.
    #[inline(always)]
    pub(super) fn drop_last(&mut self) {
        match self.0.last_mut() {
            Some(last) if last.len > 1 => last.len = last.len.wrapping_sub(1),
            _ => {
                self.0.split_off_last_mut();
            }
        }
    }

    /// Takes a value from the front.
    #[inline(always)]
    pub(super) fn take_front<T: ByteValued>(&mut self, pin: &MemPin) -> Result<T, BlkStatus> {
        let size = size_of::<T>();
        if let [first, ..] = &*self.0
            && first.len as usize >= size
        {
            let value = pin.read_value(first.addr).map_err(|_| BlkStatus::IoErr)?;
            self.skip(size);
            return Ok(value);
        }
        self.take_pieces(pin)
    }

    /// Takes a value that is in several buffers.
    #[cold]
    fn take_pieces<T: ByteValued>(&mut self, pin: &MemPin) -> Result<T, BlkStatus> {
        let mut value = T::zeroed();
        let mut left = value.as_mut_slice();
        while !left.is_empty() {
            let first = *self.0.first().ok_or(BlkStatus::IoErr)?;
            let (now, later) = left.split_at_mut(left.len().min(first.len as usize));
            pin.read(first.addr, now).map_err(|_| BlkStatus::IoErr)?;
            self.skip(now.len());
            left = later;
        }
        Ok(value)
    }

    /// Drops the first bytes of the first buffer, which has so many.
    #[inline(always)]
    pub(super) fn skip(&mut self, bytes: usize) {
        match self.0.first_mut() {
            Some(first) if bytes < first.len as usize => {
                // No overflow: less than a u32, and less than the buffer has.
                first.len = first.len.wrapping_sub(u32::try_from(bytes).unwrap_or(u32::MAX));
                first.addr = first.addr.wrapping_add(bytes as u64);
            }
            _ => {
                self.0.split_off_first_mut();
            }
        }
    }
}
