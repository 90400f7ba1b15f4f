//! The config space of a virtio-blk device (virtio 1.3, 5.2.4) and the features that go with it.
//!
//! All of it is derived from the disk: what [`DiskConfig`] says is what the guest sees and what its requests are
//! checked against.
//!
//! ```text
//!  0 capacity u64 |  8 size_max u32 | 12 seg_max u32 | 16 geometry (4 bytes)
//! 20 blk_size u32 | 24 physical_block_exp u8 | 25 alignment_offset u8 | 26 min_io_size u16 | 28 opt_io_size u32
//! 32 writeback u8 | 33 unused | 34 num_queues u16
//! 36 max_discard_sectors u32      | 40 max_discard_seg u32      | 44 discard_sector_alignment u32
//! 48 max_write_zeroes_sectors u32 | 52 max_write_zeroes_seg u32 | 56 write_zeroes_may_unmap u8
//! 60 max_secure_erase_sectors u32 | 64 max_secure_erase_seg u32 | 68 secure_erase_sector_alignment u32
//! ```
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::sync::atomic::{AtomicBool, Ordering};

use sluice_blk::bio::BioSet;
use sluice_blk::disk::Disk;
use sluice_blk::limits::QueueLimits;
use sluice_blk::sector::{SECTOR_SIZE, Sector};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SECURE_ERASE, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// The disk knows how worn it is (virtio 1.3, 5.2.3).
const VIRTIO_BLK_F_LIFETIME: u32 = 15;

/// Where the `writeback` field is.
const WRITEBACK_OFFSET: u32 = 32;

/// What the guest may know of a disk.
#[derive(Debug)]
pub struct DiskConfig {
    capacity: Sector,
    limits: QueueLimits,
    read_only: bool,
    write_zeroes: bool,
    secure_erase: bool,
    lifetime: bool,
    num_queues: u16,
    queue_size: u16,
    /// Set by the driver through CONFIG_WCE.
    writeback: AtomicBool,
    /// FLUSH was negotiated: without it a driver cannot make anything durable, so each write has to be.
    can_flush: AtomicBool,
    /// RING_INDIRECT_DESC was negotiated, or nothing yet.
    indirect: AtomicBool,
    /// BLK_SIZE was negotiated, or nothing yet: without it a driver knows blocks of 512 bytes only.
    knows_block: AtomicBool,
    /// The cache mode makes writes durable whatever the driver says.
    writethrough: bool,
}

impl DiskConfig {
    /// The most segments of data in a request, with indirect descriptors.
    pub const SEG_MAX: u32 = 1024;
    /// The most bytes in one segment. A request is not bounded by this; it is cut to what the disk takes. Some drivers
    /// multiply it with SEG_MAX in 32 bits, so the product has to fit.
    pub const SIZE_MAX: u32 = 1024 * 1024;
    /// The most ranges in a discard or write-zeroes request: each is a bio.
    pub const RANGES_MAX: u32 = 16;
    /// The most sectors in one discarded range: 2 GiB.
    pub const DISCARD_SECTORS_MAX: u32 = 4 * 1024 * 1024;
    /// The most sectors in one zeroed range: 2 GiB.
    pub const WRITE_ZEROES_SECTORS_MAX: u32 = 4 * 1024 * 1024;
    /// The most sectors in one erased range: 64 MiB, as the thread that erases does nothing else meanwhile.
    pub const SECURE_ERASE_SECTORS_MAX: u32 = 128 * 1024;
    /// Bytes of the config space: what the fields have, and zeroes up to the largest message (vhost-user.rst).
    pub const BYTES: u32 = 256;
    /// Some front-ends ask for the config space where virtio-mmio has it.
    const MMIO_OFFSET: u32 = 0x100;

    /// The config of `disk` with so many queues of at most `queue_size` descriptors.
    #[must_use]
    pub fn new(disk: &Disk, num_queues: u16, queue_size: u16) -> Self {
        Self {
            capacity: disk.capacity(),
            limits: *disk.limits(),
            read_only: disk.is_read_only(),
            write_zeroes: disk.has_write_zeroes(),
            secure_erase: disk.has_secure_erase(),
            lifetime: disk.lifetime().is_some(),
            num_queues,
            queue_size,
            writeback: AtomicBool::new(!disk.cache().is_writethrough()),
            can_flush: AtomicBool::new(true),
            indirect: AtomicBool::new(true),
            knows_block: AtomicBool::new(true),
            writethrough: disk.cache().is_writethrough(),
        }
    }

