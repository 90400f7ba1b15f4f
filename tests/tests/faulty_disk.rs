//! Disks that fail for real: errors, hanging, a full file system. What a guest is told of it, and that nobody else notices.
//!
//! The disks are files that QEMU's storage daemon exports through FUSE, with errors of its blkdebug driver; stopped, it is
//! a disk that hangs. What each fault comes to is the table in docs/faults.md; `blk` tests all of it without a real disk.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::driver::PATIENCE;
use sluice_tests::frontend::Session;
use sluice_tests::fuse_export::{FuseExport, Injected};
use sluice_tests::guest::{Drive, Guest};
use sluice_tests::memory::GuestMemory;
use sluice_tests::model::{IOERR, OK};
use sluice_tests::request::Request;
use sluice_tests::shape::Shape;
use sluice_tests::subject::{Engine, Subject};

const URING: Subject = Subject::Sluice { engine: Engine::Uring, cache: "none" };
const SYNC: Subject = Subject::Sluice { engine: Engine::Sync, cache: "none" };
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

fn injected(iotype: &'static str, sector: Option<u64>, errno: i32, once: bool) -> Injected {
    Injected { iotype, sector, errno, once }
}

fn spec(faults: &[Injected]) -> DiskSpec {
    DiskSpec { bytes: 1 << 20, faults: Some(faults.to_vec()), ..DiskSpec::default() }
}

/// Whether disks can fail here; a word on why if not.
fn can_fail() -> bool {
    FuseExport::is_here().inspect_err(|why| eprintln!("skipped: no disks that fail: {why}")).is_ok()
}

fn write(sector: u64) -> Request {
    Request::write(sector, vec![0xee; 4096])
}

fn status(guest: &mut Guest, request: &Request) -> u8 {
    guest.run(request, &Shape::default()).0.status
}

/// Sends a request and does not wait for it.
fn launch(guest: &mut Guest, request: &Request) {
    assert!(guest.lanes[0].launch_unjudged(request, &Shape::default()));
    guest.ring().submit();
}

/// A guest on each of two disks of one process.
fn two(specs: [&DiskSpec; 2]) -> [Guest; 2] {
    let [first, second] = specs.map(Disk::new);
    let [of_first, of_second] = URING.serve_two_on_one_thread([&first, &second]);
    [(first, of_first), (second, of_second)]
        .map(|(disk, served)| Guest::connect(URING, disk, served, &Drive::default(), GuestMemory::new()))
}

/// How long something took, which must not be compared with more than a hang.
fn in_time<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let value = work();
    assert!(begun.elapsed() < PATIENCE / 4, "{what} waits for the disk that hangs");
    value
}

#[test]
fn errors_reach_the_guest_and_pass() {
    if !can_fail() {
        return;
    }
    for subject in [URING, SYNC] {
        let faults = [injected("read", Some(64), EIO, false), injected("write", Some(128), ENOSPC, false)];
        let mut guest = Guest::boot(subject, &spec(&faults));
        for _ in 0..3 {
            assert_eq!(status(&mut guest, &Request::read(64, 4096)), IOERR);
            assert_eq!(status(&mut guest, &write(128)), IOERR);
            assert_eq!(status(&mut guest, &Request::read(72, 4096)), OK);
            assert_eq!(status(&mut guest, &write(136)), OK);
            assert_eq!(status(&mut guest, &Request::flush()), OK);
        }
    }
}

#[test]
fn a_flush_that_has_failed_once_is_never_forgotten() {
    if !can_fail() {
        return;
    }
    for subject in [URING, SYNC] {
        let mut guest = Guest::boot(subject, &spec(&[injected("flush", None, EIO, true)]));
        assert_eq!(status(&mut guest, &write(8)), OK);
        for _ in 0..3 {
            assert_eq!(status(&mut guest, &Request::flush()), IOERR);
        }
        guest.reconnect();
        assert_eq!(status(&mut guest, &Request::flush()), IOERR, "for the next guest neither");
        assert_eq!(status(&mut guest, &Request::read(8, 4096)), OK);
    }
}

#[test]
fn what_needs_space_waits_for_a_disk_that_has_none() {
    if !can_fail() {
        return;
    }
    let options = vec![("on-enospc", "stop")];
    let mut guest =
        Guest::boot(URING, &DiskSpec { options, ..spec(&[injected("write", None, ENOSPC, true)]) });
    assert_eq!(status(&mut guest, &write(8)), OK, "when it was tried again");
    guest.check(&Request::read(0, 4096), &Shape::default());
}

/// A file system in memory, of 4 MiB.
struct SmallFs(tempfile::TempDir);

