//! Descriptor chains on a ring: the same chains, the same oracle and the same model as over the socket, without threads
//! or system calls, so that an input does the same each time.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use sluice_backend::call::SignalRings;
use sluice_backend::config::DiskConfig;
use sluice_backend::device::{Device, DeviceOptions};
use sluice_backend::service::{Service, ServiceSetup};
use sluice_backend::vring::RingSetup;
use sluice_blk::disk::{Cache, Disk, DiskOptions, Medium};
use sluice_blk::overlap::Wake;
use sluice_mem::guest::GuestMem;
use sluice_tests::driver::Ring;
use sluice_tests::memory::GuestMemory;
use sluice_tests::model::Model;
use sluice_tests::rng::{Choose, Rng};
use sluice_tests::wire::batch::{Batch, Chain, Tail};
use sluice_tests::wire::chain::{Mapped, RawDesc};
use sluice_tests::wire::oracle::{Facts, Oracle};
use sluice_tests::wire::plan::ARENA;

use crate::choices::Choices;

const DISK_BYTES: usize = 256 << 10;
/// The most chains of a batch.
const DEPTH: usize = 16;
/// The most batches of an input: more tell nothing new.
const BATCHES: usize = 8;
const SERIAL: &str = "fuzzed";
/// More turns than the chains of a batch could need.
const TURNS: usize = 1000;

/// The memory of the guest, which inputs take turns at.
struct Rig {
    memory: Arc<GuestMemory>,
    mapped: Arc<GuestMem>,
    arenas: u64,
    noise: Vec<u8>,
}

/// Nobody waits for a range of a disk that has one ring.
#[derive(Debug)]
struct Nobody;

impl Wake for Nobody {
    fn wake(&self) {}
}

thread_local! {
    static RIG: Rig = Rig::new();
}

/// A ring in some state, and batches of chains until the bytes are used up or the ring is broken.
pub fn run(bytes: &[u8]) {
    RIG.with(|rig| Bench::new(rig, &mut Choices::new(bytes)).run());
}

impl Rig {
    fn new() -> Self {
        let memory = GuestMemory::new();
        let arenas = memory.alloc(DEPTH * ARENA, 4096);
        let mapped = Arc::new(GuestMem::from_vm_memory(memory.mapped()));
        Self { memory, mapped, arenas, noise: Rng::new(7).bytes(2 * ARENA) }
    }
}

/// A ring being fuzzed.
struct Bench<'a, 'b> {
    rig: &'a Rig,
    choose: &'a mut Choices<'b>,
    ring: Ring,
    service: Service,
    oracle: Oracle,
    model: Model,
    table: Vec<RawDesc>,
    next: u16,
}

impl<'a, 'b> Bench<'a, 'b> {
    fn new(rig: &'a Rig, choose: &'a mut Choices<'b>) -> Self {
        let size = choose.pick(&[8, 32, 128, 256]);
        let base = choose.pick(&[0, 0xfffa, 0x7ffc]);
        let (event_idx, indirect) = (choose.one_in(2), !choose.one_in(4));
        let (read_only, block) = (choose.one_in(8), choose.pick(&[512, 512, 4096]));
        let ring = Ring::new(&rig.memory, size, base, event_idx);
        let setup = RingSetup {
            size,
            desc: ring.desc,
            avail: ring.avail,
            used: ring.used,
            next_avail: base,
            event_idx,
            indirect,
            // Without a choice of its own: what is in the corpus goes on to mean the same.
            in_order: base == 0x7ffc,
            used_log: None,
        };
        let device = device(read_only, block);
        let setup = ServiceSetup {
            held_back: false,
            name: "fuzz".to_owned(),
            index: 0,
            ring: setup,
            inflight: None,
            memory: Arc::clone(&rig.mapped),
            lock: device.disk().lock().acquire(|| ()).expect("nobody else has a disk in memory"),
            device,
            kick: Arc::new(File::from(event_fd())),
            call: None,
            err: None,
        };
        let service = Service::start(setup, None, Arc::new(Nobody), &SignalRings::growing())
            .expect("a good ring starts");
        let block = usize::try_from(block).expect("u32 fits usize");
        let model = Model::new(vec![0; DISK_BYTES], read_only, block, Some(SERIAL));
        let facts = Facts {
            sectors: (DISK_BYTES / 512) as u64,
            block: block as u64,
            read_only,
            indirect,
            table_max: DiskConfig::SEG_MAX + 2,
            segments_max: DiskConfig::RANGES_MAX.into(),
            segment_sectors_max: DiskConfig::DISCARD_SECTORS_MAX,
        };
        let regions = rig.memory.regions().iter().map(|r| r.guest_addr..r.guest_addr + r.size);
        let oracle = Oracle { facts, mapped: Mapped::new(regions) };
        let table = vec![RawDesc::default(); size.into()];
        Self { rig, choose, ring, service, oracle, model, table, next: base }
    }

