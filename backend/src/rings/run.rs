//! Rings start when they are complete, and stop before what they rest on changes.
//!
//! To stop one is to wait for its I/O; it keeps the index at which it goes on. To start one takes the lock of the disk, which
//! is kept over a change, so that nobody else gets it meanwhile. The front-end's addresses become the guest's here, at each
//! start: the memory may be another.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::sync::Arc;

use sluice_blk::disk::{LockError, LockGuard};
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::{RingAddrs, RingError, Rings};
use crate::call::Call;
use crate::connection::chain;
use crate::inflight::InflightSetup;
use crate::service::ServiceSetup;
use crate::vring::{RingSetup, SetupError, parts};
use crate::workers::Stopping;

impl Rings {
    /// Stops all rings, changes what they rest on, and starts what is complete. If any ran, the disk stays locked meanwhile.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Self)) {
        let standstill = self.stand_still();
        change(self);
        self.attach_log();
        self.go_on(standstill);
    }

    /// Stops all rings and waits for their I/O. Returns those that ran.
    pub fn stop_all(&mut self) -> Vec<u32> {
        let stopping: Vec<_> = (0_u32..)
            .zip(&mut self.rings)
            .filter_map(|(index, ring)| Some((index, ring.served.take()?.begin_to_stop())))
            .collect();
        let running = stopping.iter().map(|(index, _)| *index).collect();
        for (index, stopping) in stopping {
            self.wait_for(index, stopping).expect("it is one of them");
        }
        running
    }

    /// Stops a ring, if it runs, and waits for its I/O.
    pub(super) fn stop(&mut self, index: u32) -> Result<(), RingError> {
        match self.ring(index)?.served.take() {
            Some(served) => self.wait_for(index, served.begin_to_stop()),
            None => Ok(()),
        }
    }

    /// Waits for the I/O of a ring that stops, and notes how it was left.
    fn wait_for(&mut self, index: u32, stopping: Stopping) -> Result<(), RingError> {
        let stopped = stopping.wait(|| self.meanwhile.turn());
        let ring = self.ring(index)?;
        (ring.base, ring.broken) = (stopped.next_avail, stopped.broken);
        Ok(())
    }

    /// Starts what is complete. Some have been `running` before.
    pub(super) fn start_all(&mut self, running: &[u32]) {
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

    /// Starts a ring, if it is complete, when it has the disk's lock.
    pub(super) fn start_if_complete(&mut self, index: u32) -> Result<(), RingError> {
        let lock = |rings: &mut Self| rings.device.disk().lock().acquire(|| rings.meanwhile.turn());
        self.start(index, false, lock)
    }

    /// Starts a ring with the disk's lock, if it is complete. One that is held back is served when it is told to go.
    pub(super) fn start(
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
        let lock = lock(self).map_err(|error| start(error.into()))?;
        self.mark_what_others_wrote();
        let setup = ServiceSetup {
            name: format!("{} ring {index}", self.name),
            index: index_of(index),
            ring: at,
            inflight,
            memory: Arc::clone(&self.memory),
            device: Arc::clone(&self.device),
            lock,
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

    /// A ring in guest addresses.
    pub(super) fn resolve(
        &self,
        size: u16,
        addrs: RingAddrs,
        next_avail: u16,
    ) -> Result<RingSetup, SetupError> {
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
}

fn index_of(index: u32) -> u16 {
    u16::try_from(index).expect("a ring that there is")
}
