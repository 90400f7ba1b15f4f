//! The engine that does nothing and says that it has: for measuring everything but the I/O.
//!
//! Nothing is kept. What is read is what was in the memory before, so that not even a store is measured: bytes of the
//! reader's own, but perhaps of another program inside the guest. No disk for anything but a benchmark. (Linux:
//! `drivers/block/null_blk`; QEMU: `null-co` with `read-zeroes=off`.)

use rustix::io::Errno;

use super::Engine;
use crate::request::{Command, IoResult, Request};

/// The null engine of one queue.
#[derive(Debug)]
pub struct NullEngine {
    done: Vec<(Request, IoResult)>,
}

impl NullEngine {
    /// An engine that holds up to `depth` finished requests.
    #[must_use]
    pub fn new(depth: u16) -> Self {
        Self { done: Vec::with_capacity(usize::from(depth)) }
    }
}

impl Engine for NullEngine {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        let result = match request.command() {
            // At most `QueueLimits::max_bytes`, a u32.
            Command::Read | Command::Write { .. } => Ok(u32::try_from(request.len()).unwrap_or(u32::MAX)),
            Command::Sync | Command::Discard | Command::Zero { .. } => Ok(0),
            Command::SecureErase => Err(Errno::OPNOTSUPP),
        };
        self.done.push((request, result));
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<(Request, IoResult)>) {
        done.append(&mut self.done);
    }
}
