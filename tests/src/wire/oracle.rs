//! What is due to a chain, by the words of virtio 1.3 (2.7, 5.2.6) and the project's rules where those leave a choice.
//!
//! | what is wrong | what is due |
//! |---|---|
//! | the chain leads nowhere, has no header to read or no status byte to write | the ring breaks |
//! | a header, data or segments that cannot be | VIRTIO_BLK_S_IOERR, used length 1, nothing else changes |
//! | a type, or flags of a segment, that nobody offered | VIRTIO_BLK_S_UNSUPP, the same |
//! | nothing | what [`crate::model`] answers |
//!
//! It shares no code with any device, walks slowly and reads the chain from copies of what was put into memory.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::chain::{Arena, DESC, Mapped, RawDesc};
use crate::model::{IOERR, OK, UNSUPP};
use crate::request::{Extent, HEADER, Request, SECTOR};

/// What a device has told of itself and its disk.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Size of the disk.
    pub sectors: u64,
    /// Bytes of a block: transfers are whole ones.
    pub block: u64,
    /// The guest may only read.
    pub read_only: bool,
    /// Indirect descriptors were negotiated.
    pub indirect: bool,
    /// The most descriptors of an indirect table.
    pub table_max: u32,
    /// The most segments of a discard, and of zeroes.
    pub segments_max: u64,
    /// The most sectors of a segment.
    pub segment_sectors_max: u32,
}

/// What is to become of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The ring breaks.
    Broken,
    /// It depends on memory that is not the chain's own.
    Open,
    /// There is an answer, with the status byte at this address.
    Due(u64, Action),
}

/// What is to be done for a chain that is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing; this is the status, and nothing else is written.
    Status(u8),
    /// A request, with the ranges of memory that its data goes to.
    Execute(Request, Vec<(u64, u64)>),
}

/// Why there is nothing to be executed.
enum Not {
    Status(u8),
    Open,
}

const IO_ERROR: Not = Not::Status(IOERR);
type Ranges = Vec<(u64, u64)>;

/// The judge of chains.
#[derive(Clone, Debug)]
pub struct Oracle {
    /// What the device has told.
    pub facts: Facts,
    /// Where the guest has memory.
    pub mapped: Mapped,
}

impl Oracle {
    /// What is due to the chain at `head` of a ring with this table, whose memory is in `arena`.
    pub fn judge(&self, table: &[RawDesc], head: u16, arena: &Arena) -> Verdict {
        let descs = match self.walk(table, head, arena) {
            Ok(descs) => descs,
            Err(verdict) => return verdict,
        };
        if descs.iter().all(|desc| desc.is_write()) {
            return Verdict::Broken;
        }
        let full: Vec<_> = descs.into_iter().filter(|desc| desc.len > 0).collect();
        let side = |write| full.iter().filter(move |desc| desc.is_write() == write);
        let range = |desc: &RawDesc| (desc.addr, u64::from(desc.len));
        let (readable, mut writable): (Ranges, Ranges) =
            (side(false).map(range).collect(), side(true).map(range).collect());
        let Some((addr, len)) = writable.last_mut() else { return Verdict::Broken };
        *len -= 1;
        let Some(status) = addr.checked_add(*len).filter(|&addr| self.mapped.holds(addr, 1)) else {
            return Verdict::Broken;
        };
        if arena.find(status, 1).is_none() {
            return Verdict::Open;
        }
        writable.retain(|&(_, len)| len > 0);
        let first_write = full.iter().position(|desc| desc.is_write());
        let last_read = full.iter().rposition(|desc| !desc.is_write());
        if last_read > first_write {
            return Verdict::Due(status, Action::Status(IOERR));
        }
        match self.request(&readable, writable, arena) {
            Ok(action) => Verdict::Due(status, action),
            Err(Not::Status(answer)) => Verdict::Due(status, Action::Status(answer)),
            Err(Not::Open) => Verdict::Open,
        }
    }

    /// The descriptors of a chain with those of its indirect table.
    fn walk(&self, table: &[RawDesc], head: u16, arena: &Arena) -> Result<Vec<RawDesc>, Verdict> {
        let mut found = Vec::new();
        let mut index = head;
        while found.len() < table.len() {
            let desc = *table.get(usize::from(index)).ok_or(Verdict::Broken)?;
            if desc.is_table() {
                if !self.facts.indirect || desc.has_next() {
                    return Err(Verdict::Broken);
                }
                found.extend(self.walk_table(desc, arena)?);
                return Ok(found);
            }
            found.push(desc);
            if !desc.has_next() {
                return Ok(found);
            }
            index = desc.next;
        }
        // It goes on after as many as there are: a loop. Where to does not matter.
        Err(Verdict::Broken)
    }

    fn walk_table(&self, table: RawDesc, arena: &Arena) -> Result<Vec<RawDesc>, Verdict> {
        let count = table.len / 16;
        if count == 0 || !table.len.is_multiple_of(16) || count > self.facts.table_max {
            return Err(Verdict::Broken);
        }
        let mut found = Vec::new();
        let mut index = 0;
        while (found.len() as u64) < u64::from(count) {
            let desc = self.entry(table.addr, index, arena)?;
            if desc.is_table() {
                return Err(Verdict::Broken);
            }
            found.push(desc);
            if !desc.has_next() {
                return Ok(found);
            }
            index = desc.next;
            if u32::from(index) >= count {
                return Err(Verdict::Broken);
            }
        }
        Err(Verdict::Broken)
    }

