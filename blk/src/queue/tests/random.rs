//! Random chains against a naive model: what each chain says, moves and makes durable, and that all comes back.

use std::cell::RefCell;
use std::ops::Range;

use crate::bio::Op;
use crate::disk::EngineKind;
use crate::doubles::dice::{Dice, for_seeds};
use crate::doubles::guest_ram::GuestRam;
use crate::doubles::patience::in_time;
use crate::request::Command;
use crate::sector::{DiskRange, Sector};

use super::below::Below;
use super::flight::{Flight, moves_memory, pieces, place};
use super::*;

/// The disk's size.
const SECTORS: usize = 8192;
/// Each chain has a part of the guest's memory of its own.
const WINDOW_BYTES: u64 = 4 << 20;
/// Regions of the guest's memory end within windows.
const REGION_PAGES: usize = 770;
/// Chains are called by numbers from here on.
const COOKIES: u32 = 7000;

struct Driver {
    dice: Dice,
    queue: RequestQueue,
    below: Below,
    ram: GuestRam,
    model: Vec<u8>,
    flights: Vec<Option<Flight>>,
    faulty: bool,
}

#[test]
fn chains_do_what_the_model_says_whatever_the_engine_does() {
    let seen = RefCell::new([0; 6]);
    for_seeds(60, |mut dice| {
        let (model, faulty) = (dice.bytes(SECTORS * 512), dice.chance(50));
        let below = Below::scripted(&mut dice, &model, faulty);
        let driver = Driver::new(dice, model, below, faulty).run();
        let stats = driver.queue.stats();
        let bounced = [&stats.bounced_misaligned, &stats.bounced_fragmented, &stats.bounced_zeroes];
        let counters = bounced.into_iter().chain([&stats.splits, &stats.parked, &stats.failed]);
        seen.borrow_mut().iter_mut().zip(counters).for_each(|(sum, counter)| *sum += counter.value());
    });
    let rare = seen.borrow().contains(&0);
    assert!(std::env::var("SLUICE_SEED").is_ok() || !rare, "the test does not reach everything: {seen:?}");
}

#[test]
fn chains_do_what_the_model_says_on_real_engines() {
    in_time(|| {
        for_seeds(5, |mut dice| {
            for engine in EngineKind::ALL {
                let model = dice.bytes(SECTORS * 512);
                let below = Below::file(&mut dice, &model, engine);
                Driver::new(Dice::new(dice.roll()), model, below, false).run();
            }
            let model = dice.bytes(SECTORS * 512);
            let below = Below::memory(&mut dice, &model);
            Driver::new(Dice::new(dice.roll()), model, below, false).run();
        });
    });
}

impl Driver {
    fn new(
        mut dice: Dice,
        model: Vec<u8>,
        (below, limits, engine): (Below, QueueLimits, Box<dyn Engine>),
        faulty: bool,
    ) -> Self {
        let depth = dice.pick(&[1, 2, 5, 16]);
        let device_id = b"a disk of the tests".to_vec();
        let ignore_flush = dice.chance(10);
        let config = QueueConfig { device_id, ignore_flush, ..QueueConfig::new(depth, limits) };
        let queue = RequestQueue::new(config, engine).expect("address space");
        let windows = usize::from(depth) * place(&(0..WINDOW_BYTES)).len();
        let ram = GuestRam::new(windows.div_ceil(REGION_PAGES * PAGE_SIZE), REGION_PAGES);
        let flights = (0..depth).map(|_| None).collect();
        Self { dice, queue, below, ram, model, flights, faulty }
    }

    /// Submits chains, and waits for them all.
    fn run(mut self) -> Self {
        for _ in 0..80 {
            self.submit();
            self.turn(false);
        }
        self.finish();
        self
    }

    /// Submits a random chain if there is room for one.
    fn submit(&mut self) {
        let Some(slot) = self.flights.iter().position(Option::is_none) else { return };
        if !self.queue.can_accept() {
            assert!(!self.queue.is_idle(), "an idle queue accepts nothing");
            return;
        }
        let op = self.random_op();
        let Some(ranges) = self.random_ranges(op) else { return };
        let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        let bytes = if op == Op::DeviceId { self.dice.within(1..40) } else { bytes };
        let pieces = if moves_memory(op) { self.random_pieces(slot, bytes) } else { Vec::new() };
        let memory = self.fill_memory(&pieces);
        let chain = *self.queue.free_chains.last().expect("not full");
        let changes = self.below.begin(chain);
        let bios = self.build(op, &ranges, &pieces);
        let cookie = u32::try_from(slot).expect("few slots") + COOKIES;
        if op == Op::DeviceId {
            let request = self.queue.make_request(bios, Gfp::NOWAIT).expect("one direction");
            self.queue.execute(request.with(PassthroughCommand::DeviceId), cookie).expect("not full");
        } else {
            self.queue.submit(bios, cookie).expect("not full");
        }
        self.flights[slot] = Some(Flight { op, ranges, memory, pieces, chain, changes });
    }