    fn run(&mut self) {
        for _ in 0..BATCHES {
            if self.choose.is_over() || self.service.is_broken() {
                return;
            }
            self.batch();
        }
    }

    fn batch(&mut self) {
        let depth = self.choose.between(1, DEPTH);
        let memory = (self.rig.arenas, &self.rig.noise[..]);
        let mut batch = Batch::make(&self.oracle, self.choose, &mut self.table, memory, depth);
        batch.execute(&mut self.model);
        let tail = batch.tail(self.choose);
        self.put(&batch);
        let first = self.next;
        for head in batch.heads() {
            self.append(head);
        }
        match tail {
            Tail::Head(head) => self.append(head),
            Tail::Twice => self.append(*batch.heads().last().expect("a batch with a last chain")),
            Tail::None | Tail::Chain | Tail::Jump(_) => {}
        }
        self.ring.raw_avail_idx(self.next);
        self.serve();
        if let Tail::Jump(by) = tail {
            self.ring.raw_avail_idx(self.next.wrapping_add(by));
            self.serve();
        }
        let answered = u16::try_from(batch.answered()).expect("a batch is short");
        let used = self.ring.used_idx().wrapping_sub(first);
        let twice = tail == Tail::Twice && !self.service.is_broken();
        assert_eq!(used, answered + u16::from(twice), "answers, with {tail:?}");
        assert_eq!(self.service.is_broken(), !twice && tail != Tail::None, "{tail:?}, {:?}", batch.breaker());
        self.judge(&batch, first, twice);
    }

    fn append(&mut self, head: u16) {
        self.ring.raw_avail(self.next, head);
        self.next = self.next.wrapping_add(1);
    }

    fn put(&self, batch: &Batch) {
        let bytes: Vec<u8> = self.table.iter().flat_map(|desc| desc.to_bytes()).collect();
        self.rig.memory.write(self.ring.desc, &bytes);
        for chain in &batch.chains {
            self.rig.memory.write(chain.made.arena.base, &chain.made.arena.bytes);
        }
    }

    fn serve(&mut self) {
        self.service.disarm();
        for _ in 0..TURNS {
            if !self.service.turn(false) && self.service.is_idle() {
                return;
            }
        }
        panic!("the ring is not at rest after {TURNS} turns");
    }

    fn judge(&self, batch: &Batch, first: u16, twice: bool) {
        let answered = &batch.chains[..batch.answered()];
        let mut left: Vec<_> = answered.iter().chain(answered.last().filter(|_| twice)).map(Some).collect();
        for i in 0..left.len() {
            let index = first.wrapping_add(u16::try_from(i).expect("a batch is short"));
            let (id, len) = self.ring.used_element(index);
            let is_it = |chain: &Option<&Chain>| chain.is_some_and(|c| u32::from(c.made.head()) == id);
            let chain = left.iter_mut().find(|chain| is_it(chain)).and_then(Option::take);
            let chain = chain.unwrap_or_else(|| panic!("used head {id} is for no chain in flight"));
            chain.judge(&self.rig.memory, len, &self.model, &self.table);
        }
    }
}

fn event_fd() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK).expect("an event fd can be made")
}

/// A disk in memory, all zero.
pub(crate) fn device(read_only: bool, block: u32) -> Arc<Device> {
    let options = DiskOptions {
        read_only,
        cache: Some(Cache::Writeback),
        logical_block_size: Some(block),
        ..DiskOptions::on(Medium::Ram { bytes: DISK_BYTES as u64 })
    };
    let disk = Disk::open(&options).expect("a disk in memory can be made");
    let options = DeviceOptions {
        num_queues: 1,
        queue_size: 256,
        serial: Some(SERIAL.to_owned()),
        memory_budget: None,
        in_order: false,
    };
    Arc::new(Device::new(disk, &options).expect("good options"))
}
