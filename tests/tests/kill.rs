//! The daemon is killed in the middle of writes, again and again, and a guest notices nothing: each request is answered once,
//! nothing acknowledged is lost, and nothing old lands on top of it.
//!
//! The driver's side is in this process and lives on: guest memory, the ring, and the memory for what is in flight, which it
//! gives to each successor, as QEMU does. It keeps up to [`DEPTH`] writes under way, several of the same blocks too, each
//! with a generation of its own, and knows which of them a block may hold. Or it keeps nothing, and the daemon answers in
//! order: then what the ring itself says has to do.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::driver::{Chain, Desc, PATIENCE, Ring};
use sluice_tests::frontend::{Inflight, Session};
use sluice_tests::guest::VERSION_1;
use sluice_tests::memory::GuestMemory;
use sluice_tests::model::OK;
use sluice_tests::request::Request;
use sluice_tests::rng::Rng;
use sluice_tests::shape::NO_STATUS;
use sluice_tests::subject::{Engine, Served, Subject};
use sluice_tests::throttle::Throttle;

const URING: Subject = Subject::Sluice { engine: Engine::Uring, cache: "none" };
/// Writes under way.
const DEPTH: usize = 32;
const BLOCK: usize = 4096;
/// Few, so that writes overlap.
const BLOCKS: usize = 24;
const RING: u16 = 128;

/// How often the daemon is killed: `SLUICE_KILLS`, else so often.
fn kills(default: usize) -> usize {
    std::env::var("SLUICE_KILLS").map_or(default, |count| count.parse().unwrap())
}

/// A write of a whole block.
#[derive(Clone, Copy, Debug)]
struct Write {
    generation: u64,
    submitted: u64,
    /// When its end was seen.
    completed: Option<u64>,
}

/// What the blocks may hold: of each, the writes that no later one has replaced.
struct Oracle {
    /// Counts submissions and completions.
    clock: u64,
    blocks: Vec<Vec<Write>>,
}

impl Oracle {
    fn new() -> Self {
        let never = Write { generation: 0, submitted: 0, completed: Some(0) };
        Self { clock: 0, blocks: vec![vec![never]; BLOCKS] }
    }

    fn submit(&mut self, block: usize) -> u64 {
        self.clock += 1;
        let write = Write { generation: self.clock, submitted: self.clock, completed: None };
        self.blocks[block].push(write);
        self.clock
    }

    fn complete(&mut self, block: usize, generation: u64) {
        self.clock += 1;
        let writes = &mut self.blocks[block];
        let write = writes.iter_mut().find(|write| write.generation == generation).unwrap();
        assert_eq!(write.completed.replace(self.clock), None, "generation {generation} completes twice");
        let submitted = write.submitted;
        // What was complete when this one was submitted is gone now.
        writes.retain(|write| write.completed.is_none_or(|at| at > submitted));
    }

    /// Checks what is on the disk when nothing is under way.
    fn check(&self, disk: &[u8], what: &str) {
        for (block, writes) in self.blocks.iter().enumerate() {
            let bytes = &disk[block * BLOCK..][..BLOCK];
            let found = writes.iter().find(|write| content(block, write.generation) == bytes);
            assert!(
                found.is_some(),
                "{what}: block {block} begins with {:?}, and may be one of {writes:?}",
                bytes.chunks(8).next()
            );
        }
    }
}

/// A block of this generation: all of it says which one it is. Generation 0 is what was there at first.
fn content(block: usize, generation: u64) -> Vec<u8> {
    let words = (0..BLOCK as u64 / 8)
        .map(|word| if generation == 0 { 0 } else { generation << 24 | (block as u64) << 16 | word });
    words.flat_map(u64::to_le_bytes).collect()
}

/// How a successor knows what was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Account {
    /// The front-end keeps it: INFLIGHT_SHMFD.
    Kept,
    /// From the ring: all is answered in order.
    Order,
}

/// Buffers for one write.
struct Slot {
    header: u64,
    data: u64,
    status: u64,
}

/// The driver's side.
struct Rig {
    memory: Arc<GuestMemory>,
    ring: Ring,
    inflight: Option<Inflight>,
    session: Option<Session>,
    served: Option<Served>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    account: Account,
    /// What was offered and not answered, in order.
    order: VecDeque<u16>,
    /// By head: slot, block, generation.
    flying: HashMap<u16, (usize, usize, u64)>,
    oracle: Oracle,
    rng: Rng,
    throttle: Option<Throttle>,
    disk: Disk,
}

impl Rig {
    fn new(disk: Disk, throttle: Option<Throttle>, account: Account, seed: u64) -> Self {
        let memory = GuestMemory::new();
        let ring = Ring::new(&memory, RING, 0, false);
        let slot = |_| Slot {
            header: memory.alloc(16, 16),
            data: memory.alloc(BLOCK, BLOCK),
            status: memory.alloc(1, 1),
        };
        let slots = (0..DEPTH).map(slot).collect();
        let mut rig = Self {
            disk,
            throttle,
            ring,
            inflight: None,
            session: None,
            served: None,
            slots,
            free: (0..DEPTH).collect(),
            account,
            order: VecDeque::new(),
            flying: HashMap::new(),
            oracle: Oracle::new(),
            rng: Rng::for_test(seed),
            memory,
        };
        rig.serve();
        rig
    }

    /// A daemon, and all that a front-end says to it. It knows of the ring only what is in its memory.
    fn serve(&mut self) {
        let served = URING.serve(&self.disk);
        let mut session = Session::connect(served.socket());
        session.negotiate(VERSION_1).unwrap();
        session.set_mem_table(self.memory.regions()).unwrap();
        if self.account == Account::Kept {
            if self.inflight.is_none() {
                self.inflight = Some(session.make_inflight(1, RING).unwrap());
            }
            session.set_inflight(self.inflight.as_ref().unwrap()).unwrap();
        }
        let base = self.base();
        session.start_ring(0, &self.ring, base, true).unwrap();
        (self.session, self.served) = (Some(session), Some(served));
    }

