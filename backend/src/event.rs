//! An event between threads of the daemon: an event fd that never blocks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

/// Something that may have happened. Readable once it has.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// An event that has not happened.
    ///
    /// # Errors
    /// When the process has no fd left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// It has not happened.
    pub(crate) fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }

    /// It happens.
    pub fn notify(&self) {
        // Fails only when it has happened 2^64 - 2 times and nobody cared.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
