//! The wish to end, SIGTERM and SIGINT, and the wish for an upgrade, SIGUSR2, as descriptors that become readable.
//!
//! The first signal asks for a clean end. One that follows later ends the process at once with exit code 1: a disk that
//! hangs must not keep anyone from ending the daemon. Later is a second, because one wish can arrive as two signals
//! (timeout(1) signals the process and then its group). SIGPIPE needs nothing, Rust's runtime ignores it.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR2};
use signal_hook::{flag, low_level};

/// For so long after a signal, others say the same.
const SAME_WISH: Duration = Duration::from_secs(1);

/// What a wait ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// A signal asks for the end.
    Stop,
    /// A signal asks for an upgrade.
    Upgrade,
    /// The other descriptor of this index is readable.
    Ready(usize),
}

/// The signals that ask for the end, from the moment that this exists.
#[derive(Debug)]
pub(crate) struct StopSignals {
    arrived: UnixStream,
    /// Readable when SIGUSR2 has come, if that is followed.
    upgrade: Option<UnixStream>,
    /// What the thread needs that follows them, until it has been started.
    follower: Option<Follower>,
}

#[derive(Debug)]
struct Follower {
    handled: UnixStream,
    announcer: UnixStream,
    impatient: Arc<AtomicBool>,
}

impl StopSignals {
    /// Takes over the signals; to be called before there is something that an untimely end would leave behind.
    pub(crate) fn install() -> io::Result<Self> {
        let mut signals = Self::catch()?;
        signals.follow()?;
        Ok(signals)
    }

    /// As [`StopSignals::install`], but no signal arrives before [`StopSignals::follow`]: for who wants no thread yet.
    pub(crate) fn catch() -> io::Result<Self> {
        let (handled, handler) = UnixStream::pair()?;
        let (arrived, announcer) = UnixStream::pair()?;
        let impatient = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT] {
            flag::register_conditional_shutdown(signal, 1, Arc::clone(&impatient))?;
            low_level::pipe::register(signal, handler.try_clone()?)?;
        }
        Ok(Self { arrived, upgrade: None, follower: Some(Follower { handled, announcer, impatient }) })
    }

    /// Takes over SIGUSR2, too.
    pub(crate) fn catch_upgrades(&mut self) -> io::Result<()> {
        let (arrived, handler) = UnixStream::pair()?;
        arrived.set_nonblocking(true)?;
        low_level::pipe::register(SIGUSR2, handler)?;
        self.upgrade = Some(arrived);
        Ok(())
    }

    /// Starts the thread that follows the signals, unless it has been started; it has begun to run when this returns.
    pub(crate) fn follow(&mut self) -> io::Result<()> {
        if let Some(follower) = self.follower.take() {
            let (runs, running) = channel();
            std::thread::Builder::new().name("signals".into()).spawn(move || {
                let _ = runs.send(());
                follower.follow();
            })?;
            running.recv().map_err(|_| io::Error::other("the thread for signals ended at once"))?;
        }
        Ok(())
    }

    /// Waits for a signal, or for one of `others` to become readable.
    pub(crate) fn wait(&self, others: &[BorrowedFd<'_>]) -> io::Result<Wake> {
        let upgrade = self.upgrade.as_ref().map_or(self.arrived.as_fd(), AsFd::as_fd);
        let own = [self.arrived.as_fd(), upgrade];
        let mut fds: Vec<_> =
            own.iter().chain(others).map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        loop {
            match poll(&mut fds, None) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => match fds.iter().position(|fd| !fd.revents().is_empty()) {
                    None => {}
                    Some(0) => return Ok(Wake::Stop),
                    Some(1) => {
                        self.forget_upgrades();
                        return Ok(Wake::Upgrade);
                    }
                    Some(position) => return Ok(Wake::Ready(position - own.len())),
                },
            }
        }
    }
}

impl StopSignals {
    /// What has been asked for so far is answered.
    pub(crate) fn forget_upgrades(&self) {
        if let Some(mut upgrade) = self.upgrade.as_ref() {
            while matches!(upgrade.read(&mut [0; 64]), Ok(1..)) {}
        }
    }
}

impl Follower {
    /// Announces the first signal, and some time later lets the next one end the process.
    fn follow(self) {
        let Self { mut handled, mut announcer, impatient } = self;
        let announced = handled.read_exact(&mut [0]).and_then(|()| announcer.write_all(&[0]));
        if let Err(error) = announced {
            log::error!("cannot follow signals, the next one ends the process: {error}");
        }
        std::thread::sleep(SAME_WISH);
        impatient.store(true, Ordering::Relaxed);
        // Kept open, so that the wish stays readable and handlers find their pipe.
        std::mem::forget((handled, announcer));
    }
}