    fn entry(&self, table: u64, index: u16, arena: &Arena) -> Result<RawDesc, Verdict> {
        let addr = table.checked_add(16 * u64::from(index)).ok_or(Verdict::Broken)?;
        match arena.find(addr, 16) {
            Some(range) => {
                Ok(RawDesc::from_bytes(arena.bytes[range].try_into().expect("a range of 16 bytes")))
            }
            None if self.mapped.holds(addr, 16) => Err(Verdict::Open),
            None => Err(Verdict::Broken),
        }
    }

    fn request(&self, readable: &Ranges, writable: Ranges, arena: &Arena) -> Result<Action, Not> {
        let (header, out) = self.cut(readable, HEADER as u64, arena)?;
        let kind = u32::from_le_bytes(header[..4].try_into().expect("four bytes"));
        let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
        let read_only = self.facts.read_only;
        match kind {
            VIRTIO_BLK_T_IN => {
                self.transfer(sector, &writable, &out, arena)?;
                let request = Request::read(sector, room(&writable));
                Ok(Action::Execute(request, writable))
            }
            VIRTIO_BLK_T_OUT => {
                if read_only {
                    return Err(IO_ERROR);
                }
                self.transfer(sector, &out, &writable, arena)?;
                let (data, _) = self.cut(&out, bytes(&out), arena)?;
                Ok(Action::Execute(Request::write(sector, data), vec![]))
            }
            VIRTIO_BLK_T_FLUSH => Ok(Action::Execute(Request::flush(), vec![])),
            VIRTIO_BLK_T_GET_ID if writable.is_empty() => Err(IO_ERROR),
            VIRTIO_BLK_T_GET_ID => {
                self.owned(&writable, arena)?;
                Ok(Action::Execute(Request::id(room(&writable)), writable))
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if read_only => Err(IO_ERROR),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => self.segments(kind, out, arena),
            _ => Err(Not::Status(UNSUPP)),
        }
    }

    /// Checks a read or a write of `data`, with `other` data that goes the other way.
    fn transfer(&self, sector: u64, data: &Ranges, other: &Ranges, arena: &Arena) -> Result<(), Not> {
        let len = bytes(data);
        if len == 0 || !other.is_empty() || !self.on_disk(sector, len.into()) {
            return Err(IO_ERROR);
        }
        self.owned(data, arena)
    }

    fn on_disk(&self, sector: u64, len: u128) -> bool {
        let (start, block) = (u128::from(sector) * SECTOR as u128, u128::from(self.facts.block));
        let end = u128::from(self.facts.sectors) * SECTOR as u128;
        start + len <= end && start.is_multiple_of(block) && len.is_multiple_of(block)
    }

    /// Checks that ranges are memory, and of this chain.
    fn owned(&self, ranges: &Ranges, arena: &Arena) -> Result<(), Not> {
        if !ranges.iter().all(|&(addr, len)| self.mapped.holds(addr, len)) {
            return Err(IO_ERROR);
        }
        let own = ranges.iter().all(|&(addr, len)| arena.find(addr, len).is_some());
        if own { Ok(()) } else { Err(Not::Open) }
    }

    /// Takes `count` bytes off the front of ranges.
    fn cut(&self, ranges: &Ranges, count: u64, arena: &Arena) -> Result<(Vec<u8>, Ranges), Not> {
        let (mut front, mut rest, mut left) = (Vec::new(), Vec::new(), count);
        for &(addr, len) in ranges {
            let now = left.min(len);
            if now > 0 {
                self.owned(&vec![(addr, now)], arena)?;
                front.extend_from_slice(&arena.bytes[arena.find(addr, now).expect("it is owned")]);
            }
            left -= now;
            if len > now {
                rest.push((addr.wrapping_add(now), len - now));
            }
        }
        if left == 0 { Ok((front, rest)) } else { Err(IO_ERROR) }
    }

    /// A discard or zeroes of the segments in `data`: the first that is wrong decides.
    fn segments(&self, kind: u32, data: Ranges, arena: &Arena) -> Result<Action, Not> {
        let len = bytes(&data);
        if len == 0 || !len.is_multiple_of(16) || len / 16 > self.facts.segments_max {
            return Err(IO_ERROR);
        }
        let known = u32::from(kind == VIRTIO_BLK_T_WRITE_ZEROES);
        let (mut out, mut left) = (Vec::new(), data);
        while !left.is_empty() {
            let (segment, rest) = self.cut(&left, DESC as u64, arena)?;
            let Extent { sector, sectors, flags } = Extent::from_bytes(&segment);
            if flags & !known != 0 {
                return Err(Not::Status(UNSUPP));
            }
            if sectors > self.facts.segment_sectors_max
                || !self.on_disk(sector, u128::from(sectors) * SECTOR as u128)
            {
                return Err(IO_ERROR);
            }
            out.extend(segment);
            left = rest;
        }
        Ok(Action::Execute(Request { kind, sector: 0, out, room: 0 }, vec![]))
    }
}

impl Action {
    /// Whether the status is OK when the disk does what it is told.
    pub fn succeeds(&self) -> bool {
        !matches!(self, Action::Status(status) if *status != OK)
    }
}

fn bytes(ranges: &Ranges) -> u64 {
    ranges.iter().map(|&(_, len)| len).sum()
}

fn room(ranges: &Ranges) -> usize {
    usize::try_from(bytes(ranges)).expect("what is in an arena is short")
}
