//! How a chain is made: a request as a driver means it ([`Draft`]), then as descriptors ([`Laid`]), which lie in a table
//! and an [`Arena`]. What is to be wrong about it is done to either by [`super::wrong`].

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::chain::{Arena, DESC, RawDesc};
use super::oracle::Oracle;
use super::wrong::Wrong;
use crate::driver::{INDIRECT, NEXT, WRITE};
use crate::request::{Extent, HEADER};
use crate::rng::Choose;
use crate::shape::NO_STATUS;

/// The memory that a chain may take.
pub const ARENA: usize = 32 << 10;
/// The most sectors of a good read or write.
const TRANSFER_MAX: usize = 24;

/// A request as a driver means it, and how it is to be cut into descriptors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// VIRTIO_BLK_T_*.
    pub kind: u32,
    /// Where on the disk.
    pub sector: u64,
    /// Bytes of the header: 16.
    pub header_len: usize,
    /// Where the header is cut.
    pub header_cuts: Vec<usize>,
    /// The header is for the device to write: no.
    pub header_write: bool,
    /// Segments, which are the data.
    pub segments: Vec<Extent>,
    /// Lengths of the pieces of data.
    pub data: Vec<usize>,
    /// Whether the device writes the data.
    pub data_write: bool,
    /// The first piece of data is in the descriptor of the header, if it is readable too.
    pub joins_header: bool,
    /// The status byte is in the descriptor of the last piece of data, if it is writable too.
    pub joins_status: bool,
    /// Whether there is a status byte: yes.
    pub has_status: bool,
    /// What the device writes comes first: no.
    pub writable_first: bool,
    /// How many descriptors come before an indirect table; none for no table.
    pub direct: Option<usize>,
}

impl Draft {
    /// A good request in a good shape.
    pub fn good(oracle: &Oracle, choose: &mut impl Choose) -> Self {
        let weighted = [
            (VIRTIO_BLK_T_IN, 36),
            (VIRTIO_BLK_T_OUT, 36),
            (VIRTIO_BLK_T_GET_ID, 8),
            (VIRTIO_BLK_T_DISCARD, 8),
            (VIRTIO_BLK_T_WRITE_ZEROES, 11),
            (VIRTIO_BLK_T_FLUSH, 1),
        ];
        let mut left = choose.below(weighted.iter().map(|(_, weight)| weight).sum());
        let chosen = weighted.iter().find(|&&(_, weight)| {
            let found = left < weight;
            left = left.saturating_sub(weight);
            found
        });
        let &(kind, _) = chosen.expect("a number below the sum of the weights is in one of them");
        let mut draft = Draft {
            kind,
            sector: 0,
            header_len: HEADER,
            header_cuts: vec![],
            header_write: false,
            segments: vec![],
            data: vec![],
            data_write: matches!(kind, VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID),
            joins_header: choose.one_in(4),
            joins_status: choose.one_in(4),
            has_status: true,
            writable_first: false,
            direct: None,
        };
        if choose.one_in(4) {
            draft.header_cuts.push(choose.between(1, HEADER - 1));
        }
        if oracle.facts.indirect && !choose.one_in(3) {
            draft.direct = Some(if choose.one_in(4) { choose.between(1, 3) } else { 0 });
        }
        draft.fill(oracle, choose);
        draft
    }

    /// Says what is moved, and where on the disk.
    fn fill(&mut self, oracle: &Oracle, choose: &mut impl Choose) {
        match self.kind {
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT => {
                let (sector, sectors) = extent(oracle, choose, TRANSFER_MAX);
                self.sector = sector;
                self.data = pieces(choose, sectors * 512);
            }
            VIRTIO_BLK_T_GET_ID => {
                let room = choose.between(1, 40);
                self.data = pieces(choose, room);
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                let count = choose.between(1, 4);
                self.segments = (0..count).map(|_| segment(oracle, choose, self.kind)).collect();
                self.data = pieces(choose, DESC * count);
            }
            _ => {}
        }
    }

