//! An engine that fails as it is told to, around one that works: for tests of what stands on it.
//!
//! What a request is told is what a disk may say, and no less is done than that: a request of which less was moved than it
//! asked for may have been done wholly, as with a real disk; one that failed was not done. The contract of [`Engine`] holds
//! for everything but [`Fault::Hang`]: what hangs comes back when it is [released](Faults::release). (Linux: the
//! `fail_make_request` and `null_blk` of fault injection.)
//!
//! ```
//! use sluice_blk::engine::fault::{Fault, FaultEngine, Faults, Kind, When};
//! use sluice_blk::engine::null::NullEngine;
//! use rustix::io::Errno;
//!
//! let faults = Faults::default();
//! faults.add(Kind::Write, Fault::Error(Errno::IO), When::Nth(3));
//! let engine = FaultEngine::new(Box::new(NullEngine::new(32)), &faults);
//! ```

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use rustix::io::Errno;

use super::Engine;
use crate::request::{Command, IoResult, Request};

/// Which requests a fault is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`Command::Read`].
    Read,
    /// [`Command::Write`].
    Write,
    /// [`Command::Sync`].
    Sync,
    /// [`Command::Discard`] and [`Command::SecureErase`].
    Discard,
    /// [`Command::Zero`].
    Zero,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Read, Self::Write, Self::Sync, Self::Discard, Self::Zero];

    fn of(command: Command) -> Self {
        match command {
            Command::Read => Self::Read,
            Command::Write { .. } => Self::Write,
            Command::Sync => Self::Sync,
            Command::Discard | Command::SecureErase => Self::Discard,
            Command::Zero { .. } => Self::Zero,
        }
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails.
    Error(Errno),
    /// Half of the bytes are said to have been moved, in sectors, at least one. Of requests that move none: no fault.
    Short,
    /// No byte is moved, as at the end of a file. Of requests that move none: no fault.
    Nothing,
    /// It does not come back, and is not done, before it is released.
    Hang,
    /// It is done after so many turns.
    Slow(u32),
    /// It is done at once, and comes back after so many turns.
    Late(u32),
}

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The next.
    Once,
    /// All.
    Always,
    /// Only this one, counted from 1.
    Nth(u32),
}

#[derive(Debug)]
struct Rule {
    kind: Kind,
    fault: Fault,
    when: When,
    /// How many requests of the kind it has seen.
    seen: u32,
}

