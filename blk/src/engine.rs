//! Ways to move the data: what a request queue asks of an engine, and the engines.
//!
//! The contract of [`Engine`] (Linux: `struct blk_mq_ops`), which every engine's tests check:
//! - A request that was taken comes back exactly once, through [`Engine::reap`], with a result.
//! - Requests may finish in any order.
//! - Until then the engine alone owns the request and its memory.
//! - Dropping an engine waits for what is in flight: the kernel never writes to memory that is gone.

pub mod ring;
pub mod sync;
pub mod uring;

use std::fs::File;

use crate::request::{IoResult, Request};

/// One queue's way to its disk.
pub trait Engine {
    /// Starts a request.
    ///
    /// # Errors
    /// Hands the request back, unchanged, when the engine is full: it is to be submitted again after something
    /// came back.
    fn submit(&mut self, request: Request) -> Result<(), Box<Request>>;

    /// Appends the requests that have finished to `done`. Never waits.
    fn reap(&mut self, done: &mut Vec<(Request, IoResult)>);
}

/// The file behind an engine, and what one has to know of it.
#[derive(Debug)]
pub struct Backing {
    /// The opened file or block device.
    pub file: File,
    /// Whether it is a block device.
    pub is_block: bool,
}
