//! An opened disk: a file or block device, its capacity, identity and limits (Linux: `struct gendisk`). Or memory, or
//! nothing at all.
//!
//! Opening finds out everything once: how the file takes direct I/O (statx's `STATX_DIOALIGN`), the block sizes, who
//! the disk is. After that a disk does not change; each queue gets an [`Engine`] of its own on it.
//!
//! ```
//! use sluice_blk::bio::{BioChain, Op};
//! use sluice_blk::disk::{Disk, DiskOptions, EngineKind};
//! use sluice_blk::queue::{QueueConfig, RequestQueue};
//! use sluice_blk::request::Status;
//! use sluice_blk::sector::{DiskRange, Sector};
//!
//! let file = tempfile::NamedTempFile::new()?;
//! file.as_file().set_len(1 << 20)?;
//! let disk = Disk::open(&DiskOptions { engine: EngineKind::Sync, ..DiskOptions::new(file.path()) })?;
//! assert_eq!(disk.capacity(), Sector(2048));
//!
//! let engine = disk.engine(RequestQueue::tags(16), None)?;
//! let mut queue = RequestQueue::new(QueueConfig::new(16, *disk.limits()), engine)?;
//! let mut chain = BioChain::new();
//! chain.push(queue.bios().try_take(Op::Flush, DiskRange::none()).expect("the queue is idle"));
//! queue.submit(chain, 0)?;
//! queue.dispatch();
//! queue.reap(|chain| assert_eq!(chain.status, Status::Ok));
//! assert!(queue.is_idle());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod fileless;
mod identity;
mod lifetime;
mod lock;
mod open;
mod topology;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sluice_mem::anon::AnonMem;

pub use self::identity::serial_of;
pub use self::lock::{ImageLock, LockError, LockGuard, Locking};
pub use self::open::DiskError;
use crate::engine::null::NullEngine;
use crate::engine::ram::RamEngine;
use crate::engine::ring::Ring;
use crate::engine::sync::SyncEngine;
use crate::engine::uring::UringEngine;
use crate::engine::{Backing, Engine};
use crate::limits::QueueLimits;
use crate::overlap::Overlaps;
use crate::queue::{IoTimeout, OnEnospc};
use crate::sector::Sector;
use crate::word::words;

/// How the host's page cache and the disk's write cache are used: QEMU's words, with QEMU's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Direct I/O; the guest has to flush.
    None,
    /// The host's page cache; the guest has to flush.
    Writeback,
    /// The host's page cache; each write is durable when it completes.
    Writethrough,
    /// Direct I/O; each write is durable when it completes.
    Directsync,
    /// The host's page cache, and flushes are ignored: a power failure loses data.
    Unsafe,
}

impl Cache {
    /// Whether the page cache is bypassed.
    #[must_use]
    pub fn is_direct(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }

    /// Whether writes are durable when they complete, unless the guest says otherwise.
    #[must_use]
    pub fn is_writethrough(self) -> bool {
        matches!(self, Self::Writethrough | Self::Directsync)
    }
}

words!(Cache {
    None => "none",
    Writeback => "writeback",
    Writethrough => "writethrough",
    Directsync => "directsync",
    Unsafe => "unsafe",
});

/// What a disk keeps its data in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Medium {
    /// A file or block device.
    File(PathBuf),
    /// Memory of this process: kept as long as the disk is open.
    Ram {
        /// How many bytes the disk has: whole logical blocks.
        bytes: u64,
    },
    /// Nothing: what is written is forgotten, and what is read is whatever was in the reader's memory. For measuring.
    Null {
        /// How many bytes the disk has: whole logical blocks.
        bytes: u64,
    },
}

impl Medium {
    /// Whether it is a file or block device.
    #[must_use]
    pub fn is_file(&self) -> bool {
        matches!(self, Self::File(_))
    }
}

impl fmt::Display for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Ram { .. } => f.write_str("memory"),
            Self::Null { .. } => f.write_str("nothing"),
        }
    }
}