impl SmallFs {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        match mount("tmpfs", dir.path(), "tmpfs", MountFlags::empty(), Some(c"size=4M")) {
            Ok(()) => Some(Self(dir)),
            Err(why) => {
                eprintln!("skipped: no file system can be mounted: {why}");
                None
            }
        }
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_file_system_is_an_error_or_a_wait() {
    let Some(fs) = SmallFs::mount() else { return };
    let ballast = fs.0.path().join("ballast");
    for stop in [false, true] {
        std::fs::write(&ballast, vec![1; 3 << 20]).unwrap();
        let options = if stop { vec![("on-enospc", "stop")] } else { vec![] };
        let spec = DiskSpec {
            bytes: 8 << 20,
            content: None,
            cache: Some("writeback"),
            options,
            ..DiskSpec::default()
        };
        let disk = Disk::new_in(fs.0.path(), &spec);
        let served = URING.serve(&disk);
        let mut guest = Guest::connect(URING, disk, served, &Drive::default(), GuestMemory::new());
        assert_eq!(status(&mut guest, &Request::write(0, vec![0xee; 64 << 10])), OK, "there is some space");
        let large = Request::write(1024, vec![0xdd; 2 << 20]);
        if stop {
            launch(&mut guest, &large);
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(guest.ring().poll().map(|used| used.len), None, "it waits");
            assert_eq!(status_of_other(&mut guest, &Request::read(0, 4096)), OK, "others do not");
            std::fs::remove_file(&ballast).unwrap();
            let used = guest.ring().wait();
            guest.lanes[0].land(used);
            let (read, _) = guest.run(&Request::read(1024, 2 << 20), &Shape::default());
            assert_eq!((read.status, read.data), (OK, vec![0xdd; 2 << 20]));
        } else {
            assert_eq!(status(&mut guest, &large), IOERR);
            assert_eq!(status(&mut guest, &Request::read(0, 4096)), OK);
            std::fs::remove_file(&ballast).unwrap();
            assert_eq!(status(&mut guest, &large), OK, "when there is space");
        }
        drop(guest);
    }
}

/// The status of a request that overtakes one that waits.
fn status_of_other(guest: &mut Guest, request: &Request) -> u8 {
    launch(guest, request);
    let used = guest.ring().wait();
    guest.lanes[0].land_unjudged(used).status
}

#[test]
fn a_disk_that_hangs_holds_up_nobody_else() {
    if !can_fail() {
        return;
    }
    let [mut victim, mut other] = two([&spec(&[]), &DiskSpec { bytes: 1 << 20, ..DiskSpec::default() }]);
    victim.check_works();
    victim.disk.export().freeze();
    for sector in 0..4 {
        launch(&mut victim, &Request::read(sector * 8, 4096));
    }
    in_time("another disk", || {
        for _ in 0..20 {
            other.check_works();
        }
    });
    in_time("a message", || victim.session().config(0, 36).unwrap());
    in_time("a second front-end", || {
        assert!(Session::connect(victim.served.socket()).closed_within(PATIENCE));
    });
    in_time("another guest's return", || other.reconnect());
    other.check_works();
    victim.disk.export().thaw();
    victim.lanes[0].land_all();
    victim.check_works();
}

#[test]
fn a_front_end_is_refused_while_the_one_before_waits_for_a_disk_that_hangs() {
    if !can_fail() {
        return;
    }
    let mut victim = Guest::boot(URING, &spec(&[]));
    victim.check_works();
    victim.disk.export().freeze();
    launch(&mut victim, &Request::read(0, 4096));
    // It leaves with a request in flight, which the disk has.
    std::thread::sleep(Duration::from_millis(100));
    victim.hang_up();
    in_time("the next front-end", || {
        assert!(Session::connect(victim.served.socket()).closed_within(PATIENCE));
    });
    victim.disk.export().thaw();
    let deadline = Instant::now() + PATIENCE;
    while Session::connect(victim.served.socket()).closed_within(Duration::from_millis(200)) {
        assert!(Instant::now() < deadline, "nobody is served any more");
    }
    victim.reconnect();
    victim.check_works();
}

#[test]
fn what_a_disk_does_not_answer_in_time_fails_until_it_does() {
    if !can_fail() {
        return;
    }
    let options = vec![("io-timeout", "0.5")];
    let hanging = DiskSpec { options, ..spec(&[]) };
    let [mut victim, mut other] = two([&hanging, &DiskSpec { bytes: 1 << 20, ..DiskSpec::default() }]);
    victim.check_works();
    victim.disk.export().freeze();
    assert_eq!(status(&mut victim, &write(8)), IOERR, "it took too long");
    for request in [write(64), Request::read(64, 4096), Request::flush()] {
        in_time("a request to a fenced disk", || assert_eq!(status(&mut victim, &request), IOERR));
    }
    other.check_works();
    in_time("GET_VRING_BASE", || victim.stop_ring());
    in_time("the next front-end", || victim.reconnect());
    assert_eq!(status(&mut victim, &Request::read(64, 4096)), IOERR, "it is fenced for the next one, too");
    victim.disk.export().thaw();
    let deadline = Instant::now() + PATIENCE;
    while status(&mut victim, &Request::read(64, 4096)) != OK {
        assert!(Instant::now() < deadline, "the disk is not used again");
        std::thread::sleep(Duration::from_millis(10));
    }
    // The late write has landed, and nothing else.
    assert_eq!(status(&mut victim, &Request::flush()), OK);
    victim.check(&Request::read(64, 4096), &Shape::default());
    other.check_works();
}

#[test]
fn a_daemon_that_is_to_end_answers_first_and_waits_for_the_disk_then() {
    if !can_fail() {
        return;
    }
    for timeout in [false, true] {
        let options = if timeout { vec![("io-timeout", "0.5")] } else { vec![] };
        let mut victim = Guest::boot(URING, &DiskSpec { options, ..spec(&[]) });
        // Linux asks a FUSE file system about poll(2) before its first I/O, in the thread that submits that.
        victim.check_works();
        victim.disk.export().freeze();
        launch(&mut victim, &Request::read(0, 4096));
        std::thread::sleep(Duration::from_millis(100));
        victim.served.ask_to_end();
        let socket = victim.served.socket().to_owned();
        in_time("the socket", || {
            while socket.exists() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        if timeout {
            assert!(victim.session().closed_within(PATIENCE), "the front-end waits for the disk");
        }
        victim.disk.export().thaw();
        assert!(victim.session().closed_within(PATIENCE), "it does not end when the disk answers");
    }
}
