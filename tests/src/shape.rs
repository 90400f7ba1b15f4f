//! The shapes in which a driver may lay a request out in memory (virtio 1.3, 2.7.4).
//!
//! A request is two streams of bytes, one that the device reads and one that it writes. A [`Shape`] says where the
//! streams are cut into descriptors, how the buffers lie in memory, and which descriptors are indirect. Framing
//! carries no meaning: every shape of a request must get the same answer.
//!
//! [`Placed`] keeps a copy of the memory around all buffers from before the request. Its [`finish`](Placed::finish)
//! compares every byte, so that a device that writes a byte too many, or into a buffer that it may only read, is found.

use std::ops::Range;
use std::sync::Arc;

use crate::driver::{Chain, Desc};
use crate::memory::{GuestMemory, SEAM};
use crate::request::{HEADER, Request};

/// What the status byte holds before the device writes it.
pub const NO_STATUS: u8 = 0xee;
/// What data buffers and the gaps between buffers hold before the device writes them.
const CANARY: u8 = 0xa5;
/// Bytes between two buffers.
const GAP: usize = 24;

/// Which descriptors of a chain are in an indirect table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// None.
    Direct,
    /// All.
    Indirect,
    /// All but the first so many.
    IndirectAfter(usize),
}

/// Where a request's buffers lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Each buffer at an address that is `skew` past a multiple of `align`.
    Aligned {
        /// A power of two.
        align: usize,
        /// Less than `align`.
        skew: usize,
    },
    /// One after the other without gaps, with the middle of the whole on the boundary of two memory regions.
    AcrossRegions,
    /// One after the other, from this guest address on, which the test keeps free.
    At(u64),
}

/// How a request is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Lengths of the pieces of the header; they sum up to 16.
    pub header: Vec<usize>,
    /// Lengths of the pieces of the data, used in turn, over and over; the last piece is what is left.
    pub data: Vec<usize>,
    /// The last piece of the header and the first of the data the device reads are one descriptor.
    pub header_joins_data: bool,
    /// The status byte is the last byte of the last data descriptor the device writes.
    pub status_joins_data: bool,
    /// Direct or indirect.
    pub table: Table,
    /// Where the buffers lie.
    pub place: Place,
}

impl Default for Shape {
    /// As Linux does it: header, one piece of page-aligned data, status, all direct.
    fn default() -> Self {
        Shape {
            header: vec![HEADER],
            data: vec![usize::MAX],
            header_joins_data: false,
            status_joins_data: false,
            table: Table::Direct,
            place: Place::Aligned { align: 4096, skew: 0 },
        }
    }
}

impl Shape {
    /// The default with the data cut into these pieces, over and over.
    pub fn pieces(data: &[usize]) -> Self {
        Shape { data: data.to_vec(), ..Shape::default() }
    }

    /// The same with all descriptors in one indirect table.
    pub fn indirect(self) -> Self {
        Shape { table: Table::Indirect, ..self }
    }

    /// The same with each buffer `skew` bytes past a multiple of 4096.
    pub fn skewed(self, skew: usize) -> Self {
        Shape { place: Place::Aligned { align: 4096, skew }, ..self }
    }

    /// The lengths of the descriptors of a request: the ones that the device reads, and the ones it writes.
    fn cuts(&self, request: &Request) -> (Vec<usize>, Vec<usize>) {
        assert_eq!(self.header.iter().sum::<usize>(), HEADER, "the pieces of a header sum up to {HEADER}");
        let mut readable = self.header.clone();
        let mut data = self.cut_data(request.out.len());
        if self.header_joins_data && !data.is_empty() {
            *readable.last_mut().expect("a header has a piece") += data.remove(0);
        }
        readable.extend(data);
        let mut writable = self.cut_data(request.room);
        match writable.last_mut() {
            Some(last) if self.status_joins_data => *last += 1,
            _ => writable.push(1),
        }
        (readable, writable)
    }

    fn cut_data(&self, len: usize) -> Vec<usize> {
        let mut pieces = Vec::new();
        let mut left = len;
        for &piece in self.data.iter().cycle() {
            if left == 0 {
                break;
            }
            let piece = piece.min(left);
            pieces.push(piece);
            left -= piece;
        }
        pieces
    }

    /// How many descriptors of a ring the request takes.
    pub fn slots(&self, request: &Request) -> usize {
        let (readable, writable) = self.cuts(request);
        let all = readable.len() + writable.len();
        match self.table {
            Table::Direct => all,
            Table::Indirect => 1,
            Table::IndirectAfter(n) => n.min(all - 1) + 1,
        }
    }

    /// Writes the request into guest memory.
    pub fn place(&self, request: &Request, memory: &Arc<GuestMemory>) -> Placed {
        let (readable, writable) = self.cuts(request);
        let (layout, len) = self.layout(readable.iter().chain(&writable));
        let (base, owned) = match self.place {
            Place::Aligned { align, .. } => (memory.alloc(len, align), true),
            Place::AcrossRegions => (SEAM - len as u64 / 2, false),
            Place::At(addr) => (addr, false),
        };
        let mut before = vec![CANARY; len];
        let mut stream = [&request.header()[..], &request.out].concat();
        for (&at, &piece) in layout.iter().zip(&readable) {
            let rest = stream.split_off(piece);
            before[at..at + piece].copy_from_slice(&stream);
            stream = rest;
        }
        let writable: Vec<_> = layout[readable.len()..].iter().copied().zip(writable).collect();
        let &(last, piece) = writable.last().expect("a request has a status");
        before[last + piece - 1] = NO_STATUS;
        memory.write(base, &before);
        let desc = |at: usize, len: usize, writable| Desc {
            addr: base + at as u64,
            len: u32::try_from(len).expect("a piece fits a descriptor"),
            writable,
        };
        let descs: Vec<_> = layout.iter().zip(&readable).map(|(&at, &len)| desc(at, len, false)).collect();
        let descs = [descs, writable.iter().map(|&(at, len)| desc(at, len, true)).collect()].concat();
        let chain = self.chain(descs);
        Placed { memory: Arc::clone(memory), base, before, writable, chain, owned }
    }