/// Which engine moves the data of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineKind {
    /// io_uring.
    #[default]
    Uring,
    /// preadv and pwritev, in the queue's thread.
    Sync,
}

words!(EngineKind { Uring => "uring", Sync => "sync" });

/// What a disk shall be.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// What keeps the data.
    pub medium: Medium,
    /// Open it for reading only.
    pub read_only: bool,
    /// How caches are used. `None`: direct I/O where the file takes it, else [`Cache::Writeback`]. Without a file there
    /// is no cache; then this is what the guest is told.
    pub cache: Option<Cache>,
    /// Which engine moves the data, if the medium is a file.
    pub engine: EngineKind,
    /// The logical block size that the guest sees: 512 or 4096. `None`: what the disk has. Smaller than what the disk
    /// has, parts of its blocks are read, changed and written.
    pub logical_block_size: Option<u32>,
    /// What discards do.
    pub discard: Discard,
    /// Whether the guest may have ranges zeroed.
    pub write_zeroes: bool,
    /// The unit in which the guest shall discard, in bytes. `None`: what the disk has.
    pub discard_granularity: Option<u32>,
    /// Where the guest's discards shall begin: at multiples of this, in bytes. `None`: the granularity.
    pub discard_alignment: Option<u32>,
    /// Whom the file is shared with. `None`: a disk that can be written with nobody, another one with other readers.
    pub locking: Option<Locking>,
    /// What becomes of writes for which there is no space.
    pub on_enospc: OnEnospc,
    /// How long the disk may take for a request before that fails. `None`: as long as it takes. With it, all data is
    /// bounced: a disk that was given up must not touch the guest's memory any more.
    pub io_timeout: Option<Duration>,
}

impl DiskOptions {
    /// A disk at `path`, with all else as it is by default.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::on(Medium::File(path.into()))
    }

    /// A disk on `medium`, with all else as it is by default.
    #[must_use]
    pub fn on(medium: Medium) -> Self {
        Self {
            medium,
            read_only: false,
            cache: None,
            engine: EngineKind::default(),
            logical_block_size: None,
            discard: Discard::default(),
            write_zeroes: true,
            discard_granularity: None,
            discard_alignment: None,
            locking: None,
            on_enospc: OnEnospc::default(),
            io_timeout: None,
        }
    }
}

/// What discards do: QEMU's words, with QEMU's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Discard {
    /// They give space back.
    #[default]
    Unmap,
    /// They do nothing, and zeroes keep their space.
    Ignore,
}

words!(Discard { Unmap => "unmap", Ignore => "ignore" });

/// An opened disk (Linux: `struct gendisk`; QEMU: a block node. A file is one as a block device is: the loop driver is not
/// needed for it).
#[derive(Debug)]
pub struct Disk {
    storage: Storage,
    medium: Medium,
    capacity: Sector,
    limits: QueueLimits,
    cache: Cache,
    read_only: bool,
    engine: EngineKind,
    identity: String,
    discard: Discard,
    write_zeroes: bool,
    secure_erase: bool,
    lifetime: Option<[u8; 6]>,
    /// Which parts of the disk its queues write to, where that matters.
    overlaps: Arc<Overlaps>,
    lock: Arc<ImageLock>,
    on_enospc: OnEnospc,
    io_timeout: Option<IoTimeout>,
}

/// What the engines of a disk share.
#[derive(Debug)]
enum Storage {
    File(Arc<Backing>),
    Ram(Arc<AnonMem>),
    Null,
}

