//! A ring that is fuzzed: chains in batches, each batch judged when all of it is answered.
//!
//! Within a batch no two requests touch the same sectors if one of them writes, so that the model may do them in any
//! order; the device has all of them at a time. A chain that breaks the ring is the last of its batch: the ones before
//! are answered all the same, then the ring is stopped and starts anew.

use std::time::{Duration, Instant};

use super::batch::{Batch, Chain, Tail};
use super::chain::{DESC, Mapped, RawDesc};
use super::oracle::{Facts, Oracle};
use super::plan::ARENA;
use super::tally::Tally;
use crate::driver::{PATIENCE, Ring};
use crate::guest::{EVENT_IDX, Guest};
use crate::model::Model;
use crate::request::{Request, SECTOR};
use crate::rng::Rng;
use crate::shape::Shape;

/// VIRTIO_RING_F_INDIRECT_DESC as a bit.
pub const INDIRECT_DESC: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
/// The most chains of a batch.
pub const DEPTH: usize = 64;
/// How long a ring that may have been broken by its own requests is watched.
const HARM: Duration = Duration::from_millis(2);

/// A guest whose first ring is fuzzed.
pub struct Lane {
    /// The guest.
    pub guest: Guest,
    /// What was sent, and what became of it.
    pub tally: Tally,
    oracle: Oracle,
    /// The descriptor table as it is in memory when a batch is published.
    table: Vec<RawDesc>,
    /// Where the arenas of a batch are.
    arenas: u64,
    /// Random bytes, which arenas are filled with.
    noise: Vec<u8>,
    /// The next index of the available ring; with nothing in flight also that of the used ring.
    next: u16,
}

/// Says how to replay a session if that panics.
struct Replay<'a> {
    seed: u64,
    test: &'a str,
}

impl Drop for Replay<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (seed, test) = (self.seed, self.test);
            eprintln!(
                "replay: SLUICE_SEED={seed} cargo test --locked -p sluice-tests --test wire_fuzz {test}"
            );
        }
    }
}

impl Lane {
    /// A lane on a guest that runs.
    pub fn new(mut guest: Guest) -> Self {
        let arenas = guest.memory.alloc(DEPTH * ARENA, 4096);
        let regions = guest.memory.regions().iter().map(|r| r.guest_addr..r.guest_addr + r.size);
        let mapped = Mapped::new(regions);
        let facts = facts(&mut guest);
        let noise = Rng::new(7).bytes(2 * ARENA);
        let (tally, oracle) = (Tally::default(), Oracle { facts, mapped });
        Lane { guest, tally, oracle, table: vec![], arenas, noise, next: 0 }
    }

    /// Connects, sets a ring up in some way, sends `requests` chains and looks at the whole disk. All of it follows from
    /// the seed; `test` is the name of the test that does the same again.
    ///
    /// # Panics
    /// If an answer is not what is due.
    pub fn session(&mut self, seed: u64, requests: usize, test: &str) {
        let replay = Replay { seed, test };
        let mut rng = Rng::new(seed);
        self.guest.drive.features = u64::MAX;
        for feature in [EVENT_IDX, INDIRECT_DESC] {
            if rng.one_in(4) {
                self.guest.drive.features &= !feature;
            }
        }
        self.guest.drive.ring_size = *rng.pick(&[8, 32, 128, 128, 256, 256]);
        self.guest.drive.base = *rng.pick(&[0, 0xfff0, 0x7fff, 1234]);
        self.guest.drive.calls = !rng.one_in(3);
        self.guest.reconnect();
        self.oracle.facts = facts(&mut self.guest);
        self.table = vec![RawDesc::default(); self.guest.ring().size().into()];
        self.next = self.guest.drive.base;
        let end = self.tally.answers() + requests as u64;
        while self.tally.answers() < end {
            self.send_batch(&mut rng);
            if rng.one_in(200) {
                self.harm_itself(&mut rng);
            }
        }
        self.check_disk();
        drop(replay);
    }

