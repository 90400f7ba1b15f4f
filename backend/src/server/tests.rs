//! Servers on real sockets: what a front-end does to the connection.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::EventfdFlags;
use tempfile::TempDir;

use super::*;
use crate::doubles::disk::TestDisk;
use crate::doubles::driver::{Driver, PATIENCE, event_fd, eventually, take_events};
use crate::doubles::front_end::*;
use crate::doubles::guest_ram::GuestRam;

mod handover;

const RAM: std::ops::Range<u64> = 0x1_0000..0x11_0000;

/// A served disk with two queues.
struct Bench {
    server: Option<Server>,
    dir: TempDir,
    ram: Arc<GuestRam>,
    _disk: TestDisk,
}

impl Bench {
    fn new() -> Self {
        let (disk, dir) = (TestDisk::new(1024), TempDir::new().unwrap());
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let workers = Workers::start(1).unwrap();
        let server = Server::start("test", disk.device(2), workers, Socket::Listener(listener)).unwrap();
        Self { server: Some(server), dir, ram: Arc::new(GuestRam::new(&[RAM])), _disk: disk }
    }

    fn connect(&self) -> FrontEnd {
        FrontEnd::new(UnixStream::connect(self.dir.path().join("socket")).unwrap())
    }

    /// A front-end with a ring that runs.
    fn boot(&self) -> (FrontEnd, Driver) {
        let front = self.connect();
        front.negotiate(FEATURES);
        front.set_memory(&self.ram);
        self.ram.write(RAM.start, &[0; Driver::BYTES]);
        let driver = Driver::new(&self.ram, RAM.start, 16);
        front.start_ring(0, &driver);
        (front, driver)
    }

    /// Stops the server and says how long that took.
    fn stop(mut self) -> Duration {
        let start = Instant::now();
        self.server.take().expect("stopped once").stop();
        start.elapsed()
    }

    /// The next front-end is served.
    fn check_serves(&self) {
        let (_front, mut driver) = self.boot();
        driver.check_works(7, 0x5a);
    }
}

#[test]
fn front_ends_are_served_one_after_another() {
    let bench = Bench::new();
    for _ in 0..3 {
        bench.check_serves();
    }
    assert!(bench.stop() < Duration::from_secs(1));
}

#[test]
fn a_second_front_end_is_refused_at_once_and_the_first_one_does_not_notice() {
    let bench = Bench::new();
    let (front, mut driver) = bench.boot();
    for round in 0..20 {
        let second = bench.connect();
        assert!(second.is_closed_within(PATIENCE));
        driver.check_works(round, 0x11);
    }
    assert_eq!(front.stop_ring(0), 40);
}

