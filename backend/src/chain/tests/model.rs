//! What a chain means, straight from virtio 1.3 (2.7, 5.2.6) and as slowly as that: the model that the parser is held
//! against. It reads the guest's memory as files, in its own way, and knows the parser only by its limits.

use std::collections::HashSet;

use sluice_blk::bio::Op;

use super::super::BlkStatus;
use crate::config::DiskConfig;
use crate::doubles::guest_ram::GuestRam;

/// A descriptor (2.7.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Desc {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

impl Desc {
    pub(super) fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }

    fn read(ram: &GuestRam, addr: u64) -> Option<Self> {
        let bytes = ram.try_read(addr, 16)?;
        let number =
            |at: std::ops::Range<usize>| bytes[at].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
        Some(Self {
            addr: number(0..8),
            len: u32::try_from(number(8..12)).unwrap(),
            flags: u16::try_from(number(12..14)).unwrap(),
            next: u16::try_from(number(14..16)).unwrap(),
        })
    }

    fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// One bio: what it does, where on the disk, and the pieces of host memory, each by its address and length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) op: Op,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) pieces: Vec<(usize, usize)>,
}

/// What a chain comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Answer(BlkStatus),
    Submit(Vec<Part>),
    DeviceId(Vec<Part>),
}

const IO_ERR: Outcome = Outcome::Answer(BlkStatus::IoErr);

/// A ring and the disk behind it.
pub(super) struct Model<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) table: u64,
    pub(super) size: u16,
    pub(super) indirect: bool,
    pub(super) read_only: bool,
    pub(super) writethrough: bool,
    pub(super) sectors: u64,
    pub(super) block: u64,
}

type Bytes = Vec<(u64, u64)>;

