//! Rings whose chains are given back in the order in which they were taken.

use proptest::prelude::*;

use super::{AVAIL, RAM, USED, setup};
use crate::doubles::guest_ram::GuestRam;
use crate::vring::{RingFault, RingSetup, Vring};

const SIZE: u16 = 8;

/// A ring that is used in order, and whose driver has made all of these available; it goes on where `used` says.
fn ring(ram: &GuestRam, base: u16, used: u16, heads: &[u16]) -> Vring {
    for (count, head) in (0..).zip(heads) {
        ram.write(AVAIL + 4 + 2 * u64::from(used.wrapping_add(count) % SIZE), &head.to_le_bytes());
    }
    let count = u16::try_from(heads.len()).expect("a ring is small");
    ram.write(AVAIL + 2, &used.wrapping_add(count).to_le_bytes());
    ram.write(USED + 2, &used.to_le_bytes());
    let setup = RingSetup { in_order: true, ..setup(SIZE, false, base) };
    Vring::start(&setup, &ram.pin(), None).expect("a good ring")
}

/// What the driver is shown, from `used` on.
fn shown(ram: &GuestRam, used: u16) -> Vec<(u32, u32)> {
    let new = ram.read_u16(USED + 2).wrapping_sub(used);
    let element = |count| {
        let element = ram.read(USED + 4 + 8 * u64::from(used.wrapping_add(count) % SIZE), 8);
        let number = |at: usize| u32::from_le_bytes(element[at..at + 4].try_into().expect("4 bytes"));
        (number(0), number(4))
    };
    (0..new).map(element).collect()
}

proptest! {
    #[test]
    fn what_is_done_is_shown_when_all_before_it_is(
        used in prop_oneof![Just(0), Just(65533_u16)],
        heads in Just((0..SIZE).collect::<Vec<_>>()).prop_shuffle(),
        order in Just((0..usize::from(SIZE)).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let ram = GuestRam::new(&[RAM]);
        let mut ring = ring(&ram, used, used, &heads);
        for head in &heads {
            prop_assert_eq!(ring.take_head(), Ok(Some(*head)));
        }
        for (count, at) in order.iter().enumerate() {
            ring.put_used(heads[*at], u32::from(heads[*at]) + 100);
            ring.publish();
            let done = &order[..=count];
            let turn = (0..heads.len()).take_while(|at| done.contains(at)).map(|at| u32::from(heads[at]));
            prop_assert_eq!(shown(&ram, used), turn.map(|head| (head, head + 100)).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_ring_goes_on_at_the_used_index_whatever_the_front_end_says() {
    // What QEMU says after a crash, what Cloud Hypervisor says, and somebody who knows nothing.
    for base in [65534, 2, 0] {
        let ram = GuestRam::new(&[RAM]);
        let mut ring = ring(&ram, base, 65534, &[3, 1, 7, 5]);
        let taken: Vec<_> = std::iter::from_fn(|| ring.take_head().expect("good heads")).collect();
        assert_eq!((taken, ring.next_avail()), (vec![3, 1, 7, 5], 2));
        assert!(ring.is_resumed());
    }
}

#[test]
fn a_head_that_waits_for_its_turn_is_in_flight() {
    let ram = GuestRam::new(&[RAM]);
    let mut ring = ring(&ram, 0, 0, &[3, 1, 1]);
    assert_eq!((ring.take_head(), ring.take_head()), (Ok(Some(3)), Ok(Some(1))));
    ring.put_used(1, 0);
    assert!(!ring.has_unpublished());
    assert_eq!(ring.take_head(), Err(RingFault::HeadInFlight { head: 1 }));
    ring.put_used(3, 0);
    ring.publish();
    assert!(ring.wants_call());
    assert_eq!(shown(&ram, 0), [(3, 0), (1, 0)]);
}

#[test]
#[should_panic(expected = "given back once")]
fn a_head_that_waits_for_its_turn_is_given_back_once() {
    let ram = GuestRam::new(&[RAM]);
    let mut ring = ring(&ram, 0, 0, &[3, 1]);
    assert_eq!((ring.take_head(), ring.take_head()), (Ok(Some(3)), Ok(Some(1))));
    ring.put_used(1, 0);
    ring.put_used(1, 0);
}