#[test]
fn a_connection_that_was_made_before_ends_with_its_front_end() {
    let disk = TestDisk::new(1024);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let workers = Workers::start(1).unwrap();
    let server = Server::start("test", disk.device(1), workers, Socket::Connected(theirs)).unwrap();
    let front = FrontEnd::new(ours);
    front.negotiate(FEATURES);
    let has_ended = || {
        let mut fds = [PollFd::new(server.ended(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0
    };
    assert!(!has_ended());
    drop(front);
    assert!(eventually(PATIENCE, has_ended).is_some());
}

#[test]
fn who_has_left_already_is_told_from_who_waits() {
    let [(here, there), (refused, second)] = [(); 2].map(|()| UnixStream::pair().unwrap());
    second.try_clone().unwrap().write_all(b"a part").unwrap();
    assert!(!has_left(&here).unwrap() && !has_left(&refused).unwrap());
    drop((there, second));
    assert!(has_left(&here).unwrap() && has_left(&refused).unwrap());
}

/// All pieces of a message that stop short of its end, and a while in which nothing more comes.
#[test]
fn a_part_of_a_message_holds_up_nobody() {
    let message = FrontEnd::message(SET_VRING_NUM, 0, &state(0, 16));
    for len in [1, 4, 8, 11, 12, 13, 19] {
        let bench = Bench::new();
        let (front, mut driver) = bench.boot();
        front.send(&message[..len], &[]).unwrap();
        driver.check_works(3, 0x33);
        let second = bench.connect();
        assert!(second.is_closed_within(Duration::from_secs(2)), "a second front-end after {len} bytes");
        driver.check_works(3, 0x44);
        assert!(bench.stop() < Duration::from_secs(2), "the server does not stop after {len} bytes");
        assert!(front.is_closed_within(PATIENCE));
    }
}

#[test]
fn a_message_may_come_in_pieces() {
    let bench = Bench::new();
    let front = bench.connect();
    front.negotiate(FEATURES);
    let message = FrontEnd::message(SET_VRING_NUM, 8, &state(1, 32));
    for byte in &message {
        front.send(&[*byte], &[]).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(front.receive().unwrap(), (SET_VRING_NUM, body(&[0])));
    // And several at once.
    let several = [&message[..], &message, &FrontEnd::message(GET_FEATURES, 0, &[])].concat();
    front.send(&several, &[]).unwrap();
    let codes: Vec<_> = (0..3).map(|_| front.receive().unwrap().0).collect();
    assert_eq!(codes, [SET_VRING_NUM, SET_VRING_NUM, GET_FEATURES]);
}

#[test]
fn a_front_end_that_leaves_in_the_middle_of_a_message_has_left() {
    for len in [0, 1, 11, 12, 15] {
        let bench = Bench::new();
        let (front, _driver) = bench.boot();
        front.send(&FrontEnd::message(SET_VRING_NUM, 0, &state(0, 16))[..len], &[]).unwrap();
        drop(front);
        let start = Instant::now();
        bench.check_serves_soon();
        assert!(start.elapsed() < Duration::from_secs(3), "after {len} bytes");
    }
}

impl Bench {
    /// As [`Bench::check_serves`], for a front-end that connects before the last one is seen to have left.
    fn check_serves_soon(&self) {
        let served = || {
            let front = self.connect();
            front.send(&FrontEnd::message(GET_FEATURES, 0, &[]), &[]).is_ok() && front.receive().is_ok()
        };
        assert!(eventually(PATIENCE, served).is_some());
    }
}

/// The server has seen the part before the end of the connection, and both the end and the next one at a time.
#[test]
fn a_part_that_was_left_behind_does_not_keep_the_next_front_end_out() {
    let bench = Bench::new();
    for len in [1, 11, 12, 15].repeat(5) {
        let front = bench.connect();
        front.negotiate(FEATURES);
        front.send(&FrontEnd::message(SET_VRING_NUM, 0, &state(0, 16))[..len], &[]).unwrap();
        std::thread::sleep(Duration::from_millis(8));
        drop(front);
        bench.check_serves();
    }
}

#[test]
fn a_front_end_that_takes_no_answers_holds_up_nobody() {
    let bench = Bench::new();
    let (front, mut driver) = bench.boot();
    front.stream.set_nonblocking(true).unwrap();
    let question = FrontEnd::message(GET_CONFIG, 0, &[&state(0, 256)[..], &[0; 260]].concat());
    let is_full = || front.send(&question, &[]).is_err();
    assert!(eventually(PATIENCE, is_full).is_some(), "neither side ever blocks");
    std::thread::sleep(Duration::from_millis(50));
    driver.check_works(3, 0x33);
    assert!(bench.connect().is_closed_within(Duration::from_secs(2)));
    assert!(bench.stop() < Duration::from_secs(2));
}

#[test]
fn more_fds_than_a_message_may_have_end_the_connection() {
    let event = event_fd(EventfdFlags::NONBLOCK);
    for (count, code, body) in [
        (33, SET_VRING_CALL, body(&[0])),
        (253, SET_VRING_CALL, body(&[0])),
        (33, GET_FEATURES, vec![]),
        (100, SET_MEM_TABLE, state(1, 0)),
        (1, GET_FEATURES, vec![]),
    ] {
        let bench = Bench::new();
        let (front, _driver) = bench.boot();
        front.send(&FrontEnd::message(code, 0, &body), &vec![event.as_fd(); count]).unwrap();
        assert!(front.is_closed_within(Duration::from_secs(2)), "{count} fds with message {code}");
        drop(front);
        bench.check_serves_soon();
        assert!(bench.stop() < Duration::from_secs(2));
    }
}

#[test]
fn fds_in_the_middle_of_a_message_hold_up_nobody() {
    let event = event_fd(EventfdFlags::NONBLOCK);
    let message = FrontEnd::message(SET_VRING_CALL, 8, &body(&[0]));
    for (first, before, after) in
        [(4, 0, 1), (4, 0, 40), (4, 1, 1), (4, 40, 40), (12, 0, 1), (12, 1, 1), (12, 1, 40)]
    {
        let bench = Bench::new();
        let front = bench.connect();
        front.negotiate(FEATURES);
        front.send(&message[..first], &vec![event.as_fd(); before]).unwrap();
        let _ = front.send(&message[first..], &vec![event.as_fd(); after]);
        // Where they are with the header they are the message's own.
        let is_taken = (first, before, after) == (4, 0, 1);
        let name = format!("{before} fds, {first} bytes, {after} fds");
        assert_eq!(front.is_closed_within(Duration::from_secs(2)), !is_taken, "{name}");
        assert!(bench.stop() < Duration::from_secs(2), "{name}");
    }
}

#[test]
fn a_refusal_keeps_the_connection_only_where_the_front_end_was_told() {
    // With an acknowledgement: the same connection goes on.
    let bench = Bench::new();
    let front = bench.connect();
    front.negotiate(FEATURES);
    for (code, body) in
        [(SET_VRING_NUM, state(0, 3)), (SET_VRING_BASE, state(9, 0)), (99, vec![1, 2, 3]), (7, body(&[0]))]
    {
        front.say_wrong(code, &body, &[]);
    }
    front.say(SET_VRING_NUM, &state(0, 16), &[]);
    // Asked for, but of a message that has another answer: nothing is said, so the connection ends.
    front.send(&FrontEnd::message(GET_VRING_BASE, 8, &state(9, 0)), &[]).unwrap();
    assert!(front.is_closed_within(PATIENCE));
    // Not asked for.
    for (code, body) in [(SET_VRING_NUM, state(0, 3)), (99, vec![]), (GET_VRING_BASE, state(9, 0))] {
        let front = bench.front_when_free();
        front.negotiate(FEATURES);
        front.send(&FrontEnd::message(code, 0, &body), &[]).unwrap();
        assert!(front.is_closed_within(PATIENCE), "message {code}");
    }
    // Asked for, but not negotiated.
    let front = bench.front_when_free();
    front.ask(GET_FEATURES, &[]);
    front.send(&FrontEnd::message(SET_VRING_NUM, 8, &state(0, 3)), &[]).unwrap();
    assert!(front.is_closed_within(PATIENCE));
}

impl Bench {
    /// A connection that is served, made as soon as the last one is seen to have left.
    fn front_when_free(&self) -> FrontEnd {
        let mut served = None;
        let is_served = || {
            let front = self.connect();
            let asked = front.send(&FrontEnd::message(GET_FEATURES, 0, &[]), &[]);
            let is = asked.is_ok() && front.receive().is_ok();
            served = is.then_some(front);
            is
        };
        eventually(PATIENCE, is_served).expect("the last one leaves");
        served.expect("it was served")
    }
}

/// QEMU resets a device that can be reset before it sets up the first ring.
#[test]
fn a_device_is_reset_before_and_after_it_was_used() {
    let bench = Bench::new();
    let front = bench.connect();
    front.negotiate(FEATURES);
    for round in 0..3 {
        front.say(RESET_DEVICE, &[], &[]);
        front.say(SET_FEATURES, &body(&[FEATURES]), &[]);
        front.set_memory(&bench.ram);
        bench.ram.clear();
        let mut driver = Driver::new(&bench.ram, RAM.start, 16);
        front.start_ring(0, &driver);
        driver.check_works(5, round);
    }
}

#[test]
fn the_config_space_is_not_read_past_its_end() {
    let bench = Bench::new();
    let front = bench.connect();
    front.negotiate(FEATURES);
    let read = |offset: u32, size: u32| {
        let body = [&[offset, size, 0].map(u32::to_ne_bytes).concat()[..], &vec![0; size as usize]].concat();
        front.ask(GET_CONFIG, &body).split_off(12)
    };
    assert_eq!(read(0, 8), 1024_u64.to_ne_bytes());
    assert_eq!(read(0x100, 8), 1024_u64.to_ne_bytes());
    assert_eq!(read(254, 2).len(), 2);
    for (offset, size) in [
        (255, 2),
        (0xf0, 0x20),
        (0x1ff, 2),
        (0x200, 1),
        (0xfff, 1),
        (0, 0),
        (0, 4000),
        (4000, 97),
        (u32::MAX, 1),
        (u32::MAX - 3, 8),
    ] {
        assert!(read(offset, size).is_empty(), "{size} at {offset}");
    }
    assert_eq!(read(20, 4), 512_u32.to_ne_bytes());
}

#[test]
fn a_silent_connection_makes_room_for_another_one_and_an_idle_one_does_not() {
    let connection = |has_spoken, age| {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let workers = Workers::start(1).unwrap();
        let session =
            Session::new("test", TestDisk::new(8).device(1), workers, Box::new(())).expect("an fd is free");
        let log = Ratelimit::default();
        let mut connection = Connection::new(ours, session, "test", &log).unwrap();
        connection.age(has_spoken, age);
        connection.gives_way()
    };
    let long = Connection::SILENCE_MAX + Duration::from_secs(1);
    assert!(connection(false, long));
    assert!(!connection(true, long));
    assert!(!connection(false, Duration::from_secs(1)));
}

#[test]
fn stopping_ends_the_io_first_and_the_connection_then() {
    let bench = Bench::new();
    let (front, mut driver) = bench.boot();
    for slot in 0..5 {
        driver.offer(slot, 0, slot.into());
    }
    driver.kick();
    assert_eq!(driver.done().1, 0);
    let ram = Arc::clone(&bench.ram);
    assert!(bench.stop() < Duration::from_secs(2));
    assert!(front.is_closed_within(PATIENCE));
    // What was taken was done; afterwards nothing is.
    let used = driver.used_idx();
    driver.offer(0, 0, 0);
    driver.kick();
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.used_idx(), used);
    drop(ram);
    take_events(&driver.call, Duration::ZERO);
}

#[test]
fn a_host_without_fds_serves_again_when_it_has_some() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // The limit is the whole process's, other tests' too, so this is a process of its own.
    if std::env::var_os("SLUICE_FEW_FDS").is_none() {
        let name = "server::tests::a_host_without_fds_serves_again_when_it_has_some";
        let mut test = std::process::Command::new(std::env::current_exe().unwrap());
        let status = test.args([name, "--exact"]).env("SLUICE_FEW_FDS", "1").status().unwrap();
        return assert!(status.success());
    }
    let bench = Bench::new();
    bench.check_serves();
    // A connection waits in the queue of the listener, where it needs no fd.
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let path = SocketAddrUnix::new(bench.dir.path().join("socket")).unwrap();
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), ..before }).unwrap();
    rustix::net::connect(&socket, &path).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let front = FrontEnd::new(UnixStream::from(socket));
    front.send(&FrontEnd::message(GET_FEATURES, 0, &[]), &[]).unwrap();
    assert!(!front.is_closed_within(Duration::from_millis(100)), "nobody has accepted it");
    setrlimit(Resource::Nofile, before).unwrap();
    assert_eq!(front.receive().unwrap().0, GET_FEATURES);
    drop(front);
    bench.check_serves_soon();
    assert!(bench.stop() < Duration::from_secs(2));
}

#[test]
fn a_server_that_is_held_back_reads_nothing_before_it_is_opened_and_can_be_stopped() {
    let disk = TestDisk::new(1024);
    let held_back = || {
        let (front, theirs) = UnixStream::pair().unwrap();
        let workers = Workers::start(1).unwrap();
        let server = Server::held_back("test", disk.device(1), workers).unwrap();
        (FrontEnd::new(front), server, Socket::Connected(theirs))
    };
    let (front, mut server, socket) = held_back();
    let features = std::thread::scope(|scope| {
        let asking = scope.spawn(|| front.ask(GET_FEATURES, &[]));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!asking.is_finished(), "it was answered");
        server.open(socket);
        asking.join().unwrap()
    });
    assert_eq!(features.len(), 8);
    let (_front, server, _socket) = held_back();
    server.stop();
}
