//! A chain as it lies in a guest's memory: descriptors of a ring's table, and the memory that they refer to.

use std::ops::Range;

use crate::driver::{INDIRECT, NEXT, WRITE};

/// Bytes of a descriptor.
pub const DESC: usize = 16;

/// A descriptor with whatever flags and next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RawDesc {
    /// Guest address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// Any flags.
    pub flags: u16,
    /// Which descriptor comes next, if the flags say that one does.
    pub next: u16,
}

impl RawDesc {
    /// As it lies in memory.
    pub fn to_bytes(self) -> [u8; DESC] {
        let mut bytes = [0; DESC];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    pub fn from_bytes(bytes: [u8; DESC]) -> Self {
        let [addr @ .., a, b, c, d, e, f, g, h] = bytes;
        RawDesc {
            addr: u64::from_le_bytes(addr),
            len: u32::from_le_bytes([a, b, c, d]),
            flags: u16::from_le_bytes([e, f]),
            next: u16::from_le_bytes([g, h]),
        }
    }

    /// The device writes the buffer.
    pub fn is_write(self) -> bool {
        self.flags & WRITE != 0
    }

    /// The chain goes on.
    pub fn has_next(self) -> bool {
        self.flags & NEXT != 0
    }

    /// The buffer is a table of descriptors.
    pub fn is_table(self) -> bool {
        self.flags & INDIRECT != 0
    }
}

/// The memory of one chain. Nobody else's buffers are in it.
#[derive(Clone, Debug, Default)]
pub struct Arena {
    /// Its guest address.
    pub base: u64,
    /// What is in it before the device sees it.
    pub bytes: Vec<u8>,
}

impl Arena {
    /// Where the range is in [`bytes`](Self::bytes), if it is.
    pub fn find(&self, addr: u64, len: u64) -> Option<Range<usize>> {
        let start = usize::try_from(addr.checked_sub(self.base)?).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        (end <= self.bytes.len()).then_some(start..end)
    }

    /// Writes bytes at a guest address of the arena.
    ///
    /// # Panics
    /// If they do not fit there.
    pub fn write(&mut self, addr: u64, bytes: &[u8]) {
        let range = self.find(addr, bytes.len() as u64).expect("the maker of a chain knows its arena");
        self.bytes[range].copy_from_slice(bytes);
    }
}

/// The guest addresses at which there is memory, in order; neighbours are one range.
#[derive(Clone, Debug)]
pub struct Mapped(Vec<Range<u64>>);

impl Mapped {
    /// The union of the regions.
    pub fn new(regions: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut ranges: Vec<_> = regions.into_iter().collect();
        ranges.sort_by_key(|range| range.start);
        let mut all: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match all.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => all.push(range),
            }
        }
        Mapped(all)
    }

    /// Whether all of the range is memory.
    pub fn holds(&self, addr: u64, len: u64) -> bool {
        let end = addr.checked_add(len);
        end.is_some_and(|end| self.0.iter().any(|range| range.start <= addr && end <= range.end))
    }

    /// Where memory ends.
    pub fn ends(&self) -> impl Iterator<Item = u64> {
        self.0.iter().map(|range| range.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_regions_are_one_and_nothing_wraps() {
        let mapped = Mapped::new([8..16, 0..8, 32..40]);
        assert!(mapped.holds(4, 8) && mapped.holds(0, 16) && mapped.holds(32, 8));
        assert!(!mapped.holds(12, 5) && !mapped.holds(16, 1) && !mapped.holds(u64::MAX, 2));
    }

    #[test]
    fn a_descriptor_is_read_as_it_was_written() {
        let desc = RawDesc { addr: 0x0102_0304_0506_0708, len: 0x0910_1112, flags: 0x1314, next: 0x1516 };
        assert_eq!(RawDesc::from_bytes(desc.to_bytes()), desc);
        assert_eq!(desc.to_bytes()[..2], [8, 7]);
    }
}
