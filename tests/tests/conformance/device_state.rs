//! What a front-end carries from one daemon to another beside memory and rings: SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use sluice_tests::disk::DiskSpec;
use sluice_tests::guest::Guest;
use sluice_tests::subject::Subject;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostTransferStateDirection as Direction, VhostTransferStatePhase};

sluice_tests::suite! {
    a_write_cache_that_is_off_stays_off_at_the_destination: [DirtyLog, WriteCacheSwitch],
    a_state_of_another_disk_is_refused: [DirtyLog],
    transfers_that_cannot_be_are_refused: [DirtyLog],
}

/// Where the config space says whether the write cache is on.
const WRITEBACK: u32 = 32;

/// A guest whose device is stopped.
fn stopped(subject: Subject, serial: &str) -> Guest {
    let spec = DiskSpec { serial: Some(serial.to_owned()), ..DiskSpec::default() };
    let mut guest = Guest::boot(subject, &spec);
    guest.check_works();
    guest.stop_ring();
    guest
}

/// Begins a transfer. Returns the front-end's end: the one that the back-end gives, or that of the pipe that was offered.
fn begin(guest: &mut Guest, direction: Direction) -> Option<File> {
    let (reader, writer) = std::io::pipe().unwrap();
    let (theirs, ours) = match direction {
        Direction::SAVE => (OwnedFd::from(writer), OwnedFd::from(reader)),
        Direction::LOAD => (OwnedFd::from(reader), OwnedFd::from(writer)),
    };
    let phase = VhostTransferStatePhase::STOPPED;
    let begun = guest.session().frontend().set_device_state_fd(direction, phase, theirs);
    begun.ok().map(|given| given.unwrap_or_else(|| File::from(ours)))
}

fn is_well(guest: &mut Guest) -> bool {
    guest.session().frontend().check_device_state().is_ok()
}

fn save(guest: &mut Guest) -> Vec<u8> {
    let mut state = Vec::new();
    begin(guest, Direction::SAVE).expect("a device that is stopped").read_to_end(&mut state).unwrap();
    assert!(is_well(guest), "{}: a state was not saved", guest.subject);
    state
}

fn load(guest: &mut Guest, state: &[u8]) -> bool {
    begin(guest, Direction::LOAD).expect("a device that is stopped").write_all(state).unwrap();
    is_well(guest)
}

fn is_writeback(guest: &mut Guest) -> bool {
    let value = guest.session().config(WRITEBACK, 1);
    guest.need(value, "GET_CONFIG") == [1]
}

fn a_write_cache_that_is_off_stays_off_at_the_destination(subject: Subject) {
    let (mut source, mut destination) = (stopped(subject, "moves"), stopped(subject, "moves"));
    for is_on in [false, true, false] {
        let set = source.session().set_config(WRITEBACK, &[u8::from(is_on)]);
        source.need(set, "SET_CONFIG");
        let state = save(&mut source);
        assert!(load(&mut destination, &state), "{subject}: a good state is refused");
        assert_eq!(is_writeback(&mut destination), is_on, "{subject}");
    }
    destination.ring().reset(0);
    destination.resume_ring(0);
    destination.check_works();
}

fn a_state_of_another_disk_is_refused(subject: Subject) {
    let (mut source, mut destination) = (stopped(subject, "one"), stopped(subject, "another"));
    let set = source.session().set_config(WRITEBACK, &[0]);
    source.need(set, "SET_CONFIG");
    let state = save(&mut source);
    assert!(!load(&mut destination, &state), "{subject}: the state of another disk is taken");
    assert!(is_writeback(&mut destination), "{subject}: a state that is refused has changed something");
    let mut same = stopped(subject, "one");
    for len in 0..state.len() {
        assert!(!load(&mut same, &state[..len]), "{subject}: {len} bytes of a state are taken");
    }
    assert!(!load(&mut same, &[&state[..], &[0]].concat()), "{subject}: a state and a byte are taken");
    assert!(!load(&mut same, &vec![7; 60_000]), "{subject}: 60,000 bytes are taken");
    assert!(load(&mut same, &state), "{subject}: a good state is refused");
}

fn transfers_that_cannot_be_are_refused(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    guest.check_works();
    assert!(!is_well(&mut guest), "{subject}: nothing was transferred, and all is well");
    for direction in [Direction::SAVE, Direction::LOAD] {
        assert!(begin(&mut guest, direction).is_none(), "{subject}: {direction:?} while the ring runs");
        assert!(!is_well(&mut guest), "{subject}");
        guest.check_works();
    }
    let base = guest.stop_ring();
    // An end that is not closed is not waited for; and a transfer is asked for once.
    let end = begin(&mut guest, Direction::LOAD).expect("a device that is stopped");
    assert!(!is_well(&mut guest), "{subject}: a state that has not come");
    drop(end);
    assert!(!is_well(&mut guest), "{subject}: a transfer that has ended");
    save(&mut guest);
    assert!(!is_well(&mut guest), "{subject}: a transfer that has ended");
    guest.resume_ring(base);
    guest.check_works();
}
