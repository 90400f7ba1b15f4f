//! libblkio as a client: a driver that nobody here wrote, with its own rings, memory and ways of waiting.
//!
//! Random writes, reads, zeroes, discards and flushes go through libblkio's Rust core (the crate `blkio`), many at a
//! time, on several queues, and everything read is compared with a copy of the disk in this process. Poll queues have
//! no call fd at all; event queues sleep on theirs.

#![expect(
    unsafe_code,
    reason = "blkio hands completions over in memory that is initialised by contract only"
)]
#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};
use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::memory::{GuestMemory, Region, memory_file};
use sluice_tests::request::SECTOR;
use sluice_tests::rng::Rng;
use sluice_tests::subject::{Ability, Subject};
use vm_memory::{FileOffset, MmapRegion};

sluice_tests::suite! {
    one_event_queue: [],
    four_event_queues: [],
    one_poll_queue: [NoCallFd],
    four_poll_queues: [NoCallFd],
    a_queue_of_1024: [],
    a_read_only_disk: [],
}

/// Memory of one queue.
const POOL: usize = 1 << 20;

/// How the memory of a queue is used.
#[derive(Clone, Copy)]
struct Slots {
    /// Requests in flight.
    depth: usize,
    /// Buffer of one request.
    bytes: usize,
}

const FEW_LARGE: Slots = Slots { depth: 16, bytes: POOL / 16 };
/// Three descriptors each.
const MANY_SMALL: Slots = Slots { depth: 256, bytes: POOL / 256 };

fn one_event_queue(subject: Subject) {
    Client::connect(subject, 1, false, 20).play(1500);
}

fn four_event_queues(subject: Subject) {
    Client::connect(subject, 4, false, 21).play(500);
}

fn one_poll_queue(subject: Subject) {
    Client::connect(subject, 1, true, 22).play(1500);
}

fn four_poll_queues(subject: Subject) {
    Client::connect(subject, 4, true, 23).play(500);
}

/// The largest queue, with more offered at once than a smaller one holds.
fn a_queue_of_1024(subject: Subject) {
    let spec = DiskSpec { queue_size: 1024, ..DiskSpec::default() };
    let mut client = Client::new(subject, &spec, MANY_SMALL, false, 24);
    for _ in 0..20 {
        client.burst();
    }
    client.play(1000);
}

/// libblkio opens a read-only disk only for who says that reading is enough.
fn a_read_only_disk(subject: Subject) {
    let disk = Disk::new(&DiskSpec { read_only: true, ..DiskSpec::default() });
    let served = subject.serve(&disk);
    for read_only in [false, true] {
        let mut blkio = Blkio::new("virtio-blk-vhost-user").unwrap();
        blkio.set_str("path", served.socket().to_str().unwrap()).unwrap();
        blkio.set_bool("read-only", read_only).unwrap();
        blkio.connect().unwrap_or_else(|e| panic!("{subject}: {e}"));
        assert_eq!(blkio.start().is_ok(), read_only, "{subject}: opened with read-only {read_only}");
    }
}

/// What a slot's request is for.
#[derive(Clone)]
enum Pending {
    Nothing,
    Read { offset: usize, len: usize },
    Other,
}

/// One queue and its share of the disk.
struct Lane {
    queue: Blkioq,
    start: usize,
    pending: Vec<Pending>,
    /// Where on the disk each slot is at work.
    busy: Vec<Option<(usize, usize)>>,
}

/// libblkio, connected to a subject.
struct Client {
    subject: Subject,
    slots: Slots,
    lanes: Vec<Lane>,
    /// The buffers, as this process sees them: safely, by a second mapping of the same file.
    memory: Arc<GuestMemory>,
    /// The buffers, as libblkio is given them.
    mapping: MmapRegion<()>,
    shadow: Vec<u8>,
    rng: Rng,
    /// Bytes of the disk for each queue.
    share: usize,
    blkio: Option<Blkio>,
    _served: sluice_tests::subject::Served,
    _disk: Disk,
}

impl Client {
    fn connect(subject: Subject, queues: u16, poll: bool, seed: u64) -> Self {
        Self::new(subject, &DiskSpec { queues, ..DiskSpec::default() }, FEW_LARGE, poll, seed)
    }