    /// The request's header as it goes over the wire.
    fn header(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&self.kind.to_le_bytes());
        bytes[8..].copy_from_slice(&self.sector.to_le_bytes());
        bytes
    }

    /// Lengths of the descriptors, and whether the device writes each.
    fn lengths(&self) -> Vec<(usize, bool)> {
        let mut header = Vec::new();
        let mut start = 0;
        for &cut in self.header_cuts.iter().filter(|&&cut| cut < self.header_len) {
            header.push((cut - start, self.header_write));
            start = cut;
        }
        header.push((self.header_len - start, self.header_write));
        let mut data: Vec<_> = self.data.iter().map(|&len| (len, self.data_write)).collect();
        if self.joins_header && !self.data_write && !self.header_write && !data.is_empty() {
            header.last_mut().expect("a header has a piece").0 += data.remove(0).0;
        }
        match data.last_mut() {
            Some((len, true)) if self.joins_status && self.has_status => *len += 1,
            _ if self.has_status => data.push((1, true)),
            _ => {}
        }
        if self.writable_first { [data, header].concat() } else { [header, data].concat() }
    }

    /// Puts the request into an arena at `base`, whose other bytes are `noise`.
    pub fn lay(&self, choose: &mut impl Choose, base: u64, noise: &[u8]) -> Laid {
        let mut arena = Arena { base, bytes: noise[..ARENA].to_vec() };
        let mut bump = Bump { base, used: 0 };
        let mut descs = Vec::new();
        for (len, write) in self.lengths() {
            let addr = bump.take(choose, len);
            let len = u32::try_from(len).expect("a piece is short");
            descs.push(RawDesc { addr, len, flags: if write { WRITE } else { 0 }, next: 0 });
        }
        self.write_stream(&descs, &mut arena);
        if let Some(last) = descs.iter().rfind(|desc| desc.is_write() && desc.len > 0) {
            arena.write(last.addr + u64::from(last.len) - 1, &[NO_STATUS]);
        }
        let indirect = self.direct.map(|before| descs.split_off(before.min(descs.len() - 1)));
        let mut laid = Laid { direct: descs, indirect: indirect.unwrap_or_default(), table: 0, arena };
        if !laid.indirect.is_empty() {
            laid.table = bump.take(choose, DESC * laid.indirect.len());
            let len = u32::try_from(DESC * laid.indirect.len()).expect("a few descriptors");
            laid.direct.push(RawDesc { addr: laid.table, len, flags: INDIRECT, next: 0 });
        }
        laid.arena.bytes.truncate(bump.used);
        laid
    }

    /// Writes header and segments to the readable descriptors.
    fn write_stream(&self, descs: &[RawDesc], arena: &mut Arena) {
        let mut stream = self.header()[..self.header_len].to_vec();
        stream.extend(self.segments.iter().flat_map(|segment| segment.to_bytes()));
        let mut left = &stream[..];
        let is_header = |desc: &RawDesc| desc.is_write() == self.header_write;
        for desc in descs.iter().filter(|desc| is_header(desc)) {
            let (now, later) =
                left.split_at(left.len().min(usize::try_from(desc.len).expect("u32 fits usize")));
            arena.write(desc.addr, now);
            left = later;
        }
    }
}

/// A chain's descriptors, not yet in a table.
#[derive(Clone, Debug)]
pub struct Laid {
    /// Those of the ring's table; the last may refer to the indirect ones.
    pub direct: Vec<RawDesc>,
    /// Those of an indirect table.
    pub indirect: Vec<RawDesc>,
    /// Where that is.
    pub table: u64,
    /// What they refer to.
    pub arena: Arena,
}

impl Laid {
    /// Chains the descriptors: the direct ones by the slots that they get, the others one after the other.
    pub fn link(&mut self, slots: &[u16]) {
        link(&mut self.direct, |i| slots[i]);
        link(&mut self.indirect, |i| u16::try_from(i).expect("a table is short"));
    }

    /// Writes the descriptors to their places.
    pub fn write(&mut self, slots: &[u16], table: &mut [RawDesc]) {
        for (&slot, &desc) in slots.iter().zip(&self.direct) {
            table[usize::from(slot)] = desc;
        }
        for (i, desc) in self.indirect.iter().enumerate() {
            self.arena.write(self.table + (DESC * i) as u64, &desc.to_bytes());
        }
    }
}

