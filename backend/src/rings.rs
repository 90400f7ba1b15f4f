//! The rings of a connection, as its messages set them up (vhost-user.rst, "Ring states").
//!
//! A ring runs when it has a size, addresses, a kick fd, and is enabled. It then belongs to a worker; whatever changes
//! it afterwards stops it first, which waits for its I/O, and starts it again where it was. A front-end cannot tell,
//! but for `SET_VRING_NUM`, `SET_VRING_ADDR` and `SET_VRING_BASE`, which are refused on a running ring.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fs::{FileType, fstat};
use sluice_blk::disk::{LockError, LockGuard};
use sluice_mem::dirty::DirtyLog;
use sluice_mem::guest::GuestMem;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use crate::call::Call;
use crate::connection::chain;
use crate::device::Device;
use crate::inflight::{InflightMem, InflightSetup};
use crate::service::{ServiceSetup, StartError};
use crate::vring::{RingSetup, SetupError, check_size, parts};
use crate::workers::{ServedRing, Workers};

pub(crate) use handover::Standstill;

/// Why a ring is not as the front-end wants it: its mistake, but for the last.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// There are fewer rings.
    #[error("ring {index} of {count}")]
    Index {
        /// The ring that was named.
        index: u32,
        /// How many there are.
        count: usize,
    },
    /// The ring runs.
    #[error("ring {index} is running: stop it with GET_VRING_BASE first")]
    Running {
        /// The ring.
        index: u32,
    },
    /// A ring larger than the device takes.
    #[error("ring {index} of {size} descriptors: the device takes at most {most}")]
    TooLarge {
        /// The ring.
        index: u32,
        /// What was asked for.
        size: u16,
        /// What is possible.
        most: u16,
    },
    /// Not an index of a split ring.
    #[error("ring {index} from index {base}: a split ring has indices up to 65535")]
    Base {
        /// The ring.
        index: u32,
        /// What was asked for.
        base: u32,
    },
    /// Not an event fd.
    #[error("the {what} fd of ring {index} is no event fd")]
    NotAnEventFd {
        /// What it was to be for.
        what: &'static str,
        /// The ring.
        index: u32,
    },
    /// Without a kick fd nobody would know of requests.
    #[error("ring {index} without a kick fd: polling a ring is not supported")]
    NoKick {
        /// The ring.
        index: u32,
    },
    /// A size or an address that cannot be.
    #[error("ring {index}: {source}")]
    Setup {
        /// The ring.
        index: u32,
        /// What is wrong.
        #[source]
        source: SetupError,
    },
    /// The log has no bits for some of the memory.
    #[error("a log of {size} bytes for memory up to guest address {end:#x}, which needs {need}")]
    LogTooSmall {
        /// How many bytes it has.
        size: u64,
        /// Where the memory ends.
        end: u64,
        /// How many bytes that needs.
        need: u64,
    },
    /// The ring cannot be started.
    #[error("ring {index} cannot be started")]
    Start {
        /// The ring.
        index: u32,
        /// Why.
        #[source]
        source: StartError,
    },
}

/// Where a ring is, in the front-end's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddrs {
    /// The descriptor table.
    pub desc: u64,
    /// The driver area.
    pub avail: u64,
    /// The device area.
    pub used: u64,
    /// Where the device area is in the log of what is written; none if it is not to be logged.
    pub used_log: Option<u64>,
}

