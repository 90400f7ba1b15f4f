//! The lock on a disk's file: who serves it has it, and nobody else.
//!
//! An open file description lock (fcntl(2), `F_OFD_SETLK`) on the whole file. It conflicts with those of QEMU and its tools,
//! and it is what makes a restart after a crash safe: the kernel lets go of it when the last reference to the open file
//! is gone, and each request that a dead process has left in the kernel holds one. So whoever gets the lock knows that no
//! old write lands any more. (Linux: `bd_prepare_to_claim` for a block device's holders.)
//!
//! It is held while a ring is served, and no longer: a disk that nobody uses can be worked on, and when a guest moves to
//! another daemon, that one gets the lock when this one has stopped.
//!
//! To a successor on the same host it is handed over without a gap: it becomes one that is shared, the successor takes it too,
//! and when this process has let go, the successor makes it exclusive again. Who wants it alone gets it at no time in between.
#![expect(unsafe_code, reason = "open file description locks are in no library that the project has")]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::Backing;
use crate::word::words;

/// Whom a disk is shared with: QEMU's `file.locking`, and its `share-rw`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locking {
    /// With nobody.
    Exclusive,
    /// With others who say so too: for file systems that are made for it, and for reading.
    Shared,
    /// With anybody, and nothing is checked.
    Off,
}

words!(Locking { Exclusive => "exclusive", Shared => "shared", Off => "off" });

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Somebody else has it, and keeps it.
    #[error("another process uses the disk's file (for {waited:?} now; --lock=off does not look)")]
    Held {
        /// How long it was waited for.
        waited: Duration,
    },
    /// The file system has no locks, or the like.
    #[error("the disk's file cannot be locked (--lock=off goes without)")]
    Impossible(#[source] io::Error),
}

/// The lock of a disk, for all of its queues together.
#[derive(Debug)]
pub struct ImageLock {
    /// None where there is nothing to lock.
    backing: Option<Arc<Backing>>,
    locking: Locking,
    hold: Mutex<Hold>,
}

/// Who has it.
#[derive(Debug, Default)]
struct Hold {
    /// How many queues.
    holders: usize,
    /// It is being handed over, so shared for the moment.
    between: bool,
}

impl ImageLock {
    /// How long a holder may take to let go: what a process that has died has left in the kernel may take its time.
    pub const PATIENCE: Duration = Duration::from_secs(10);
    /// What is not worth a line in the log: a successor on the same host waits a little.
    const WORTH_TELLING: Duration = Duration::from_millis(20);
    /// How soon it is tried again at first, and at last.
    const RETRY: Duration = Duration::from_micros(100);
    const RETRY_MAX: Duration = Duration::from_millis(2);

    pub(super) fn new(backing: Option<Arc<Backing>>, locking: Locking) -> Arc<Self> {
        Arc::new(Self { backing, locking, hold: Mutex::default() })
    }

    /// Takes the lock for a queue, and waits for whoever has it; now and then `meanwhile` is called.
    ///
    /// # Errors
    /// [`LockError`] when it is not let go of in time, or cannot be had at all.
    pub fn acquire(self: &Arc<Self>, mut meanwhile: impl FnMut()) -> Result<LockGuard, LockError> {
        let begun = Instant::now();
        let (mut waited, mut pause) = (Duration::ZERO, Self::RETRY);
        loop {
            if self.try_acquire().map_err(LockError::Impossible)? {
                if waited > Self::WORTH_TELLING {
                    log::info!(
                        "the disk's file was in use for {waited:?} more, by another process or what it has left"
                    );
                }
                return Ok(LockGuard(Arc::clone(self)));
            }
            waited = begun.elapsed();
            if waited > Self::PATIENCE {
                return Err(LockError::Held { waited });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Self::RETRY_MAX);
            meanwhile();
        }
    }

