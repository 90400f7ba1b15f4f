//! What a guest is copied by while it runs: the device marks each page that it writes, in a log of the front-end.
//!
//! A front-end follows the log while random requests of all kinds are in flight, and switches it on and off, changes it, stops
//! rings and changes the memory in the middle of that. Two things must hold: what a request has written is marked when the
//! driver can see that it is done; and when a ring is stopped, a copy that has followed the log is the guest's memory.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::Duration;

use sluice_tests::dirty::{Log, PAGE, Replica};
use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::driver::Used;
use sluice_tests::frontend::{LOG_ALL, NEED_REPLY};
use sluice_tests::guest::{Drive, EVENT_IDX, Guest};
use sluice_tests::memory::{GuestMemory, Region, SEAM, memory_file};
use sluice_tests::mixture::{Mixture, shape};
use sluice_tests::request::{Request, SECTOR};
use sluice_tests::rng::Rng;
use sluice_tests::shape::{Place, Shape};
use sluice_tests::subject::Subject;

sluice_tests::suite! {
    what_is_written_is_marked_and_a_copy_that_follows_is_the_memory: [DirtyLog],
    what_is_written_is_marked_without_event_idx_too: [DirtyLog],
    reads_that_fail_mark_what_they_have_written: [DirtyLog, OddSizes],
    each_write_of_one_request_is_marked: [DirtyLog],
    nothing_is_marked_while_nobody_asks_for_it: [DirtyLog],
    a_used_ring_is_marked_where_the_front_end_says: [DirtyLog],
    a_log_that_cannot_be_is_refused: [DirtyLog],
    a_log_that_is_too_small_for_the_memory_is_refused: [DirtyLog],
    memory_that_the_log_has_no_bits_for_is_refused: [DirtyLog, MemorySlots],
    a_log_that_is_taken_away_ends_the_connection: [DirtyLog, SurvivesLostMemory],
}

const MIB: u64 = 1 << 20;
const SET_LOG_BASE: u32 = 6;
const SET_LOG_FD: u32 = 7;
const WHOLE: Mixture = Mixture { start: 0, sectors: 8 << 11, transfer_max: 96, block: 1, depth: 32 };

/// A guest with little memory, so that all of it can be compared often: two regions with a seam, and one far away.
pub(crate) fn boot(subject: Subject, drive: &Drive) -> Guest {
    let (low, high) = (memory_file(8 * MIB), memory_file(2 * MIB));
    let memory = GuestMemory::with_seam(vec![
        Region::new(0, SEAM, &low, 0),
        Region::new(SEAM, 4 * MIB, &low, 4 * MIB),
        Region::new(4096 * MIB, MIB, &high, MIB),
    ]);
    let disk = Disk::new(&DiskSpec { bytes: 8 << 20, ..DiskSpec::default() });
    let served = subject.serve(&disk);
    Guest::connect(subject, disk, served, drive, memory)
}

/// A guest that is being copied.
pub(crate) struct Copied {
    pub(crate) guest: Guest,
    pub(crate) log: Log,
    pub(crate) replica: Replica,
    /// Where the used ring is logged.
    used: u64,
}

impl Copied {
    pub(crate) fn new(guest: Guest) -> Self {
        let used = guest.lanes[0].ring.used;
        let log = Log::for_memory(&guest.memory, 0, 0);
        let replica = Replica::new(&guest.memory);
        let mut copied = Self { guest, log, replica, used };
        copied.set_log();
        copied.switch(true);
        copied
    }

    pub(crate) fn set_log(&mut self) {
        let set = self.guest.session().set_log(&self.log);
        self.guest.need(set, "SET_LOG_BASE");
    }

    /// Switches the log on or off, as QEMU does. What is written from then on is followed.
    fn switch(&mut self, on: bool) {
        let features = self.guest.features | if on { LOG_ALL } else { 0 };
        let set = self.guest.session().set_features(features);
        self.guest.need(set, "SET_FEATURES");
        self.log_used(on);
        if on {
            self.log.take();
            self.replica.copy_all();
        }
    }

