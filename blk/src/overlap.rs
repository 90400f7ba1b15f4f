//! Which ranges of a disk are being written to: for disks whose guests write parts of the disk's blocks.
//!
//! A write of a part of a block reads the block, changes the part, and writes the block. Between the two, no other
//! write may change the same block, on whatever queue. So on such a disk every write holds the blocks that it touches:
//! *shared* when it writes whole blocks (two of those may overlap as they like, the guest asked for it), *exclusive*
//! when it changes a part. No Linux counterpart in the block layer, where drivers have logical blocks; the nearest is
//! the page lock under a buffered write.
//!
//! Deadlock is impossible: a piece of I/O takes one range, at once or not at all, and holds it only until the engine is
//! done with it, for which it needs nothing else. Starvation is too: who was refused leaves a claim, and nobody gets a
//! range before an older claim on it. Each queue has at most one claim, since what is behind it in its FIFO waits too.
//! And nobody sleeps past its turn: whenever a range is given back or a claim is given up, those are woken whose claims
//! it stood in the way of.
//!
//! Disks whose guests write whole blocks do not use this, so their queues share nothing.
//!
//! ```
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicBool, Ordering};
//! use sluice_blk::overlap::{Access, Overlaps, Wake};
//!
//! #[derive(Debug, Default)]
//! struct Thread(AtomicBool);
//!
//! impl Wake for Thread {
//!     fn wake(&self) {
//!         self.0.store(true, Ordering::Relaxed);
//!     }
//! }
//!
//! let (overlaps, second_thread) = (Overlaps::default(), Arc::new(Thread::default()));
//! let first = overlaps.register(8, Arc::new(Thread::default()));
//! let second = overlaps.register(8, second_thread.clone());
//! let held = overlaps.try_take(first, 0, 4096, Access::Exclusive).expect("nobody writes");
//! assert!(overlaps.try_take(second, 0, 8192, Access::Shared).is_none(), "it has to wait");
//! overlaps.put(first, held);
//! assert!(second_thread.0.load(Ordering::Relaxed), "and is woken");
//! assert!(overlaps.try_take(second, 0, 8192, Access::Shared).is_some());
//! ```

use std::sync::{Arc, PoisonError};

use sluice_mem::sync::{Mutex, MutexGuard};

/// How a range is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Whole blocks are written.
    Shared,
    /// A part of a block is read, changed and written.
    Exclusive,
}

/// Wakes the thread of a queue whose claim may succeed now.
pub trait Wake: Send + Sync + std::fmt::Debug {
    /// Makes the thread dispatch its queue again. Called from other queues' threads, and with the ranges locked: it must
    /// neither wait nor come back to them.
    fn wake(&self);
}

/// A queue that writes to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer(u32);

/// What a writer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    start: u64,
    end: u64,
    access: Access,
}

/// Bytes `start..end` of the disk, held or claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    start: u64,
    end: u64,
    access: Access,
    writer: Writer,
}

impl Range {
    fn conflicts(&self, other: &Self) -> bool {
        let overlap = self.start < other.end && other.start < self.end;
        overlap && (self.access == Access::Exclusive || other.access == Access::Exclusive)
    }
}

/// The ranges of one disk that are being written to (no Linux counterpart; md has `wait_barrier` and raid5 its stripe
/// locks for the same reason).
#[derive(Debug, Default)]
pub struct Overlaps {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    held: Vec<Range>,
    /// In the order in which they were made.
    claims: Vec<Range>,
    writers: Vec<Registered>,
    next_writer: u32,
    /// How many ranges all writers together may hold.
    depth: usize,
}

#[derive(Debug)]
struct Registered {
    writer: Writer,
    /// How many ranges it may hold.
    depth: usize,
    wake: Arc<dyn Wake>,
}

