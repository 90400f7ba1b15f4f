//! The engine that blocks: preadv2, pwritev2, fdatasync, fallocate, in the queue's own thread.
//!
//! For hosts without io_uring, and the second implementation that the first is held against. A request has finished
//! when [`Engine::submit`] returns.
#![expect(unsafe_code, reason = "hands guest memory to preadv2 and pwritev2, and a range to an ioctl")]

use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::Errno;

use super::{Backing, Engine};
use crate::request::{Command, IoResult, Request};

/// The blocking engine of one queue.
#[derive(Debug)]
pub struct SyncEngine {
    backing: Arc<Backing>,
    done: Vec<(Request, IoResult)>,
}

impl SyncEngine {
    /// An engine for `backing` that holds up to `depth` finished requests.
    #[must_use]
    pub fn new(backing: Arc<Backing>, depth: u16) -> Self {
        Self { backing, done: Vec::with_capacity(usize::from(depth)) }
    }
}

impl Engine for SyncEngine {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        let result = execute(&self.backing, &request);
        self.done.push((request, result));
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<(Request, IoResult)>) {
        done.append(&mut self.done);
    }
}

/// Does what the request asks for, at once. Also for what a ring has no entry for.
pub(super) fn execute(backing: &Backing, request: &Request) -> IoResult {
    let file = &backing.file;
    let (offset, len) = (request.offset(), request.len());
    match request.command() {
        Command::Read => transfer(backing, request, false),
        Command::Write { .. } => transfer(backing, request, true),
        Command::Sync => backing.synced(fdatasync(file).map(|()| 0)),
        Command::Discard => fallocate(file, discard_mode(), offset, len).map(|()| 0),
        Command::SecureErase => secure_erase(backing, offset, len),
        Command::Zero { unmap } => fallocate(file, zero_mode(unmap), offset, len).map(|()| 0),
    }
}

/// The ioctl that erases a range of a block device so that nothing can be recovered (`BLKSECDISCARD`: `_IO(0x12, 125)`).
const BLKSECDISCARD: libc::Ioctl = 0x127d;

/// Erases a range of a block device; files and most block devices cannot.
pub(crate) fn secure_erase(backing: &Backing, offset: u64, len: u64) -> IoResult {
    if !backing.is_block {
        return Err(Errno::OPNOTSUPP);
    }
    let range = [offset, len];
    // SAFETY: the command takes a pointer to two 64-bit numbers, which it reads before it returns.
    let answer = unsafe { libc::ioctl(backing.file.as_raw_fd(), BLKSECDISCARD, range.as_ptr()) };
    if answer == 0 { Ok(0) } else { Err(last_error()) }
}

fn last_error() -> Errno {
    let error = std::io::Error::last_os_error();
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// How fallocate(2) gives space back. On a block device this writes zeroes by unmapping or fails.
pub(super) fn discard_mode() -> FallocateFlags {
    FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
}

/// How fallocate(2) makes a range read as zeroes.
pub(super) fn zero_mode(unmap: bool) -> FallocateFlags {
    let how = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
    how | FallocateFlags::KEEP_SIZE
}

fn transfer(backing: &Backing, request: &Request, write: bool) -> IoResult {
    let fd = backing.file.as_raw_fd();
    let pieces = request.sg().pieces();
    let vecs = pieces.as_ptr().cast::<libc::iovec>();
    let count = i32::try_from(pieces.len()).map_err(|_| Errno::INVAL)?;
    let offset = i64::try_from(request.offset()).map_err(|_| Errno::INVAL)?;
    let moved = if write {
        let dsync = request.command() == Command::Write { dsync: true };
        let flags = if dsync { libc::RWF_DSYNC } else { 0 };
        // SAFETY: the pieces are `struct iovec`s of mapped memory, kept alive by `request` during the call.
        unsafe { libc::pwritev2(fd, vecs, count, offset, flags) }
    } else {
        // SAFETY: as above; nothing of ours refers to the memory that is written.
        unsafe { libc::preadv2(fd, vecs, count, offset, 0) }
    };
    u32::try_from(moved).map_err(|_| last_error())
}
