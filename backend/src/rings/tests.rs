//! Rings through their life, in every order of messages, with rings that work and drivers that do not.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::EventfdFlags;
use sluice_mem::region::{Region, RegionInfo};
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::*;
use crate::doubles::disk::TestDisk;
use crate::doubles::driver::{Driver, PATIENCE, event_fd, eventually, take_events};
use crate::doubles::guest_ram::GuestRam;

const RAM: std::ops::Range<u64> = 0x1_0000..0x11_0000;
/// Long enough for something that must not happen.
const A_WHILE: Duration = Duration::from_millis(20);

/// The rings of a device with two queues.
struct Bench {
    rings: Rings,
    ram: Arc<GuestRam>,
    disk: TestDisk,
}

fn copy(file: &File) -> Option<File> {
    Some(file.try_clone().expect("an fd is free"))
}

impl Bench {
    fn new() -> Self {
        let disk = TestDisk::new(1024);
        let workers = Workers::start(1).expect("a thread");
        let rings = Rings::new("test", disk.device(2), workers, Box::new(()));
        Self { rings, ram: Arc::new(GuestRam::new(&[RAM])), disk }
    }

    /// With ring 0 running.
    fn boot() -> (Self, Driver) {
        let mut bench = Self::new();
        bench.rings.set_memory(bench.ram.map_again());
        let driver = Driver::new(&bench.ram, RAM.start, 16);
        for step in Step::ALL {
            bench.take(step, &driver).expect("a good message");
        }
        (bench, driver)
    }

    fn take(&mut self, step: Step, driver: &Driver) -> Result<(), RingError> {
        match step {
            Step::Num => self.rings.set_num(0, driver.size.into()),
            Step::Addrs => self.rings.set_addrs(0, addrs(driver)),
            Step::Memory => {
                self.rings.set_memory(self.ram.map_again());
                Ok(())
            }
            Step::Enable => self.rings.set_enabled(0, true),
            Step::Err => self.rings.set_err(0, copy(&driver.err)),
            Step::Call => self.rings.set_call(0, copy(&driver.call)),
            Step::Kick => self.rings.set_kick(0, copy(&driver.kick)),
        }
    }

    fn is_running(&self) -> bool {
        self.rings.is_running(0)
    }
}

fn addrs(driver: &Driver) -> RingAddrs {
    let [desc, avail, used] = driver.parts().map(|addr| addr + GuestRam::USER_OFFSET);
    RingAddrs { desc, avail, used, used_log: None }
}

/// What it takes to run a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Num,
    Addrs,
    Memory,
    Enable,
    Err,
    Call,
    Kick,
}

impl Step {
    const ALL: [Self; 7] =
        [Self::Num, Self::Addrs, Self::Memory, Self::Enable, Self::Err, Self::Call, Self::Kick];
}

/// Calls `each` with all orders of the steps, but for the err fd, which comes first.
fn orders(chosen: &mut Vec<Step>, each: &mut impl FnMut(&[Step])) {
    if chosen.len() == Step::ALL.len() {
        return each(chosen);
    }
    for step in Step::ALL {
        if !chosen.contains(&step) {
            chosen.push(step);
            orders(chosen, each);
            chosen.pop();
        }
    }
}

#[test]
fn a_ring_runs_after_all_messages_in_any_order() {
    let mut bench = Bench::new();
    let mut count = 0_u32;
    orders(&mut vec![Step::Err], &mut |order| {
        count += 1;
        // All of them are tried; the odd ones do not repeat the requests.
        bench.rings = Rings::new(
            "test",
            Arc::clone(&bench.rings.device),
            Arc::clone(&bench.rings.workers),
            Box::new(()),
        );
        bench.ram.clear();
        let mut driver = Driver::new(&bench.ram, RAM.start, 16);
        driver.offer(0, 0, 5);
        for (n, step) in order.iter().enumerate() {
            bench.take(*step, &driver).unwrap_or_else(|e| panic!("{step:?} in {order:?}: {e}"));
            let missing = order[n + 1..].iter().any(|step| !matches!(step, Step::Err | Step::Call));
            assert_eq!(bench.is_running(), !missing, "after {step:?} in {order:?}");
        }
        if count.is_multiple_of(5) {
            assert_eq!(driver.done(), (0, 0, 513), "in {order:?}");
            assert!(take_events(&driver.call, PATIENCE) > 0, "no call in {order:?}");
        }
    });
    assert_eq!(count, 720);
}

