//! The request queue: from bios to requests, to the engine, and back (Linux: `struct request_queue`).
//!
//! ```text
//! submit ──> parked (FIFO) ──> cut, bounced, tagged ──> engine ──> reap ──> copied out ──> completed
//!              ^    ^                                                │
//!              │    └── no tag, bio or memory: wait, newcomers behind │
//!              └─────────── short, interrupted, fallback ────────────┘
//! ```
//!
//! One queue belongs to one thread; nothing in it is shared or locked (but for [`Overlaps`], on disks whose guests write
//! parts of blocks), and after [`RequestQueue::new`] nothing in it allocates but from its [`Arena`]. Everything is
//! bounded by `depth`, the number of chains that may be submitted at a time.
//!
//! ```
//! use sluice_blk::bio::{BioChain, Op};
//! use sluice_blk::engine::Engine;
//! use sluice_blk::limits::QueueLimits;
//! use sluice_blk::queue::{QueueConfig, RequestQueue};
//! use sluice_blk::request::{Command, IoResult, Request, Status};
//! use sluice_blk::sector::{DiskRange, Sector};
//! use sluice_mem::{gfp::Gfp, sglist::SgList};
//!
//! /// A disk in memory.
//! struct Ram {
//!     bytes: Vec<u8>,
//!     done: Vec<(Request, IoResult)>,
//! }
//!
//! impl Engine for Ram {
//!     fn submit(&mut self, request: Request) -> Result<(), Request> {
//!         let start = usize::try_from(request.offset()).unwrap();
//!         let range = start..start + usize::try_from(request.len()).unwrap();
//!         let moved = match request.command() {
//!             Command::Read => request.sg().write(&self.bytes[range]),
//!             Command::Write { .. } => request.sg().read(&mut self.bytes[range]),
//!             _ => 0,
//!         };
//!         self.done.push((request, Ok(u32::try_from(moved).unwrap())));
//!         Ok(())
//!     }
//!
//!     fn reap(&mut self, done: &mut Vec<(Request, IoResult)>) {
//!         done.append(&mut self.done);
//!     }
//! }
//!
//! // Its guest writes sectors; the disk has blocks of eight.
//! let limits = QueueLimits { disk_block_size: 4096, ..QueueLimits::default() };
//! let ram = Ram { bytes: vec![1; 8192], done: Vec::new() };
//! let mut queue = RequestQueue::new(QueueConfig::new(16, limits), Box::new(ram))?;
//! for (op, sector) in [(Op::Write { fua: true }, 3), (Op::Read, 4)] {
//!     let range = DiskRange::new(Sector(sector), 512, Sector(16), 512)?;
//!     let mut chain = BioChain::new();
//!     let bio = chain.push(queue.bios().try_take(op, range).expect("the queue is idle"));
//!     bio.sg = SgList::alloc(queue.arena(), 512, Gfp::NOWAIT)?;
//!     queue.submit(chain, sector.try_into()?)?;
//! }
//! let mut completed = Vec::new();
//! while !queue.is_idle() {
//!     queue.dispatch();
//!     queue.reap(|chain| completed.push((chain.cookie, chain.status, chain.bytes)));
//! }
//! completed.sort_by_key(|chain| chain.0); // Chains finish in any order.
//! assert_eq!(completed, [(3, Status::Ok, 0), (4, Status::Ok, 512)]);
//! assert_eq!(queue.stats().bounced_partial_block.value(), 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What blk_make_request(9) asks for
//!
//! - "blk_make_request is the parallel of generic_make_request for BLOCK_PC type commands. Where the struct request needs
//!   to be farther initialized by the caller": [`RequestQueue::make_request`] is the parallel of
//!   [`RequestQueue::submit`]; its [`Passthrough`] is initialised with a [`PassthroughCommand`] and then executed.
//! - "It may be a chained-bio": both take chains. "The caller must make sure that bi_io_vec are set to describe the memory
//!   buffers": ranges are as long as their memory. "And all bio's in the passed bio-chain are properly set
//!   accordingly": a chain whose bios do not all have the direction of the first is handed back.
//! - "If called under none-sleepable conditions, mapped bio buffers must not need bouncing [...]. Otherwise the call to
//!   blk_queue_bounce will BUG": a chain that needs bouncing when there is no memory at once is handed back.
//! - "You cannot use __GFP_WAIT for anything but the first bio in the chain": a head is taken from the guest's ring only
//!   when [`RequestQueue::can_accept`] says that all bios of any chain can be had; so what waits is the first, in the
//!   ring, and the others come without waiting.
//! - "If possible a big IO should be split into smaller parts when allocation fails. Partial allocation should not be an
//!   error, or you risk a live-lock": a piece that has to be bounced is as large as there is memory for; the rest is
//!   parked and goes on when memory returns. There is always progress, since a reserve large enough for a piece is used
//!   only by pieces, and a piece gives it back when it is done.

