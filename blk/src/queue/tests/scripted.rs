//! An engine that does what a test tells it: refuses, delays, reorders, cuts short, fails; and checks what it gets.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::rc::Rc;

use crate::doubles::dice::Dice;
use crate::doubles::guest_ram::GuestRam;

use super::*;

/// What is where something was discarded.
pub(super) const DISCARDED: u8 = 0xdd;

/// How often things go wrong, in a hundred requests.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    /// The engine is full though it is not.
    pub(super) full: u64,
    /// Less is moved than was asked for.
    pub(super) short: u64,
    /// Interrupted, or to be tried again.
    pub(super) again: u64,
    /// An I/O error.
    pub(super) io_error: u64,
    /// The file has ended: nothing is moved.
    pub(super) end: u64,
}

/// Which commands the disk knows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Knows {
    pub(super) discard: bool,
    pub(super) zero: bool,
    pub(super) zero_unmap: bool,
}

/// A disk in memory, and the engine's requests.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) dice: Dice,
    pub(super) faults: Faults,
    pub(super) knows: Knows,
    /// The most requests that it takes at a time.
    pub(super) room: usize,
    limits: QueueLimits,
    bytes: u64,
    ram: GuestRam,
    in_flight: Vec<Request>,
    /// What it was given, in order.
    pub(super) log: Vec<(Command, u64, u64)>,
    /// Chains of which a request has failed.
    pub(super) failed: HashSet<u32>,
    /// Requests that were cut short, by tag: what is left of them need not be whole blocks.
    cut: HashSet<usize>,
    /// Requests that come again, by tag.
    again: HashSet<usize>,
    /// Commands that were said not to be known.
    refused: HashSet<&'static str>,
    /// Counts changes; when each block of 512 bytes was changed for the last time without being durable.
    pub(super) changes: u64,
    volatile: Vec<Option<u64>>,
    /// How many changes there were when a sync was submitted, by tag.
    syncs: HashMap<usize, u64>,
}

/// A handle to a disk that is an engine.
pub(super) struct Scripted(pub(super) Rc<RefCell<Disk>>);

impl Engine for Scripted {
    fn submit(&mut self, request: Request) -> Result<(), Box<Request>> {
        let disk = &mut *self.0.borrow_mut();
        let pretend = !disk.in_flight.is_empty() && disk.dice.chance(disk.faults.full);
        if pretend || disk.in_flight.len() >= disk.room {
            disk.again.insert(request.tag().index());
            return Err(Box::new(request));
        }
        disk.check(&request);
        disk.again.remove(&request.tag().index());
        disk.syncs.insert(request.tag().index(), disk.changes);
        disk.log.push((request.command(), request.offset(), request.len()));
        disk.in_flight.push(request);
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<(Request, IoResult)>) {
        let disk = &mut *self.0.borrow_mut();
        let count = disk.dice.size(0..disk.in_flight.len() + 1);
        for _ in 0..count {
            let which = disk.dice.size(0..disk.in_flight.len());
            let request = disk.in_flight.swap_remove(which);
            let result = disk.execute(&request);
            done.push((request, result));
        }
    }
}

impl Disk {
    /// A disk of `sectors` sectors, which takes what `limits` say, knows all commands and makes no mistakes.
    pub(super) fn new(sectors: usize, limits: QueueLimits, dice: Dice) -> Rc<RefCell<Self>> {
        let bytes = sectors * 512;
        Rc::new(RefCell::new(Self {
            dice,
            faults: Faults::default(),
            knows: Knows { discard: true, zero: true, zero_unmap: true },
            room: usize::MAX,
            limits,
            bytes: bytes as u64,
            ram: GuestRam::new(1, bytes.div_ceil(PAGE_SIZE)),
            in_flight: Vec::new(),
            log: Vec::new(),
            failed: HashSet::new(),
            cut: HashSet::new(),
            again: HashSet::new(),
            refused: HashSet::new(),
            changes: 0,
            volatile: vec![None; sectors],
            syncs: HashMap::new(),
        }))
    }

