//! The buffers of one request at a time: header, data and status, each in one piece and at the same place each time.
//!
//! For tests that make chains themselves, because nobody may have served the ring yet, or whoever does may die: what was
//! offered stays where it is. Requests that are to lie in any way are laid out by [`crate::shape`].

use crate::driver::{Chain, Desc};
use crate::memory::GuestMemory;
use crate::request::{HEADER, Request};
use crate::shape::NO_STATUS;

/// Where the buffers are.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Of the header.
    pub header: u64,
    /// Of the data, either way.
    pub data: u64,
    /// Of the status byte.
    pub status: u64,
}

impl Slot {
    /// Buffers for up to `bytes` of data, which begin at a multiple of `align`.
    pub fn new(memory: &GuestMemory, bytes: usize, align: usize) -> Self {
        Self {
            header: memory.alloc(HEADER, HEADER),
            data: memory.alloc(bytes, align),
            status: memory.alloc(1, 1),
        }
    }

    /// Writes what the device is to read, and no status. Returns the chain of these buffers: of as much data as the request has.
    ///
    /// # Panics
    /// If the data is too long for a descriptor.
    pub fn lay_out(&self, memory: &GuestMemory, request: &Request) -> Chain {
        memory.write(self.header, &request.header());
        memory.write(self.data, &request.out);
        memory.write(self.status, &[NO_STATUS]);
        let desc = |addr, len, writable| Desc {
            addr,
            len: u32::try_from(len).expect("it fits a descriptor"),
            writable,
        };
        let parts = [
            desc(self.header, HEADER, false),
            desc(self.data, request.out.len(), false),
            desc(self.data, request.room, true),
            desc(self.status, 1, true),
        ];
        Chain { direct: parts.into_iter().filter(|part| part.len > 0).collect(), indirect: vec![] }
    }

    /// What the device has answered.
    pub fn answer(&self, memory: &GuestMemory) -> u8 {
        memory.read(self.status, 1)[0]
    }
}
