//! Counters of a queue (Linux: `/sys/block/*/stat`).
//!
//! Written by the queue's thread alone, with plain stores; read by anyone at any time. Each number is exact, but
//! two numbers need not be of the same moment.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::split::BounceReason;

/// A number that one thread counts and others may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. Only the thread that owns the counter may call it, hence no read-modify-write operation.
    pub(crate) fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// The number now.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a queue has done since it was made (Linux: `struct disk_stats`, which counts per CPU and does not know bounces).
#[derive(Debug, Default)]
pub struct Stats {
    /// Chains that were completed, whatever their status.
    pub chains: Counter,
    /// Chains that ended with an I/O error.
    pub failed: Counter,
    /// Bytes that were read from the disk.
    pub bytes_read: Counter,
    /// Bytes that were written to the disk.
    pub bytes_written: Counter,
    /// Requests that were given to the engine, again where it had not done all of one.
    pub requests: Counter,
    /// Requests that were less than their bio.
    pub splits: Counter,
    /// Requests that were bounced since an address or length was misaligned.
    pub bounced_misaligned: Counter,
    /// Requests that were bounced since the kernel cannot hold on to the guest's memory.
    pub bounced_unaddressable: Counter,
    /// Requests that were bounced since the memory of a write may not change.
    pub bounced_stable_writes: Counter,
    /// Requests that were bounced since the disk may use memory for longer than the guest lends it.
    pub bounced_detached: Counter,
    /// Requests that were bounced since they were a part of what the disk reads and writes at once.
    pub bounced_partial_block: Counter,
    /// Requests that were bounced since one block was in more pieces than a bio has.
    pub bounced_fragmented: Counter,
    /// Requests that wrote zeroes since the disk could not make them itself.
    pub bounced_zeroes: Counter,
    /// How often dispatching stopped because there was no tag or no memory for the next bio.
    pub parked: Counter,
    /// How often a request was let wait since the disk had no space for it.
    pub stopped: Counter,
    /// Chains that failed since the disk did not answer in time.
    pub timed_out: Counter,
}

impl Stats {
    /// The requests that were bounced for `reason`.
    #[must_use]
    pub fn bounced(&self, reason: BounceReason) -> &Counter {
        match reason {
            BounceReason::Misaligned => &self.bounced_misaligned,
            BounceReason::Unaddressable => &self.bounced_unaddressable,
            BounceReason::StableWrites => &self.bounced_stable_writes,
            BounceReason::Detached => &self.bounced_detached,
            BounceReason::Fragmented => &self.bounced_fragmented,
            BounceReason::PartialBlock => &self.bounced_partial_block,
            BounceReason::Zeroes => &self.bounced_zeroes,
        }
    }
}