    /// What is on the disk.
    pub(super) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        self.ram.read(offset, len)
    }

    /// Puts something on the disk.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) {
        self.ram.write(offset, bytes);
    }

    /// How many requests it has.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether one of `changes`, by their count, to a range would not survive a power failure.
    pub(super) fn is_volatile(&self, range: Range<u64>, changes: Range<u64>) -> bool {
        let blocks = blocks(range.start, range.end - range.start);
        self.volatile[blocks].iter().flatten().any(|change| changes.contains(change))
    }

    /// Whether this is a request that such a disk may be given.
    fn check(&self, request: &Request) {
        let (offset, len, sg) = (request.offset(), request.len(), request.sg());
        assert!(offset + len <= self.bytes, "{request:?} is past the end");
        assert!(self.in_flight.iter().all(|other| other.tag() != request.tag()), "two of one tag");
        let tag = request.tag().index();
        let asked_before = self.refused.contains(name(request.command())) && !self.again.contains(&tag);
        assert!(!asked_before, "{:?} is not known", request.command());
        let unit = if self.cut.contains(&tag) { 1 } else { u64::from(self.limits.logical_block_size) };
        assert!(offset.is_multiple_of(unit) && len.is_multiple_of(unit), "{request:?} is not whole blocks");
        if matches!(request.command(), Command::Read | Command::Write { .. }) {
            assert_eq!(sg.bytes() as u64, len, "{request:?}");
            assert!(len > 0 && len <= u64::from(self.limits.max_bytes), "{request:?}");
            // As direct I/O has it: addresses are aligned, and lengths are whole blocks at least.
            let start = self.limits.dma_alignment as usize;
            let length = start.min(self.limits.logical_block_size as usize);
            for piece in sg.pieces() {
                let starts_well = piece.as_ptr().addr().is_multiple_of(start);
                assert!(starts_well && piece.len() > 0, "{piece:?} of {request:?}");
                assert!(piece.len().is_multiple_of(length), "{piece:?} of {request:?}");
            }
        }
    }

    fn execute(&mut self, request: &Request) -> IoResult {
        let result = self.answer(request);
        if result.is_err_and(|error| error == Errno::IO) || result == Ok(0) && moves_data(request) {
            self.failed.insert(request.bio().chain);
        }
        let tag = request.tag().index();
        match result {
            Ok(count) if moves_data(request) && u64::from(count) < request.len() => {
                self.cut.insert(tag);
            }
            Err(Errno::INTR | Errno::AGAIN) => {
                self.again.insert(tag);
            }
            _ => {
                self.cut.remove(&tag);
            }
        }
        result
    }

    fn answer(&mut self, request: &Request) -> IoResult {
        let faults = self.faults;
        if self.dice.chance(faults.again) {
            return Err(self.dice.pick(&[Errno::INTR, Errno::AGAIN]));
        }
        if !self.does(request.command()) {
            self.refused.insert(name(request.command()));
            return Err(self.dice.pick(&[Errno::OPNOTSUPP, Errno::INVAL, Errno::NOTTY]));
        }
        if self.dice.chance(faults.io_error) {
            return Err(Errno::IO);
        }
        match request.command() {
            Command::Sync => {
                let submitted = self.syncs[&request.tag().index()];
                self.volatile.iter_mut().for_each(|change| *change = change.filter(|at| *at > submitted));
                Ok(0)
            }
            Command::Discard => {
                self.change(request.offset(), request.len(), Some(DISCARDED), false);
                Ok(0)
            }
            Command::Zero { .. } => {
                self.change(request.offset(), request.len(), Some(0), false);
                Ok(0)
            }
            Command::Read | Command::Write { .. } => Ok(self.transfer(request)),
        }
    }

    /// Moves all, some or none of the data. Returns how much that was.
    fn transfer(&mut self, request: &Request) -> u32 {
        let len = usize::try_from(request.len()).expect("a small request");
        let count = if self.dice.chance(self.faults.end) {
            0
        } else if self.dice.chance(self.faults.short) {
            // What direct I/O leaves undone is something for direct I/O again.
            let limits = &self.limits;
            let block = limits.dma_alignment.max(limits.logical_block_size) as usize;
            let unit = if limits.dma_alignment == 1 { 1 } else { block };
            self.dice.size(1..len + 1).next_multiple_of(unit).min(len)
        } else {
            len
        };
        if count > 0 {
            let place = self.ram.list([(request.offset(), count)]);
            if request.command() == Command::Read {
                request.sg().copy_from(0, &place, count);
            } else {
                place.copy_from(0, request.sg(), count);
                let dsync = request.command() == Command::Write { dsync: true };
                self.change(request.offset(), count as u64, None, dsync);
            }
        }
        u32::try_from(count).expect("a small request")
    }

    fn change(&mut self, offset: u64, len: u64, byte: Option<u8>, durable: bool) {
        self.changes += 1;
        if let Some(byte) = byte {
            self.ram.write(offset, &vec![byte; usize::try_from(len).expect("a small disk")]);
        }
        self.volatile[blocks(offset, len)].fill((!durable).then_some(self.changes));
    }

    fn does(&self, command: Command) -> bool {
        match command {
            Command::Discard => self.knows.discard,
            Command::Zero { unmap: true } => self.knows.zero_unmap,
            Command::Zero { unmap: false } => self.knows.zero,
            _ => true,
        }
    }
}

fn name(command: Command) -> &'static str {
    match command {
        Command::Discard => "discard",
        Command::Zero { unmap: true } => "zero and unmap",
        Command::Zero { unmap: false } => "zero",
        _ => "a transfer",
    }
}

fn moves_data(request: &Request) -> bool {
    matches!(request.command(), Command::Read | Command::Write { .. })
}

/// The blocks of 512 bytes that a range touches.
fn blocks(offset: u64, len: u64) -> Range<usize> {
    let block = |at: u64| usize::try_from(at / 512).expect("a small disk");
    block(offset)..block(offset + len + 511).max(block(offset))
}
