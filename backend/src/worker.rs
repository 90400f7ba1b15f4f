//! A thread that serves rings: its services, its io_uring, and the commands it takes from control threads.
//!
//! A worker owns everything it touches; what reaches it from outside comes as a [`Command`] through its mailbox. In a turn
//! each ring that is not at rest does a share of its work, and one system call submits the I/O of all of them. When
//! nothing is to be done, a worker looks for a while whether something comes up (`pace`). Then it asks all drivers to
//! kick, and sleeps: an idle disk costs nothing.
//!
//! ```text
//!  serve: a turn of each ring  <──────────────┐
//!    │                                        │
//!  collect: submit, take events ── some ──────┤
//!    │ none                                   │
//!  look at rings and events ────── some ──────┤
//!    │ none for long enough                   │
//!  arm: kick, drivers! ─────────── some ──────┤
//!    │ none                                   │
//!  sleep ─────────────────────────────────────┘
//! ```

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use rustix::thread::sched_yield;
use sluice_blk::engine::ring::Wait;
use sluice_blk::overlap::Wake as WakeQueue;

use crate::call::SignalRings;
use crate::pace::Pace;
use crate::reactor::{Reactor, Wake};
use crate::service::{Service, ServiceSetup, StartError};

pub use self::mailbox::{Command, Mailbox, RingId, Stopped};

mod mailbox;

/// A ring of this worker's.
#[derive(Debug)]
struct Served {
    service: Service,
    token: u32,
    /// It is among those that have a turn.
    active: bool,
    /// How many turns it has had since there was something to do.
    idle_turns: u32,
    /// It has no turn before it is told to go.
    held_back: bool,
    /// Who wants to know when it has stopped.
    stopping: Option<Sender<Stopped>>,
}

impl Served {
    /// After so many turns without work a ring is looked at no more, its driver kicks, also when the other rings keep the
    /// worker awake.
    const IDLE_TURNS: u32 = 1024;

    /// Returns whether there may be more at once.
    fn turn(&mut self) -> bool {
        if self.is_held_back() {
            return false;
        }
        let mut more = self.service.turn(self.stopping.is_some());
        self.idle_turns = if more { 0 } else { self.idle_turns.saturating_add(1) };
        if self.idle_turns > Self::IDLE_TURNS && self.stopping.is_none() {
            more |= self.service.arm();
        }
        more
    }

    fn is_at_rest(&self) -> bool {
        self.is_held_back() || self.stopping.is_none() && self.service.is_at_rest()
    }

    fn is_held_back(&self) -> bool {
        self.held_back && self.stopping.is_none()
    }
}

/// A worker: to be run on its own thread.
#[derive(Debug)]
pub struct Worker {
    // Before the reactor: a service waits for its I/O with the reactor's ring when it is dropped.
    /// In the order of their tokens.
    rings: Vec<Served>,
    /// Which of them have turns: all that are not at rest.
    active: Vec<usize>,
    /// Rings that were stopped, and of which the disk has not answered all. They are kept until it has.
    late: Vec<Service>,
    reactor: Reactor,
    signals: Arc<SignalRings>,
    pace: Pace,
    wakes: Vec<Wake>,
    mailbox: Arc<Mailbox>,
    next_token: u32,
    exit: bool,
}

impl Worker {
    /// The mailbox's token; rings have those below.
    const MAILBOX: u32 = u32::MAX - 1;

    /// A worker for the calling thread, which waits on `reactor`, calls drivers with `signals`, and stays awake for up to
    /// `poll_max` for work that may come soon.
    ///
    /// # Errors
    /// When the kernel cannot watch the mailbox.
    pub fn new(
        mailbox: Arc<Mailbox>,
        mut reactor: Reactor,
        signals: Arc<SignalRings>,
        poll_max: Duration,
    ) -> io::Result<Self> {
        reactor.watch(mailbox.event.as_fd(), Self::MAILBOX)?;
        Ok(Self {
            rings: Vec::new(),
            active: Vec::new(),
            late: Vec::new(),
            reactor,
            signals,
            pace: Pace::new(poll_max),
            wakes: Vec::with_capacity(64),
            mailbox,
            next_token: 0,
            exit: false,
        })
    }

    /// Serves rings until it is told to exit.
    ///
    /// # Errors
    /// When the kernel fails the worker: then it serves nothing any more.
    pub fn run(mut self) -> io::Result<()> {
        let _guard = AbortOnPanic;
        while !self.exit {
            let mut more = self.serve();
            more |= self.collect(Wait::No)?;
            if !more && !self.has_work() {
                self.rest()?;
            }
        }
        // The kernel may yet write to their memory: it is left as it is. The process is about to end.
        std::mem::forget(std::mem::take(&mut self.late));
        self.reactor.unwatch(self.mailbox.event.as_fd(), Self::MAILBOX)
    }

    /// A turn of each ring that is not at rest. Returns whether there may be more at once.
    fn serve(&mut self) -> bool {
        let (mut more, mut stopped) = (false, false);
        let rings = &mut self.rings;
        self.active.retain(|index| {
            let ring = &mut rings[*index];
            more |= ring.turn();
            stopped |= ring.stopping.is_some() && ring.service.is_answered();
            ring.active = !ring.is_at_rest();
            ring.active
        });
        if stopped {
            self.let_go();
        }
        self.late.retain_mut(|service| !service.has_landed());
        more
    }

    /// Submits I/O and takes what has happened; it may wait until something has. Returns whether any event fd was written to.
    fn collect(&mut self, wait: Wait) -> io::Result<bool> {
        let mut wakes = std::mem::take(&mut self.wakes);
        self.reactor.turn(wait, &mut wakes)?;
        let any = !wakes.is_empty();
        for wake in wakes.drain(..) {
            self.wake(wake)?;
        }
        self.wakes = wakes;
        Ok(any)
    }