    /// Makes, sends and judges a batch.
    fn send_batch(&mut self, rng: &mut Rng) {
        let depth = if rng.one_in(4) { rng.between(1, DEPTH) } else { DEPTH };
        let memory = (self.arenas, &self.noise[..]);
        let mut batch = Batch::make(&self.oracle, rng, &mut self.table, memory, depth);
        batch.execute(&mut self.guest.lanes[0].model);
        let tail = batch.tail(rng);
        self.put(&batch);
        let first = self.next;
        for head in batch.heads() {
            self.guest.ring().raw_avail(self.next, head);
            self.next = self.next.wrapping_add(1);
        }
        let answered = first.wrapping_add(u16::try_from(batch.answered()).expect("a batch is short"));
        match tail {
            Tail::Head(head) => self.append(head),
            Tail::Twice => self.append(*batch.heads().last().expect("a batch with a last chain")),
            Tail::None | Tail::Chain | Tail::Jump(_) => {}
        }
        self.publish(first, rng.one_in(4));
        self.await_used(answered, &batch);
        self.tally.batches += 1;
        let twice = matches!(tail, Tail::Twice).then(|| self.was_done_twice());
        if let Tail::Jump(by) = tail {
            let ring = self.guest.ring();
            ring.raw_avail_idx(answered.wrapping_add(by));
            ring.kick();
        }
        self.judge(&batch, first, twice == Some(true));
        match tail {
            Tail::None => {
                let (used, subject) = (self.guest.ring().used_idx(), self.guest.subject);
                assert_eq!(used, answered, "{subject}: more is used than was available");
            }
            Tail::Twice if twice == Some(true) => {}
            Tail::Twice | Tail::Chain | Tail::Head(_) | Tail::Jump(_) => {
                self.renew_broken(answered, tail, &batch);
            }
        }
    }

    fn append(&mut self, head: u16) {
        let next = self.next;
        self.guest.ring().raw_avail(next, head);
        self.next = next.wrapping_add(1);
    }

    /// Writes table and arenas.
    fn put(&mut self, batch: &Batch) {
        let mut bytes = Vec::with_capacity(DESC * self.table.len());
        for desc in &self.table {
            bytes.extend_from_slice(&desc.to_bytes());
        }
        let desc = self.guest.ring().desc;
        self.guest.memory.write(desc, &bytes);
        for chain in &batch.chains {
            self.guest.memory.write(chain.made.arena.base, &chain.made.arena.bytes);
        }
    }

    /// Shows the device what is available from `first` on, and kicks if it wants that, or all the same.
    fn publish(&mut self, first: u16, kick: bool) {
        let next = self.next;
        let ring = self.guest.ring();
        ring.raw_avail_idx(next);
        let wanted = ring.wants_kick(next, first);
        if wanted || kick {
            ring.kick();
        }
    }

    /// Waits until used.idx has come to `index`, or past it, by a call if the device has a call fd.
    fn await_used(&mut self, index: u16, batch: &Batch) {
        let (subject, calls) = (self.guest.subject, self.guest.drive.calls);
        let deadline = Instant::now() + PATIENCE;
        let ring = self.guest.ring();
        let is_there = |ring: &Ring| ring.used_idx().wrapping_sub(index) < 0x8000;
        while !is_there(ring) {
            if !calls {
                std::thread::yield_now();
                let used = ring.used_idx();
                assert!(
                    Instant::now() < deadline,
                    "{subject}: no answer: used.idx {used}, not {index}; {batch}"
                );
                continue;
            }
            ring.ask_for_call_at(index.wrapping_sub(1));
            if !is_there(ring) {
                let called = ring.sleep(PATIENCE);
                let used = ring.used_idx();
                assert!(called, "{subject}: no call: used.idx {used}, not {index}; {batch}");
            }
        }
    }

    /// Judges what was answered: the used elements from `first` on. The last chain may have been done `twice`.
    fn judge(&mut self, batch: &Batch, first: u16, twice: bool) {
        let answered = &batch.chains[..batch.answered()];
        let mut left: Vec<_> = answered.iter().chain(answered.last().filter(|_| twice)).map(Some).collect();
        for i in 0..left.len() {
            let index = first.wrapping_add(u16::try_from(i).expect("a batch is short"));
            let (id, len) = self.guest.ring().used_element(index);
            let is_it = |chain: &Option<&Chain>| chain.is_some_and(|c| u32::from(c.made.head()) == id);
            let chain = left.iter_mut().find(|chain| is_it(chain)).and_then(Option::take);
            let chain =
                chain.unwrap_or_else(|| panic!("used element {index}, head {id}, is for no chain in flight"));
            let status = chain.judge(&self.guest.memory, len, &self.guest.lanes[0].model, &self.table);
            self.tally.sent(&chain.made.wrong);
            self.tally.answered(status);
        }
    }

