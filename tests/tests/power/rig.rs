//! A driver on a real daemon, whose disk keeps a log of all that the daemon does to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::driver::{PATIENCE, Ring};
use sluice_tests::frontend::{Inflight, Session};
use sluice_tests::fuse_disk::{Kind, Latency};
use sluice_tests::guest::VERSION_1;
use sluice_tests::memory::GuestMemory;
use sluice_tests::model::OK;
use sluice_tests::request::{Extent, Request, SECTOR};
use sluice_tests::rng::Rng;
use sluice_tests::slot::Slot;
use sluice_tests::subject::{Engine, Served, Subject};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_WRITE_ZEROES};

use crate::story::{Story, content};

/// Few, so that writes overlap.
pub(crate) const SECTORS: usize = 96;
/// Of a write.
const SECTORS_MAX: usize = 16;
const DEPTH: usize = 16;
const RING: u16 = 64;
/// The config space's field that says whether there is a cache to flush.
const WRITEBACK: u32 = 32;

/// How a disk is served and driven.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way {
    pub(crate) engine: Engine,
    pub(crate) cache: &'static str,
    /// The driver knows flushes.
    pub(crate) flushes: bool,
    /// The driver switches the cache off and on in the middle of writes.
    pub(crate) switches: bool,
    /// The daemon is killed now and then.
    pub(crate) dies: bool,
    pub(crate) in_order: &'static str,
    /// The disk's blocks; the driver has those of 512 bytes.
    pub(crate) block: u64,
}

/// What a request in flight is, by its number in the story.
#[derive(Clone, Copy, Debug)]
enum Flying {
    Write(usize),
    Flush(usize),
}

pub(crate) struct Rig {
    way: Way,
    memory: Arc<GuestMemory>,
    ring: Ring,
    inflight: Option<Inflight>,
    session: Option<Session>,
    served: Option<Served>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    flying: HashMap<u16, (usize, Flying)>,
    pub(crate) rng: Rng,
    pub(crate) story: Story,
    pub(crate) disk: Disk,
}

impl Rig {
    pub(crate) fn new(way: Way, seed: u64) -> Self {
        let latency = Latency::UpTo(Duration::from_micros(400));
        let spec = DiskSpec {
            bytes: SECTORS * SECTOR,
            content: Some(seed),
            logical_block: Some(512),
            logged: Some(Kind { latency, block: way.block }),
            options: vec![("in-order", way.in_order)],
            ..DiskSpec::default()
        };
        let memory = GuestMemory::new();
        let slot = |_| Slot::new(&memory, SECTORS_MAX * SECTOR, SECTOR);
        let mut rig = Self {
            way,
            ring: Ring::new(&memory, RING, 0, false),
            inflight: None,
            session: None,
            served: None,
            slots: (0..DEPTH).map(slot).collect(),
            free: (0..DEPTH).collect(),
            flying: HashMap::new(),
            rng: Rng::new(seed),
            story: Story::default(),
            disk: Disk::new(&spec),
            memory,
        };
        rig.serve();
        let is_through = !way.flushes || rig.session().config(WRITEBACK, 1).unwrap() == [0];
        rig.story.set_through(is_through);
        rig.note();
        rig
    }

    fn session(&mut self) -> &mut Session {
        self.session.as_mut().unwrap()
    }

    /// A daemon, and all that a front-end says to it.
    fn serve(&mut self) {
        let served = Subject::Sluice { engine: self.way.engine, cache: self.way.cache }.serve(&self.disk);
        let mut session = Session::connect(served.socket());
        let known = [VIRTIO_BLK_F_WRITE_ZEROES].into_iter().chain(
            self.way.flushes.then_some([VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_CONFIG_WCE]).into_iter().flatten(),
        );
        session.negotiate(known.fold(VERSION_1, |all, bit| all | 1 << bit)).unwrap();
        session.set_mem_table(self.memory.regions()).unwrap();
        if self.inflight.is_none() {
            self.inflight = Some(session.make_inflight(1, RING).unwrap());
        }
        session.set_inflight(self.inflight.as_ref().unwrap()).unwrap();
        session.start_ring(0, &self.ring, self.ring.used_idx(), true).unwrap();
        (self.session, self.served) = (Some(session), Some(served));
    }

