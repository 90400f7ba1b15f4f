//! A thread's io_uring, shared by everything that waits on that thread.
//!
//! One ring per thread, one system call per batch, however many queues and event fds the thread serves: each of them
//! is a [`Client`] with completions of its own. The ring is set up as its use allows: one thread submits
//! (`SINGLE_ISSUER`), completions are posted when that thread asks for them (`DEFER_TASKRUN`, `TASKRUN_FLAG`), and a
//! failed submission does not hold up the rest (`SUBMIT_ALL`). Kernels before 6.1 get a plain ring, before 5.19 none. What
//! it is not used for, it is not let do ([`DormantRing`]).
#![expect(unsafe_code, reason = "puts entries into the kernel's submission ring")]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};
use rustix::event::PollFlags;

mod dormant;
mod trial;

pub use dormant::DormantRing;
pub use trial::Attempt;

/// What became of one entry.
#[derive(Debug, Clone, Copy)]
pub struct Event {
    /// The number that the client gave to the entry.
    pub token: u32,
    /// What the system call would have returned: a count, or an error as a negative number.
    pub result: i32,
    /// Whether more events of the same entry will come (multishot).
    pub more: bool,
}

/// Whether, and for how long, a thread waits for something to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until something has happened.
    Forever,
    /// For so long at most.
    For(Duration),
}

/// A thread's ring. Cloning gives another handle to it.
#[derive(Clone)]
pub struct Ring(Rc<RefCell<Inner>>);

struct Inner {
    uring: IoUring,
    /// Events that have come and were not yet taken, by client.
    events: Vec<VecDeque<Event>>,
    /// How many those are together.
    untaken: usize,
    /// How many entries have not had their last event, and how many of them are watches, which never have it by themselves.
    in_kernel: usize,
    watches: usize,
    free_slots: Vec<u32>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ring")
    }
}

impl Ring {
    /// A ring for the calling thread with room for `entries` submissions between two [`Ring::enter`]s; more are
    /// possible and cost a system call.
    ///
    /// # Errors
    /// When the kernel has no io_uring or does not allow it.
    pub fn new(entries: u32) -> io::Result<Self> {
        DormantRing::new(entries)?.wake()
    }

    fn of(ring: DormantRing) -> Self {
        let inner = Inner {
            uring: ring.uring,
            events: Vec::new(),
            untaken: 0,
            in_kernel: 0,
            watches: 0,
            free_slots: Vec::new(),
        };
        Self(Rc::new(RefCell::new(inner)))
    }

    /// A new client of this ring, which may have up to `depth` events waiting without allocating.
    #[must_use]
    pub fn client(&self, depth: usize) -> Client {
        let mut inner = self.0.borrow_mut();
        let slot = inner.free_slots.pop().unwrap_or_else(|| {
            inner.events.push(VecDeque::new());
            u32::try_from(inner.events.len() - 1).expect("fewer clients than 2^32")
        });
        let events = &mut inner.events[slot as usize];
        events.clear();
        events.reserve(depth);
        Client { ring: self.clone(), slot, in_kernel: 0, watches: Vec::new() }
    }

    /// Whether there are events to take, or a [`Ring::enter`] would bring some. Costs no system call.
    #[must_use]
    pub fn has_events(&self) -> bool {
        let mut inner = self.0.borrow_mut();
        inner.untaken > 0 || !inner.uring.completion().is_empty() || inner.wants_enter()
    }

    /// Submits what was pushed and collects what has finished. It may wait until there is an event to take: one that a client
    /// has not taken yet will do, so that none is slept over.
    ///
    /// # Errors
    /// What io_uring_enter(2) says, but for interruptions, the end of a wait, and a momentary lack of memory.
    pub fn enter(&self, wait: Wait) -> io::Result<()> {
        let mut inner = self.0.borrow_mut();
        let wait = if inner.untaken == 0 { wait } else { Wait::No };
        inner.enter(wait)
    }
}