    /// Whether there is something to do, as far as that can be told without a system call.
    fn has_work(&self) -> bool {
        has_work(&self.reactor, &self.rings, &self.active)
    }

    /// There is nothing to do: looks for a while whether something comes up, then sleeps until it does.
    fn rest(&mut self) -> io::Result<()> {
        let Self { reactor, rings, active, pace, .. } = self;
        let io = active.iter().any(|index| !rings[*index].service.is_idle());
        let wait = Pace::begin(io);
        if !pace.look(&wait, || has_work(reactor, rings, active), sched_yield) && !self.arm() {
            self.collect(self.patience())?;
            self.pace.end(&wait);
        }
        Ok(())
    }

    /// How long it may sleep.
    fn patience(&self) -> Wait {
        let times = self.active.iter().filter_map(|index| self.rings[*index].service.wake_at());
        times.min().map_or(Wait::Forever, |at| Wait::For(at.saturating_duration_since(Instant::now())))
    }

    /// Asks all drivers to kick. Returns whether one has something already.
    fn arm(&mut self) -> bool {
        let mut some = false;
        for index in &self.active {
            some |= self.rings[*index].service.arm();
        }
        some
    }

    fn wake(&mut self, wake: Wake) -> io::Result<()> {
        if wake.token == Self::MAILBOX {
            if wake.ended {
                self.reactor.watch(self.mailbox.event.as_fd(), Self::MAILBOX)?;
            }
            for command in self.mailbox.take() {
                self.obey(command);
            }
        } else if let Some(index) = self.find(wake.token) {
            let ring = &mut self.rings[index];
            if wake.ended {
                self.reactor.watch(ring.service.kick_fd().as_fd(), ring.token)?;
            }
            ring.service.disarm();
            self.activate(index);
        }
        Ok(())
    }

    fn find(&self, token: u32) -> Option<usize> {
        self.rings.binary_search_by_key(&token, |ring| ring.token).ok()
    }

    /// Gives a ring turns, until it is at rest.
    fn activate(&mut self, index: usize) {
        if !std::mem::replace(&mut self.rings[index].active, true) {
            self.active.push(index);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start(setup, reply) => {
                // The sender waits for the answer; if it is gone, so is its session, and the ring is stopped next.
                let _ = reply.send(self.start(*setup));
            }
            Command::Stop(id, reply) => {
                if let Some(index) = self.find(id.0) {
                    self.rings[index].stopping = Some(reply);
                    self.activate(index);
                }
            }
            Command::Go(id) => {
                if let Some(index) = self.find(id.0) {
                    self.rings[index].held_back = false;
                    self.activate(index);
                }
            }
            Command::SetCall(id, call, reply) => {
                if let Some(index) = self.find(id.0) {
                    self.rings[index].service.set_call(call);
                }
                let _ = reply.send(());
            }
            Command::Exit => self.exit = true,
        }
    }

    fn start(&mut self, setup: ServiceSetup) -> Result<RingId, StartError> {
        let wake = Arc::clone(&self.mailbox) as Arc<dyn WakeQueue>;
        let held_back = setup.held_back;
        let service = Service::start(setup, self.reactor.ring(), wake, &self.signals)?;
        let (token, index) = self.free_token();
        self.reactor.watch(service.kick_fd().as_fd(), token).map_err(StartError::Host)?;
        let idle_turns = 0;
        self.rings
            .insert(index, Served { service, token, active: false, idle_turns, held_back, stopping: None });
        self.renumber();
        Ok(RingId(token))
    }

    /// A token that no ring has, not even one of those that were stopped lately, and the place of its ring.
    fn free_token(&mut self) -> (u32, usize) {
        loop {
            let token = self.next_token;
            self.next_token = (token + 1) % Self::MAILBOX;
            if let Err(index) = self.rings.binary_search_by_key(&token, |ring| ring.token) {
                return (token, index);
            }
        }
    }

    /// Rings have come or gone: all have a turn, and those at rest will be found to be so.
    fn renumber(&mut self) {
        self.active.clear();
        self.active.extend(0..self.rings.len());
        self.rings.iter_mut().for_each(|ring| ring.active = true);
    }

    /// Lets go of the rings that were to be stopped and have answered everything.
    fn let_go(&mut self) {
        let done = |ring: &mut Served| ring.stopping.is_some() && ring.service.is_answered();
        for ring in self.rings.extract_if(.., done) {
            let unwatched = self.reactor.unwatch(ring.service.kick_fd().as_fd(), ring.token);
            if let Err(error) = unwatched {
                log::error!("cannot give up a kick fd: {error}");
            }
            let Served { service, stopping, .. } = ring;
            let stopped = Stopped { next_avail: service.next_avail(), broken: service.is_broken() };
            // Everything of the ring is gone before its front-end hears of it, but for what the disk still has to answer.
            if service.is_idle() {
                drop(service);
            } else {
                self.late.push(service);
            }
            if let Some(reply) = stopping {
                let _ = reply.send(stopped);
            }
        }
        self.renumber();
    }
}

fn has_work(reactor: &Reactor, rings: &[Served], active: &[usize]) -> bool {
    reactor.has_events() || active.iter().any(|index| rings[*index].service.has_heads())
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

/// A worker that panics has found a mistake of ours. Without it its guests would wait for ever, in a daemon that looks
/// well; a daemon that ends is started again.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            log::error!("a worker has panicked");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests;
