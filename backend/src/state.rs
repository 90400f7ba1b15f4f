//! What a device has that a guest knows and that is in no ring: carried to another host by a front-end that asks for it
//! (vhost-user.rst, "Migrating back-end state", DEVICE_STATE).
//!
//! ```text
//!  0         8         12         20          21       24     44
//! ┌─────────┬─────────┬──────────┬───────────┬────────┬──────┐
//! │ "sluice"│ version │ capacity │ writeback │ unused │  id  │   numbers are little-endian
//! └─────────┴─────────┴──────────┴───────────┴────────┴──────┘
//! ```
//!
//! Whether the driver has its write cache on is what has to be carried: it says so once and relies on it. The rest is there to be
//! compared: a destination that has another disk says so before the guest runs.
//!
//! The bytes go through a pipe of ours, which is given to the front-end in place of the one that it offers (the specification
//! lets a back-end do that): so nobody can make this process wait for a pipe that is full, or that stays empty.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::device::{Device, ID_BYTES};

const MAGIC: [u8; 8] = *b"sluice\0\0";
const VERSION: u32 = 1;
const BYTES: usize = 44;

/// Why a state is not taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// Rings run.
    #[error("the state of a device whose rings run")]
    Running,
    /// There is nothing to check.
    #[error("no state was transferred")]
    None,
    /// Longer or shorter than a state is, or not all of it has come.
    #[error("a state of {count} bytes or more: {BYTES} are one")]
    Length {
        /// How many there are, up to one more than there may be.
        count: usize,
    },
    /// Not a state of this program's, or one of another version.
    #[error("what was transferred is no state of version {VERSION}")]
    Unknown,
    /// A field that is neither 0 nor 1.
    #[error("a write cache that is neither on nor off: {0}")]
    Writeback(u8),
    /// The guest would find another disk.
    #[error("the guest has a disk of {was} sectors, and here are {now}")]
    Capacity {
        /// At the source.
        was: u64,
        /// Here.
        now: u64,
    },
    /// The guest would find another disk.
    #[error("the guest has a disk with the serial number \"{was}\", and here is \"{now}\"")]
    Serial {
        /// At the source.
        was: String,
        /// Here.
        now: String,
    },
    /// The host has no pipe.
    #[error("the state cannot be transferred")]
    Host(#[from] io::Error),
}

/// A transfer that was begun, until the front-end asks how it went.
#[derive(Debug)]
pub(crate) enum Transfer {
    /// All of it is in the pipe.
    Saved,
    /// To be read when the front-end has written it.
    Loading(File),
}

impl Transfer {
    /// Writes the device's state. Returns where it can be read.
    pub(crate) fn save(device: &Device) -> Result<(Self, File), StateError> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        // A new pipe has room for more than that.
        File::from(writer).write_all(&bytes_of(device))?;
        Ok((Self::Saved, File::from(reader)))
    }

    /// Waits for a state. Returns where it is to be written.
    pub(crate) fn load() -> Result<(Self, File), StateError> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        Ok((Self::Loading(File::from(reader)), File::from(writer)))
    }

    /// Ends the transfer: a state that was loaded is the device's from now on, if it is one. Returns whether the driver's write
    /// cache is on then.
    pub(crate) fn check(self, device: &Device) -> Result<bool, StateError> {
        if let Self::Loading(pipe) = self {
            let is_writeback = parse(&read(pipe)?, device)?;
            device.config().set_writeback(is_writeback);
        }
        Ok(device.config().is_writeback())
    }
}

fn bytes_of(device: &Device) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BYTES);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(device.config().capacity().0.to_le_bytes());
    bytes.extend([u8::from(device.config().is_writeback()), 0, 0, 0]);
    bytes.extend(device.id());
    bytes
}

/// All that is in a pipe, which nobody writes to any more.
fn read(mut pipe: File) -> Result<[u8; BYTES], StateError> {
    let mut bytes = [0; BYTES];
    let mut count = 0;
    while let Some(room) = bytes.get_mut(count..).filter(|room| !room.is_empty()) {
        // While nothing is there and the front-end has not closed its end, it would be waited for.
        match if is_readable(&pipe)? { pipe.read(room)? } else { 0 } {
            0 => return Err(StateError::Length { count }),
            more => count = count.saturating_add(more),
        }
    }
    let is_end = is_readable(&pipe)? && pipe.read(&mut [0])? == 0;
    if is_end { Ok(bytes) } else { Err(StateError::Length { count: count.saturating_add(1) }) }
}