impl Inner {
    /// After a wait the kernel is asked so many times for more that is finished: enough for 160 events.
    const CALLS_AFTER_WAIT: usize = 8;

    /// How often an entry that has to be submitted is tried.
    const TRIES_MAX: usize = 100;

    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        // What is there already needs no waiting.
        let wait = if self.uring.completion().is_empty() { wait } else { Wait::No };
        if wait != Wait::No || self.wants_enter() {
            self.submit_and_wait(wait)?;
        }
        // A wait brings as many events as it asks for, and others call 20 at most; what else is there is flagged.
        let calls = if wait == Wait::No { 0 } else { Self::CALLS_AFTER_WAIT };
        for _ in 0..calls {
            if !self.wants_enter() {
                break;
            }
            self.submit_and_wait(Wait::No)?;
        }
        self.collect();
        Ok(())
    }

    /// Submits everything that was pushed.
    fn submit_all(&mut self) -> io::Result<()> {
        // More than one try takes a lack of memory, or a full completion ring of an old kernel.
        for _ in 0..Self::TRIES_MAX {
            self.enter(Wait::No)?;
            if self.uring.submission().is_empty() {
                return Ok(());
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn submit_and_wait(&mut self, wait: Wait) -> io::Result<()> {
        match self.call_kernel(wait) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::ETIME)) => Ok(()),
            // Completions are to be taken first, or memory is short for a moment: the caller comes again.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN)) => Ok(()),
            result => result,
        }
    }

    fn call_kernel(&mut self, wait: Wait) -> io::Result<()> {
        let is_idle = wait != Wait::No && self.in_kernel == self.watches;
        if wait == Wait::No || (wait == Wait::Forever && !is_idle) {
            return self.uring.submit_and_wait(usize::from(wait != Wait::No)).map(|_| ());
        }
        // Linux takes a wait with entries in the kernel for one for I/O: unless it is told, a thread that waits for event
        // fds shows in the system's iowait, and in /proc/pressure/io, as if a disk held it up. Before 6.15 it cannot be
        // told, and poll(2) does not wake for what a ring like this has to do.
        let mut flags = EnterFlags::GETEVENTS;
        if is_idle && self.uring.params().is_feature_no_iowait() {
            flags |= EnterFlags::NO_IOWAIT;
        }
        let count = u32::try_from(self.uring.submission().len()).unwrap_or(u32::MAX);
        let submitter = self.uring.submitter();
        let Wait::For(time) = wait else {
            // SAFETY: the entries are sound, as `push` demands, and there is no argument beside the flags.
            return unsafe { submitter.enter::<libc::sigset_t>(count, 1, flags.bits(), None) }.map(|_| ());
        };
        let time = types::Timespec::from(time);
        let args = types::SubmitArgs::new().timespec(&time);
        flags |= EnterFlags::EXT_ARG;
        // SAFETY: as above, and the argument is the one that EXT_ARG asks for.
        unsafe { submitter.enter(count, 1, flags.bits(), Some(&args)) }.map(|_| ())
    }

    /// Whether the kernel has something to take, or to do for us.
    fn wants_enter(&mut self) -> bool {
        let submission = self.uring.submission();
        !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
    }

    fn collect(&mut self) {
        for entry in self.uring.completion() {
            let (slot, token) = split_user_data(entry.user_data());
            let event = Event { token, result: entry.result(), more: cqueue::more(entry.flags()) };
            self.events[slot as usize].push_back(event);
            self.untaken += 1;
        }
    }
}

