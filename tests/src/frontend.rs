//! A vhost-user front-end session.
//!
//! Regular messages go through the front-end of the `vhost` crate, which somebody else wrote and real VMMs use; what
//! that refuses to send goes out as raw bytes on the same socket ([`Session::raw`]). Every message of a session asks
//! for an acknowledgement once REPLY_ACK is negotiated, so that a test knows what the back-end made of it.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Error as ProtocolError, Frontend, VhostUserFrontend};
use vhost::{Error, VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};

use crate::dirty::Log;
use crate::driver::{PATIENCE, Ring};
use crate::memory::Region;

/// VHOST_USER_F_PROTOCOL_FEATURES, a virtio feature bit that never reaches the guest.
pub const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
/// VHOST_F_LOG_ALL, another one: the device marks the memory that it writes.
pub const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();
/// NEED_REPLY in a message's flags.
pub const NEED_REPLY: u32 = VhostUserHeaderFlag::NEED_REPLY.bits();
/// More vrings than any back-end has: the limit of the front-end library, which is not under test.
const VRINGS_MAX: u64 = 256;

/// One connection to a back-end.
pub struct Session {
    frontend: Frontend,
    stream: UnixStream,
    /// What the back-end offered.
    pub offered: u64,
    /// The protocol features in force.
    pub protocol: VhostUserProtocolFeatures,
}

impl Drop for Session {
    fn drop(&mut self) {
        // Closing is not enough: a child that another test starts just now holds a copy of the socket until its exec.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// A message that came back.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    /// The number of the request that it answers.
    pub code: u32,
    /// Version and flags.
    pub flags: u32,
    /// The payload.
    pub body: Vec<u8>,
}

/// Memory in which back-ends keep what is in flight.
pub struct Inflight {
    /// What the back-end has said of it.
    pub info: VhostUserInflight,
    /// Where it is.
    pub file: File,
}

impl Inflight {
    /// Says of a head of the first queue that it was taken and not given back, as a back-end that has died; of several, that with
    /// the least number first.
    ///
    /// # Panics
    /// If the memory cannot be written.
    pub fn leave(&self, head: u16, number: u64) {
        // vhost-user.rst, "Inflight I/O tracking": 16 bytes of header, then for each head inflight at 0 and counter at 8.
        let at = 16 + 16 * u64::from(head);
        let write = |bytes: &[u8], at| self.file.write_all_at(bytes, at).expect("a file that is long enough");
        write(&number.to_le_bytes(), at + 8);
        write(&[1], at);
    }
}

impl Session {
    /// Connects, and waits a while for a back-end that is only just starting. Sends nothing.
    ///
    /// # Panics
    /// If nobody accepts in time.
    pub fn connect(path: &Path) -> Self {
        Self::connect_trying(path, Duration::from_millis(5))
    }

    /// Connects, and tries so often for a back-end that is only just starting. Sends nothing.
    ///
    /// # Panics
    /// If nobody accepts in time.
    pub fn connect_trying(path: &Path, pause: Duration) -> Self {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(e) if Instant::now() > deadline => panic!("cannot connect to {}: {e}", path.display()),
                Err(_) => std::thread::sleep(pause),
            }
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
        let clone = stream.try_clone().expect("a socket can be cloned");
        let frontend = Frontend::from_stream(clone, VRINGS_MAX);
        Session { frontend, stream, offered: 0, protocol: VhostUserProtocolFeatures::empty() }
    }

