//! What a device writes to a used ring, marked in the log of a front-end that copies the guest.
//!
//! Apart from all other memory, as the front-end says by an address of its own where the ring is in the log, and whether it is to
//! be there at all (vhost-user.rst, "Migration", `log_guest_addr`).
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::sync::Arc;

use sluice_mem::dirty::DirtyLog;

use super::{Part, RingSetup, SetupError, parts};

/// Where writes to a used ring are marked.
#[derive(Debug)]
pub(super) struct UsedLog {
    log: Arc<DirtyLog>,
    addr: u64,
}

impl UsedLog {
    /// Marks `len` bytes at `offset` in the ring.
    #[cold]
    pub(super) fn mark(&self, offset: usize, len: usize) {
        // No overflow: all of the ring is in the log.
        self.log.mark(self.addr.saturating_add(offset as u64), len as u64);
    }
}

impl RingSetup {
    /// Where the used ring is marked, if it is to be.
    pub(super) fn used_log(&self, log: Option<&Arc<DirtyLog>>) -> Result<Option<UsedLog>, SetupError> {
        let (Some(log), Some(addr)) = (log, self.used_log) else { return Ok(None) };
        let [_, _, Part { len, .. }] = parts(self);
        if !addr.checked_add(len as u64).is_some_and(|end| log.covers(end)) {
            return Err(SetupError::Log { addr, len, size: log.size() });
        }
        Ok(Some(UsedLog { log: Arc::clone(log), addr }))
    }

    /// Whether a log has bits for the used ring, if it is to be marked there.
    ///
    /// # Errors
    /// [`SetupError::Log`] when not.
    pub fn check_log(&self, log: Option<&Arc<DirtyLog>>) -> Result<(), SetupError> {
        self.used_log(log).map(|_| ())
    }
}
