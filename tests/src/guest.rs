//! A guest with one disk: memory, a session with a back-end, and lanes (rings with an oracle each).
//!
//! Most tests are [`Guest::check`] in a loop: it sends one request on the first ring, and compares status, used
//! length, data and every byte around the buffers with the model.

use std::sync::Arc;

use vhost::{Error, VhostBackend};

use crate::disk::{Disk, DiskSpec};
use crate::driver::Ring;
use crate::frontend::Session;
use crate::lane::Lane;
use crate::memory::{GuestMemory, Region};
use crate::model::Answer;
use crate::request::{Request, SECTOR};
use crate::shape::{Shape, Written};
use crate::subject::{Served, Subject};

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
    pub rings: usize,
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
    /// The connection; none only while it is being replaced.
    session: Option<Session>,
    /// The virtio features in force.
    pub features: u64,
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// The rings, running.
    pub lanes: Vec<Lane>,
    /// The device.
    pub served: Served,
    /// The disk behind it; last, so that its file outlives the device.
    pub disk: Disk,
    /// How the driver drives the device, from the next set-up on.
    pub drive: Drive,
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
        let content = spec.content.filter(|_| subject.keeps_content());
        let disk = Disk::new(&DiskSpec { content, ..spec.clone() });
        let served = subject.serve(&disk);
        Self::connect(subject, disk, served, drive, GuestMemory::new())
    }

    /// A guest with this memory, on a disk that is served already.
    ///
    /// # Panics
    /// If the device refuses any of the set-up.
    pub fn connect(
        subject: Subject,
        disk: Disk,
        served: Served,
        drive: &Drive,
        memory: Arc<GuestMemory>,
    ) -> Self {
        let session = Some(Session::connect(served.socket()));
        let drive = drive.clone();
        let mut guest = Guest { subject, session, features: 0, memory, lanes: vec![], served, disk, drive };
        guest.set_up();
        guest
    }

    /// Negotiates, announces the memory and starts fresh rings. What the model knows of the disk stays.
    ///
    /// # Panics
    /// If the device refuses.
    pub fn set_up(&mut self) {
        let features = self.drive.features;
        let negotiated = self.session().negotiate(features);
        self.features = self.need(negotiated, "negotiation");
        let memory = Arc::clone(&self.memory);
        let announced = self.session().set_mem_table(memory.regions());
        self.need(announced, "SET_MEM_TABLE");
        self.start_rings();
    }

    /// Negotiates the same features again, on a device that was reset.
    ///
    /// # Panics
    /// If the device refuses.
    pub fn renegotiate(&mut self) {
        let features = self.features;
        let set = self.session().set_features(features);
        self.need(set, "SET_FEATURES");
    }

    /// Starts fresh rings, on a session that is negotiated and knows the memory.
    ///
    /// # Panics
    /// If the device refuses.
    pub fn start_rings(&mut self) {
        let Drive { rings, ring_size, base, calls, .. } = self.drive;
        let event_idx = self.features & EVENT_IDX != 0;
        let mut models: Vec<_> = self.lanes.drain(..).map(|lane| lane.model).collect();
        models.resize_with(rings, || self.disk.model());
        for (index, model) in models.into_iter().enumerate() {
            let ring = Ring::new(&self.memory, ring_size, base, event_idx);
            let started = self.session().start_ring(index, &ring, base, calls);
            self.need(started, "the set-up of a ring");
            self.lanes.push(Lane::new(self.subject, ring, model, calls));
        }
    }

    /// The connection.
    ///
    /// # Panics
    /// Never: there is always one.
    pub fn session(&mut self) -> &mut Session {
        self.session.as_mut().expect("a guest is connected")
    }

    /// Closes the connection.
    pub fn hang_up(&mut self) {
        self.session = None;
    }

    /// Closes the connection and makes a new one, on which nothing has been said yet.
    pub fn redial(&mut self) {
        self.hang_up();
        self.session = Some(Session::connect(self.served.socket()));
    }

    /// Closes the connection and makes a new one, on which nothing is set up; what the old one had is given back then.
    ///
    /// # Panics
    /// If the new one is not served.
    pub fn settle(&mut self) {
        self.redial();
        let offered = self.session().frontend().get_features();
        self.need(offered, "GET_FEATURES");
    }

    /// Closes the connection and makes a new one, with fresh rings, as a VMM does that restarts.
    ///
    /// # Panics
    /// If the device refuses any of the set-up.
    pub fn reconnect(&mut self) {
        self.redial();
        self.set_up();
    }

    /// Stops ring 0, which drains it, and returns the index at which it stopped.
    ///
    /// # Panics
    /// If the device refuses.
    pub fn stop_ring(&mut self) -> u16 {
        let base = self.session().stop_ring(0);
        self.need(base, "GET_VRING_BASE")
    }

    /// Starts ring 0 at an index, and kicks, as a VMM does when it starts a ring that may have work.
    ///
    /// # Panics
    /// If the device refuses.
    pub fn resume_ring(&mut self, base: u16) {
        let started = self.try_resume_ring(base);
        self.need(started, "the start of a ring");
        self.ring().kick();
    }

    /// Starts ring 0 at an index, without a kick.
    ///
    /// # Errors
    /// If the device refuses.
    pub fn try_resume_ring(&mut self, base: u16) -> Result<(), Error> {
        let session = self.session.as_mut().expect("a guest is connected");
        session.start_ring(0, &self.lanes[0].ring, base, self.drive.calls)
    }

    /// Says of ring 0 where in the log the device's writes to its used ring are marked.
    ///
    /// # Errors
    /// If the device refuses.
    pub fn log_used(&mut self, log_addr: Option<u64>) -> Result<(), Error> {
        let session = self.session.as_mut().expect("a guest is connected");
        session.log_used(0, &self.lanes[0].ring, log_addr)
    }

    /// Stops ring 0, whatever state it is in, and starts it afresh at index 0, as a driver does that was reset.
    ///
    /// # Panics
    /// If the device refuses.
    pub fn renew_ring(&mut self) {
        self.stop_ring();
        self.lanes[0].abandon();
        self.ring().reset(0);
        self.resume_ring(0);
    }

    /// Announces the memory anew.
    ///
    /// # Panics
    /// If the device refuses.
    pub fn announce(&mut self, regions: &[Region]) {
        let announced = self.session().set_mem_table(regions);
        self.need(announced, "SET_MEM_TABLE");
    }

    /// The first ring.
    pub fn ring(&mut self) -> &mut Ring {
        &mut self.lanes[0].ring
    }

    /// Sends a request on the first ring and returns what came back; see [`Lane::run`].
    pub fn run(&mut self, request: &Request, shape: &Shape) -> (Written, u32) {
        self.lanes[0].run(request, shape)
    }

    /// Sends a request on the first ring and compares the answer with the model's; see [`Lane::check`].
    pub fn check(&mut self, request: &Request, shape: &Shape) {
        self.lanes[0].check(request, shape);
    }

    /// Sends a request on the first ring and expects this answer; see [`Lane::expect`].
    pub fn expect(&mut self, request: &Request, shape: &Shape, expected: &Answer) {
        self.lanes[0].expect(request, shape, expected);
    }

    /// The size of the disk.
    pub fn sectors(&self) -> u64 {
        self.lanes[0].model.sectors()
    }

    /// Writes, reads back and compares a few sectors, to see that the disk works.
    ///
    /// # Panics
    /// If it does not.
    pub fn check_works(&mut self) {
        if !self.disk.spec.read_only {
            self.check(&Request::write(24, vec![0x5a; 8 * SECTOR]), &Shape::default());
        }
        self.check(&Request::read(16, 32 * SECTOR), &Shape::default());
    }

    /// Flushes, and compares every byte of the file with the first lane's model.
    ///
    /// # Panics
    /// If they differ.
    pub fn check_file(&mut self) {
        self.check(&Request::flush(), &Shape::default());
        let (file, model) = (self.disk.bytes(), self.lanes[0].model.data());
        let differs = (0..file.len().max(model.len())).find(|&i| file.get(i) != model.get(i));
        assert_eq!(differs, None, "{}: the first byte of the file that differs from the model", self.subject);
    }

    /// The value of something that the device must not refuse.
    ///
    /// # Panics
    /// If it did, saying what.
    pub fn need<T>(&mut self, result: Result<T, Error>, what: &str) -> T {
        result.unwrap_or_else(|e| {
            let fault = self.served.fault().unwrap_or_default();
            panic!("{}: {what} is refused: {e} {fault}", self.subject)
        })
    }
}