    /// The device and ring features to offer, without those of the transport.
    #[must_use]
    pub fn features(&self) -> u64 {
        let always = [
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_BLK_F_SIZE_MAX,
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_TOPOLOGY,
            VIRTIO_BLK_F_FLUSH,
            VIRTIO_BLK_F_CONFIG_WCE,
        ];
        let sometimes = [
            (VIRTIO_BLK_F_RO, self.read_only),
            (VIRTIO_BLK_F_DISCARD, !self.read_only),
            (VIRTIO_BLK_F_WRITE_ZEROES, self.write_zeroes),
            (VIRTIO_BLK_F_SECURE_ERASE, self.secure_erase),
            (VIRTIO_BLK_F_LIFETIME, self.lifetime),
            (VIRTIO_BLK_F_MQ, self.num_queues > 1),
        ];
        let chosen = sometimes.iter().filter(|(_, offered)| *offered).map(|(bit, _)| bit);
        always.iter().chain(chosen).fold(0, |all, bit| all | 1 << bit)
    }

    /// Takes note of what the driver has accepted.
    pub fn accept(&self, features: u64) {
        let has = |bit: u32| features & (1 << bit) != 0;
        if has(VIRTIO_BLK_F_CONFIG_WCE) && !has(VIRTIO_BLK_F_FLUSH) {
            // 5.2.5.2: what cannot be flushed is not cached.
            self.writeback.store(false, Ordering::Relaxed);
        }
        self.can_flush.store(has(VIRTIO_BLK_F_FLUSH), Ordering::Relaxed);
        self.indirect.store(has(VIRTIO_RING_F_INDIRECT_DESC), Ordering::Relaxed);
        self.knows_block.store(has(VIRTIO_BLK_F_BLK_SIZE), Ordering::Relaxed);
    }

    /// As it was before any driver.
    pub fn reset(&self) {
        self.writeback.store(true, Ordering::Relaxed);
        self.disconnect();
    }

    /// The front-end has gone. It may come back with a driver that was told that its writes are durable and that does
    /// not ask again, so what was written through still is, until the device is reset.
    pub fn disconnect(&self) {
        self.writeback.fetch_and(!self.writethrough, Ordering::Relaxed);
        self.can_flush.store(true, Ordering::Relaxed);
        self.indirect.store(true, Ordering::Relaxed);
        self.knows_block.store(true, Ordering::Relaxed);
    }

    /// Whether the disk can only be read.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether ranges can be zeroed.
    #[must_use]
    pub fn has_write_zeroes(&self) -> bool {
        self.write_zeroes
    }

    /// Whether ranges can be erased so that nothing can be recovered.
    #[must_use]
    pub fn has_secure_erase(&self) -> bool {
        self.secure_erase
    }

    /// Whether the disk knows how worn it is.
    #[must_use]
    pub fn has_lifetime(&self) -> bool {
        self.lifetime
    }

    /// How many sectors the disk has.
    #[must_use]
    pub fn capacity(&self) -> Sector {
        self.capacity
    }

    /// What the disk can take, with the blocks that the driver knows.
    #[must_use]
    pub fn limits(&self) -> QueueLimits {
        let mut limits = self.limits;
        if !self.knows_block.load(Ordering::Relaxed) {
            limits.logical_block_size = 512;
        }
        limits
    }

    /// Whether each write has to be durable when it completes (virtio 1.3, 5.2.6.2).
    #[must_use]
    pub fn is_writethrough(&self) -> bool {
        !self.writeback.load(Ordering::Relaxed) || !self.can_flush.load(Ordering::Relaxed)
    }

    /// Whether the driver has a write cache, as the `writeback` field says.
    #[must_use]
    pub fn is_writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    /// Switches the driver's write cache on or off.
    pub fn set_writeback(&self, is_writeback: bool) {
        self.writeback.store(is_writeback, Ordering::Relaxed);
    }

    /// A part of the config space; `None` when it is not all inside.
    #[must_use]
    pub fn read(&self, offset: u32, size: u32) -> Option<Vec<u8>> {
        let offset = config_offset(offset);
        let end = offset.checked_add(size).filter(|end| *end <= Self::BYTES)?;
        self.bytes().get(offset as usize..end as usize).map(<[u8]>::to_vec)
    }

