//! The request queue: from bios to requests, to the engine, and back (Linux: `struct request_queue`).
//!
//! ```text
//! submit ──> parked (FIFO) ──> cut, bounced, tagged ──> engine ──> reap ──> copied out ──> completed
//!              ^    ^                                                │
//!              │    └── no tag, bio or memory: wait, newcomers behind │
//!              └─────────── short, interrupted, fallback ────────────┘
//! ```
//!
//! One queue belongs to one thread; nothing in it is shared or locked, and after [`RequestQueue::new`] nothing in it
//! allocates but a full engine that hands a request back. Everything is bounded by `depth`, the number of chains that
//! may be submitted at a time.
//!
//! The contracts of the manual page blk_make_request(9) hold as follows. [`RequestQueue::make_request`] is the
//! parallel of [`RequestQueue::submit`] for pass-through commands. A chain whose bios do not all have the direction
//! of the first is handed back. Nothing here sleeps: where memory for a bounce buffer is short, the bio is parked and
//! goes on when memory returns, and the part of its chain that came before it is under way meanwhile: a partial
//! allocation is progress, not an error. There is always progress, since a reserve large enough for one piece is used only by pieces, and a piece
//! gives it back when it is done.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use sluice_mem::PAGE_SIZE;
use sluice_mem::bounce::Bounce;
use sluice_mem::gfp::Gfp;
use sluice_mem::kzalloc::Arena;

use crate::bio::{Bio, BioChain, BioSet, Op};
use crate::engine::Engine;
use crate::limits::QueueLimits;
use crate::request::{Command, IoResult, Request, Status, TagSet};
use crate::split::{BounceReason, Piece, next_piece};
use crate::stats::Stats;

/// What a queue is made for.
#[derive(Debug, Clone)]
pub struct QueueConfig {
    /// How many chains may be submitted at a time.
    pub depth: u16,
    /// What the disk can take.
    pub limits: QueueLimits,
    /// What [`Passthrough::device_id`] answers.
    pub device_id: Vec<u8>,
    /// Flushes are answered without asking the disk (QEMU: `cache=unsafe`).
    pub ignore_flush: bool,
}

/// A chain that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completed {
    /// What the submitter called it.
    pub cookie: u32,
    /// How it ended.
    pub status: Status,
    /// How many bytes of the chain's memory were written. Exact when the status is [`Status::Ok`].
    pub bytes: u32,
}

/// Why a chain was handed back, untouched.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefuseReason {
    /// There is no bio.
    #[error("the chain is empty")]
    Empty,
    /// A bio goes another way than the first.
    #[error("not all bios of the chain have the direction of the first")]
    MixedDirections,
    /// As many chains are submitted as the queue was made for.
    #[error("the queue is full")]
    Full,
}

/// A chain that was not accepted, as it was.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    /// The chain.
    pub chain: BioChain,
    /// Why.
    pub reason: RefuseReason,
}

/// A pass-through request that the caller initialises and then executes (blk_make_request(9): "where the struct
/// request needs to be farther initialized by the caller").
#[derive(Debug)]
#[must_use]
pub struct Passthrough {
    chain: BioChain,
    op: Option<Op>,
}

impl Passthrough {
    /// Makes it the question who the disk is.
    pub fn device_id(mut self) -> Self {
        self.op = Some(Op::DeviceId);
        self
    }
}

/// A chain under way.
#[derive(Debug, Clone, Copy)]
struct Chain {
    cookie: u32,
    /// Bios of it that are parked or in the engine.
    pending: u32,
    status: Status,
    bytes: u32,
}

/// What a disk has refused once and is not asked again.
#[derive(Debug, Default)]
struct Unsupported {
    discard: bool,
    zero: bool,
    zero_unmap: bool,
}

/// A queue of requests for one disk.
pub struct RequestQueue {
    config: QueueConfig,
    engine: Box<dyn Engine>,
    bios: BioSet,
    arena: Arena,
    tags: TagSet,
    chains: Vec<Chain>,
    free_chains: Vec<u32>,
    /// Bios that have not been started, or not wholly. At most as many as there are bios.
    parked: VecDeque<Box<Bio>>,
    /// Requests that go to the engine again. At most as many as there are tags.
    again: VecDeque<Request>,
    reaped: Vec<(Request, IoResult)>,
    /// At most as many as `depth`.
    done: VecDeque<Completed>,
    /// The last dispatch had to stop, and nothing has come back from the engine since.
    stalled: bool,
    unsupported: Unsupported,
    stats: Arc<Stats>,
}

