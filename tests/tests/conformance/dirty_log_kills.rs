//! A guest is copied while its device dies and comes back, in another process or on another connection.
//!
//! What the front-end had not looked at in the log is gone with the device, as with QEMU, which gives the next one an empty log.
//! The copy has to be the guest's memory all the same.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use sluice_tests::dirty::{Log, PAGE};
use sluice_tests::frontend::{Inflight, LOG_ALL};
use sluice_tests::guest::Drive;
use sluice_tests::memory::Region;
use sluice_tests::request::{Request, SECTOR};
use sluice_tests::rng::Rng;
use sluice_tests::shape::Shape;
use sluice_tests::slot::Slot;
use sluice_tests::subject::Subject;

use crate::dirty_log::{Copied, boot};

sluice_tests::suite! {
    a_copy_is_the_memory_though_the_device_is_killed: [DirtyLog, Inflight],
    all_memory_is_marked_once_for_who_begins_in_the_middle: [DirtyLog, Inflight],
    what_is_done_again_is_marked: [DirtyLog, Inflight],
}

const RING: u16 = 128;

fn kills(default: usize) -> usize {
    std::env::var("SLUICE_LOG_KILLS").map_or(default, |count| count.parse().unwrap())
}

/// A guest that is being copied, whose front-end keeps what is in flight.
fn copied(subject: Subject) -> (Copied, Inflight) {
    let mut copied = Copied::new(boot(subject, &Drive { ring_size: RING, ..Drive::default() }));
    let base = copied.guest.stop_ring();
    let inflight = copied.guest.session().make_inflight(1, RING).unwrap();
    copied.guest.session().set_inflight(&inflight).unwrap();
    copied.guest.resume_ring(base);
    copied.log_used(true);
    (copied, inflight)
}

/// A new connection, on which the front-end says what it would have to say to a device that knows nothing, in QEMU's order: the log,
/// an empty one, after the rings, which are enabled last. It knows of the ring only what is in its memory.
fn begin_again(copied: &mut Copied, inflight: &Inflight) {
    let guest = &mut copied.guest;
    guest.redial();
    let negotiated = guest.session().negotiate(u64::MAX);
    guest.features = guest.need(negotiated, "negotiation");
    guest.session().set_inflight(inflight).unwrap();
    let features = guest.features | LOG_ALL;
    guest.session().set_features(features).unwrap();
    let regions = guest.memory.regions().to_vec();
    guest.announce(&regions);
    copied.log = Log::for_memory(&copied.guest.memory, 0, 0);
    copied.set_log();
    let base = copied.guest.ring().used_idx();
    copied.guest.resume_ring(base);
    copied.log_used(true);
}

fn pages(regions: &[Region]) -> BTreeSet<u64> {
    regions.iter().flat_map(|r| r.guest_addr / PAGE..(r.guest_addr + r.size) / PAGE).collect()
}

fn a_copy_is_the_memory_though_the_device_is_killed(subject: Subject) {
    let (mut copied, inflight) = copied(subject);
    let mut rng = Rng::for_test(84);
    let mut replayed = 0;
    for kill in 0..kills(12) {
        copied.prepare(&mut rng);
        // What the driver writes a front-end learns in other ways.
        copied.log.take();
        copied.replica.copy_all();
        copied.guest.ring().submit();
        std::thread::sleep(Duration::from_micros(rng.below(1500) as u64));
        if rng.one_in(4) {
            copied.replica.follow(&copied.log);
        }
        copied.guest.served.kill();
        copied.guest.served = subject.serve(&copied.guest.disk);
        let done = copied.guest.ring().used_idx().wrapping_sub(copied.guest.ring().next_used());
        replayed += copied.guest.lanes[0].in_flight() - usize::from(done);
        begin_again(&mut copied, &inflight);
        if rng.one_in(2) {
            copied.replica.follow(&copied.log);
        }
        copied.guest.lanes[0].land_all();
        copied.stop_and_compare(&format!("after kill {kill}"));
    }
    eprintln!("{replayed} requests were under way");
    for sector in (0..copied.guest.sectors()).step_by(512) {
        copied.guest.check(&Request::read(sector, 512 * SECTOR), &Shape::default());
    }
}

fn all_memory_is_marked_once_for_who_begins_in_the_middle(subject: Subject) {
    let (mut copied, inflight) = copied(subject);
    copied.guest.check_works();
    let all = pages(copied.guest.memory.regions());
    for _ in 0..3 {
        begin_again(&mut copied, &inflight);
        assert_eq!(copied.log.take(), all, "{subject}");
        // Not for a ring that is stopped and goes on, nor for a log that follows another one.
        let base = copied.guest.stop_ring();
        copied.guest.resume_ring(base);
        copied.log_used(true);
        copied.log = Log::for_memory(&copied.guest.memory, 0, 0);
        copied.set_log();
        copied.guest.check_works();
        let marks = copied.log.take();
        assert!(!marks.is_empty() && marks.len() < all.len() / 2, "{subject}: {marks:?}");
    }
}

/// Two reads as a dead device has left them, on a connection that is not new, so that what is marked is marked for them.
fn what_is_done_again_is_marked(subject: Subject) {
    let (mut copied, inflight) = copied(subject);
    copied.guest.check_works();
    let base = copied.guest.stop_ring();
    let memory = Arc::clone(&copied.guest.memory);
    let mut expected = BTreeSet::new();
    for (counter, sector) in (1000_u64..).zip([8, 64]) {
        let slot = Slot { status: memory.alloc(4096, 4096), ..Slot::new(&memory, 8192, 4096) };
        let head = copied.guest.ring().offer(&slot.lay_out(&memory, &Request::read(sector, 8192)));
        inflight.leave(head, counter);
        expected.extend([slot.data / PAGE, slot.data / PAGE + 1, slot.status / PAGE]);
    }
    copied.guest.ring().publish();
    copied.log.take();
    copied.replica.copy_all();
    copied.guest.resume_ring(base);
    for _ in 0..2 {
        copied.guest.ring().wait();
    }
    let marks = copied.log.take();
    assert!(expected.is_subset(&marks), "{subject}: {expected:?}, marked: {marks:?}");
    let known = |page: &&u64| !expected.contains(page) && **page != copied.guest.lanes[0].ring.used / PAGE;
    assert_eq!(marks.iter().find(known), None, "{subject}: {expected:?}, marked: {marks:?}");
}