fn split_user_data(user_data: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = user_data.to_be_bytes();
    (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}

/// A user of a ring: pushes entries and takes their events.
///
/// Dropping it ends its watches and waits until none of its entries is in the kernel any more.
#[derive(Debug)]
pub struct Client {
    ring: Ring,
    slot: u32,
    in_kernel: usize,
    /// The tokens of its watches, which never end by themselves.
    watches: Vec<u32>,
}

impl Client {
    /// The token of events that answer [`Client::unwatch`].
    pub const UNWATCHED: u32 = u32::MAX;

    /// Pushes an entry, whose events will carry `token`. It reaches the kernel with the next [`Ring::enter`].
    ///
    /// # Errors
    /// When the submission ring is full and the kernel takes nothing from it.
    ///
    /// # Safety
    /// What the entry points to must stay valid until its last event was taken.
    pub unsafe fn push(&mut self, entry: squeue::Entry, token: u32) -> io::Result<()> {
        let entry = entry.user_data(self.user_data(token));
        let mut inner = self.ring.0.borrow_mut();
        if inner.uring.submission().is_full() {
            inner.enter(Wait::No)?;
        }
        // SAFETY: the caller vouches for what the entry points to.
        let pushed = unsafe { inner.uring.submission().push(&entry) };
        pushed.map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        inner.in_kernel += 1;
        self.in_kernel += 1;
        Ok(())
    }

    /// Asks for an event with `token` each time that `fd` becomes readable or, being an event fd, is written to; it
    /// never needs to be read.
    ///
    /// # Errors
    /// As [`Client::push`].
    pub fn watch(&mut self, fd: BorrowedFd<'_>, token: u32) -> io::Result<()> {
        let events = u32::from(PollFlags::IN.bits());
        let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events).multi(true).build();
        // SAFETY: the entry points to no memory. The file is looked up before the call returns.
        unsafe { self.push(entry, token) }?;
        self.watches.push(token);
        let mut inner = self.ring.0.borrow_mut();
        inner.watches += 1;
        inner.submit_all()
    }

    /// Asks for no more events with `token`. The last one comes soon; the request itself answers with
    /// [`Client::UNWATCHED`].
    ///
    /// # Errors
    /// As [`Client::push`].
    pub fn unwatch(&mut self, token: u32) -> io::Result<()> {
        // Not PollRemove, which fails when an event is on its way at this moment.
        let entry = opcode::AsyncCancel::new(self.user_data(token)).build();
        // SAFETY: the entry points to no memory.
        unsafe { self.push(entry, Self::UNWATCHED) }
    }

    fn user_data(&self, token: u32) -> u64 {
        u64::from(self.slot) << 32 | u64::from(token)
    }

    /// Takes the next event.
    pub fn next_event(&mut self) -> Option<Event> {
        let mut inner = self.ring.0.borrow_mut();
        let event = inner.events[self.slot as usize].pop_front()?;
        inner.untaken -= 1;
        if !event.more {
            inner.in_kernel -= 1;
            self.in_kernel -= 1;
            let before = self.watches.len();
            self.watches.retain(|token| *token != event.token);
            inner.watches -= before - self.watches.len();
        }
        Some(event)
    }

    /// How many entries have not had their last event.
    #[must_use]
    pub fn in_kernel(&self) -> usize {
        self.in_kernel
    }

    /// Waits until something finishes, this client's or another's, unless this client has an event to take already.
    ///
    /// # Errors
    /// What [`Ring::enter`] says.
    pub fn wait(&self) -> io::Result<()> {
        let mut inner = self.ring.0.borrow_mut();
        let wait = if inner.events[self.slot as usize].is_empty() { Wait::Forever } else { Wait::No };
        inner.enter(wait)
    }

    /// Waits because without that nothing can go on.
    fn wait_or_abort(&self) {
        if self.wait().is_err() {
            // The kernel does not tell any more what it still has: the memory must stay.
            log::error!("a ring failed with {} entries in flight: stopping", self.in_kernel);
            std::process::abort();
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let watches = std::mem::take(&mut self.watches);
        self.ring.0.borrow_mut().watches -= watches.len();
        for token in watches {
            while self.unwatch(token).is_err() {
                self.wait_or_abort();
            }
        }
        while self.in_kernel > 0 {
            if self.next_event().is_none() {
                self.wait_or_abort();
            }
        }
        self.ring.0.borrow_mut().free_slots.push(self.slot);
    }
}