#[test]
fn what_is_no_event_fd_is_refused() {
    let (mut bench, driver) = Bench::boot();
    let (pipe, _other_end) = std::io::pipe().expect("a pipe");
    let (socket, _other_socket) = std::os::unix::net::UnixStream::pair().expect("sockets");
    let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).expect("an fd");
    let memory = crate::doubles::guest_ram::memory_file(4096);
    let null = File::open("/dev/null").expect("a null device");
    for (name, fd) in [
        ("a pipe", OwnedFd::from(pipe)),
        ("a socket", OwnedFd::from(socket)),
        ("an epoll fd", epoll),
        ("memory", OwnedFd::from(memory)),
        ("a device", OwnedFd::from(null)),
        ("a directory", OwnedFd::from(File::open("/").expect("a root"))),
    ] {
        let file = || Some(File::from(fd.try_clone().expect("an fd is free")));
        let is_refused = |result| matches!(result, Err(RingError::NotAnEventFd { index: 0, .. }));
        assert!(is_refused(bench.rings.set_kick(0, file())), "{name}");
        assert!(is_refused(bench.rings.set_call(0, file())), "{name}");
        assert!(is_refused(bench.rings.set_err(0, file())), "{name}");
    }
    assert!(matches!(bench.rings.set_kick(0, None), Err(RingError::NoKick { index: 0 })));
    assert!(bench.is_running(), "the ring goes on as it was");
    let mut driver = driver;
    driver.check_works(3, 0x17);
}

#[test]
fn rings_that_are_not_there_are_refused() {
    let mut rings = Bench::new().rings;
    let event = || Some(event_fd(EventfdFlags::NONBLOCK));
    for index in [2, 3, 255, 256, u32::MAX] {
        let results = [
            rings.set_num(index, 16),
            rings.set_base(index, 0),
            rings.set_addrs(index, RingAddrs { desc: 0, avail: 0, used: 0, used_log: None }),
            rings.set_kick(index, event()),
            rings.set_call(index, event()),
            rings.set_err(index, event()),
            rings.set_enabled(index, true),
            rings.take_base(index).map(|_| ()),
        ];
        for result in results {
            assert!(matches!(result, Err(RingError::Index { count: 2, .. })), "ring {index}: {result:?}");
        }
    }
}

#[test]
fn a_running_ring_keeps_its_size_its_place_and_its_index() {
    let (mut bench, mut driver) = Bench::boot();
    let running = |result| matches!(result, Err(RingError::Running { index: 0 }));
    assert!(running(bench.rings.set_num(0, 8)));
    let elsewhere = RingAddrs { avail: addrs(&driver).avail + 2, ..addrs(&driver) };
    assert!(running(bench.rings.set_addrs(0, elsewhere)));
    assert!(running(bench.rings.set_base(0, 0)));
    driver.check_works(3, 0x21);
    assert_eq!(bench.rings.take_base(0).expect("a ring"), 2);
    assert!(!bench.is_running());
    assert!(matches!(bench.rings.set_base(0, 65536), Err(RingError::Base { base: 65536, .. })));
    assert!(matches!(bench.rings.set_num(0, 2048), Err(RingError::TooLarge { size: 2048, .. })));
    assert!(matches!(bench.rings.set_num(0, 12), Err(RingError::Setup { .. })));
    let away = RingAddrs { desc: 0, ..addrs(&driver) };
    assert!(matches!(bench.rings.set_addrs(0, away), Err(RingError::Setup { .. })));
    bench.take(Step::Kick, &driver).expect("a good message");
    driver.check_works(4, 0x22);
}

