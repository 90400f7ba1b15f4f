//! Front-ends that come and go ten thousand times, in any state: the daemon holds nothing more than before.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use sluice_tests::disk::DiskSpec;
use sluice_tests::frontend::PROTOCOL_FEATURES;
use sluice_tests::guest::{Drive, Guest};
use sluice_tests::holdings::{Holdings, resident_kib};
use sluice_tests::request::Request;
use sluice_tests::rng::Rng;
use sluice_tests::shape::Shape;
use sluice_tests::subject::{Engine, Subject};

/// Connections in all.
const CYCLES: usize = 10_000;
/// Connections before it is looked for the first time how much memory there is: allocators keep some.
const WARM_UP: usize = 1000;
/// What the memory may grow by from then on.
const GROWTH_KIB: u64 = 64;

/// Connects and leaves at some point of the set-up, or with requests in flight.
fn come_and_go(guest: &mut Guest, rng: &mut Rng) {
    guest.redial();
    let point = rng.below(10);
    let header = [1u32, 1, 0].map(u32::to_le_bytes).concat();
    if point == 0 {
        // Into the middle of a message.
        guest.session().raw_bytes(&header[..rng.below(12)], &[]).unwrap();
    }
    if point < 2 {
        return;
    }
    let negotiated = guest.session().negotiate(u64::MAX);
    guest.features = guest.need(negotiated, "negotiation");
    if point < 4 {
        return;
    }
    let regions = guest.memory.regions().to_vec();
    guest.announce(&regions[..rng.between(1, regions.len())]);
    if point < 6 {
        return;
    }
    guest.announce(&regions);
    guest.start_rings();
    match point {
        6 => {}
        7 => guest.check_works(),
        8 => {
            guest.stop_ring();
        }
        _ => {
            for sector in 0..rng.below(20) {
                guest.lanes[0].launch_unjudged(&Request::read(8 * sector as u64, 4096), &Shape::default());
            }
            guest.ring().submit();
        }
    }
}

#[test]
fn ten_thousand_connections_leave_nothing_behind() {
    let subject = Subject::Sluice { engine: Engine::Uring, cache: "writeback" };
    let spec = DiskSpec { queues: 2, bytes: 1 << 20, ..DiskSpec::default() };
    let mut guest = Guest::boot_with(subject, &spec, &Drive { rings: 2, ..Drive::default() });
    let pid = guest.served.pid().unwrap();
    guest.check_works();
    guest.settle();
    let before = Holdings::of(pid);
    let mut rng = Rng::for_test(97);
    let mut resident = 0;
    for cycle in 0..CYCLES {
        come_and_go(&mut guest, &mut rng);
        if cycle == WARM_UP {
            guest.settle();
            before.await_of(pid);
            resident = resident_kib(pid);
        }
    }
    guest.settle();
    before.await_of(pid);
    let now = resident_kib(pid);
    println!("{resident} KiB after {WARM_UP} connections, {now} KiB after {CYCLES}");
    assert!(now <= resident + GROWTH_KIB, "the daemon has grown from {resident} KiB to {now} KiB");
    guest.reconnect();
    guest.check_works();
    assert_eq!(guest.features & PROTOCOL_FEATURES, PROTOCOL_FEATURES);
}