    /// Becomes the owner and negotiates: of the virtio features those in `wanted` that are offered, of the protocol
    /// features all that this front-end knows how to use. Returns the virtio features in force.
    ///
    /// # Errors
    /// What the back-end refused.
    pub fn negotiate(&mut self, wanted: u64) -> Result<u64, Error> {
        self.frontend.set_owner()?;
        self.offered = self.frontend.get_features()?;
        let usable = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::DEVICE_STATE
            | VhostUserProtocolFeatures::RESET_DEVICE;
        self.protocol = self.frontend.get_protocol_features()? & usable;
        self.frontend.set_protocol_features(self.protocol)?;
        if self.has(VhostUserProtocolFeatures::REPLY_ACK) {
            self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        // A log is no feature of the driver's: see `set_features`.
        let features = self.offered & (wanted & !LOG_ALL | PROTOCOL_FEATURES);
        self.frontend.set_features(features)?;
        Ok(features)
    }

    /// Sets virtio features, on a session that negotiated already.
    ///
    /// # Errors
    /// If the back-end refuses.
    pub fn set_features(&self, features: u64) -> Result<(), Error> {
        self.frontend.set_features(features)
    }

    /// Whether a protocol feature is in force.
    pub fn has(&self, feature: VhostUserProtocolFeatures) -> bool {
        self.protocol.contains(feature)
    }

    /// The front-end of the vhost crate, for the messages that need nothing else.
    pub fn frontend(&mut self) -> &mut Frontend {
        &mut self.frontend
    }

    /// Announces guest memory, replacing what was announced before.
    ///
    /// # Errors
    /// If the back-end refuses.
    pub fn set_mem_table(&self, regions: &[Region]) -> Result<(), Error> {
        let infos: Vec<_> = regions.iter().map(region_info).collect();
        self.frontend.set_mem_table(&infos).map(|_| ())
    }

    /// Adds one region.
    ///
    /// # Errors
    /// If the back-end refuses.
    pub fn add_region(&mut self, region: &Region) -> Result<(), Error> {
        self.frontend.add_mem_region(&region_info(region)).map(|_| ())
    }

    /// Removes one region.
    ///
    /// # Errors
    /// If the back-end refuses.
    pub fn remove_region(&mut self, region: &Region) -> Result<(), Error> {
        self.frontend.remove_mem_region(&region_info(region))
    }

    /// Sets a ring up, to start at index `base`, and enables it: size, base, addresses, err, call, kick. `calls`
    /// false hands over no call fd.
    ///
    /// # Errors
    /// What the back-end refused.
    pub fn start_ring(&mut self, index: usize, ring: &Ring, base: u16, calls: bool) -> Result<(), Error> {
        self.frontend.set_vring_num(index, ring.size())?;
        self.frontend.set_vring_base(index, base)?;
        self.frontend.set_vring_addr(index, &ring_addresses(ring))?;
        self.frontend.set_vring_err(index, ring.err.fd())?;
        if calls {
            self.frontend.set_vring_call(index, ring.call.fd())?;
        } else {
            self.no_fd(FrontendReq::SET_VRING_CALL, index)?;
        }
        self.frontend.set_vring_kick(index, &ring.kick)?;
        self.enable_ring(index, true)
    }

    /// Gives the back-end a log to mark in what it writes, while [`LOG_ALL`] is among the features.
    ///
    /// # Errors
    /// If the back-end refuses, or answers with something that is no answer to this.
    pub fn set_log(&mut self, log: &Log) -> Result<(), Error> {
        self.frontend.set_log_base(0, Some(log.region()))
    }

    /// Says of a ring whether the device's writes to its used ring are marked, and where in the log.
    ///
    /// # Errors
    /// If the back-end refuses.
    pub fn log_used(&mut self, index: usize, ring: &Ring, log_addr: Option<u64>) -> Result<(), Error> {
        let flags = u32::from(log_addr.is_some());
        self.frontend.set_vring_addr(index, &VringConfigData { flags, log_addr, ..ring_addresses(ring) })
    }

    /// Asks for memory in which the back-end keeps what is in flight.
    ///
    /// # Errors
    /// If the back-end refuses.
    pub fn make_inflight(&mut self, rings: u16, size: u16) -> Result<Inflight, Error> {
        let (info, file) = self.frontend.get_inflight_fd(&VhostUserInflight::new(0, 0, rings, size))?;
        Ok(Inflight { info, file })
    }

    /// Gives it back, to this back-end or to another one.
    ///
    /// # Errors
    /// If the back-end refuses.
    pub fn set_inflight(&mut self, inflight: &Inflight) -> Result<(), Error> {
        self.frontend.set_inflight_fd(&inflight.info, inflight.file.as_raw_fd())
    }

    /// Enables or disables a ring.
    ///
    /// # Errors
    /// If the back-end refuses.
    pub fn enable_ring(&mut self, index: usize, enable: bool) -> Result<(), Error> {
        self.frontend.set_vring_enable(index, enable)
    }

    /// Stops a ring, which drains it, and returns the index to start it from again.
    ///
    /// # Errors
    /// If the back-end refuses.
    pub fn stop_ring(&mut self, index: usize) -> Result<u16, Error> {
        let base = self.frontend.get_vring_base(index)?;
        u16::try_from(base).map_err(|_| Error::VhostUserProtocol(ProtocolError::InvalidMessage))
    }

    /// Reads the device's configuration space.
    ///
    /// # Errors
    /// If the back-end has nothing there (its reply has length 0).
    pub fn config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>, Error> {
        let blank = vec![0; usize::try_from(len).expect("u32 fits usize")];
        self.frontend.get_config(offset, len, VhostUserConfigFlags::empty(), &blank).map(|(_, bytes)| bytes)
    }

    /// Writes the device's configuration space, as the specification's and QEMU's front-end does it: flags 0.
    ///
    /// # Errors
    /// If the back-end refuses.
    pub fn set_config(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Error> {
        self.frontend.set_config(offset, VhostUserConfigFlags::empty(), bytes)
    }

    /// The same as a front-end of the rust-vmm world does it. The vhost crate has a flag of its own for "writable",
    /// whose value means "live migration" in the specification.
    ///
    /// # Errors
    /// If the back-end refuses.
    pub fn set_config_flagged(&mut self, offset: u32, bytes: &[u8]) -> Result<(), Error> {
        self.frontend.set_config(offset, VhostUserConfigFlags::WRITABLE, bytes)
    }

    /// A ring message without a file descriptor, which says "none": bit 8 of the payload.
    ///
    /// # Errors
    /// If the back-end refuses or the connection breaks.
    pub fn no_fd(&mut self, request: FrontendReq, index: usize) -> Result<(), Error> {
        let body = (index as u64 | 0x100).to_le_bytes();
        match self.acked(request.into(), &body, &[]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(Error::VhostUserProtocol(ProtocolError::BackendInternalError)),
            Err(e) => Err(Error::VhostUserProtocol(ProtocolError::SocketError(e))),
        }
    }

    /// Sends any message and returns the value of its acknowledgement.
    ///
    /// # Errors
    /// If the connection ends instead, or the answer is no acknowledgement.
    pub fn acked(&mut self, code: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<u64> {
        self.raw(code, NEED_REPLY | 1, body, fds)?;
        let reply = self.reply()?;
        let value = <[u8; 8]>::try_from(reply.body.as_slice()).ok().filter(|_| reply.code == code);
        value
            .map(u64::from_le_bytes)
            .ok_or_else(|| io::Error::other(format!("not an acknowledgement: {reply:?}")))
    }

    /// Sends a message with exactly these header fields, payload and descriptors.
    ///
    /// # Errors
    /// If the connection is closed.
    pub fn raw(&mut self, code: u32, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let size = u32::try_from(body.len()).expect("a message is short");
        let mut message = [code, flags, size].map(u32::to_le_bytes).concat();
        message.extend_from_slice(body);
        self.raw_bytes(&message, fds)
    }

    /// Sends bytes and descriptors in one piece.
    ///
    /// # Errors
    /// If the connection is closed.
    pub fn raw_bytes(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(
                ancillary.push(SendAncillaryMessage::ScmRights(fds)),
                "at most 64 descriptors in a message"
            );
        }
        let flags = SendFlags::NOSIGNAL;
        let sent = rustix::net::sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut ancillary, flags)?;
        self.stream.write_all(&bytes[sent..])
    }

    /// Receives one message.
    ///
    /// # Errors
    /// If the connection ends, or nothing comes within [`PATIENCE`].
    pub fn reply(&mut self) -> io::Result<Reply> {
        let mut header = [0; 12];
        self.stream.read_exact(&mut header)?;
        let field = |i: usize| u32::from_le_bytes(header[4 * i..4 * i + 4].try_into().expect("four bytes"));
        let mut body = vec![0; usize::try_from(field(2)).expect("u32 fits usize")];
        self.stream.read_exact(&mut body)?;
        Ok(Reply { code: field(0), flags: field(1), body })
    }

    /// Takes whatever has come, without waiting, and says whether the back-end has closed the connection.
    ///
    /// # Panics
    /// If the socket does not work.
    pub fn drain(&mut self) -> bool {
        self.stream.set_nonblocking(true).expect("a socket takes the flag");
        let mut bytes = [0; 4096];
        let closed = loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => break true,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break false,
                Err(_) => break true,
            }
        };
        self.stream.set_nonblocking(false).expect("a socket takes the flag");
        closed
    }

    /// Whether the back-end closes the connection within `timeout`.
    pub fn closed_within(&mut self, timeout: Duration) -> bool {
        self.stream.set_read_timeout(Some(timeout)).expect("a socket takes a timeout");
        let end = self.stream.read(&mut [0; 64]);
        self.stream.set_read_timeout(Some(PATIENCE)).expect("a socket takes a timeout");
        match end {
            Ok(n) => n == 0,
            Err(e) => e.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

/// Where a ring is, in the addresses that the protocol wants: the front-end's own.
pub fn ring_addresses(ring: &Ring) -> VringConfigData {
    let memory = ring.memory();
    VringConfigData {
        queue_max_size: ring.size(),
        queue_size: ring.size(),
        flags: 0,
        desc_table_addr: memory.user_addr(ring.desc),
        used_ring_addr: memory.user_addr(ring.used),
        avail_ring_addr: memory.user_addr(ring.avail),
        log_addr: None,
    }
}

fn region_info(region: &Region) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: region.guest_addr,
        memory_size: region.size,
        userspace_addr: region.user_addr,
        mmap_offset: region.file_offset,
        mmap_handle: region.file.as_raw_fd(),
    }
}