impl std::fmt::Debug for RequestQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestQueue")
            .field("in_flight", &self.tags.in_flight())
            .field("parked", &self.parked.len())
            .finish_non_exhaustive()
    }
}

impl RequestQueue {
    /// How often in a row an engine may say "interrupted" or "again" of one request.
    const RETRIES_MAX: u8 = 64;

    /// A queue over `engine`, which must take as many requests as [`RequestQueue::tags`] says.
    ///
    /// # Errors
    /// When there is no address space for the arena.
    ///
    /// # Panics
    /// When the limits are [not ones](QueueLimits::are_sound) that a disk can have.
    pub fn new(config: QueueConfig, engine: Box<dyn Engine>) -> io::Result<Self> {
        assert!(config.limits.are_sound(), "{:?}", config.limits);
        let depth = usize::from(config.depth);
        let bios = BioSet::new(depth);
        let tags = Self::tags(config.depth);
        let reserve = Bounce::RESERVE_BYTES + PAGE_SIZE;
        let tables = depth.max(BioSet::CHAIN_MAX) * PAGE_SIZE;
        let arena = Arena::new(2 * reserve + tables, reserve)?;
        let no_chain = Chain { cookie: 0, pending: 0, status: Status::Ok, bytes: 0 };
        Ok(Self {
            engine,
            parked: VecDeque::with_capacity(bios.capacity()),
            again: VecDeque::with_capacity(usize::from(tags)),
            reaped: Vec::with_capacity(usize::from(tags)),
            done: VecDeque::with_capacity(depth),
            chains: vec![no_chain; depth],
            free_chains: (0..u32::from(config.depth)).rev().collect(),
            tags: TagSet::new(tags),
            bios,
            arena,
            config,
            stalled: false,
            unsupported: Unsupported::default(),
            stats: Arc::default(),
        })
    }

    /// How many requests a queue of `depth` chains gives to its engine at a time.
    #[must_use]
    pub fn tags(depth: u16) -> u16 {
        depth.clamp(32, 1024)
    }

    /// Whether a chain of any legal length can be built and submitted now. To be asked before a head is taken from
    /// the guest's ring: what is not taken waits there.
    #[must_use]
    pub fn can_accept(&self) -> bool {
        !self.is_full()
            && self.bios.has_chain()
            && self.arena.available_pages(Gfp::Nowait) >= BioSet::CHAIN_MAX
    }

    /// Where the bios of chains for this queue come from.
    pub fn bios(&mut self) -> &mut BioSet {
        &mut self.bios
    }

    /// Where the tables of their pieces come from.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// What the disk can take.
    #[must_use]
    pub fn limits(&self) -> &QueueLimits {
        &self.config.limits
    }

    /// The counters, which outlive the queue.
    #[must_use]
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Submits a chain of bios (Linux: `generic_make_request`); [`RequestQueue::reap`] tells when it is done, under
    /// the name `cookie`. Nothing moves before [`RequestQueue::dispatch`].
    ///
    /// The range of a bio that reads or writes is as long as its memory. It may end within a logical block if the next
    /// bio goes on there; what the bios of a chain have together is whole blocks.
    ///
    /// # Errors
    /// Hands the chain back when it is empty or not of one direction, or the queue is full.
    ///
    /// # Panics
    /// When a range is not as long as its memory, or, later, when a chain ends within a block.
    pub fn submit(&mut self, chain: BioChain, cookie: u32) -> Result<(), Refused> {
        let chain = Self::check(chain)?;
        assert!(chain.iter().all(Bio::is_sound), "a range is as long as its memory: {chain:?}");
        self.park_chain(chain, cookie)
    }

    /// Makes a pass-through request of a mapped chain, to be initialised and then given to
    /// [`RequestQueue::execute`] (Linux: `blk_make_request`).
    ///
    /// # Errors
    /// Hands the chain back when it is empty or not of one direction.
    pub fn make_request(&self, chain: BioChain) -> Result<Passthrough, Refused> {
        Self::check(chain).map(|chain| Passthrough { chain, op: None })
    }

    /// Executes a pass-through request (Linux: `blk_execute_rq_nowait`). One that was not initialised fails.
    ///
    /// # Errors
    /// Hands the chain back when the queue is full.
    pub fn execute(&mut self, request: Passthrough, cookie: u32) -> Result<(), Refused> {
        let Passthrough { chain, op } = request;
        if self.is_full() {
            return Err(Refused { chain, reason: RefuseReason::Full });
        }
        let completed = match op {
            Some(_) => Completed { cookie, status: Status::Ok, bytes: self.write_device_id(&chain) },
            None => Completed { cookie, status: Status::NotSupp, bytes: 0 },
        };
        self.bios.put_chain(chain);
        self.stats.chains.add(1);
        self.done.push_back(completed);
        Ok(())
    }

