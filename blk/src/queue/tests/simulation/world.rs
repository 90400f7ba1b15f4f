//! A disk, the queues on it, and the guests' memory: what happens next is thrown with dice.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use sluice_mem::kzalloc::{KBox, kzalloc};

use crate::bio::Op;
use crate::doubles::dice::Dice;
use crate::doubles::guest_ram::GuestRam;

use super::super::flight::Flight;
use super::super::scripted::{Disk, Scripted};
use super::super::*;
use super::ask::{Ask, Asked};
use super::model::Model;
use super::seen::Seen;
use super::setup::{least, misbehave, on_disk, random_config, random_limits};

/// Sectors of the disk.
pub(super) const SECTORS: usize = 256;
/// The most queues, and the most chains of each.
pub(super) const QUEUES_MAX: usize = 4;
pub(super) const DEPTH_MAX: usize = 4;
/// Each chain has a part of the guest's memory of its own.
pub(super) const WINDOW_BYTES: u64 = 96 << 10;
/// And of the memory that cannot be pinned.
pub(super) const SECRET_WINDOW_BYTES: u64 = 16 << 10;
/// How long a seed goes on, in steps, before it ends with waiting for all that was begun.
const STEPS: usize = 150;
/// How much longer that may take: it is a hundred times as long as it ever does.
const STEPS_MAX: usize = 100_000;

/// Memory of guests, made once and used by one seed after the other.
pub(super) struct Stage {
    ram: GuestRam,
    secret: Option<GuestRam>,
}

impl Stage {
    pub(super) fn new() -> Self {
        let windows = QUEUES_MAX * DEPTH_MAX;
        let pages = |window: u64| usize::try_from(window).expect("small") / PAGE_SIZE * windows;
        Self {
            ram: GuestRam::new(1, pages(WINDOW_BYTES)),
            secret: GuestRam::secret(pages(SECRET_WINDOW_BYTES)),
        }
    }

    fn ram(&self, secret: bool) -> &GuestRam {
        if secret { self.secret.as_ref().expect("asked for where it is") } else { &self.ram }
    }
}

/// How often the thread of a queue was woken.
#[derive(Debug, Default)]
struct Woken(AtomicU64);

impl Wake for Woken {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A chain under way.
struct Voyage {
    flight: Flight,
    asked: Asked,
    /// Its memory cannot be pinned.
    secret: bool,
    /// The chain's number among all.
    number: u64,
    began: u64,
    /// Somebody else writes to the same blocks.
    contested: bool,
}

/// A queue, and what is around it.
struct Side {
    queue: RequestQueue,
    woken: Arc<Woken>,
    /// How often it was woken when it was dispatched last.
    seen: u64,
    voyages: Vec<Option<Voyage>>,
    /// Pages that others pretend to use; of the reserve too, where that is so.
    hogs: Vec<KBox>,
    hogs_reserve: bool,
    /// They have given them back.
    told: bool,
}

impl Side {
    /// Whether the queue or others say that it should be dispatched.
    fn is_due(&self) -> bool {
        self.queue.has_parked() || self.told || self.woken.0.load(Ordering::Relaxed) > self.seen
    }

    fn release(&mut self) {
        self.hogs.clear();
        self.told = true;
    }
}

pub(super) struct World<'a> {
    dice: Dice,
    stage: &'a Stage,
    limits: QueueLimits,
    config: QueueConfig,
    /// Each queue's, within one that is theirs together: what each needs at least is set aside for it.
    budgets: Vec<Arc<Budget>>,
    overlaps: Arc<Overlaps>,
    disk: Rc<RefCell<Disk>>,
    sides: Vec<Side>,
    model: Model,
    now: u64,
    /// How many chains were begun.
    chains: u64,
    /// What the simulation has come across.
    pub(super) seen: Seen,
}

impl<'a> World<'a> {
    pub(super) fn new(mut dice: Dice, stage: &'a Stage) -> Self {
        let limits = random_limits(&mut dice, stage.secret.is_some());
        let disk = Disk::of(on_disk(1), limits, Dice::new(dice.roll()));
        misbehave(&mut disk.borrow_mut(), &mut dice);
        let queues = dice.size(1..QUEUES_MAX + 1);
        let config = random_config(&mut dice, limits, queues);
        let QueueMemory { budget, reserve, most } = &config.memory;
        let set_aside =
            |_| Budget::with_min(budget, "queue's", least(*reserve), *most).expect("room for as many");
        let mut world = Self {
            stage,
            limits,
            budgets: (0..queues).map(set_aside).collect(),
            config,
            overlaps: Arc::default(),
            disk,
            sides: Vec::new(),
            model: Model::new(SECTORS, 1),
            now: 0,
            chains: 1,
            seen: Seen::default(),
            dice,
        };
        world.sides = (0..queues).map(|which| world.side(which)).collect();
        world
    }

