//! Rings: every size, indices that wrap, work that piles up, and who wakes whom when.

use std::time::{Duration, Instant};

use sluice_tests::disk::DiskSpec;
use sluice_tests::driver::{PATIENCE, need_event};
use sluice_tests::guest::{Drive, EVENT_IDX, Guest};
use sluice_tests::request::{Request, SECTOR};
use sluice_tests::rng::Rng;
use sluice_tests::shape::Shape;
use sluice_tests::subject::Subject;

sluice_tests::suite! {
    rings_of_2_to_1024_work: [],
    a_ring_larger_than_was_planned_is_served: [LargerRings],
    a_full_ring_is_answered_in_full: [],
    indices_wrap_past_65535: [],
    a_polling_driver_needs_no_call_fd: [NoCallFd],
    no_wake_up_is_lost_with_event_idx: [],
    no_wake_up_is_lost_without_event_idx: [],
    no_kick_is_lost_to_a_driver_that_races_with_event_idx: [],
    no_kick_is_lost_to_a_driver_that_races_without_event_idx: [],
    a_call_is_made_when_the_index_is_reached: [],
    calls_that_are_not_wanted_are_not_made: [CallSuppression],
    the_no_interrupt_flag_is_honoured: [NoInterruptFlag],
    an_idle_ring_asks_for_kicks: [],
    kicks_without_work_are_harmless: [],
}

/// How long a call may take that must not come: long enough for one that was on its way.
const QUIET: Duration = Duration::from_millis(30);

fn large() -> DiskSpec {
    DiskSpec { queue_size: 1024, ..DiskSpec::default() }
}

fn sized(ring_size: u16) -> Drive {
    Drive { ring_size, ..Drive::default() }
}

/// Writes and reads scattered over the disk, as many at a time as the ring takes, `batches` times.
fn churn(guest: &mut Guest, rng: &mut Rng, batches: usize) {
    let lane = &mut guest.lanes[0];
    for _ in 0..batches {
        let slot = lane.model.sectors() / 1024;
        let shape = Shape::pieces(&[1024]).indirect();
        for i in 0..rng.between(1, lane.ring.room()) as u64 {
            let sector = i * slot + rng.below(4) as u64;
            let request = match rng.below(2) {
                0 => Request::write(sector, rng.bytes(1536)),
                _ => Request::read(sector, 2048),
            };
            assert!(lane.launch(&request, &shape));
        }
        lane.ring.submit();
        lane.land_all();
    }
}

fn rings_of_2_to_1024_work(subject: Subject) {
    for power in 1..=10 {
        let mut guest = Guest::boot_with(subject, &large(), &sized(1 << power));
        let mut rng = Rng::for_test(20 + power);
        churn(&mut guest, &mut rng, 8);
        if power > 1 {
            guest.check(&Request::read(0, 4096), &Shape::default());
        }
        guest.check(&Request::flush(), &Shape::default());
        guest.check_file();
    }
}

/// `--queue-size` is what the device tells of itself; a front-end may have its own idea.
fn a_ring_larger_than_was_planned_is_served(subject: Subject) {
    let spec = DiskSpec { queue_size: 64, ..DiskSpec::default() };
    for size in [128, 1024] {
        let mut guest = Guest::boot_with(subject, &spec, &sized(size));
        churn(&mut guest, &mut Rng::for_test(34), 4);
        guest.check_file();
    }
}

fn a_full_ring_is_answered_in_full(subject: Subject) {
    for size in [2, 16, 256, 1024] {
        let mut guest = Guest::boot_with(subject, &large(), &sized(size));
        let lane = &mut guest.lanes[0];
        for round in 0..3 {
            for i in 0..u64::from(size) {
                let request = Request::read(i * 8, 4096);
                assert!(lane.launch(&request, &Shape::default().indirect()));
            }
            assert_eq!(lane.ring.room(), 0, "{subject}: round {round}");
            lane.ring.submit();
            lane.land_all();
        }
    }
}

fn indices_wrap_past_65535(subject: Subject) {
    for (size, base) in [(2, 65_534), (64, 65_530), (256, 65_400), (1024, 64_000)] {
        let mut guest = Guest::boot_with(subject, &large(), &Drive { base, ..sized(size) });
        let mut rng = Rng::for_test(31);
        while guest.ring().next_used() >= base {
            churn(&mut guest, &mut rng, 1);
        }
        churn(&mut guest, &mut rng, 4);
        let stopped = guest.stop_ring();
        assert_eq!(stopped, guest.ring().next_used(), "{subject}: the ring of {size} stopped");
    }
}

fn a_polling_driver_needs_no_call_fd(subject: Subject) {
    let mut guest =
        Guest::boot_with(subject, &DiskSpec::default(), &Drive { calls: false, ..Drive::default() });
    let mut rng = Rng::for_test(32);
    churn(&mut guest, &mut rng, 40);
    guest.check_file();
}

/// One request at a time, then some, with pauses that let either side fall asleep just as the other stirs.
fn stress_wake_ups(subject: Subject, features: u64) {
    let mut guest = Guest::boot_with(subject, &DiskSpec::default(), &Drive { features, ..Drive::default() });
    let mut rng = Rng::for_test(33);
    for round in 0..1500 {
        let lane = &mut guest.lanes[0];
        for i in 0..rng.between(1, 3) as u64 {
            lane.launch(&Request::read(i, SECTOR), &Shape::default());
            lane.ring.submit();
            if rng.one_in(8) {
                std::thread::sleep(Duration::from_micros(rng.below(150) as u64));
            }
        }
        if round % 4 == 0 {
            std::thread::yield_now();
        }
        lane.land_all();
    }
}

