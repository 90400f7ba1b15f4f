//! Bounds on memory that threads share: a daemon's, in it each device's, and in that each queue's.
//!
//! What a guest can make a daemon allocate is charged to a [`Budget`] before it is used, in large steps, so that no
//! guest and no number of them can make the daemon grow without bound. The counterpart in Linux is the memory
//! controller of a cgroup (`mem_cgroup_try_charge`; a limit is its `memory.max`, what is set aside its `memory.min`),
//! with the difference that here a charge is made before the memory is touched, and that it either succeeds or does
//! not: nothing is reclaimed.
//!
//! Queue threads ask with [`Gfp::NOWAIT`] and get an answer at once. Only who holds a
//! [`MayWait`](crate::gfp::MayWait) can wait for others to give memory back.
//!
//! ```
//! use sluice_mem::{budget::Budget, gfp::Gfp};
//!
//! let daemon = Budget::new("daemon's", 100);
//! let first = Budget::with_min(&daemon, "first device's", 30, 100)?;
//! let second = Budget::within(&daemon, "second device's", 100);
//! let charge = second.charge(70, Gfp::NOWAIT)?;
//! assert!(second.charge(1, Gfp::NOWAIT).is_err(), "the rest of the daemon's is set aside");
//! assert!(first.charge(30, Gfp::NOWAIT).is_ok());
//! drop(charge);
//! assert!(first.charge(100, Gfp::NOWAIT).is_ok(), "a charge lasts until it is dropped");
//! # Ok::<(), sluice_mem::budget::OverBudget>(())
//! ```

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::gfp::Gfp;
use crate::sync::{AtomicUsize, Condvar, Mutex, MutexGuard};

/// What a budget, those within it, and those within them share.
#[derive(Debug, Default)]
struct Tree {
    lock: Mutex<()>,
    /// Notified when memory comes back.
    returned: Condvar,
}

impl Tree {
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A bound on memory, and how much of it is used (Linux: `struct mem_cgroup`).
#[derive(Debug)]
pub struct Budget {
    name: &'static str,
    limit: usize,
    /// What is charged to the parent as long as this budget lives: only what is used beyond it is charged there too.
    min: usize,
    /// Changes only with the tree's lock held.
    used: AtomicUsize,
    parent: Option<Arc<Budget>>,
    tree: Arc<Tree>,
}

/// A budget is used up (Linux: `-ENOMEM` of `mem_cgroup_try_charge`; here it says whose budget it is).
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[error("{bytes} bytes more than the {used} used are over the {name} budget of {limit} bytes")]
pub struct OverBudget {
    /// Whose budget it is.
    pub name: &'static str,
    /// What was asked for.
    pub bytes: usize,
    /// What was used at that moment.
    pub used: usize,
    /// The bound.
    pub limit: usize,
}

impl Budget {
    /// A budget of `limit` bytes, called `name` in errors.
    #[must_use]
    pub fn new(name: &'static str, limit: usize) -> Arc<Self> {
        Arc::new(Self { name, limit, min: 0, used: AtomicUsize::new(0), parent: None, tree: Arc::default() })
    }

    /// A budget of `limit` bytes within `parent`: what is charged to it is charged to both.
    #[must_use]
    pub fn within(parent: &Arc<Self>, name: &'static str, limit: usize) -> Arc<Self> {
        let (parent, tree) = (Some(Arc::clone(parent)), Arc::clone(&parent.tree));
        Arc::new(Self { name, limit, min: 0, used: AtomicUsize::new(0), parent, tree })
    }

    /// A budget of `limit` bytes within `parent`, of which `min` bytes are set aside: they are charged to `parent` now
    /// and for as long as the budget lives, so that nobody else can use them up (Linux: `memory.min`, which protects from
    /// being reclaimed, as nothing is here).
    ///
    /// # Errors
    /// [`OverBudget`] when the parent has no room for them.
    pub fn with_min(
        parent: &Arc<Self>,
        name: &'static str,
        min: usize,
        limit: usize,
    ) -> Result<Arc<Self>, OverBudget> {
        parent.try_charge(min)?;
        let (parent, tree) = (Some(Arc::clone(parent)), Arc::clone(&parent.tree));
        Ok(Arc::new(Self { name, limit, min, used: AtomicUsize::new(0), parent, tree }))
    }