/// One ring as it is set up, and who serves it while it runs.
#[derive(Debug, Default)]
struct Ring {
    size: u16,
    addrs: Option<RingAddrs>,
    base: u16,
    kick: Option<Arc<File>>,
    call: Option<Arc<File>>,
    err: Option<Arc<File>>,
    enabled: bool,
    /// The driver has broken it: it does not run before it was given up with GET_VRING_BASE.
    broken: bool,
    served: Option<ServedRing>,
}

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

    /// What is written to the guest's memory is marked in `log` from now on, while LOG_ALL is among the features: that of
    /// rings, too, whose addresses say so.
    ///
    /// # Errors
    /// When it is too small for that. Then nothing has changed.
    pub fn set_log(&mut self, log: DirtyLog) -> Result<(), RingError> {
        let log = Arc::new(log);
        check_covers(&log, &self.memory)?;
        for (index, ring) in (0..).zip(&self.rings) {
            if let (Some(addrs), true) = (ring.addrs, ring.size > 0) {
                let setup = RingSetup { size: ring.size, used_log: addrs.used_log, ..RingSetup::default() };
                setup.check_log(Some(&log)).map_err(|source| RingError::Setup { index, source })?;
            }
        }
        self.change_log(|rings| rings.log = Some(log));
        Ok(())
    }

    /// Whether the memory could be the guest's: while what is written is logged, the log has to have bits for it.
    ///
    /// # Errors
    /// [`RingError::LogTooSmall`] when not.
    pub fn check_memory(&self, memory: &GuestMem) -> Result<(), RingError> {
        self.log_in_use().map_or(Ok(()), |log| check_covers(log, memory))
    }

    /// What the log calls them.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether some are served.
    pub(crate) fn are_running(&self) -> bool {
        (0..self.count()).any(|index| self.is_running(index))
    }

    /// Whether the front-end wants to know what is written: it copies the guest's memory.
    pub(crate) fn is_logging(&self) -> bool {
        self.features & VhostUserVirtioFeatures::LOG_ALL.bits() != 0
    }

    /// The log, while what is written is logged.
    fn log_in_use(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref().filter(|_| self.is_logging())
    }

    /// Changes the log. Nothing stops for one that is not in use.
    fn change_log(&mut self, change: impl FnOnce(&mut Self)) {
        if self.is_logging() {
            self.change(change);
        } else {
            change(self);
        }
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
        self.attach_log();
    }

    /// Stops all rings and waits for their I/O. Returns those that ran.
    pub fn stop_all(&mut self) -> Vec<u32> {
        let stopping: Vec<_> = (0_u32..)
            .zip(&mut self.rings)
            .filter_map(|(index, ring)| Some((index, ring.served.take()?.begin_to_stop())))
            .collect();
        let running = stopping.iter().map(|(index, _)| *index).collect();
        for (index, stopping) in stopping {
            let stopped = stopping.wait(|| self.meanwhile.turn());
            let ring = self.ring(index).expect("it is one of them");
            (ring.base, ring.broken) = (stopped.next_avail, stopped.broken);
        }
        running
    }

    /// Stops all rings, changes what they rest on, and starts what is complete. If any ran, the disk stays locked meanwhile.
    fn change(&mut self, change: impl FnOnce(&mut Self)) {
        let standstill = self.stand_still();
        change(self);
        self.attach_log();
        self.go_on(standstill);
    }

    /// Gives the memory the log, or takes it.
    fn attach_log(&mut self) {
        let log = self.log_in_use().cloned();
        let is_attached = match (&log, self.memory.log()) {
            (Some(log), Some(attached)) => Arc::ptr_eq(log, attached),
            (log, attached) => log.is_none() && attached.is_none(),
        };
        if !is_attached {
            self.memory = Arc::new(GuestMem::clone(&self.memory).with_log(log));
        }
    }

    /// Starts what is complete. Some have been `running` before.
    fn start_all(&mut self, running: &[u32]) {
        for index in 0..self.count() {
            let Err(error) = self.start_if_complete(index) else { continue };
            if running.contains(&index) {
                let line = format_args!("{}: {}; it stands still", self.name, chain(&error));
                self.device.faults().log(log::Level::Warn, line);
                if let Some(err) = self.rings.get(index as usize).and_then(|ring| ring.err.as_ref()) {
                    Call::new(Arc::clone(err), self.workers.signals()).signal();
                }
            }
        }
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

    fn stop(&mut self, index: u32) -> Result<(), RingError> {
        if let Some(served) = self.ring(index)?.served.take() {
            let stopped = served.begin_to_stop().wait(|| self.meanwhile.turn());
            let ring = self.ring(index)?;
            (ring.base, ring.broken) = (stopped.next_avail, stopped.broken);
        }
        Ok(())
    }

    fn start_if_complete(&mut self, index: u32) -> Result<(), RingError> {
        let lock = |rings: &mut Self| rings.device.disk().lock().acquire(|| rings.meanwhile.turn());
        self.start(index, false, lock)
    }

    /// Starts a ring with the disk's lock, if it is complete. One that is held back is served when it is told to go.
    fn start(
        &mut self,
        index: u32,
        held_back: bool,
        lock: impl FnOnce(&mut Self) -> Result<LockGuard, LockError>,
    ) -> Result<(), RingError> {
        let Some(ring) = self.rings.get(index as usize) else { return Ok(()) };
        let complete = ring.enabled && ring.size > 0 && !self.memory.regions().is_empty();
        let (true, Some(addrs), Some(kick)) = (complete, ring.addrs, &ring.kick) else { return Ok(()) };
        if ring.served.is_some() || ring.broken {
            return Ok(());
        }
        let at =
            self.resolve(ring.size, addrs, ring.base).map_err(|source| RingError::Setup { index, source })?;
        let (kick, call, err) = (Arc::clone(kick), ring.call.clone(), ring.err.clone());
        let start = |source| RingError::Start { index, source };
        let inflight = self.inflight_of(index, ring.size);
        let lock = lock(self);
        let setup = ServiceSetup {
            name: format!("{} ring {index}", self.name),
            index: index_of(index),
            ring: at,
            inflight,
            memory: Arc::clone(&self.memory),
            device: Arc::clone(&self.device),
            lock: lock.map_err(|error| start(error.into()))?,
            held_back,
            kick,
            call,
            err,
        };
        let served = self.workers.serve(setup).map_err(start)?;
        self.ring(index)?.served = Some(served);
        self.tell_what_a_crash_costs();
        Ok(())
    }

    /// Once for a connection: that nobody keeps what is in flight. A disk without a file is gone with the process anyhow.
    fn tell_what_a_crash_costs(&mut self) {
        let is_kept = self.inflight.is_some() || self.device.in_order();
        if is_kept || self.is_told || !self.device.disk().medium().is_file() {
            return;
        }
        self.is_told = true;
        let line = format_args!(
            "{}: the front-end keeps no account of what is in flight (INFLIGHT_SHMFD): should this process die, requests \
             that are under way may be answered never or twice; not so with --in-order",
            self.name
        );
        self.device.faults().log(log::Level::Info, line);
    }

    /// Where a ring's account of what is in flight is kept, if it fits there.
    fn inflight_of(&self, index: u32, size: u16) -> Option<InflightSetup> {
        let setup = self.inflight.as_ref()?.queue(index_of(index))?;
        if !setup.fits(size) {
            let line = format_args!(
                "{} ring {index}: the front-end's inflight memory is too small for {size} descriptors: should this process \
                 die, requests may be lost",
                self.name
            );
            self.device.faults().log(log::Level::Warn, line);
            return None;
        }
        Some(setup)
    }

    /// A ring in guest addresses.
    fn resolve(&self, size: u16, addrs: RingAddrs, next_avail: u16) -> Result<RingSetup, SetupError> {
        let has = |bit: u32| 1_u64.checked_shl(bit).is_some_and(|bit| self.features & bit != 0);
        let mut setup = RingSetup {
            size,
            desc: addrs.desc,
            avail: addrs.avail,
            used: addrs.used,
            next_avail,
            event_idx: has(VIRTIO_RING_F_EVENT_IDX),
            indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
            in_order: self.device.in_order(),
            used_log: addrs.used_log,
        };
        let lengths = parts(&setup);
        for (addr, part) in [&mut setup.desc, &mut setup.avail, &mut setup.used].into_iter().zip(lengths) {
            part.check_align(*addr)?;
            let guest = self.memory.user_to_guest(*addr, part.len as u64);
            *addr = guest.ok_or(SetupError::Unmapped { part: part.name, addr: *addr, len: part.len })?;
        }
        setup.check_log(self.memory.log())?;
        Ok(setup)
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        self.stop_all();
    }
}

/// Whether a log has bits for all of a memory.
fn check_covers(log: &DirtyLog, memory: &GuestMem) -> Result<(), RingError> {
    let (size, end) = (log.size(), memory.end());
    let need = DirtyLog::size_for(end);
    if log.covers(end) { Ok(()) } else { Err(RingError::LogTooSmall { size, end, need }) }
}

fn index_of(index: u32) -> u16 {
    u16::try_from(index).expect("a ring that there is")
}

/// Checks that a file is an event fd. Pipes, sockets and files, on which a read or write could wait for ever, have a
/// type in their mode. The anonymous inodes of the kernel have none (eventfd(2)), and where there is /proc, the name of
/// the kind.
fn event_fd(what: &'static str, index: u32, file: File) -> Result<Arc<File>, RingError> {
    let is_anonymous =
        fstat(&file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Unknown);
    let kind = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let is_other = kind.is_ok_and(|kind| !kind.to_string_lossy().contains("[eventfd]"));
    if is_anonymous && !is_other { Ok(Arc::new(file)) } else { Err(RingError::NotAnEventFd { what, index }) }
}

mod handover;
#[cfg(test)]
mod tests;
