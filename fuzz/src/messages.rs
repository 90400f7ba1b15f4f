//! Messages on a connection: a front-end that says anything, with fds of all kinds, and leaves. The next one is served.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use sluice_backend::device::{Device, DeviceOptions};
use sluice_backend::server::{Server, Socket};
use sluice_backend::workers::Workers;
use sluice_blk::disk::{Disk, DiskOptions, Medium};
use sluice_tests::driver::Ring;
use sluice_tests::memory::GuestMemory;
use sluice_tests::rng::Choose;
use sluice_tests::wire::message::{Known, Message, Pool, message};

use crate::choices::Choices;

/// The most messages of an input.
const MESSAGES: usize = 64;
/// Longer than an answer takes.
const PATIENCE: Duration = Duration::from_secs(10);
const GET_FEATURES: u32 = 1;

/// The device, which inputs take turns at, and what a front-end has.
struct Rig {
    device: Arc<Device>,
    workers: Arc<Workers>,
    pool: Pool,
    known: Known,
    ring: Ring,
}

thread_local! {
    static RIG: Rig = Rig::new();
}

/// A connection that says what the bytes mean, or, by their first, the bytes themselves.
pub fn run(bytes: &[u8]) {
    RIG.with(|rig| {
        rig.run(Choices::new(bytes));
        rig.check_serves();
    });
}

impl Rig {
    fn new() -> Self {
        let options = DiskOptions { read_only: true, ..DiskOptions::on(Medium::Ram { bytes: 1 << 20 }) };
        let disk = Disk::open(&options).expect("a disk in memory can be made");
        let options = DeviceOptions {
            num_queues: 2,
            queue_size: 128,
            serial: None,
            memory_budget: None,
            in_order: false,
        };
        let device = Arc::new(Device::new(disk, &options).expect("good options"));
        let workers = Workers::start(1).expect("a thread can be started");
        let memory = GuestMemory::new();
        let pool = Pool::new(memory.regions());
        let ring = Ring::new(&memory, 128, 0, true);
        let known = Known::new(memory.regions(), &ring, device.features());
        Self { device, workers, pool, known, ring }
    }

    fn connect(&self) -> (Server, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("sockets can be made");
        ours.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
        let (device, workers) = (Arc::clone(&self.device), Arc::clone(&self.workers));
        let server = Server::start("fuzz", device, workers, Socket::Connected(theirs));
        (server.expect("a thread can be started"), ours)
    }

    fn run(&self, mut choose: Choices<'_>) {
        let (server, mut stream) = self.connect();
        if choose.one_in(4) {
            // A server that has closed the connection already takes none of it.
            let _ = stream.write_all(choose.rest());
        } else {
            for _ in 0..MESSAGES {
                if choose.is_over() {
                    break;
                }
                if choose.one_in(8) {
                    self.ring.kick.write(1).expect("a counter is not full");
                }
                let message = message(&mut choose, &self.known, self.pool.len());
                if !self.send(&mut stream, &message) {
                    break;
                }
            }
        }
        let _ = stream.shutdown(std::net::Shutdown::Both);
        drop(stream);
        server.stop();
    }

    /// Says whether more can be sent.
    fn send(&self, stream: &mut UnixStream, message: &Message) -> bool {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = self.pool.some(&message.fds);
        if !fds.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)), "at most 64 fds in a message");
        }
        let bytes = message.to_bytes();
        let sent = sendmsg(&*stream, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL);
        stream.set_nonblocking(true).expect("a socket takes the flag");
        // Answers are taken, or the server waits for that before it takes the next message.
        while stream.read(&mut [0; 1024]).is_ok_and(|count| count > 0) {}
        stream.set_nonblocking(false).expect("a socket takes the flag");
        sent.is_ok() && !message.is_cut()
    }

    /// The next front-end is served, as if nothing had been.
    fn check_serves(&self) {
        let (server, mut stream) = self.connect();
        stream.write_all(&[GET_FEATURES, 1, 0].map(u32::to_le_bytes).concat()).expect("the server reads");
        let mut answer = [0; 20];
        stream.read_exact(&mut answer).expect("the server answers");
        let [.., a, b, c, d, e, f, g, h] = answer;
        assert_eq!(u64::from_le_bytes([a, b, c, d, e, f, g, h]), self.device.features());
        drop(stream);
        server.stop();
    }
}
