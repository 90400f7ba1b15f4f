//! A guest with one disk: memory, a session with a back-end, rings, and the oracle beside it.
//!
//! Most tests are [`Guest::check`] in a loop: it sends one request, and compares status, used length, data and every
//! byte around the buffers with the model. A failure says subject, request, shape, expected and got.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use vhost::Error;
use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;

use crate::disk::{Disk, DiskSpec};
use crate::driver::{Ring, Used};
use crate::frontend::Session;
use crate::memory::{GuestMemory, Region};
use crate::model::{Answer, Model, OK};
use crate::request::{NO_STATUS, Placed, Request, Shape, Written};
use crate::subject::{Ability, Served, Subject};

/// VIRTIO_F_VERSION_1 as a bit.
pub const VERSION_1: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
/// VIRTIO_RING_F_EVENT_IDX as a bit.
pub const EVENT_IDX: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

/// How a driver drives the device.
#[derive(Clone, Debug)]
pub struct Drive {
    /// Features that the driver accepts, if they are offered.
    pub features: u64,
    /// Rings that it starts.
    pub rings: u16,
    /// Descriptors per ring.
    pub ring_size: u16,
    /// The index at which the rings start.
    pub base: u16,
    /// Whether it gives the device a call fd; else it only ever looks.
    pub calls: bool,
}

impl Default for Drive {
    /// Everything on one ring of 128 with interrupts.
    fn default() -> Self {
        Drive { features: u64::MAX, rings: 1, ring_size: 128, base: 0, calls: true }
    }
}

/// A guest whose disk works.
pub struct Guest {
    /// What is tested.
    pub subject: Subject,
    /// The connection.
    pub session: Session,
    /// The virtio features in force.
    pub features: u64,
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// The rings, running.
    pub rings: Vec<Ring>,
    /// The oracle.
    pub model: Model,
    /// The device.
    pub served: Served,
    /// The disk behind it; last, so that its file outlives the device.
    pub disk: Disk,
    drive: Drive,
}

/// A request on its way.
pub struct Flying {
    request: Request,
    placed: Placed,
}

impl Guest {
    /// A guest with one ring.
    pub fn boot(subject: Subject, spec: &DiskSpec) -> Self {
        Self::boot_with(subject, spec, &Drive::default())
    }

    /// A guest that drives the device in its own way.
    ///
    /// # Panics
    /// If the device refuses any of the set-up.
    pub fn boot_with(subject: Subject, spec: &DiskSpec, drive: &Drive) -> Self {
        let disk = Disk::new(spec);
        let served = subject.serve(&disk);
        let session = Session::connect(served.socket());
        let (memory, model) = (GuestMemory::new(), disk.model());
        let drive = drive.clone();
        let mut guest =
            Guest { subject, session, features: 0, memory, rings: vec![], model, served, disk, drive };
        guest.set_up().unwrap_or_else(|e| guest.fail(&format!("set-up is refused: {e}")));
        guest
    }

    /// Negotiates, announces the memory and starts fresh rings.
    fn set_up(&mut self) -> Result<(), Error> {
        self.features = self.session.negotiate(self.drive.features)?;
        self.session.set_mem_table(self.memory.regions())?;
        let event_idx = self.features & EVENT_IDX != 0;
        let Drive { rings, ring_size, base, calls, .. } = self.drive;
        self.rings = (0..rings).map(|_| Ring::new(&self.memory, ring_size, base, event_idx)).collect();
        for (index, ring) in self.rings.iter().enumerate() {
            self.session.start_ring(index, ring, base, calls)?;
        }
        Ok(())
    }

    /// Drops the connection and makes a new one, with fresh rings, as a VMM does that restarts.
    ///
    /// # Panics
    /// If the device refuses any of the set-up.
    pub fn reconnect(&mut self) {
        self.session = Session::connect(self.served.socket());
        self.set_up().unwrap_or_else(|e| self.fail(&format!("set-up after a reconnect is refused: {e}")));
    }

    /// Stops ring 0 and starts it again where it stopped.
    ///
    /// # Panics
    /// If the device refuses.
    pub fn restart_ring(&mut self) {
        let base = self.session.stop_ring(0);
        let base = base.unwrap_or_else(|e| self.fail(&format!("GET_VRING_BASE is refused: {e}")));
        let started = self.session.start_ring(0, &self.rings[0], base, self.drive.calls);
        started.unwrap_or_else(|e| self.fail(&format!("restart at {base} is refused: {e}")));
    }

    /// Replaces ring 0 by a new one of the same size, started at index 0, as a driver does that was reset.
    ///
    /// # Panics
    /// If the device refuses.
    pub fn renew_ring(&mut self) {
        let stopped = self.session.stop_ring(0);
        stopped.unwrap_or_else(|e| self.fail(&format!("GET_VRING_BASE is refused: {e}")));
        self.rings[0].reset(0);
        let started = self.session.start_ring(0, &self.rings[0], 0, self.drive.calls);
        started.unwrap_or_else(|e| self.fail(&format!("restart is refused: {e}")));
    }

    /// Announces a memory table that is different from the present one, but says the same.
    ///
    /// # Panics
    /// If the device refuses.
    pub fn announce_memory(&mut self, regions: &[Region]) {
        let announced = self.session.set_mem_table(regions);
        announced.unwrap_or_else(|e| self.fail(&format!("SET_MEM_TABLE is refused: {e}")));
    }

