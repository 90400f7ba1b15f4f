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

mod segments;

use sluice_blk::bio::{BioChain, BioSet, Op};
use sluice_blk::queue::{PassthroughCommand, RequestQueue};
use sluice_blk::sector::{DiskRange, Sector};
use sluice_mem::guest::MemPin;
use sluice_mem::slice::GuestSlice;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_SECURE_ERASE,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::ByteValued;

use crate::config::DiskConfig;
use crate::vring::{RingFault, Vring};

/// Bytes of a request's header: type, reserved, sector (virtio 1.3, 5.2.6).
const HEADER_BYTES: usize = 16;

/// The type of a request for how worn the disk is (virtio 1.3, 5.2.6).
const VIRTIO_BLK_T_GET_LIFETIME: u32 = 10;

/// Bytes of a descriptor (virtio 1.3, 2.7.5).
const DESCRIPTOR_BYTES: u32 = 16;

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

/// A piece of a chain's memory.
#[derive(Debug, Clone, Copy)]
struct Buffer {
    addr: u64,
    len: usize,
}

/// The pieces of a chain that go one way, in order. Those before `start` are used up.
#[derive(Debug)]
struct Buffers {
    list: Vec<Buffer>,
    start: usize,
}

impl Buffers {
    /// None, with room for `most`.
    fn with_capacity(most: usize) -> Self {
        Self { list: Vec::with_capacity(most), start: 0 }
    }

    fn clear(&mut self) {
        self.list.clear();
        self.start = 0;
    }

    fn as_slice(&self) -> &[Buffer] {
        &self.list[self.start..]
    }

    fn is_empty(&self) -> bool {
        self.start == self.list.len()
    }

    /// How many bytes, in numbers so wide that nothing wraps.
    fn bytes(&self) -> u64 {
        self.as_slice().iter().map(|buffer| buffer.len as u64).sum()
    }

    /// Takes the last byte: its address, unless that wraps. `None` when there is no byte.
    #[inline]
    fn take_last(&mut self) -> Option<Option<u64>> {
        let last = self.list.last_mut()?;
        last.len -= 1;
        let addr = last.addr.checked_add(last.len as u64);
        if last.len == 0 {
            self.list.pop();
        }
        Some(addr)
    }

    /// Takes a value from the front.
    fn take_front<T: ByteValued>(&mut self, pin: &MemPin) -> Result<T, BlkStatus> {
        let size = size_of::<T>();
        if let [first, ..] = self.as_slice()
            && first.len >= size
        {
            let value = pin.read_value(first.addr).map_err(|_| BlkStatus::IoErr)?;
            self.skip(size);
            return Ok(value);
        }
        let mut value = T::zeroed();
        let mut left = value.as_mut_slice();
        while !left.is_empty() {
            let first = *self.as_slice().first().ok_or(BlkStatus::IoErr)?;
            let (now, later) = left.split_at_mut(left.len().min(first.len));
            pin.read(first.addr, now).map_err(|_| BlkStatus::IoErr)?;
            self.skip(now.len());
            left = later;
        }
        Ok(value)
    }

    /// Drops the first bytes of the first buffer.
    #[inline]
    fn skip(&mut self, bytes: usize) {
        let first = &mut self.list[self.start];
        first.len -= bytes;
        // A buffer up to the last address wraps when it is used up, and is not used then.
        first.addr = first.addr.wrapping_add(bytes as u64);
        self.start += usize::from(first.len == 0);
    }
}

/// Reads chains. Holds the memory that takes, so that none is allocated per chain.
#[derive(Debug)]
pub struct ChainParser {
    readable: Buffers,
    writable: Buffers,
    /// A descriptor is readable, if only one of no bytes.
    has_readable: bool,
    /// A readable buffer came after a writable one.
    disorder: bool,
    /// Descriptors that were read in all.
    walked: u64,
}

/// The most descriptors in an indirect table: the segments that are advertised, header and status.
const INDIRECT_MAX: u32 = DiskConfig::SEG_MAX + 2;

impl ChainParser {
    /// A parser for chains of a ring of `size` descriptors.
    #[must_use]
    pub fn new(size: u16) -> Self {
        let most = usize::from(size) + INDIRECT_MAX as usize;
        let (readable, writable) = (Buffers::with_capacity(most), Buffers::with_capacity(most));
        Self { readable, writable, has_readable: false, disorder: false, walked: 0 }
    }

    /// Reads the chain at `head` and builds the bios it asks for, out of `queue`'s.
    ///
    /// # Errors
    /// [`RingFault`] when the chain cannot be answered.
    pub fn parse(
        &mut self,
        vring: &Vring,
        head: u16,
        pin: &MemPin,
        config: &DiskConfig,
        queue: &mut RequestQueue,
    ) -> Result<ParsedChain, RingFault> {
        self.collect(vring, head, pin)?;
        let status = self.take_status(head, pin)?;
        let mut builder = Builder { pin, config, queue };
        let action = match self.interpret(&mut builder) {
            Ok(action) => action,
            Err(status) => Action::Answer(status),
        };
        Ok(ParsedChain { status, action })
    }

