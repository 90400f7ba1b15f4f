//! `--in-order`: who is offered what, and what the log says where neither that nor an account of what is in flight is to be
//! had. That nothing is lost is shown in `kill`, that nothing overtakes in `vring::tests::order` of the backend.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::driver::Ring;
use sluice_tests::frontend::Session;
use sluice_tests::guest::VERSION_1;
use sluice_tests::memory::GuestMemory;
use sluice_tests::subject::{Engine, Subject};
use virtio_bindings::virtio_config::VIRTIO_F_IN_ORDER;

const IN_ORDER: u64 = 1 << VIRTIO_F_IN_ORDER;
const RING: u16 = 64;

fn uring(engine: Engine) -> Subject {
    Subject::Sluice { engine, cache: "none" }
}

/// What the log says of a crash after so many connections, each of which starts its two rings twice.
fn told(engine: Engine, options: &[(&'static str, &'static str)], keeps: bool, connections: usize) -> usize {
    let disk =
        Disk::new(&DiskSpec { queues: 2, options: options.to_vec(), content: None, ..DiskSpec::default() });
    let served = uring(engine).serve(&disk);
    let memory = GuestMemory::new();
    let rings = [0, 1].map(|_| Ring::new(&memory, RING, 0, false));
    for _ in 0..connections {
        let mut session = Session::connect(served.socket());
        session.negotiate(VERSION_1).unwrap();
        session.set_mem_table(memory.regions()).unwrap();
        if keeps {
            let inflight = session.make_inflight(2, RING).unwrap();
            session.set_inflight(&inflight).unwrap();
        }
        for _ in 0..2 {
            for (index, ring) in rings.iter().enumerate() {
                session.start_ring(index, ring, 0, true).unwrap();
            }
            (0..2).for_each(|index| assert_eq!(session.stop_ring(index).unwrap(), 0));
        }
    }
    drop(served);
    let log = std::fs::read_to_string(disk.dir().join("log")).unwrap();
    log.lines().filter(|line| line.contains("should this process die")).count()
}

#[test]
fn the_log_says_once_for_a_connection_what_a_crash_may_cost() {
    assert_eq!(told(Engine::Uring, &[], false, 1), 1);
    assert_eq!(told(Engine::Sync, &[], false, 3), 3);
    assert_eq!(told(Engine::Uring, &[], true, 2), 0, "the front-end keeps what is in flight");
    assert_eq!(told(Engine::Uring, &[("in-order", "on")], false, 2), 0, "the ring says it");
    assert_eq!(told(Engine::Ram, &[], false, 2), 0, "the disk dies too");
}

#[test]
fn a_front_end_that_comes_all_the_time_does_not_fill_the_log() {
    let lines = told(Engine::Uring, &[], false, 30);
    assert!((1..=10).contains(&lines), "{lines} lines of 30 connections");
}

#[test]
fn in_order_is_offered_only_to_who_is_answered_in_order() {
    for (options, offered) in
        [(vec![], 0), (vec![("in-order", "on")], IN_ORDER), (vec![("in-order", "off")], 0)]
    {
        let disk = Disk::new(&DiskSpec { options, ..DiskSpec::default() });
        let served = uring(Engine::Uring).serve(&disk);
        let mut session = Session::connect(served.socket());
        assert_eq!(session.negotiate(VERSION_1 | IN_ORDER).unwrap() & IN_ORDER, offered);
        assert_eq!(
            session.set_features(VERSION_1 | IN_ORDER).is_ok(),
            offered != 0,
            "what is offered can be had"
        );
    }
}