mod config;
mod deadline;
mod end;
mod passthrough;
mod space;
mod start;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use sluice_mem::gfp::Gfp;
use sluice_mem::kzalloc::Arena;

pub use self::config::{OnEnospc, QueueConfig, QueueMemory};
use self::deadline::Deadline;
pub use self::deadline::{Fence, IoTimeout};
pub use self::passthrough::{Passthrough, PassthroughCommand};
use crate::bio::{Bio, BioChain, BioSet};
use crate::engine::Engine;
use crate::limits::QueueLimits;
use crate::overlap::{Overlaps, Wake, Writer};
use crate::request::{IoResult, Request, Status, TagSet};
use crate::split::AsItIs;
use crate::stats::Stats;

/// A chain that is done (Linux: `bi_end_io` is called; here the queue is asked, and says which one by its cookie).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completed {
    /// What the submitter called it.
    pub cookie: u32,
    /// How it ended.
    pub status: Status,
    /// How many bytes of the chain's memory were written. Exact when the status is [`Status::Ok`].
    pub bytes: u32,
}

/// Why a chain was handed back, untouched (Linux: `-EINVAL`, `-EAGAIN`, or a BUG).
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
    /// Memory would have to be bounced, and there is none for that at once.
    #[error("there is no memory to bounce the chain's")]
    NoMemory,
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

/// A chain under way.
#[derive(Debug, Clone, Copy)]
struct Chain {
    cookie: u32,
    /// Bios of it that are parked or in the engine.
    pending: u32,
    status: Status,
    bytes: u32,
    /// When it was submitted, on a queue that has a deadline.
    since: Instant,
    /// It was failed before the disk had answered: nobody waits for it any more.
    is_late: bool,
}

impl Chain {
    /// So many more bytes of its memory were written.
    #[inline]
    fn credit(&mut self, bytes: u32) {
        // What a chain has in memory was checked to fit a u32.
        self.bytes = self.bytes.saturating_add(bytes);
    }
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
    /// Requests for which the disk has no space, to be tried again later. At most as many as there are tags.
    stopped: VecDeque<Request>,
    /// When they are.
    retry_at: Option<Instant>,
    deadline: Option<Deadline>,
    /// What time it is, on a queue that [has a clock](RequestQueue::has_clock).
    now: Instant,
    reaped: Vec<(Request, IoResult)>,
    /// At most as many as `depth`.
    done: Vec<Completed>,
    /// The last dispatch had to stop, and nothing has come back from the engine since.
    stalled: bool,
    unsupported: Unsupported,
    as_it_is: AsItIs,
    writes: Option<Writes>,
    stats: Arc<Stats>,
}

/// This queue among those that write to the same disk.
struct Writes {
    overlaps: Arc<Overlaps>,
    writer: Writer,
    /// It was refused a range and has a claim on it.
    has_claim: bool,
}

/// A queue that waits only for itself need not be woken.
#[derive(Debug)]
struct Awake;

impl Wake for Awake {
    fn wake(&self) {}
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
    /// The most pages that a chain takes before it is submitted: a table for each bio, and a page for a pass-through
    /// command to bounce.
    const PAGES_TO_ACCEPT: usize = BioSet::CHAIN_MAX + 1;