impl Overlaps {
    /// A queue that will hold at most `depth` ranges at a time; `wake` wakes its thread.
    pub fn register(&self, depth: usize, wake: Arc<dyn Wake>) -> Writer {
        let mut inner = self.lock();
        let writer = Writer(inner.next_writer);
        inner.next_writer += 1;
        inner.writers.push(Registered { writer, depth, wake });
        // Room for all that can be held and claimed, so that nothing is allocated per I/O. It stays when writers leave.
        inner.depth += depth;
        let (held, claims) = (inner.depth - inner.held.len(), inner.writers.len() - inner.claims.len());
        inner.held.reserve(held);
        inner.claims.reserve(claims);
        writer
    }

    /// A queue that writes no more: all of its I/O has landed. What it holds and claims is given back.
    ///
    /// # Panics
    /// When there is no such writer.
    pub fn unregister(&self, writer: Writer) {
        let mut inner = self.lock();
        let at = inner.writers.iter().position(|registered| registered.writer == writer);
        let registered = inner.writers.swap_remove(at.expect("who leaves was there"));
        inner.depth -= registered.depth;
        while let Some(at) = inner.held.iter().position(|held| held.writer == writer) {
            let gone = inner.held.swap_remove(at);
            inner.wake_waiting(gone);
        }
        inner.drop_claim(writer);
    }

    /// Takes `len` bytes at `start`, whole blocks. `None` when they are in use, or claimed by who came before: then
    /// `writer` has a claim on them, replacing the one it had, and is woken when others have given back what is in the
    /// way. What it gives back itself it knows of.
    pub fn try_take(&self, writer: Writer, start: u64, len: u64, access: Access) -> Option<Held> {
        let end = start.saturating_add(len);
        let range = Range { start, end, access, writer };
        let mut inner = self.lock();
        let own = inner.claims.iter().position(|claim| claim.writer == writer);
        let older = &inner.claims[..own.unwrap_or(inner.claims.len())];
        let free = !inner.held.iter().chain(older).any(|other| other.conflicts(&range));
        // What this writer claimed before, if that is not claimed any more.
        let given_up = match (free, own) {
            (true, own) => {
                let claim = own.map(|own| inner.claims.remove(own));
                inner.held.push(range);
                claim
            }
            // The place in the line stays.
            (false, Some(own)) => Some(std::mem::replace(&mut inner.claims[own], range)),
            (false, None) => {
                inner.claims.push(range);
                None
            }
        };
        if let Some(claim) = given_up.filter(|claim| *claim != range) {
            inner.wake_waiting(claim);
        }
        free.then_some(Held { start, end, access })
    }

    /// Drops the claim of `writer`: what it wanted to write is not to be written any more.
    pub fn cancel(&self, writer: Writer) {
        self.lock().drop_claim(writer);
    }

    /// Gives back what [`Overlaps::try_take`] took.
    ///
    /// # Panics
    /// When the writer does not hold it.
    pub fn put(&self, writer: Writer, held: Held) {
        let Held { start, end, access } = held;
        let range = Range { start, end, access, writer };
        let mut inner = self.lock();
        let at = inner.held.iter().position(|held| *held == range).expect("what is given back was taken");
        inner.held.swap_remove(at);
        inner.wake_waiting(range);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn drop_claim(&mut self, writer: Writer) {
        if let Some(at) = self.claims.iter().position(|claim| claim.writer == writer) {
            let gone = self.claims.remove(at);
            self.wake_waiting(gone);
        }
    }

    /// Wakes those whose claims a range stood in the way of that does no longer. They find out by themselves whether
    /// there is another one; and whoever gave the range back is awake.
    fn wake_waiting(&self, gone: Range) {
        let waiting = |claim: &&Range| claim.writer != gone.writer && claim.conflicts(&gone);
        for claim in self.claims.iter().filter(waiting) {
            let writer = self.writers.iter().find(|registered| registered.writer == claim.writer);
            writer.expect("a claim is one of a writer's").wake.wake();
        }
    }
}

#[cfg(all(test, feature = "loom"))]
mod loom;
#[cfg(test)]
mod tests;