    pub(crate) fn log_used(&mut self, on: bool) {
        let set = self.guest.log_used(on.then_some(self.used));
        self.guest.need(set, "SET_VRING_ADDR");
    }

    /// Another log from now on; what the old one has is not lost.
    fn renew_log(&mut self, rng: &mut Rng) {
        let offset = PAGE * rng.below(3) as u64;
        let old = std::mem::replace(&mut self.log, Log::for_memory(&self.guest.memory, 0, offset));
        self.set_log();
        self.replica.follow(&old);
    }

    /// What the driver writes while requests are in flight: the available ring.
    fn drivers(&self) -> Range<u64> {
        let ring = &self.guest.lanes[0].ring;
        ring.avail..ring.avail + 6 + 2 * u64::from(ring.size())
    }

    /// Stops the ring, and compares all of the memory with what has followed the log; then the ring goes on.
    pub(crate) fn stop_and_compare(&mut self, name: &str) {
        let base = self.guest.stop_ring();
        self.replica.follow(&self.log);
        let (subject, differing) = (self.guest.subject, self.replica.differing(&self.drivers()));
        assert!(
            differing.is_empty(),
            "{subject}: {name}: pages that were written and not marked: {differing:x?}"
        );
        self.guest.resume_ring(base);
        self.log_used(true);
    }

    /// Requires of a request that is done that what it has written is marked.
    fn check_marks(&self, used: Used) {
        for range in self.guest.lanes[0].writable(used.head) {
            let len = usize::try_from(range.end - range.start).unwrap();
            let now = self.guest.memory.read(range.start, len);
            let at = |n: usize| range.start + n as u64;
            // Of a buffer that crosses the seam the parts are in two regions.
            let old: Vec<u8> = (0..len).map(|n| self.replica.at(at(n)..at(n) + 1)[0]).collect();
            let unmarked = (0..len).find(|&n| old[n] != now[n] && !self.log.has(at(n)..at(n) + 1));
            assert_eq!(
                unmarked.map(at).map(|addr| format!("{addr:#x}")),
                None,
                "{}: written for head {} and not marked",
                self.guest.subject,
                used.head
            );
        }
        let ring = &self.guest.lanes[0].ring;
        let index = ring.used + 2;
        assert!(self.log.has(index..index + 2), "{}: used.idx moved, and is not marked", self.guest.subject);
    }

    /// Makes requests available, which the device does not see yet.
    pub(crate) fn prepare(&mut self, rng: &mut Rng) {
        let lane = &mut self.guest.lanes[0];
        for _ in 0..rng.between(1, 24) {
            let (request, mut shape) = (WHOLE.request(lane.subject, rng), shape(lane.subject, rng));
            // One at a time: there is one seam.
            if lane.in_flight() == 0 && rng.one_in(3) {
                shape.place = Place::AcrossRegions;
            }
            if lane.overlaps(&request) || !lane.launch(&request, &shape) {
                break;
            }
        }
    }

