//! A disk in the memory of the test, behind a real file: what a daemon does to it with its system calls is logged, and takes
//! its time, so that much is under way at once and ends in another order than it began.
//!
//! The file is the root of a FUSE file system that this process serves; nothing of it is cached by the kernel. A transfer
//! is done when it ends, and is durable only when a sync that began after that has ended, or when it was asked to be by
//! itself (`O_DSYNC`). What a disk could hold after the power went is computed from the log ([`crate::power`]).

mod protocol;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};

use self::protocol::{Call, Channel};
use crate::rng::Rng;

/// How long a disk takes for a transfer or a sync.
#[derive(Clone, Copy, Debug)]
pub enum Latency {
    /// Any time up to this.
    UpTo(Duration),
    /// So long on average: often less, now and then much more (exponentially distributed).
    Mean(Duration),
}

/// What kind of disk it is.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// How long it takes.
    pub latency: Latency,
    /// The unit of its transfers, in bytes: others are refused.
    pub block: u64,
}

/// What changes a disk or makes its changes durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Bytes are written.
    Write {
        /// Where.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
        /// They are durable when the write has ended.
        is_durable: bool,
    },
    /// Bytes become zero.
    Zero {
        /// Where.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// All that had ended when this begins is durable when it has ended.
    Sync,
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A change begins. Its number is how many began before.
    Begin(Change),
    /// The change of this number has ended.
    End(usize),
    /// Something that the test wants to find in its place.
    Note(usize),
}

/// A call that waits for its time.
#[derive(Debug)]
struct Pending {
    due: Instant,
    call: Call,
    /// Its number, if it is a change.
    change: Option<usize>,
}

#[derive(Debug)]
struct State {
    bytes: Vec<u8>,
    kind: Kind,
    rng: Rng,
    pending: Vec<Pending>,
    log: Vec<Event>,
    changes: usize,
    is_over: bool,
}

#[derive(Debug)]
struct Shared {
    channel: Channel,
    state: Mutex<State>,
    more: Condvar,
}

/// The disk, until this is dropped; who uses it must be gone by then.
#[derive(Debug)]
pub struct FuseDisk {
    path: PathBuf,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl FuseDisk {
    /// Whether that is possible here, and if not, why.
    pub fn is_here() -> Result<(), String> {
        if !Path::new("/dev/fuse").exists() {
            return Err("there is no /dev/fuse".to_owned());
        }
        rustix::process::geteuid().is_root().then_some(()).ok_or_else(|| "only root mounts".to_owned())
    }

    /// A disk of zeroes, at a path in `dir`.
    ///
    /// # Panics
    /// If it cannot be mounted.
    pub fn start(dir: &Path, bytes: usize, kind: Kind, seed: u64) -> Self {
        let path = dir.join("fuse");
        File::create(&path).expect("a place for the disk can be made");
        let channel = Channel::mount(&path).expect("a file system can be mounted");
        let state = State {
            bytes: vec![0; bytes],
            kind,
            rng: Rng::new(seed),
            pending: Vec::new(),
            log: Vec::new(),
            changes: 0,
            is_over: false,
        };
        let shared = Arc::new(Shared { channel, state: Mutex::new(state), more: Condvar::new() });
        let spawn = |work: fn(&Shared)| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || work(&shared))
        };
        let threads = vec![spawn(Shared::listen), spawn(Shared::work)];
        Self { path, shared, threads }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts a note into the log: all that the log has before it had happened.
    pub fn note(&self, note: usize) {
        self.shared.lock().log.push(Event::Note(note));
    }

    /// Takes the log. What follows is a new one, in which nothing is under way.
    ///
    /// # Panics
    /// If something is.
    pub fn take_log(&self) -> Vec<Event> {
        let mut state = self.shared.lock();
        assert!(state.pending.iter().all(|pending| pending.change.is_none()), "a change is under way");
        state.changes = 0;
        std::mem::take(&mut state.log)
    }

    /// What a reader is told that the disk holds.
    pub fn bytes(&self) -> Vec<u8> {
        self.shared.lock().bytes.clone()
    }
}

impl Drop for FuseDisk {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.more.notify_all();
        // By force, so that nobody waits for what is not answered any more.
        let ended = unmount(&self.path, UnmountFlags::FORCE | UnmountFlags::DETACH);
        for thread in self.threads.drain(..) {
            if ended.is_ok() && thread.join().is_err() && !std::thread::panicking() {
                panic!("a thread of the disk has panicked");
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes calls until the file system is unmounted.
    fn listen(&self) {
        let mut buffer = vec![0; protocol::CALL_BYTES_MAX];
        while let Ok(call) = self.channel.next(&mut buffer) {
            let (size, block) = {
                let state = self.lock();
                (state.bytes.len() as u64, state.kind.block)
            };
            let Some(call) = call.and_then(|call| self.channel.answer_at_once(call, size, block)) else {
                continue;
            };
            self.lock().begin(call);
            self.more.notify_one();
        }
    }

    /// Ends calls when they are due.
    fn work(&self) {
        let mut state = self.lock();
        while !state.is_over {
            let now = Instant::now();
            if let Some(at) = state.pending.iter().position(|pending| pending.due <= now) {
                let pending = state.pending.swap_remove(at);
                let (unique, answer) = state.end(&pending);
                drop(state);
                // Who has asked may be dead.
                let _ = self.channel.answer(unique, answer.as_deref());
                state = self.lock();
                continue;
            }
            let next = state.pending.iter().map(|pending| pending.due).min();
            let wait = next.map_or(Duration::from_secs(1), |due| due - now);
            state = self.more.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl State {
    fn begin(&mut self, call: Call) {
        let change = call.change().map(|change| {
            self.log.push(Event::Begin(change));
            self.changes += 1;
            self.changes - 1
        });
        let due = Instant::now() + self.kind.latency.next(&mut self.rng);
        self.pending.push(Pending { due, call, change });
    }

    /// Does what was asked for; what the caller is to be told.
    fn end(&mut self, pending: &Pending) -> (u64, io::Result<Vec<u8>>) {
        let answer = pending.call.apply(&mut self.bytes);
        self.log.extend(pending.change.map(Event::End));
        (pending.call.unique(), answer)
    }
}

impl Latency {
    fn next(self, rng: &mut Rng) -> Duration {
        // In the open interval of 0 and 1.
        #[expect(clippy::cast_precision_loss, reason = "53 bits are what a double has")]
        let random = ((rng.next_u64() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        match self {
            Self::UpTo(most) => most.mul_f64(random),
            Self::Mean(mean) => mean.mul_f64(-random.ln()),
        }
    }
}
