//! What a front-end has sent, seen before it is taken.
//!
//! The crate `vhost` takes a message with system calls that wait, and waits on when one of them times out or when there
//! were more fds than it has room for. So a message is taken only when all of it is there, with no more fds than fit,
//! and with room for the answer: then nobody waits, and a front-end that stops in the middle of a message holds up
//! nothing but itself.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;

use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recv, recvmsg};
use vhost::vhost_user::message::{FrontendReq, MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE, VhostUserHeaderFlag};

/// The header of a message (vhost-user.rst, "Header").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// Which message.
    pub(crate) code: u32,
    /// Version and flags.
    pub(crate) flags: u32,
    /// Bytes after the header.
    pub(crate) size: u32,
}

/// What is there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// A message that can be taken and answered without waiting.
    Message(Header),
    /// A part of a message, or no room for an answer. To be looked at again in a while.
    Part,
    /// The end of the connection.
    End,
    /// What nobody may send: the reason.
    Broken(&'static str),
}

impl Header {
    pub(crate) const BYTES: usize = 12;

    fn parse(bytes: [u8; Self::BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        Self {
            code: u32::from_ne_bytes([a, b, c, d]),
            flags: u32::from_ne_bytes([e, f, g, h]),
            size: u32::from_ne_bytes([i, j, k, l]),
        }
    }

    /// A message as bytes, as a front-end sends it that asks for no acknowledgement.
    pub(crate) fn message(request: FrontendReq, body: &[u8]) -> Vec<u8> {
        let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
        [&[u32::from(request), 1, size].map(u32::to_ne_bytes).concat(), body].concat()
    }

    /// Which message, if it is one of the specification's.
    pub(crate) fn request(self) -> Option<FrontendReq> {
        FrontendReq::try_from(self.code).ok()
    }

    /// Whether the front-end asks for an acknowledgement, should it have negotiated them.
    pub(crate) fn needs_reply(self) -> bool {
        self.flags & VhostUserHeaderFlag::NEED_REPLY.bits() != 0
    }

    /// How many bytes the message has that will be read: without those after a header that is refused.
    pub(crate) fn bytes(self) -> u64 {
        let size = usize::try_from(self.size).ok().filter(|size| *size <= MAX_MSG_SIZE);
        Self::BYTES.saturating_add(size.unwrap_or(0)) as u64
    }
}

/// Looks at what has come on `stream`, which is readable, and takes nothing.
pub(crate) fn look(stream: &UnixStream) -> io::Result<Look> {
    let there = rustix::io::ioctl_fionread(stream)?;
    let mut bytes = [0; Header::BYTES];
    // The fds that come with the header are copies, made for this look only. The space may do for a few more than it
    // is asked for.
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES))];
    let mut fds = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let seen = recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut fds, flags)?;
    if seen.bytes == 0 {
        return Ok(Look::End);
    }
    if seen.flags.contains(ReturnFlags::CTRUNC) || count(&mut fds) > MAX_ATTACHED_FD_ENTRIES {
        return Ok(Look::Broken("more fds than a message may have, or than this process may open"));
    }
    if seen.bytes < Header::BYTES {
        return Ok(match there {
            // Bytes with fds begin a new message: a peek ends after them.
            0..12 => part(stream)?,
            _ => Look::Broken("fds in the middle of a header"),
        });
    }
    let header = Header::parse(bytes);
    if there < header.bytes() { part(stream) } else { Ok(ready(stream, header)?) }
}

/// How many fds there are; they are closed.
fn count(fds: &mut RecvAncillaryBuffer<'_>) -> usize {
    let rights = fds.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds.count()),
        _ => None,
    });
    rights.sum()
}

/// Some of a message is there: whether more can come.
fn part(stream: &UnixStream) -> io::Result<Look> {
    Ok(if is(stream, PollFlags::RDHUP)? { Look::End } else { Look::Part })
}

/// All of a message is there: whether it can be answered. A socket is writable while most of its buffer is empty, and
/// an answer is short.
fn ready(stream: &UnixStream, header: Header) -> io::Result<Look> {
    Ok(if is(stream, PollFlags::OUT)? { Look::Message(header) } else { Look::Part })
}

fn is(stream: &UnixStream, flags: PollFlags) -> io::Result<bool> {
    let mut polled = [PollFd::new(stream, flags)];
    retry_on_intr(|| poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })))?;
    Ok(polled[0].revents().intersects(flags))
}

/// Takes a message that nobody knows, with its fds, and says no to it.
pub(crate) fn refuse(stream: &UnixStream, header: Header) -> io::Result<()> {
    take(stream, header)?;
    answer(stream, header, &1_u64.to_ne_bytes())
}

/// Takes a message, with its fds, that needs nothing to be done, and acknowledges it if that is wanted.
pub(crate) fn ignore(stream: &UnixStream, header: Header, acknowledged: bool) -> io::Result<()> {
    take(stream, header)?;
    if acknowledged { answer(stream, header, &0_u64.to_ne_bytes()) } else { Ok(()) }
}

/// The numbers at the start of the message's payload, which is not taken.
pub(crate) fn peek_numbers<const N: usize>(stream: &UnixStream) -> io::Result<Option<[u32; N]>> {
    let mut bytes = [0; Header::BYTES + MAX_MSG_SIZE];
    let wanted = N.saturating_mul(size_of::<u32>()).saturating_add(Header::BYTES);
    let room = bytes.get_mut(..wanted).ok_or_else(|| io::Error::other("more numbers than fit a message"))?;
    let (_, count) = recv(stream, &mut *room, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    let (words, _) = room.get(Header::BYTES..).unwrap_or_default().as_chunks();
    let number = |n: usize| words.get(n).copied().map_or(0, u32::from_ne_bytes);
    Ok((count == wanted).then(|| std::array::from_fn(number)))
}

/// Takes a GET_CONFIG and says that there is nothing: a payload of length zero.
pub(crate) fn answer_no_config(
    stream: &UnixStream,
    header: Header,
    offset: u32,
    flags: u32,
) -> io::Result<()> {
    take(stream, header)?;
    answer(stream, header, &[offset, 0, flags].map(u32::to_ne_bytes).concat())
}

/// Takes a GET_INFLIGHT_FD and says that there is no such memory: of 0 bytes, without an fd.
pub(crate) fn answer_no_inflight(stream: &UnixStream, header: Header) -> io::Result<()> {
    take(stream, header)?;
    answer(stream, header, &[0; 24])
}

fn take(mut stream: &UnixStream, header: Header) -> io::Result<()> {
    let mut message = [0; Header::BYTES + MAX_MSG_SIZE];
    let len = usize::try_from(header.bytes()).map_err(io::Error::other)?;
    let message = message.get_mut(..len).ok_or_else(|| io::Error::other("longer than a message may be"))?;
    stream.read_exact(message)
}

fn answer(mut stream: &UnixStream, header: Header, body: &[u8]) -> io::Result<()> {
    let flags = VhostUserHeaderFlag::REPLY.bits() | 1;
    let size = u32::try_from(body.len()).map_err(io::Error::other)?;
    let header = [header.code, flags, size].map(u32::to_ne_bytes).concat();
    stream.write_all(&[&header, body].concat())
}