    /// One batch of requests, during which the front-end does what front-ends do.
    fn round(&mut self, rng: &mut Rng) {
        self.prepare(rng);
        let off = rng.one_in(4);
        if off {
            self.switch(false);
        } else {
            self.log.take();
            self.replica.copy_all();
        }
        self.guest.ring().submit();
        let mut is_on = !off;
        // Without a front-end that takes marks away in between, all of them are there when a request is done.
        let mut is_whole = is_on;
        for _ in 0..rng.below(4) {
            match rng.below(6) {
                0 => self.replica.follow(&self.log),
                1 => std::thread::sleep(Duration::from_micros(rng.below(300) as u64)),
                2 if is_on => self.renew_log(rng),
                3 if is_on => self.stop_and_compare("in the middle"),
                4 => {
                    self.switch(!is_on);
                    is_on = !is_on;
                }
                _ if is_whole => {
                    if self.guest.lanes[0].in_flight() > 0 {
                        let used = self.guest.lanes[0].next_used();
                        self.check_marks(used);
                        self.guest.lanes[0].land(used);
                    }
                    continue;
                }
                _ => {}
            }
            is_whole = false;
        }
        if !is_on {
            self.switch(true);
            is_whole = false;
        }
        while self.guest.lanes[0].in_flight() > 0 {
            let used = self.guest.lanes[0].next_used();
            if is_whole {
                self.check_marks(used);
            }
            self.guest.lanes[0].land(used);
        }
        self.stop_and_compare("at the end");
    }
}

fn rounds(default: usize) -> usize {
    std::env::var("SLUICE_LOG_ROUNDS").map_or(default, |count| count.parse().unwrap())
}

fn what_is_written_is_marked_and_a_copy_that_follows_is_the_memory(subject: Subject) {
    let mut copied = Copied::new(boot(subject, &Drive::default()));
    let mut rng = Rng::for_test(80);
    for _ in 0..rounds(60) {
        copied.round(&mut rng);
    }
}

fn what_is_written_is_marked_without_event_idx_too(subject: Subject) {
    let drive = Drive { features: !EVENT_IDX, calls: false, ring_size: 64, base: 0xfff0, ..Drive::default() };
    let mut copied = Copied::new(boot(subject, &drive));
    let mut rng = Rng::for_test(81);
    for _ in 0..rounds(30) {
        copied.round(&mut rng);
    }
}

/// The file becomes shorter: what a read has moved until then is in the guest's memory, and the request has failed.
fn reads_that_fail_mark_what_they_have_written(subject: Subject) {
    let mut copied = Copied::new(boot(subject, &Drive::default()));
    File::options().write(true).open(copied.guest.disk.path()).unwrap().set_len(4 << 20).unwrap();
    let mut rng = Rng::for_test(82);
    for _ in 0..60 {
        let lane = &mut copied.guest.lanes[0];
        for _ in 0..rng.between(1, 6) {
            let (before, after) = (rng.between(0, 40), rng.between(1, 40));
            let request = Request::read((8 << 10) - before as u64, (before + after) * SECTOR);
            assert!(lane.launch_unjudged(&request, &shape(subject, &mut rng)) || lane.in_flight() > 0);
        }
        copied.log.take();
        copied.replica.copy_all();
        copied.guest.ring().submit();
        while copied.guest.lanes[0].in_flight() > 0 {
            let used = copied.guest.lanes[0].next_used();
            copied.check_marks(used);
            copied.guest.lanes[0].land(used);
        }
        copied.stop_and_compare("after failures");
    }
}

/// All by itself, so that it is known which page has which reason.
fn each_write_of_one_request_is_marked(subject: Subject) {
    let mut copied = Copied::new(boot(subject, &Drive::default()));
    let data = copied.guest.memory.alloc(16 << 12, 4096);
    let place = |addr: u64| Shape { place: Place::At(addr), status_joins_data: true, ..Shape::default() };
    for (name, request) in [
        ("a read", Request::read(0, 40 << 10)),
        ("an id", Request::id(20)),
        ("a write", Request::write(0, vec![1; 512])),
        ("an unknown request", Request::other(77, vec![], 5000)),
    ] {
        copied.log.take();
        copied.guest.check(&request, &place(data));
        let written = request.room + 1;
        let start = data + 16 + request.out.len() as u64;
        let marks = copied.log.take();
        let status = (start + written as u64 - 1) / PAGE;
        assert!(marks.contains(&status), "{subject}: {name}: its status byte: {marks:?}");
        let used = copied.used / PAGE;
        assert!(marks.contains(&used), "{subject}: {name}: the used ring: {marks:?}");
        if request.room > 4096 && name == "a read" {
            assert!((start / PAGE..=status).all(|page| marks.contains(&page)), "{subject}: {marks:?}");
        }
        let known = |page: &u64| (start / PAGE..=status).contains(page) || *page == used || *page == used + 1;
        assert!(marks.iter().all(known), "{subject}: {name}: others are marked: {marks:?}");
        copied.replica.copy_all();
    }
}