    /// A queue over `engine`, which must take as many requests as [`RequestQueue::tags`] says.
    ///
    /// # Errors
    /// When the budget has no room for what the queue needs at least (the reserve, and the tables of one chain: it is
    /// charged now, so that other users of the budget can never stop the queue), or there is no address space.
    ///
    /// # Panics
    /// When the limits are [not ones](QueueLimits::are_sound) that a disk can have.
    pub fn new(config: QueueConfig, engine: Box<dyn Engine>) -> io::Result<Self> {
        assert!(config.limits.are_sound(), "{:?}", config.limits);
        let depth = usize::from(config.depth);
        let bios = BioSet::new(depth);
        let tags = Self::tags(config.depth);
        let QueueMemory { budget, reserve, most } = &config.memory;
        assert!(
            *reserve >= QueueMemory::RESERVE_MIN,
            "a reserve of {reserve} bytes is too small for progress"
        );
        let arena = Arena::within(budget, *most, *reserve, Gfp::NOWAIT)?;
        if !arena.prepare(Self::PAGES_TO_ACCEPT, Gfp::NOWAIT) {
            let message =
                format!("there is no memory for one request in {most} bytes, {reserve} of them in reserve");
            return Err(io::Error::new(io::ErrorKind::OutOfMemory, message));
        }
        let writes = config.limits.has_partial_blocks().then(|| {
            let (overlaps, wake) = config.overlaps.clone().unwrap_or((Arc::default(), Arc::new(Awake)));
            let writer = overlaps.register(usize::from(tags), wake);
            Writes { overlaps, writer, has_claim: false }
        });
        let now = Instant::now();
        let no_chain =
            Chain { cookie: 0, pending: 0, status: Status::Ok, bytes: 0, since: now, is_late: false };
        Ok(Self {
            engine,
            parked: VecDeque::with_capacity(bios.capacity()),
            again: VecDeque::with_capacity(usize::from(tags)),
            stopped: VecDeque::with_capacity(usize::from(tags)),
            retry_at: None,
            deadline: config.io_timeout.clone().map(Deadline::new),
            now,
            reaped: Vec::with_capacity(usize::from(tags)),
            done: Vec::with_capacity(depth),
            chains: vec![no_chain; depth],
            free_chains: (0..u32::from(config.depth)).rev().collect(),
            tags: TagSet::new(tags),
            bios,
            arena,
            as_it_is: AsItIs::within(&config.limits),
            config,
            stalled: false,
            unsupported: Unsupported::default(),
            writes,
            stats: Arc::default(),
        })
    }

    /// How many requests a queue of `depth` chains gives to its engine at a time (Linux: `nr_requests`).
    #[must_use]
    pub fn tags(depth: u16) -> u16 {
        depth.clamp(32, 1024)
    }

