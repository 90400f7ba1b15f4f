//! Bounds on memory that threads share: a daemon's, and in it each device's.
//!
//! What a guest can make a daemon allocate is charged to a [`Budget`] before it is used, in large steps, so that no
//! guest and no number of them can make the daemon grow without bound. The counterpart in Linux is the memory
//! controller of a cgroup (`mem_cgroup_try_charge`), with the difference that here a charge is made before the memory
//! is touched, and that it either succeeds or does not: nothing is reclaimed.
//!
//! Queue threads ask with [`Gfp::NOWAIT`] and get an answer at once. Only who holds a
//! [`MayWait`](crate::gfp::MayWait) can wait for others to give memory back.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::gfp::Gfp;

/// A bound on memory, and how much of it is used.
#[derive(Debug)]
pub struct Budget {
    name: &'static str,
    limit: usize,
    used: AtomicUsize,
    parent: Option<Arc<Budget>>,
    /// Notified when memory comes back, for those that wait.
    returned: (Mutex<()>, Condvar),
}

/// A budget is used up.
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
        Arc::new(Self { name, limit, used: AtomicUsize::new(0), parent: None, returned: Default::default() })
    }

    /// A budget of `limit` bytes within `parent`: what is charged to it is charged to both.
    #[must_use]
    pub fn within(parent: &Arc<Self>, name: &'static str, limit: usize) -> Arc<Self> {
        let parent = Some(Arc::clone(parent));
        Arc::new(Self { name, limit, used: AtomicUsize::new(0), parent, returned: Default::default() })
    }

    /// The bound in bytes.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many bytes are charged.
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
        loop {
            match self.try_charge(bytes) {
                Ok(()) => return Ok(Charge { budget: Arc::clone(self), bytes }),
                Err(over) if !gfp.may_wait() || bytes > self.largest() => return Err(over),
                Err(_) => self.wait(bytes),
            }
        }
    }

    /// The most bytes that can ever be charged.
    fn largest(&self) -> usize {
        self.parent.as_ref().map_or(self.limit, |parent| self.limit.min(parent.largest()))
    }

    fn try_charge(&self, bytes: usize) -> Result<(), OverBudget> {
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map_err(|used| OverBudget {
            name: self.name,
            bytes,
            used,
            limit: self.limit,
        })?;
        let within = self.parent.as_ref().map_or(Ok(()), |parent| parent.try_charge(bytes));
        if within.is_err() {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
        }
        within
    }

    /// Sleeps until memory came back, here or in a budget around this one, that may be enough.
    fn wait(&self, bytes: usize) {
        let root = self.root();
        let (lock, returned) = &root.returned;
        let guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock that a return takes before it notifies: what came back since the try is seen here.
        if self.has_room(bytes) {
            return;
        }
        drop(returned.wait(guard));
    }

    fn has_room(&self, bytes: usize) -> bool {
        let here = self.used().checked_add(bytes).is_some_and(|sum| sum <= self.limit);
        here && self.parent.as_ref().is_none_or(|parent| parent.has_room(bytes))
    }

    fn uncharge(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        match &self.parent {
            Some(parent) => parent.uncharge(bytes),
            None => {
                let (lock, returned) = &self.returned;
                drop(lock.lock().unwrap_or_else(PoisonError::into_inner));
                returned.notify_all();
            }
        }
    }

    fn root(&self) -> &Self {
        self.parent.as_deref().map_or(self, Self::root)
    }
}

/// Memory that is charged to a budget; given back when dropped.
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
        let mut more = self.budget.charge(bytes, gfp)?;
        self.bytes += std::mem::take(&mut more.bytes);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gfp::MayWait;

    #[test]
    fn a_budget_is_a_bound_and_charges_come_back() {
        let budget = Budget::new("test", 100);
        let first = budget.charge(60, Gfp::NOWAIT).expect("40 are left");
        let over = budget.charge(41, Gfp::NOWAIT).expect_err("40 are left");
        assert_eq!((over.used, over.limit), (60, 100));
        drop(first);
        assert_eq!(budget.used(), 0);
        assert!(budget.charge(100, Gfp::NOWAIT).is_ok());
    }

    #[test]
    fn what_a_device_uses_counts_for_the_daemon_and_a_refusal_leaves_no_trace() {
        let daemon = Budget::new("daemon", 100);
        let (a, b) = (Budget::within(&daemon, "device", 80), Budget::within(&daemon, "device", 80));
        let _charge = a.charge(70, Gfp::NOWAIT).expect("all free");
        let over = b.charge(40, Gfp::NOWAIT).expect_err("the daemon has 30 left");
        assert_eq!(over.name, "daemon");
        assert_eq!((a.used(), b.used(), daemon.used()), (70, 0, 70));
    }

    #[test]
    fn a_control_thread_waits_until_memory_comes_back() {
        let daemon = Budget::new("daemon", 100);
        let device = Budget::within(&daemon, "device", 100);
        let charge = daemon.charge(50, Gfp::NOWAIT).expect("all free");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let permission = MayWait::on_control_thread();
                device.charge(80, Gfp::kernel(&permission)).map(|charge| charge.bytes())
            });
            // Sleeps or not: it cannot have been given more than there is.
            assert!(daemon.used() <= 50);
            drop(charge);
            assert_eq!(waiter.join().expect("no panic"), Ok(80));
        });
    }

    #[test]
    fn nobody_waits_for_what_can_never_be() {
        let permission = MayWait::on_control_thread();
        let budget = Budget::within(&Budget::new("daemon", 10), "device", 100);
        assert!(budget.charge(11, Gfp::kernel(&permission)).is_err());
    }
}