    /// Lets a successor take the lock too, if it is held. It is exclusive again when it is acquired the next time, by whoever is
    /// left with it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn offer(&self) -> io::Result<()> {
        let mut hold = self.hold();
        if hold.holders > 0 && self.locking == Locking::Exclusive && self.set(libc::F_RDLCK)? {
            hold.between = true;
        }
        Ok(())
    }

    /// Takes the lock together with the process that has offered it. Nothing may be written before it is acquired.
    ///
    /// # Errors
    /// [`LockError`] when it was not offered, or cannot be had at all.
    pub fn take_over(self: &Arc<Self>) -> Result<LockGuard, LockError> {
        let mut hold = self.hold();
        let is_first = hold.holders == 0 && self.locking != Locking::Off;
        if is_first && !self.set(libc::F_RDLCK).map_err(LockError::Impossible)? {
            return Err(LockError::Held { waited: Duration::ZERO });
        }
        hold.between |= is_first && self.locking == Locking::Exclusive;
        hold.holders += 1;
        drop(hold);
        Ok(LockGuard(Arc::clone(self)))
    }

    fn hold(&self) -> MutexGuard<'_, Hold> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_acquire(&self) -> io::Result<bool> {
        let mut hold = self.hold();
        let kind = match self.locking {
            Locking::Exclusive => libc::F_WRLCK,
            Locking::Shared => libc::F_RDLCK,
            Locking::Off => libc::F_UNLCK,
        };
        let has_it = hold.holders > 0 && !hold.between;
        let is_there = has_it || self.locking == Locking::Off || self.set(kind)?;
        hold.between &= !is_there;
        hold.holders += usize::from(is_there);
        Ok(is_there)
    }

    fn release(&self) {
        let mut hold = self.hold();
        hold.holders -= 1;
        if hold.holders == 0
            && self.locking != Locking::Off
            && let Err(error) = self.set(libc::F_UNLCK)
        {
            log::error!("cannot unlock a disk: {error}");
        }
    }

    /// Sets a lock on the whole file, of whatever length it will be. Returns whether it could be had.
    fn set(&self, kind: i32) -> io::Result<bool> {
        let Some(backing) = &self.backing else { return Ok(true) };
        let narrow = |value: i32| i16::try_from(value).map_err(io::Error::other);
        let lock = libc::flock {
            l_type: narrow(kind)?,
            l_whence: narrow(libc::SEEK_SET)?,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        // SAFETY: the command reads the lock that it is given, and keeps no pointer to it.
        let result = unsafe { libc::fcntl(backing.file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
        if result == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Ok(false),
            _ => Err(error),
        }
    }
}

/// A queue's share in the lock. Kept until nothing of the queue is in the kernel any more.
#[derive(Debug)]
pub struct LockGuard(Arc<ImageLock>);

impl Drop for LockGuard {
    fn drop(&mut self) {
        self.0.release();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn lock(file: &tempfile::NamedTempFile, locking: Locking) -> Arc<ImageLock> {
        let file = File::options().read(true).write(true).open(file.path()).expect("it exists");
        ImageLock::new(Some(Arc::new(Backing::new(file, false))), locking)
    }

    fn can_have(lock: &Arc<ImageLock>) -> bool {
        let held = lock.try_acquire().expect("a file that can be locked");
        if held {
            lock.release();
        }
        held
    }

    #[test]
    fn one_who_wants_it_alone_has_it_alone() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let locks = [Locking::Exclusive, Locking::Shared, Locking::Off].map(|locking| lock(&file, locking));
        let [exclusive, shared, off] = &locks;
        let guard = exclusive.acquire(|| ()).expect("nobody has it");
        let again = exclusive.acquire(|| ()).expect("it is the same disk");
        assert!(!can_have(&lock(&file, Locking::Exclusive)) && !can_have(shared) && can_have(off));
        drop(guard);
        assert!(!can_have(shared), "another queue has it");
        drop(again);
        let guard = shared.acquire(|| ()).expect("nobody has it");
        assert!(can_have(&lock(&file, Locking::Shared)) && !can_have(exclusive));
        drop(guard);
        assert!(can_have(exclusive));
    }

    #[test]
    fn who_waits_gets_it_when_it_is_let_go_of() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let guard = lock(&file, Locking::Exclusive).acquire(|| ()).expect("nobody has it");
        let (mut guard, mut turns) = (Some(guard), 0);
        let other = lock(&file, Locking::Exclusive).acquire(|| {
            turns += 1;
            if turns == 5 {
                guard = None;
            }
        });
        assert!(other.is_ok() && turns >= 5);
    }

    #[test]
    fn it_is_handed_over_without_a_gap() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let [old, new, other] = [(); 3].map(|()| lock(&file, Locking::Exclusive));
        let guard = old.acquire(|| ()).expect("nobody has it");
        assert!(matches!(new.take_over(), Err(LockError::Held { .. })), "it is not offered");
        old.offer().expect("a file that can be locked");
        assert!(!can_have(&other));
        let taken = new.take_over().expect("it is offered");
        assert!(!can_have(&other) && !can_have(&new), "both have it");
        drop(guard);
        assert!(!can_have(&other));
        let acquired = new.acquire(|| ()).expect("the old one has let go");
        drop(taken);
        assert!(!can_have(&lock(&file, Locking::Shared)), "it is exclusive again");
        drop(acquired);
        assert!(can_have(&other));
    }

    #[test]
    fn who_has_offered_it_in_vain_has_it_alone_again() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let (old, new) = (lock(&file, Locking::Exclusive), lock(&file, Locking::Exclusive));
        let guard = old.acquire(|| ()).expect("nobody has it");
        old.offer().expect("a file that can be locked");
        drop(new.take_over().expect("it is offered"));
        let again = old.acquire(|| ()).expect("the other one has let go");
        drop(guard);
        assert!(!can_have(&lock(&file, Locking::Shared)));
        drop(again);
    }

    #[test]
    fn what_is_no_file_needs_no_lock() {
        let lock = ImageLock::new(None, Locking::Exclusive);
        assert!(lock.acquire(|| ()).is_ok());
    }
}
