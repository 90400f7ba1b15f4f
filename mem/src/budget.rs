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
    /// Notified when memory comes back, for those that wait. The outermost budget's is used.
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

    /// The most bytes that can ever be charged.
    fn largest(&self) -> usize {
        self.parent.as_ref().map_or(self.limit, |parent| self.limit.min(parent.largest()))
    }

    fn try_charge(&self, bytes: usize) -> Result<(), OverBudget> {
        // Where it is plain that it cannot be, nothing is charged, not even for a moment.
        self.check(bytes)?;
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        let charged = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        charged.map_err(|used| self.over(bytes, used))?;
        let within = self.parent.as_ref().map_or(Ok(()), |parent| parent.try_charge(bytes));
        if within.is_err() {
            // Somebody was faster, and somebody else may have been refused for what was charged here meanwhile.
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            self.notify();
        }
        within
    }

    /// Whether there is room at this moment, here and in the budgets around this one.
    fn check(&self, bytes: usize) -> Result<(), OverBudget> {
        let used = self.used();
        if used.checked_add(bytes).is_none_or(|sum| sum > self.limit) {
            return Err(self.over(bytes, used));
        }
        self.parent.as_ref().map_or(Ok(()), |parent| parent.check(bytes))
    }

    fn over(&self, bytes: usize, used: usize) -> OverBudget {
        OverBudget { name: self.name, bytes, used, limit: self.limit }
    }

    /// Sleeps until memory came back, here or in a budget around this one, that may be enough.
    fn wait(&self, bytes: usize) {
        let (lock, returned) = &self.root().returned;
        let guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock that a return takes before it notifies: what came back since the try is seen here.
        if self.check(bytes).is_err() {
            drop(returned.wait(guard));
        }
    }

    fn uncharge(&self, bytes: usize) {
        let mut budget = self;
        loop {
            budget.used.fetch_sub(bytes, Ordering::Relaxed);
            match &budget.parent {
                Some(parent) => budget = parent,
                None => return budget.notify(),
            }
        }
    }

    /// Tells all that wait for some of the memory of the outermost budget that there may be more of it.
    fn notify(&self) {
        let (lock, returned) = &self.root().returned;
        drop(lock.lock().unwrap_or_else(PoisonError::into_inner));
        returned.notify_all();
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
