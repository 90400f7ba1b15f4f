//! Why a ring is not as its front-end wants it.
//!
//! Each names the ring and what was asked for, so that the author of a front-end sees what to change. All but the last are
//! mistakes of the front-end; a start may also fail for want of what the host has to give.

use crate::service::StartError;
use crate::vring::SetupError;

/// Why a ring is not as the front-end wants it: its mistake, but for the last.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// There are fewer rings.
    #[error("ring {index} of {count}")]
    Index {
        /// The ring that was named.
        index: u32,
        /// How many there are.
        count: usize,
    },
    /// The ring runs.
    #[error("ring {index} is running: stop it with GET_VRING_BASE first")]
    Running {
        /// The ring.
        index: u32,
    },
    /// A ring larger than the device takes.
    #[error("ring {index} of {size} descriptors: the device takes at most {most}")]
    TooLarge {
        /// The ring.
        index: u32,
        /// What was asked for.
        size: u16,
        /// What is possible.
        most: u16,
    },
    /// Not an index of a split ring.
    #[error("ring {index} from index {base}: a split ring has indices up to 65535")]
    Base {
        /// The ring.
        index: u32,
        /// What was asked for.
        base: u32,
    },
    /// Not an event fd.
    #[error("the {what} fd of ring {index} is no event fd")]
    NotAnEventFd {
        /// What it was to be for.
        what: &'static str,
        /// The ring.
        index: u32,
    },
    /// Without a kick fd nobody would know of requests.
    #[error("ring {index} without a kick fd: polling a ring is not supported")]
    NoKick {
        /// The ring.
        index: u32,
    },
    /// A size or an address that cannot be.
    #[error("ring {index}: {source}")]
    Setup {
        /// The ring.
        index: u32,
        /// What is wrong.
        #[source]
        source: SetupError,
    },
    /// The log has no bits for some of the memory.
    #[error("a log of {size} bytes for memory up to guest address {end:#x}, which needs {need}")]
    LogTooSmall {
        /// How many bytes it has.
        size: u64,
        /// Where the memory ends.
        end: u64,
        /// How many bytes that needs.
        need: u64,
    },
    /// The ring cannot be started.
    #[error("ring {index} cannot be started")]
    Start {
        /// The ring.
        index: u32,
        /// Why.
        #[source]
        source: StartError,
    },
}
