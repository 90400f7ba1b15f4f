//! The engine of a disk in memory: copies between the guest's memory and ours, in the queue's own thread.
//!
//! A request has finished when [`Engine::submit`] returns. What is written lasts as long as the disk is open, so that
//! there is nothing to flush; discarded and zeroed ranges give their memory back. (Linux: `drivers/block/brd.c`.)

use std::sync::Arc;

use rustix::io::Errno;
use sluice_mem::anon::AnonMem;

use super::Engine;
use crate::request::{Command, IoResult, Request};

/// The engine of one queue of a disk in memory. All queues of the disk share the memory.
#[derive(Debug)]
pub struct RamEngine {
    memory: Arc<AnonMem>,
    done: Vec<(Request, IoResult)>,
}

impl RamEngine {
    /// An engine for `memory` that holds up to `depth` finished requests.
    #[must_use]
    pub fn new(memory: Arc<AnonMem>, depth: u16) -> Self {
        Self { memory, done: Vec::with_capacity(usize::from(depth)) }
    }
}

impl Engine for RamEngine {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        let result = execute(&self.memory, &request);
        self.done.push((request, result));
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<(Request, IoResult)>) {
        done.append(&mut self.done);
    }
}

fn execute(memory: &AnonMem, request: &Request) -> IoResult {
    let moved = match request.command() {
        Command::Read => memory.read(request.offset(), request.sg()),
        Command::Write { .. } => memory.write(request.offset(), request.sg()),
        Command::Sync => 0,
        // Zeroes that keep their space have no other meaning here: there is no space that others could take.
        Command::Discard | Command::Zero { .. } => {
            memory.zero(request.offset(), request.len());
            0
        }
        Command::SecureErase => return Err(Errno::OPNOTSUPP),
    };
    if request.sg().is_lost() {
        // As the kernel says of memory that is not there.
        return Err(Errno::FAULT);
    }
    u32::try_from(moved).map_err(|_| Errno::INVAL)
}
