//! Signalling an event fd that a front-end owns, without ever waiting: calls to drivers, and word of broken rings.
//!
//! A write(2) to an event fd that is full waits. Whether it does is a flag of the open file, which is shared with the
//! front-end: it is not ours to change, and the front-end may change it, or fill the counter, between any check of ours
//! and the write. A worker that waits for one front-end would serve nobody.
//!
//! The kernel itself can signal an event fd without waiting: a [`SignalRing`] makes it do so.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sluice_blk::engine::signal::SignalRing;

/// An event fd of a front-end's.
#[derive(Debug)]
pub struct Call {
    /// None on hosts without io_uring.
    ring: Option<SignalRing>,
    file: Arc<File>,
}

impl Call {
    /// Calls by `file`.
    #[must_use]
    pub fn new(file: Arc<File>) -> Self {
        let ring = SignalRing::new(file.as_fd())
            .inspect_err(|error| log::debug!("no ring for an event fd: {error}"));
        Self { ring: ring.ok(), file }
    }

    /// Signals the event fd. A front-end may hand over an fd that cannot be signalled, or that nobody reads: no matter
    /// of ours.
    pub fn signal(&mut self) {
        let signalled = self.ring.as_mut().is_some_and(|ring| ring.signal().is_ok());
        if !signalled {
            write_if_there_is_room(&self.file);
        }
    }
}

/// The best that there is without io_uring: a front-end that fills its event fd in just this moment stops its worker.
fn write_if_there_is_room(mut file: &File) {
    let mut polled = [PollFd::new(file, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut polled, Some(&now)).is_ok() && polled[0].revents() == PollFlags::OUT {
        let _ = io::Write::write(&mut file, &1_u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use rustix::event::EventfdFlags;
    use rustix::fs::{OFlags, fcntl_getfl};

    use super::*;
    use crate::doubles::driver::{event_fd, take_events};

    /// As many as an event fd can count before it is full.
    const FULL: u64 = u64::MAX - 1;

    fn fill(file: &File) {
        rustix::io::write(file, &FULL.to_ne_bytes()).expect("an event fd that is empty");
    }

    fn both(file: &Arc<File>) -> [Call; 2] {
        [Call::new(Arc::clone(file)), Call { ring: None, file: Arc::clone(file) }]
    }

    #[test]
    fn each_signal_is_counted() {
        for flags in [EventfdFlags::empty(), EventfdFlags::NONBLOCK] {
            let file = Arc::new(event_fd(flags));
            for mut call in both(&file) {
                for _ in 0..5 {
                    call.signal();
                }
                assert_eq!(take_events(&file, Duration::ZERO), 5);
            }
        }
    }

    #[test]
    fn an_event_fd_that_is_full_is_not_waited_for_and_its_flags_stay() {
        for flags in [EventfdFlags::empty(), EventfdFlags::NONBLOCK] {
            let file = Arc::new(event_fd(flags));
            for mut call in both(&file) {
                fill(&file);
                let start = Instant::now();
                for _ in 0..10 {
                    call.signal();
                }
                assert!(start.elapsed() < Duration::from_secs(1));
                assert!(take_events(&file, Duration::ZERO) >= FULL);
            }
            let is_nonblocking = fcntl_getfl(&*file).expect("an open file").contains(OFlags::NONBLOCK);
            assert_eq!(is_nonblocking, flags == EventfdFlags::NONBLOCK);
        }
    }

    #[test]
    fn what_is_no_event_fd_is_not_signalled() {
        let file = Arc::new(File::from(
            rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).expect("an fd"),
        ));
        let mut call = Call::new(file);
        assert!(call.ring.is_none());
        call.signal();
    }
}
