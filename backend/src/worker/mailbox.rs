//! What control threads want of a worker, and how they tell it.
//!
//! A command is put into the worker's mailbox, whose event wakes it where it waits for everything else. Who wants an answer says
//! where it is to go, and hears of it when the worker has ended instead: so nobody waits for ever. The mailbox is locked for as
//! long as a push or a swap takes, so a worker does not wait for a control thread.

use std::fs::File;
use std::io;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sluice_blk::overlap::Wake as WakeQueue;

use crate::event::Event;
use crate::service::{ServiceSetup, StartError};

/// Where commands for a worker are put.
#[derive(Debug)]
pub struct Mailbox {
    /// None when the worker has ended: commands are dropped then, and whoever waits for an answer hears of it.
    commands: Mutex<Option<Vec<Command>>>,
    pub(super) event: Event,
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

    pub(super) fn take(&self) -> Vec<Command> {
        self.lock().as_mut().map(std::mem::take).unwrap_or_default()
    }

    pub(super) fn close(&self) {
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

/// What a control thread wants of a worker.
#[derive(Debug)]
pub enum Command {
    /// Serve a ring.
    Start(Box<ServiceSetup>, Sender<Result<RingId, StartError>>),
    /// Serve a ring that was held back.
    Go(RingId),
    /// Serve a ring no more: answered when all of its requests are.
    Stop(RingId, Sender<Stopped>),
    /// Call the driver of a ring by another fd: answered when the old one is not used any more.
    SetCall(RingId, Option<Arc<File>>, Sender<()>),
    /// End the thread. All rings were stopped.
    Exit,
}

/// Which ring of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingId(pub(super) u32);

/// How a ring was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stopped {
    /// The index of the next available entry.
    pub next_avail: u16,
    /// The driver has broken it.
    pub broken: bool,
}
