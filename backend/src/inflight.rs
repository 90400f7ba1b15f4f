//! What a ring has in flight, in memory that outlives this process (vhost-user.rst, "Inflight I/O tracking").
//!
//! The front-end keeps the region and gives it to whoever serves the ring next: a daemon that was killed leaves there which
//! heads it had taken and not given back, and in which order. The region is plain memory: what was stored is there, also
//! when the process died with the next instruction. So the order of the stores is all that matters, and each point between
//! two of them is one at which a successor has to come out right. For each queue:
//!
//! ```text
//!  0          8         10         12                14         16
//! ┌──────────┬─────────┬──────────┬─────────────────┬──────────┬──────────────────┐
//! │ features │ version │ desc_num │ last_batch_head │ used_idx │ one per head ... │
//! └──────────┴─────────┴──────────┴─────────────────┴──────────┴──────────────────┘
//!                      one per head:  inflight (u8) │ 5 unused │ next (u16) │ counter (u64)
//! ```
//!
//! The third byte of the first head of the first queue, unused by the protocol, is 1 while the driver has switched the write
//! cache off: it does not say that again to a successor, and relies on it.
//!
//! - A head is taken: its `counter` is written, then `inflight`.
//! - It is put into the used ring: it becomes the first of a list, `last_batch_head` and from there by `next`.
//! - The driver is shown the used ring (`used.idx`): then `inflight` of all that are in the list is cleared, then `used_idx`
//!   follows. If it has not, a successor knows how many of the list are done.
//!
//! The front-end is not trusted: what it gives back is checked.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use sluice_mem::guest::MemPin;
use sluice_mem::slice::GuestSlice;

pub use self::memory::{InflightError, InflightInfo, InflightMem, InflightSetup};

mod memory;

const VERSION: usize = 8;
const DESC_NUM: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;
const HEADS: usize = 16;
const HEAD_BYTES: usize = 16;
const INFLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;
/// The version of this layout. A region of zeroes is one that nobody has used.
const VERSION_1: u16 = 1;

/// What a region says that cannot be.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum InflightFault {
    /// A layout that this is not.
    #[error("inflight memory of version {0}")]
    Version(u16),
    /// Fewer heads than the ring has.
    #[error("inflight memory for {heads} heads, and a ring of {size}")]
    Heads {
        /// How many it is for.
        heads: u16,
        /// How many the ring has.
        size: u16,
    },
    /// The list of what was given back last leads out of the region, or is longer than the ring.
    #[error("inflight memory with a list of {count} heads given back last, at head {head}")]
    Batch {
        /// How many there should be.
        count: u16,
        /// Where it fails.
        head: u16,
    },
    /// Two heads were taken at the same time.
    #[error("inflight memory with two heads taken as number {0}")]
    Counter(u64),
}

/// A ring's account of what is in flight, and how to leave it.
#[derive(Debug)]
pub struct Inflight {
    slice: GuestSlice,
    /// What the next head is taken as.
    counter: u64,
    /// What was put into the used ring and not shown.
    batch: Vec<u16>,
    last: u16,
}

/// Where a ring goes on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resumed {
    /// The heads that were taken and not given back, in the order in which they were taken.
    pub heads: Vec<u16>,
    /// The index of the next available entry; `None` if nobody knows better than the front-end.
    pub next_avail: Option<u16>,
}

impl Inflight {
    /// Goes on with what a region says of a ring with `size` descriptors and this `used_idx`.
    ///
    /// # Errors
    /// [`InflightFault`] when it cannot be, or the ring does not fit; then it was not changed.
    pub fn start(setup: &InflightSetup, size: u16, used_idx: u16) -> Result<(Self, Resumed), InflightFault> {
        let pin = MemPin::new(Arc::clone(&setup.memory));
        if !setup.fits(size) {
            return Err(InflightFault::Heads { heads: setup.heads(), size });
        }
        let len = HEADS + HEAD_BYTES * usize::from(size);
        let slice = pin.slice(setup.at, len).expect("the region of a queue is in the memory");
        let mut inflight = Self { slice, counter: 0, batch: Vec::with_capacity(usize::from(size)), last: 0 };
        let resumed = match inflight.load(VERSION) {
            0 => inflight.make_fresh(size, used_idx),
            VERSION_1 => inflight.resume(size, used_idx)?,
            other => return Err(InflightFault::Version(other)),
        };
        Ok((inflight, resumed))
    }

