//! Budgets that threads share: never more than the limit, nobody is left asleep, and all of it comes back.

use ::loom::thread;

use super::*;
use crate::gfp::MayWait;

fn charge_and_return(budget: &Arc<Budget>, bytes: usize) {
    let permission = MayWait::on_control_thread();
    let charge = budget.charge(bytes, Gfp::kernel(&permission)).expect("it waits until there is room");
    assert!(budget.used() >= bytes && budget.used() <= budget.limit());
    drop(charge);
}

#[test]
fn loom_whoever_waits_for_memory_is_woken() {
    ::loom::model(|| {
        let budget = Budget::new("shared", 3);
        let other = Arc::clone(&budget);
        let thread = thread::spawn(move || charge_and_return(&other, 2));
        charge_and_return(&budget, 2);
        thread.join().unwrap();
        assert_eq!(budget.used(), 0);
    });
}

#[test]
fn loom_who_waits_for_the_budget_around_its_own_is_woken_too() {
    ::loom::model(|| {
        let daemon = Budget::new("daemon's", 3);
        let ours = Budget::with_min(&daemon, "ours", 1, 3).unwrap();
        let others = Budget::within(&daemon, "others'", 2);
        let thread = thread::spawn(move || charge_and_return(&others, 2));
        charge_and_return(&ours, 2);
        thread.join().unwrap();
        assert_eq!((ours.used(), daemon.used()), (0, 1));
    });
}

/// Without permission to wait: refused or charged, never over the limit.
#[test]
fn loom_two_that_do_not_wait_are_not_over_the_limit_together() {
    ::loom::model(|| {
        let budget = Budget::new("shared", 3);
        let other = Arc::clone(&budget);
        let thread = thread::spawn(move || other.charge(2, Gfp::NOWAIT).is_ok());
        let charge = budget.charge(2, Gfp::NOWAIT);
        assert!(budget.used() <= 3);
        let both = thread.join().unwrap() || charge.is_ok();
        assert!(both, "one of them has room at least");
        drop(charge);
        assert_eq!(budget.used(), 0);
    });
}
