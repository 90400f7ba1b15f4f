//! Workers: several rings on one thread, on what every host has, and guests that want all of it.

use std::os::fd::AsFd;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use rustix::event::EventfdFlags;
use sluice_blk::disk::EngineKind;
use sluice_blk::engine::signal::SignalRing;

use super::*;
use crate::doubles::disk::TestDisk;
use crate::doubles::driver::{Driver, PATIENCE, event_fd, take_events};
use crate::doubles::guest_ram::GuestRam;

type MakeReactor = fn() -> io::Result<DormantReactor>;

/// What a worker waits on, and what it moves data with: all that go together.
const KINDS: [(EngineKind, MakeReactor); 3] = [
    (EngineKind::Uring, DormantReactor::new),
    (EngineKind::Sync, DormantReactor::new),
    (EngineKind::Sync, DormantReactor::epoll),
];

/// One thread, a disk, and drivers of as many rings as are asked for.
struct Bench {
    workers: Arc<Workers>,
    disk: TestDisk,
    drivers: Vec<Driver>,
    served: Vec<ServedRing>,
}

impl Bench {
    fn new((engine, reactor): (EngineKind, MakeReactor), rings: u16) -> Self {
        let disk = TestDisk::new(4096).with(|options| options.engine = engine);
        let workers = start_with(reactor).expect("a thread");
        let device = disk.device(rings);
        let place = |ring: u16| 0x10_0000 + u64::from(ring) * Driver::BYTES as u64;
        let ram = Arc::new(GuestRam::flat(place(0)..place(rings)));
        let drivers: Vec<_> = (0..rings).map(|ring| Driver::new(&ram, place(ring), 16)).collect();
        let serve = |(index, driver): (u16, &Driver)| {
            workers.serve(driver.setup(&device, index)).expect("a good ring")
        };
        let served = (0..rings).zip(&drivers).map(serve).collect();
        Self { workers, disk, drivers, served }
    }

    /// Stops all rings; says how many heads each has taken.
    fn stop(self) -> Vec<u16> {
        self.served.into_iter().map(|ring| ring.stop(|| ()).next_avail).collect()
    }
}

/// One worker.
fn start_with(reactor: MakeReactor) -> io::Result<Arc<Workers>> {
    PreparedWorkers::new(&WorkersOptions::new(1), reactor)?.start()
}

fn share(file: &File) -> Arc<File> {
    Arc::new(file.try_clone().expect("an fd is free"))
}

#[test]
fn one_thread_serves_many_rings_on_every_kind_of_host() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, 40);
        for round in 0..10_u8 {
            for (ring, driver) in bench.drivers.iter_mut().enumerate() {
                driver.check_works(ring as u64, round);
            }
            // And all at once.
            for driver in &mut bench.drivers {
                driver.offer(0, 0, 0);
                driver.kick();
            }
            for driver in &mut bench.drivers {
                assert_eq!(driver.done(), (0, 0, 513));
                assert!(take_events(&driver.call, PATIENCE) > 0);
            }
        }
        assert_eq!(bench.stop(), [30; 40]);
    }
}

#[test]
fn a_driver_may_kick_early_late_often_and_for_nothing() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, 1);
        let driver = &mut bench.drivers[0];
        for round in 0..200_u16 {
            for _ in 0..round % 4 {
                driver.kick();
            }
            for slot in 0..5 {
                driver.offer(slot, 0, slot.into());
            }
            driver.kick();
            let mut done: Vec<_> = (0..5).map(|_| driver.done().0).collect();
            done.sort_unstable();
            assert_eq!(done, [0, 1, 2, 3, 4], "round {round}");
        }
        bench.stop();
    }
}

/// The driver and the device race for whether the one still kicks and the other still looks. A wake-up that gets lost
/// shows as a request that never ends.
#[test]
fn a_driver_that_kicks_only_when_it_is_asked_to_is_not_forgotten() {
    for (kind, event_idx) in KINDS.into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
        let mut bench = Bench::new(kind, 1);
        assert_eq!(bench.served.pop().expect("a ring").stop(|| ()), Stopped::default());
        let driver = &mut bench.drivers[0];
        let mut setup = driver.setup(&bench.disk.device(1), 0);
        setup.ring.event_idx = event_idx;
        let served = bench.workers.serve(setup).expect("a good ring");
        let (mut free, mut kicks, rounds) = (vec![0, 1, 2, 3, 4], 0_u32, 4000);
        for round in 0..rounds {
            while free.is_empty() || driver.used_idx() != driver.next_used {
                free.push(driver.done().0);
            }
            driver.offer(free.pop().expect("one is free"), 0, 0);
            if driver.wants_kick(event_idx) {
                driver.kick();
                kicks += 1;
            }
            // At another moment each time.
            (0..round % 64).for_each(|_| std::hint::spin_loop());
        }
        while free.len() < 5 {
            free.push(driver.done().0);
        }
        assert!(kicks > 0);
        assert_eq!(served.stop(|| ()).next_avail, rounds);
    }
}

/// The kernel ends a watch when what it watches is signalled by an io_uring: then it has to be watched again.
#[test]
fn a_front_end_may_kick_from_an_io_uring_of_its_own() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, 1);
        let driver = &mut bench.drivers[0];
        let mut kicks = SignalRing::new().expect("an io_uring");
        kicks.bind(driver.kick.as_fd()).expect("an event fd");
        for round in 0..100 {
            driver.offer(0, 0, round);
            kicks.signal().expect("an event fd");
            assert_eq!(driver.done(), (0, 0, 513), "round {round}");
        }
        bench.stop();
    }
}

