//! Chains that no good driver makes, and the answers that a device may give to them.
//!
//! A [`Bench`] has a header, data and a status byte in guest memory, for chains to be built from by hand. Its
//! [`expect`](Bench::expect) sends a chain and holds the device to two invariants besides the answer: a used element
//! is never published without a status byte having been written, and a request that failed has changed nothing on
//! the disk.

use std::time::{Duration, Instant};

use crate::disk::DiskSpec;
use crate::driver::{Chain, Desc};
use crate::guest::Guest;
use crate::memory::HOLE;
use crate::model::{IOERR, OK, UNSUPP};
use crate::request::Request;
use crate::shape::NO_STATUS;
use crate::subject::Subject;

/// What may become of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// VIRTIO_BLK_S_IOERR.
    IoErr,
    /// VIRTIO_BLK_S_UNSUPP.
    Unsupp,
    /// No answer on this ring any more, and a signal on its err event fd. The connection stays.
    Broken,
}

/// How long a device may take to answer or to give up.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a device is watched after it gave up on a ring.
const QUIET: Duration = Duration::from_millis(5);
/// Room for data on a bench.
pub const ROOM: u32 = 1 << 16;

/// A guest with buffers to misuse.
pub struct Bench {
    /// The guest.
    pub guest: Guest,
    /// 4096 bytes, to begin with a header.
    header: u64,
    /// [`ROOM`] bytes.
    data: u64,
    /// 4096 bytes, to begin with a status byte.
    status: u64,
}

impl Bench {
    /// A small disk, so that all of it can be compared after each chain.
    pub fn new(subject: Subject) -> Self {
        let guest = Guest::boot(subject, &DiskSpec { bytes: 1 << 20, ..DiskSpec::default() });
        let (header, status) = (guest.memory.alloc(4096, 4096), guest.memory.alloc(4096, 4096));
        let data = guest.memory.alloc(1 << 16, 4096);
        Bench { guest, header, data, status }
    }

    /// The first `len` bytes of the header, for the device to read.
    pub fn header(&self, len: u32) -> Desc {
        Desc { addr: self.header, len, writable: false }
    }

    /// The first `len` bytes of the data, for the device to read.
    pub fn out(&self, len: u32) -> Desc {
        Desc { addr: self.data, len, writable: false }
    }

    /// The first `len` bytes of the data, for the device to write.
    pub fn room(&self, len: u32) -> Desc {
        Desc { addr: self.data, len, writable: true }
    }

    /// The status byte.
    pub fn status(&self) -> Desc {
        Desc { addr: self.status, len: 1, writable: true }
    }

    /// Memory that the guest does not have.
    pub fn hole(&self, len: u32, writable: bool) -> Desc {
        Desc { addr: HOLE, len, writable }
    }

    /// Prepares the buffers: the header and the data of a request, and no status.
    pub fn prepare(&mut self, request: &Request) {
        let memory = &self.guest.memory;
        memory.write(self.header, &request.header());
        memory.write(self.data, &vec![0xd5; 1 << 16]);
        memory.write(self.data, &request.out);
        memory.write(self.status, &[NO_STATUS]);
    }

    /// Sends a chain of the prepared request and checks what becomes of it.
    ///
    /// # Panics
    /// If that is none of `allowed`, or an invariant is hurt.
    pub fn expect(&mut self, name: &str, request: &Request, chain: &Chain, allowed: &[Outcome]) {
        self.prepare(request);
        let before = self.guest.disk.bytes();
        let ring = self.guest.ring();
        ring.offer(chain);
        ring.submit();
        let outcome = self.outcome(name);
        assert!(allowed.contains(&outcome), "{}: {name}: {outcome:?}, not {allowed:?}", self.guest.subject);
        if outcome == Outcome::Done {
            self.guest.lanes[0].model.execute(request);
        } else {
            let unchanged = self.guest.disk.bytes() == before;
            assert!(unchanged, "{}: {name}: {outcome:?}, but the disk has changed", self.guest.subject);
        }
        self.recover(name, outcome);
    }

    /// What becomes of the chain that was sent last.
    ///
    /// # Panics
    /// If nothing does, or a chain is used without a status.
    pub fn outcome(&mut self, name: &str) -> Outcome {
        let (subject, status_addr) = (self.guest.subject, self.status);
        let deadline = Instant::now() + PATIENCE;
        let ring = self.guest.ring();
        loop {
            if let Some(used) = ring.poll() {
                let status = ring.memory().read(status_addr, 1)[0];
                let outcome = match status {
                    OK => return Outcome::Done,
                    IOERR => Outcome::IoErr,
                    UNSUPP => Outcome::Unsupp,
                    _ => panic!("{subject}: {name}: used with status {status:#x}"),
                };
                assert_eq!(used.len, 1, "{subject}: {name}: used.len of {outcome:?}");
                return outcome;
            }
            match ring.err.wait(Duration::from_millis(1)) {
                0 => {}
                1 => return Outcome::Broken,
                times => panic!("{subject}: {name}: the broken ring is signalled {times} times"),
            }
            assert!(Instant::now() < deadline, "{subject}: {name}: no answer, and no sign of a broken ring");
        }
    }

    /// After a broken ring: nothing is answered, the error is signalled once, the connection lives, and the ring heals.
    /// After anything else: the ring goes on.
    ///
    /// # Panics
    /// If not.
    pub fn recover(&mut self, name: &str, outcome: Outcome) {
        let subject = self.guest.subject;
        if outcome == Outcome::Broken {
            let before = self.guest.ring().used_idx();
            self.guest.ring().kick();
            let again = self.guest.ring().err.wait(QUIET);
            assert_eq!(again, 0, "{subject}: {name}: the broken ring is signalled again");
            assert_eq!(self.guest.ring().used_idx(), before, "{subject}: {name}: a broken ring answers");
            self.guest.renew_ring();
        }
        let sector = self.guest.sectors() / 2;
        self.guest.check(&Request::read(sector, 4096), &crate::shape::Shape::default());
    }
}
