//! The wish to end: SIGTERM and SIGINT as a descriptor that becomes readable.
//!
//! The first signal asks for a clean end. The second ends the process at once with exit code 1: a disk that hangs must
//! not keep anyone from ending the daemon. SIGPIPE needs nothing, Rust's runtime ignores it from the start.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

/// What a wait ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// A signal asks for the end.
    Stop,
    /// The other descriptor of this index is readable.
    Ready(usize),
}

/// The signals that ask for the end, from the moment that this exists.
#[derive(Debug)]
pub(crate) struct StopSignals {
    arrived: UnixStream,
}

impl StopSignals {
    /// Takes over the signals; to be called before there is something that an untimely end would leave behind.
    pub(crate) fn install() -> io::Result<Self> {
        let (arrived, sender) = UnixStream::pair()?;
        for signal in [SIGTERM, SIGINT] {
            let asked_before = Arc::new(AtomicBool::new(false));
            // In this order: the first signal finds the flag unset and sets it, the second finds it set.
            flag::register_conditional_shutdown(signal, 1, Arc::clone(&asked_before))?;
            flag::register(signal, asked_before)?;
            low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        Ok(Self { arrived })
    }

    /// Waits for a signal, or for one of `others` to become readable.
    pub(crate) fn wait(&self, others: &[BorrowedFd<'_>]) -> io::Result<Wake> {
        let mut fds: Vec<_> = [self.arrived.as_fd()]
            .iter()
            .chain(others)
            .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
            .collect();
        loop {
            match poll(&mut fds, None) {
                // The handler ran in this thread and has written to the pipe: the next round sees it.
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => match fds.iter().position(|fd| !fd.revents().is_empty()) {
                    None => {}
                    Some(0) => return Ok(Wake::Stop),
                    Some(position) => return Ok(Wake::Ready(position - 1)),
                },
            }
        }
    }
}