    /// Whether a head that was made available twice was done twice: the first was given back when the second was seen.
    fn was_done_twice(&mut self) -> bool {
        let end = self.next;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ring = self.guest.ring();
            if ring.used_idx() == end {
                return true;
            }
            if ring.err.is_given() {
                return false;
            }
            assert!(Instant::now() < deadline, "a head that is there twice: neither done nor broken");
            std::thread::yield_now();
        }
    }

    /// The ring must be broken, by now or soon: nothing is answered any more. Starts it anew.
    fn renew_broken(&mut self, answered: u16, tail: Tail, batch: &Batch) {
        let subject = self.guest.subject;
        let ring = self.guest.ring();
        let signals = ring.err.wait(PATIENCE);
        assert_eq!(
            signals,
            1,
            "{subject}: signals of a ring that is to break: {tail:?}, {:?}",
            batch.breaker()
        );
        assert_eq!(ring.used_idx(), answered, "{subject}: a broken ring answers: {tail:?}");
        if let Some(chain) = batch.breaker() {
            self.tally.sent(&chain.made.wrong);
        }
        self.tally.broken += 1;
        self.renew();
    }

    /// Stops the ring and starts it afresh.
    fn renew(&mut self) {
        self.guest.stop_ring();
        let base = self.guest.drive.base;
        self.guest.lanes[0].abandon();
        self.guest.ring().reset(base);
        let started = self.guest.try_resume_ring(base);
        self.guest.need(started, "the start of a ring");
        self.next = base;
    }

    /// Has the device write data of the disk over rings, tables and other requests. What becomes of those is open; the
    /// device must live, and stop the ring when it is told to.
    pub fn harm_itself(&mut self, rng: &mut Rng) {
        let memory = (self.arenas, &self.noise[..]);
        let mut batch = Batch::make(&self.oracle, rng, &mut self.table, memory, 8);
        let ring = self.guest.ring();
        let targets = [ring.desc, ring.avail, ring.used, ring.avail + 2, ring.used + 2, self.arenas];
        batch.aim(rng, &mut self.table, &targets);
        self.put(&batch);
        let first = self.next;
        for head in batch.heads() {
            self.append(head);
        }
        self.publish(first, true);
        self.guest.ring().err.wait(HARM);
        self.tally.harmed += 1;
        self.renew();
        // Whatever was written to the disk was written by a guest that has its way.
        self.look_at_disk();
    }

    /// Takes what is on the disk for what the model should have.
    fn look_at_disk(&mut self) {
        let sectors = usize::try_from(self.oracle.facts.sectors).expect("a small disk");
        let mut data = Vec::with_capacity(sectors * SECTOR);
        self.plain_ring();
        for (sector, count) in sweep(sectors) {
            let read = Request::read(sector, count * SECTOR);
            data.extend(self.guest.run(&read, &Shape::default()).0.data);
        }
        self.renew();
        let spec = self.guest.disk.spec.clone();
        let block = usize::try_from(self.oracle.facts.block).expect("a block is short");
        self.guest.lanes[0].model = Model::new(data, spec.read_only, block, spec.serial.as_deref());
    }

    /// Compares every byte of the disk with the model, as it is read through the ring, and in the file if there is one.
    fn check_disk(&mut self) {
        self.plain_ring();
        let sectors = usize::try_from(self.oracle.facts.sectors).expect("a small disk");
        for (sector, count) in sweep(sectors) {
            self.guest.check(&Request::read(sector, count * SECTOR), &Shape::default());
        }
        if self.guest.subject.keeps_content() {
            self.guest.check(&Request::flush(), &Shape::default());
            let file = self.guest.disk.bytes();
            assert!(self.guest.lanes[0].model.may_read_as(0, &file), "the file is not what the model has");
        }
    }

    /// Starts the ring afresh for requests of the harness's own kind.
    fn plain_ring(&mut self) {
        self.renew();
        self.guest.ring().kick();
    }
}

/// The disk in pieces.
fn sweep(sectors: usize) -> impl Iterator<Item = (u64, usize)> {
    const STEP: usize = 512;
    (0..sectors).step_by(STEP).map(move |first| (first as u64, STEP.min(sectors - first)))
}

/// What the device tells of itself.
fn facts(guest: &mut Guest) -> Facts {
    let config = guest.session().config(0, 60);
    let config = guest.need(config, "GET_CONFIG");
    let number = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().expect("four bytes"));
    // Capacity at 0, seg_max at 12, blk_size at 20, max_discard_sectors at 36, max_discard_seg at 40 (5.2.4).
    Facts {
        sectors: u64::from_le_bytes(config[..8].try_into().expect("eight bytes")),
        block: number(20).into(),
        read_only: guest.disk.spec.read_only,
        indirect: guest.features & INDIRECT_DESC != 0,
        table_max: number(12) + 2,
        segments_max: number(40).into(),
        segment_sectors_max: number(36),
    }
}
