//! Ways to move the data: what a request queue asks of an engine, and the engines.
//!
//! The contract of [`Engine`] (Linux: `struct blk_mq_ops`), which every engine's tests check:
//! - A request that was taken comes back exactly once, through [`Engine::reap`], with a result.
//! - Requests may finish in any order.
//! - Until then the engine alone owns the request and its memory.
//! - Dropping an engine waits for what is in flight: the kernel never writes to memory that is gone.
//! - After a sync has failed, all fail, those of the disk's other queues too.
//!
//! The example of [`queue`](crate::queue) has an engine of twenty lines.

pub mod fault;
pub mod null;
pub mod ram;
pub mod ring;
pub mod signal;
pub mod sync;
pub mod uring;

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::fstatfs;
use rustix::io::Errno;

use crate::request::{IoResult, Request};

/// One queue's way to its disk (Linux: `struct blk_mq_ops`: `submit` is its `queue_rq`, `reap` its `poll`; completions are
/// asked for, they never interrupt).
pub trait Engine {
    /// Starts a request.
    ///
    /// # Errors
    /// Hands the request back, unchanged, when the engine is full: it is to be submitted again when the thread has
    /// waited for something to come back.
    fn submit(&mut self, request: Request) -> Result<(), Request>;

    /// Appends the requests that have finished to `done`. Never waits.
    fn reap(&mut self, done: &mut Vec<(Request, IoResult)>);
}

/// The file behind an engine, and what one has to know of it (Linux: `struct block_device`, and the `struct loop_device` of
/// a file).
#[derive(Debug)]
pub struct Backing {
    /// The opened file or block device.
    pub file: File,
    /// Whether it is a block device.
    pub is_block: bool,
    /// Whether it is in memory, so that no access waits for a disk, but for what was swapped out.
    pub is_in_memory: bool,
    sync_failed: AtomicBool,
}

impl Backing {
    /// The backing for an opened file or block device.
    #[must_use]
    pub fn new(file: File, is_block: bool) -> Self {
        let is_in_memory = !is_block && is_in_memory(&file);
        Self { file, is_block, is_in_memory, sync_failed: AtomicBool::new(false) }
    }

    /// What to say of a sync of which the system says `result`.
    ///
    /// The kernel tells once that it has lost data, and whoever asks again hears that all is well (fsync(2), since
    /// Linux 4.13). A guest does ask again, so here a failure is told until the file is opened anew.
    fn synced(&self, result: IoResult) -> IoResult {
        match result {
            Ok(_) if self.sync_failed.load(Ordering::Acquire) => Err(Errno::IO),
            Ok(_) | Err(Errno::INTR | Errno::AGAIN) => result,
            Err(error) => {
                if !self.sync_failed.swap(true, Ordering::AcqRel) {
                    log::error!("what was written may be lost ({error}): no flush succeeds from now on");
                }
                result
            }
        }
    }
}

/// Whether a file is on a file system that is memory (statfs(2)): tmpfs and ramfs.
fn is_in_memory(file: &File) -> bool {
    fstatfs(file).is_ok_and(|fs| [libc::TMPFS_MAGIC, RAMFS_MAGIC].contains(&fs.f_type))
}

/// linux/magic.h
const RAMFS_MAGIC: libc::c_long = 0x8584_58f6;

#[cfg(test)]
mod tests;