#[test]
fn a_ring_that_is_disabled_does_nothing_and_goes_on_where_it_was() {
    let (mut bench, mut driver) = Bench::boot();
    for round in 0..5 {
        driver.check_works(1, round);
        bench.rings.set_enabled(0, false).expect("a ring");
        driver.offer(0, 0, 1);
        driver.kick();
        assert_eq!(driver.done_within(A_WHILE), None);
        bench.rings.set_enabled(0, true).expect("a ring");
        assert_eq!(driver.done(), (0, 0, 513));
    }
}

#[test]
fn a_ring_starts_from_any_index_and_says_where_it_stopped() {
    let (mut bench, mut driver) = Bench::boot();
    for base in [0, 1, 17, 32767, 65533, 65535] {
        bench.rings.take_base(0).expect("a ring");
        driver.ram.clear();
        (driver.next_avail, driver.next_used) = (base, 0);
        driver.set_avail_idx(base);
        bench.rings.set_base(0, base.into()).expect("an index");
        bench.take(Step::Kick, &driver).expect("a good message");
        driver.check_works(9, 0x44);
        driver.check_works(9, 0x45);
        assert_eq!(bench.rings.take_base(0).expect("a ring"), base.wrapping_add(4));
        bench.take(Step::Kick, &driver).expect("a good message");
    }
}

/// A region of the guest's memory.
fn region(bench: &Bench, range: std::ops::Range<u64>) -> Region {
    let info = RegionInfo {
        guest_addr: range.start,
        size: range.end - range.start,
        user_addr: range.start + GuestRam::USER_OFFSET,
        mmap_offset: range.start - RAM.start,
    };
    Region::map(info, bench.ram.file().try_clone().expect("an fd")).expect("a good region")
}

#[test]
fn memory_changes_under_a_running_ring() {
    let (mut bench, mut driver) = Bench::boot();
    for round in 0..20 {
        driver.offer(0, 0, 1);
        driver.kick();
        bench.rings.set_memory(bench.ram.map_again());
        assert_eq!(driver.done(), (0, 0, 513));
        driver.check_works(2, round);
    }
    assert_eq!(take_events(&driver.err, Duration::ZERO), 0);
}

/// As a front-end does it that gives the guest more memory: it takes the region away in which the ring is, and adds a
/// larger one.
#[test]
fn a_ring_whose_memory_goes_away_goes_on_when_it_is_back() {
    let (mut bench, mut driver) = Bench::boot();
    driver.check_works(2, 0x31);
    for left in [None, Some(0x2_0000..RAM.end), Some(RAM.start..RAM.start + 0x4000)] {
        let regions = left.into_iter().map(|range| region(&bench, range)).collect();
        bench.rings.set_memory(GuestMem::new(regions).expect("good regions"));
        assert!(!bench.is_running());
        driver.offer(0, 0, 1);
        driver.kick();
        assert_eq!(driver.done_within(A_WHILE), None);
        let whole = GuestMem::new(vec![region(&bench, RAM)]).expect("good regions");
        bench.rings.set_memory(whole);
        assert_eq!(driver.done(), (0, 0, 513));
        driver.check_works(2, 0x32);
    }
    assert!(take_events(&driver.err, Duration::ZERO) >= 2, "the front-end was told");
}

