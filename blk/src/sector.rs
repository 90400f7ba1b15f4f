//! Sector and byte arithmetic, checked.
//!
//! As in Linux and in virtio a sector is 512 bytes, whatever the disk's logical block is (`SECTOR_SIZE`,
//! `SECTOR_SHIFT`). Sector numbers come from guests, so nothing here wraps.

/// Bytes in a sector (Linux: `SECTOR_SIZE`).
pub const SECTOR_SIZE: u64 = 512;

/// The number of a sector of a disk (Linux: `sector_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Sector(pub u64);

/// A range of a disk that was checked to lie inside it (Linux: `bi_iter.bi_sector` and `bi_size`, checked by
/// `bio_check_eod` when they are submitted; here they cannot be had unchecked).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskRange {
    offset: u64,
    len: u64,
}

/// Why a range of sectors is not one of a disk.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RangeError {
    /// The range ends past the end of the disk, or past the end of all numbers.
    #[error("{len} bytes at sector {start} end past the disk's {capacity} sectors")]
    PastEnd {
        /// The first sector.
        start: u64,
        /// Bytes from there.
        len: u64,
        /// Sectors that the disk has.
        capacity: u64,
    },
    /// The range does not start or end on a logical block.
    #[error("{len} bytes at sector {start} are not whole blocks of {block} bytes")]
    PartialBlock {
        /// The first sector.
        start: u64,
        /// Bytes from there.
        len: u64,
        /// The size of a logical block.
        block: u32,
    },
}

impl DiskRange {
    /// `len` bytes from `start` on a disk of `capacity` sectors, in whole blocks of `block` bytes.
    ///
    /// # Errors
    /// [`RangeError`] when that is not a range of such a disk.
    #[inline]
    pub fn new(start: Sector, len: u64, capacity: Sector, block: u32) -> Result<Self, RangeError> {
        let past_end = RangeError::PastEnd { start: start.0, len, capacity: capacity.0 };
        let offset = start.0.checked_mul(SECTOR_SIZE).ok_or(past_end)?;
        let end = offset.checked_add(len).ok_or(past_end)?;
        if end.div_ceil(SECTOR_SIZE) > capacity.0 {
            return Err(past_end);
        }
        if (offset | len) & (u64::from(block) - 1) != 0 {
            return Err(RangeError::PartialBlock { start: start.0, len, block });
        }
        Ok(Self { offset, len })
    }

    /// A range of no bytes at the start of the disk: what a flush has.
    #[must_use]
    pub const fn none() -> Self {
        Self { offset: 0, len: 0 }
    }

    /// The blocks of `block` bytes, a power of two, that the range touches.
    #[must_use]
    pub(crate) fn around(self, block: u64) -> Self {
        let offset = self.offset - self.offset % block;
        let end = (self.offset + self.len).next_multiple_of(block);
        Self { offset, len: end - offset }
    }

    /// The range with `len` bytes more after it.
    #[must_use]
    pub(crate) fn extended(self, len: u64) -> Self {
        Self { offset: self.offset, len: self.len + len }
    }

    /// The first byte.
    #[must_use]
    pub fn offset(self) -> u64 {
        self.offset
    }

    /// How many bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a range of nothing needs no name")]
    pub fn len(self) -> u64 {
        self.len
    }

    /// Takes `count` bytes from the front.
    ///
    /// # Panics
    /// When the range has fewer.
    #[must_use]
    #[inline]
    pub fn take_front(&mut self, count: u64) -> Self {
        assert!(count <= self.len, "{count} bytes of a range of {}", self.len);
        let front = Self { offset: self.offset, len: count };
        self.offset += count;
        self.len -= count;
        front
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same in numbers so wide that nothing can wrap.
    fn naive(start: u64, len: u64, capacity: u64, block: u32) -> bool {
        let (start, len, block) = (u128::from(start) * 512, u128::from(len), u128::from(block));
        start + len <= u128::from(capacity) * 512 && start % block == 0 && len % block == 0
    }

    proptest! {
        #[test]
        fn a_range_is_legal_exactly_when_wide_arithmetic_says_so(
            start in prop_oneof![0..100u64, any::<u64>(), Just(u64::MAX), Just(u64::MAX / 512)],
            len in prop_oneof![(0..200u64).prop_map(|n| n * 512), 0..70_000u64, any::<u64>()],
            capacity in prop_oneof![0..200u64, any::<u64>().prop_map(|n| n >> 9)],
            block in prop_oneof![Just(512), Just(4096)],
        ) {
            let range = DiskRange::new(Sector(start), len, Sector(capacity), block);
            prop_assert_eq!(range.is_ok(), naive(start, len, capacity, block));
            if let Ok(range) = range {
                prop_assert_eq!((range.offset(), range.len()), (start * 512, len));
            }
        }

        #[test]
        fn fronts_and_rests_tile_a_range(cuts in prop::collection::vec(1..9u64, 1..20)) {
            let total: u64 = cuts.iter().sum::<u64>() * 512;
            let mut rest = DiskRange::new(Sector(3), total, Sector(1000), 512).expect("inside");
            let mut at = 3 * 512;
            for cut in cuts {
                let front = rest.take_front(cut * 512);
                prop_assert_eq!((front.offset(), front.len()), (at, cut * 512));
                at += front.len();
            }
            prop_assert_eq!(rest.len(), 0);
        }
    }
}
