//! As much of the FUSE protocol (fuse(4), linux/fuse.h) as a file system needs that is one file.
//!
//! ```text
//! call:   len u32 | opcode u32 | unique u64 | node u64 | uid, gid, pid u32 | 4 | arguments ...
//! answer: len u32 | error i32 | unique u64 | ...
//! ```

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::mount::{MountFlags, mount};

use super::Change;

const HEADER: usize = 40;
/// The most bytes of a transfer.
const TRANSFER_MAX: u32 = 1 << 20;
/// A call with the longest transfer.
pub(super) const CALL_BYTES_MAX: usize = TRANSFER_MAX as usize + 4096;

const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;
const FALLOCATE: u32 = 43;

/// FUSE_BIG_WRITES, FUSE_ASYNC_DIO, FUSE_MAX_PAGES.
const INIT_FLAGS: u32 = 1 << 5 | 1 << 15 | 1 << 22;
/// FOPEN_DIRECT_IO, FOPEN_PARALLEL_DIRECT_WRITES: nothing is cached, nothing waits for its turn.
const OPEN_FLAGS: u32 = 1 << 0 | 1 << 6;
/// The place of the only file.
const ROOT_NODE: u64 = 1;
/// A regular file that root may read and write.
const MODE: u32 = 0o100_600;

/// The connection to the kernel.
#[derive(Debug)]
pub(super) struct Channel(File);

/// What the kernel asks for.
#[derive(Debug)]
pub(super) struct Call {
    unique: u64,
    opcode: u32,
    arguments: Vec<u8>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |field| u32::from_le_bytes(field.try_into().expect("four bytes")))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |field| u64::from_le_bytes(field.try_into().expect("eight bytes")))
}

fn zeroes(count: usize) -> Vec<u8> {
    vec![0; count]
}

impl Channel {
    /// Mounts a file system whose root is a file, on a file.
    pub(super) fn mount(path: &Path) -> io::Result<Self> {
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let options = format!("fd={},rootmode={MODE:o},user_id=0,group_id=0", device.as_raw_fd());
        let options = CString::new(options)?;
        mount("sluice-test", path, "fuse", MountFlags::NODEV | MountFlags::NOSUID, &*options)?;
        Ok(Self(device))
    }

    /// The next call, if it is one to be answered; an error when the file system is gone.
    pub(super) fn next(&self, buffer: &mut [u8]) -> io::Result<Option<Call>> {
        let count = loop {
            match (&self.0).read(buffer) {
                // A call that was interrupted before it could be taken.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::ENOENT | libc::EAGAIN)) => {}
                read => break read?,
            }
        };
        let call = &buffer[..count];
        let opcode = u32_at(call, 4);
        let arguments = call.get(HEADER..).unwrap_or_default().to_vec();
        let call = Call { unique: u64_at(call, 8), opcode, arguments };
        Ok((![FORGET, BATCH_FORGET, INTERRUPT].contains(&opcode)).then_some(call))
    }

    pub(super) fn answer(&self, unique: u64, answer: Result<&[u8], &io::Error>) -> io::Result<()> {
        let error = answer.err().map_or(0, |error| -error.raw_os_error().unwrap_or(libc::EIO));
        let body = answer.unwrap_or_default();
        let len = u32::try_from(16 + body.len()).expect("an answer is short");
        let parts = [&len.to_le_bytes()[..], &error.to_le_bytes(), &unique.to_le_bytes(), body];
        (&self.0).write_all(&parts.concat())
    }

