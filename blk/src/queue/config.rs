//! What a queue is made for, and with how much memory.

use std::sync::Arc;

use sluice_mem::PAGE_SIZE;
use sluice_mem::bounce::Bounce;
use sluice_mem::budget::Budget;

use super::{IoTimeout, RequestQueue};
use crate::limits::QueueLimits;
use crate::overlap::{Overlaps, Wake};
use crate::word::words;

/// What a queue is made for (Linux: `struct blk_mq_tag_set`, and what a driver tells about its disk).
#[derive(Debug, Clone)]
pub struct QueueConfig {
    /// What the log calls the queue.
    pub name: String,
    /// How many chains may be submitted at a time.
    pub depth: u16,
    /// What the disk can take.
    pub limits: QueueLimits,
    /// What [`DeviceId`](super::PassthroughCommand::DeviceId) answers.
    pub device_id: Vec<u8>,
    /// What [`Lifetime`](super::PassthroughCommand::Lifetime) answers, where the disk knows.
    pub lifetime: Option<[u8; 6]>,
    /// The disk can erase so that nothing can be recovered.
    pub secure_erase: bool,
    /// Flushes are answered without asking the disk (QEMU: `cache=unsafe`).
    pub ignore_flush: bool,
    /// Discards are answered without asking the disk, and zeroes keep their space (QEMU: `discard=ignore`).
    pub ignore_discard: bool,
    /// What becomes of writes for which the disk has no space.
    pub on_enospc: OnEnospc,
    /// How long the disk may take. `None`: as long as it takes. The limits should say that memory is
    /// [detached](QueueLimits::detached).
    pub io_timeout: Option<IoTimeout>,
    /// What the queue's memory is charged to.
    pub memory: QueueMemory,
    /// Who else writes to the disk, and what wakes the queue's thread. Used where the limits have partial blocks; `None`
    /// where the queue is the only one.
    pub overlaps: Option<(Arc<Overlaps>, Arc<dyn Wake>)>,
}

impl QueueConfig {
    /// A queue for `depth` chains on a disk with `limits`, with nothing special about it and a budget of its own.
    #[must_use]
    pub fn new(depth: u16, limits: QueueLimits) -> Self {
        Self {
            name: "a queue".to_owned(),
            depth,
            limits,
            device_id: Vec::new(),
            lifetime: None,
            secure_erase: false,
            ignore_flush: false,
            ignore_discard: false,
            on_enospc: OnEnospc::default(),
            io_timeout: None,
            memory: QueueMemory::default(),
            overlaps: None,
        }
    }
}

/// What becomes of a write for which the disk has no space (ENOSPC, EDQUOT): QEMU's words for its `werror=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnEnospc {
    /// It fails.
    #[default]
    Report,
    /// It waits, and is tried again each second until there is space. Others go on meanwhile.
    Stop,
}

words!(OnEnospc { Report => "report", Stop => "stop" });

/// What memory a queue may use for tables of pieces and for bounce buffers. In bytes. (Linux: the `mempool_t`s of a
/// `struct bio_set` and of its bounce buffers, which grow with the system's memory; these do not.)
///
/// Queues of one budget are made one after the other, and what the first ones use by then must not be what the others
/// need: give each a budget of its own with [`QueueMemory::LEAST`] [set aside](Budget::with_min).
#[derive(Debug, Clone)]
pub struct QueueMemory {
    /// What it is charged to.
    pub budget: Arc<Budget>,
    /// What is set aside for progress, charged when the queue is made: [`QueueMemory::RESERVE_MIN`] at least.
    pub reserve: usize,
    /// The most that is used, reserve included.
    pub most: usize,
}

impl QueueMemory {
    /// The smallest reserve with which there is progress: a bounce buffer for one block, its table, and a table for what
    /// was cut.
    pub const RESERVE_MIN: usize = 3 * PAGE_SIZE;
    /// The reserve for a piece of the largest size.
    pub const RESERVE: usize = Bounce::RESERVE_BYTES + PAGE_SIZE;
    /// The least that a queue needs, charged when it is made: the reserve, and tables for one chain.
    pub const LEAST: usize = Self::RESERVE + RequestQueue::PAGES_TO_ACCEPT * PAGE_SIZE;
    /// So much that memory is no bottleneck: 64 KiB for each of 256 requests.
    pub const MOST: usize = 16 * 1024 * 1024;

    /// Memory out of `budget`, of which a queue may use [`QueueMemory::MOST`].
    #[must_use]
    pub fn of(budget: Arc<Budget>) -> Self {
        Self { budget, reserve: Self::RESERVE, most: Self::MOST }
    }
}

impl Default for QueueMemory {
    fn default() -> Self {
        Self::of(Budget::new("queue's", Self::MOST))
    }
}
