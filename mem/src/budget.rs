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

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::gfp::Gfp;

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
    fn a_charge_grows_as_far_as_the_budget_goes_and_comes_back_whole() {
        let daemon = Budget::new("daemon", 100);
        let device = Budget::within(&daemon, "device", 60);
        let mut charge = device.charge(10, Gfp::NOWAIT).expect("all free");
        charge.grow(50, Gfp::NOWAIT).expect("50 are left");
        let over = charge.grow(1, Gfp::NOWAIT).expect_err("nothing is left");
        assert_eq!(over.to_string(), "1 bytes more than the 60 used are over the device budget of 60 bytes");
        assert_eq!((charge.bytes(), device.used(), daemon.used()), (60, 60, 60));
        drop(charge);
        assert_eq!((device.used(), daemon.used()), (0, 0));
    }

    #[test]
    fn what_is_set_aside_is_there_whatever_others_use() {
        let daemon = Budget::new("daemon", 100);
        let [a, b] = [30, 50].map(|min| Budget::with_min(&daemon, "device", min, 90).expect("80 of 100"));
        assert_eq!((a.used(), b.used(), daemon.used()), (0, 0, 80));
        let over = Budget::with_min(&daemon, "device", 21, 90).expect_err("20 are left");
        assert_eq!((over.name, over.bytes, over.used), ("daemon", 21, 80));
        let mut by_a = a.charge(20, Gfp::NOWAIT).expect("its own");
        assert_eq!(daemon.used(), 80);
        by_a.grow(30, Gfp::NOWAIT).expect("10 of its own, 20 of the daemon's");
        assert_eq!((a.used(), daemon.used()), (50, 100));
        assert_eq!(by_a.grow(1, Gfp::NOWAIT).expect_err("all is used or set aside").name, "daemon");
        let by_b = b.charge(50, Gfp::NOWAIT).expect("its own");
        drop((a, by_a));
        assert_eq!(daemon.used(), 50, "with the budget what it had set aside is free");
        drop(by_b);
        assert_eq!(daemon.used(), 50, "and not before");
        drop(b);
        assert_eq!(daemon.used(), 0);
    }

    proptest! {
        #[test]
        fn a_tree_of_budgets_is_charged_what_a_naive_sum_says(
            mins in prop::array::uniform3(0..40_usize),
            steps in prop::collection::vec((0..3_usize, 0..60_usize, 0..20_usize), 1..80),
        ) {
            let (limit, daemon) = (50, Budget::new("daemon", 120));
            let devices = mins.map(|min| Budget::with_min(&daemon, "device", min, limit).expect("at most 117"));
            let mut charges: Vec<(usize, Charge)> = Vec::new();
            for (which, bytes, drop_one) in steps {
                if drop_one < charges.len() {
                    charges.swap_remove(drop_one);
                }
                let used = |which: usize| -> usize {
                    charges.iter().filter(|charge| charge.0 == which).map(|charge| charge.1.bytes()).sum()
                };
                let in_all = |more: usize| -> usize {
                    let of = |device: usize| used(device) + if device == which { more } else { 0 };
                    (0..3).map(|device| of(device).max(mins[device])).sum()
                };
                prop_assert_eq!(daemon.used(), in_all(0));
                prop_assert_eq!(devices[which].used(), used(which));
                let fits = used(which) + bytes <= limit && in_all(bytes) <= 120;
                let charge = devices[which].charge(bytes, Gfp::NOWAIT);
                prop_assert_eq!(charge.is_ok(), fits);
                charges.extend(charge.ok().map(|charge| (which, charge)));
            }
        }
    }

    #[test]
    fn nothing_that_a_guest_can_ask_for_wraps() {
        let budget = Budget::within(&Budget::new("daemon", usize::MAX), "device", usize::MAX);
        let _one = budget.charge(1, Gfp::NOWAIT).expect("all free");
        assert!(budget.charge(usize::MAX, Gfp::NOWAIT).is_err());
        assert_eq!(budget.used(), 1);
    }

    #[test]
    fn whoever_waits_is_served_when_there_is_room_and_nobody_gets_too_much() {
        // Two devices that together want twice what the daemon has, each with three threads that want more than half.
        let daemon = Budget::new("daemon", 100);
        let devices = [Budget::within(&daemon, "device", 90), Budget::within(&daemon, "device", 90)];
        std::thread::scope(|scope| {
            for thread in 0..6 {
                let (device, daemon) = (&devices[thread % 2], &daemon);
                scope.spawn(move || {
                    let permission = MayWait::on_control_thread();
                    for round in 0..2000 {
                        let bytes = 50 + (thread * 7 + round) % 40;
                        let charge = device.charge(bytes, Gfp::kernel(&permission)).expect("it can be had");
                        assert!(daemon.used() <= 100 && device.used() <= 90);
                        drop(charge);
                    }
                });
            }
        });
        assert_eq!(daemon.used(), 0);
    }

    #[test]
    fn nobody_waits_for_what_can_never_be() {
        let permission = MayWait::on_control_thread();
        let budget = Budget::within(&Budget::new("daemon", 10), "device", 100);
        assert!(budget.charge(11, Gfp::kernel(&permission)).is_err());
    }
}
