//! A thread that serves rings: its services, its io_uring, and the commands it takes from control threads.
//!
//! A worker owns everything it touches; what reaches it from outside comes as a [`Command`] through its mailbox. One
//! system call per turn submits the I/O of all its rings and waits for whatever happens next. When nothing happens, a
//! worker sleeps: an idle disk costs nothing.

use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

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
    /// Serve a ring no more: answered with its next available index when nothing of it is in flight.
    Stop(RingId, Sender<u16>),
    /// Call the driver of a ring by another fd.
    SetCall(RingId, Option<std::fs::File>),
    /// End the thread. All rings were stopped.
    Exit,
}

/// Where commands for a worker are put.
#[derive(Debug)]
pub struct Mailbox {
    commands: Mutex<Vec<Command>>,
    event: Event,
}

impl Mailbox {
    /// An empty mailbox.
    ///
    /// # Errors
    /// When there is no event fd to be had.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { commands: Mutex::default(), event: Event::new()? }))
    }

    /// Puts a command in and wakes the worker.
    pub fn send(&self, command: Command) {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner).push(command);
        self.event.notify();
    }

    fn take(&self) -> Vec<Command> {
        std::mem::take(&mut self.commands.lock().unwrap_or_else(PoisonError::into_inner))
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
    stopping: Option<Sender<u16>>,
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

    /// A worker for the calling thread.
    ///
    /// # Errors
    /// When the kernel has neither io_uring nor epoll for it.
    pub fn new(mailbox: Arc<Mailbox>) -> io::Result<Self> {
        let mut reactor = Reactor::new()?;
        reactor.watch(mailbox.event.as_fd(), Self::MAILBOX)?;
        Ok(Self { rings: Vec::new(), reactor, mailbox, next_token: 0, exit: false })
    }

    /// Serves rings until it is told to exit.
    ///
    /// # Errors
    /// When the kernel fails the worker: then it serves nothing any more.
    pub fn run(mut self) -> io::Result<()> {
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
            Command::SetCall(id, call) => {
                if let Some(ring) = self.rings.iter_mut().find(|ring| ring.token == id.0) {
                    ring.service.set_call(call);
                }
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
            let next_avail = ring.service.next_avail();
            // Everything of the ring is gone before its front-end hears of it.
            drop(ring.service);
            if let Some(reply) = ring.stopping {
                let _ = reply.send(next_avail);
            }
        }
        any
    }
}
