//! Signalling an event fd that a front-end owns, without ever waiting: calls to drivers, and word of broken rings.
//!
//! A write(2) to an event fd that is full waits. Whether it does is a flag of the open file, which is shared with the
//! front-end: it is not ours to change, and the front-end may change it, or fill the counter, between any check of ours
//! and the write. A worker that waits for one front-end would serve nobody.
//!
//! The kernel itself can signal an event fd without waiting: a [`SignalRing`] makes it do so. Where a process gives up the
//! right to make rings, it makes them in advance: that is what [`SignalRings`] are for.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sluice_blk::engine::signal::SignalRing;

/// Rings that signal event fds, for whoever has one to be signalled at the time.
#[derive(Debug)]
pub struct SignalRings {
    free: Mutex<Vec<SignalRing>>,
    /// Whether more can be made.
    grows: bool,
}

impl SignalRings {
    /// As many as are needed, each made when it is.
    #[must_use]
    pub fn growing() -> Arc<Self> {
        Arc::new(Self { free: Mutex::default(), grows: true })
    }

    /// So many, made now, and no more. Without io_uring there are none.
    #[must_use]
    pub fn fixed(count: usize) -> Arc<Self> {
        let made = (0..count).map_while(|_| {
            SignalRing::new().inspect_err(|error| log::debug!("no ring for an event fd: {error}")).ok()
        });
        Arc::new(Self { free: Mutex::new(made.collect()), grows: false })
    }

    /// A ring that signals `file`, if there is one and it can be signalled.
    fn take(&self, file: &File) -> Option<SignalRing> {
        let free = self.lock().pop();
        let mut ring = match free {
            None if self.grows => SignalRing::new().ok()?,
            free => free?,
        };
        if let Err(error) = ring.bind(file.as_fd()) {
            log::debug!("no ring for an event fd: {error}");
            self.lock().push(ring);
            return None;
        }
        Some(ring)
    }

    fn give_back(&self, mut ring: SignalRing) {
        if ring.release().is_ok() {
            self.lock().push(ring);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<SignalRing>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An event fd of a front-end's.
#[derive(Debug)]
pub struct Call {
    /// None on hosts without io_uring.
    ring: Option<SignalRing>,
    file: Arc<File>,
    rings: Arc<SignalRings>,
}

impl Call {
    /// Calls by `file`, with one of `rings` until it is dropped.
    #[must_use]
    pub fn new(file: Arc<File>, rings: &Arc<SignalRings>) -> Self {
        Self { ring: rings.take(&file), file, rings: Arc::clone(rings) }
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

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(ring) = self.ring.take() {
            self.rings.give_back(ring);
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
        let [some, none] = [SignalRings::growing(), SignalRings::fixed(0)];
        [Call::new(Arc::clone(file), &some), Call::new(Arc::clone(file), &none)]
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
        let rings = SignalRings::fixed(1);
        let mut call = Call::new(file, &rings);
        assert!(call.ring.is_none());
        call.signal();
        let event = Arc::new(event_fd(EventfdFlags::NONBLOCK));
        assert!(Call::new(event, &rings).ring.is_some(), "the ring is there for others");
    }

    #[test]
    fn rings_made_in_advance_signal_one_event_fd_after_another() {
        let rings = SignalRings::fixed(1);
        let [first, second] = [(); 2].map(|()| Arc::new(event_fd(EventfdFlags::NONBLOCK)));
        for file in [&first, &second, &first] {
            let mut call = Call::new(Arc::clone(file), &rings);
            call.signal();
            let other = Call::new(Arc::clone(&second), &rings);
            assert!(call.ring.is_some() && other.ring.is_none(), "there is one");
            drop(call);
            assert_eq!(take_events(file, Duration::ZERO), 1);
        }
        assert_eq!(Arc::strong_count(&first), 1);
    }
}
