//! Between the front-end's socket and the crate `vhost`, which reads and answers messages on a socket pair of its own.
//!
//! So the crate finds whole messages only, and never waits for a front-end that has stopped in the middle of one. And what it
//! knows of a connection, which nothing can tell it afterwards, can be said to it: that is how a connection that another
//! process has begun is taken over.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use vhost::vhost_user::message::{MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE};

use crate::inbox::Header;

/// What passes at a time: a whole message.
const BYTES_MAX: usize = Header::BYTES + MAX_MSG_SIZE;

/// Our end of the pair.
#[derive(Debug)]
pub(crate) struct Relay {
    ours: UnixStream,
}

impl Relay {
    /// A relay, and the crate's end of it. Nothing is waited for longer than `bound`.
    pub(crate) fn pair(bound: Duration) -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        theirs.set_read_timeout(Some(bound))?;
        theirs.set_write_timeout(Some(bound))?;
        Ok((Self { ours }, theirs))
    }

    /// Passes a message on from the front-end, all of which has come. Its fds are those that come with the header.
    pub(crate) fn pass(&self, from: &UnixStream, header: Header) -> io::Result<()> {
        let mut left = usize::try_from(header.bytes()).map_err(io::Error::other)?;
        let mut room = Header::BYTES;
        while left > 0 {
            let Passed { bytes, fds } = forward(from, &self.ours, left.min(room))?;
            if bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if fds > 0 && room > Header::BYTES {
                return Err(io::Error::other("fds in the middle of a message"));
            }
            (left, room) = (left.saturating_sub(bytes), BYTES_MAX);
        }
        Ok(())
    }

    /// Says a message that no front-end has sent.
    pub(crate) fn say(&self, message: &[u8]) -> io::Result<()> {
        (&self.ours).write_all(message)
    }

    /// Passes the crate's answer on, if there is one.
    pub(crate) fn answer(&self, to: &UnixStream) -> io::Result<()> {
        loop {
            match forward(&self.ours, to, BYTES_MAX) {
                Ok(Passed { bytes: 0, .. }) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Forgets the crate's answer.
    pub(crate) fn forget(&self) -> io::Result<()> {
        let mut bytes = [0; BYTES_MAX];
        match receive(&self.ours, &mut bytes) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}

/// How much was passed on.
struct Passed {
    bytes: usize,
    fds: usize,
}

/// Passes what is there on, `most` bytes at most, with its fds.
fn forward(from: &UnixStream, mut to: &UnixStream, most: usize) -> io::Result<Passed> {
    let mut bytes = [0; BYTES_MAX];
    let room = bytes.get_mut(..most.min(BYTES_MAX)).unwrap_or_default();
    let (bytes, fds) = receive(from, room)?;
    let there = room.get(..bytes).unwrap_or_default();
    if !there.is_empty() {
        let sent = send(to, there, &fds)?;
        to.write_all(there.get(sent..).unwrap_or_default())?;
    }
    Ok(Passed { bytes, fds: fds.len() })
}

fn receive(from: &UnixStream, room: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let seen = retry_on_intr(|| recvmsg(from, &mut [IoSliceMut::new(room)], &mut ancillary, flags))?;
    let fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    Ok((seen.bytes, fds.flatten().collect()))
}

fn send(to: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<usize> {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::TOOMANYREFS.into());
    }
    Ok(retry_on_intr(|| sendmsg(to, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL))?)
}