    fn side(&self, which: usize) -> Side {
        let woken = Arc::<Woken>::default();
        let overlaps = Some((Arc::clone(&self.overlaps), Arc::clone(&woken) as Arc<dyn Wake>));
        let engine = Scripted { disk: Rc::clone(&self.disk), queue: which };
        let memory = QueueMemory { budget: Arc::clone(&self.budgets[which]), ..self.config.memory };
        let config = QueueConfig { overlaps, memory, ..self.config.clone() };
        let queue = RequestQueue::new(config, Box::new(engine)).expect("memory is set aside for it");
        let voyages = (0..self.config.depth).map(|_| None).collect();
        Side { queue, woken, seen: 0, voyages, hogs: Vec::new(), hogs_reserve: false, told: false }
    }

    /// Lets things happen, and then waits for all that was begun. Panics when anything is other than it should be.
    pub(super) fn run(mut self) -> Seen {
        for _ in 0..STEPS {
            self.step();
        }
        self.finish();
        let disk = self.disk.borrow().read(0, SECTORS * 512);
        self.now += 1;
        self.model.check(&(0..SECTORS as u64 * 512), &disk, self.now, None);
        for which in 0..self.sides.len() {
            self.sides[which].hogs.clear();
            check_nothing_is_held(&self.sides[which].queue);
            self.count(which);
        }
        self.sides.clear();
        assert!(self.budgets.iter().all(|budget| budget.used() == 0), "all memory is given back");
        self.seen
    }

    fn step(&mut self) {
        self.now += 1;
        self.seen.steps += 1;
        let which = self.dice.size(0..self.sides.len());
        match self.dice.within(0..100) {
            0..35 => self.submit(which),
            35..75 => self.turn(which),
            75..92 => self.disk.borrow_mut().go_on(),
            92..99 => self.hog(which),
            _ => self.replace(which),
        }
    }

    /// A worker's turn.
    fn turn(&mut self, which: usize) {
        let side = &mut self.sides[which];
        if side.is_due() {
            (side.seen, side.told) = (side.woken.0.load(Ordering::Relaxed), false);
            side.queue.dispatch();
        }
        let mut done = Vec::new();
        side.queue.reap(|completed| done.push(completed));
        for completed in done {
            self.check(which, completed);
        }
    }

    /// Whether a turn of a queue will do something.
    fn is_live(&self, which: usize) -> bool {
        let side = &self.sides[which];
        side.is_due() || self.disk.borrow().in_flight(which) > 0 || !side.queue.done.is_empty()
    }

    /// Waits for all that was begun, with as little memory as others leave that may not use the reserve.
    fn finish(&mut self) {
        self.sides.iter_mut().filter(|side| side.hogs_reserve).for_each(Side::release);
        for _ in 0..STEPS_MAX {
            let busy: Vec<usize> =
                (0..self.sides.len()).filter(|i| !self.sides[*i].queue.is_idle()).collect();
            if busy.is_empty() {
                return;
            }
            let live = busy.iter().any(|which| self.is_live(*which));
            assert!(live, "nothing will ever happen to {:?}", self.sides[busy[0]].queue);
            let which = self.dice.pick(&busy);
            self.turn(which);
            self.now += 1;
            self.seen.steps += 1;
        }
        panic!("no progress: {:?}", self.sides.iter().map(|side| &side.queue).collect::<Vec<_>>());
    }

    /// Others use pages of a queue, or give some back; of the reserve too, but not for ever.
    fn hog(&mut self, which: usize) {
        let (reserve, count) = (self.dice.chance(30), self.dice.pick(&[3, 10, 30, 300]));
        let side = &mut self.sides[which];
        if !side.hogs.is_empty() {
            return side.release();
        }
        let arena = side.queue.arena().clone();
        let gfp = if reserve { Gfp::ATOMIC } else { Gfp::NOWAIT };
        side.hogs = (0..count).map_while(|_| kzalloc(&arena, 64, gfp).ok()).collect();
        side.hogs_reserve = reserve;
    }

    /// Drops a queue with all that is under way, as when a guest goes away, and makes another one in its place.
    fn replace(&mut self, which: usize) {
        if self.dice.chance(70) {
            return;
        }
        self.count(which);
        let mut old = self.sides.remove(which);
        self.seen.dropped += u64::from(!old.queue.is_idle());
        let voyages = std::mem::take(&mut old.voyages);
        drop(old);
        for voyage in voyages.into_iter().flatten() {
            voyage
                .flight
                .ranges
                .iter()
                .for_each(|range| self.model.end(range, voyage.number, false, self.now));
        }
        let new = self.side(which);
        self.sides.insert(which, new);
    }

    fn count(&mut self, which: usize) {
        let (stats, seen) = (self.sides[which].queue.stats(), &mut self.seen);
        seen.chains += stats.chains.value();
        seen.failed += stats.failed.value();
        seen.splits += stats.splits.value();
        seen.parked += stats.parked.value();
        for (sum, reason) in seen.bounced.iter_mut().zip(crate::split::BounceReason::ALL) {
            *sum += stats.bounced(reason).value();
        }
        seen.woken += self.sides[which].woken.0.load(Ordering::Relaxed);
    }

