//! A thread that serves rings: its services, its io_uring, and the commands it takes from control threads.
//!
//! A worker owns everything it touches; what reaches it from outside comes as a [`Command`] through its mailbox. One
//! system call per turn submits the I/O of all its rings and waits for whatever happens next. When nothing happens, a
//! worker sleeps: an idle disk costs nothing.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sluice_blk::overlap::Wake as WakeQueue;

use crate::event::Event;
use crate::reactor::{Reactor, Wake};
use crate::service::{Service, ServiceSetup, StartError};

/// Which ring of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingId(u32);

/// What a control thread wants of a worker.
#[derive(Debug)]
pub enum Command {
    /// Serve a ring.
    Start(Box<ServiceSetup>, Sender<Result<RingId, StartError>>),
    /// Serve a ring no more: answered when nothing of it is in flight.
    Stop(RingId, Sender<Stopped>),
    /// Call the driver of a ring by another fd: answered when the old one is not used any more.
    SetCall(RingId, Option<Arc<File>>, Sender<()>),
    /// End the thread. All rings were stopped.
    Exit,
}

/// How a ring was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stopped {
    /// The index of the next available entry.
    pub next_avail: u16,
    /// The driver has broken it.
    pub broken: bool,
}

/// Where commands for a worker are put.
#[derive(Debug)]
pub struct Mailbox {
    /// None when the worker has ended: commands are dropped then, and whoever waits for an answer hears of it.
    commands: Mutex<Option<Vec<Command>>>,
    event: Event,
}

impl Mailbox {
    /// An empty mailbox.
    ///
    /// # Errors
    /// When there is no event fd to be had.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { commands: Mutex::new(Some(Vec::new())), event: Event::new()? }))
    }

    /// Puts a command in and wakes the worker.
    pub fn send(&self, command: Command) {
        if let Some(commands) = &mut *self.lock() {
            commands.push(command);
        }
        self.event.notify();
    }

    fn take(&self) -> Vec<Command> {
        self.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    fn close(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Command>>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WakeQueue for Mailbox {
    /// An empty mailbox makes the worker look at all of its rings, too.
    fn wake(&self) {
        self.event.notify();
    }
}

/// A ring of this worker's.
#[derive(Debug)]
struct Served {
    service: Service,
    token: u32,
    /// Who wants to know when it has stopped.
    stopping: Option<Sender<Stopped>>,
}

/// A worker: to be run on its own thread.
#[derive(Debug)]
pub struct Worker {
    // Before the reactor: a service waits for its I/O with the reactor's ring when it is dropped.
    rings: Vec<Served>,
    reactor: Reactor,
    mailbox: Arc<Mailbox>,
    next_token: u32,
    exit: bool,
}

impl Worker {
    /// The mailbox's token; rings have those below.
    const MAILBOX: u32 = u32::MAX - 1;

    /// A worker for the calling thread, which waits on `reactor`.
    ///
    /// # Errors
    /// When the kernel cannot watch the mailbox.
    pub fn new(mailbox: Arc<Mailbox>, mut reactor: Reactor) -> io::Result<Self> {
        reactor.watch(mailbox.event.as_fd(), Self::MAILBOX)?;
        Ok(Self { rings: Vec::new(), reactor, mailbox, next_token: 0, exit: false })
    }

    /// Serves rings until it is told to exit.
    ///
    /// # Errors
    /// When the kernel fails the worker: then it serves nothing any more.
    pub fn run(mut self) -> io::Result<()> {
        let _guard = AbortOnPanic;
        let mut wakes = Vec::with_capacity(64);
        while !self.exit {
            let mut more = false;
            for ring in &mut self.rings {
                more |= ring.service.turn(ring.stopping.is_some());
            }
            more |= self.finish_stopped();
            self.reactor.turn(!more, &mut wakes)?;
            for wake in wakes.drain(..) {
                self.wake(wake)?;
            }
        }
        self.reactor.unwatch(self.mailbox.event.as_fd(), Self::MAILBOX)
    }

    fn wake(&mut self, wake: Wake) -> io::Result<()> {
        if wake.token == Self::MAILBOX {
            if wake.ended {
                self.reactor.watch(self.mailbox.event.as_fd(), Self::MAILBOX)?;
            }
            for command in self.mailbox.take() {
                self.obey(command);
            }
        } else if let Some(ring) = self.rings.iter_mut().find(|ring| ring.token == wake.token) {
            if wake.ended {
                self.reactor.watch(ring.service.kick_fd().as_fd(), ring.token)?;
            }
            ring.service.kicked();
        }
        Ok(())
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Start(setup, reply) => {
                // The sender waits for the answer; if it is gone, so is its session, and the ring is stopped next.
                let _ = reply.send(self.start(*setup));
            }
            Command::Stop(id, reply) => {
                if let Some(ring) = self.rings.iter_mut().find(|ring| ring.token == id.0) {
                    ring.stopping = Some(reply);
                }
            }
            Command::SetCall(id, call, reply) => {
                if let Some(ring) = self.rings.iter_mut().find(|ring| ring.token == id.0) {
                    ring.service.set_call(call);
                }
                let _ = reply.send(());
            }
            Command::Exit => self.exit = true,
        }
    }

    fn start(&mut self, setup: ServiceSetup) -> Result<RingId, StartError> {
        let service =
            Service::start(setup, self.reactor.ring(), Arc::clone(&self.mailbox) as Arc<dyn WakeQueue>)?;
        let token = self.next_token;
        self.reactor.watch(service.kick_fd().as_fd(), token).map_err(StartError::Host)?;
        self.next_token = (token + 1) % Self::MAILBOX;
        self.rings.push(Served { service, token, stopping: None });
        Ok(RingId(token))
    }

    /// Lets go of the rings that were to be stopped and have nothing in flight. Returns whether there were any.
    fn finish_stopped(&mut self) -> bool {
        let done = |ring: &mut Served| ring.stopping.is_some() && ring.service.is_idle();
        let mut any = false;
        for ring in self.rings.extract_if(.., done) {
            any = true;
            let unwatched = self.reactor.unwatch(ring.service.kick_fd().as_fd(), ring.token);
            if let Err(error) = unwatched {
                log::error!("cannot give up a kick fd: {error}");
            }
            let Served { service, stopping, .. } = ring;
            let stopped = Stopped { next_avail: service.next_avail(), broken: service.is_broken() };
            // Everything of the ring is gone before its front-end hears of it.
            drop(service);
            if let Some(reply) = stopping {
                let _ = reply.send(stopped);
            }
        }
        any
    }
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