#[test]
fn a_ring_that_was_broken_is_whole_again_only_after_it_was_given_up() {
    let (mut bench, mut driver) = Bench::boot();
    driver.check_works(2, 0x31);
    driver.offer_head(99);
    driver.kick();
    assert_eq!(take_events(&driver.err, PATIENCE), 1);
    // Nothing of this gives it another try.
    bench.rings.set_memory(bench.ram.map_again());
    bench.rings.set_features(1 << VIRTIO_RING_F_INDIRECT_DESC);
    for enabled in [false, true] {
        bench.rings.set_enabled(0, enabled).expect("a ring");
    }
    for step in [Step::Err, Step::Call, Step::Kick] {
        bench.take(step, &driver).expect("a good message");
    }
    driver.kick();
    assert_eq!(take_events(&driver.err, A_WHILE), 0, "it is told once");
    // The driver is reset.
    let base = bench.rings.take_base(0).expect("a ring");
    assert_eq!(base, 2, "the head that was none was not taken");
    driver.next_avail = base;
    driver.set_avail_idx(base);
    bench.take(Step::Kick, &driver).expect("a good message");
    driver.check_works(3, 0x33);
}

#[test]
fn calls_go_to_the_last_fd_and_the_first_at_once() {
    let (mut bench, mut driver) = Bench::boot();
    driver.check_works(2, 0x31);
    for _ in 0..20 {
        take_events(&driver.call, Duration::ZERO);
        let new = event_fd(EventfdFlags::NONBLOCK);
        bench.rings.set_call(0, copy(&new)).expect("an event fd");
        assert_eq!(take_events(&new, PATIENCE), 1, "a call that the old fd may have had");
        assert_eq!(driver.request(0, 1), 0);
        assert!(take_events(&new, PATIENCE) > 0);
        assert_eq!(take_events(&driver.call, Duration::ZERO), 0, "the old fd is not used any more");
        driver.call = new;
    }
    bench.rings.set_call(0, None).expect("a driver may poll");
    driver.check_works(2, 0x32);
    assert_eq!(take_events(&driver.call, A_WHILE), 0);
}

#[test]
fn features_are_those_of_running_rings_too() {
    let (mut bench, mut driver) = Bench::boot();
    driver.check_works(2, 0x31);
    bench.rings.set_features(1 << VIRTIO_RING_F_EVENT_IDX);
    driver.check_works(2, 0x32);
    // With event indices a call is made for the element at the index that the driver names.
    let used_event = driver.parts()[1] + 4 + 2 * u64::from(driver.size);
    take_events(&driver.call, Duration::ZERO);
    driver.ram.write(used_event, &driver.next_used.wrapping_add(1).to_le_bytes());
    assert_eq!(driver.request(0, 1), 0);
    assert_eq!(take_events(&driver.call, A_WHILE), 0);
    assert_eq!(driver.request(0, 1), 0);
    assert_eq!(take_events(&driver.call, PATIENCE), 1);
}

#[test]
fn a_reset_forgets_the_rings_and_nothing_is_touched_afterwards() {
    let (mut bench, mut driver) = Bench::boot();
    driver.offer(0, 0, 1);
    driver.kick();
    bench.rings.reset();
    assert!(!bench.is_running());
    let used = driver.used_idx();
    driver.offer(1, 0, 1);
    driver.kick();
    assert!(eventually(A_WHILE, || driver.used_idx() != used).is_none());
    driver.ram.clear();
    (driver.next_avail, driver.next_used) = (0, 0);
    for step in Step::ALL {
        bench.take(step, &driver).expect("a good message");
    }
    driver.check_works(4, 0x51);
    drop(bench.rings);
    assert_eq!(bench.disk.file.as_file().metadata().expect("a file").len(), 1024 * 512);
}

/// Another daemon waits for the disk, and does not get it while this one only changes something.
#[test]
fn a_change_does_not_let_go_of_the_disk() {
    let (mut bench, _driver) = Bench::boot();
    let other = bench.disk.device(1);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || other.disk().lock().acquire(|| ()).is_ok());
        for _ in 0..1000 {
            bench.rings.set_memory(bench.ram.map_again());
            std::thread::sleep(Duration::from_micros(100));
        }
        assert!(!waiting.is_finished(), "the disk was free for a moment");
        bench.rings.stop_all();
        assert!(waiting.join().expect("a thread"), "and is so when the rings have stopped");
    });
}