impl Model<'_> {
    /// The descriptors of a chain with what they refer to; `None` when it leads nowhere.
    fn chain(&self, table: u64, count: u32, head: u16, nested: bool) -> Option<Vec<Desc>> {
        let (mut found, mut seen, mut index) = (Vec::new(), HashSet::new(), head);
        loop {
            if u32::from(index) >= count || !seen.insert(index) {
                return None;
            }
            let desc = Desc::read(self.ram, table.checked_add(16 * u64::from(index))?)?;
            if desc.has(INDIRECT) {
                let whole = desc.len > 0 && desc.len % 16 == 0;
                let few = u64::from(desc.len / 16) <= 2 + u64::from(DiskConfig::SEG_MAX);
                if nested || !self.indirect || desc.has(NEXT) || !whole || !few {
                    return None;
                }
                found.extend(self.chain(desc.addr, desc.len / 16, 0, true)?);
                return Some(found);
            }
            found.push(desc);
            if !desc.has(NEXT) {
                return Some(found);
            }
            index = desc.next;
        }
    }

    /// What the chain at `head` comes to, and where its status goes; `None` when there is no such place.
    pub(super) fn outcome(&self, head: u16) -> Option<(u64, Outcome)> {
        let descs = self.chain(self.table, self.size.into(), head, false)?;
        // A chain with nothing to read has its header in a writable descriptor.
        descs.iter().find(|desc| !desc.has(WRITE))?;
        let side = |write: bool| -> Bytes {
            let on_side = descs.iter().filter(|desc| desc.has(WRITE) == write && desc.len > 0);
            on_side.map(|desc| (desc.addr, desc.len.into())).collect()
        };
        let (readable, mut writable) = (side(false), side(true));
        let (addr, len) = writable.last_mut()?;
        *len -= 1;
        let status = addr.checked_add(*len)?;
        self.ram.host(status)?;
        writable.retain(|(_, len)| *len > 0);
        let full: Vec<_> = descs.iter().filter(|desc| desc.len > 0).collect();
        let first_write = full.iter().position(|desc| desc.has(WRITE));
        let last_read = full.iter().rposition(|desc| !desc.has(WRITE));
        let outcome = if last_read > first_write { IO_ERR } else { self.request(&readable, &writable) };
        Some((status, outcome))
    }

    /// Cuts `count` bytes off the front of a list of ranges.
    fn cut(&self, ranges: &Bytes, count: u64) -> Option<(Vec<u8>, Bytes)> {
        let (mut front, mut rest, mut left) = (Vec::new(), Vec::new(), count);
        for &(addr, len) in ranges {
            let now = left.min(len);
            front.extend(self.ram.try_read(addr, usize::try_from(now).unwrap())?);
            left -= now;
            if len > now {
                rest.push((addr.wrapping_add(now), len - now));
            }
        }
        (left == 0).then_some((front, rest))
    }

    fn request(&self, readable: &Bytes, writable: &Bytes) -> Outcome {
        let Some((header, data)) = self.cut(readable, 16) else { return IO_ERR };
        let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
        let sector = u64::from_le_bytes(header[8..].try_into().unwrap());
        let fua = self.writethrough;
        match kind {
            0 if !data.is_empty() => IO_ERR,
            0 => self.transfer(Op::Read, sector, writable),
            1 if self.read_only || !writable.is_empty() => IO_ERR,
            1 => self.transfer(Op::Write { fua }, sector, &data),
            4 => Outcome::Submit(vec![Part { op: Op::Flush, offset: 0, len: 0, pieces: vec![] }]),
            8 if writable.is_empty() => IO_ERR,
            8 => self.parts(Op::DeviceId, 0, writable).map_or(IO_ERR, Outcome::DeviceId),
            11 | 13 if self.read_only => IO_ERR,
            11 => self.segments(&data, 0, |_| Op::Discard { fua }),
            13 => self.segments(&data, 1, |flags| Op::WriteZeroes { unmap: flags == 1, fua }),
            _ => Outcome::Answer(BlkStatus::Unsupp),
        }
    }

    fn on_disk(&self, sector: u64, bytes: u128) -> bool {
        let (start, block) = (u128::from(sector) * 512, u128::from(self.block));
        start + bytes <= u128::from(self.sectors) * 512
            && start.is_multiple_of(block)
            && bytes.is_multiple_of(block)
    }

    fn transfer(&self, op: Op, sector: u64, data: &Bytes) -> Outcome {
        let bytes: u128 = data.iter().map(|(_, len)| u128::from(*len)).sum();
        // The used length counts the status byte too, in 32 bits.
        if bytes == 0 || bytes + 1 > u128::from(u32::MAX) || !self.on_disk(sector, bytes) {
            return IO_ERR;
        }
        self.parts(op, sector * 512, data).map_or(IO_ERR, Outcome::Submit)
    }

    /// Bios of 256 pieces each, at most 16.
    fn parts(&self, op: Op, mut offset: u64, data: &Bytes) -> Option<Vec<Part>> {
        let mut pieces: Vec<(usize, usize)> = Vec::new();
        let mut bios: Vec<Vec<(usize, usize)>> = Vec::new();
        for &(addr, len) in data {
            let mut done = 0;
            while done < len {
                let (host, room) = self.ram.host(addr.checked_add(done)?)?;
                let now = room.min(len - done);
                done += now;
                let now = usize::try_from(now).unwrap();
                let follows = pieces.last().is_some_and(|(start, count)| start + count == host);
                if follows {
                    pieces.last_mut().unwrap().1 += now;
                    continue;
                }
                if pieces.len() == 256 {
                    bios.push(std::mem::take(&mut pieces));
                }
                pieces.push((host, now));
            }
        }
        bios.push(pieces);
        let part = |pieces: Vec<(usize, usize)>| {
            let len = if op == Op::DeviceId { 0 } else { pieces.iter().map(|(_, len)| *len as u64).sum() };
            let part = Part { op, offset, len, pieces };
            offset += len;
            part
        };
        (bios.len() <= 16).then(|| bios.into_iter().map(part).collect())
    }

    fn segments(&self, data: &Bytes, flags_known: u32, op: impl Fn(u32) -> Op) -> Outcome {
        let bytes: u64 = data.iter().map(|(_, len)| len).sum();
        if bytes == 0 || !bytes.is_multiple_of(16) || bytes / 16 > u64::from(DiskConfig::RANGES_MAX) {
            return IO_ERR;
        }
        let (mut parts, mut left) = (Vec::new(), data.clone());
        while !left.is_empty() {
            let Some((segment, rest)) = self.cut(&left, 16) else { return IO_ERR };
            left = rest;
            let sector = u64::from_le_bytes(segment[..8].try_into().unwrap());
            let sectors = u32::from_le_bytes(segment[8..12].try_into().unwrap());
            let flags = u32::from_le_bytes(segment[12..].try_into().unwrap());
            if flags > flags_known {
                return Outcome::Answer(BlkStatus::Unsupp);
            }
            let len = u128::from(sectors) * 512;
            if sectors > 4 * 1024 * 1024 || !self.on_disk(sector, len) {
                return IO_ERR;
            }
            if sectors > 0 {
                let (offset, len) = (sector * 512, u64::try_from(len).unwrap());
                parts.push(Part { op: op(flags), offset, len, pieces: vec![] });
            }
        }
        if parts.is_empty() { Outcome::Answer(BlkStatus::Ok) } else { Outcome::Submit(parts) }
    }
}
