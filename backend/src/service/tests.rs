//! One service, turn by turn.

use std::time::Duration;

use super::*;
use crate::doubles::disk::TestDisk;
use crate::doubles::driver::{Driver, take_events};
use crate::doubles::guest_ram::GuestRam;

const RAM: std::ops::Range<u64> = 0x1_0000..0x8_0000;
const TABLE: u64 = 0x4_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

fn start(size: u16) -> (Service, Driver, TestDisk) {
    start_on(TestDisk::new(64), size)
}

fn start_on(disk: TestDisk, size: u16) -> (Service, Driver, TestDisk) {
    let driver = Driver::new(&Arc::new(GuestRam::new(&[RAM])), RAM.start, size);
    let setup = driver.setup(&disk.device(1), 0);
    (
        Service::start(setup, None, Arc::new(NobodyWaits), &SignalRings::growing()).expect("a good ring"),
        driver,
        disk,
    )
}

fn calls(driver: &Driver) -> u64 {
    take_events(&driver.call, Duration::ZERO)
}

/// Offers a chain of as many descriptors as there may be: an indirect table at `TABLE` that is no request.
fn offer_longest(driver: &mut Driver, head: u16) {
    let table =
        [&TABLE.to_le_bytes()[..], &(16 * 1026_u32).to_le_bytes(), &4_u16.to_le_bytes(), &[0; 2]].concat();
    driver.ram.write(driver.at + 16 * u64::from(head), &table);
    driver.offer_head(head);
}

fn write_longest(driver: &Driver) {
    let desc = |n: u16| {
        let flags: u16 = if n < 1025 { 1 } else { 2 };
        [&TABLE.to_le_bytes()[..], &1_u32.to_le_bytes(), &flags.to_le_bytes(), &(n + 1).to_le_bytes()]
            .concat()
    };
    let descs: Vec<u8> = (0..1026).flat_map(desc).collect();
    // What it says at its start is a type of request that nobody knows.
    driver.ram.write(TABLE, &descs);
}

/// Turns until nothing is to be done; says how many had something.
fn serve(service: &mut Service) -> u32 {
    let mut turns = 0;
    while service.turn(false) {
        turns += 1;
    }
    turns
}

#[test]
fn a_batch_is_one_call_and_an_idle_ring_is_at_rest() {
    let (mut service, mut driver, _disk) = start(64);
    assert!(!service.turn(false), "nothing to do");
    assert!(service.is_idle() && !service.is_at_rest() && !service.has_heads());
    assert!(!service.arm(), "nothing has come");
    assert!(service.is_at_rest());
    for slot in 0..4 {
        driver.offer(slot, 0, slot.into());
    }
    assert!(!service.turn(false) && !service.has_heads(), "nobody has kicked");
    assert_eq!((driver.used_idx(), calls(&driver)), (0, 0));
    service.disarm();
    assert!(service.has_heads() && !service.is_at_rest());
    assert_eq!(serve(&mut service), 1);
    assert_eq!((driver.used_idx(), calls(&driver)), (4, 1));
    assert!(service.is_idle());
    assert_eq!(service.next_avail(), 4);
}

#[test]
fn a_ring_that_goes_on_calls_its_driver_at_once() {
    let (mut service, mut driver, disk) = start(64);
    assert_eq!(calls(&driver), 0, "a fresh ring has nothing to tell");
    driver.offer(0, 0, 0);
    service.disarm();
    serve(&mut service);
    assert_eq!(calls(&driver), 1);
    drop(service);
    // The one before may have died between the used ring and the call.
    let setup = driver.setup(&disk.device(1), 0);
    let next = Service::start(setup, None, Arc::new(NobodyWaits), &SignalRings::growing());
    assert_eq!((next.expect("a good ring").next_avail(), calls(&driver)), (1, 1));
}

#[test]
fn a_driver_that_is_not_asked_to_kick_in_time_is_served_all_the_same() {
    let (mut service, mut driver, _disk) = start(64);
    driver.offer(0, 0, 0);
    assert!(service.arm(), "something is there already");
    assert!(!service.is_at_rest() && service.has_heads());
    assert_eq!(serve(&mut service), 1);
    assert_eq!(driver.used_idx(), 1);
}

#[test]
fn a_turn_takes_a_quarter_of_what_the_driver_waits_for_which_is_called_when_little_is_left() {
    let (mut service, mut driver, _disk) = start(64);
    for slot in 0..20 {
        driver.offer(slot, 0, slot.into());
    }
    for (done, called) in [(5, 0), (9, 0), (13, 1), (17, 1), (20, 1)] {
        assert!(service.turn(false), "there is more to do");
        assert_eq!((driver.used_idx(), calls(&driver)), (done, called));
    }
    assert!(!service.turn(false), "until there is not");
}

