//! Signalling an event fd without ever waiting, however full it is.
//!
//! The kernel signals an event fd when something completes on an io_uring that the fd is registered with
//! (io_uring_register(2), `IORING_REGISTER_EVENTFD`), and does not wait where a write(2) would. So each fd gets a ring of
//! one entry, and to signal it is to submit an operation that does nothing: one system call, as a write is.
#![expect(unsafe_code, reason = "puts an entry that points to no memory into a kernel ring")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode};

/// A ring on which each completion signals an event fd.
pub struct SignalRing(IoUring);

impl std::fmt::Debug for SignalRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignalRing")
    }
}

impl SignalRing {
    /// A ring that signals `event_fd`, which the kernel holds open from now on.
    ///
    /// # Errors
    /// When the host has no io_uring, or it is no event fd.
    pub fn new(event_fd: BorrowedFd<'_>) -> io::Result<Self> {
        let ring = IoUring::builder().setup_cqsize(2).build(1)?;
        ring.submitter().register_eventfd(event_fd.as_raw_fd())?;
        Ok(Self(ring))
    }

    /// Signals the event fd.
    ///
    /// # Errors
    /// What io_uring_enter(2) says; then it was not signalled.
    pub fn signal(&mut self) -> io::Result<()> {
        let nothing = opcode::Nop::new().build();
        // SAFETY: an operation that does nothing points to no memory.
        let pushed = unsafe { self.0.submission().push(&nothing) };
        // There is no room if the kernel did not take the last one: then it takes that one now.
        drop(pushed);
        self.0.submit()?;
        self.0.completion().for_each(drop);
        Ok(())
    }
}
