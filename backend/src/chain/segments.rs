//! The segments of DISCARD, WRITE_ZEROES and SECURE_ERASE requests (virtio 1.3, 5.2.6).
//!
//! ```text
//! sector (u64) | num_sectors (u32) | flags (u32: bit 0 unmap, the others reserved)
//! ```
//!
//! All segments are copied out and checked before any of them acts.

use sluice_blk::bio::{BioChain, Op};
use sluice_blk::sector::{SECTOR_SIZE, Sector};
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

use super::BlkStatus;
use super::buffers::Buffers;
use super::builder::Builder;
use crate::config::DiskConfig;

/// Bytes of a segment.
const SEGMENT_BYTES: usize = 16;

/// Bytes of as many segments as there may be.
const BYTES_MAX: u64 = SEGMENT_BYTES as u64 * DiskConfig::RANGES_MAX as u64;

/// Which request the segments belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Discard,
    WriteZeroes,
    SecureErase,
}

impl Kind {
    fn op(self, unmap: bool, fua: bool) -> Op {
        match self {
            Self::Discard => Op::Discard { fua },
            Self::WriteZeroes => Op::WriteZeroes { unmap, fua },
            Self::SecureErase => Op::SecureErase,
        }
    }

    fn sectors_max(self) -> u32 {
        match self {
            Self::Discard => DiskConfig::DISCARD_SECTORS_MAX,
            Self::WriteZeroes => DiskConfig::WRITE_ZEROES_SECTORS_MAX,
            Self::SecureErase => DiskConfig::SECURE_ERASE_SECTORS_MAX,
        }
    }
}

/// Appends a bio to `chain` for each segment in `data` that has sectors.
pub(super) fn build(
    kind: Kind,
    data: &mut Buffers<'_>,
    builder: &mut Builder<'_>,
    chain: &mut BioChain,
) -> Result<(), BlkStatus> {
    let bytes = data.bytes();
    let whole = bytes > 0 && bytes.is_multiple_of(SEGMENT_BYTES as u64);
    if !whole || bytes > BYTES_MAX {
        return Err(BlkStatus::IoErr);
    }
    while !data.is_empty() {
        let segment: [u8; SEGMENT_BYTES] = data.take_front(builder.pin)?;
        append(kind, segment, builder, chain)?;
    }
    Ok(())
}

fn append(
    kind: Kind,
    segment: [u8; SEGMENT_BYTES],
    builder: &mut Builder<'_>,
    chain: &mut BioChain,
) -> Result<(), BlkStatus> {
    let [sector @ .., a, b, c, d, e, f, g, h] = segment;
    let (sector, sectors) = (u64::from_le_bytes(sector), u32::from_le_bytes([a, b, c, d]));
    let flags = u32::from_le_bytes([e, f, g, h]);
    let unmap = flags == VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    // 5.2.6.2: the unmap flag belongs to zeroes alone, and unknown flags are unsupported.
    if flags != 0 && !(unmap && kind == Kind::WriteZeroes) {
        return Err(BlkStatus::Unsupp);
    }
    if sectors > kind.sectors_max() {
        return Err(BlkStatus::IoErr);
    }
    let range = builder.range(Sector(sector), u64::from(sectors) * SECTOR_SIZE)?;
    if sectors > 0 {
        let op = kind.op(unmap, builder.config.is_writethrough());
        chain.push(builder.queue.bios().try_take(op, range).ok_or(BlkStatus::IoErr)?);
    }
    Ok(())
}
