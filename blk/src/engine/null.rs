//! The engine that does nothing and says that it has: for measuring everything but the I/O.
//!
//! Nothing is kept. What is read is what was in the memory before, so that not even a store is measured: bytes of the
//! reader's own, but perhaps of another program inside the guest. No disk for anything but a benchmark. (Linux:
//! `drivers/block/null_blk`; QEMU: `null-co` with `read-zeroes=off`.)

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
    fn submit(&mut self, request: Request) -> Result<(), Box<Request>> {
        let moved = match request.command() {
            // At most `QueueLimits::max_bytes`, a u32.
            Command::Read | Command::Write { .. } => u32::try_from(request.len()).unwrap_or(u32::MAX),
            Command::Sync | Command::Discard | Command::SecureErase | Command::Zero { .. } => 0,
        };
        self.done.push((request, Ok(moved)));
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<(Request, IoResult)>) {
        done.append(&mut self.done);
    }
}