fn nothing_is_marked_while_nobody_asks_for_it(subject: Subject) {
    let mut copied = Copied::new(boot(subject, &Drive::default()));
    copied.switch(false);
    copied.log.take();
    copied.guest.check_works();
    assert!(copied.log.take().is_empty(), "{subject}: marks after the log was switched off");
    // Only what is read, when the used ring is not to be logged.
    let features = copied.guest.features | LOG_ALL;
    let set = copied.guest.session().set_features(features);
    copied.guest.need(set, "SET_FEATURES");
    copied.log.take();
    copied.guest.check_works();
    let marks = copied.log.take();
    assert!(!marks.is_empty() && !marks.contains(&(copied.used / PAGE)), "{subject}: {marks:?}");
}

/// Which need not be an address of the guest's.
fn a_used_ring_is_marked_where_the_front_end_says(subject: Subject) {
    let elsewhere = 64 * MIB + 4090;
    let mut copied = Copied::new(boot(subject, &Drive::default()));
    copied.used = elsewhere;
    copied.log_used(true);
    copied.log.take();
    copied.guest.check(&Request::flush(), &Shape::default());
    let marks = copied.log.take();
    assert!(marks.contains(&(elsewhere / PAGE)), "{subject}: {marks:?}");
    assert!(!marks.contains(&(copied.guest.ring().used / PAGE)), "{subject}: {marks:?}");
    // Past the end of the log: refused, and the ring goes on as it was.
    let end = copied.log.region().mmap_size * 8 * PAGE;
    for bad in [end - 8, end, u64::MAX - 8, u64::MAX] {
        assert!(copied.guest.log_used(Some(bad)).is_err(), "{subject}: a used ring logged at {bad:#x}");
        copied.guest.check_works();
    }
    assert!(copied.log.take().contains(&(elsewhere / PAGE)), "{subject}");
}

fn body(size: u64, offset: u64) -> Vec<u8> {
    [size.to_le_bytes(), offset.to_le_bytes()].concat()
}

/// SET_LOG_BASE has one answer, which front-ends take for a yes whatever is in it. So who has to be told no is told by the end of
/// the connection, and nothing of the guest's is lost: another one goes on where it was.
fn a_log_that_cannot_be_is_refused(subject: Subject) {
    let mut copied = Copied::new(boot(subject, &Drive::default()));
    let file = memory_file(MIB);
    let need = copied.log.region().mmap_size;
    let null = File::open("/dev/null").unwrap();
    let (pipe, _end) = std::io::pipe().unwrap();
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let (memory, two) = (vec![file.as_fd()], vec![file.as_fd(), file.as_fd()]);
    for (name, fds, size, offset) in [
        ("longer than its file", &memory, MIB + 4096, 0),
        ("past the end of its file", &memory, need, MIB),
        ("an offset within a page", &memory, need, 512),
        ("an offset that wraps", &memory, need, u64::MAX - need),
        ("numbers that wrap", &memory, u64::MAX, 4096),
        ("too small", &memory, need - 4096, 0),
        ("of one byte", &memory, 1, 0),
        ("of no bytes", &memory, 0, 0),
        ("no fd", &vec![], need, 0),
        ("two fds", &two, need, 0),
        ("a device", &vec![null.as_fd()], need, 0),
        ("a pipe", &vec![pipe.as_fd()], need, 0),
        ("an event fd", &vec![event.as_fd()], need, 0),
    ] {
        for flags in [1, NEED_REPLY | 1] {
            copied.guest.check_works();
            copied.guest.session().raw(SET_LOG_BASE, flags, &body(size, offset), fds).unwrap();
            let is_closed = copied.guest.session().closed_within(Duration::from_secs(10));
            assert!(is_closed, "{subject}: a log that is {name} is taken");
            copied.guest.reconnect();
        }
    }
    // An event fd for who waits for marks may come and is not needed.
    let answer = copied.guest.session().acked(SET_LOG_FD, &[], &[event.as_fd()]);
    assert!(matches!(answer, Ok(0)), "{subject}: SET_LOG_FD: {answer:?}");
    copied.guest.check_works();
}

