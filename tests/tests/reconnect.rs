//! How soon a front-end is served again by a daemon that was killed and started again: measured, and printed.
//!
//! The front-end tries to connect every millisecond, sets everything up anew, and waits until what was in flight is answered,
//! and one request more. `SLUICE_RESTARTS` says how often.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::driver::{Chain, Desc, Ring};
use sluice_tests::frontend::{Inflight, Session};
use sluice_tests::guest::VERSION_1;
use sluice_tests::memory::GuestMemory;
use sluice_tests::model::OK;
use sluice_tests::request::Request;
use sluice_tests::subject::sluice_path;

const RING: u16 = 128;
/// Requests in flight when the daemon is killed.
const DEPTH: usize = 32;

/// The daemon, as a service manager starts it. Ended when dropped.
struct Daemon(Child);

impl Daemon {
    fn start(disk: &Disk, socket: &Path) -> Self {
        let options = [
            format!("--socket-path={}", socket.display()),
            format!("--blk-file={}", disk.path().display()),
            "--num-queues=1".to_owned(),
        ];
        let mut command = Command::new(sluice_path());
        Self(command.args(options).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Writes of 4 KiB, each of its own buffers.
struct Writes {
    memory: std::sync::Arc<GuestMemory>,
    ring: Ring,
    buffers: Vec<[u64; 3]>,
}

impl Writes {
    fn new() -> Self {
        let memory = GuestMemory::new();
        let ring = Ring::new(&memory, RING, 0, false);
        let buffers =
            (0..DEPTH).map(|_| [(16, 16), (4096, 4096), (1, 1)].map(|(len, align)| memory.alloc(len, align)));
        Self { buffers: buffers.collect(), memory, ring }
    }

    fn offer(&mut self, count: usize) {
        for (block, [header, data, status]) in self.buffers.iter().take(count).enumerate() {
            self.memory.write(*header, &Request::write(8 * block as u64, vec![]).header());
            let direct = vec![
                Desc { addr: *header, len: 16, writable: false },
                Desc { addr: *data, len: 4096, writable: false },
                Desc { addr: *status, len: 1, writable: true },
            ];
            self.ring.offer(&Chain { direct, indirect: vec![] });
        }
        self.ring.submit();
    }

    fn settle(&mut self) {
        while self.ring.in_flight() > 0 {
            self.ring.wait();
        }
        for [_, _, status] in &self.buffers {
            assert_eq!(self.memory.read(*status, 1), [OK]);
        }
    }
}

/// Connects and sets everything up. Says when somebody listened.
fn connect(socket: &Path, writes: &Writes, inflight: &mut Option<Inflight>) -> (Session, Instant) {
    let mut session = Session::connect_trying(socket, Duration::from_millis(1));
    let listened = Instant::now();
    session.negotiate(VERSION_1).unwrap();
    session.set_mem_table(writes.memory.regions()).unwrap();
    if inflight.is_none() {
        *inflight = Some(session.make_inflight(1, RING).unwrap());
    }
    session.set_inflight(inflight.as_ref().unwrap()).unwrap();
    session.start_ring(0, &writes.ring, writes.ring.used_idx(), true).unwrap();
    (session, listened)
}

fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1];
    format!("{:.1?} (median), {:.1?} (p99), {:.1?} (longest)", at(50), at(99), at(100))
}

/// Kills the daemon so often, and starts it again when it has been dead for a while.
fn measure(count: usize, dead_for: Duration) {
    let disk = Disk::new(&DiskSpec { bytes: 1 << 20, ..DiskSpec::default() });
    let socket = disk.dir().join("socket");
    let (mut writes, mut inflight) = (Writes::new(), None);
    let mut daemon = Daemon::start(&disk, &socket);
    let (mut session, _) = connect(&socket, &writes, &mut inflight);
    let (mut since_start, mut since_listening) = (Vec::new(), Vec::new());
    for _ in 0..count {
        writes.offer(DEPTH);
        drop(daemon);
        drop(session);
        std::thread::sleep(dead_for);
        let started = Instant::now();
        daemon = Daemon::start(&disk, &socket);
        let (again, listened) = connect(&socket, &writes, &mut inflight);
        session = again;
        writes.settle();
        writes.offer(1);
        writes.settle();
        since_start.push(started.elapsed());
        since_listening.push(listened.elapsed());
    }
    drop(session);
    eprintln!("{count} times dead for {dead_for:?}, served again {} after the start", quantiles(since_start));
    eprintln!("and {} after somebody listened", quantiles(since_listening));
}

#[test]
fn a_front_end_that_comes_back_is_served_again() {
    let count = std::env::var("SLUICE_RESTARTS").map_or(100, |count| count.parse().unwrap());
    // At once: the kernel has not taken the dead one's io_urings apart. And as a service manager does it, which waits.
    measure(count, Duration::ZERO);
    measure(count, Duration::from_millis(60));
}