    /// Where front-ends say that a ring is whose back-end has died: at the used index (QEMU), at the available one (Cloud
    /// Hypervisor), or at its start.
    fn base(&mut self) -> u16 {
        let (used, avail) = (self.ring.used_idx(), self.ring.next_avail());
        match self.account {
            Account::Kept => used,
            Account::Order => *self.rng.pick(&[used, avail, 0]),
        }
    }

    fn write(&mut self) {
        let Some(slot) = self.free.pop() else { return };
        let block = self.rng.below(BLOCKS);
        let generation = self.oracle.submit(block);
        let Slot { header, data, status } = self.slots[slot];
        let request = Request::write((block * BLOCK / 512) as u64, Vec::new());
        self.memory.write(header, &request.header());
        self.memory.write(data, &content(block, generation));
        self.memory.write(status, &[NO_STATUS]);
        let len = u32::try_from(BLOCK).unwrap();
        let direct = vec![
            Desc { addr: header, len: 16, writable: false },
            Desc { addr: data, len, writable: false },
            Desc { addr: status, len: 1, writable: true },
        ];
        let head = self.ring.offer(&Chain { direct, indirect: vec![] });
        self.flying.insert(head, (slot, block, generation));
        self.order.push_back(head);
    }

    /// Takes what is done. The ring's own checks see that nothing is used twice.
    fn take(&mut self) -> usize {
        let mut count = 0;
        while let Some(used) = self.ring.poll() {
            let (slot, block, generation) = self.flying.remove(&used.head).unwrap();
            assert_eq!(self.memory.read(self.slots[slot].status, 1), [OK], "an error in the guest");
            assert_eq!(used.len, 1);
            let turn = self.order.iter().position(|head| *head == used.head).unwrap();
            assert!(self.account == Account::Kept || turn == 0, "it overtakes {turn} others");
            self.order.remove(turn);
            self.oracle.complete(block, generation);
            self.free.push(slot);
            count += 1;
        }
        count
    }

    /// Writes for a while.
    fn work(&mut self, turns: usize) {
        for _ in 0..turns {
            for _ in 0..self.rng.between(1, 8) {
                self.write();
            }
            self.ring.submit();
            self.take();
            if self.rng.one_in(3) {
                std::thread::sleep(Duration::from_micros(self.rng.below(300) as u64));
            }
        }
    }

    /// From now on the daemon's writes take their time. Its successor's do not.
    fn slow_down(&self) {
        if let (Some(throttle), Some(served)) = (&self.throttle, &self.served) {
            throttle.add(served.pid().unwrap()).unwrap();
        }
    }

    fn kill(&mut self) {
        let served = self.served.take().unwrap();
        served.kill();
        self.session = None;
        // Not waited for: the successor comes at once, and what the dead one has left in the kernel may still land.
        let dead = served;
        self.serve();
        drop(dead);
    }

    fn settle(&mut self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.flying.is_empty() {
            if self.take() == 0 {
                assert!(Instant::now() < deadline, "{what}: {} writes are answered never", self.flying.len());
                self.ring.sleep(Duration::from_millis(1));
            }
        }
        let disk = std::fs::read(self.disk.path()).unwrap();
        self.oracle.check(&disk, what);
    }
}

fn spec() -> DiskSpec {
    DiskSpec { content: None, bytes: BLOCKS * BLOCK, ..DiskSpec::default() }
}

fn kill_often(mut rig: Rig, count: usize, turns: usize) {
    let mut replayed = 0;
    for kill in 0..count {
        let before = rig.rng.between(1, turns);
        rig.slow_down();
        rig.work(before);
        rig.kill();
        replayed += rig.flying.len();
        let after = rig.rng.between(0, turns);
        rig.work(after);
        rig.settle(&format!("kill {kill}"));
    }
    eprintln!("{count} kills, {replayed} writes under way then, {} in all", rig.oracle.clock / 2);
    assert!(replayed > count, "the daemon was idle when it was killed");
}

#[test]
fn a_guest_does_not_notice_that_the_daemon_is_killed() {
    kill_often(Rig::new(Disk::new(&spec()), None, Account::Kept, 7), kills(150), 12);
}

fn in_order() -> DiskSpec {
    DiskSpec { options: vec![("in-order", "on")], ..spec() }
}

#[test]
fn a_guest_whose_front_end_keeps_nothing_does_not_notice_it_if_all_is_answered_in_order() {
    kill_often(Rig::new(Disk::new(&in_order()), None, Account::Order, 7), kills(150).div_ceil(4), 12);
}

#[test]
fn writes_of_a_dead_daemon_never_land_on_later_ones() {
    let Some(of_device) = DiskSpec::on_device(512) else { return };
    let disk = |spec| Disk::new(&DiskSpec { device: of_device.device, ..spec });
    for (spec, account) in [(spec(), Account::Kept), (in_order(), Account::Order)] {
        let disk = disk(spec);
        // Each write takes its time, so that some are still on their way when a successor is there.
        let throttle = match Throttle::new(&disk.path(), 200) {
            Ok(throttle) => throttle,
            Err(why) => return eprintln!("skipped: no disk can be slowed down: {why}"),
        };
        let rig = Rig::new(disk, Some(throttle), account, 7);
        kill_often(rig, kills(150).div_ceil(if account == Account::Kept { 5 } else { 20 }), 6);
    }
}
