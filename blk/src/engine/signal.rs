//! Signalling an event fd without ever waiting, however full it is.
//!
//! The kernel signals an event fd when something completes on an io_uring that the fd is registered with
//! (io_uring_register(2), `IORING_REGISTER_EVENTFD`), and does not wait where a write(2) would. So each fd gets a ring of
//! one entry, and to signal it is to submit an operation that does nothing: one system call, as a write is.
//!
//! Such a ring can be made before there is an fd for it, when a process may still make rings, and used for one fd after
//! another. It is let do nothing else.
#![expect(unsafe_code, reason = "puts an entry that points to no memory into a kernel ring")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode};

/// `IORING_REGISTER_EVENTFD` and `IORING_UNREGISTER_EVENTFD` of io_uring_register(2).
const REGISTER_EVENTFD: u8 = 4;
const UNREGISTER_EVENTFD: u8 = 5;

/// A ring on which each completion signals an event fd, if it has one.
pub struct SignalRing(IoUring);

impl std::fmt::Debug for SignalRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SignalRing")
    }
}

impl SignalRing {
    /// A ring that signals nothing yet.
    ///
    /// # Errors
    /// When the host has no io_uring.
    pub fn new() -> io::Result<Self> {
        let ring = IoUring::builder().setup_r_disabled().setup_cqsize(2).build(1)?;
        let [nop, register, unregister] = [
            Restriction::sqe_op(opcode::Nop::CODE),
            Restriction::register_op(REGISTER_EVENTFD),
            Restriction::register_op(UNREGISTER_EVENTFD),
        ];
        ring.submitter().register_restrictions(&mut [nop, register, unregister])?;
        ring.submitter().register_enable_rings()?;
        Ok(Self(ring))
    }

    /// Signals `event_fd` from now on, which the kernel holds open until [`SignalRing::release`].
    ///
    /// # Errors
    /// When it is no event fd.
    pub fn bind(&mut self, event_fd: BorrowedFd<'_>) -> io::Result<()> {
        self.0.submitter().register_eventfd(event_fd.as_raw_fd())
    }

    /// Signals nothing any more.
    ///
    /// # Errors
    /// When it did not.
    pub fn release(&mut self) -> io::Result<()> {
        self.0.submitter().unregister_eventfd()
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
