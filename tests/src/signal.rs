//! An event fd that is waited for: calls and ring errors on the driver's side.

use std::os::fd::AsRawFd;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A non-blocking event fd and the means to sleep on it.
#[derive(Debug)]
pub struct Signal {
    fd: EventFd,
    epoll: Epoll,
}

impl Signal {
    /// A signal that nobody has given yet.
    pub fn new() -> Self {
        let fd = EventFd::new(EFD_NONBLOCK).expect("an eventfd can be made");
        let epoll = Epoll::new().expect("an epoll set can be made");
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event).expect("an eventfd can be polled");
        Signal { fd, epoll }
    }

    /// What the other side writes to.
    pub fn fd(&self) -> &EventFd {
        &self.fd
    }

    /// Whether the signal was given, which is not taken.
    pub fn is_given(&self) -> bool {
        self.is_given_within(Duration::ZERO)
    }

    fn is_given_within(&self, timeout: Duration) -> bool {
        let ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // What the kernel has to do for an io_uring of this thread interrupts a wait, too.
        loop {
            match self.epoll.wait(ms, &mut [EpollEvent::default()]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                ready => return ready.expect("epoll_wait works") > 0,
            }
        }
    }

    /// How often the signal was given since it was taken last: waits up to `timeout` for the first time, and takes it.
    pub fn wait(&self, timeout: Duration) -> u64 {
        if !self.is_given_within(timeout) {
            return 0;
        }
        self.fd.read().expect("a readable eventfd can be read")
    }
}

impl Default for Signal {
    fn default() -> Self {
        Signal::new()
    }
}
