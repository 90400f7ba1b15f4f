//! What it takes to serve a ring, and why that may fail.
//!
//! A ring is set up on a control thread and served on a worker's: all that the two have in common is handed over here, once,
//! and the request queue is made as the disk's options say.

use std::fs::File;
use std::io;
use std::sync::Arc;

use sluice_blk::disk::{Cache, Discard, LockError, LockGuard};
use sluice_blk::overlap::Wake;
use sluice_blk::queue::{QueueConfig, QueueMemory};
use sluice_mem::guest::GuestMem;

use crate::device::Device;
use crate::inflight::InflightSetup;
use crate::vring::{RingSetup, SetupError};

/// All that it takes to serve a ring.
#[derive(Debug)]
pub struct ServiceSetup {
    /// The connection and the ring, for the log.
    pub name: String,
    /// Which of the device's queues.
    pub index: u16,
    /// Where the ring is and where to begin.
    pub ring: RingSetup,
    /// What was in flight when somebody else has left the ring, and where to keep what is.
    pub inflight: Option<InflightSetup>,
    /// The guest's memory.
    pub memory: Arc<GuestMem>,
    /// The disk and what the guest may know of it.
    pub device: Arc<Device>,
    /// The disk's lock.
    pub lock: LockGuard,
    /// Whether nothing is done for it before it is told to go: another process may still go on with it.
    pub held_back: bool,
    /// The event fd by which the driver kicks.
    pub kick: Arc<File>,
    /// The event fd by which the driver is called; none when it polls.
    pub call: Option<Arc<File>>,
    /// The event fd by which a broken ring is told.
    pub err: Option<Arc<File>>,
}

/// Why a ring cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The front-end's mistake.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The disk is not to be had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The host cannot.
    #[error("cannot make a request queue")]
    Host(#[source] io::Error),
}

pub(super) fn queue_config(
    name: &str,
    device: &Device,
    index: u16,
    depth: u16,
    wake: Arc<dyn Wake>,
) -> QueueConfig {
    let disk = device.disk();
    QueueConfig {
        name: name.to_owned(),
        on_enospc: disk.on_enospc(),
        io_timeout: disk.io_timeout(),
        device_id: device.id().to_vec(),
        lifetime: disk.lifetime(),
        secure_erase: disk.has_secure_erase(),
        ignore_flush: disk.cache() == Cache::Unsafe,
        ignore_discard: disk.discard() == Discard::Ignore,
        memory: QueueMemory::of(Arc::clone(device.queue_budget(index))),
        overlaps: Some((Arc::clone(disk.overlaps()), wake)),
        ..QueueConfig::new(depth, device.config().limits())
    }
}