impl Disk {
    /// Opens a disk and finds out what it can take.
    ///
    /// # Errors
    /// [`DiskError`], which names the path and what to do.
    pub fn open(options: &DiskOptions) -> Result<Self, DiskError> {
        if options.read_only && options.locking == Some(Locking::Exclusive) {
            return Err(DiskError::ExclusiveReader);
        }
        if options.io_timeout.is_some() && options.engine == EngineKind::Sync {
            return Err(DiskError::TimeoutOfSync);
        }
        let mut disk = match &options.medium {
            Medium::File(path) => open::open(options, path)?,
            Medium::Ram { bytes } | Medium::Null { bytes } => fileless::make(options, *bytes)?,
        };
        disk.on_enospc = options.on_enospc;
        disk.io_timeout = options.io_timeout.map(|after| IoTimeout { after, fence: Arc::default() });
        disk.limits.detached = disk.io_timeout.is_some();
        let default = if options.read_only { Locking::Shared } else { Locking::Exclusive };
        let backing = match &disk.storage {
            Storage::File(backing) => Some(Arc::clone(backing)),
            Storage::Ram(_) | Storage::Null => None,
        };
        disk.lock = ImageLock::new(backing, options.locking.unwrap_or(default));
        Ok(disk)
    }

    /// What it was opened on.
    #[must_use]
    pub fn medium(&self) -> &Medium {
        &self.medium
    }

    /// How many sectors it has.
    #[must_use]
    pub fn capacity(&self) -> Sector {
        self.capacity
    }

    /// What it can take.
    #[must_use]
    pub fn limits(&self) -> &QueueLimits {
        &self.limits
    }

    /// How caches are used, as it was asked for or chosen.
    #[must_use]
    pub fn cache(&self) -> Cache {
        self.cache
    }

    /// Whether it can only be read.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Which engine moves its data, if that is in a file.
    #[must_use]
    pub fn engine_kind(&self) -> EngineKind {
        self.engine
    }

    /// Who it is: at most 20 bytes of ASCII, derived from the file's path, different for different files. Disks without
    /// one are all alike.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.identity
    }

    /// What discards do.
    #[must_use]
    pub fn discard(&self) -> Discard {
        self.discard
    }

    /// Whether the guest may have ranges zeroed.
    #[must_use]
    pub fn has_write_zeroes(&self) -> bool {
        self.write_zeroes && !self.read_only
    }

    /// Whether ranges can be erased so that nothing can be recovered.
    #[must_use]
    pub fn has_secure_erase(&self) -> bool {
        self.secure_erase && !self.read_only
    }

    /// How worn the disk is, where it knows, as virtio says it: three little-endian 16-bit numbers (virtio 1.3, 5.2.6:
    /// `struct virtio_blk_lifetime`).
    #[must_use]
    pub fn lifetime(&self) -> Option<[u8; 6]> {
        self.lifetime
    }

    /// Which parts of the disk its queues write to.
    #[must_use]
    pub fn overlaps(&self) -> &Arc<Overlaps> {
        &self.overlaps
    }

    /// The lock that whoever serves the disk has to have.
    #[must_use]
    pub fn lock(&self) -> &Arc<ImageLock> {
        &self.lock
    }

    /// What becomes of writes for which there is no space.
    #[must_use]
    pub fn on_enospc(&self) -> OnEnospc {
        self.on_enospc
    }

    /// How long the disk may take for a request, and what keeps others from it when it takes longer.
    #[must_use]
    pub fn io_timeout(&self) -> Option<IoTimeout> {
        self.io_timeout.clone()
    }

    /// An engine with room for `depth` requests, for a queue on the calling thread. `ring` is the thread's, where it
    /// has one.
    ///
    /// # Errors
    /// When the disk wants io_uring and the thread has no ring.
    pub fn engine(&self, depth: u16, ring: Option<&Ring>) -> io::Result<Box<dyn Engine>> {
        let backing = match &self.storage {
            Storage::File(backing) => Arc::clone(backing),
            Storage::Ram(memory) => return Ok(Box::new(RamEngine::new(Arc::clone(memory), depth))),
            Storage::Null => return Ok(Box::new(NullEngine::new(depth))),
        };
        match (self.engine, ring) {
            (EngineKind::Sync, _) => Ok(Box::new(SyncEngine::new(backing, depth))),
            (EngineKind::Uring, Some(ring)) => Ok(Box::new(UringEngine::new(backing, depth, ring))),
            (EngineKind::Uring, None) => Err(io::Error::other("io_uring is not available on this host")),
        }
    }
}

#[cfg(test)]
mod tests;