    fn write_device_id(&self, chain: &BioChain) -> u32 {
        let mut left = &self.config.device_id[..];
        for bio in chain.iter() {
            left = &left[bio.sg.write(left)..];
        }
        let written = self.config.device_id.len() - left.len();
        u32::try_from(written).expect("an id is short")
    }

    fn check(chain: BioChain) -> Result<BioChain, Refused> {
        if chain.is_empty() {
            return Err(Refused { chain, reason: RefuseReason::Empty });
        }
        if !chain.has_one_direction() {
            return Err(Refused { chain, reason: RefuseReason::MixedDirections });
        }
        Ok(chain)
    }

    /// Whether as many chains are submitted, or done and not reaped, as the queue was made for.
    fn is_full(&self) -> bool {
        self.free_chains.len() <= self.done.len()
    }

    fn park_chain(&mut self, mut chain: BioChain, cookie: u32) -> Result<(), Refused> {
        if self.is_full() {
            return Err(Refused { chain, reason: RefuseReason::Full });
        }
        let index = self.free_chains.pop().expect("a queue that is not full has a free chain");
        let pending = u32::try_from(chain.len()).expect("a chain is short");
        self.chains[index as usize] = Chain { cookie, pending, status: Status::Ok, bytes: 0 };
        while let Some(mut bio) = chain.pop() {
            bio.chain = index;
            self.parked.push_back(bio);
        }
        Ok(())
    }

    /// Gives the engine what it can take, in the order in which it was submitted. To be called once per batch.
    pub fn dispatch(&mut self) {
        self.stalled = true;
        while let Some(request) = self.again.pop_front() {
            if let Err(request) = self.give(request) {
                self.again.push_front(*request);
                return;
            }
        }
        while let Some(bio) = self.parked.pop_front() {
            if let Err(bio) = self.start(bio) {
                self.parked.push_front(bio);
                self.stats.parked.add(1);
                return;
            }
            if !self.again.is_empty() {
                return;
            }
        }
        self.stalled = false;
    }

    /// Takes what the engine has finished, and calls `completed` for each chain that is done.
    pub fn reap(&mut self, mut completed: impl FnMut(Completed)) {
        let mut reaped = std::mem::take(&mut self.reaped);
        self.engine.reap(&mut reaped);
        for (request, result) in reaped.drain(..) {
            self.end(request, result);
        }
        self.reaped = reaped;
        while let Some(chain) = self.done.pop_front() {
            completed(chain);
        }
    }