    /// Submits a random chain if there is room for one.
    fn submit(&mut self, which: usize) {
        let Some(slot) = self.sides[which].voyages.iter().position(Option::is_none) else { return };
        if !self.sides[which].queue.can_accept() {
            let side = &self.sides[which];
            let reason = !side.hogs.is_empty() || !side.queue.is_idle();
            return assert!(reason, "an idle queue accepts nothing");
        }
        let ask = Ask::random(&mut self.dice, &self.limits, which * DEPTH_MAX + slot);
        let number = self.chains;
        self.chains += 1;
        let content = ask.asked.content(number);
        let ram = self.stage.ram(ask.secret);
        let memory = ask.fill_memory(&mut self.dice, ram, content);
        let queue = &mut self.sides[which].queue;
        let chain = *queue.free_chains.last().expect("not full");
        let changes = self.disk.borrow_mut().begin(which, chain);
        let bios = ask.build(&mut self.dice, queue, ram);
        let cookie = u32::try_from(slot).expect("few");
        if !ask.start(&mut self.dice, queue, bios, cookie) {
            self.seen.refused += 1;
            return;
        }
        let Ask { asked, ranges, pieces, secret } = ask;
        let flight = Flight { op: asked.op(), ranges, memory, pieces, chain, changes };
        let contested = flight.writes() && self.contest(&flight.ranges);
        if flight.writes() {
            flight.ranges.iter().for_each(|range| self.model.begin(range, content, number, self.now));
        }
        let voyage = Voyage { flight, asked, secret, number, began: self.now, contested };
        self.sides[which].voyages[slot] = Some(voyage);
    }

    /// Whether somebody else writes to the blocks of `ranges`, who then shares them too.
    fn contest(&mut self, ranges: &[Range<u64>]) -> bool {
        let block = self.limits.unit();
        let around =
            |range: &Range<u64>| range.start - range.start % block..range.end.next_multiple_of(block);
        let overlap = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
        let mut contested = false;
        for voyage in self.sides.iter_mut().flat_map(|side| &mut side.voyages).flatten() {
            let theirs = &voyage.flight.ranges;
            let shared = ranges.iter().any(|ours| theirs.iter().any(|r| overlap(&around(r), &around(ours))));
            if voyage.flight.writes() && shared {
                voyage.contested = true;
                contested = true;
            }
        }
        contested
    }

    fn check(&mut self, which: usize, completed: Completed) {
        let slot = usize::try_from(completed.cookie).expect("a cookie of ours");
        let voyage = self.sides[which].voyages[slot].take().expect("a chain completes once");
        let failed = self.disk.borrow().failed.contains(&(which, voyage.flight.chain));
        let erases = self.disk.borrow().knows.secure_erase;
        let status = voyage.asked.status(&self.config, &voyage.flight.ranges, failed, erases);
        assert_eq!(completed.status, status, "{:?}", voyage.asked);
        self.check_memory(&voyage, completed);
        if voyage.flight.writes() {
            let certain = status == Status::Ok && !matches!(voyage.flight.op, Op::Discard { .. });
            voyage
                .flight
                .ranges
                .iter()
                .for_each(|range| self.model.end(range, voyage.number, certain, self.now));
        }
        if status == Status::Ok && !self.config.ignore_flush {
            self.check_durable(&voyage);
        }
    }

    fn check_memory(&self, voyage: &Voyage, completed: Completed) {
        let flight = &voyage.flight;
        let (addr, before) = &flight.memory;
        let mut memory = vec![0; before.len()];
        self.stage.ram(voyage.secret).pin().read(*addr, &mut memory).expect("mapped");
        if flight.op != Op::Read {
            let answer = voyage.asked.answer(&self.config).unwrap_or_default();
            let room: usize = flight.pieces.iter().map(|piece| piece.1).sum();
            let answer = &answer[..answer.len().min(room)];
            flight.check_memory(&memory, answer, false);
            return assert_eq!(completed.bytes as usize, answer.len(), "{:?}", voyage.asked);
        }
        let data = flight.gather(&memory);
        assert!(flight.scatter(&data) == memory, "memory around the pieces was changed");
        let old = flight.gather(before);
        let or = (completed.status != Status::Ok).then_some(&old[..]);
        self.model.check(&flight.ranges[0], &data, voyage.began, or);
        assert!(or.is_some() || completed.bytes as usize == data.len());
    }

    fn check_durable(&self, voyage: &Voyage) {
        let (disk, flight) = (self.disk.borrow(), &voyage.flight);
        // A discard need not be done.
        let uncontested = flight.fua() && !voyage.contested && !matches!(flight.op, Op::Discard { .. });
        for range in flight.ranges.iter().filter(|_| uncontested) {
            let volatile = disk.is_volatile(range.clone(), flight.changes + 1..u64::MAX);
            assert!(!volatile, "{:?} at {range:?} is not durable", voyage.asked);
        }
        if flight.op == Op::Flush {
            let volatile = disk.is_volatile(0..SECTORS as u64 * 512, 0..flight.changes + 1);
            assert!(!volatile, "a flush left something that was written before it");
        }
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{:?}\n{:?}\nafter {:?}", self.limits, self.config.memory, self.seen);
        }
    }
}