    /// Sends a request on ring 0 and returns what came back, unjudged but for the bytes around the buffers.
    ///
    /// # Panics
    /// If no answer comes, or the device wrote where it must not.
    pub fn run(&mut self, request: &Request, shape: &Shape) -> (Written, u32) {
        let placed = shape.place(request, &self.memory);
        let ring = &mut self.rings[0];
        let head = ring.offer(&placed.chain);
        ring.submit();
        let used = if self.drive.calls { ring.wait() } else { ring.spin() };
        if used.head != head {
            self.fail(&format!("{request:?}: used head {} instead of {head}", used.head));
        }
        self.land(Flying { request: request.clone(), placed }, used)
    }

    /// Sends a request on ring 0 and compares the answer with the model's.
    ///
    /// # Panics
    /// If they differ.
    pub fn check(&mut self, request: &Request, shape: &Shape) {
        let expected = self.model.execute(request);
        let (written, used) = self.run(request, shape);
        self.judge(request, shape, &expected, &written, used);
    }

    /// Sends a request and expects this answer.
    ///
    /// # Panics
    /// If another one comes.
    pub fn expect(&mut self, request: &Request, shape: &Shape, expected: &Answer) {
        let (written, used) = self.run(request, shape);
        self.judge(request, shape, expected, &written, used);
    }

    /// Writes, reads back and compares a few sectors, to see that the disk works.
    ///
    /// # Panics
    /// If it does not.
    pub fn check_works(&mut self) {
        let data = vec![u8::try_from(self.model.sectors() % 251).expect("small") ^ 0x5a; 8 * 512];
        if !self.disk.spec.read_only {
            self.check(&Request::write(24, data), &Shape::default());
        }
        self.check(&Request::read(16, 32 * 512), &Shape::default());
    }

    /// Compares what came back with what was expected.
    ///
    /// # Panics
    /// If they differ.
    pub fn judge(
        &mut self,
        request: &Request,
        shape: &Shape,
        expected: &Answer,
        written: &Written,
        used: u32,
    ) {
        let got_data = &written.data[..expected.data.len()];
        let got = Answer { status: written.status, used, data: got_data.to_vec() };
        let lax_used = self.subject.lacks(Ability::ExactUsedLength).is_some();
        let data_fits = expected.data == got.data
            || (request.kind == VIRTIO_BLK_T_IN && self.model.may_read_as(request.sector, &got.data));
        let rest_untouched =
            written.data[expected.data.len()..].iter().all(|&byte| Placed::is_untouched(byte));
        // A request that failed may have left part of its data; one that was done leaves no more than it says.
        let rest_fits = rest_untouched || expected.status != OK;
        let used_fits = expected.used == got.used || lax_used;
        if expected.status == got.status && used_fits && data_fits && rest_fits {
            return;
        }
        let differs = (0..expected.data.len()).find(|&i| expected.data[i] != got.data[i]);
        self.fail(&format!(
            "{request:?}\n   shape: {shape:?}\nexpected: {expected:?}\n     got: {got:?}, first byte of data that \
             differs: {differs:?}, bytes after the data untouched: {rest_untouched}"
        ));
    }

    /// Looks at what a completed request wrote, and that it wrote nothing else.
    fn land(&mut self, flying: Flying, used: Used) -> (Written, u32) {
        let Flying { request, placed } = flying;
        let written = placed.finish();
        let written =
            written.unwrap_or_else(|at| self.fail(&format!("{request:?}: wrote to {at:#x}, not its own")));
        if written.status == NO_STATUS {
            self.fail(&format!("{request:?}: used before its status was written"));
        }
        (written, used.len)
    }

    /// Fails the test, and says on what.
    ///
    /// # Panics
    /// Always.
    pub fn fail(&mut self, what: &str) -> ! {
        let subject = self.subject;
        match self.served.fault() {
            Some(fault) => panic!("{subject}: {what}\n{fault}"),
            None => panic!("{subject}: {what}"),
        }
    }
}

/// Requests in flight on one ring, by head.
#[derive(Default)]
pub struct Fleet {
    flying: HashMap<u16, (Flying, Shape, Answer)>,
}

impl Fleet {
    /// Offers a request on a ring, if it has room, without showing it to the device yet. What is in flight must
    /// not overlap: the model does the request now. Returns whether there was room.
    pub fn launch(&mut self, guest: &mut Guest, ring: usize, request: &Request, shape: &Shape) -> bool {
        let placed = shape.place(request, &guest.memory);
        if placed.chain.slots() > guest.rings[ring].room() {
            return false;
        }
        let expected = guest.model.execute(request);
        let head = guest.rings[ring].offer(&placed.chain);
        self.flying.insert(head, (Flying { request: request.clone(), placed }, shape.clone(), expected));
        true
    }

    /// Takes a used element and judges its request.
    ///
    /// # Panics
    /// If the answer is not the model's.
    pub fn land(&mut self, guest: &mut Guest, used: Used) -> Request {
        let entry = self.flying.remove(&used.head);
        let (flying, shape, expected) =
            entry.unwrap_or_else(|| guest.fail(&format!("{used:?} was not launched")));
        let request = flying.request.clone();
        let (written, len) = guest.land(flying, used);
        guest.judge(&request, &shape, &expected, &written, len);
        request
    }

    /// Requests in flight.
    pub fn len(&self) -> usize {
        self.flying.len()
    }

    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.flying.is_empty()
    }

    /// Whether a request touches sectors that one in flight touches.
    pub fn overlaps(&self, request: &Request) -> bool {
        self.flying.values().any(|(other, ..)| overlap(&other.request, request))
    }
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}, {} bytes of room", self.status, self.data.len())
    }
}

/// Whether two requests touch a sector in common.
fn overlap(a: &Request, b: &Request) -> bool {
    a.extents().iter().any(|x| b.extents().iter().any(|y| x.0 < y.1 && y.0 < x.1))
}