#[test]
fn what_is_available_before_the_start_is_served_without_a_kick() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, 1);
        let device = bench.disk.device(1);
        assert_eq!(bench.served.pop().expect("a ring").stop(|| ()), Stopped::default());
        let driver = &mut bench.drivers[0];
        let setup = driver.setup(&device, 0);
        driver.offer(0, 0, 0);
        let served = bench.workers.serve(setup).expect("a good ring");
        assert_eq!(driver.done(), (0, 0, 513));
        assert_eq!(served.stop(|| ()), Stopped { next_avail: 1, broken: false });
    }
}

#[test]
fn the_engine_on_io_uring_needs_a_thread_that_has_one() {
    let disk = TestDisk::new(8).with(|options| options.engine = EngineKind::Uring);
    let workers = start_with(DormantReactor::epoll).expect("a thread");
    let ram = Arc::new(GuestRam::flat(0x1_0000..0x2_0000));
    let driver = Driver::new(&ram, 0x1_0000, 16);
    let refused = workers.serve(driver.setup(&disk.device(1), 0));
    assert!(matches!(refused, Err(StartError::Host(_))));
}

/// The slowest of some requests, while something else goes on.
fn slowest(driver: &mut Driver, requests: u8) -> Duration {
    let time = |round| {
        let start = Instant::now();
        driver.check_works(1, round);
        start.elapsed()
    };
    (0..requests).map(time).max().unwrap_or_default()
}

/// Runs `torment` on a driver on a thread of its own, until another ring of the same worker has done its work.
fn torment(bench: &mut Bench, torment: impl Fn(&mut Driver) + Sync) {
    let stop = AtomicBool::new(false);
    let [tormentor, driver] = &mut bench.drivers[..] else { panic!("two rings") };
    let slowest = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                torment(tormentor);
            }
        });
        let slowest = slowest(driver, 100);
        stop.store(true, Ordering::Relaxed);
        slowest
    });
    // Two requests; other tests want the machine too.
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

#[test]
fn a_storm_of_kicks_keeps_no_other_ring_from_work() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, 2);
        torment(&mut bench, |driver| driver.kick());
        assert_eq!(bench.stop(), [0, 200]);
    }
}

#[test]
fn a_ring_that_always_seems_to_have_work_keeps_no_other_ring_from_it() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, 2);
        torment(&mut bench, |driver| {
            // Something is available, and then it is not: never so much of it that the ring would be broken.
            driver.set_avail_idx(driver.next_avail.wrapping_add(1));
            driver.kick();
            driver.set_avail_idx(driver.next_avail);
        });
        bench.stop();
    }
}

#[test]
fn a_ring_that_is_never_empty_keeps_no_other_ring_from_work() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, 2);
        torment(&mut bench, |driver| {
            for slot in 0..5 {
                driver.offer(slot, 8, 0);
            }
            driver.kick();
            for _ in 0..5 {
                driver.done();
            }
        });
        bench.stop();
    }
}

#[test]
fn a_call_fd_that_is_full_stops_no_worker() {
    for (kind, flags) in KINDS
        .into_iter()
        .flat_map(|kind| [EventfdFlags::empty(), EventfdFlags::NONBLOCK].map(|flags| (kind, flags)))
    {
        let mut bench = Bench::new(kind, 2);
        let full = event_fd(flags);
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).expect("an empty event fd");
        bench.served[0].set_call(Some(share(&full)));
        for round in 0..20 {
            bench.drivers[0].check_works(1, round);
            bench.drivers[1].check_works(2, round);
        }
        assert_eq!(bench.stop(), [40, 40]);
    }
}

#[test]
fn a_broken_ring_says_so_once_and_its_neighbour_goes_on() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, 2);
        bench.drivers[0].offer(0, 0, 1);
        bench.drivers[0].offer_head(16);
        bench.drivers[0].kick();
        // What came before it is done.
        assert_eq!(bench.drivers[0].done(), (0, 0, 513));
        assert_eq!(take_events(&bench.drivers[0].err, PATIENCE), 1);
        for _ in 0..100 {
            bench.drivers[0].kick();
        }
        bench.drivers[1].check_works(3, 0x61);
        assert_eq!(take_events(&bench.drivers[0].err, Duration::from_millis(20)), 0);
        let [broken, whole]: [ServedRing; 2] = bench.served.try_into().expect("two rings");
        assert_eq!(broken.stop(|| ()), Stopped { next_avail: 1, broken: true });
        assert_eq!(whole.stop(|| ()), Stopped { next_avail: 2, broken: false });
    }
}

/// A ring keeps its workers alive in [`crate::rings::Rings`]; whoever does without must not wait for ever.
#[test]
fn nobody_waits_for_a_worker_that_has_ended() {
    for kind in KINDS {
        let mut bench = Bench::new(kind, 2);
        bench.drivers[0].check_works(1, 0x71);
        drop(bench.workers);
        let rings = bench.served;
        rings[1].set_call(None);
        for ring in rings {
            assert_eq!(ring.stop(|| ()), Stopped::default());
        }
    }
}

#[test]
fn stopping_a_ring_waits_for_what_is_in_flight() {
    for kind in KINDS {
        for round in 0..50 {
            let mut bench = Bench::new(kind, 1);
            let driver = &mut bench.drivers[0];
            for slot in 0..5 {
                driver.offer(slot, 0, u64::from(slot));
            }
            driver.kick();
            if round % 2 == 0 {
                std::thread::yield_now();
            }
            let taken = bench.served.pop().expect("a ring").stop(|| ()).next_avail;
            assert_eq!(driver.used_idx(), taken, "all that was taken is done, and nothing comes later");
        }
    }
}
