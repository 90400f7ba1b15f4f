//! An engine that does what a test tells it: refuses, delays, reorders, cuts short, fails; and checks what it gets.
//!
//! Several queues may have an engine on one disk. A request is executed at some time between its submission and its
//! completion, and those of different queues in any order.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::rc::Rc;

use rustix::io::Errno;

use crate::doubles::dice::Dice;
use crate::request::Command;

use super::*;

/// What is where something was discarded.
pub(super) const DISCARDED: u8 = 0xdd;
/// What is where something was erased.
pub(super) const ERASED: u8 = 0xee;

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
    pub(super) secure_erase: bool,
}

impl Knows {
    /// All commands.
    pub(super) const ALL: Self = Self { discard: true, zero: true, zero_unmap: true, secure_erase: true };
}

/// A request among those of all queues: its queue, and its tag there.
type Key = (usize, usize);

/// A disk in memory, and its engines' requests.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) dice: Dice,
    pub(super) faults: Faults,
    pub(super) knows: Knows,
    /// What it discards and zeroes are multiples of this.
    pub(super) command_unit: u64,
    /// The most requests that it takes of a queue at a time.
    pub(super) room: usize,
    limits: QueueLimits,
    bytes: Vec<u8>,
    in_flight: Vec<InFlight>,
    /// What it was given, in order.
    pub(super) log: Vec<(Command, u64, u64)>,
    /// Chains of which a request has failed, by queue and number.
    pub(super) failed: HashSet<(usize, u32)>,
    /// Requests that were cut short: what is left of them need not be whole blocks.
    cut: HashSet<Key>,
    /// Requests that come again.
    again: HashSet<Key>,
    /// Commands that were said not to be known, by queue.
    refused: HashSet<(usize, &'static str)>,
    /// Counts changes; when each block of 512 bytes was changed for the last time without being durable.
    pub(super) changes: u64,
    volatile: Vec<Option<u64>>,
    /// How many changes there were when a sync was submitted.
    syncs: HashMap<Key, u64>,
}

#[derive(Debug)]
struct InFlight {
    queue: usize,
    request: Request,
    /// What shall be written, where that may not change.
    stable: Option<Vec<u8>>,
    /// Once it was executed.
    result: Option<IoResult>,
}

impl InFlight {
    fn key(&self) -> Key {
        (self.queue, self.request.tag().index())
    }
}

/// A handle to a disk that is the engine of a queue.
pub(super) struct Scripted {
    pub(super) disk: Rc<RefCell<Disk>>,
    pub(super) queue: usize,
}

impl Engine for Scripted {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        let disk = &mut *self.disk.borrow_mut();
        let key = (self.queue, request.tag().index());
        let in_flight = disk.in_flight.iter().filter(|other| other.queue == self.queue).count();
        let pretend = in_flight > 0 && disk.dice.chance(disk.faults.full);
        if pretend || in_flight >= disk.room {
            disk.again.insert(key);
            return Err(request);
        }
        disk.check(key, &request);
        disk.again.remove(&key);
        disk.syncs.insert(key, disk.changes);
        disk.log.push((request.command(), request.offset(), request.len()));
        let writes = matches!(request.command(), Command::Write { .. });
        let stable = (disk.limits.stable_writes && writes).then(|| memory_of(&request));
        disk.in_flight.push(InFlight { queue: self.queue, request, stable, result: None });
        Ok(())
    }

    /// Executes some requests, and gives back some of those that are.
    fn reap(&mut self, done: &mut Vec<(Request, IoResult)>) {
        let disk = &mut *self.disk.borrow_mut();
        let count = disk.dice.size(0..disk.in_flight.len() + 1);
        for _ in 0..count {
            let which = disk.dice.size(0..disk.in_flight.len());
            if disk.in_flight[which].queue != self.queue {
                continue;
            }
            disk.execute(which);
            let InFlight { request, result, .. } = disk.in_flight.swap_remove(which);
            let result = result.expect("executed");
            let known = !matches!(result, Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY));
            if !known && request.command() != Command::SecureErase {
                // There is another way, and no need to ask again.
                disk.refused.insert((self.queue, name(request.command())));
            }
            done.push((request, result));
        }
    }
}

