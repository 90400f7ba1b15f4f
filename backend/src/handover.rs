//! What a process hands to its successor: the sockets, and what front-ends have said about their rings, so that the
//! successor goes on where this one has stopped and the front-ends need not say it again.
//!
//! The state is numbers, to be sent in whatever way, and fds, which go beside it: where the state has a descriptor it has its place in
//! the list of fds. It is what a front-end says (vhost-user.rst), no more, and it is checked as what a front-end says: a
//! process that a guest has got hold of may have written it. What is in flight is not in it: rings are handed over when nothing is.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};
use sluice_blk::disk::LockError;

use crate::session::SessionError;

/// Why a device cannot be taken over.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandoverError {
    /// What a front-end may have been told before and was told wrongly then.
    #[error("the {what} is not as the guest knows it: it was {was} and would be {now}")]
    Changed {
        /// Of what.
        what: &'static str,
        /// As the guest knows it.
        was: String,
        /// As it is here.
        now: String,
    },
    /// A descriptor that did not come, or came twice.
    #[error("descriptor {index} of the state is not there")]
    NoFd {
        /// Its place in the list.
        index: usize,
    },
    /// The front-end is copying the guest's memory to another host.
    #[error("the guest is about to move to another host")]
    Migrating,
    /// The disk is in this process's memory.
    #[error("the disk's data is in the process's memory")]
    InMemory,
    /// What no front-end could have said.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The disk's file is somebody else's.
    #[error(transparent)]
    Lock(LockError),
    /// The host has no fd, or the like.
    #[error(transparent)]
    Host(#[from] io::Error),
    /// Nobody answers, or not in time.
    #[error("it was not ready in time")]
    Late,
}

/// The place of a descriptor in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdIndex(usize);

/// The descriptors that go with a state.
#[derive(Debug, Default)]
pub struct Fds(Vec<Option<OwnedFd>>);

impl Fds {
    /// Adds a duplicate of a descriptor.
    pub(crate) fn put(&mut self, fd: &impl AsFd) -> io::Result<FdIndex> {
        self.0.push(Some(fd.as_fd().try_clone_to_owned()?));
        Ok(FdIndex(self.0.len() - 1))
    }

    /// As [`Fds::put`], if there is one.
    pub(crate) fn put_some(&mut self, fd: Option<&impl AsFd>) -> io::Result<Option<FdIndex>> {
        fd.map(|fd| self.put(fd)).transpose()
    }

    /// Takes a descriptor out.
    pub(crate) fn take<T: From<OwnedFd>>(&mut self, FdIndex(index): FdIndex) -> Result<T, HandoverError> {
        let fd = self.0.get_mut(index).and_then(Option::take);
        fd.map(T::from).ok_or(HandoverError::NoFd { index })
    }

    /// As [`Fds::take`], if there is one.
    pub(crate) fn take_some<T: From<OwnedFd>>(
        &mut self,
        index: Option<FdIndex>,
    ) -> Result<Option<T>, HandoverError> {
        index.map(|index| self.take(index)).transpose()
    }
}

/// All of them, in their order, for somebody who sends them.
impl From<Fds> for Vec<OwnedFd> {
    fn from(fds: Fds) -> Self {
        fds.0.into_iter().flatten().collect()
    }
}

/// Those that somebody has received.
impl From<Vec<OwnedFd>> for Fds {
    fn from(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }
}

/// A device and whoever is connected to it.
#[derive(Debug, Serialize, Deserialize)]
pub struct ServerState {
    /// Where front-ends connect, if others may.
    pub(crate) listener: Option<FdIndex>,
    pub(crate) device: DeviceState,
    /// Who is connected.
    pub(crate) connection: Option<ConnectionState>,
}

impl ServerState {
    /// Whether it serves one connection that was made elsewhere, and ends with it.
    #[must_use]
    pub fn is_connection(&self) -> bool {
        self.listener.is_none()
    }

    /// Whether a front-end is connected.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connection.is_some()
    }
}

/// What guests know of a device, and have changed.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceState {
    /// The features that were offered.
    pub(crate) features: u64,
    /// The config space.
    pub(crate) config: Vec<u8>,
    /// The answer to GET_ID.
    pub(crate) id: Vec<u8>,
    /// What the driver has last said by CONFIG_WCE.
    pub(crate) writeback: bool,
}

/// One connection.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ConnectionState {
    pub(crate) stream: FdIndex,
    /// It has said something already.
    pub(crate) has_spoken: bool,
    pub(crate) session: SessionState,
}

/// What a front-end has negotiated and said.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SessionState {
    /// It has asked what is offered.
    pub(crate) has_offered: bool,
    /// What it last said by SET_FEATURES, taken or not.
    pub(crate) acked_features: Option<u64>,
    /// What it last said by SET_PROTOCOL_FEATURES, taken or not.
    pub(crate) acked_protocol: Option<u64>,
    /// PROTOCOL_FEATURES was negotiated.
    pub(crate) protocol_features: bool,
    /// The features that are in force, if there are some.
    pub(crate) accepted: Option<u64>,
    pub(crate) regions: Vec<RegionState>,
    pub(crate) inflight: Option<InflightState>,
    pub(crate) rings: Vec<RingState>,
}

/// A region of memory.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RegionState {
    pub(crate) guest_addr: u64,
    pub(crate) size: u64,
    pub(crate) user_addr: u64,
    pub(crate) mmap_offset: u64,
    pub(crate) fd: FdIndex,
}

/// Memory for what is in flight.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct InflightState {
    pub(crate) size: u64,
    pub(crate) offset: u64,
    pub(crate) num_queues: u16,
    pub(crate) queue_size: u16,
    pub(crate) fd: FdIndex,
}

/// A ring. Nothing of it is in flight.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RingState {
    pub(crate) size: u16,
    /// Where its parts are: descriptors, driver area, device area.
    pub(crate) addrs: Option<[u64; 3]>,
    pub(crate) base: u16,
    pub(crate) kick: Option<FdIndex>,
    pub(crate) call: Option<FdIndex>,
    pub(crate) err: Option<FdIndex>,
    pub(crate) enabled: bool,
    /// The driver has broken it.
    pub(crate) broken: bool,
    /// It was served.
    pub(crate) runs: bool,
}
