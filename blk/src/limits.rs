//! What a disk can take (Linux: `struct queue_limits`).
//!
//! The limits are advertised to the guest, so that its own block layer has cut its I/O already; [`crate::split`] is
//! the backstop for a guest that did not. Found out when the disk is opened, constant afterwards.

use sluice_mem::bounce::Bounce;
use sluice_mem::sglist::SgList;

/// What a disk can take in one request, and what it prefers. All sizes are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// The unit of addressing: every transfer is whole blocks. 512 or 4096.
    pub logical_block_size: u32,
    /// What the disk writes without reading first. A power of two, at least the logical block.
    pub physical_block_size: u32,
    /// The preferred smallest transfer.
    pub io_min: u32,
    /// The preferred largest transfer, 0 when there is no preference.
    pub io_opt: u32,
    /// Memory whose pieces start and end at multiples of this can be given to the disk; other memory is bounced. 1
    /// when anything goes (Linux: `dma_alignment + 1`, and what lengths must be multiples of).
    pub dma_alignment: u32,
    /// The most pieces of memory in one request.
    pub max_segments: usize,
    /// The most bytes in one request.
    pub max_bytes: u32,
    /// The unit in which space is given back.
    pub discard_granularity: u32,
}

impl QueueLimits {
    /// The most pieces of memory in one request: what a bio holds.
    pub const SEGMENTS_MAX: usize = SgList::CAPACITY;

    /// The most bytes in one request: what a bounce buffer holds.
    pub const BYTES_MAX: u32 = 1024 * 1024;

    /// Whether a request can be cut to these limits wherever its memory lies: the block and the alignment are powers
    /// of two, and the largest request is whole ones of both and fits a bounce buffer.
    #[must_use]
    pub fn are_sound(&self) -> bool {
        let fits = |unit: u32| unit.is_power_of_two() && self.max_bytes.is_multiple_of(unit);
        fits(self.logical_block_size)
            && fits(self.dma_alignment)
            && (1..=Self::BYTES_MAX).contains(&self.max_bytes)
    }
}

const _: () = assert!(QueueLimits::BYTES_MAX as usize == Bounce::BYTES_MAX);

impl Default for QueueLimits {
    /// A file in the page cache: any memory, blocks of 512 bytes.
    fn default() -> Self {
        Self {
            logical_block_size: 512,
            physical_block_size: 512,
            io_min: 512,
            io_opt: 0,
            dma_alignment: 1,
            max_segments: Self::SEGMENTS_MAX,
            max_bytes: Self::BYTES_MAX,
            discard_granularity: 512,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_sound_exactly_when_every_cut_is_possible() {
        let default = QueueLimits::default();
        assert!(default.are_sound());
        for (block, alignment, most, sound) in [
            (512, 1, 512, true),
            (512, 512, 1 << 20, true),
            (4096, 4, 1 << 20, true),
            (512, 4096, 8192, true),
            (0, 1, 4096, false),
            (512, 0, 4096, false),
            (1536, 1, 1536, false),
            (512, 3, 1536, false),
            (4096, 512, 512, false),
            (512, 4096, 512, false),
            (512, 1, 0, false),
            (512, 1, (1 << 20) + 512, false),
        ] {
            let limits = QueueLimits {
                logical_block_size: block,
                dma_alignment: alignment,
                max_bytes: most,
                ..default
            };
            assert_eq!(limits.are_sound(), sound, "{limits:?}");
        }
    }
}