    /// Where each piece starts, from the start of the memory taken, and how much memory that is.
    fn layout<'a>(&self, pieces: impl Iterator<Item = &'a usize>) -> (Vec<usize>, usize) {
        let mut end = 0;
        let mut starts = Vec::new();
        for &piece in pieces {
            let start = match self.place {
                Place::Aligned { align, skew } => (end + GAP).next_multiple_of(align) + skew,
                Place::AcrossRegions | Place::At(_) => end,
            };
            starts.push(start);
            end = start + piece;
        }
        (starts, end + GAP)
    }

    fn chain(&self, mut descs: Vec<Desc>) -> Chain {
        match self.table {
            Table::Direct => Chain { direct: descs, indirect: vec![] },
            Table::Indirect => Chain { direct: vec![], indirect: descs },
            Table::IndirectAfter(n) => {
                let indirect = descs.split_off(n.min(descs.len() - 1));
                Chain { direct: descs, indirect }
            }
        }
    }
}

/// A request in guest memory, to be offered to a ring.
#[derive(Debug)]
pub struct Placed {
    memory: Arc<GuestMemory>,
    base: u64,
    before: Vec<u8>,
    /// Offset and length of each piece that the device may write.
    writable: Vec<(usize, usize)>,
    /// The descriptors.
    pub chain: Chain,
    owned: bool,
}

/// What the device wrote for a request.
#[derive(Clone, PartialEq, Eq)]
pub struct Written {
    /// The status byte.
    pub status: u8,
    /// The data, as long as there was room for it.
    pub data: Vec<u8>,
}

impl Placed {
    /// Guest address of the status byte.
    pub fn status_addr(&self) -> u64 {
        let &(at, len) = self.writable.last().expect("a request has a status");
        self.base + (at + len - 1) as u64
    }

    /// The ranges of memory that the device may write.
    pub fn writable(&self) -> Vec<Range<u64>> {
        let range = |&(at, len): &(usize, usize)| self.base + at as u64..self.base + (at + len) as u64;
        self.writable.iter().map(range).collect()
    }

    /// Reads what the device wrote.
    ///
    /// # Errors
    /// The guest address of a byte that the device changed although it was not to.
    pub fn finish(self) -> Result<Written, u64> {
        let mut after = self.memory.read(self.base, self.before.len());
        let mut stream = Vec::new();
        for &(at, len) in &self.writable {
            stream.extend_from_slice(&after[at..at + len]);
            after[at..at + len].copy_from_slice(&self.before[at..at + len]);
        }
        if let Some(i) = (0..after.len()).find(|&i| after[i] != self.before[i]) {
            return Err(self.base + i as u64);
        }
        let status = stream.pop().expect("a request has a status");
        Ok(Written { status, data: stream })
    }

    /// Whether a byte of data is as it was before the request.
    pub fn is_untouched(byte: u8) -> bool {
        byte == CANARY
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        if self.owned {
            self.memory.free(self.base, self.before.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lens(descs: &[Desc]) -> Vec<(u32, bool)> {
        descs.iter().map(|d| (d.len, d.writable)).collect()
    }

    #[test]
    fn a_shape_cuts_both_streams() {
        let memory = GuestMemory::new();
        let shape = Shape { header: vec![8, 8], header_joins_data: true, ..Shape::pieces(&[100, 7]) };
        let placed = shape.place(&Request::write(1, vec![1; 512]), &memory);
        let expected =
            [(8, false), (108, false), (7, false), (100, false), (7, false), (100, false), (7, false)];
        assert_eq!(lens(&placed.chain.direct)[..7], expected);
        assert_eq!(lens(&placed.chain.direct).last(), Some(&(1, true)));
        let shape = Shape { status_joins_data: true, ..Shape::default() }.indirect();
        let placed = shape.place(&Request::read(1, 512), &memory);
        assert_eq!(lens(&placed.chain.indirect), [(16, false), (513, true)]);
    }

    #[test]
    fn a_byte_outside_of_the_writable_buffers_is_noticed() {
        let memory = GuestMemory::new();
        let placed = Shape::default().place(&Request::read(0, 512), &memory);
        let status = placed.status_addr();
        memory.write(status, &[0]);
        memory.write(placed.chain.direct[1].addr, &[3; 512]);
        let written = placed.finish().unwrap_or_else(|at| panic!("{at:#x}"));
        assert_eq!((written.status, written.data), (0, vec![3; 512]));
        let placed = Shape::default().place(&Request::read(0, 512), &memory);
        let past = placed.chain.direct[1].addr + 512;
        memory.write(past, &[0]);
        assert!(matches!(placed.finish(), Err(at) if at == past));
    }
}