fn a_log_that_is_too_small_for_the_memory_is_refused(subject: Subject) {
    let mut guest = boot(subject, &Drive::default());
    // Up to the seam and a bit; the memory has a region at 4 GiB.
    let small = Log::new(PAGE, 0);
    assert!(guest.session().set_log(&small).is_err(), "{subject}: a log that is too small");
    guest.reconnect();
    guest.check_works();
    // A front-end may set the log first, and the memory then.
    guest.redial();
    let negotiated = guest.session().negotiate(u64::MAX);
    guest.features = guest.need(negotiated, "negotiation");
    let set = guest.session().set_log(&small);
    guest.need(set, "SET_LOG_BASE");
    let features = guest.features | LOG_ALL;
    let set = guest.session().set_features(features);
    guest.need(set, "SET_FEATURES");
    let regions = guest.memory.regions().to_vec();
    assert!(guest.session().set_mem_table(&regions).is_err(), "{subject}: memory past the end of the log");
    let all = Log::for_memory(&guest.memory, 0, 0);
    let set = guest.session().set_log(&all);
    guest.need(set, "SET_LOG_BASE");
    guest.announce(&regions);
    guest.start_rings();
    guest.check_works();
    assert!(!all.take().is_empty(), "{subject}: nothing is marked");
}

fn memory_that_the_log_has_no_bits_for_is_refused(subject: Subject) {
    let mut copied = Copied::new(boot(subject, &Drive::default()));
    let file = memory_file(MIB);
    let mut rng = Rng::for_test(83);
    let (within, beyond) = (
        Region::new(64 * MIB, MIB, &file, 0),
        Region::new(copied.log.region().mmap_size * 8 * PAGE, MIB, &file, 0),
    );
    for _ in 0..5 {
        copied.round(&mut rng);
        let added = copied.guest.session().add_region(&within);
        copied.guest.need(added, "ADD_MEM_REG");
        copied.round(&mut rng);
        let refused = copied.guest.session().add_region(&beyond);
        assert!(refused.is_err(), "{subject}: memory that the log does not cover");
        copied.round(&mut rng);
        let removed = copied.guest.session().remove_region(&within);
        copied.guest.need(removed, "REM_MEM_REG");
    }
    // While nothing is logged any memory may come; then such a log is no log any more, and another has to be given.
    copied.switch(false);
    let added = copied.guest.session().add_region(&beyond);
    copied.guest.need(added, "ADD_MEM_REG");
    copied.log = Log::for_memory(&copied.guest.memory, beyond.guest_addr + MIB, 0);
    copied.set_log();
    copied.switch(true);
    copied.round(&mut rng);
}

fn a_log_that_is_taken_away_ends_the_connection(subject: Subject) {
    let mut copied = Copied::new(boot(subject, &Drive::default()));
    copied.guest.check_works();
    copied.log.file().set_len(0).unwrap();
    copied.guest.lanes[0].launch(&Request::read(0, 4096), &Shape::default());
    copied.guest.ring().submit();
    assert!(copied.guest.session().closed_within(Duration::from_secs(10)), "{subject}: the connection stays");
    copied.guest.lanes[0].abandon();
    copied.guest.reconnect();
    copied.guest.check_works();
}
