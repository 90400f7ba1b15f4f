//! Messages and what they leave behind, without a socket.

use std::os::unix::fs::FileExt;

use vhost::vhost_user::VhostUserBackendReqHandlerMut;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserInflight, VhostUserLog, VhostUserMemoryRegion, VhostUserSingleMemoryRegion,
};

use super::*;
use crate::doubles::disk::TestDisk;
use crate::doubles::guest_ram::memory_file;

const MIB: u64 = 1 << 20;
const USER: u64 = 0x7f00_0000_0000;

fn session() -> Session {
    let workers = Workers::start(1).expect("a thread");
    Session::new("test", TestDisk::new(64).device(2), workers, Box::new(())).expect("an fd is free")
}

fn region(guest_addr: u64, size: u64) -> VhostUserMemoryRegion {
    VhostUserMemoryRegion::new(guest_addr, size, USER.wrapping_add(guest_addr), 0)
}

fn slot(guest_addr: u64, size: u64) -> VhostUserSingleMemoryRegion {
    VhostUserSingleMemoryRegion::new(guest_addr, size, USER.wrapping_add(guest_addr), 0)
}

/// Where the session's regions are, and how large.
fn regions(session: &Session) -> Vec<(u64, u64)> {
    session.rings.memory().regions().iter().map(|region| (region.guest_addr(), region.size())).collect()
}

fn set(session: &mut Session, table: &[VhostUserMemoryRegion], files: Vec<File>) -> bool {
    session.set_mem_table(table, files, None).is_ok()
}

#[test]
fn a_memory_table_that_is_refused_leaves_the_old_one() {
    let mut session = session();
    let files = |sizes: &[u64]| sizes.iter().map(|size| memory_file(*size)).collect::<Vec<_>>();
    assert!(set(&mut session, &[region(0, MIB), region(4 * MIB, MIB)], files(&[MIB, MIB])));
    let before = regions(&session);
    assert_eq!(before, [(0, MIB), (4 * MIB, MIB)]);
    let null = || File::open("/dev/null").expect("a null device");
    for (name, table, files) in [
        ("overlap", vec![region(0, MIB), region(MIB - 4096, MIB)], files(&[MIB, MIB])),
        ("a short file", vec![region(0, 2 * MIB)], files(&[MIB])),
        ("no file", vec![region(0, MIB)], vec![null()]),
        ("an offset", vec![VhostUserMemoryRegion::new(0, MIB, USER, 100)], files(&[2 * MIB])),
        ("the end of all addresses", vec![region(u64::MAX - MIB + 1, MIB + 1)], files(&[2 * MIB])),
        ("no bytes", vec![region(0, 0)], files(&[MIB])),
    ] {
        assert!(!set(&mut session, &table, files), "{name}");
        assert_eq!(regions(&session), before, "{name}");
    }
    // In any order.
    assert!(set(&mut session, &[region(8 * MIB, MIB), region(MIB, MIB)], files(&[MIB, MIB])));
    assert_eq!(regions(&session), [(MIB, MIB), (8 * MIB, MIB)]);
}

#[test]
fn regions_are_added_and_removed_one_by_one_up_to_as_many_as_were_told() {
    let mut session = session();
    let most = session.get_max_mem_slots().expect("a number");
    assert_eq!(most, 509);
    let file = memory_file(4096);
    let add = |session: &mut Session, n: u64| {
        session.add_mem_region(&slot(n * 4096, 4096), file.try_clone().expect("an fd"), None).is_ok()
    };
    for n in 0..most {
        assert!(add(&mut session, n), "region {n}");
    }
    for n in most..most + 100 {
        assert!(!add(&mut session, n), "region {n}");
    }
    assert_eq!(regions(&session).len(), 509);
    assert!(session.remove_mem_region(&slot(4096, 8192)).is_err(), "another size");
    assert!(session.remove_mem_region(&slot(4096 * most, 4096)).is_err(), "another address");
    session.remove_mem_region(&slot(4096, 4096)).expect("it is there");
    assert!(session.remove_mem_region(&slot(4096, 4096)).is_err(), "it is there no more");
    assert!(!add(&mut session, 0), "one that is there already");
    assert!(add(&mut session, 1));
    assert_eq!(regions(&session).len(), 509);
}

#[test]
fn only_what_was_offered_can_be_chosen() {
    let mut session = session();
    let offered = session.get_features().expect("features");
    let protocol = session.get_protocol_features().expect("features");
    session.set_features(offered).expect("all of them");
    session.set_protocol_features(protocol.bits()).expect("all of them");
    for bit in (0..64).filter(|bit| offered & 1 << bit == 0) {
        assert!(session.set_features(1 << bit).is_err(), "feature {bit}");
    }
    for bit in (0..64).filter(|bit| protocol.bits() & 1 << bit == 0) {
        assert!(session.set_protocol_features(1 << bit).is_err(), "protocol feature {bit}");
    }
}

/// The crate acknowledges once the features were asked for and REPLY_ACK was chosen; so it is known here too.
#[test]
fn acknowledgements_are_what_the_crate_makes_of_them() {
    let ack = VhostUserProtocolFeatures::REPLY_ACK.bits();
    let mut session = session();
    session.set_protocol_features(ack).expect("it was offered");
    assert!(!session.acknowledges());
    session.get_features().expect("features");
    assert!(session.acknowledges());
    assert!(session.set_protocol_features(ack | 1 << 63).is_err());
    assert!(session.acknowledges(), "the crate has taken it");
    session.set_protocol_features(0).expect("none of them");
    assert!(!session.acknowledges() && !session.has_config());
}

#[test]
fn what_was_not_offered_is_refused() {
    let mut session = session();
    let inflight = VhostUserInflight::default();
    assert!(session.get_inflight_fd(&inflight).is_err());
    assert!(session.set_inflight_fd(&inflight, memory_file(1)).is_err());
    assert!(session.set_log_base(&VhostUserLog::default(), memory_file(1)).is_err());
    assert!(session.check_device_state().is_err());
    assert!(session.get_shmem_config().is_err());
}

#[test]
fn the_write_cache_is_switched_until_the_device_is_reset() {
    let mut session = session();
    let none = VhostUserConfigFlags::empty();
    session.set_config(32, &[0], none).expect("it can be written");
    assert_eq!(session.get_config(32, 1, none).expect("a field"), [0]);
    session.reset_device().expect("it can be reset");
    assert_eq!(session.get_config(32, 1, none).expect("a field"), [1]);
    assert!(session.set_config(0, &[0], none).is_err());
    assert!(session.get_config(250, 8, none).is_err());
}

#[test]
fn memory_is_shared_with_the_front_end() {
    let mut session = session();
    let file = memory_file(MIB);
    assert!(set(&mut session, &[region(0, MIB)], vec![file.try_clone().expect("an fd")]));
    file.write_all_at(b"hello", 4096).expect("memory");
    let pin = sluice_mem::guest::MemPin::new(Arc::new(session.rings.memory().clone()));
    let mut bytes = [0; 5];
    pin.read(4096, &mut bytes).expect("it is there");
    assert_eq!(bytes, *b"hello");
}