fn link(descs: &mut [RawDesc], slot: impl Fn(usize) -> u16) {
    let last = descs.len().saturating_sub(1);
    for (i, desc) in descs[..last].iter_mut().enumerate() {
        desc.flags |= NEXT;
        desc.next = slot(i + 1);
    }
}

/// Hands out the memory of an arena.
struct Bump {
    base: u64,
    used: usize,
}

impl Bump {
    fn take(&mut self, choose: &mut impl Choose, len: usize) -> u64 {
        let align = choose.pick(&[1, 4, 16, 512]);
        // Odd numbers of bytes apart, so that neighbours are not the same piece of memory.
        let start = (self.used + 1 + choose.below(16)).next_multiple_of(align);
        self.used = start + len + 1;
        assert!(self.used <= ARENA, "a chain of {} bytes", self.used);
        self.base + start as u64
    }
}

/// Some whole blocks of the disk; often close together.
fn extent(oracle: &Oracle, choose: &mut impl Choose, sectors_max: usize) -> (u64, usize) {
    let block = usize::try_from(oracle.facts.block / 512).expect("a block is short");
    let blocks = usize::try_from(oracle.facts.sectors).expect("a small disk") / block;
    let most = if choose.one_in(4) { sectors_max } else { sectors_max / 4 };
    let count = choose.between(1, (most / block).max(1));
    let from = if choose.one_in(3) { blocks.min(128) } else { blocks };
    ((choose.below(from - count + 1) * block) as u64, count * block)
}

fn segment(oracle: &Oracle, choose: &mut impl Choose, kind: u32) -> Extent {
    let (sector, sectors) = extent(oracle, choose, 4 * TRANSFER_MAX);
    let sectors = if choose.one_in(20) { 0 } else { u32::try_from(sectors).expect("a few sectors") };
    let unmap = kind == VIRTIO_BLK_T_WRITE_ZEROES && choose.one_in(2);
    Extent { sector, sectors, flags: u32::from(unmap) }
}

/// Cuts `len` bytes into up to four pieces, mostly one.
fn pieces(choose: &mut impl Choose, len: usize) -> Vec<usize> {
    let mut left = len;
    let mut cut = Vec::new();
    while left > 1 && cut.len() < 3 && choose.one_in(3) {
        let now = if choose.one_in(2) { (left / 2).next_multiple_of(512).min(left - 1) } else { 0 };
        let now = if now == 0 { choose.between(1, left - 1) } else { now };
        cut.push(now);
        left -= now;
    }
    cut.push(left);
    cut
}

/// A chain in its place.
#[derive(Clone, Debug)]
pub struct Made {
    /// The slots of the ring's table that it took, its head first.
    pub slots: Vec<u16>,
    /// What it refers to.
    pub arena: Arena,
    /// What is wrong with it.
    pub wrong: Vec<Wrong>,
}

impl Made {
    /// Its first descriptor.
    pub fn head(&self) -> u16 {
        self.slots[0]
    }
}

/// Makes a chain in slots of `free` and an arena at `base`, and writes it into `table`. `wrongs` things about it are
/// wrong. None if there are not enough slots; then nothing is different.
pub fn make(
    oracle: &Oracle,
    choose: &mut impl Choose,
    table: &mut [RawDesc],
    free: &mut Vec<u16>,
    (base, noise): (u64, &[u8]),
    wrongs: usize,
) -> Option<Made> {
    let wrong: Vec<_> = (0..wrongs).map(|_| Wrong::any(choose)).collect();
    let mut draft = Draft::good(oracle, choose);
    for wrong in &wrong {
        wrong.spoil_draft(&mut draft, oracle, choose);
    }
    let mut laid = draft.lay(choose, base, noise);
    let first = free.len().checked_sub(laid.direct.len())?;
    let slots = free.split_off(first);
    laid.link(&slots);
    for wrong in &wrong {
        wrong.spoil_chain(&mut laid, oracle, choose);
    }
    laid.write(&slots, table);
    Some(Made { slots, arena: laid.arena, wrong })
}
