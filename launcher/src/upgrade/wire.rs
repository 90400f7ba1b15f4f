//! What two daemons say to one another: lengths, a message as JSON, and the descriptors that go with it.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use sluice_backend::handover::ServerState;

/// The version of these messages and of the states in them.
pub(crate) const PROTOCOL: u32 = 1;
/// The most that a message can have.
const BYTES_MAX: u32 = 64 << 20;
const FDS_MAX: u32 = 1 << 20;
/// The most descriptors that go at a time (unix(7), `SCM_MAX_FD`).
const FDS_AT_A_TIME: usize = 253;

/// A message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Message {
    /// From the running daemon, at first: what it serves.
    Offer { protocol: u32, disks: Vec<String> },
    /// From the next one: it could serve.
    Ready { pid: u32 },
    /// From the running one: what stands still, with descriptors.
    State { disks: Vec<DiskState> },
    /// From the next one: all of it is there.
    Taken,
    /// From the next one: it is not, for this reason.
    Refused { why: String },
    /// From the running one, at last: serve.
    Go,
}

/// A disk that stands still.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct DiskState {
    pub(super) disk: String,
    pub(super) server: ServerState,
    /// How many of the descriptors are its.
    pub(super) fds: usize,
}

/// What is left with a service manager, for a daemon that is started later.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StoredState {
    pub(super) protocol: u32,
    pub(super) disks: Vec<DiskState>,
    /// Of each descriptor, its place among those that are stored.
    pub(super) places: Vec<usize>,
}

/// The other daemon.
#[derive(Debug)]
pub(super) struct Peer {
    stream: UnixStream,
}

impl Peer {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// Sends a message and descriptors, if that is done within `bound`.
    pub(super) fn send(&self, message: &Message, fds: &[OwnedFd], bound: Duration) -> io::Result<()> {
        self.stream.set_write_timeout(Some(bound))?;
        let text = serde_json::to_vec(message)?;
        let lengths = [text.len(), fds.len()].map(u32::try_from);
        let [Ok(bytes), Ok(count)] = lengths else { return Err(io::ErrorKind::FileTooLarge.into()) };
        let mut stream = &self.stream;
        stream.write_all(&[bytes.to_ne_bytes(), count.to_ne_bytes()].concat())?;
        stream.write_all(&text)?;
        fds.chunks(FDS_AT_A_TIME).try_for_each(|some| self.send_fds(some))
    }

    fn send_fds(&self, fds: &[OwnedFd]) -> io::Result<()> {
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let mut space = vec![MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_AT_A_TIME))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        retry_on_intr(|| sendmsg(&self.stream, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL))?;
        Ok(())
    }

    /// The next message, if all of it comes before `until`.
    pub(super) fn receive(&self, until: Instant) -> io::Result<(Message, Vec<OwnedFd>)> {
        let [mut bytes, mut count] = [[0; 4]; 2];
        self.read(&mut bytes, until)?;
        self.read(&mut count, until)?;
        let [bytes, count] = [bytes, count].map(u32::from_ne_bytes);
        if bytes > BYTES_MAX || count > FDS_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut text = vec![0; bytes as usize];
        self.read(&mut text, until)?;
        let mut fds = Vec::new();
        while fds.len() < count as usize {
            let some = self.receive_fds(until)?;
            if some.is_empty() {
                return Err(io::Error::other("descriptors are missing: too many files may be open"));
            }
            fds.extend(some);
        }
        Ok((serde_json::from_slice(&text)?, fds))
    }

    fn read(&self, room: &mut [u8], until: Instant) -> io::Result<()> {
        self.bound(until)?;
        (&self.stream).read_exact(room)
    }

    fn receive_fds(&self, until: Instant) -> io::Result<Vec<OwnedFd>> {
        self.bound(until)?;
        let mut space = vec![MaybeUninit::uninit(); cmsg_space!(ScmRights(FDS_AT_A_TIME))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let flags = RecvFlags::CMSG_CLOEXEC;
        retry_on_intr(|| recvmsg(&self.stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags))?;
        let fds = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        Ok(fds.flatten().collect())
    }

    fn bound(&self, until: Instant) -> io::Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, Write};

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn a_message_comes_with_all_its_descriptors_in_order() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (ours, theirs) = (Peer::new(ours), Peer::new(theirs));
        let fds: Vec<OwnedFd> = (0..600_u32)
            .map(|number| {
                let mut file = tempfile::tempfile().unwrap();
                write!(file, "{number}").unwrap();
                file.into()
            })
            .collect();
        let sending = std::thread::spawn(move || {
            ours.send(&Message::Refused { why: "it is".into() }, &fds, Duration::from_secs(10)).unwrap();
            ours.send(&Message::Go, &[], Duration::from_secs(10)).unwrap();
        });
        let (message, fds) = theirs.receive(soon()).unwrap();
        assert!(matches!(message, Message::Refused { why } if why == "it is"));
        assert_eq!(fds.len(), 600);
        for (number, fd) in fds.into_iter().enumerate() {
            let mut file = File::from(fd);
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            assert_eq!(text, number.to_string());
        }
        assert!(matches!(theirs.receive(soon()).unwrap().0, Message::Go));
        sending.join().unwrap();
        assert_eq!(theirs.receive(soon()).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_no_message_is_an_error_and_never_waited_for() {
        let receive = |bytes: &[u8]| {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            ours.write_all(bytes).unwrap();
            Peer::new(theirs).receive(Instant::now() + Duration::from_millis(50)).unwrap_err().kind()
        };
        assert_eq!(receive(&[0xff; 8]), io::ErrorKind::FileTooLarge);
        assert_eq!(receive(&[2, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']), io::ErrorKind::InvalidData);
        assert_eq!(receive(&[2, 0, 0, 0, 0, 0, 0, 0, b'{']), io::ErrorKind::WouldBlock);
        // A descriptor that is said to come and does not.
        assert_eq!(receive(&[2, 0, 0, 0, 1, 0, 0, 0, b'{', b'}', 0]), io::ErrorKind::Other);
    }
}