/// Whether a pipe has something, or its end.
fn is_readable(pipe: &File) -> io::Result<bool> {
    let mut polled = [PollFd::new(pipe, PollFlags::IN)];
    Ok(retry_on_intr(|| poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })))? > 0)
}

/// Whether the write cache is on, by a state that fits the device.
fn parse(bytes: &[u8; BYTES], device: &Device) -> Result<bool, StateError> {
    let (magic, rest) = bytes.split_first_chunk().ok_or(StateError::Unknown)?;
    let (version, rest) = rest.split_first_chunk().ok_or(StateError::Unknown)?;
    let (capacity, rest) = rest.split_first_chunk().ok_or(StateError::Unknown)?;
    let ([writeback, unused @ ..], id) = rest.split_first_chunk::<4>().ok_or(StateError::Unknown)?;
    if *magic != MAGIC || u32::from_le_bytes(*version) != VERSION || *unused != [0; 3] {
        return Err(StateError::Unknown);
    }
    let (was, now) = (u64::from_le_bytes(*capacity), device.config().capacity().0);
    if was != now {
        return Err(StateError::Capacity { was, now });
    }
    if id != device.id() {
        let text = |id: &[u8]| String::from_utf8_lossy(id).trim_end_matches('\0').to_owned();
        return Err(StateError::Serial { was: text(id), now: text(device.id()) });
    }
    match writeback {
        0 | 1 => Ok(*writeback == 1),
        other => Err(StateError::Writeback(*other)),
    }
}

const _: () = assert!(BYTES == MAGIC.len() + 4 + 8 + 4 + ID_BYTES);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doubles::disk::TestDisk;

    /// Takes what a device says, changed, to another one.
    fn carry(from: &Device, to: &Device, change: impl Fn(&mut Vec<u8>)) -> Result<bool, StateError> {
        let (saved, mut reader) = Transfer::save(from).expect("a pipe");
        saved.check(from).expect("it was written");
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).expect("a pipe");
        assert_eq!(bytes.len(), BYTES);
        change(&mut bytes);
        let (loading, mut writer) = Transfer::load().expect("a pipe");
        writer.write_all(&bytes).expect("room in a pipe");
        drop(writer);
        loading.check(to)
    }

    #[test]
    fn a_write_cache_that_was_switched_off_is_off_at_the_destination() {
        let (from, to) = (TestDisk::new(64).device(1), TestDisk::new(64).device(1));
        for is_writeback in [false, true, true, false] {
            from.config().set_writeback(is_writeback);
            assert_eq!(carry(&from, &to, |_| ()).expect("a good state"), is_writeback);
            assert_eq!(to.config().is_writeback(), is_writeback);
        }
    }

    #[test]
    fn what_is_no_state_of_this_disk_changes_nothing() {
        let (from, to) = (TestDisk::new(64).device(1), TestDisk::new(64).device(1));
        from.config().set_writeback(false);
        let wrong = |change: &dyn Fn(&mut Vec<u8>)| carry(&from, &to, change).expect_err("it is wrong");
        // Each byte matters, but for the one that says whether the cache is on.
        for at in (0..BYTES).filter(|at| *at != 20) {
            wrong(&|bytes| bytes[at] ^= 0x10);
        }
        assert!(matches!(wrong(&|bytes| bytes[20] = 2), StateError::Writeback(2)));
        assert!(matches!(wrong(&|bytes| bytes[12] = 65), StateError::Capacity { was: 65, now: 64 }));
        for len in [0, 1, BYTES - 1, BYTES + 1, 10_000] {
            let error = wrong(&|bytes| bytes.resize(len, 0));
            assert!(matches!(error, StateError::Length { .. }), "{len}: {error}");
        }
        assert!(to.config().is_writeback());
    }

    #[test]
    fn a_front_end_that_does_not_close_its_end_is_not_waited_for() {
        let device = TestDisk::new(64).device(1);
        let (loading, mut writer) = Transfer::load().expect("a pipe");
        writer.write_all(&bytes_of(&device)).expect("room in a pipe");
        assert!(matches!(loading.check(&device), Err(StateError::Length { .. })));
    }
}
