//! Memory of the guest that a front-end takes away again, by cutting the file that it has given: its connection ends, and
//! nothing else.
//!
//! The guest's rings, headers and status bytes are in one file and its data in another, at [`DATA`]. What was cut off
//! must not be touched by the test either.

use std::sync::Arc;
use std::time::Duration;

use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::guest::{Drive, Guest};
use sluice_tests::memory::{GuestMemory, Region, memory_file};
use sluice_tests::model::IOERR;
use sluice_tests::request::Request;
use sluice_tests::slot::Slot;
use sluice_tests::subject::{Served, Subject};

sluice_tests::suite! {
    rings_that_are_taken_away_end_the_connection_only: [SurvivesLostMemory, SeveralDisks],
    data_that_is_taken_away_fails_its_request: [SurvivesLostMemory],
    a_guest_that_loses_its_memory_again_and_again_leaves_nothing_behind: [SurvivesLostMemory],
}

/// Where data is that can be taken away.
const DATA: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

fn memory() -> Arc<GuestMemory> {
    let (rings, data) = (memory_file(4 * MIB), memory_file(4 * MIB));
    GuestMemory::with_regions(vec![Region::new(0, 4 * MIB, &rings, 0), Region::new(DATA, 4 * MIB, &data, 0)])
}

fn spec() -> DiskSpec {
    DiskSpec { bytes: 4 << 20, ..DiskSpec::default() }
}

fn connect(subject: Subject, disk: Disk, served: Served) -> Guest {
    Guest::connect(subject, disk, served, &Drive::default(), memory())
}

/// Cuts one of the guest's files.
fn take_away(guest: &Guest, region: usize) {
    guest.memory.regions()[region].file.set_len(0).unwrap();
}

/// Another guest on the same disk, which has what the first has left.
fn replace(mut guest: Guest) -> Guest {
    guest.hang_up();
    let Guest { subject, disk, served, lanes, .. } = guest;
    let mut next = connect(subject, disk, served);
    next.lanes[0].model = lanes[0].model.clone();
    next
}

fn rings_that_are_taken_away_end_the_connection_only(subject: Subject) {
    let disks = [Disk::new(&spec()), Disk::new(&spec())];
    let [victim, other] = subject.serve_two([&disks[0], &disks[1]]);
    let [first, second] = disks;
    let (mut victim, mut other) = (connect(subject, first, victim), connect(subject, second, other));
    victim.check_works();
    take_away(&victim, 0);
    victim.ring().kick();
    assert!(victim.session().closed_within(PATIENCE), "{subject}: the connection stays");
    other.check_works();
    let mut next = replace(victim);
    next.check_works();
    other.check_works();
}

fn data_that_is_taken_away_fails_its_request(subject: Subject) {
    for skew in [0, 1, 512] {
        for request in [Request::write(8, vec![0xee; 16 << 10]), Request::read(8, 16 << 10)] {
            let disk = Disk::new(&spec());
            let served = subject.serve(&disk);
            let mut guest = connect(subject, disk, served);
            lose_data(&mut guest, &request, DATA + skew);
            let mut next = replace(guest);
            next.check(&Request::read(0, 64 << 10), &sluice_tests::shape::Shape::default());
            next.check_works();
        }
    }
}

/// Sends a request whose data is gone. It fails, or the connection ends.
fn lose_data(guest: &mut Guest, request: &Request, data: u64) {
    let subject = guest.subject;
    let slot = Slot { header: guest.memory.alloc(16, 16), data, status: guest.memory.alloc(1, 1) };
    guest.memory.write(data, &vec![0xee; 16 << 10]);
    let chain = slot.lay_out(&guest.memory, request);
    take_away(guest, 1);
    guest.ring().offer(&chain);
    guest.ring().submit();
    let is_closed = guest.session().closed_within(Duration::from_millis(300));
    let used = guest.ring().poll();
    assert!(is_closed || used.is_some(), "{subject}: {request:?}: no answer, and the connection stays");
    if used.is_some() {
        assert_eq!(slot.answer(&guest.memory), IOERR, "{subject}: {request:?} with its data gone");
    }
}

fn a_guest_that_loses_its_memory_again_and_again_leaves_nothing_behind(subject: Subject) {
    let disk = Disk::new(&spec());
    let served = subject.serve(&disk);
    let mut guest = connect(subject, disk, served);
    for _ in 0..20 {
        guest.check_works();
        take_away(&guest, 0);
        guest.ring().kick();
        assert!(guest.session().closed_within(PATIENCE), "{subject}: the connection stays");
        guest = replace(guest);
    }
    guest.check_works();
}
