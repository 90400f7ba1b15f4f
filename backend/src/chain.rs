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

mod plain;
mod segments;

use sluice_blk::bio::{Bio, BioChain, BioSet, Op};
use sluice_blk::queue::{PassthroughCommand, RequestQueue};
use sluice_blk::sector::{DiskRange, Sector};
use sluice_mem::guest::MemPin;
use sluice_mem::sglist::SgList;
use sluice_mem::slice::GuestSlice;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_SECURE_ERASE,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_bindings::bindings::virtio_ring::VRING_DESC_F_WRITE;
use virtio_queue::desc::split::Descriptor;
use vm_memory::ByteValued;

use self::plain::Plain;
use crate::config::DiskConfig;
use crate::vring::{RingFault, Vring};

/// The type of a request for how worn the disk is (virtio 1.3, 5.2.6).
const VIRTIO_BLK_T_GET_LIFETIME: u32 = 10;

/// Type, reserved, and the two halves of the sector (virtio 1.3, 5.2.6), all little-endian.
type Header = [u32; 4];

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

/// A piece of a chain's memory, of at least one byte.
#[derive(Debug, Clone, Copy)]
struct Buffer {
    addr: u64,
    len: u32,
    flags: u16,
}

impl Buffer {
    const NONE: Self = Self { addr: 0, len: 0, flags: 0 };

    #[inline]
    fn of(descriptor: Descriptor) -> Self {
        Self { addr: descriptor.addr().0, len: descriptor.len(), flags: descriptor.flags() }
    }

    #[inline]
    fn is_writable(&self) -> bool {
        u32::from(self.flags) & VRING_DESC_F_WRITE != 0
    }

    /// The address of the last byte, unless that wraps.
    #[inline]
    fn end(&self) -> Option<u64> {
        self.addr.checked_add(u64::from(self.len).checked_sub(1)?)
    }
}

/// The pieces of a chain's memory that go one way, in order, and are not used up.
#[derive(Debug)]
struct Buffers<'a>(&'a mut [Buffer]);