    /// Nobody has used the region: the ring is where it is, which after a migration need not be its start.
    fn make_fresh(&mut self, size: u16, used_idx: u16) -> Resumed {
        for head in 0..size {
            self.store(at(head) + INFLIGHT, 0);
        }
        self.store(DESC_NUM, size);
        self.store(LAST_BATCH_HEAD, 0);
        self.store(USED_IDX, used_idx);
        self.store(VERSION, VERSION_1);
        Resumed { heads: Vec::new(), next_avail: None }
    }

    fn resume(&mut self, size: u16, used_idx: u16) -> Result<Resumed, InflightFault> {
        let heads = self.load(DESC_NUM);
        if heads != size {
            return Err(InflightFault::Heads { heads, size });
        }
        let done = self.given_back(size, used_idx)?;
        let mut taken: Vec<(u64, u16)> = (0..size)
            .filter(|head| self.load(at(*head) + INFLIGHT) & 0xff != 0 && !done.contains(head))
            .map(|head| (self.slice.read::<u64>(at(head) + COUNTER), head))
            .collect();
        taken.sort_unstable();
        if let Some(twice) = taken.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(InflightFault::Counter(twice[0].0));
        }
        // All of it can be: now it is settled, in the order in which the predecessor would have.
        for head in done {
            self.store(at(head) + INFLIGHT, 0);
        }
        self.store(USED_IDX, used_idx);
        self.last = self.load(LAST_BATCH_HEAD);
        self.counter = taken.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        let count = u16::try_from(taken.len()).expect("a ring is small");
        Ok(Resumed {
            heads: taken.into_iter().map(|(_, head)| head).collect(),
            next_avail: Some(used_idx.wrapping_add(count)),
        })
    }

    /// The heads that the driver was shown last, if nobody has settled that.
    fn given_back(&self, size: u16, used_idx: u16) -> Result<Vec<u16>, InflightFault> {
        let count = used_idx.wrapping_sub(self.load(USED_IDX));
        let mut head = self.load(LAST_BATCH_HEAD);
        if count > size {
            return Err(InflightFault::Batch { count, head });
        }
        let mut heads = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            if head >= size || heads.contains(&head) {
                return Err(InflightFault::Batch { count, head });
            }
            heads.push(head);
            head = self.load(at(head) + NEXT);
        }
        Ok(heads)
    }

    /// A head is taken.
    #[inline]
    pub fn take(&mut self, head: u16) {
        self.slice.write(at(head) + COUNTER, self.counter.to_le());
        self.counter = self.counter.wrapping_add(1);
        self.store(at(head) + INFLIGHT, 1);
    }

    /// A head is put into the used ring. The driver is not shown it yet.
    #[inline]
    pub fn put(&mut self, head: u16) {
        self.store(at(head) + NEXT, self.last);
        self.store(LAST_BATCH_HEAD, head);
        self.last = head;
        self.batch.push(head);
    }

    /// The driver was shown all that was put, by this `used.idx`.
    #[inline]
    pub fn publish(&mut self, used_idx: u16) {
        while let Some(head) = self.batch.pop() {
            self.store(at(head) + INFLIGHT, 0);
        }
        self.store(USED_IDX, used_idx);
    }

    fn load(&self, offset: usize) -> u16 {
        self.slice.load_u16(offset, Ordering::Acquire)
    }

    /// With release order: after all stores before it, and before the next one of these.
    fn store(&self, offset: usize, value: u16) {
        self.slice.store_u16(offset, value, Ordering::Release);
    }
}

/// Where the entry of a head is.
fn at(head: u16) -> usize {
    HEADS + HEAD_BYTES * usize::from(head)
}

#[cfg(all(test, debug_assertions))] // A process that dies at any store is not there in what is measured.
mod tests;
