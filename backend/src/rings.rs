//! The rings of a connection, as its messages set them up (vhost-user.rst, "Ring states").
//!
//! A ring runs when it has a size, addresses, a kick fd, and is enabled. It then belongs to a worker; whatever changes
//! it afterwards stops it first, which waits for its I/O, and starts it again where it was. A front-end cannot tell,
//! but for `SET_VRING_NUM`, `SET_VRING_ADDR` and `SET_VRING_BASE`, which are refused on a running ring.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

mod dirty_log;
mod error;
mod handover;
mod ring;
mod run;

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use sluice_mem::dirty::DirtyLog;
use sluice_mem::guest::GuestMem;

use self::ring::{Ring, event_fd};
use crate::device::Device;
use crate::inflight::InflightMem;
use crate::vring::check_size;
use crate::workers::Workers;

pub use self::error::RingError;
pub(crate) use self::handover::Standstill;
pub use self::ring::RingAddrs;

/// What a control thread does while it waits for a disk.
pub trait Meanwhile: Send {
    /// Called now and then. Must not wait.
    fn turn(&mut self);
}

/// Nothing.
impl Meanwhile for () {
    fn turn(&mut self) {}
}

/// The rings of one connection. Dropping it stops them.
pub struct Rings {
    name: String,
    device: Arc<Device>,
    workers: Arc<Workers>,
    /// With the log, while what is written is logged.
    memory: Arc<GuestMem>,
    log: Option<Arc<DirtyLog>>,
    features: u64,
    inflight: Option<InflightMem>,
    rings: Vec<Ring>,
    /// A ring has run on this connection: what was written to the memory since is known.
    has_run: bool,
    /// The log says already what a crash may cost.
    is_told: bool,
    meanwhile: Box<dyn Meanwhile>,
}

impl fmt::Debug for Rings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rings").field("name", &self.name).field("rings", &self.rings).finish_non_exhaustive()
    }
}

impl Rings {
    /// The rings of `device`, none of them set up, without memory. While they wait for the disk, `meanwhile` has turns.
    #[must_use]
    pub fn new(
        name: &str,
        device: Arc<Device>,
        workers: Arc<Workers>,
        meanwhile: Box<dyn Meanwhile>,
    ) -> Self {
        let rings = (0..device.num_queues()).map(|_| Ring::default()).collect();
        Self {
            name: name.to_owned(),
            device,
            workers,
            memory: Arc::default(),
            log: None,
            features: 0,
            inflight: None,
            rings,
            has_run: false,
            is_told: false,
            meanwhile,
        }
    }

    /// The features of the rings from now on.
    pub fn set_features(&mut self, features: u64) {
        if features != self.features {
            self.change(|rings| rings.features = features);
        }
    }

    /// What the log calls them.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether some are served.
    pub(crate) fn are_running(&self) -> bool {
        (0..self.count()).any(|index| self.is_running(index))
    }