    /// Whether nothing is submitted, parked or in flight: the memory of all bios is free.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.free_chains.len() == self.chains.len() && self.done.is_empty()
    }

    /// Whether something waits for [`RequestQueue::dispatch`] that the engine may take now: not if the last one had to
    /// stop and nothing has come back since. Whoever sleeps while this is true may sleep for ever, as there need not
    /// be anything in flight.
    #[must_use]
    pub fn has_parked(&self) -> bool {
        !self.stalled && self.parked.len() + self.again.len() > 0
    }

    /// Starts a bio, or as much of it as the disk takes at once. Hands back what has to wait.
    fn start(&mut self, mut bio: Box<Bio>) -> Result<(), Box<Bio>> {
        if self.chains[bio.chain as usize].status != Status::Ok {
            // Another part of the same chain has failed, so this part need not be tried.
            self.finish(bio, Status::IoErr);
            return Ok(());
        }
        let command = match self.next_step(&bio) {
            Step::Run(command) => command,
            Step::End(status) => {
                self.finish(bio, status);
                return Ok(());
            }
        };
        if let (Op::WriteZeroes { .. }, Command::Write { .. }) = (bio.op, command) {
            bio.zero_by_writing = true;
        }
        let piece = next_piece(&bio, &self.config.limits);
        if !self.has_room(&bio, piece) {
            return Err(bio);
        }
        let bios = match piece.bounce {
            Some(BounceReason::Fragmented) => self.join(bio, piece.bytes),
            _ => self.cut(bio, piece.bytes),
        };
        let bounce = piece.bounce.map(|reason| self.bounce(&bios, piece.bytes, command, reason));
        let tag = self.tags.try_take().expect("has_room has seen it");
        if let Err(request) = self.give(Request::new(tag, command, bios, bounce)) {
            self.again.push_front(*request);
        }
        Ok(())
    }

    /// What the disk has to do for a bio.
    fn next_step(&self, bio: &Bio) -> Step {
        let durable = |fua: bool| fua && !self.config.ignore_flush;
        match bio.op {
            Op::Flush if self.config.ignore_flush => Step::End(Status::Ok),
            Op::Flush => Step::Run(Command::Sync),
            Op::DeviceId => Step::End(Status::NotSupp),
            _ if bio.range.len() == 0 => Step::End(Status::Ok),
            Op::Read => Step::Run(Command::Read),
            Op::Write { fua } => Step::Run(Command::Write { dsync: durable(fua) }),
            Op::Discard { .. } if self.unsupported.discard => Step::End(Status::Ok),
            Op::Discard { .. } => Step::Run(Command::Discard),
            Op::WriteZeroes { unmap: true, .. } if !self.unsupported.zero_unmap && !bio.zero_by_writing => {
                Step::Run(Command::Zero { unmap: true })
            }
            Op::WriteZeroes { .. } if !self.unsupported.zero && !bio.zero_by_writing => {
                Step::Run(Command::Zero { unmap: false })
            }
            Op::WriteZeroes { fua, .. } => Step::Run(Command::Write { dsync: durable(fua) }),
        }
    }

    /// Whether all that a piece of a bio needs is there. One thread owns it all, so it still is a moment later.
    fn has_room(&self, bio: &Bio, piece: Piece) -> bool {
        let cut = piece.bytes != bio.range.len();
        let bounce_pages = piece.bounce.map_or(0, |_| bytes_in_memory(piece.bytes).div_ceil(PAGE_SIZE) + 1);
        self.tags.available()
            && (!cut || self.bios.available() > 0)
            && self.arena.available_pages(Gfp::Atomic) >= usize::from(cut) + bounce_pages
    }

    /// The first `bytes` of a bio. What is left of it goes back to the front of the FIFO.
    fn cut(&mut self, mut bio: Box<Bio>, bytes: u64) -> Box<Bio> {
        if bytes == bio.range.len() {
            return bio;
        }
        let range = bio.range.take_front(bytes);
        let mut front = self.bios.try_take(bio.op, range).expect("has_room has seen it");
        front.chain = bio.chain;
        front.zero_by_writing = bio.zero_by_writing;
        if !bio.zero_by_writing {
            let sg = bio.sg.split_front(bytes_in_memory(bytes), &self.arena, Gfp::Atomic);
            front.sg = sg.expect("has_room has seen it");
        }
        self.chains[bio.chain as usize].pending += 1;
        self.stats.splits.add(1);
        self.parked.push_front(bio);
        front
    }

    /// A bio that ends within a block, and after it the bios of its chain that have the rest of the block.
    fn join(&mut self, mut bios: Box<Bio>, block: u64) -> Box<Bio> {
        let (mut bytes, start) = (bios.range.len(), bios.range.offset());
        while bytes < block {
            let next =
                self.parked.pop_front().expect("a chain is whole blocks, and its bios follow one another");
            assert_eq!(next.chain, bios.chain, "a chain is whole blocks");
            assert_eq!(next.range.offset(), start + bytes, "a block that bios share is one range");
            let take = next.range.len().min(block - bytes);
            let next = self.cut(next, take);
            bytes += take;
            bios.append(next);
        }
        bios
    }

    fn bounce(&self, bios: &Bio, bytes: u64, command: Command, reason: BounceReason) -> Bounce {
        let bounce =
            Bounce::alloc(&self.arena, bytes_in_memory(bytes), Gfp::Atomic).expect("has_room has seen it");
        let has_data = reason != BounceReason::Zeroes;
        if has_data && matches!(command, Command::Write { .. }) {
            let mut offset = 0;
            for bio in bios.list() {
                bounce.copy_in(offset, &bio.sg);
                offset += bio.sg.bytes();
            }
        }
        self.stats.bounced(reason);
        bounce
    }

    fn give(&mut self, request: Request) -> Result<(), Box<Request>> {
        self.engine.submit(request)?;
        self.stats.requests.add(1);
        Ok(())
    }

    /// A request came back from the engine.
    fn end(&mut self, mut request: Request, result: IoResult) {
        self.stalled = false;
        let left = request.len();
        match (request.command, result) {
            (Command::Read | Command::Write { .. }, Ok(count)) if count > 0 && u64::from(count) <= left => {
                self.moved(request, count);
            }
            (Command::Sync, Ok(_)) => self.finish_request(request, Status::Ok),
            (Command::Discard | Command::Zero { .. }, Ok(_)) => self.changed(request),
            (_, Err(Errno::INTR | Errno::AGAIN)) if request.retries < Self::RETRIES_MAX => {
                request.retries += 1;
                self.again.push_back(request);
            }
            (Command::Discard | Command::Zero { .. }, Err(error)) if is_unsupported(error) => {
                self.fall_back(request);
            }
            (_, result) => {
                self.log_failure(&request, result);
                self.finish_request(request, Status::IoErr);
            }
        }
    }

    /// `count` bytes were read or written; when that is not all, the rest is tried.
    fn moved(&mut self, mut request: Request, count: u32) {
        if request.command == Command::Read {
            // What a chain has in memory was checked to fit a u32.
            let chain = &mut self.chains[request.bio().chain as usize];
            chain.bytes = chain.bytes.saturating_add(count);
            self.stats.bytes_read.add(u64::from(count));
        } else {
            self.stats.bytes_written.add(u64::from(count));
        }
        let mut left = count;
        while let Some(bio) = request.advance(&mut left) {
            self.finish(bio, Status::Ok);
        }
        request.retries = 0;
        if request.len() == 0 {
            self.finish_request(request, Status::Ok);
        } else {
            self.again.push_back(request);
        }
    }

    /// A range was discarded or zeroed; with FUA that still has to be made durable.
    fn changed(&mut self, mut request: Request) {
        let fua = matches!(request.bio().op, Op::Discard { fua: true } | Op::WriteZeroes { fua: true, .. });
        if fua && !self.config.ignore_flush {
            request.command = Command::Sync;
            self.again.push_back(request);
        } else {
            self.finish_request(request, Status::Ok);
        }
    }

    /// The disk does not know the command: the next best way, for this request and all that follow.
    fn fall_back(&mut self, request: Request) {
        match request.command {
            Command::Zero { unmap: true } => self.unsupported.zero_unmap = true,
            Command::Zero { unmap: false } => self.unsupported.zero = true,
            _ => self.unsupported.discard = true,
        }
        log::info!("the disk cannot {:?}; going on without", request.command);
        let (tag, bio) = request.into_parts();
        self.tags.put(tag);
        self.parked.push_front(bio);
    }

    /// The first failures are told, then ever fewer: a guest must not fill the log.
    fn log_failure(&self, request: &Request, result: IoResult) {
        let count = self.stats.failed.value() + 1;
        if !count.is_power_of_two() {
            return;
        }
        let (command, offset, len) = (request.command, request.offset(), request.len());
        match result {
            Ok(moved) => log::warn!(
                "{command:?} of {len} bytes at {offset} moved {moved}: is the file shorter than it was? \
                 (failure {count} of this queue)"
            ),
            Err(e) => {
                log::warn!("{command:?} of {len} bytes at {offset}: {e} (failure {count} of this queue)")
            }
        }
    }

    fn finish_request(&mut self, request: Request, status: Status) {
        let (tag, bios) = request.into_parts();
        self.tags.put(tag);
        let mut next = Some(bios);
        while let Some(mut bio) = next {
            next = bio.next.take();
            self.finish(bio, status);
        }
    }

    /// A bio is done; with the last of its chain the chain is.
    fn finish(&mut self, bio: Box<Bio>, status: Status) {
        let index = bio.chain;
        self.bios.put(bio);
        let chain = &mut self.chains[index as usize];
        if chain.status == Status::Ok {
            chain.status = status;
        }
        chain.pending -= 1;
        if chain.pending == 0 {
            let Chain { cookie, status, bytes, .. } = *chain;
            self.stats.chains.add(1);
            self.stats.failed.add(u64::from(status == Status::IoErr));
            self.free_chains.push(index);
            self.done.push_back(Completed { cookie, status, bytes });
        }
    }
}

/// What is to be done with a bio.
enum Step {
    Run(Command),
    End(Status),
}

/// The length of a piece, which fits the address space as it is at most [`QueueLimits::BYTES_MAX`].
fn bytes_in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a piece is small")
}

/// What systems say of an fallocate(2) or a command that they do not know.
fn is_unsupported(error: Errno) -> bool {
    matches!(error, Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY | Errno::INVAL | Errno::NODEV)
}

#[cfg(test)]
mod tests;