    /// Writes to the config space: the `writeback` field alone can be written, with 0 or 1.
    ///
    /// # Errors
    /// [`WriteError`] when something else is written; then nothing was.
    pub fn write(&self, offset: u32, data: &[u8]) -> Result<(), WriteError> {
        match (config_offset(offset), data) {
            (WRITEBACK_OFFSET, [value @ (0 | 1)]) => {
                self.set_writeback(*value == 1);
                Ok(())
            }
            (WRITEBACK_OFFSET, [value]) => Err(WriteError::Writeback { value: *value }),
            (offset, data) => Err(WriteError::ReadOnly { offset, len: data.len() }),
        }
    }

    /// The most segments of a request: with direct descriptors, no more than fit the ring with header and status.
    fn seg_max(&self) -> u32 {
        if self.indirect.load(Ordering::Relaxed) {
            return Self::SEG_MAX;
        }
        u32::from(self.queue_size).saturating_sub(2).clamp(1, Self::SEG_MAX)
    }

    #[expect(clippy::arithmetic_side_effects, reason = "the limits are the disk's: a block has bytes")]
    fn bytes(&self) -> [u8; Self::BYTES as usize] {
        let mut space = Space([0; Self::BYTES as usize]);
        let limits = &self.limits;
        let block = limits.logical_block_size;
        let physical_exp = (limits.physical_block_size / block).checked_ilog2().unwrap_or(0);
        let min_io = u16::try_from(limits.io_min / block).unwrap_or(u16::MAX);
        space.put(0, self.capacity.0.to_le_bytes());
        space.put(8, Self::SIZE_MAX.to_le_bytes());
        space.put(12, self.seg_max().to_le_bytes());
        space.put(20, block.to_le_bytes());
        let alignment = u8::try_from(limits.alignment_offset / block).unwrap_or(0);
        space.put(24, [u8::try_from(physical_exp).unwrap_or(0), alignment]);
        space.put(26, min_io.to_le_bytes());
        space.put(28, (limits.io_opt / block).to_le_bytes());
        space.put(32, [u8::from(self.writeback.load(Ordering::Relaxed)), 0]);
        space.put(34, self.num_queues.to_le_bytes());
        let alignment = u32::try_from(u64::from(limits.discard_alignment) / SECTOR_SIZE).unwrap_or(1);
        if !self.read_only {
            space.put(36, Self::DISCARD_SECTORS_MAX.to_le_bytes());
            space.put(40, Self::RANGES_MAX.to_le_bytes());
            space.put(44, alignment.to_le_bytes());
        }
        if self.write_zeroes {
            space.put(48, Self::WRITE_ZEROES_SECTORS_MAX.to_le_bytes());
            space.put(52, Self::RANGES_MAX.to_le_bytes());
            space.put(56, [1]);
        }
        if self.secure_erase {
            space.put(60, Self::SECURE_ERASE_SECTORS_MAX.to_le_bytes());
            space.put(64, Self::RANGES_MAX.to_le_bytes());
            space.put(68, alignment.to_le_bytes());
        }
        space.0
    }
}

const _: () = assert!((DiskConfig::SIZE_MAX as u64 * DiskConfig::SEG_MAX as u64) < 1 << 31);
const _: () = assert!(DiskConfig::RANGES_MAX as usize <= BioSet::CHAIN_MAX);

/// Why the config space cannot be written.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum WriteError {
    /// Neither 0 nor 1.
    #[error("writeback {value}: 0 and 1 are possible")]
    Writeback {
        /// What the driver wrote.
        value: u8,
    },
    /// Other fields are read-only.
    #[error("{len} bytes at offset {offset} of the config space cannot be written")]
    ReadOnly {
        /// Where.
        offset: u32,
        /// How many bytes.
        len: usize,
    },
}

fn config_offset(offset: u32) -> u32 {
    offset.checked_sub(DiskConfig::MMIO_OFFSET).unwrap_or(offset)
}

/// The bytes of a config space.
struct Space([u8; DiskConfig::BYTES as usize]);

impl Space {
    #[expect(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        reason = "offsets are this file's own"
    )]
    fn put<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) {
        self.0[offset..offset + N].copy_from_slice(&bytes);
    }
}

#[cfg(test)]
mod tests;
