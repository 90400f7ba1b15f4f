//! Writes for which the disk has no space, on a queue that is to wait for it ([`OnEnospc::Stop`](super::OnEnospc)).
//!
//! They keep their tag, their memory and their blocks, and are tried again each second. Everything else goes on: what needs
//! no space still works. (QEMU stops the whole guest; here somebody has to make space, and the guest may do that.)

use std::time::Duration;

use rustix::io::Errno;

use super::{OnEnospc, RequestQueue};
use crate::request::{Command, Request, Status};

/// How soon the disk is asked again.
const RETRY: Duration = Duration::from_secs(1);

impl RequestQueue {
    /// Whether a request is to wait, of which the disk has said `error`.
    pub(super) fn waits_for_space(&self, request: &Request, error: Errno) -> bool {
        let takes_space =
            matches!(request.command(), Command::Write { .. } | Command::Discard | Command::Zero { .. });
        self.config.on_enospc == OnEnospc::Stop && takes_space && is_no_space(error)
    }

    /// Lets a request wait.
    #[cold]
    pub(super) fn stop_for_space(&mut self, request: Request) {
        if self.retry_at.is_none() {
            log::warn!(
                "{}: the disk has no space for {:?} of {} bytes at {}: what needs some waits until there is",
                self.config.name,
                request.command(),
                request.len(),
                request.offset()
            );
        }
        let retry_at = *self.retry_at.get_or_insert(self.now + RETRY);
        // It is not the disk that lets it wait.
        self.chains[request.bio().chain as usize].since = retry_at;
        self.stats.stopped.add(1);
        self.stopped.push_back(request);
    }

    /// Tries again what waits, if it is time to.
    pub(super) fn retry_stopped(&mut self) {
        if self.retry_at.is_none_or(|at| self.now < at) {
            return;
        }
        if self.stopped.is_empty() {
            self.retry_at = None;
            log::info!("{}: the disk has space again: nothing waits for it any more", self.config.name);
            return;
        }
        self.retry_at = Some(self.now + RETRY);
        self.again.extend(self.stopped.drain(..));
        self.stalled = false;
    }

    /// Fails what waits for space: the queue is to be emptied, and that may take for ever.
    pub fn fail_stopped(&mut self) {
        while let Some(request) = self.stopped.pop_front() {
            self.end_early(request, Status::IoErr);
        }
    }
}

/// What systems say when there is no room: on the disk, or of what its owner may have of it.
fn is_no_space(error: Errno) -> bool {
    matches!(error, Errno::NOSPC | Errno::DQUOT)
}