    fn random_op(&mut self) -> Op {
        let (fua, unmap) = (self.dice.chance(50), self.dice.chance(50));
        match self.dice.within(0..14) {
            0..5 => Op::Read,
            5..10 => Op::Write { fua },
            10 => Op::Flush,
            11 => Op::Discard { fua },
            12 => Op::WriteZeroes { unmap, fua },
            _ => Op::DeviceId,
        }
    }

    /// What a chain concerns. None when another one in flight is in the way.
    fn random_ranges(&mut self, op: Op) -> Option<Vec<Range<u64>>> {
        let count = match op {
            Op::Flush | Op::DeviceId => return Some(Vec::new()),
            Op::Discard { .. } | Op::WriteZeroes { .. } => self.dice.within(1..5),
            _ => 1,
        };
        let block = u64::from(self.queue.limits().logical_block_size);
        let blocks = SECTORS as u64 * 512 / block;
        let most = self.dice.pick(&[1, 3, 9, 60, 600]).min(blocks / count);
        let ranges: Vec<_> = (0..count)
            .map(|i| {
                let share = blocks / count;
                let len = self.dice.within(1..most + 1);
                let start = i * share + self.dice.within(0..share - len + 1);
                start * block..(start + len) * block
            })
            .collect();
        let writes = !matches!(op, Op::Read);
        let overlap = |a: &Range<u64>, b: &Range<u64>| a.start < b.end && b.start < a.end;
        let in_the_way =
            self.flights.iter().flatten().filter(|flight| writes || flight.writes()).any(|flight| {
                flight.ranges.iter().any(|theirs| ranges.iter().any(|ours| overlap(ours, theirs)))
            });
        (!in_the_way).then_some(ranges)
    }

    /// Memory of so many bytes, not at the edges of its window: aligned or not, in pieces that are large or tiny.
    fn random_pieces(&mut self, slot: usize, bytes: u64) -> Vec<(u64, usize)> {
        let dice = &mut self.dice;
        let few = bytes <= 24 << 10;
        let (unit, most) = match dice.within(0..6) {
            0 => (4096, 1000),
            1 => (512, 32),
            2 => (512, 4),
            3 if few => (1, 20),
            4 => (1, 3_000_000),
            _ => (1, 20_000),
        };
        let window = slot as u64 * WINDOW_BYTES;
        let at = window + 4096 + dice.within(0..9) * unit;
        pieces(dice, bytes, (unit, most), at..window + WINDOW_BYTES - 4096)
    }

    /// Fills the memory in and around pieces.
    fn fill_memory(&mut self, pieces: &[(u64, usize)]) -> (u64, Vec<u8>) {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else { return (0, Vec::new()) };
        let (start, end) = (first.0 - 100, last.0 + last.1 as u64 + 100);
        let memory = self.dice.bytes(usize::try_from(end - start).expect("a window is small"));
        self.ram.write(start, &memory);
        (start, memory)
    }

    /// Bios for an operation, as many as that takes and sometimes more.
    fn build(&mut self, op: Op, ranges: &[Range<u64>], pieces: &[(u64, usize)]) -> BioChain {
        let whole = |range: &Range<u64>| {
            let len = range.end - range.start;
            DiskRange::new(Sector(range.start / 512), len, Sector(SECTORS as u64), 512).expect("on the disk")
        };
        let mut ranges: Vec<DiskRange> = ranges.iter().map(whole).collect();
        if ranges.is_empty() {
            ranges.push(DiskRange::none());
        }
        let mut chain = BioChain::new();
        if !moves_memory(op) {
            for range in ranges {
                chain.push(self.queue.bios().try_take(op, range).expect("room was seen"));
            }
            return chain;
        }
        let mut pieces = pieces.iter().copied();
        let (mut next, mut early) = (pieces.next(), 4);
        while next.is_some() {
            let bio = chain.push(self.queue.bios().try_take(op, DiskRange::none()).expect("room was seen"));
            while let Some((addr, len)) = next {
                let pushed = bio.sg.push_guest(self.ram.pin(), addr, len, self.queue.arena());
                let pushed = pushed.expect("room was seen");
                if pushed < len {
                    next = Some((addr + pushed as u64, len - pushed));
                    break;
                }
                next = pieces.next();
                if early > 0 && self.dice.chance(2) {
                    early -= 1;
                    break;
                }
            }
            let bytes = bio.sg.bytes() as u64;
            bio.range = if op == Op::DeviceId { DiskRange::none() } else { ranges[0].take_front(bytes) };
        }
        assert!(chain.len() <= BioSet::CHAIN_MAX, "the test makes legal chains");
        chain
    }

