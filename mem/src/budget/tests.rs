//! What is bounded, who waits, and who is woken.

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
