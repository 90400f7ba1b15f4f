//! What a disk can take (Linux: `struct queue_limits`).
//!
//! The limits are advertised to the guest, so that its own block layer has cut its I/O already; [`crate::split`] is
//! the backstop for a guest that did not. Found out when the disk is opened, constant afterwards.

use sluice_mem::PAGE_SIZE;
use sluice_mem::bounce::Bounce;

/// What a disk can take in one request, and what it prefers. All sizes are in bytes. (Linux: `struct queue_limits`, with
/// what of it matters where the disk is a file or a device of the kernel's, and two more: the disk's block apart from the
/// guest's, and whether memory has to be pinned.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// The unit in which the guest addresses the disk: every chain of bios is whole blocks of this. 512 or 4096.
    pub logical_block_size: u32,
    /// The unit in which the disk is addressed: every request is whole blocks of this. Where it is more than the logical
    /// block, parts of blocks are read, changed and written (no Linux counterpart: there it is the logical block).
    pub disk_block_size: u32,
    /// What the disk writes without reading first. A power of two, at least the logical block.
    pub physical_block_size: u32,
    /// Where the first physical block begins (Linux: `alignment_offset`).
    pub alignment_offset: u32,
    /// The preferred smallest transfer.
    pub io_min: u32,
    /// The preferred largest transfer, 0 when there is no preference.
    pub io_opt: u32,
    /// What addresses in memory must be multiples of, 1 when any will do (Linux: `dma_alignment + 1`).
    pub dma_alignment: u32,
    /// What the length of each piece of memory must be a multiple of, 1 when any will do.
    pub length_alignment: u32,
    /// The disk needs the kernel to hold on to the memory, as direct I/O does.
    pub needs_pinning: bool,
    /// The memory of a write must not change until it completes, as where a checksum is made of it (Linux:
    /// `BLK_FEAT_STABLE_WRITES`). Guests may change theirs at any time.
    pub stable_writes: bool,
    /// The disk may use memory for longer than the guest lends it, as one does whose requests are given up after a time: so it
    /// is not given the guest's. No Linux counterpart: a driver there resets its device first.
    pub detached: bool,
    /// The most bytes in one request.
    pub max_bytes: u32,
    /// The unit in which space is given back.
    pub discard_granularity: u32,
    /// Where discards shall begin: at multiples of this (Linux: `discard_alignment`).
    pub discard_alignment: u32,
}

impl QueueLimits {
    /// The most bytes in one request: what a bounce buffer holds.
    pub const BYTES_MAX: u32 = 1024 * 1024;

    /// Whether a request can be cut to these limits wherever its memory lies: blocks and alignments are powers of two, a
    /// page of ours is as aligned as is asked for, a block is as long, and the largest request is whole ones of each and
    /// fits a bounce buffer. Lengths are as aligned as addresses, so that what is left of a transfer that was cut
    /// short at a block begins at an address that will do.
    #[must_use]
    pub fn are_sound(&self) -> bool {
        let units =
            [self.logical_block_size, self.disk_block_size, self.dma_alignment, self.length_alignment];
        units.iter().all(|unit| unit.is_power_of_two() && self.max_bytes.is_multiple_of(*unit))
            && self.unit() <= PAGE_SIZE as u64
            && self.dma_alignment as usize <= PAGE_SIZE
            && self.length_alignment >= self.dma_alignment
            && u64::from(self.length_alignment) <= self.unit()
            && (1..=Self::BYTES_MAX).contains(&self.max_bytes)
    }

    /// Whether the guest may write parts of what the disk writes at once.
    #[must_use]
    pub fn has_partial_blocks(&self) -> bool {
        self.disk_block_size > self.logical_block_size
    }

    /// What every request is whole ones of.
    #[must_use]
    pub fn unit(&self) -> u64 {
        u64::from(self.logical_block_size.max(self.disk_block_size))
    }
}

const _: () = assert!(QueueLimits::BYTES_MAX as usize == Bounce::BYTES_MAX);

impl Default for QueueLimits {
    /// A file in the page cache: any memory, blocks of 512 bytes.
    fn default() -> Self {
        Self {
            logical_block_size: 512,
            disk_block_size: 512,
            physical_block_size: 512,
            alignment_offset: 0,
            io_min: 512,
            io_opt: 0,
            dma_alignment: 1,
            length_alignment: 1,
            needs_pinning: false,
            stable_writes: false,
            detached: false,
            max_bytes: Self::BYTES_MAX,
            discard_granularity: 512,
            discard_alignment: 512,
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
        let limits =
            |logical_block_size, disk_block_size, dma_alignment, length_alignment, max_bytes| QueueLimits {
                logical_block_size,
                disk_block_size,
                dma_alignment,
                length_alignment,
                max_bytes,
                ..default
            };
        for sound in [
            limits(512, 512, 1, 1, 512),
            limits(512, 512, 512, 512, 1 << 20),
            limits(4096, 512, 4, 4096, 1 << 20),
            limits(512, 4096, 4096, 4096, 8192),
            limits(4096, 512, 4096, 4096, 8192),
            limits(512, 512, 4, 4, 8192),
        ] {
            assert!(sound.are_sound(), "{sound:?}");
        }
        for unsound in [
            limits(0, 512, 1, 1, 4096),
            limits(512, 512, 0, 1, 4096),
            limits(1536, 512, 1, 1, 1536),
            limits(512, 512, 3, 1, 1536),
            limits(512, 512, 1, 3, 1536),
            limits(512, 512, 4, 1, 4096),
            limits(512, 512, 4096, 256, 4096),
            limits(512, 512, 4096, 512, 8192),
            limits(512, 4096, 4096, 512, 8192),
            limits(4096, 512, 512, 1, 512),
            limits(512, 4096, 512, 512, 512),
            limits(512, 512, 4096, 512, 512),
            limits(512, 512, 1, 4096, 4096),
            limits(512, 512, 8192, 512, 8192),
            limits(8192, 512, 1, 1, 8192),
            limits(512, 8192, 1, 1, 8192),
            limits(512, 512, 1, 1, 0),
            limits(512, 512, 1, 1, (1 << 20) + 512),
        ] {
            assert!(!unsound.are_sound(), "{unsound:?}");
        }
    }
}