    /// What has just happened in the story has its place in the log.
    fn note(&self) {
        self.disk.logged().note(self.story.now() - 1);
    }

    /// Any request that changes the disk or flushes it.
    pub(crate) fn submit_any(&mut self) {
        match self.rng.below(10) {
            0 | 1 if self.way.flushes => self.flush(),
            2 => self.write(false),
            _ => self.write(true),
        }
    }

    /// Submits a write, of data or of zeroes, to any place.
    pub(crate) fn write(&mut self, is_data: bool) {
        let Some(slot) = self.free.pop() else { return };
        let count = self.rng.between(1, SECTORS_MAX);
        let first = self.rng.below(SECTORS - count + 1);
        let number = self.story.write(first..first + count, is_data);
        self.note();
        let request = if is_data {
            let data = (first..first + count).flat_map(|sector| content(number, sector)).collect();
            Request::write(first as u64, data)
        } else {
            let flags = u32::from(self.rng.one_in(2));
            let sectors = u32::try_from(count).unwrap();
            Request::zeroes(&[Extent { sector: first as u64, sectors, flags }])
        };
        self.offer(slot, &request, Flying::Write(number));
    }

    /// Submits a flush.
    pub(crate) fn flush(&mut self) {
        let Some(slot) = self.free.pop() else { return };
        let number = self.story.flush();
        self.note();
        self.offer(slot, &Request::flush(), Flying::Flush(number));
    }

    fn offer(&mut self, slot: usize, request: &Request, flying: Flying) {
        let head = self.ring.offer(&self.slots[slot].lay_out(&self.memory, request));
        self.flying.insert(head, (slot, flying));
        self.ring.submit();
    }

    /// Takes what is done.
    pub(crate) fn take(&mut self) -> usize {
        let mut count = 0;
        while let Some(used) = self.ring.poll() {
            let (slot, flying) = self.flying.remove(&used.head).unwrap();
            assert_eq!(self.slots[slot].answer(&self.memory), OK, "an error in the guest");
            match flying {
                Flying::Write(number) => self.story.write_acked(number),
                Flying::Flush(number) => self.story.flush_acked(number),
            }
            self.note();
            self.free.push(slot);
            count += 1;
        }
        count
    }

    /// Writes and flushes for a while, and whatever else belongs to the way.
    pub(crate) fn work(&mut self, turns: usize) {
        for _ in 0..turns {
            for _ in 0..self.rng.between(1, 6) {
                self.submit_any();
            }
            self.take();
            if self.rng.one_in(3) {
                std::thread::sleep(Duration::from_micros(self.rng.below(500) as u64));
                self.take();
            }
            if self.way.switches && self.rng.one_in(8) {
                self.switch();
            }
            if self.way.dies && self.rng.one_in(24) {
                self.die();
            }
        }
        self.settle();
    }

    /// Switches the cache off or on. While that is being said the driver relies on nothing.
    fn switch(&mut self) {
        let is_through = !self.story.is_through();
        self.story.set_through(false);
        self.note();
        self.session().set_config(WRITEBACK, &[u8::from(!is_through)]).unwrap();
        self.story.set_through(is_through);
        self.note();
    }

    fn die(&mut self) {
        let served = self.served.take().unwrap();
        served.kill();
        self.session = None;
        // Its last writes may still be on their way.
        self.serve();
        drop(served);
    }

    /// Waits until all is answered.
    pub(crate) fn settle(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.flying.is_empty() {
            if self.take() == 0 {
                assert!(Instant::now() < deadline, "{} requests are answered never", self.flying.len());
                self.ring.sleep(Duration::from_millis(1));
            }
        }
    }

    /// Ends the daemon.
    pub(crate) fn end(&mut self) {
        self.session = None;
        self.served = None;
    }
}
