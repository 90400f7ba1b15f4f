//! From a descriptor chain to a bio chain: the trust boundary.
//!
//! A chain is guest input: each descriptor, the header and each segment of a discard is read once, copied out and
//! checked here, so that past this module a bio is legal by construction.
//!
//! ```text
//! header (16 bytes, device-readable) | data ... | status (1 byte, device-writable)
//! ```
//!
//! Framing is free (virtio 1.3, 2.7.4): the header is the first 16 readable bytes and the status is the last writable
//! byte, wherever descriptors begin and end. A chain in which no status byte can be found cannot be answered and is a
//! [`RingFault`]; whatever else is wrong is answered with a status.
//!
//! What every request comes through is always inlined, here and in the lists and pools that it uses: the compiler takes
//! it for too large, and each call would cost more than what is in it (`scripts/instructions.sh` counts that).
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod buffers;
mod builder;
mod plain;
mod segments;
mod walk;

use sluice_blk::bio::{Bio, BioChain, Op};
use sluice_blk::queue::{PassthroughCommand, RequestQueue};
use sluice_blk::sector::{DiskRange, Sector};
use sluice_mem::guest::MemPin;
use sluice_mem::slice::GuestSlice;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use self::buffers::{Buffer, Buffers};
use self::builder::Builder;
use self::plain::Plain;
use self::walk::{INDIRECT_MAX, Walk};
use crate::config::DiskConfig;
use crate::vring::{RingFault, Vring};

/// Type, reserved, and the two halves of the sector (virtio 1.3, 5.2.6), all little-endian.
type Header = [u32; 4];

/// A request's status byte (virtio 1.3, 5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(clippy::cast_possible_truncation, reason = "the constants are small")]
pub enum BlkStatus {
    /// Done.
    Ok = VIRTIO_BLK_S_OK as u8,
    /// Failed.
    IoErr = VIRTIO_BLK_S_IOERR as u8,
    /// Not known here.
    Unsupp = VIRTIO_BLK_S_UNSUPP as u8,
}

/// What a chain asks for.
#[derive(Debug)]
pub struct ParsedChain {
    /// Where the answer goes: one byte.
    pub status: GuestSlice,
    /// What to do.
    pub action: Action,
}

/// What a chain moves, and nothing else is to be done about it.
#[derive(Debug)]
pub struct Transfer {
    /// Where the answer goes: one byte.
    pub status: GuestSlice,
    /// To be submitted.
    pub bio: Box<Bio>,
}

/// What to do about a chain.
#[derive(Debug)]
pub enum Action {
    /// Submit these bios.
    Submit(BioChain),
    /// Make a pass-through request of these bios for this command.
    Passthrough(BioChain, PassthroughCommand),
    /// Answer at once.
    Answer(BlkStatus),
}

/// Reads chains. Holds the memory that takes, so that none is allocated per chain.
#[derive(Debug)]
pub struct ChainParser {
    buffers: Vec<Buffer>,
    /// Descriptors that were read in all.
    cost: u64,
}

impl ChainParser {
    /// A parser for chains of a ring of `size` descriptors.
    #[must_use]
    pub fn new(size: u16) -> Self {
        let most = usize::from(size).saturating_add(INDIRECT_MAX as usize);
        Self { buffers: vec![Buffer::NONE; most], cost: 0 }
    }

    /// Reads the chain at `head` and builds the bios it asks for, out of `queue`'s.
    ///
    /// # Errors
    /// [`RingFault`] when the chain cannot be answered.
    #[inline]
    pub fn parse(
        &mut self,
        vring: &Vring,
        head: u16,
        pin: &MemPin,
        config: &DiskConfig,
        queue: &mut RequestQueue,
    ) -> Result<ParsedChain, RingFault> {
        let mut builder = Builder { pin, config, queue };
        let walk = self.walk(vring, head, pin)?;
        let status = self.status(walk, head, pin)?;
        let action = self.interpret(walk, &mut builder).unwrap_or_else(Action::Answer);
        Ok(ParsedChain { status, action })
    }

    /// What the chain at `head` moves, if it is what nearly all are: a read or a write with nothing wrong, of one
    /// buffer in one region of memory. Else nothing was done, and [`ChainParser::parse`] is to be asked.
    #[inline(always)]
    pub fn transfer(
        &mut self,
        vring: &Vring,
        head: u16,
        pin: &MemPin,
        config: &DiskConfig,
        queue: &mut RequestQueue,
    ) -> Option<Transfer> {
        let Plain { header, data, status } = Plain::read(vring, head, pin)?;
        // Drivers keep a header and its status together, and have few regions.
        let near = pin.near(header)?;
        let (kind, sector) = interpret(near.read_value(header)?);
        let op = match (kind, data.is_writable()) {
            (VIRTIO_BLK_T_IN, true) => Op::Read,
            (VIRTIO_BLK_T_OUT, false) if !config.is_read_only() => {
                Op::Write { fua: config.is_writethrough() }
            }
            _ => return None,
        };
        let block = queue.limits().logical_block_size;
        let range = DiskRange::new(sector, data.len.into(), config.capacity(), block).ok()?;
        let status = near.slice(status, 1).ok()?;
        let mut bio = queue.bios().try_take(op, range)?;
        if !bio.sg.map_one(&near, data.addr, data.len as usize) {
            queue.bios().put(bio);
            return None;
        }
        self.cost = self.cost.wrapping_add(Plain::DESCRIPTORS.into());
        Some(Transfer { status, bio })
    }

    /// How many descriptors were read in all: what the chains so far have cost.
    #[must_use]
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// What the chain asks for.
    fn interpret(&mut self, walk: Walk, builder: &mut Builder<'_>) -> Result<Action, BlkStatus> {
        if walk.disorder {
            return Err(BlkStatus::IoErr);
        }
        let (readable, writable) =
            self.buffers.get_mut(..walk.descriptors).unwrap_or_default().split_at_mut(walk.readable);
        let (mut readable, mut writable) = (Buffers(readable), Buffers(writable));
        // The status byte is not data.
        writable.drop_last();
        let (kind, sector) = interpret(readable.take_front(builder.pin)?);
        let (op, data, other) = match kind {
            VIRTIO_BLK_T_IN => (Op::Read, writable, readable),
            VIRTIO_BLK_T_OUT => (Op::Write { fua: builder.config.is_writethrough() }, readable, writable),
            _ => return builder.other(kind, readable, writable),
        };
        builder.transfer(op, sector, data, &other)
    }
}

/// The type and the sector that a header names.
#[inline]
fn interpret(header: Header) -> (u32, Sector) {
    let [kind, _, low, high] = header.map(u32::from_le);
    (kind, Sector(u64::from(low) | u64::from(high) << 32))
}

#[cfg(test)]
mod tests;
