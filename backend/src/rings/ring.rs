//! One ring, as messages set it up, each a part of it.
//!
//! A part is checked when it comes, as far as that can be told without the others; whether they make a ring together is
//! seen when it starts.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use rustix::fs::{FileType, fstat};

use super::RingError;
use crate::workers::ServedRing;

/// Where a ring is, in the front-end's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddrs {
    /// The descriptor table.
    pub desc: u64,
    /// The driver area.
    pub avail: u64,
    /// The device area.
    pub used: u64,
    /// Where the device area is in the log of what is written; none if it is not to be logged.
    pub used_log: Option<u64>,
}

/// One ring as it is set up, and who serves it while it runs.
#[derive(Debug, Default)]
pub(super) struct Ring {
    pub(super) size: u16,
    pub(super) addrs: Option<RingAddrs>,
    pub(super) base: u16,
    pub(super) kick: Option<Arc<File>>,
    pub(super) call: Option<Arc<File>>,
    pub(super) err: Option<Arc<File>>,
    pub(super) enabled: bool,
    /// The driver has broken it: it does not run before it was given up with GET_VRING_BASE.
    pub(super) broken: bool,
    pub(super) served: Option<ServedRing>,
}

/// Checks that a file is an event fd. Pipes, sockets and files, on which a read or write could wait for ever, have a
/// type in their mode. The anonymous inodes of the kernel have none (eventfd(2)), and where there is /proc, the name of
/// the kind.
pub(super) fn event_fd(what: &'static str, index: u32, file: File) -> Result<Arc<File>, RingError> {
    let is_anonymous =
        fstat(&file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Unknown);
    let kind = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let is_other = kind.is_ok_and(|kind| !kind.to_string_lossy().contains("[eventfd]"));
    if is_anonymous && !is_other { Ok(Arc::new(file)) } else { Err(RingError::NotAnEventFd { what, index }) }
}
