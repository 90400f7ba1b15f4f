//! What a guest can make the daemon use, and how much of it another guest notices.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::driver::{Chain, Desc};
use sluice_tests::fuse_export::FuseExport;
use sluice_tests::guest::{Drive, Guest};
use sluice_tests::memory::GuestMemory;
use sluice_tests::mixture::Mixture;
use sluice_tests::request::Request;
use sluice_tests::rng::Rng;
use sluice_tests::shape::Shape;
use sluice_tests::subject::{Engine, Served, Subject};
use vhost::vhost_user::message::FrontendReq;

const URING: Subject = Subject::Sluice { engine: Engine::Uring, cache: "none" };
const MIB: usize = 1 << 20;

/// The memory of a process that is its own: not that of guests, which it shares with them.
fn own_memory(served: &Served) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.pid().unwrap())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1024
}

/// Fills a ring with requests of 1 MiB each to memory that no disk takes as it is.
fn flood(guest: &mut Guest, lane: usize) {
    let memory = Arc::clone(&guest.memory);
    let data = memory.alloc(MIB + 8, 4096) + 1;
    for _ in 0..200 {
        let (header, status) = (memory.alloc(16, 16), memory.alloc(1, 1));
        memory.write(header, &Request::read(0, MIB).header());
        let indirect = vec![
            Desc { addr: header, len: 16, writable: false },
            Desc { addr: data, len: u32::try_from(MIB).unwrap(), writable: true },
            Desc { addr: status, len: 1, writable: true },
        ];
        guest.lanes[lane].ring.offer(&Chain { direct: vec![], indirect });
    }
    guest.lanes[lane].ring.submit();
}

#[test]
fn no_guest_makes_the_daemon_use_more_than_16_mib_for_a_queue() {
    if let Err(why) = FuseExport::is_here() {
        return eprintln!("skipped: no disk that hangs: {why}");
    }
    let queues = 4;
    let spec = DiskSpec { bytes: 4 * MIB, queues, faults: Some(vec![]), ..DiskSpec::default() };
    let drive = Drive { rings: usize::from(queues), ring_size: 256, ..Drive::default() };
    let mut guest = Guest::boot_with(URING, &spec, &drive);
    guest.check_works();
    let before = own_memory(&guest.served);
    // Nothing is given back while the disk hangs: 800 MiB are asked for.
    guest.disk.export().freeze();
    for lane in 0..usize::from(queues) {
        flood(&mut guest, lane);
    }
    let mut most = 0;
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(10));
        most = most.max(own_memory(&guest.served));
    }
    let grown = most.saturating_sub(before);
    eprintln!("{} KiB at first, {} KiB more with 800 MiB asked for", before >> 10, grown >> 10);
    let bound = usize::from(queues) * 16 * MIB + MIB;
    assert!(grown <= bound, "{grown} bytes for {queues} queues");
    assert!(grown >= MIB, "the flood did not reach the disk");
    guest.disk.export().thaw();
}

/// Does to its rings and its connection what no driver does.
fn rage(guest: &mut Guest, rng: &mut Rng) {
    let ring = guest.ring();
    for slot in 0..64 {
        // Loops, tables that are none, and lengths that no memory has.
        let addr = rng.next_u64() >> rng.below(40);
        let (len, flags) = (u32::try_from(rng.below(1 << 20)).unwrap(), rng.below(8));
        let (flags, next) = (u16::try_from(flags).unwrap(), u16::try_from(rng.below(70)).unwrap());
        ring.raw_desc(slot, addr, len, flags, next);
        ring.raw_avail(slot, u16::try_from(rng.below(130)).unwrap());
    }
    let next = ring.next_avail();
    ring.raw_avail_idx(next.wrapping_add(u16::try_from(rng.below(100)).unwrap()));
    for _ in 0..50 {
        ring.kick();
    }
    if rng.one_in(4) {
        let offset = u32::try_from(rng.below(400)).unwrap();
        let body = [&[offset, 64, 0].map(u32::to_ne_bytes).concat()[..], &[0; 64]].concat();
        guest.session().raw(FrontendReq::GET_CONFIG.into(), 1, &body, &[]).unwrap();
        guest.session().reply().unwrap();
    }
    if rng.one_in(10) {
        guest.lanes[0].abandon();
        guest.reconnect();
    } else {
        guest.renew_ring();
    }
}

/// The 99th percentile of how long requests take, one at a time. Told and not judged: other programs take part in it.
fn p99(guest: &mut Guest) -> Duration {
    let time = |index: u64| {
        let begun = Instant::now();
        guest.check(&Request::read((index * 8) % 1024, 4096), &Shape::default());
        begun.elapsed()
    };
    let mut times: Vec<Duration> = (0..1000).map(time).collect();
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

#[test]
fn a_guest_that_rages_harms_no_other_one() {
    let spec = DiskSpec { bytes: 4 * MIB, ..DiskSpec::default() };
    let disks = [Disk::new(&spec), Disk::new(&spec)];
    let [of_raging, of_quiet] = URING.serve_two([&disks[0], &disks[1]]);
    let [first, second] = disks;
    let mut raging = Guest::connect(URING, first, of_raging, &Drive::default(), GuestMemory::new());
    let mut quiet = Guest::connect(URING, second, of_quiet, &Drive::default(), GuestMemory::new());
    let (rages, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let mixture = Mixture { start: 0, sectors: 4 << 11, transfer_max: 40, block: 1, depth: 24 };
    let mut ratios = Vec::new();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let (mut rng, mut count) = (Rng::for_test(9), 0_u64);
            while !stop.load(Ordering::Relaxed) {
                if rages.load(Ordering::Relaxed) {
                    rage(&mut raging, &mut rng);
                    count += 1;
                } else {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            (raging, count)
        });
        for round in 0..5 {
            rages.store(false, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(20));
            let before = p99(&mut quiet);
            rages.store(true, Ordering::Relaxed);
            mixture.pour(&mut quiet.lanes[0], &mut Rng::for_test(round), 2000);
            ratios.push(p99(&mut quiet).as_secs_f64() / before.as_secs_f64());
        }
        stop.store(true, Ordering::Relaxed);
        let (raging, count) = thread.join().unwrap();
        eprintln!("p99 beside {count} attacks, against p99 without: {ratios:.2?}");
        assert!(count > 100, "{count} attacks");
        drop(raging);
    });
    quiet.check_works();
}