    /// Whether a chain of any legal length can be built and submitted now. To be asked before a head is taken from
    /// the guest's ring: what is not taken waits there.
    #[must_use]
    #[inline]
    pub fn can_accept(&self) -> bool {
        !self.is_full() && self.bios.has_chain() && self.arena.prepare(Self::PAGES_TO_ACCEPT, Gfp::NOWAIT)
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
    /// the name `cookie`. The engine has it at once where nothing stands in its way, and at the latest with
    /// [`RequestQueue::dispatch`], which has to be called in any case: others wait for that.
    ///
    /// The range of a bio that reads or writes is as long as its memory. It may end within a logical block if the next
    /// bio goes on there; what the bios of a chain have together is whole blocks.
    ///
    /// # Errors
    /// Hands the chain back when it is empty or not of one direction, or the queue is full.
    ///
    /// # Panics
    /// When a range is not as long as its memory, or, later, when a chain ends within a block.
    #[inline]
    pub fn submit(&mut self, mut chain: BioChain, cookie: u32) -> Result<(), Refused> {
        if self.starts_at_once(&chain)
            && let Some(bio) = chain.pop()
        {
            self.start_at_once(bio, cookie);
            return Ok(());
        }
        let chain = Self::check(chain)?;
        assert!(chain.iter().all(Bio::is_sound), "a range is as long as its memory");
        self.park_chain(chain, cookie)
    }

    #[inline]
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
    #[inline]
    fn is_full(&self) -> bool {
        self.free_chains.len() <= self.done.len()
    }

    #[inline]
    fn park_chain(&mut self, mut chain: BioChain, cookie: u32) -> Result<(), Refused> {
        if self.is_full() {
            return Err(Refused { chain, reason: RefuseReason::Full });
        }
        let index = self.begin(cookie);
        while let Some(mut bio) = chain.pop() {
            bio.chain = index;
            self.parked.push_back(bio);
            self.chains[index as usize].pending += 1;
        }
        Ok(())
    }

    /// A chain of no bios so far. The queue is not full.
    #[inline]
    fn begin(&mut self, cookie: u32) -> u32 {
        let index = self.free_chains.pop().expect("a queue that is not full has a free chain");
        self.chains[index as usize] =
            Chain { cookie, pending: 0, status: Status::Ok, bytes: 0, since: self.now, is_late: false };
        index
    }

    /// Gives the engine what it can take, in the order in which it was submitted. To be called once per batch (Linux:
    /// `blk_mq_run_hw_queue`; there is no elevator, as the guest has one and the host's disk another).
    pub fn dispatch(&mut self) {
        self.stalled = true;
        while let Some(request) = self.again.pop_front() {
            if let Err(request) = self.give(request) {
                self.again.push_front(request);
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

    /// Takes what the engine has finished, and calls `completed` for each chain that is done (Linux: `blk_mq_poll`, and
    /// `blk_mq_end_request` for each).
    pub fn reap(&mut self, mut completed: impl FnMut(Completed)) {
        if self.tags.in_flight() == 0 && self.done.is_empty() {
            // Nothing is in the engine, and nothing was done without it.
            return;
        }
        self.done.drain(..).for_each(&mut completed);
        let mut reaped = std::mem::take(&mut self.reaped);
        self.engine.reap(&mut reaped);
        for (request, result) in reaped.drain(..) {
            if let Some(chain) = self.end(request, result) {
                completed(chain);
            }
        }
        self.reaped = reaped;
    }

    /// How many chains were submitted and are not done (Linux: `blk_mq_queue_inflight`).
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.chains.len() - self.free_chains.len()
    }

    /// Whether nothing is submitted, parked or in flight: the memory of all bios is free (Linux: what
    /// `blk_mq_freeze_queue_wait` waits for).
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.under_way() == 0 && self.done.is_empty()
    }

    /// Whether the queue has to be told what time it is, by [`RequestQueue::advance`].
    #[must_use]
    pub fn has_clock(&self) -> bool {
        self.deadline.is_some() || self.config.on_enospc == OnEnospc::Stop
    }

    /// It is `now`: what the disk has not answered for too long is failed, what waits for space is tried again. To be called
    /// before each batch on a queue that [has a clock](RequestQueue::has_clock), and when it [is due](RequestQueue::wake_at).
    pub fn advance(&mut self, now: Instant) {
        self.now = now;
        self.retry_stopped();
        self.expire();
    }

    /// When [`RequestQueue::advance`] has something to do at the latest.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let expiry = self.deadline.as_ref().filter(|_| self.under_way() > 0).map(Deadline::next_look);
        [expiry, self.retry_at].into_iter().flatten().min()
    }

    /// Whether all that was submitted is answered. The disk may have some of it all the same, if it was failed by a
    /// deadline; then the queue is not [idle](RequestQueue::is_idle).
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.under_way() == self.late() && self.done.is_empty()
    }

    /// Whether something waits for [`RequestQueue::dispatch`] that the engine may take now: not if the last one had to
    /// stop and nothing has come back since. Whoever sleeps while this is true may sleep for ever, as there need not
    /// be anything in flight.
    #[must_use]
    pub fn has_parked(&self) -> bool {
        !self.stalled && self.parked.len() + self.again.len() > 0
    }
}

impl Drop for RequestQueue {
    fn drop(&mut self) {
        self.lower_fence();
        if let Some(Writes { overlaps, writer, .. }) = self.writes.take() {
            // What is in flight holds its blocks until the engine has waited for it.
            self.engine = Box::new(NoEngine);
            overlaps.unregister(writer);
        }
    }
}

/// Stands in for an engine that is gone.
struct NoEngine;

impl Engine for NoEngine {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        Err(request)
    }

    fn reap(&mut self, _done: &mut Vec<(Request, IoResult)>) {}
}

/// The length of a piece, which fits the address space as it is at most [`QueueLimits::BYTES_MAX`].
fn bytes_in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a piece is small")
}

#[cfg(test)]
mod tests;
