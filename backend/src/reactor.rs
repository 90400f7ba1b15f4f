//! What a worker waits on: its io_uring, or epoll where the host has none.
//!
//! Both are edge-triggered for event fds: one event for each time they were written to, and nobody has to read them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use sluice_blk::engine::ring::{Client, DormantRing, Ring, Wait};

/// An event fd was written to.
#[derive(Debug, Clone, Copy)]
pub struct Wake {
    /// Which one.
    pub token: u32,
    /// The kernel watches it no more: it has to be watched again.
    pub ended: bool,
}

/// Waits for event fds, and with io_uring for I/O too.
#[derive(Debug)]
pub enum Reactor {
    /// A ring, which does everything in one system call.
    Uring {
        /// The thread's ring.
        ring: Ring,
        /// The event fds' share of it.
        client: Client,
    },
    /// For hosts without io_uring; engines on such a thread finish at once.
    Epoll(OwnedFd),
}

/// A reactor that no thread uses yet. It may be sent to the one that is to.
#[derive(Debug)]
pub enum DormantReactor {
    /// See [`Reactor::Uring`].
    Uring(Box<DormantRing>),
    /// See [`Reactor::Epoll`].
    Epoll(OwnedFd),
}

impl DormantReactor {
    /// Entries that can be submitted between two system calls.
    const RING_ENTRIES: u32 = 256;

    /// The best that the host has.
    ///
    /// # Errors
    /// When it has not even epoll.
    pub fn new() -> io::Result<Self> {
        match DormantRing::new(Self::RING_ENTRIES) {
            Ok(ring) => Ok(Self::Uring(Box::new(ring))),
            Err(error) => {
                log::warn!("no io_uring on this host ({error}): using epoll");
                Self::epoll()
            }
        }
    }

    /// What every host has: only for engines that finish at once.
    ///
    /// # Errors
    /// When the process has no fd left.
    pub fn epoll() -> io::Result<Self> {
        Ok(Self::Epoll(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// The reactor, for the calling thread.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wake(self) -> io::Result<Reactor> {
        match self {
            Self::Uring(ring) => {
                let ring = ring.wake()?;
                Ok(Reactor::Uring { client: ring.client(64), ring })
            }
            Self::Epoll(poll) => Ok(Reactor::Epoll(poll)),
        }
    }
}

impl Reactor {
    /// The ring, for the engines of this thread.
    #[must_use]
    pub fn ring(&self) -> Option<&Ring> {
        match self {
            Self::Uring { ring, .. } => Some(ring),
            Self::Epoll(_) => None,
        }
    }

    /// Reports `token` each time that an event fd is written to.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn watch(&mut self, fd: BorrowedFd<'_>, token: u32) -> io::Result<()> {
        match self {
            Self::Uring { client, .. } => client.watch(fd, token),
            Self::Epoll(poll) => {
                let data = epoll::EventData::new_u64(u64::from(token));
                Ok(epoll::add(poll, fd, data, epoll::EventFlags::IN | epoll::EventFlags::ET)?)
            }
        }
    }

    /// Reports `token` no more, except for what is on its way.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn unwatch(&mut self, fd: BorrowedFd<'_>, token: u32) -> io::Result<()> {
        match self {
            Self::Uring { client, .. } => client.unwatch(token),
            Self::Epoll(poll) => Ok(epoll::delete(poll, fd)?),
        }
    }

    /// Whether a turn would bring something, as far as that can be told without a system call.
    #[must_use]
    pub fn has_events(&self) -> bool {
        match self {
            Self::Uring { ring, .. } => ring.has_events(),
            Self::Epoll(_) => false,
        }
    }

    /// Submits I/O, and collects what has happened into `wakes`. It may wait until something has.
    ///
    /// # Errors
    /// What the kernel says; the reactor is of no use any more.
    pub fn turn(&mut self, wait: Wait, wakes: &mut Vec<Wake>) -> io::Result<()> {
        match self {
            Self::Uring { ring, client } => {
                ring.enter(wait)?;
                while let Some(event) = client.next_event() {
                    // An error is the end of a watch that was given up.
                    if event.token != Client::UNWATCHED && event.result >= 0 {
                        wakes.push(Wake { token: event.token, ended: !event.more });
                    }
                }
                Ok(())
            }
            Self::Epoll(poll) => turn_epoll(poll.as_fd(), wait, wakes),
        }
    }
}

fn turn_epoll(poll: BorrowedFd<'_>, wait: Wait, wakes: &mut Vec<Wake>) -> io::Result<()> {
    let mut ready = Vec::with_capacity(64);
    let time = match wait {
        Wait::No => Some(Duration::ZERO),
        Wait::Forever => None,
        Wait::For(time) => Some(time),
    };
    let time = time.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
    match epoll::wait(poll, rustix::buffer::spare_capacity(&mut ready), time.as_ref()) {
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    for event in ready {
        let event: epoll::Event = event;
        // The token was put in as a u32.
        wakes.push(Wake { token: u32::try_from(event.data.u64()).unwrap_or(u32::MAX), ended: false });
    }
    Ok(())
}
