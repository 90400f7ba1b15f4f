//! A ring between a device and a driver in every order of their steps: no kick and no call is lost, with what the memory
//! model allows to be seen late.
//!
//! The driver's side is written from virtio 1.3 (2.7.10, 2.7.13), with the barriers that it asks for. Without one of them
//! a wake-up is lost: that the models find this is shown too.

use std::sync::Arc;

use ::loom::thread;

use super::*;
use crate::doubles::guest_ram::GuestRam;

const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const RAM: std::ops::Range<u64> = 0x1000..0x4000;
const SIZE: u16 = 4;
/// How many chains go through the ring.
const CHAINS: u16 = 2;

/// The two areas as the driver sees them.
struct Driver {
    avail: GuestSlice,
    used: GuestSlice,
    event_idx: bool,
    fences: bool,
}

impl Driver {
    fn new(ram: &GuestRam, event_idx: bool, fences: bool) -> Self {
        let slice = |addr, len| ram.pin().slice(addr, len).expect("memory that is there");
        Self { avail: slice(AVAIL, 64), used: slice(USED, 64), event_idx, fences }
    }

    /// Loom's numbers exist from the first access on; threads are to find all of them. Neither side wants to be woken.
    fn touch(&self) {
        for offset in (0..self.used_event()).step_by(2) {
            self.avail.store_u16(offset, 0, Ordering::Relaxed);
        }
        self.used.store_u16(USED_IDX, 0, Ordering::Relaxed);
        self.used.store_u16(USED_FLAGS, 1, Ordering::Relaxed);
        self.used.store_u16(self.avail_event(), u16::MAX, Ordering::Relaxed);
        self.avail.store_u16(AVAIL_FLAGS, 1, Ordering::Relaxed);
        self.avail.store_u16(self.used_event(), u16::MAX, Ordering::Relaxed);
    }

    fn avail_event(&self) -> usize {
        USED_RING + 8 * usize::from(SIZE)
    }

    fn used_event(&self) -> usize {
        AVAIL_RING + 2 * usize::from(SIZE)
    }

    fn fence(&self) {
        if self.fences {
            fence(Ordering::SeqCst);
        }
    }

    /// Makes the chain at `head` available. Returns whether the device is to be kicked.
    fn offer(&self, head: u16) -> bool {
        self.avail.store_u16(AVAIL_RING + 2 * usize::from(head), head, Ordering::Relaxed);
        self.avail.store_u16(AVAIL_IDX, head + 1, Ordering::Release);
        self.fence();
        if self.event_idx {
            self.used.load_u16(self.avail_event(), Ordering::Relaxed) == head
        } else {
            self.used.load_u16(USED_FLAGS, Ordering::Relaxed) == 0
        }
    }

    /// Asks for a call, for what is used after the first `seen`. Returns whether that is there already.
    fn ask_for_call(&self, seen: u16) -> bool {
        if self.event_idx {
            self.avail.store_u16(self.used_event(), seen, Ordering::Relaxed);
        } else {
            self.avail.store_u16(AVAIL_FLAGS, 0, Ordering::Relaxed);
        }
        self.fence();
        self.used.load_u16(USED_IDX, Ordering::Acquire) != seen
    }
}

fn vring(ram: &GuestRam, event_idx: bool) -> Vring {
    let setup =
        RingSetup { size: SIZE, desc: DESC, avail: AVAIL, used: USED, event_idx, ..RingSetup::default() };
    Vring::start(&setup, &ram.pin(), None).expect("a good ring")
}

/// A driver offers, a device takes until there is nothing and sleeps, as a worker does that arms its rings.
fn kicks(event_idx: bool, fences: bool) {
    let ram = Arc::new(GuestRam::flat(RAM));
    ::loom::model(move || {
        let driver = Driver::new(&ram, event_idx, fences);
        driver.touch();
        let mut vring = vring(&ram, event_idx);
        let thread = thread::spawn(move || (0..CHAINS).filter(|&head| driver.offer(head)).count());
        let mut taken = 0;
        loop {
            while let Some(head) = vring.take_head().expect("an honest driver") {
                assert_eq!(head, taken);
                taken += 1;
            }
            if taken == CHAINS || !vring.enable_kick() {
                break;
            }
            vring.disable_kick();
        }
        let kicks = thread.join().unwrap();
        assert!(kicks > 0 || taken == CHAINS, "a kick is lost");
    });
}

/// A device gives back, and asks each time whether it shall call or `at_last` only; a driver takes until there is nothing
/// and sleeps.
fn calls(event_idx: bool, fences: bool, at_last: bool) {
    let ram = Arc::new(GuestRam::flat(RAM));
    ::loom::model(move || {
        let driver = Driver::new(&ram, event_idx, fences);
        driver.touch();
        for head in 0..CHAINS {
            driver.offer(head);
        }
        let mut vring = vring(&ram, event_idx);
        let thread = thread::spawn(move || {
            let mut calls = 0;
            while let Some(head) = vring.take_head().expect("an honest driver") {
                vring.put_used(head, 1);
                vring.publish();
                if !at_last || head + 1 == CHAINS {
                    calls += usize::from(vring.wants_call());
                }
            }
            calls
        });
        let mut seen = driver.used.load_u16(USED_IDX, Ordering::Acquire);
        while seen < CHAINS && driver.ask_for_call(seen) {
            seen = driver.used.load_u16(USED_IDX, Ordering::Acquire);
        }
        let calls = thread.join().unwrap();
        assert!(calls > 0 || seen == CHAINS, "a call is lost");
    });
}

#[test]
fn loom_no_kick_is_lost() {
    kicks(true, true);
    kicks(false, true);
}

#[test]
fn loom_no_call_is_lost() {
    for at_last in [false, true] {
        calls(true, true, at_last);
        calls(false, true, at_last);
    }
}

#[test]
#[should_panic(expected = "a kick is lost")]
fn loom_a_kick_is_lost_by_a_driver_without_barriers() {
    kicks(true, false);
}

#[test]
#[should_panic(expected = "a call is lost")]
fn loom_a_call_is_lost_by_a_driver_without_barriers() {
    calls(true, false, false);
}