#[test]
fn a_call_that_waits_is_made_when_nothing_more_is_taken() {
    fn stops(service: &mut Service, _: &Driver) {
        service.turn(true);
    }
    fn breaks(service: &mut Service, driver: &Driver) {
        let sixth = driver.parts()[1] + 4 + 2 * 5;
        driver.ram.write(sixth, &99_u16.to_le_bytes());
        service.turn(false);
    }
    for end in [stops, breaks] {
        let (mut service, mut driver, _disk) = start(64);
        for slot in 0..20 {
            driver.offer(slot, 0, slot.into());
        }
        assert!(service.turn(false));
        assert_eq!((driver.used_idx(), calls(&driver)), (5, 0));
        end(&mut service, &driver);
        assert_eq!((driver.used_idx(), calls(&driver)), (5, 1));
    }
}

#[test]
fn a_turn_is_bounded_by_the_descriptors_that_it_takes() {
    let (mut service, mut driver, _disk) = start(64);
    write_longest(&driver);
    for head in 0..10 {
        offer_longest(&mut driver, head);
    }
    for done in [2, 4, 6, 8, 10] {
        assert!(service.turn(false), "there is more to do");
        assert_eq!((driver.used_idx(), calls(&driver)), (done, 1));
    }
    assert!(!service.turn(false), "until there is not");
    assert_eq!(driver.ram.read(TABLE, 1), [2], "UNSUPP");
}

/// Offers reads of so many KiB, whole times 64: all into the same memory, from the start of the disk on.
fn offer_large(driver: &mut Driver, heads: u16, kib: u32) {
    let shared = heads..heads + u16::try_from(kib / 64).expect("few");
    let header = 0x4_0000;
    driver.ram.write(header, &[0; 16]);
    for data in shared.clone() {
        driver.write_descriptor(data, header + 0x100, 64 << 10, NEXT | WRITE);
    }
    driver.write_descriptor(shared.end, header + 0x20, 1, WRITE);
    for head in 0..heads {
        let desc = [&header.to_le_bytes()[..], &16_u32.to_le_bytes(), &NEXT.to_le_bytes()];
        let next = [&shared.start.to_le_bytes()[..]];
        driver.ram.write(driver.at + 16 * u64::from(head), &[&desc[..], &next].concat().concat());
        driver.offer_head(head);
    }
}

#[test]
fn a_turn_is_bounded_by_the_bytes_that_it_moves() {
    // A quarter of a MiB, and the chain that goes past it. A turn would take four heads at least.
    for (kib, per_turn) in [(64, 4), (128, 2), (192, 2), (256, 1), (1024, 1)] {
        let (mut service, mut driver, _disk) = start_on(TestDisk::new(2048), 64);
        offer_large(&mut driver, 12, kib);
        for turn in 1..=12 / per_turn {
            assert!(service.turn(false), "there is more to do");
            assert_eq!(driver.used_idx(), turn * per_turn, "{kib} KiB, turn {turn}");
        }
        assert!((1..12 / u64::from(per_turn)).contains(&calls(&driver)), "{kib} KiB");
        assert!(!service.turn(false), "until there is not");
        assert_eq!(driver.ram.read(0x4_0020, 1), [0], "OK");
    }
}

#[test]
fn a_ring_that_stops_takes_nothing_more_and_ends_what_it_has() {
    let (mut service, mut driver, _disk) = start(64);
    for slot in 0..3 {
        driver.offer(slot, 0, slot.into());
    }
    assert!(!service.turn(true));
    assert_eq!((driver.used_idx(), service.next_avail()), (0, 0));
    assert!(service.is_idle());
    serve(&mut service);
    assert_eq!((driver.used_idx(), service.next_avail()), (3, 3));
}

#[test]
fn a_broken_ring_ends_what_it_has_and_takes_nothing_more() {
    let (mut service, mut driver, _disk) = start(64);
    driver.offer(0, 0, 1);
    driver.offer_head(64);
    driver.offer(1, 0, 1);
    serve(&mut service);
    assert!(service.is_broken() && service.is_at_rest());
    assert_eq!((driver.used_idx(), service.next_avail(), calls(&driver)), (1, 1, 1));
    service.disarm();
    assert!(!service.turn(false) && !service.has_heads() && !service.arm());
    assert_eq!((driver.used_idx(), take_events(&driver.err, Duration::ZERO)), (1, 1));
}

/// Nobody else writes to the disk of these tests.
#[derive(Debug)]
struct NobodyWaits;

impl Wake for NobodyWaits {
    fn wake(&self) {}
}