    /// Lets the queue go on by as much as it says it can, and checks what is done. With `wait` there is nothing else
    /// to do until something comes back.
    fn turn(&mut self, wait: bool) {
        if self.queue.has_parked() {
            self.queue.dispatch();
        }
        let in_flight = self.queue.tags.in_flight() > self.queue.again.len();
        self.below.pass(wait && in_flight);
        let mut done = Vec::new();
        self.queue.reap(|completed| done.push(completed));
        done.into_iter().for_each(|completed| self.check(completed));
        let moving = self.queue.tags.in_flight() > self.queue.again.len() || self.queue.has_parked();
        assert!(moving || self.queue.is_idle(), "nothing will ever happen to {:?}", self.queue);
    }

    /// Waits for everything and checks that all is given back.
    fn finish(&mut self) {
        for turns in 0.. {
            if self.queue.is_idle() {
                break;
            }
            self.turn(true);
            assert!(turns < 1_000_000, "{:?} makes no progress", self.queue);
        }
        assert!(self.flights.iter().all(Option::is_none), "a chain did not complete");
        check_nothing_is_held(&self.queue);
        assert!(self.below.read(0, self.model.len()) == self.model, "the disk is not as the model");
        let syncs = |command: &Command| matches!(command, Command::Sync | Command::Write { dsync: true });
        let synced = self.below.commands().iter().any(syncs);
        assert!(!self.queue.config.ignore_flush || !synced, "flushes are ignored");
    }

    fn check(&mut self, completed: Completed) {
        let slot = usize::try_from(completed.cookie - COOKIES).expect("a cookie of ours");
        let flight = self.flights[slot].take().expect("a chain completes once");
        let failed = flight.op != Op::DeviceId && self.below.has_failed(flight.chain);
        assert!(self.faulty || !failed);
        assert_eq!(completed.status, if failed { Status::IoErr } else { Status::Ok }, "{:?}", flight.op);
        let model = |range: &Range<u64>| self.model[place(range)].to_vec();
        let memory = self.ram.read(flight.memory.0, flight.memory.1.len());
        match flight.op {
            Op::Read => {
                let data = model(&flight.ranges[0]);
                flight.check_memory(&memory, &data, failed);
                assert!(failed || completed.bytes as usize == data.len(), "{completed:?}");
            }
            Op::DeviceId => {
                let id = &self.queue.config.device_id;
                let room: usize = flight.pieces.iter().map(|piece| piece.1).sum();
                let id = &id[..id.len().min(room)];
                flight.check_memory(&memory, id, false);
                assert_eq!(completed.bytes as usize, id.len());
            }
            _ => {
                assert!(memory == flight.memory.1, "{:?} wrote to memory", flight.op);
                assert_eq!(completed.bytes, 0);
            }
        }
        self.check_disk(&flight, failed);
        if !failed && !self.queue.config.ignore_flush {
            self.check_durable(&flight);
        }
    }

    /// Checks what the disk has now where the chain was to change it, and lets the model have the same.
    fn check_disk(&mut self, flight: &Flight, failed: bool) {
        for range in flight.ranges.iter().filter(|_| flight.writes()) {
            let new = match flight.op {
                Op::Write { .. } => flight.gather(&flight.memory.1),
                Op::Discard { .. } => vec![self.below.discarded(); place(range).len()],
                _ => vec![0; place(range).len()],
            };
            let actual = self.below.read(range.start, new.len());
            let advisory = matches!(flight.op, Op::Discard { .. });
            if failed || advisory {
                let old = &self.model[place(range)];
                let either =
                    actual.iter().zip(old.iter().zip(&new)).all(|(is, (old, new))| is == old || is == new);
                assert!(either, "{:?} left something else at {range:?}", flight.op);
            } else {
                assert!(actual == new, "{:?} at {range:?}", flight.op);
            }
            self.model[place(range)].copy_from_slice(&actual);
        }
    }

    fn check_durable(&self, flight: &Flight) {
        // Where blocks are written for parts of them, what is durable is written again for others.
        let alone = flight.fua() && !self.queue.limits().has_partial_blocks();
        for range in flight.ranges.iter().filter(|_| alone) {
            let volatile = self.below.is_volatile(range.clone(), flight.changes + 1..u64::MAX);
            assert!(!volatile, "{:?} at {range:?} is not durable", flight.op);
        }
        if flight.op == Op::Flush {
            let volatile = self.below.is_volatile(0..SECTORS as u64 * 512, 0..flight.changes + 1);
            assert!(!volatile, "a flush left something that was written before it");
        }
    }
}
