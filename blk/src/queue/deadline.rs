//! Requests that the disk does not answer in time: they fail, and the disk is fenced until it has answered.
//!
//! What the kernel has been given cannot be taken back: it may read or write the disk, and the request's memory, at any
//! time until it says that it is done. So a guest that is told of a failure must not be able to see either:
//! - Its memory is not used, if the limits say so ([`QueueLimits::detached`](crate::limits::QueueLimits::detached)): all
//!   data is bounced.
//! - A write of today that lands tomorrow must not destroy what was written in between. So as long as there are late ones, all
//!   queues of the disk answer with an error at once.
//!
//! When the last of them has landed, the disk is used again. Linux: `blk_mq_timeout_work`, with the difference that a
//! driver there can reset its device, which makes sure that nothing comes any more.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{Completed, RequestQueue};
use crate::request::{Request, Status};

/// How long a disk may take, and what keeps others from it when it takes longer.
#[derive(Debug, Clone)]
pub struct IoTimeout {
    /// From a chain's submission to its completion.
    pub after: Duration,
    /// The disk's, for all of its queues.
    pub fence: Arc<Fence>,
}

/// Keeps requests from a disk that has some that were failed and may still be done.
#[derive(Debug, Default)]
pub struct Fence {
    /// How many chains were failed before the disk had answered.
    late: AtomicUsize,
}

impl Fence {
    /// Whether nothing may be asked of the disk.
    #[must_use]
    #[inline]
    pub fn is_up(&self) -> bool {
        // With Acquire, what was done by the late ones is seen by whoever goes on.
        self.late.load(Ordering::Acquire) > 0
    }

    fn raise(&self) {
        self.late.fetch_add(1, Ordering::AcqRel);
    }

    /// Returns whether it is down.
    fn lower(&self, count: usize) -> bool {
        self.late.fetch_sub(count, Ordering::AcqRel) == count
    }
}

/// A queue's deadline.
#[derive(Debug)]
pub(super) struct Deadline {
    timeout: IoTimeout,
    /// How many chains of the queue are late.
    late: usize,
    next_look: Instant,
}

impl Deadline {
    /// Looked for so often within the time that a disk may take: it is exceeded by that much at most.
    const LOOKS: u32 = 8;

    pub(super) fn new(timeout: IoTimeout) -> Self {
        Self { timeout, late: 0, next_look: Instant::now() }
    }

    pub(super) fn next_look(&self) -> Instant {
        self.next_look
    }
}

impl RequestQueue {
    /// Whether the disk must not be asked for anything.
    #[inline]
    pub(super) fn is_fenced(&self) -> bool {
        self.deadline.as_ref().is_some_and(|deadline| deadline.timeout.fence.is_up())
    }

    /// How many chains were failed and may still be done.
    pub(super) fn late(&self) -> usize {
        self.deadline.as_ref().map_or(0, |deadline| deadline.late)
    }

    /// Fails what was submitted for too long.
    pub(super) fn expire(&mut self) {
        let Some(deadline) = &mut self.deadline else { return };
        if self.now < deadline.next_look {
            return;
        }
        deadline.next_look = self.now + deadline.timeout.after / Deadline::LOOKS;
        let before = deadline.late;
        for chain in &mut self.chains {
            let is_due = self.now.saturating_duration_since(chain.since) >= deadline.timeout.after;
            if chain.pending > 0 && !chain.is_late && is_due {
                (chain.is_late, chain.status) = (true, Status::IoErr);
                deadline.late += 1;
                deadline.timeout.fence.raise();
                self.done.push(Completed { cookie: chain.cookie, status: Status::IoErr, bytes: 0 });
            }
        }
        let count = deadline.late - before;
        if count > 0 {
            self.tell_late(count);
            self.give_up();
        }
    }

    #[cold]
    fn tell_late(&self, count: usize) {
        let after = self.config.io_timeout.as_ref().map_or(Duration::ZERO, |timeout| timeout.after);
        self.stats.timed_out.add(count as u64);
        self.stats.chains.add(count as u64);
        self.stats.failed.add(count as u64);
        log::error!(
            "{}: no answer of the disk in {after:?}: {count} requests have failed, and so will all others until it answers",
            self.config.name
        );
    }

    /// Ends what of late chains the engine does not have.
    fn give_up(&mut self) {
        let mut again = std::mem::take(&mut self.again);
        self.give_up_requests(&mut again);
        self.again = again;
        let mut stopped = std::mem::take(&mut self.stopped);
        self.give_up_requests(&mut stopped);
        self.stopped = stopped;
        if self.parked.front().is_some_and(|bio| self.is_late(bio.chain)) {
            self.drop_claim();
        }
        for _ in 0..self.parked.len() {
            let bio = self.parked.pop_front().expect("so many there are");
            if self.is_late(bio.chain) {
                self.finish_early(bio, Status::IoErr);
            } else {
                self.parked.push_back(bio);
            }
        }
        self.stalled = false;
    }

    fn give_up_requests(&mut self, requests: &mut VecDeque<Request>) {
        for _ in 0..requests.len() {
            let request = requests.pop_front().expect("so many there are");
            if self.is_late(request.bio().chain) {
                self.end_early(request, Status::IoErr);
            } else {
                requests.push_back(request);
            }
        }
    }

    fn is_late(&self, chain: u32) -> bool {
        self.chains[chain as usize].is_late
    }

    /// A late chain is done: it was answered long ago.
    #[cold]
    pub(super) fn landed(&mut self, index: u32) {
        self.free_chains.push(index);
        let Some(deadline) = &mut self.deadline else { unreachable!("without a deadline nothing is late") };
        deadline.late -= 1;
        if deadline.timeout.fence.lower(1) {
            log::warn!("{}: the disk has answered: it is used again", self.config.name);
        }
    }

    /// The queue ends: waits for what is late, and makes room for the disk's other queues.
    pub(super) fn lower_fence(&mut self) {
        if self.late() > 0 {
            self.engine = Box::new(super::NoEngine);
            if let Some(deadline) = &self.deadline {
                deadline.timeout.fence.lower(deadline.late);
            }
        }
    }
}