    /// Answers what does not concern the disk's content, or is no transfer of whole blocks; hands back what does.
    pub(super) fn answer_at_once(&self, call: Call, size: u64, block: u64) -> Option<Call> {
        let answer = match call.opcode {
            READ | WRITE if !call.is_whole(block) => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            READ | WRITE | FSYNC | FALLOCATE => return Some(call),
            INIT => Ok(init()),
            GETATTR => Ok(attributes(size)),
            OPEN => Ok([&0_u64.to_le_bytes()[..], &OPEN_FLAGS.to_le_bytes(), &[0; 4]].concat()),
            STATFS => Ok(zeroes(80)),
            FLUSH | RELEASE => Ok(Vec::new()),
            _ => Err(io::Error::from_raw_os_error(libc::ENOSYS)),
        };
        // Who has asked may be dead.
        let _ = self.answer(call.unique, answer.as_deref());
        None
    }
}

/// What this side can do: version 7.31, and as much at a time as there may be.
fn init() -> Vec<u8> {
    let (background, congestion, pages) = (256_u16, 192_u16, 256_u16);
    let mut answer = [7, 31, 0, INIT_FLAGS].map(u32::to_le_bytes).concat();
    answer.extend([background, congestion].map(u16::to_le_bytes).concat());
    answer.extend([TRANSFER_MAX, 1].map(u32::to_le_bytes).concat());
    answer.extend(pages.to_le_bytes());
    answer.resize(64, 0);
    answer
}

fn attributes(size: u64) -> Vec<u8> {
    // How long that holds: always.
    let mut answer = [&3600_u64.to_le_bytes()[..], &[0; 8]].concat();
    answer.extend([ROOT_NODE, size, size / 512, 0, 0, 0].map(u64::to_le_bytes).concat());
    let (links, owner, block) = (1, 0, 4096);
    answer.extend([0, 0, 0, MODE, links, owner, owner, 0, block, 0].map(u32::to_le_bytes).concat());
    answer
}

impl Call {
    pub(super) fn unique(&self) -> u64 {
        self.unique
    }

    /// Where it begins, and how many bytes it is about.
    fn range(&self) -> (u64, u64) {
        let len = if self.opcode == FALLOCATE {
            u64_at(&self.arguments, 16)
        } else {
            u64::from(u32_at(&self.arguments, 16))
        };
        (u64_at(&self.arguments, 8), len)
    }

    fn is_whole(&self, block: u64) -> bool {
        let (offset, len) = self.range();
        offset.is_multiple_of(block) && len.is_multiple_of(block)
    }

    /// What it changes, if anything.
    pub(super) fn change(&self) -> Option<Change> {
        let (offset, len) = self.range();
        match self.opcode {
            WRITE => {
                let flags = i32::try_from(u32_at(&self.arguments, 32)).unwrap_or_default();
                let data = self.arguments.get(40..).unwrap_or_default().to_vec();
                Some(Change::Write { offset, data, is_durable: flags & libc::O_DSYNC != 0 })
            }
            FALLOCATE => Some(Change::Zero { offset, len }),
            FSYNC => Some(Change::Sync),
            _ => None,
        }
    }

    /// Does it; the answer's arguments.
    pub(super) fn apply(&self, bytes: &mut [u8]) -> io::Result<Vec<u8>> {
        if self.opcode == FSYNC {
            return Ok(Vec::new());
        }
        let (offset, len) = self.range();
        let (start, len) = (usize::try_from(offset), usize::try_from(len));
        let (start, len) = start.ok().zip(len.ok()).ok_or(io::ErrorKind::InvalidInput)?;
        let end = start.saturating_add(len).min(bytes.len());
        let range = bytes.get_mut(start.min(end)..end).ok_or(io::ErrorKind::InvalidInput)?;
        match self.opcode {
            READ => return Ok(range.to_vec()),
            WRITE => {
                let data = self.arguments.get(40..40 + range.len()).ok_or(io::ErrorKind::InvalidInput)?;
                range.copy_from_slice(data);
                let count = u32::try_from(range.len()).expect("a transfer is short");
                return Ok([count.to_le_bytes(), [0; 4]].concat());
            }
            FALLOCATE => range.fill(0),
            _ => {}
        }
        Ok(Vec::new())
    }
}