    /// The bound in bytes (Linux: `memory.max`).
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many bytes are charged (Linux: `memory.current`).
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Charges `bytes`, until the charge is dropped. A [`Gfp`] that may wait waits until others give memory back,
    /// unless it could never be enough.
    ///
    /// # Errors
    /// [`OverBudget`]; then nothing is charged.
    pub fn charge(self: &Arc<Self>, bytes: usize, gfp: Gfp<'_>) -> Result<Charge, OverBudget> {
        self.charge_or_wait(bytes, gfp)?;
        Ok(Charge { budget: Arc::clone(self), bytes })
    }

    fn charge_or_wait(&self, bytes: usize, gfp: Gfp<'_>) -> Result<(), OverBudget> {
        loop {
            match self.try_charge(bytes) {
                Err(_) if gfp.may_wait() && bytes <= self.largest() => self.wait(bytes),
                answer => return answer,
            }
        }
    }

    /// The most bytes that can ever be charged: here less may be in use than is, and around here nothing.
    fn largest(&self) -> usize {
        self.parent.as_ref().map_or(self.limit, |parent| self.limit.min(parent.largest()))
    }

    fn try_charge(&self, bytes: usize) -> Result<(), OverBudget> {
        // Queue threads ask again and again while there is no room: they find that out without the lock.
        self.check(bytes)?;
        let _lock = self.tree.lock();
        self.check(bytes)?;
        self.add(bytes);
        Ok(())
    }

    /// Whether there is room, here and in the budgets around this one.
    fn check(&self, bytes: usize) -> Result<(), OverBudget> {
        let used = self.used();
        let Some(sum) = used.checked_add(bytes).filter(|sum| *sum <= self.limit) else {
            return Err(OverBudget { name: self.name, bytes, used, limit: self.limit });
        };
        self.parent.as_ref().map_or(Ok(()), |parent| parent.check(self.beyond_min(used, sum)))
    }

    /// How much more is charged to the parent when `sum` is used than when `used` is.
    fn beyond_min(&self, used: usize, sum: usize) -> usize {
        sum.saturating_sub(self.min) - used.saturating_sub(self.min)
    }

    /// With the lock held, and after a check.
    fn add(&self, bytes: usize) {
        let used = self.used();
        self.used.store(used + bytes, Ordering::Relaxed);
        if let Some(parent) = &self.parent {
            parent.add(self.beyond_min(used, used + bytes));
        }
    }

    /// With the lock held.
    fn subtract(&self, bytes: usize) {
        let used = self.used();
        self.used.store(used - bytes, Ordering::Relaxed);
        if let Some(parent) = &self.parent {
            parent.subtract(self.beyond_min(used - bytes, used));
        }
    }

    /// Sleeps until memory came back, here or in a budget around this one, that may be enough.
    fn wait(&self, bytes: usize) {
        let lock = self.tree.lock();
        if self.check(bytes).is_err() {
            drop(self.tree.returned.wait(lock));
        }
    }

    fn uncharge(&self, bytes: usize) {
        let lock = self.tree.lock();
        self.subtract(bytes);
        drop(lock);
        self.tree.returned.notify_all();
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        if let Some(parent) = &self.parent
            && self.min > 0
        {
            parent.uncharge(self.min);
        }
    }
}

/// Memory that is charged to a budget; given back when dropped (Linux: a folio's `memcg_data`, and
/// `mem_cgroup_uncharge`).
#[derive(Debug)]
pub struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Charge {
    /// Charges `bytes` more, as [`Budget::charge`] does.
    ///
    /// # Errors
    /// [`OverBudget`]; then the charge is as it was.
    pub fn grow(&mut self, bytes: usize, gfp: Gfp<'_>) -> Result<(), OverBudget> {
        self.budget.charge_or_wait(bytes, gfp)?;
        self.bytes += bytes;
        Ok(())
    }

    /// How many bytes are charged.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.uncharge(self.bytes);
    }
}

#[cfg(all(test, feature = "loom"))]
mod loom;
#[cfg(test)]
mod tests;