impl Buffers<'_> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many bytes, in numbers so wide that nothing wraps.
    #[inline]
    fn bytes(&self) -> u64 {
        self.0.iter().map(|buffer| u64::from(buffer.len)).sum()
    }

    /// Drops the last byte, if there is one.
    #[inline(always)]
    fn drop_last(&mut self) {
        match self.0.last_mut() {
            Some(last) if last.len > 1 => last.len = last.len.wrapping_sub(1),
            _ => {
                self.0.split_off_last_mut();
            }
        }
    }

    /// Takes a value from the front.
    #[inline(always)]
    fn take_front<T: ByteValued>(&mut self, pin: &MemPin) -> Result<T, BlkStatus> {
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
    fn skip(&mut self, bytes: usize) {
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

/// Reads chains. Holds the memory that takes, so that none is allocated per chain.
#[derive(Debug)]
pub struct ChainParser {
    buffers: Vec<Buffer>,
    /// Descriptors that were read in all.
    cost: u64,
}

/// The most descriptors in an indirect table: the segments that are advertised, header and status.
const INDIRECT_MAX: u32 = DiskConfig::SEG_MAX + 2;

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
}

/// What a chain consists of.
#[derive(Debug, Clone, Copy, Default)]
struct Walk {
    /// How many descriptors were read, those of an indirect table included: each has a place among the buffers, but the
    /// one that refers to the table.
    descriptors: usize,
    /// How many of them are readable. They are the first, unless there is disorder.
    readable: usize,
    /// A readable descriptor came after a writable one.
    disorder: bool,
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
    fn walk(&mut self, vring: &Vring, head: u16, pin: &MemPin) -> Result<Walk, RingFault> {
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
    fn status(&self, walk: Walk, head: u16, pin: &MemPin) -> Result<GuestSlice, RingFault> {
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

/// A copy of a descriptor of an indirect table that lies across regions of memory.
#[cold]
fn indirect_descriptor(table: u64, index: u32, pin: &MemPin) -> Option<Descriptor> {
    let addr = table.checked_add(u64::from(DESCRIPTOR_BYTES).wrapping_mul(u64::from(index)))?;
    pin.read_value(addr).ok()
}

/// Builds bios out of a queue's.
struct Builder<'a> {
    pin: &'a MemPin,
    config: &'a DiskConfig,
    queue: &'a mut RequestQueue,
}

impl Builder<'_> {
    /// What a header asks for that is not a transfer.
    fn other(
        &mut self,
        kind: u32,
        mut readable: Buffers<'_>,
        writable: Buffers<'_>,
    ) -> Result<Action, BlkStatus> {
        let config = self.config;
        match kind {
            VIRTIO_BLK_T_FLUSH => self.flush(),
            VIRTIO_BLK_T_GET_ID => self.answer(PassthroughCommand::DeviceId, writable),
            VIRTIO_BLK_T_GET_LIFETIME if config.has_lifetime() => {
                self.answer(PassthroughCommand::Lifetime, writable)
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if config.is_read_only() => {
                Err(BlkStatus::IoErr)
            }
            VIRTIO_BLK_T_DISCARD => self.ranges(segments::Kind::Discard, &mut readable),
            VIRTIO_BLK_T_WRITE_ZEROES if config.has_write_zeroes() => {
                self.ranges(segments::Kind::WriteZeroes, &mut readable)
            }
            VIRTIO_BLK_T_SECURE_ERASE if config.has_secure_erase() => {
                self.ranges(segments::Kind::SecureErase, &mut readable)
            }
            _ => Err(BlkStatus::Unsupp),
        }
    }

    /// A read into, or a write from, `data`. `other` is data that goes the other way, of which there must be none.
    #[inline]
    fn transfer(
        &mut self,
        op: Op,
        sector: Sector,
        data: Buffers<'_>,
        other: &Buffers<'_>,
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
        self.map(op, range, data).map(Action::Submit)
    }

    fn flush(&mut self) -> Result<Action, BlkStatus> {
        let mut chain = BioChain::new();
        let bio = self.queue.bios().try_take(Op::Flush, DiskRange::none()).ok_or(BlkStatus::IoErr)?;
        chain.push(bio);
        Ok(Action::Submit(chain))
    }

    /// A command that writes its answer to `data`.
    fn answer(&mut self, command: PassthroughCommand, data: Buffers<'_>) -> Result<Action, BlkStatus> {
        if data.is_empty() {
            return Err(BlkStatus::IoErr);
        }
        let chain = self.map(Op::DeviceId, DiskRange::none(), data)?;
        Ok(Action::Passthrough(chain, command))
    }

    /// A range of the disk, in whole blocks as the queue takes them.
    #[inline]
    fn range(&self, start: Sector, len: u64) -> Result<DiskRange, BlkStatus> {
        let block = self.queue.limits().logical_block_size;
        DiskRange::new(start, len, self.config.capacity(), block).map_err(|_| BlkStatus::IoErr)
    }

    /// Bios for `op` with the memory that `data` names, as many as that takes.
    #[inline(always)]
    fn map(&mut self, op: Op, range: DiskRange, mut data: Buffers<'_>) -> Result<BioChain, BlkStatus> {
        let mut chain = BioChain::new();
        let mapped = self.map_into(&mut chain, op, range, &mut data);
        if let Err(status) = mapped {
            self.queue.bios().put_chain(chain);
            return Err(status);
        }
        Ok(chain)
    }

    #[inline(always)]
    fn map_into(
        &mut self,
        chain: &mut BioChain,
        op: Op,
        mut range: DiskRange,
        data: &mut Buffers<'_>,
    ) -> Result<(), BlkStatus> {
        // A bio for all that is left, until one is not full.
        for _ in 0..BioSet::CHAIN_MAX {
            let bio = self.queue.bios().try_take(op, range).ok_or(BlkStatus::IoErr)?;
            let bio = chain.push(bio);
            self.fill(&mut bio.sg, data)?;
            if data.is_empty() {
                return Ok(());
            }
            if range.len() > 0 {
                bio.range = range.take_front(bio.sg.bytes() as u64);
            }
        }
        // More pieces than in any legal chain: buffers over many regions of memory.
        Err(BlkStatus::IoErr)
    }

    /// Moves as much of `data` to a list as that has room for.
    #[inline(always)]
    fn fill(&self, list: &mut SgList, data: &mut Buffers<'_>) -> Result<(), BlkStatus> {
        while let Some(buffer) = data.0.first() {
            let len = buffer.len as usize;
            // The guest's bad address; memory for the table was seen to be there before the head was taken.
            let pushed = list
                .push_guest(self.pin, buffer.addr, len, self.queue.arena())
                .map_err(|_| BlkStatus::IoErr)?;
            data.skip(pushed);
            if pushed < len {
                break;
            }
        }
        Ok(())
    }

    /// Discards or zeroes the ranges that `data` lists.
    fn ranges(&mut self, kind: segments::Kind, data: &mut Buffers<'_>) -> Result<Action, BlkStatus> {
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