    fn new(subject: Subject, spec: &DiskSpec, slots: Slots, poll: bool, seed: u64) -> Self {
        let queues = spec.queues;
        let disk = Disk::new(spec);
        let served = subject.serve(&disk);
        let mut blkio = Blkio::new("virtio-blk-vhost-user").unwrap();
        blkio.set_str("path", served.socket().to_str().unwrap()).unwrap();
        blkio.connect().unwrap_or_else(|e| panic!("{subject}: {e}"));
        assert_eq!(blkio.get_u64("capacity").unwrap(), spec.bytes as u64, "{subject}: capacity");
        if subject.lacks(Ability::ProductFeatures).is_none() {
            assert!(blkio.get_i32("max-transfer").unwrap() >= 1 << 20, "{subject}: max-transfer");
        }
        let (events, polls) = if poll { (0, i32::from(queues)) } else { (i32::from(queues), 0) };
        blkio.set_i32("num-queues", events).unwrap();
        blkio.set_i32("num-poll-queues", polls).unwrap();
        blkio.set_i32("queue-size", spec.queue_size.into()).unwrap();
        let started = blkio.start().unwrap_or_else(|e| panic!("{subject}: {e}"));
        let size = usize::from(queues) * POOL;
        let file = memory_file(size as u64);
        let mapping = MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), size)
            .expect("a memfd can be mapped");
        let region = MemoryRegion {
            addr: mapping.as_ptr() as usize,
            iova: 0,
            len: size,
            fd: file.as_raw_fd(),
            fd_offset: 0,
            flags: 0,
        };
        blkio.map_mem_region(&region).unwrap_or_else(|e| panic!("{subject}: {e}"));
        let memory = GuestMemory::with_regions(vec![Region::new(0, size as u64, &file, 0)]);
        let share = spec.bytes / usize::from(queues);
        let queues = if poll { started.poll_queues } else { started.queues };
        let lanes = queues.into_iter().enumerate().map(|(i, queue)| Lane {
            queue,
            start: i * share,
            pending: vec![Pending::Nothing; slots.depth],
            busy: vec![None; slots.depth],
        });
        Client {
            subject,
            slots,
            lanes: lanes.collect(),
            memory,
            mapping,
            shadow: disk.bytes(),
            rng: Rng::for_test(seed),
            share,
            blkio: Some(blkio),
            _served: served,
            _disk: disk,
        }
    }

    /// Sends a request from every slot of the first queue, and waits for none of them before all are sent.
    fn burst(&mut self) {
        let Slots { depth, bytes } = self.slots;
        for slot in 0..depth {
            let kind = self.rng.below(12);
            self.start(0, slot, slot * bytes, bytes, kind);
        }
        self.reap_all(0);
    }

    /// Sends so many requests on each queue, in turn, and at the end reads the whole disk back.
    fn play(&mut self, count: usize) {
        for _ in 0..count {
            for lane in 0..self.lanes.len() {
                match self.lanes[lane].busy.iter().position(Option::is_none) {
                    Some(slot) => self.send(lane, slot),
                    None => self.reap(lane, 1),
                }
            }
        }
        for lane in 0..self.lanes.len() {
            self.reap_all(lane);
            for offset in (0..self.share).step_by(self.slots.bytes) {
                self.start(lane, 0, offset, self.slots.bytes.min(self.share - offset), 9);
                self.reap_all(lane);
            }
        }
        // Queues go before what made them.
        self.lanes.clear();
        self.blkio = None;
    }

    /// Sends a random request that overlaps none in flight.
    fn send(&mut self, lane: usize, slot: usize) {
        let sectors = self.rng.between(1, self.slots.bytes / SECTOR);
        let offset = self.rng.below(self.share / SECTOR - sectors) * SECTOR;
        let len = sectors * SECTOR;
        let overlaps = |&(o, l): &(usize, usize)| o < offset + len && offset < o + l;
        if self.lanes[lane].busy.iter().flatten().any(overlaps) {
            return self.reap(lane, 1);
        }
        let kind = self.rng.below(12);
        self.start(lane, slot, offset, len, kind);
        if self.rng.one_in(3) {
            self.reap(lane, 0);
        }
    }

    /// Starts a request on a lane's share of the disk: a kind below 5 writes, 5 zeroes, 6 flushes, more reads.
    fn start(&mut self, lane: usize, slot: usize, offset: usize, len: usize, kind: usize) {
        let buffer = lane * POOL + slot * self.slots.bytes;
        let host = self.mapping.as_ptr().wrapping_add(buffer);
        let Lane { queue, start, pending, busy } = &mut self.lanes[lane];
        let at = *start + offset;
        let (position, range) = (at as u64, at..at + len);
        pending[slot] = Pending::Other;
        busy[slot] = Some((offset, len));
        match kind {
            0..5 => {
                let data = self.rng.bytes(len);
                self.memory.write(buffer as u64, &data);
                self.shadow[range].copy_from_slice(&data);
                queue.write(position, host, len, slot, ReqFlags::empty());
            }
            5 => {
                self.shadow[range].fill(0);
                queue.write_zeroes(position, len as u64, slot, ReqFlags::empty());
            }
            6 => queue.flush(slot, ReqFlags::empty()),
            _ => {
                pending[slot] = Pending::Read { offset: at, len };
                queue.read(position, host, len, slot, ReqFlags::empty());
            }
        }
    }

    fn reap_all(&mut self, lane: usize) {
        while self.lanes[lane].busy.iter().any(Option::is_some) {
            self.reap(lane, 1);
        }
    }

    /// Waits for at least so many completions, and checks each.
    fn reap(&mut self, lane: usize, least: usize) {
        let mut completions: Vec<_> =
            (0..self.slots.depth).map(|_| MaybeUninit::<Completion>::uninit()).collect();
        let mut timeout = Duration::from_secs(20);
        let queue = &mut self.lanes[lane].queue;
        let done = queue.do_io(&mut completions, least, Some(&mut timeout), None);
        let done = done.unwrap_or_else(|e| panic!("{}: no completion on queue {lane}: {e}", self.subject));
        for completion in completions.into_iter().take(done) {
            // SAFETY: do_io returned how many completions it has written, from the start of the array on.
            let completion = unsafe { completion.assume_init() };
            let slot = completion.user_data;
            assert_eq!(completion.ret, 0, "{}: a request on queue {lane} failed", self.subject);
            self.lanes[lane].busy[slot] = None;
            if let Pending::Read { offset, len } = self.lanes[lane].pending[slot] {
                let got = self.memory.read((lane * POOL + slot * self.slots.bytes) as u64, len);
                let differs = (0..len).find(|&i| got[i] != self.shadow[offset + i]);
                assert_eq!(differs, None, "{}: a read at byte {offset}: first wrong byte", self.subject);
            }
        }
    }
}