    /// How many descriptors were read in all: what the chains so far have cost.
    #[must_use]
    pub fn walked(&self) -> u64 {
        self.walked
    }

    /// Walks the chain and sorts its buffers. Empty ones are left out.
    #[inline]
    fn collect(&mut self, vring: &Vring, head: u16, pin: &MemPin) -> Result<(), RingFault> {
        self.readable.clear();
        self.writable.clear();
        self.has_readable = false;
        self.disorder = false;
        let fault = |reason| RingFault::Chain { head, reason };
        let mut index = head;
        // A chain that is longer than its ring is a loop.
        for _ in 0..vring.size() {
            let descriptor = vring.descriptor(index);
            if descriptor.refers_to_indirect_table() {
                if !vring.has_indirect() {
                    return Err(fault("has an indirect descriptor, which was not negotiated"));
                }
                if descriptor.has_next() {
                    return Err(fault("goes on after an indirect descriptor"));
                }
                return self.collect_indirect(descriptor, head, pin);
            }
            self.sort(descriptor);
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
            if index >= vring.size() {
                return Err(fault("leads to a descriptor past the end of the table"));
            }
        }
        Err(fault("is longer than the ring"))
    }

    fn collect_indirect(&mut self, table: Descriptor, head: u16, pin: &MemPin) -> Result<(), RingFault> {
        let fault = |reason| RingFault::Chain { head, reason };
        if table.len() == 0 || !table.len().is_multiple_of(DESCRIPTOR_BYTES) {
            return Err(fault("has an indirect table that is not whole descriptors"));
        }
        let count = table.len() / DESCRIPTOR_BYTES;
        if count > INDIRECT_MAX {
            return Err(fault("has an indirect table with more descriptors than were advertised"));
        }
        let mut index = 0;
        for _ in 0..count {
            let descriptor = indirect_descriptor(table.addr().0, index, pin)
                .ok_or(fault("has an indirect table outside of the guest's memory"))?;
            if descriptor.refers_to_indirect_table() {
                return Err(fault("has an indirect descriptor in an indirect table"));
            }
            self.sort(descriptor);
            if !descriptor.has_next() {
                return Ok(());
            }
            index = u32::from(descriptor.next());
            if index >= count {
                return Err(fault("leads to a descriptor past the end of its indirect table"));
            }
        }
        Err(fault("is longer than its indirect table"))
    }

    #[inline]
    fn sort(&mut self, descriptor: Descriptor) {
        let buffer = Buffer { addr: descriptor.addr().0, len: descriptor.len() as usize };
        self.has_readable |= !descriptor.is_write_only();
        self.walked += 1;
        if buffer.len == 0 {
            return;
        }
        if descriptor.is_write_only() {
            self.writable.list.push(buffer);
        } else {
            self.disorder |= !self.writable.is_empty();
            self.readable.list.push(buffer);
        }
    }

    /// The last writable byte, which is not data.
    #[inline]
    fn take_status(&mut self, head: u16, pin: &MemPin) -> Result<GuestSlice, RingFault> {
        let fault = |reason| RingFault::Chain { head, reason };
        if !self.has_readable {
            return Err(fault("has no readable header"));
        }
        let addr = self.writable.take_last().ok_or(fault("has no writable status byte"))?;
        let status = addr.and_then(|addr| pin.slice(addr, 1).ok());
        status.ok_or(fault("has a status byte outside of the guest's memory"))
    }

    /// What the header says, with the data that belongs to it.
    #[inline]
    fn interpret(&mut self, builder: &mut Builder<'_>) -> Result<Action, BlkStatus> {
        if self.disorder {
            return Err(BlkStatus::IoErr);
        }
        let header: [u8; HEADER_BYTES] = self.readable.take_front(builder.pin)?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let kind = u32::from_le_bytes([a, b, c, d]);
        let sector = Sector(u64::from_le_bytes(sector));
        let fua = builder.config.is_writethrough();
        let config = builder.config;
        match kind {
            VIRTIO_BLK_T_IN => builder.transfer(Op::Read, sector, &self.writable, &self.readable),
            VIRTIO_BLK_T_OUT => builder.transfer(Op::Write { fua }, sector, &self.readable, &self.writable),
            VIRTIO_BLK_T_FLUSH => builder.flush(),
            VIRTIO_BLK_T_GET_ID => builder.answer(PassthroughCommand::DeviceId, &self.writable),
            VIRTIO_BLK_T_GET_LIFETIME if config.has_lifetime() => {
                builder.answer(PassthroughCommand::Lifetime, &self.writable)
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if config.is_read_only() => {
                Err(BlkStatus::IoErr)
            }
            VIRTIO_BLK_T_DISCARD => builder.ranges(segments::Kind::Discard, &mut self.readable),
            VIRTIO_BLK_T_WRITE_ZEROES if config.has_write_zeroes() => {
                builder.ranges(segments::Kind::WriteZeroes, &mut self.readable)
            }
            VIRTIO_BLK_T_SECURE_ERASE if config.has_secure_erase() => {
                builder.ranges(segments::Kind::SecureErase, &mut self.readable)
            }
            _ => Err(BlkStatus::Unsupp),
        }
    }
}

/// A copy of a descriptor of an indirect table, which may lie across regions of memory.
fn indirect_descriptor(table: u64, index: u32, pin: &MemPin) -> Option<Descriptor> {
    let addr = table.checked_add(u64::from(DESCRIPTOR_BYTES) * u64::from(index))?;
    pin.read_value(addr).ok()
}

/// Builds bios out of a queue's.
struct Builder<'a> {
    pin: &'a MemPin,
    config: &'a DiskConfig,
    queue: &'a mut RequestQueue,
}

