//! Rings that stand still while their device is handed over, what is said of them, and rings that are made of that.

use std::fs::File;
use std::io;
use std::sync::Arc;

use sluice_blk::disk::{LockError, LockGuard};
use sluice_mem::guest::GuestMem;

use super::{Ring, RingAddrs, RingError, Rings, event_fd};
use crate::device::Device;
use crate::handover::{Fds, HandoverError, RingState};
use crate::session::SessionError;
use crate::vring::check_size;
use crate::workers::ServedRing;

/// What is kept while rings stand still: which of them ran, and the disk's lock, if any did. Dropping it lets go of that.
#[derive(Debug, Default)]
pub(crate) struct Standstill {
    pub(super) running: Vec<u32>,
    pub(super) lock: Option<LockGuard>,
}

impl Rings {
    /// Stops all rings and waits for their I/O; the disk stays locked if any ran.
    pub(crate) fn stand_still(&mut self) -> Standstill {
        // A ring that runs has it, so it is not waited for.
        let lock = self.are_running().then(|| self.device.disk().lock().acquire(|| ()));
        let running = self.stop_all();
        Standstill { running, lock: lock.and_then(Result::ok) }
    }

    /// Starts what is complete.
    pub(crate) fn go_on(&mut self, standstill: Standstill) {
        let Standstill { running, lock } = standstill;
        if let Err(error) = self.release() {
            log::error!("{}: {error}", self.name);
            self.stop_all();
        }
        self.start_all(&running);
        drop(lock);
    }

    /// What somebody else has to know to go on with rings that stand still.
    pub(crate) fn states(&self, standstill: &Standstill, fds: &mut Fds) -> io::Result<Vec<RingState>> {
        let states = (0..).zip(&self.rings).map(|(index, ring)| {
            Ok(RingState {
                size: ring.size,
                // Nothing is logged (`is_logging`); when it is again, the front-end says where.
                addrs: ring.addrs.map(|RingAddrs { desc, avail, used, .. }| [desc, avail, used]),
                base: ring.base,
                kick: fds.put_some(ring.kick.as_deref())?,
                call: fds.put_some(ring.call.as_deref())?,
                err: fds.put_some(ring.err.as_deref())?,
                enabled: ring.enabled,
                broken: ring.broken,
                runs: standstill.running.contains(&index),
            })
        });
        states.collect()
    }

    /// Makes rings, which have not been set up, of what somebody else has said. Those that ran are started, as far as that
    /// can fail, and held back until they are told to go on.
    pub(crate) fn restore(
        &mut self,
        features: u64,
        memory: GuestMem,
        states: Vec<RingState>,
        fds: &mut Fds,
    ) -> Result<Standstill, HandoverError> {
        let count = self.rings.len();
        let most = u32::try_from(states.len()).unwrap_or(u32::MAX);
        if states.len() > count {
            return Err(SessionError::from(RingError::Index { index: most, count }).into());
        }
        self.features = features;
        self.memory = Arc::new(memory);
        let mut running = Vec::new();
        for (index, state) in (0..).zip(states) {
            if state.runs {
                running.push(index);
            }
            let ring = ring_of(index, state, fds)?;
            if let Some(addrs) = ring.addrs.filter(|_| ring.size > 0 && !self.memory.regions().is_empty()) {
                self.resolve(ring.size, addrs, ring.base)
                    .map_err(|source| SessionError::from(RingError::Setup { index, source }))?;
            }
            *self.ring(index).map_err(SessionError::from)? = ring;
        }
        for index in &running {
            self.start(*index, true, |rings| rings.device.disk().lock().take_over())
                .map_err(SessionError::from)?;
        }
        Ok(Standstill { running, lock: None })
    }

    /// Lets those go that are held back, when the disk is this process's alone.
    fn release(&mut self) -> Result<(), LockError> {
        if self.rings.iter().any(|ring| ring.served.is_some()) {
            let lock = self.device.disk().lock().acquire(|| self.meanwhile.turn())?;
            self.rings.iter().filter_map(|ring| ring.served.as_ref()).for_each(ServedRing::go);
            drop(lock);
        }
        Ok(())
    }
}

fn ring_of(index: u32, state: RingState, fds: &mut Fds) -> Result<Ring, HandoverError> {
    let mut event = |what, fd| -> Result<Option<Arc<File>>, HandoverError> {
        let file: Option<File> = fds.take_some(fd)?;
        let file = file.map(|file| event_fd(what, index, file)).transpose();
        Ok(file.map_err(SessionError::from)?)
    };
    let (kick, call, err) =
        (event("kick", state.kick)?, event("call", state.call)?, event("err", state.err)?);
    let RingState { size, addrs, base, enabled, broken, .. } = state;
    if size > 0 {
        let setup = |source| SessionError::from(RingError::Setup { index, source });
        check_size(size.into()).map_err(setup)?;
    }
    if size > Device::QUEUE_SIZE_MAX {
        let most = Device::QUEUE_SIZE_MAX;
        return Err(SessionError::from(RingError::TooLarge { index, size, most }).into());
    }
    let addrs = addrs.map(|[desc, avail, used]| RingAddrs { desc, avail, used, used_log: None });
    Ok(Ring { size, addrs, base, kick, call, err, enabled, broken, served: None })
}
