//! What a world is like: its disk, the limits of that, and how much memory there is.

use crate::doubles::dice::Dice;

use super::super::scripted::{Disk, Faults, Knows};
use super::super::*;
use super::model::Content;
use super::world::SECTORS;

/// A disk of sectors with a stamp.
pub(super) fn on_disk(stamp: u64) -> Vec<u8> {
    (0..SECTORS).flat_map(|sector| Content::Stamp(stamp).bytes(sector)).collect()
}

pub(super) fn random_limits(dice: &mut Dice, secret: bool) -> QueueLimits {
    let (logical_block_size, disk_block_size) =
        dice.pick(&[(512, 4096), (512, 4096), (512, 4096), (512, 512), (4096, 4096), (4096, 512)]);
    let unit = std::cmp::max(logical_block_size, disk_block_size);
    let dma_alignment: u32 = dice.pick(&[1, 4, 512, 512, 4096]).min(unit);
    let limits = QueueLimits {
        logical_block_size,
        disk_block_size,
        dma_alignment,
        length_alignment: dice.pick(&[dma_alignment, dma_alignment.max(512), unit]),
        needs_pinning: secret && dice.chance(50),
        stable_writes: dice.chance(15),
        detached: dice.chance(10),
        max_bytes: dice.pick(&[4096, 8192, 12288, 32768, 1 << 20]),
        ..QueueLimits::default()
    };
    assert!(limits.are_sound(), "{limits:?}");
    limits
}

/// The least memory of a queue with such a reserve.
pub(super) fn least(reserve: usize) -> usize {
    reserve + RequestQueue::PAGES_TO_ACCEPT * PAGE_SIZE
}

/// Queues as they may be, with memory that is set aside for each, and no more than that or some.
pub(super) fn random_config(dice: &mut Dice, limits: QueueLimits, queues: usize) -> QueueConfig {
    let reserve = QueueMemory::RESERVE_MIN + dice.pick(&[0, 0, 1, 5, 257]) * PAGE_SIZE;
    let least = least(reserve);
    let most = least + dice.pick(&[0, 0, 2, 40]) * PAGE_SIZE;
    let budget = Budget::new("simulation's", queues * least + dice.size(0..queues) * (most - least));
    QueueConfig {
        device_id: b"a simulated disk".to_vec(),
        lifetime: dice.chance(70).then_some([1, 0, 2, 0, 11, 0]),
        secure_erase: dice.chance(70),
        ignore_flush: dice.chance(10),
        ignore_discard: dice.chance(10),
        memory: QueueMemory { budget, reserve, most },
        ..QueueConfig::new(dice.pick(&[1, 2, 4]), limits)
    }
}

/// What the disk knows, and what goes wrong on it and how often.
pub(super) fn misbehave(disk: &mut Disk, dice: &mut Dice) {
    let mut rate = |most| dice.pick(&[0, most]);
    let faults = Faults { full: rate(40), short: rate(50), again: rate(20), io_error: 0, end: 0 };
    let (io_error, end) = (rate(10), rate(3));
    disk.faults = if dice.chance(50) { Faults { io_error, end, ..faults } } else { faults };
    let mut knows = || dice.chance(60);
    let (discard, zero, zero_unmap, secure_erase) = (knows(), knows(), knows(), knows());
    disk.knows = Knows { discard, zero, zero_unmap, secure_erase };
    disk.command_unit = dice.pick(&[512, 512, 4096, 16384]);
    disk.room = dice.size(1..7);
}