    /// Enables or disables all rings, as it is before `SET_VRING_ENABLE`.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn set_all_enabled(&mut self, enabled: bool) -> Result<(), RingError> {
        (0..self.count()).try_for_each(|index| self.set_enabled(index, enabled))
    }

    /// The number of descriptors of a ring: up to the most that any device has, also above what this one was told to
    /// expect. The protocol has no message by which a front-end could learn of a smaller limit, and over virtio-mmio
    /// QEMU offers its own maximum to the driver, whatever its `queue-size` says.
    ///
    /// # Errors
    /// When there is no such ring, it runs, it cannot have so many, or it is complete with that and cannot be started.
    pub fn set_num(&mut self, index: u32, size: u32) -> Result<(), RingError> {
        let most = Device::QUEUE_SIZE_MAX;
        let ring = self.stopped(index)?;
        let size = check_size(size).map_err(|source| RingError::Setup { index, source })?;
        if size > most {
            return Err(RingError::TooLarge { index, size, most });
        }
        ring.size = size;
        self.start_if_complete(index)
    }

    /// Where a ring is, in user addresses. Of a ring that runs only whether and where it is logged can be changed.
    ///
    /// # Errors
    /// When there is no such ring, it runs, or the addresses cannot be.
    pub fn set_addrs(&mut self, index: u32, addrs: RingAddrs) -> Result<(), RingError> {
        let ring = self.ring(index)?;
        let is_there = ring.addrs.is_some_and(|old| RingAddrs { used_log: addrs.used_log, ..old } == addrs);
        if ring.served.is_some() && !is_there {
            return Err(RingError::Running { index });
        }
        let size = ring.size;
        if !self.memory.regions().is_empty() && size > 0 {
            self.resolve(size, addrs, 0).map_err(|source| RingError::Setup { index, source })?;
        }
        // A ring that runs has the lock, so it is not waited for.
        let lock = self.is_running(index).then(|| self.device.disk().lock().acquire(|| ()));
        self.stop(index)?;
        self.ring(index)?.addrs = Some(addrs);
        let started = self.start_if_complete(index);
        drop(lock);
        started
    }

    /// The index of the next available entry of a ring.
    ///
    /// # Errors
    /// When there is no such ring, it runs, or it is not an index.
    pub fn set_base(&mut self, index: u32, base: u32) -> Result<(), RingError> {
        let ring = self.stopped(index)?;
        ring.base = u16::try_from(base).map_err(|_| RingError::Base { index, base })?;
        Ok(())
    }

    /// Stops a ring, waits for its I/O, and tells its index. It starts again with a new kick fd.
    ///
    /// # Errors
    /// When there is no such ring.
    pub fn take_base(&mut self, index: u32) -> Result<u16, RingError> {
        self.stop(index)?;
        let ring = self.ring(index)?;
        ring.kick = None;
        ring.broken = false;
        Ok(ring.base)
    }

    /// The event fd by which the driver kicks.
    ///
    /// # Errors
    /// When there is no such ring, it is no event fd, or the ring is complete with it and cannot be started.
    pub fn set_kick(&mut self, index: u32, kick: Option<File>) -> Result<(), RingError> {
        self.ring(index)?;
        let kick = kick.ok_or(RingError::NoKick { index })?;
        let kick = event_fd("kick", index, kick)?;
        self.stop(index)?;
        self.ring(index)?.kick = Some(kick);
        self.start_if_complete(index)
    }

    /// The event fd by which the driver is called; none when it polls.
    ///
    /// # Errors
    /// When there is no such ring or it is no event fd.
    pub fn set_call(&mut self, index: u32, call: Option<File>) -> Result<(), RingError> {
        self.ring(index)?;
        let call = call.map(|call| event_fd("call", index, call)).transpose()?;
        let ring = self.ring(index)?;
        if let Some(served) = &ring.served {
            served.set_call(call.clone());
        }
        ring.call = call;
        Ok(())
    }

    /// The event fd by which a broken ring is told.
    ///
    /// # Errors
    /// When there is no such ring, it is no event fd, or the ring cannot be started again.
    pub fn set_err(&mut self, index: u32, err: Option<File>) -> Result<(), RingError> {
        self.ring(index)?;
        let err = err.map(|err| event_fd("err", index, err)).transpose()?;
        self.stop(index)?;
        self.ring(index)?.err = err;
        self.start_if_complete(index)
    }

    /// Enables or disables a ring.
    ///
    /// # Errors
    /// When there is no such ring, or it is complete with that and cannot be started.
    pub fn set_enabled(&mut self, index: u32, enabled: bool) -> Result<(), RingError> {
        self.ring(index)?.enabled = enabled;
        if enabled { self.start_if_complete(index) } else { self.stop(index) }
    }

    /// The guest's memory from now on. Running rings stop, and all that are complete start if their memory is there: a
    /// front-end may take memory away and add it again when the guest is given more. One that ran and whose memory is
    /// gone stands still, and is told so by its err fd.
    pub fn set_memory(&mut self, memory: GuestMem) {
        self.change(|rings| {
            // One that is in use covers it (`check_memory`). Another would be too small when it comes into use.
            rings.log.take_if(|log| !log.covers(memory.end()));
            rings.memory = Arc::new(memory);
        });
    }

    /// Keeps what is in flight there from now on, and goes on with what was: of rings that start afterwards.
    pub fn set_inflight(&mut self, inflight: InflightMem) {
        self.change(|rings| rings.inflight = Some(inflight));
    }

    /// The driver has switched the write cache off, or on: a successor has to know.
    pub fn note_writethrough(&self, is_writethrough: bool) {
        if let Some(inflight) = &self.inflight {
            inflight.set_writethrough(is_writethrough);
        }
    }

    /// Where what is in flight is kept.
    pub(crate) fn inflight(&self) -> Option<&InflightMem> {
        self.inflight.as_ref()
    }

    /// The guest's memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMem {
        &self.memory
    }

    /// Stops all rings and forgets how they were set up. The memory stays.
    pub fn reset(&mut self) {
        self.stop_all();
        self.rings.iter_mut().for_each(|ring| *ring = Ring::default());
        self.features = 0;
        self.inflight = None;
        self.log = None;
        self.has_run = false;
        self.attach_log();
    }

    fn count(&self) -> u32 {
        u32::from(self.device.num_queues())
    }

    fn is_running(&self, index: u32) -> bool {
        self.rings.get(index as usize).is_some_and(|ring| ring.served.is_some())
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring, RingError> {
        let count = self.rings.len();
        self.rings.get_mut(index as usize).ok_or(RingError::Index { index, count })
    }

    /// The ring, which must not be running.
    fn stopped(&mut self, index: u32) -> Result<&mut Ring, RingError> {
        let ring = self.ring(index)?;
        if ring.served.is_some() { Err(RingError::Running { index }) } else { Ok(ring) }
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        self.stop_all();
    }
}

#[cfg(test)]
mod tests;
