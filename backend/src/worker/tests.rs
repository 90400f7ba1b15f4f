//! A worker, turn by turn.

use super::*;
use crate::doubles::disk::TestDisk;
use crate::doubles::driver::Driver;
use crate::doubles::guest_ram::GuestRam;
use crate::reactor::DormantReactor;

/// A worker on this thread that serves as many rings as there are drivers, and never rests.
fn start<const RINGS: usize>(reactor: Reactor) -> (Worker, [Driver; RINGS], TestDisk) {
    let disk = TestDisk::new(64);
    let place = |ring: usize| 0x10_0000 + (ring * Driver::BYTES) as u64;
    let ram = Arc::new(GuestRam::flat(place(0)..place(RINGS)));
    let drivers = std::array::from_fn(|ring| Driver::new(&ram, place(ring), 16));
    let device = disk.device(u16::try_from(RINGS).expect("few"));
    let mailbox = Mailbox::new().expect("an fd is free");
    let mut worker =
        Worker::new(mailbox, reactor, SignalRings::growing(), Duration::ZERO).expect("an fd is free");
    for (index, driver) in (0..).zip(&drivers) {
        worker.start(driver.setup(&device, index)).expect("a good ring");
    }
    (worker, drivers, disk)
}

/// Lets a driver that is asked to kick do that, and the worker see it.
fn kick(worker: &mut Worker, driver: &Driver) {
    assert!(driver.wants_kick(false));
    driver.kick();
    while !worker.collect(Wait::No).expect("a reactor") {}
}

#[test]
fn a_ring_that_is_quiet_while_others_are_not_is_left_until_its_driver_kicks() {
    for reactor in [DormantReactor::new, DormantReactor::epoll] {
        let (mut worker, [mut quiet, mut busy], _disk) =
            start(reactor().and_then(DormantReactor::wake).expect("a reactor"));
        assert!(!worker.arm(), "nothing has come");
        kick(&mut worker, &quiet);
        kick(&mut worker, &busy);
        let mut turn = |worker: &mut Worker| {
            busy.offer(0, 0, 0);
            assert!(worker.serve(), "one ring has work each time");
            assert_eq!(busy.done(), (0, 0, 513));
        };
        for count in 1..=Served::IDLE_TURNS {
            turn(&mut worker);
            assert!(!quiet.wants_kick(false), "turn {count}: it is looked at");
        }
        turn(&mut worker);
        assert!(quiet.wants_kick(false), "it is not looked at any more");
        quiet.offer(0, 0, 0);
        turn(&mut worker);
        assert_eq!((quiet.used_idx(), worker.active.len()), (0, 1));
        kick(&mut worker, &quiet);
        turn(&mut worker);
        assert_eq!(quiet.done(), (0, 0, 513));
        assert!(!quiet.wants_kick(false));
    }
}
