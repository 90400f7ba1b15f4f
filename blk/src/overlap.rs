//! Which ranges of a disk are being written to: for disks whose guests write parts of the disk's blocks.
//!
//! A write of a part of a block reads the block, changes the part, and writes the block. Between the two, no other
//! write may change the same block, on whatever queue. So on such a disk every write holds the blocks that it touches:
//! *shared* when it writes whole blocks (two of those may overlap as they like, the guest asked for it), *exclusive*
//! when it changes a part. No Linux counterpart in the block layer, where drivers have logical blocks; the nearest is
//! the page lock under a buffered write.
//!
//! Deadlock is impossible: a piece of I/O takes one range, at once or not at all, and holds it only while the engine
//! has it. Starvation is too: who was refused leaves a claim, and nobody gets a range before an older claim on it.
//! Each queue has at most one claim, since what is behind it in its FIFO waits too.
//!
//! Disks whose guests write whole blocks do not use this, so their queues share nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    /// Makes the thread dispatch its queue again.
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

/// The ranges of one disk that are being written to.
#[derive(Debug, Default)]
pub struct Overlaps {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    held: Vec<Range>,
    /// In the order in which they were made.
    claims: Vec<Range>,
    writers: Vec<(Writer, Arc<dyn Wake>)>,
    next_writer: u32,
}

impl Overlaps {
    /// A queue that will hold at most `depth` ranges at a time; `wake` wakes its thread.
    pub fn register(&self, depth: usize, wake: Arc<dyn Wake>) -> Writer {
        let mut inner = self.lock();
        let writer = Writer(inner.next_writer);
        inner.next_writer += 1;
        inner.writers.push((writer, wake));
        // Room for all that can be held, so that nothing is allocated per I/O.
        inner.held.reserve(depth);
        inner.claims.reserve(1);
        writer
    }

    /// A queue that writes no more: all of its I/O has landed. What it holds and claims is given back.
    pub fn unregister(&self, writer: Writer) {
        let mut inner = self.lock();
        inner.writers.retain(|(other, _)| *other != writer);
        inner.held.retain(|held| held.writer != writer);
        inner.claims.retain(|claim| claim.writer != writer);
        inner.wake_claimants();
    }

    /// Takes `len` bytes at `start`, whole blocks. `None` when they are in use, or claimed by who came before: then
    /// `writer` has a claim on them, replacing the one it had, and is woken when it may succeed.
    pub fn try_take(&self, writer: Writer, start: u64, len: u64, access: Access) -> Option<Held> {
        let end = start.saturating_add(len);
        let range = Range { start, end, access, writer };
        let mut inner = self.lock();
        let own = inner.claims.iter().position(|claim| claim.writer == writer);
        let older = &inner.claims[..own.unwrap_or(inner.claims.len())];
        let free = !inner.held.iter().chain(older).any(|other| other.conflicts(&range));
        match (free, own) {
            (true, own) => {
                if let Some(own) = own {
                    inner.claims.remove(own);
                }
                inner.held.push(range);
            }
            // The place in the line stays.
            (false, Some(own)) => inner.claims[own] = range,
            (false, None) => inner.claims.push(range),
        }
        free.then_some(Held { start, end, access })
    }

    /// Drops the claim of `writer`: what it wanted to write is not to be written any more.
    pub fn cancel(&self, writer: Writer) {
        let mut inner = self.lock();
        inner.claims.retain(|claim| claim.writer != writer);
        inner.wake_claimants();
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
        inner.wake_claimants();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Wakes those who wait for something. There are few, and they find out by themselves.
    fn wake_claimants(&self) {
        for claim in &self.claims {
            if let Some((_, wake)) = self.writers.iter().find(|(writer, _)| *writer == claim.writer) {
                wake.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Debug, Default)]
    struct Counted(AtomicUsize);

    impl Wake for Counted {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn writers(overlaps: &Overlaps) -> [(Writer, Arc<Counted>); 3] {
        std::array::from_fn(|_| {
            let wake = Arc::new(Counted::default());
            (overlaps.register(8, Arc::clone(&wake) as Arc<dyn Wake>), wake)
        })
    }

    #[test]
    fn whole_blocks_may_overlap_and_parts_may_not() {
        let overlaps = Overlaps::default();
        let [(a, _), (b, _), (c, _)] = writers(&overlaps);
        let by_a = overlaps.try_take(a, 0, 10, Access::Shared).expect("nobody writes");
        let by_b = overlaps.try_take(b, 5, 10, Access::Shared).expect("whole blocks may overlap");
        assert_eq!(overlaps.try_take(c, 9, 1, Access::Exclusive), None);
        overlaps.put(a, by_a);
        assert_eq!(overlaps.try_take(c, 9, 1, Access::Exclusive), None);
        overlaps.put(b, by_b);
        assert!(overlaps.try_take(c, 9, 1, Access::Exclusive).is_some());
        assert_eq!(overlaps.try_take(a, 0, 10, Access::Shared), None);
        assert!(overlaps.try_take(b, 10, 1, Access::Exclusive).is_some(), "neighbours do not overlap");
    }

    #[test]
    fn nobody_overtakes_a_claim_but_where_it_does_not_reach() {
        let overlaps = Overlaps::default();
        let [(a, _), (b, _), (c, _)] = writers(&overlaps);
        let by_a = overlaps.try_take(a, 0, 1, Access::Shared).expect("nobody writes");
        assert_eq!(overlaps.try_take(b, 0, 1, Access::Exclusive), None);
        assert_eq!(overlaps.try_take(c, 0, 2, Access::Shared), None, "it would starve the claim before it");
        overlaps.put(a, by_a);
        assert_eq!(overlaps.try_take(c, 0, 2, Access::Shared), None);
        let by_b = overlaps.try_take(b, 0, 1, Access::Exclusive).expect("its turn");
        overlaps.put(b, by_b);
        assert!(overlaps.try_take(c, 0, 2, Access::Shared).is_some());
    }

    #[test]
    fn who_waits_is_woken_and_who_does_not_is_not() {
        let overlaps = Overlaps::default();
        let [(a, a_woken), (b, b_woken), (c, c_woken)] = writers(&overlaps);
        let by_a = overlaps.try_take(a, 0, 1, Access::Exclusive).expect("nobody writes");
        assert_eq!(overlaps.try_take(b, 0, 1, Access::Shared), None);
        assert!(overlaps.try_take(c, 7, 1, Access::Shared).is_some());
        overlaps.put(a, by_a);
        let woken = [a_woken, b_woken, c_woken].map(|woken| woken.0.load(Ordering::Relaxed));
        assert_eq!(woken, [0, 1, 0]);
    }

    #[test]
    fn a_claim_that_is_dropped_lets_the_next_one_through() {
        let overlaps = Overlaps::default();
        let [(a, _), (b, _), (c, c_woken)] = writers(&overlaps);
        let by_a = overlaps.try_take(a, 0, 1, Access::Shared);
        for leave in [Overlaps::cancel, Overlaps::unregister] {
            assert_eq!(overlaps.try_take(b, 0, 1, Access::Exclusive), None);
            assert_eq!(overlaps.try_take(c, 0, 1, Access::Shared), None);
            let before = c_woken.0.load(Ordering::Relaxed);
            leave(&overlaps, b);
            assert_eq!(c_woken.0.load(Ordering::Relaxed), before + 1);
            let by_c = overlaps.try_take(c, 0, 1, Access::Shared).expect("whole blocks may overlap");
            overlaps.put(c, by_c);
        }
        assert!(by_a.is_some());
    }
}
