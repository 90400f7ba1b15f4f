//! The configuration space as the tests read it (virtio 1.3, 5.2.4), and features by their numbers.

use sluice_tests::guest::Guest;

/// Offsets in struct virtio_blk_config.
pub(crate) mod at {
    pub(crate) const CAPACITY: usize = 0;
    pub(crate) const SIZE_MAX: usize = 8;
    pub(crate) const SEG_MAX: usize = 12;
    pub(crate) const BLK_SIZE: usize = 20;
    pub(crate) const PHYSICAL_BLOCK_EXP: usize = 24;
    pub(crate) const ALIGNMENT_OFFSET: usize = 25;
    pub(crate) const MIN_IO_SIZE: usize = 26;
    pub(crate) const OPT_IO_SIZE: usize = 28;
    pub(crate) const WRITEBACK: usize = 32;
    pub(crate) const NUM_QUEUES: usize = 34;
    pub(crate) const MAX_DISCARD_SECTORS: usize = 36;
    pub(crate) const MAX_DISCARD_SEG: usize = 40;
    pub(crate) const DISCARD_SECTOR_ALIGNMENT: usize = 44;
    pub(crate) const MAX_WRITE_ZEROES_SECTORS: usize = 48;
    pub(crate) const MAX_WRITE_ZEROES_SEG: usize = 52;
    pub(crate) const WRITE_ZEROES_MAY_UNMAP: usize = 56;
    /// Up to the end of the fields for WRITE_ZEROES.
    pub(crate) const END: usize = 60;
}

/// A little-endian field of the configuration space.
pub(crate) fn field(config: &[u8], at: usize, len: usize) -> u64 {
    config[at..at + len].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// The whole space.
pub(crate) fn config(guest: &mut Guest) -> Vec<u8> {
    let config = guest.session().config(0, u32::try_from(at::END).unwrap());
    guest.need(config, "GET_CONFIG")
}

/// Features as a mask.
pub(crate) fn bits(numbers: &[u32]) -> u64 {
    numbers.iter().map(|bit| 1 << bit).sum()
}
