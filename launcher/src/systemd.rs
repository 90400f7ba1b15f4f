//! The service manager, systemd or one that does as it does: told how things stand (sd_notify(3)), and given what is to outlive
//! this process (sd_pid_notify_with_fds(3), `FileDescriptorStoreMax=` of systemd.service(5)).
//!
//! Its socket is connected to before there is a sandbox, in which none can be made. What is stored has names: a manager keeps no
//! order, and keeps a file once however often it is stored.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSlice, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use anyhow::{Context, Result};
use rustix::cmsg_space;
use rustix::fs::{FileType, MemfdFlags, fstat, memfd_create};
use rustix::io::retry_on_intr;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::inherited;

/// What the names of stored descriptors begin with, and that of the text that says what they are.
const NAME: &str = "sluice-";
const TEXT: &str = "sluice-state";

/// The manager that has started this process.
#[derive(Debug)]
pub(crate) struct Systemd {
    socket: UnixDatagram,
    /// How many descriptors it stores.
    room: usize,
}

/// What an earlier process has stored.
#[derive(Debug)]
pub(crate) struct Stored {
    /// What it has said of the descriptors.
    pub(crate) text: Vec<u8>,
    /// By number.
    pub(crate) fds: BTreeMap<usize, OwnedFd>,
}

impl Systemd {
    /// The manager that the environment tells of.
    pub(crate) fn from_environment() -> Result<Option<Self>> {
        let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(None) };
        let about = || format!("NOTIFY_SOCKET={}", path.display());
        let socket = UnixDatagram::unbound().with_context(about)?;
        let name = path.to_str().with_context(about)?;
        match name.strip_prefix('@') {
            Some(name) => {
                SocketAddr::from_abstract_name(name).and_then(|address| socket.connect_addr(&address))
            }
            None => socket.connect(name),
        }
        .with_context(about)?;
        let room = std::env::var("FDSTORE").ok().and_then(|room| room.parse().ok()).unwrap_or(0);
        Ok(Some(Self { socket, room }))
    }

    /// Whether it stores descriptors.
    pub(crate) fn stores(&self) -> bool {
        self.room > 0
    }

    /// Tells how things stand.
    pub(crate) fn tell(&self, state: &str) {
        if let Err(error) = self.send(state, &[]) {
            log::warn!("the service manager does not hear {state}: {error}");
        }
    }

    /// Stores descriptors, and a text that says what they are.
    ///
    /// # Errors
    /// When there are more than it stores, or it cannot be told.
    pub(crate) fn store(&self, text: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
        if fds.len() >= self.room {
            let (count, room) = (fds.len() + 1, self.room);
            return Err(io::Error::other(format!("{count} descriptors, and FileDescriptorStoreMax={room}")));
        }
        let mut file = File::from(memfd_create(TEXT, MemfdFlags::CLOEXEC)?);
        file.write_all(text)?;
        for (number, fd) in fds.iter().enumerate() {
            self.store_one(&format!("{NAME}{number}"), fd.as_fd())?;
        }
        // Last: without it nothing of the others is used.
        self.store_one(TEXT, file.as_fd())
    }

    fn store_one(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        // It stays there also when the other end of it is closed.
        self.send(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), &[fd])
    }

    /// Has it forget what was stored.
    pub(crate) fn forget(&self, stored: &Stored) {
        let names = stored.fds.keys().map(|number| format!("{NAME}{number}")).chain([TEXT.to_owned()]);
        names.for_each(|name| self.tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}")));
    }

    fn send(&self, state: &str, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        let text = [IoSlice::new(state.as_bytes())];
        retry_on_intr(|| sendmsg(&self.socket, &text, &mut ancillary, SendFlags::NOSIGNAL))?;
        Ok(())
    }
}

impl Stored {
    /// What was stored, among the descriptors that were passed to this process.
    pub(crate) fn among(passed: &[(RawFd, String)]) -> Result<Option<Self>> {
        let Some((number, _)) = passed.iter().find(|(_, name)| name == TEXT) else { return Ok(None) };
        let mut file = File::from(inherited::take(*number)?);
        let mut text = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut text)).context("what was stored")?;
        let numbered = passed.iter().filter_map(|(fd, name)| Some((number_of(name)?, *fd)));
        let fds = numbered.map(|(number, fd)| Ok((number, inherited::take(fd)?))).collect::<Result<_>>()?;
        Ok(Some(Self { text, fds }))
    }
}

/// Whether a name is that of something that was stored.
pub(crate) fn is_stored(name: &str) -> bool {
    name == TEXT || number_of(name).is_some()
}

fn number_of(name: &str) -> Option<usize> {
    name.strip_prefix(NAME)?.parse().ok()
}

/// Leaves out files that come again, which a manager would not keep: of each descriptor, the place of its file in the rest.
pub(crate) fn without_repetition(fds: Vec<OwnedFd>) -> (Vec<usize>, Vec<OwnedFd>) {
    let (mut places, mut rest, mut files) = (Vec::new(), Vec::new(), BTreeMap::new());
    for fd in fds {
        let file =
            fstat(&fd).ok().filter(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        let file = file.map(|stat| (stat.st_dev, stat.st_ino));
        let known = file.and_then(|file| files.get(&file).copied());
        let place = known.unwrap_or(rest.len());
        if known.is_none() {
            rest.push(fd);
        }
        if let Some(file) = file {
            files.insert(file, place);
        }
        places.push(place);
    }
    (places, rest)
}
