//! A front-end that sends what it is told to, right or wrong.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::driver::{Driver, PATIENCE};
use super::guest_ram::GuestRam;
use crate::device::Device;

pub(crate) const GET_FEATURES: u32 = 1;
pub(crate) const SET_FEATURES: u32 = 2;
pub(crate) const SET_OWNER: u32 = 3;
pub(crate) const SET_MEM_TABLE: u32 = 5;
pub(crate) const SET_VRING_NUM: u32 = 8;
pub(crate) const SET_VRING_ADDR: u32 = 9;
pub(crate) const SET_VRING_BASE: u32 = 10;
pub(crate) const GET_VRING_BASE: u32 = 11;
pub(crate) const SET_VRING_KICK: u32 = 12;
pub(crate) const SET_VRING_CALL: u32 = 13;
pub(crate) const SET_VRING_ERR: u32 = 14;
pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
pub(crate) const SET_VRING_ENABLE: u32 = 18;
pub(crate) const GET_CONFIG: u32 = 24;
pub(crate) const RESET_DEVICE: u32 = 34;

const VERSION: u32 = 1;
const NEED_REPLY: u32 = 8;

/// VIRTIO_F_VERSION_1 and VHOST_USER_F_PROTOCOL_FEATURES.
pub(crate) const FEATURES: u64 = 1 << 32 | 1 << 30;

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct FrontEnd {
    pub(crate) stream: UnixStream,
}

/// Numbers as a payload.
pub(crate) fn body(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

/// Index and number as a payload.
pub(crate) fn state(index: u32, number: u32) -> Vec<u8> {
    [index.to_ne_bytes(), number.to_ne_bytes()].concat()
}

impl FrontEnd {
    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket has timeouts");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket has timeouts");
        Self { stream }
    }

    /// A message as bytes.
    pub(crate) fn message(code: u32, flags: u32, body: &[u8]) -> Vec<u8> {
        let size = u32::try_from(body.len()).expect("a short message");
        [&[code, flags | VERSION, size].map(u32::to_ne_bytes).concat(), body].concat()
    }

    /// Sends bytes with fds.
    pub(crate) fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(fds.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(fds)), "too many fds");
        let sent = sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
        (&self.stream).write_all(&bytes[sent..])
    }

    /// Receives a message: its code and its payload.
    pub(crate) fn receive(&self) -> io::Result<(u32, Vec<u8>)> {
        let mut header = [0; 12];
        (&self.stream).read_exact(&mut header)?;
        let field = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        assert_eq!(field(4), 5, "version 1 and REPLY");
        let mut body = vec![0; field(8) as usize];
        (&self.stream).read_exact(&mut body)?;
        Ok((field(0), body))
    }

    /// Sends a message with fds, and asks for an acknowledgement: whether all is well.
    pub(crate) fn try_say(&self, code: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<bool> {
        self.send(&Self::message(code, NEED_REPLY, body), fds)?;
        let (answered, answer) = self.receive()?;
        assert_eq!((answered, answer.len()), (code, 8), "an acknowledgement");
        Ok(answer == body_of_zero())
    }

    /// The same for a message that has to be taken.
    pub(crate) fn say(&self, code: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
        assert!(self.try_say(code, body, fds).expect("an answer"), "message {code} was refused");
    }

    /// The same for a message that has to be refused.
    pub(crate) fn say_wrong(&self, code: u32, body: &[u8], fds: &[BorrowedFd<'_>]) {
        assert!(!self.try_say(code, body, fds).expect("an answer"), "message {code} was taken");
    }

    /// Sends a message that has an answer of its own, and returns that.
    pub(crate) fn ask(&self, code: u32, body: &[u8]) -> Vec<u8> {
        self.send(&Self::message(code, 0, body), &[]).expect("a connection");
        let (answered, answer) = self.receive().expect("an answer");
        assert_eq!(answered, code);
        answer
    }

    /// Agrees on features, and on all protocol features.
    pub(crate) fn negotiate(&self, features: u64) {
        self.send(&Self::message(SET_OWNER, 0, &[]), &[]).expect("a connection");
        self.ask(GET_FEATURES, &[]);
        let all = body(&[Device::PROTOCOL_FEATURES.bits()]);
        self.send(&Self::message(SET_PROTOCOL_FEATURES, 0, &all), &[]).expect("a connection");
        self.say(SET_FEATURES, &body(&[features]), &[]);
    }

    /// Announces memory.
    pub(crate) fn set_memory(&self, ram: &GuestRam) {
        let regions = ram.regions();
        let mut table = state(u32::try_from(regions.len()).expect("few regions"), 0);
        for region in regions {
            table.extend(body(&[region.guest_addr, region.size, region.user_addr, region.mmap_offset]));
        }
        self.say(SET_MEM_TABLE, &table, &vec![ram.file().as_fd(); regions.len()]);
    }

    /// The payload of SET_VRING_ADDR for a driver's ring.
    pub(crate) fn addrs(index: u32, driver: &Driver) -> Vec<u8> {
        let [desc, avail, used] = driver.parts().map(|addr| addr + GuestRam::USER_OFFSET);
        [state(index, 0), body(&[desc, used, avail, 0])].concat()
    }

    /// Sends one of the messages about the fds of a ring.
    pub(crate) fn set_fd(&self, code: u32, index: u32, fd: &File) {
        self.say(code, &body(&[u64::from(index)]), &[fd.as_fd()]);
    }

    /// Sets a driver's ring up and starts it.
    pub(crate) fn start_ring(&self, index: u32, driver: &Driver) {
        self.say(SET_VRING_NUM, &state(index, driver.size.into()), &[]);
        self.say(SET_VRING_BASE, &state(index, driver.next_avail.into()), &[]);
        self.say(SET_VRING_ADDR, &Self::addrs(index, driver), &[]);
        self.set_fd(SET_VRING_ERR, index, &driver.err);
        self.set_fd(SET_VRING_CALL, index, &driver.call);
        self.set_fd(SET_VRING_KICK, index, &driver.kick);
        self.say(SET_VRING_ENABLE, &state(index, 1), &[]);
    }

    /// Stops a ring: its next available index.
    pub(crate) fn stop_ring(&self, index: u32) -> u16 {
        let answer = self.ask(GET_VRING_BASE, &state(index, 0));
        u16::try_from(u32::from_ne_bytes(answer[4..].try_into().expect("8 bytes"))).expect("an index")
    }

    /// Whether the other end closes the connection within `time`.
    pub(crate) fn is_closed_within(&self, time: Duration) -> bool {
        self.stream.set_read_timeout(Some(time)).expect("a socket has timeouts");
        let end = loop {
            match (&self.stream).read(&mut [0; 4096]) {
                // The ring of a worker that this thread has prepared: its kernel work is done here.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                end => break end,
            }
        };
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a socket has timeouts");
        match end {
            Ok(count) => count == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

fn body_of_zero() -> Vec<u8> {
    body(&[0])
}