impl Builder<'_> {
    /// A read into, or a write from, `data`. `other` is data that goes the other way, of which there must be none.
    #[inline]
    fn transfer(
        &mut self,
        op: Op,
        sector: Sector,
        data: &Buffers,
        other: &Buffers,
    ) -> Result<Action, BlkStatus> {
        let len = data.bytes();
        let writes = matches!(op, Op::Write { .. });
        // The used length is a u32 and counts the status byte too.
        if len == 0
            || len >= u64::from(u32::MAX)
            || !other.is_empty()
            || (writes && self.config.is_read_only())
        {
            return Err(BlkStatus::IoErr);
        }
        let range = self.range(sector, len)?;
        self.map(op, range, data.as_slice()).map(Action::Submit)
    }

    fn flush(&mut self) -> Result<Action, BlkStatus> {
        let mut chain = BioChain::new();
        let bio = self.queue.bios().try_take(Op::Flush, DiskRange::none()).ok_or(BlkStatus::IoErr)?;
        chain.push(bio);
        Ok(Action::Submit(chain))
    }

    /// A command that writes its answer to `data`.
    fn answer(&mut self, command: PassthroughCommand, data: &Buffers) -> Result<Action, BlkStatus> {
        if data.is_empty() {
            return Err(BlkStatus::IoErr);
        }
        let chain = self.map(Op::DeviceId, DiskRange::none(), data.as_slice())?;
        Ok(Action::Passthrough(chain, command))
    }

    /// A range of the disk, in whole blocks as the queue takes them.
    #[inline]
    fn range(&self, start: Sector, len: u64) -> Result<DiskRange, BlkStatus> {
        let block = self.queue.limits().logical_block_size;
        DiskRange::new(start, len, self.config.capacity(), block).map_err(|_| BlkStatus::IoErr)
    }

    /// Bios for `op` with the memory that `data` names, as many as that takes.
    #[inline]
    fn map(&mut self, op: Op, range: DiskRange, data: &[Buffer]) -> Result<BioChain, BlkStatus> {
        let mut chain = BioChain::new();
        let mapped = self.map_into(&mut chain, op, range, data);
        if let Err(status) = mapped {
            self.queue.bios().put_chain(chain);
            return Err(status);
        }
        Ok(chain)
    }

    #[inline]
    fn map_into(
        &mut self,
        chain: &mut BioChain,
        op: Op,
        mut range: DiskRange,
        data: &[Buffer],
    ) -> Result<(), BlkStatus> {
        let mut data = data.iter().copied();
        let mut next = data.next();
        while next.is_some() {
            // More pieces than in any legal chain: buffers over many regions of memory.
            if chain.len() == BioSet::CHAIN_MAX {
                return Err(BlkStatus::IoErr);
            }
            let bio = self.queue.bios().try_take(op, DiskRange::none()).ok_or(BlkStatus::IoErr)?;
            let bio = chain.push(bio);
            while let Some(buffer) = &mut next {
                let pushed = bio.sg.push_guest(self.pin, buffer.addr, buffer.len, self.queue.arena());
                // The guest's bad address; memory for the table was seen to be there before the head was taken.
                let pushed = pushed.map_err(|_| BlkStatus::IoErr)?;
                if pushed < buffer.len {
                    // The bio is full.
                    buffer.len -= pushed;
                    buffer.addr += pushed as u64;
                    break;
                }
                next = data.next();
            }
            if range.len() > 0 {
                bio.range = range.take_front(bio.sg.bytes() as u64);
            }
        }
        Ok(())
    }

    /// Discards or zeroes the ranges that `data` lists.
    fn ranges(&mut self, kind: segments::Kind, data: &mut Buffers) -> Result<Action, BlkStatus> {
        let mut chain = BioChain::new();
        if let Err(status) = segments::build(kind, data, self, &mut chain) {
            self.queue.bios().put_chain(chain);
            return Err(status);
        }
        Ok(match kind {
            // Ranges of no sectors only: nothing to do, and so it is done.
            _ if chain.is_empty() => Action::Answer(BlkStatus::Ok),
            segments::Kind::SecureErase => Action::Passthrough(chain, PassthroughCommand::SecureErase),
            segments::Kind::Discard | segments::Kind::WriteZeroes => Action::Submit(chain),
        })
    }
}

#[cfg(test)]
mod tests;
