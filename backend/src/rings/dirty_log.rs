//! The log of what is written to the guest's memory, which a front-end keeps while it copies the guest to another host.
//!
//! It is in use while LOG_ALL is among the features, and then has bits for all of the memory and for each used ring that is
//! to be in it: what is smaller is refused before anything changes, so that nothing on the path of a request has to ask.
//! One that is not in use may be smaller than the memory becomes; it is dropped then.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::sync::Arc;

use sluice_mem::dirty::DirtyLog;
use sluice_mem::guest::GuestMem;
use vhost::vhost_user::message::VhostUserVirtioFeatures;

use super::{RingError, Rings};
use crate::vring::RingSetup;

impl Rings {
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

    /// Whether the front-end wants to know what is written: it copies the guest's memory.
    pub(crate) fn is_logging(&self) -> bool {
        self.features & VhostUserVirtioFeatures::LOG_ALL.bits() != 0
    }

    /// Marks all of the memory before the first ring runs, if it is logged by then what is written: a front-end that copies the
    /// memory and begins on a new connection has lost who wrote to it before, and with it, perhaps, the marks that it had not
    /// looked at. QEMU lets go of the log of a back-end that has died, unread, and gives the next one an empty one. With the disk's
    /// lock, so that what the dead one has left in the kernel has been written by now.
    pub(super) fn mark_what_others_wrote(&mut self) {
        if !std::mem::replace(&mut self.has_run, true) {
            self.memory.mark_all();
        }
    }

    /// Gives the memory the log, or takes it.
    pub(super) fn attach_log(&mut self) {
        let log = self.log_in_use().cloned();
        let is_attached = match (&log, self.memory.log()) {
            (Some(log), Some(attached)) => Arc::ptr_eq(log, attached),
            (log, attached) => log.is_none() && attached.is_none(),
        };
        if !is_attached {
            self.memory = Arc::new(GuestMem::clone(&self.memory).with_log(log));
        }
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
}

/// Whether a log has bits for all of a memory.
fn check_covers(log: &DirtyLog, memory: &GuestMem) -> Result<(), RingError> {
    let (size, end) = (log.size(), memory.end());
    let need = DirtyLog::size_for(end);
    if log.covers(end) { Ok(()) } else { Err(RingError::LogTooSmall { size, end, need }) }
}
