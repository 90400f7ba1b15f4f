//! `--in-order`: who is offered what, and what the log says where neither that nor an account of what is in flight is to be
//! had. That nothing is lost is shown in `kill`, that nothing overtakes in `vring::tests::order` of the backend. And what it
//! costs, which is printed.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::time::{Duration, Instant};

use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::driver::{Chain, Desc, Ring};
use sluice_tests::frontend::Session;
use sluice_tests::fuse_disk::{FuseDisk, Kind, Latency};
use sluice_tests::guest::{Drive, Guest, VERSION_1};
use sluice_tests::memory::GuestMemory;
use sluice_tests::request::Request;
use sluice_tests::rng::Rng;
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

/// Reads of 4 KiB, so many at a time, for a while: how many a second.
fn reads_per_second(guest: &mut Guest, depth: usize, time: Duration) -> f64 {
    let memory = std::sync::Arc::clone(&guest.memory);
    let mut rng = Rng::new(1);
    let mut slots: Vec<_> =
        (0..depth).map(|_| (memory.alloc(16, 16), memory.alloc(4096, 4096), memory.alloc(1, 1))).collect();
    let mut flying = std::collections::HashMap::new();
    let (begun, mut count) = (Instant::now(), 0);
    while begun.elapsed() < time || !flying.is_empty() {
        while let Some(slot) = slots.pop_if(|_| begun.elapsed() < time) {
            memory.write(slot.0, &Request::read(8 * rng.below(64) as u64, 4096).header());
            let direct = vec![
                Desc { addr: slot.0, len: 16, writable: false },
                Desc { addr: slot.1, len: 4096, writable: true },
                Desc { addr: slot.2, len: 1, writable: true },
            ];
            flying.insert(guest.ring().offer(&Chain { direct, indirect: vec![] }), slot);
        }
        guest.ring().submit();
        let used = guest.ring().wait();
        slots.extend(flying.remove(&used.head));
        count += 1;
    }
    f64::from(count) / begun.elapsed().as_secs_f64()
}

/// What it costs on such a disk, with more and more requests at a time: printed.
fn compare(what: &str, spec: &DiskSpec) {
    let guest = |in_order| {
        let spec = DiskSpec { options: vec![("in-order", in_order)], ..spec.clone() };
        Guest::boot_with(uring(Engine::Uring), &spec, &Drive::default())
    };
    let mut guests = ["off", "on"].map(guest);
    for depth in [1, 4, 16, 32] {
        let mut sums = [0.0; 2];
        // One after the other, again and again, so that what else the machine does falls on both.
        for _ in 0..4 {
            for (guest, sum) in guests.iter_mut().zip(&mut sums) {
                *sum += reads_per_second(guest, depth, Duration::from_millis(50));
            }
        }
        let [any, in_order] = sums.map(|sum| sum / 4.0);
        let share = in_order / any;
        eprintln!("{what}, {depth} at a time: {any:.0} reads a second, {in_order:.0} in order: {share:.2}");
        assert!(any > 0.0 && in_order > 0.0);
    }
}

#[test]
fn what_it_costs_to_answer_in_order() {
    let spec = DiskSpec { bytes: 1 << 20, ..DiskSpec::default() };
    compare("a file", &spec);
    if let Err(why) = FuseDisk::is_here() {
        return eprintln!("skipped: no disk whose latency varies: {why}");
    }
    let kind = Kind { latency: Latency::Mean(Duration::from_millis(2)), block: 4096 };
    compare("latencies of 2 ms on average", &DiskSpec { logged: Some(kind), ..spec });
}