impl Rule {
    /// Whether the next request meets it.
    fn strikes(&mut self, kind: Kind) -> bool {
        if kind != self.kind {
            return false;
        }
        self.seen = self.seen.saturating_add(1);
        match self.when {
            When::Once => self.seen == 1,
            When::Always => true,
            When::Nth(nth) => self.seen == nth,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    releases: bool,
    /// A sync has failed, so all do.
    sync_failed: bool,
}

/// What goes wrong on a disk: a handle for the test that its engines share.
#[derive(Debug, Clone, Default)]
pub struct Faults(Rc<RefCell<State>>);

impl Faults {
    /// From now on this goes wrong, too. Of several faults for one request the first one counts.
    pub fn add(&self, kind: Kind, fault: Fault, when: When) {
        self.0.borrow_mut().rules.push(Rule { kind, fault, when, seen: 0 });
    }

    /// Nothing goes wrong any more, and what hangs is done.
    pub fn release(&self) {
        let mut state = self.0.borrow_mut();
        state.rules.clear();
        state.releases = true;
    }

    fn next(&self, command: Command) -> Option<Fault> {
        let kind = Kind::of(command);
        let mut state = self.0.borrow_mut();
        // Each of them counts.
        let struck: Vec<Fault> =
            state.rules.iter_mut().filter_map(|rule| rule.strikes(kind).then_some(rule.fault)).collect();
        struck.first().copied()
    }

    /// As it is told when syncs that have failed once do so for ever.
    fn synced(&self, command: Command, result: IoResult) -> IoResult {
        if command != Command::Sync {
            return result;
        }
        let mut state = self.0.borrow_mut();
        match result {
            Ok(_) if state.sync_failed => Err(Errno::IO),
            Ok(_) | Err(Errno::INTR | Errno::AGAIN) => result,
            Err(_) => {
                state.sync_failed = true;
                result
            }
        }
    }
}

/// Requests that wait, and for how many turns; for none, until they are released.
type Waiting<T> = VecDeque<(Option<u32>, T)>;

/// An engine with faults.
pub struct FaultEngine {
    inner: Box<dyn Engine>,
    faults: Faults,
    /// Not given to the engine yet.
    held: Waiting<Request>,
    /// Done, and not told yet.
    told_later: Waiting<(Request, IoResult)>,
    /// What the engine is doing, by tag, and whether that is told short or late.
    marked: Vec<(usize, Fault)>,
    done: Vec<(Request, IoResult)>,
}

impl FaultEngine {
    /// `inner`, with `faults`.
    #[must_use]
    pub fn new(inner: Box<dyn Engine>, faults: &Faults) -> Self {
        Self {
            inner,
            faults: faults.clone(),
            held: VecDeque::new(),
            told_later: VecDeque::new(),
            marked: Vec::new(),
            done: Vec::new(),
        }
    }

    /// What the engine says of a request is told: now, later, or by half.
    fn tell(&mut self, request: Request, result: IoResult, done: &mut Vec<(Request, IoResult)>) {
        let tag = request.tag().index();
        let mark = self.marked.iter().position(|(marked, _)| *marked == tag);
        let result = self.faults.synced(request.command(), result);
        match mark.map(|at| self.marked.swap_remove(at).1) {
            Some(Fault::Late(turns)) => self.told_later.push_back((Some(turns), (request, result))),
            Some(Fault::Short) => done.push((request, result.map(half))),
            _ => done.push((request, result)),
        }
    }

    /// A turn has passed: gives the engine what was held for long enough.
    fn pass(&mut self) {
        let releases = std::mem::take(&mut self.faults.0.borrow_mut().releases);
        for _ in 0..self.held.len() {
            let Some((turns, request)) = self.held.pop_front() else { return };
            match turns.map(|turns| turns.saturating_sub(1)) {
                turns if releases || turns == Some(0) => {
                    if let Err(request) = self.inner.submit(request) {
                        self.held.push_back((Some(1), request));
                    }
                }
                turns => self.held.push_back((turns, request)),
            }
        }
    }
}

/// Half of a transfer, in sectors; all of one.
fn half(count: u32) -> u32 {
    if count <= 512 { count } else { (count / 2).next_multiple_of(512) }
}

impl Engine for FaultEngine {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        let (tag, moves) = (request.tag().index(), request.sg().bytes() > 0);
        match self.faults.next(request.command()) {
            Some(Fault::Error(errno)) => {
                let result = self.faults.synced(request.command(), Err(errno));
                self.done.push((request, result));
                return Ok(());
            }
            Some(Fault::Nothing) if moves => {
                self.done.push((request, Ok(0)));
                return Ok(());
            }
            Some(Fault::Hang) => {
                self.held.push_back((None, request));
                return Ok(());
            }
            Some(Fault::Slow(turns)) => {
                self.held.push_back((Some(turns), request));
                return Ok(());
            }
            Some(fault @ Fault::Late(_)) => self.marked.push((tag, fault)),
            Some(Fault::Short) if moves => self.marked.push((tag, Fault::Short)),
            Some(Fault::Short | Fault::Nothing) | None => {}
        }
        self.inner.submit(request).inspect_err(|_| self.marked.retain(|(marked, _)| *marked != tag))
    }

    fn reap(&mut self, done: &mut Vec<(Request, IoResult)>) {
        self.pass();
        done.append(&mut self.done);
        for _ in 0..self.told_later.len() {
            let Some((turns, told)) = self.told_later.pop_front() else { break };
            match turns.unwrap_or_default() {
                0 => done.push(told),
                turns => self.told_later.push_back((Some(turns - 1), told)),
            }
        }
        let mut finished = Vec::new();
        self.inner.reap(&mut finished);
        for (request, result) in finished {
            self.tell(request, result, done);
        }
    }
}
