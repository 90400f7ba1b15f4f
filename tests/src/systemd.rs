//! A service manager that does what systemd does for a service with `Type=notify` and `FileDescriptorStoreMax=`
//! (sd_notify(3), sd_listen_fds(3)): it hears how things stand, keeps descriptors by their names, and passes them on.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::cmsg_space;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// How long a message may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// The manager of one service.
pub struct Systemd {
    socket: UnixDatagram,
    path: PathBuf,
    /// How many descriptors it keeps.
    room: usize,
    stored: Vec<(String, OwnedFd)>,
    heard: Vec<String>,
}

impl Systemd {
    /// A manager with its socket in `dir`, that keeps so many descriptors.
    ///
    /// # Panics
    /// If there can be no socket.
    #[must_use]
    pub fn new(dir: &Path, room: usize) -> Self {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        Self { socket, path, room, stored: Vec::new(), heard: Vec::new() }
    }

    /// A script for bash that starts a program as the service, with what is stored.
    ///
    /// # Panics
    /// If a descriptor cannot be passed on.
    #[must_use]
    pub fn script(&self, program: &Path, args: &[String]) -> String {
        let mut script = String::new();
        for (number, (_, fd)) in (3..).zip(&self.stored) {
            fcntl_setfd(fd, FdFlags::empty()).expect("it is open");
            // Those to be read from have higher numbers.
            assert!(fd.as_raw_fd() > number, "a descriptor in the way");
            script += &format!("exec {number}<&{} {}<&-\n", fd.as_raw_fd(), fd.as_raw_fd());
        }
        let names: Vec<_> = self.stored.iter().map(|(name, _)| name.as_str()).collect();
        let quoted: String = args.iter().map(|arg| format!(" '{arg}'")).collect();
        script
            + &format!(
                "export NOTIFY_SOCKET='{}' FDSTORE={} LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES='{}'\nexec '{}'{quoted}\n",
                self.path.display(),
                self.room,
                names.len(),
                names.join(":"),
                program.display()
            )
    }

    /// Waits until the service says something.
    ///
    /// # Panics
    /// If it does not in time.
    pub fn await_state(&mut self, state: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.heard_at(state) {
                self.heard.drain(..=at);
                return;
            }
            assert!(Instant::now() < deadline, "{state} is not said: {:?}", self.heard);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether the service has said something.
    pub fn has_heard(&mut self, state: &str) -> bool {
        self.heard_at(state).is_some()
    }

    fn heard_at(&mut self, state: &str) -> Option<usize> {
        self.hear();
        self.heard.iter().position(|heard| heard.starts_with(state))
    }

    /// How many descriptors are stored.
    #[must_use]
    pub fn stored(&mut self) -> usize {
        self.hear();
        self.stored.len()
    }

    /// Loses a descriptor.
    pub fn lose(&mut self) {
        self.hear();
        self.stored.swap_remove(0);
    }

    fn hear(&mut self) {
        loop {
            let mut bytes = [0; 4096];
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(8))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC;
            let Ok(seen) = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags)
            else {
                return;
            };
            let text = String::from_utf8_lossy(&bytes[..seen.bytes]).into_owned();
            let fd = ancillary.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            });
            self.take(&text, fd);
        }
    }

    fn take(&mut self, text: &str, fd: Option<OwnedFd>) {
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        match (value("FDSTORE"), value("FDSTOREREMOVE"), value("FDNAME"), fd) {
            (Some("1"), _, Some(name), Some(fd)) if self.stored.len() < self.room => {
                self.stored.push((name.to_owned(), fd));
            }
            (_, Some("1"), Some(name), _) => self.stored.retain(|(stored, _)| stored != name),
            _ => self.heard.push(text.to_owned()),
        }
    }
}