impl Drop for Scripted {
    /// Waits for what is in flight, as engines do.
    fn drop(&mut self) {
        // If the disk is borrowed a test has failed in the midst of it.
        let Ok(mut disk) = self.disk.try_borrow_mut() else { return };
        while let Some(which) = disk.in_flight.iter().position(|request| request.queue == self.queue) {
            disk.execute(which);
            disk.in_flight.swap_remove(which);
        }
        disk.cut.retain(|key| key.0 != self.queue);
        disk.again.retain(|key| key.0 != self.queue);
        disk.refused.retain(|refused| refused.0 != self.queue);
    }
}

impl Disk {
    /// A disk of `sectors` sectors, which takes what `limits` say, knows all commands and makes no mistakes.
    pub(super) fn new(sectors: usize, limits: QueueLimits, dice: Dice) -> Rc<RefCell<Self>> {
        Self::of(vec![0; sectors * 512], limits, dice)
    }

    /// A disk with such bytes on it.
    pub(super) fn of(bytes: Vec<u8>, limits: QueueLimits, dice: Dice) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(Self {
            dice,
            faults: Faults::default(),
            knows: Knows::ALL,
            command_unit: 512,
            room: usize::MAX,
            limits,
            volatile: vec![None; bytes.len() / 512],
            bytes,
            in_flight: Vec::new(),
            log: Vec::new(),
            failed: HashSet::new(),
            cut: HashSet::new(),
            again: HashSet::new(),
            refused: HashSet::new(),
            changes: 0,
            syncs: HashMap::new(),
        }))
    }

    /// What is on the disk.
    pub(super) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        self.bytes[place(offset, len as u64)].to_vec()
    }

    /// Puts something on the disk.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.bytes[place(offset, bytes.len() as u64)].copy_from_slice(bytes);
    }

    /// How many requests it has of a queue.
    pub(super) fn in_flight(&self, queue: usize) -> usize {
        self.in_flight.iter().filter(|request| request.queue == queue).count()
    }

    /// Begins a chain that a queue calls by a number. Returns how many changes there were before.
    pub(super) fn begin(&mut self, queue: usize, chain: u32) -> u64 {
        self.failed.remove(&(queue, chain));
        self.changes
    }

    /// Whether one of `changes`, by their count, to a range would not survive a power failure.
    pub(super) fn is_volatile(&self, range: Range<u64>, changes: Range<u64>) -> bool {
        let blocks = blocks(range.start, range.end - range.start);
        self.volatile[blocks].iter().flatten().any(|change| changes.contains(change))
    }

    /// Executes one of the requests, of whatever queue, without giving it back.
    pub(super) fn go_on(&mut self) {
        if !self.in_flight.is_empty() {
            let which = self.dice.size(0..self.in_flight.len());
            self.execute(which);
        }
    }

    /// Whether this is a request that such a disk may be given.
    fn check(&self, key: Key, request: &Request) {
        let (offset, len, sg) = (request.offset(), request.len(), request.sg());
        assert!(offset + len <= self.bytes.len() as u64, "{request:?} is past the end");
        assert!(self.in_flight.iter().all(|other| other.key() != key), "two of one tag");
        let refused = self.refused.contains(&(key.0, name(request.command())));
        assert!(!refused || self.again.contains(&key), "{:?} is not known", request.command());
        let limits = &self.limits;
        let unit = if self.cut.contains(&key) { 1 } else { limits.unit() };
        assert!(offset.is_multiple_of(unit) && len.is_multiple_of(unit), "{request:?} is not whole blocks");
        if moves_data(request) {
            assert_eq!(sg.bytes() as u64, len, "{request:?}");
            assert!(len > 0 && len <= u64::from(limits.max_bytes), "{request:?}");
            assert!(!limits.needs_pinning || sg.is_pinnable(), "{request:?} cannot be pinned");
            let (address, length) = (limits.dma_alignment as usize, limits.length_alignment as usize);
            for piece in sg.pieces() {
                let starts_well = piece.as_ptr().addr().is_multiple_of(address);
                assert!(starts_well && piece.len() > 0, "{piece:?} of {request:?}");
                assert!(piece.len().is_multiple_of(length), "{piece:?} of {request:?}");
            }
        }
    }

    fn execute(&mut self, which: usize) {
        if self.in_flight[which].result.is_some() {
            return;
        }
        let InFlight { queue, request, stable, .. } = self.in_flight.swap_remove(which);
        assert!(stable.is_none_or(|data| data == memory_of(&request)), "what is written has changed");
        let result = self.answer((queue, request.tag().index()), &request);
        self.remember((queue, request.tag().index()), &request, result);
        self.in_flight.push(InFlight { queue, request, stable: None, result: Some(result) });
        let last = self.in_flight.len() - 1;
        self.in_flight.swap(which, last);
    }

    /// What is to be expected of the queue after an answer.
    fn remember(&mut self, key: Key, request: &Request, result: IoResult) {
        if result.is_err_and(|error| error == Errno::IO) || result == Ok(0) && moves_data(request) {
            self.failed.insert((key.0, request.bio().chain));
        }
        match result {
            Ok(count) if moves_data(request) && u64::from(count) < request.len() => {
                self.cut.insert(key);
            }
            Err(Errno::INTR | Errno::AGAIN) => {
                self.again.insert(key);
            }
            _ => {
                self.cut.remove(&key);
            }
        }
    }

    fn answer(&mut self, key: Key, request: &Request) -> IoResult {
        let faults = self.faults;
        if self.dice.chance(faults.again) {
            return Err(self.dice.pick(&[Errno::INTR, Errno::AGAIN]));
        }
        if !self.does(request.command()) {
            return Err(self.dice.pick(&[Errno::OPNOTSUPP, Errno::NOSYS, Errno::NOTTY]));
        }
        let (offset, len) = (request.offset(), request.len());
        let whole = offset.is_multiple_of(self.command_unit) && len.is_multiple_of(self.command_unit);
        if matches!(request.command(), Command::Discard | Command::Zero { .. }) && !whole {
            return Err(Errno::INVAL);
        }
        if self.dice.chance(faults.io_error) {
            return Err(Errno::IO);
        }
        match request.command() {
            Command::Sync => {
                let submitted = self.syncs[&key];
                self.volatile.iter_mut().for_each(|change| *change = change.filter(|at| *at > submitted));
            }
            Command::Discard => self.fill(offset, len, DISCARDED),
            Command::SecureErase => self.fill(offset, len, ERASED),
            Command::Zero { .. } => self.fill(offset, len, 0),
            Command::Read | Command::Write { .. } => return Ok(self.transfer(request)),
        }
        Ok(0)
    }

    fn fill(&mut self, offset: u64, len: u64, byte: u8) {
        self.bytes[place(offset, len)].fill(byte);
        self.changed(offset, len, false);
    }

    /// Moves all, some or none of the data. Returns how much that was.
    fn transfer(&mut self, request: &Request) -> u32 {
        let count = self.random_count(request.len());
        let range = place(request.offset(), count);
        if request.command() == Command::Read {
            request.sg().write(&self.bytes[range]);
        } else if count > 0 {
            request.sg().read(&mut self.bytes[range]);
            self.changed(request.offset(), count, request.command() == Command::Write { dsync: true });
        }
        u32::try_from(count).expect("a small request")
    }

    fn random_count(&mut self, len: u64) -> u64 {
        if self.dice.chance(self.faults.end) {
            return 0;
        }
        if !self.dice.chance(self.faults.short) {
            return len;
        }
        // What direct I/O leaves undone is something for direct I/O again.
        let limits = &self.limits;
        let direct = u64::from(limits.dma_alignment.max(limits.length_alignment)) > 1;
        let unit = if direct { limits.unit().max(limits.dma_alignment.into()) } else { 1 };
        self.dice.within(1..len + 1).next_multiple_of(unit).min(len)
    }

    fn changed(&mut self, offset: u64, len: u64, durable: bool) {
        self.changes += 1;
        self.volatile[blocks(offset, len)].fill((!durable).then_some(self.changes));
    }

    fn does(&self, command: Command) -> bool {
        match command {
            Command::Discard => self.knows.discard,
            Command::SecureErase => self.knows.secure_erase,
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
        _ => "anything else",
    }
}

fn moves_data(request: &Request) -> bool {
    matches!(request.command(), Command::Read | Command::Write { .. })
}

fn memory_of(request: &Request) -> Vec<u8> {
    let mut bytes = vec![0; request.sg().bytes()];
    request.sg().read(&mut bytes);
    bytes
}

/// A range as one of the disk's bytes.
fn place(offset: u64, len: u64) -> Range<usize> {
    let at = |at: u64| usize::try_from(at).expect("a small disk");
    at(offset)..at(offset + len)
}

/// The blocks of 512 bytes that a range touches.
fn blocks(offset: u64, len: u64) -> Range<usize> {
    let Range { start, end } = place(offset, len);
    start / 512..end.div_ceil(512)
}
