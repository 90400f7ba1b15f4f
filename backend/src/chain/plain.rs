//! The chain that nearly all requests are: a header, one buffer and a status byte, each a descriptor of its own.
//!
//! ```text
//! header (16 bytes) | data, all one way | status (1 byte)         in the ring, or in an indirect table of just these
//! ```
//!
//! It takes a few comparisons to see one, and then its parts need not be looked for. Whatever is not exactly this, or is
//! wrong in any way, is none, and is read again from its head with nothing kept of what was read here: what is good about a
//! chain is seen here, what is bad about it there.

use sluice_mem::guest::MemPin;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;

use super::Header;
use super::buffers::Buffer;
use super::walk::DESCRIPTOR_BYTES;
use crate::vring::Vring;

/// The parts of a plain chain.
#[derive(Debug)]
pub(super) struct Plain {
    /// The address of the header.
    pub(super) header: u64,
    /// Not empty.
    pub(super) data: Buffer,
    /// The address of the status byte.
    pub(super) status: u64,
}

impl Plain {
    /// How many descriptors it has, without one that refers to a table of them.
    pub(super) const DESCRIPTORS: u32 = 3;

    /// The chain at `head`, if it is plain.
    #[inline(always)]
    pub(super) fn read(vring: &Vring, head: u16, pin: &MemPin) -> Option<Self> {
        let first = vring.descriptor(head)?;
        if flags(first) != VRING_DESC_F_INDIRECT {
            return Self::from(first, |index| vring.descriptor(index));
        }
        if !vring.has_indirect() || first.len() != Self::DESCRIPTORS * DESCRIPTOR_BYTES {
            return None;
        }
        let table = pin.slice(first.addr().0, first.len() as usize).ok()?;
        let descriptor = |index| table.try_read(usize::from(index).wrapping_mul(DESCRIPTOR_BYTES as usize));
        Self::from(descriptor(0)?, descriptor)
    }

    /// The chain that begins with `header` and goes on in the table that `descriptor` reads.
    #[inline(always)]
    fn from(header: Descriptor, descriptor: impl Fn(u16) -> Option<Descriptor>) -> Option<Self> {
        if flags(header) != VRING_DESC_F_NEXT || header.len() as usize != size_of::<Header>() {
            return None;
        }
        let data = descriptor(header.next())?;
        if flags(data) & !VRING_DESC_F_WRITE != VRING_DESC_F_NEXT || data.len() == 0 {
            return None;
        }
        let status = descriptor(data.next())?;
        if flags(status) != VRING_DESC_F_WRITE || status.len() != 1 {
            return None;
        }
        Some(Self { header: header.addr().0, data: Buffer::of(data), status: status.addr().0 })
    }
}

fn flags(descriptor: Descriptor) -> u32 {
    descriptor.flags().into()
}