fn no_wake_up_is_lost_with_event_idx(subject: Subject) {
    stress_wake_ups(subject, u64::MAX);
}

fn no_wake_up_is_lost_without_event_idx(subject: Subject) {
    stress_wake_ups(subject, !EVENT_IDX);
}

/// The next request is ready before the last is answered, and is published a few nanoseconds to a microsecond after
/// that: just when the device looks once more, tells that it wants to be kicked, and falls asleep.
fn race_for_kicks(subject: Subject, features: u64) {
    let mut guest = Guest::boot_with(subject, &DiskSpec::default(), &Drive { features, ..Drive::default() });
    let mut rng = Rng::for_test(35);
    let lane = &mut guest.lanes[0];
    let short = Request::other(77, vec![], 0);
    assert!(lane.launch(&short, &Shape::default()));
    lane.ring.submit();
    for round in 0..5_000 {
        assert!(lane.launch(&short, &Shape::default()));
        let deadline = Instant::now() + PATIENCE;
        while lane.ring.used_idx() == lane.ring.next_used() {
            std::hint::spin_loop();
            assert!(Instant::now() < deadline, "{subject}: round {round}: a kick was lost");
        }
        for _ in 0..rng.below(400) {
            std::hint::spin_loop();
        }
        lane.ring.submit();
        let used = lane.ring.poll().unwrap();
        lane.land(used);
    }
    lane.land_all();
}

fn no_kick_is_lost_to_a_driver_that_races_with_event_idx(subject: Subject) {
    race_for_kicks(subject, u64::MAX);
}

fn no_kick_is_lost_to_a_driver_that_races_without_event_idx(subject: Subject) {
    race_for_kicks(subject, !EVENT_IDX);
}

/// The driver asks for one call, at the last of a batch. Calls may be made for more than one element at once, and a
/// stray one is allowed (2.7.10), but the asked-for one must come, and not only when the next request comes.
fn a_call_is_made_when_the_index_is_reached(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    for batch in [1, 2, 7, 32] {
        for _ in 0..20 {
            let lane = &mut guest.lanes[0];
            while lane.ring.sleep(Duration::ZERO) {}
            lane.ring.ask_for_call_at(lane.ring.next_used().wrapping_add(batch - 1));
            for i in 0..batch {
                assert!(lane.launch(&Request::read(u64::from(i), SECTOR), &Shape::default()));
            }
            lane.ring.submit();
            while lane.ring.used_idx() != lane.ring.next_avail() {
                let called = lane.ring.sleep(Duration::from_secs(5));
                assert!(called, "{subject}: no call after the last of {batch}");
            }
            lane.land_all();
        }
    }
}

/// How many calls are made for requests whose driver wants none.
fn count_calls(guest: &mut Guest, requests: u16) -> u64 {
    guest.check_works();
    let lane = &mut guest.lanes[0];
    lane.ring.refuse_calls();
    std::thread::sleep(QUIET);
    while lane.ring.sleep(Duration::ZERO) {}
    let before = lane.ring.calls_taken;
    lane.calls = false;
    for i in 0..requests {
        assert!(lane.launch(&Request::read(u64::from(i % 32), SECTOR), &Shape::default()));
        lane.ring.submit();
        lane.land_all();
        lane.ring.refuse_calls();
    }
    lane.calls = true;
    std::thread::sleep(QUIET);
    while lane.ring.sleep(Duration::ZERO) {}
    lane.ring.calls_taken - before
}

/// With event_idx the driver's index is far ahead, so that no call is due.
fn calls_that_are_not_wanted_are_not_made(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let calls = count_calls(&mut guest, 100);
    assert_eq!(calls, 0, "{subject}: calls for 100 requests that wanted none");
    guest.check_works();
}

fn the_no_interrupt_flag_is_honoured(subject: Subject) {
    let drive = Drive { features: !EVENT_IDX, ..Drive::default() };
    let mut guest = Guest::boot_with(subject, &DiskSpec::default(), &drive);
    let calls = count_calls(&mut guest, 100);
    assert_eq!(calls, 0, "{subject}: calls for 100 requests that wanted none");
    guest.check_works();
}

/// A device that sleeps must have said that it wants to be woken, or the next request waits for ever.
fn an_idle_ring_asks_for_kicks(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    for _ in 0..3 {
        guest.check_works();
        std::thread::sleep(QUIET);
        let ring = guest.ring();
        let event =
            u16::from_le(ring.memory().load(ring.avail_event_addr(), std::sync::atomic::Ordering::Acquire));
        let next = ring.next_avail();
        let wants = need_event(event, next.wrapping_add(1), next);
        assert!(wants, "{subject}: idle at {next}, but avail_event is {event}");
    }
}

fn kicks_without_work_are_harmless(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    for _ in 0..200 {
        guest.ring().kick();
    }
    guest.check_works();
    for _ in 0..200 {
        guest.ring().kick();
        guest.check(&Request::read(3, SECTOR), &Shape::default());
    }
}
