//! The engine on io_uring: requests become entries of the thread's ring.
//!
//! The engine keeps each request in a slot, by its tag, from submission to completion; entries point into the slot's
//! request, which does not move meanwhile. Unless the ring is full nothing is submitted here: the thread enters the
//! kernel once per batch for all of its queues.
//!
//! Where a file is in memory, reads and writes are done at once: its file systems do not say that they need not wait
//! (`RWF_NOWAIT`), so that the ring would hand each over to a thread of the kernel.
#![expect(unsafe_code, reason = "hands guest memory to the kernel through the ring")]

use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{opcode, squeue, types};
use rustix::io::Errno;

use super::ring::{Client, Ring};
use super::sync::{discard_mode, execute, zero_mode};
use super::{Backing, Engine};
use crate::request::{Command, IoResult, Request};

/// The ioctl-like command that discards a range of a block device (`BLOCK_URING_CMD_DISCARD`, Linux 6.12).
const BLOCK_URING_CMD_DISCARD: u32 = 0x1200;

/// The io_uring engine of one queue.
#[derive(Debug)]
pub struct UringEngine {
    // Dropped first: waits for what is in flight, which points into the slots and names the file by its fd.
    client: Client,
    slots: Vec<Option<Request>>,
    /// What was done at once.
    done: Vec<(Request, IoResult)>,
    backing: Arc<Backing>,
    /// Whether the kernel has, or may have, [`BLOCK_URING_CMD_DISCARD`] for the disk.
    has_discard_command: bool,
}

impl UringEngine {
    /// An engine for `backing` with up to `depth` requests in flight, on the calling thread's `ring`.
    #[must_use]
    pub fn new(backing: Arc<Backing>, depth: u16, ring: &Ring) -> Self {
        let client = ring.client(usize::from(depth));
        let slots = (0..depth).map(|_| None).collect();
        let has_discard_command = backing.is_block;
        Self { client, slots, done: Vec::with_capacity(usize::from(depth)), backing, has_discard_command }
    }
}

impl UringEngine {
    fn is_done_at_once(&self, command: Command) -> bool {
        match command {
            Command::Read | Command::Write { .. } => self.backing.is_in_memory,
            // The ring has no entry for it. It takes as long as it takes, and the ring's other queues wait; it is rare and
            // somebody wants it.
            Command::SecureErase => true,
            Command::Sync | Command::Discard | Command::Zero { .. } => false,
        }
    }

    /// What became of a request of which the kernel says `result`.
    pub(super) fn result_of(&mut self, request: &Request, result: IoResult) -> IoResult {
        match (request.command(), result) {
            (Command::Sync, result) => self.backing.synced(result),
            (Command::Discard, Err(Errno::OPNOTSUPP)) if self.has_discard_command => {
                // Not with this command, on Linux before 6.12; perhaps as on a file.
                self.has_discard_command = false;
                execute(&self.backing, request)
            }
            (_, result) => result,
        }
    }
}

impl Engine for UringEngine {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        if self.is_done_at_once(request.command()) {
            let result = execute(&self.backing, &request);
            self.done.push((request, result));
            return Ok(());
        }
        let tag = request.tag();
        let slot = &mut self.slots[tag.index()];
        // Else the kernel would lose the memory that it is writing to.
        assert!(slot.is_none(), "a tag has one request");
        let request = slot.insert(request);
        let entry = entry(types::Fd(self.backing.file.as_raw_fd()), request, self.has_discard_command);
        let token = u32::try_from(tag.index()).expect("a tag has 16 bits");
        // SAFETY: the entry points to the pieces of the request in its slot and to the memory that they name. The
        // request stays in the slot until its event was taken, and keeps that memory alive.
        let pushed = unsafe { self.client.push(entry, token) };
        match pushed {
            Ok(()) => Ok(()),
            Err(_) => Err(slot.take().expect("inserted above")),
        }
    }

    fn reap(&mut self, done: &mut Vec<(Request, IoResult)>) {
        done.append(&mut self.done);
        while let Some(event) = self.client.next_event() {
            let request =
                self.slots[event.token as usize].take().expect("an event is of a request in flight");
            let result = u32::try_from(event.result)
                .map_err(|_| Errno::from_raw_os_error(event.result.saturating_neg()));
            let result = self.result_of(&request, result);
            done.push((request, result));
        }
    }
}

fn entry(file: types::Fd, request: &Request, has_discard_command: bool) -> squeue::Entry {
    let (offset, len) = (request.offset(), request.len());
    match request.command() {
        Command::Read => read(file, request),
        Command::Write { dsync } => write(file, request, dsync),
        Command::Sync => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        Command::SecureErase => unreachable!("done at once"),
        Command::Discard if has_discard_command => discard_block(file, offset, len),
        Command::Discard => allocate(file, offset, len, discard_mode()),
        Command::Zero { unmap } => allocate(file, offset, len, zero_mode(unmap)),
    }
}

fn read(file: types::Fd, request: &Request) -> squeue::Entry {
    match request.sg().pieces() {
        [piece] => {
            // At most `QueueLimits::max_bytes`, a u32.
            let len = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            opcode::Read::new(file, piece.as_ptr(), len).offset(request.offset()).build()
        }
        pieces => {
            let count = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
            opcode::Readv::new(file, pieces.as_ptr().cast(), count).offset(request.offset()).build()
        }
    }
}

fn write(file: types::Fd, request: &Request, dsync: bool) -> squeue::Entry {
    let flags = if dsync { libc::RWF_DSYNC } else { 0 };
    match request.sg().pieces() {
        [piece] => {
            let len = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            opcode::Write::new(file, piece.as_ptr(), len).offset(request.offset()).rw_flags(flags).build()
        }
        pieces => {
            let count = u32::try_from(pieces.len()).unwrap_or(u32::MAX);
            let vecs = pieces.as_ptr().cast();
            opcode::Writev::new(file, vecs, count).offset(request.offset()).rw_flags(flags).build()
        }
    }
}

fn allocate(file: types::Fd, offset: u64, len: u64, mode: rustix::fs::FallocateFlags) -> squeue::Entry {
    opcode::Fallocate::new(file, len).offset(offset).mode(mode.bits().cast_signed()).build()
}

/// The kernel takes the start from the entry's address and the length from the first 8 bytes of the command.
fn discard_block(file: types::Fd, offset: u64, len: u64) -> squeue::Entry {
    let mut command = [0; 16];
    command[..8].copy_from_slice(&len.to_ne_bytes());
    opcode::UringCmd16::new(file, BLOCK_URING_CMD_DISCARD).addr(Some(offset)).cmd(command).build()
}
