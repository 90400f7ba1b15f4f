//! Making a listening socket at a path, without ever taking one from a living process.
//!
//! What stands at the path decides: nothing, and the socket is made; a socket that nobody holds any more, and it is
//! replaced; a socket that a process holds, or anything else, and it is an error that touches nothing. A socket is
//! probed with a *datagram* socket: connecting that to a stream socket fails with EPROTOTYPE while any process holds
//! it, bound or listening, and with ECONNREFUSED once none does. So the probe never becomes a connection that the
//! living daemon would have to serve, never blocks on its full backlog, and sees a daemon between bind and listen.
//!
//! Probing and replacing are two steps. Between them the directory is locked (flock on the directory itself: no lock
//! file is left behind, and the kernel releases it when we die), so that of two daemons started at once the second
//! probes only when the first holds its socket. A program that does not take this lock can still lose its socket in
//! that instant if it binds to the same path; we never replace what is there.
//!
//! A socket is bound in a directory that nobody else can enter, made ready there (owner, group, mode, listening), and gets
//! its name by rename(2). So whoever finds the name finds a socket that listens, and that never had another owner or mode:
//! there is no moment in which somebody could connect who may not, and none in which somebody could not who may. That
//! costs a curiosity: ss(8) and /proc/net/unix show sockets by the name that they were bound by, in `.sluice-XXXXXX`.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, CWD, FlockOperation, RenameFlags, access, chmod, chown, flock, renameat_with};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use rustix::process::{Gid, Uid};

use sluice_backend::server::Server;

mod access;

pub(crate) use access::{SocketAccess, SocketMode};

/// The longest path that fits a socket address: 108 bytes with the NUL (unix(7)).
const PATH_BYTES_MAX: usize = 107;
/// How long another daemon may take to bind its sockets in the same directory: that is a matter of microseconds.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Why there is no socket at a path. The path itself leads the message, from whoever named it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SocketError {
    #[error("is {0} bytes long, a socket's path can have {PATH_BYTES_MAX}: use a shorter one")]
    TooLong(usize),
    #[error("ends in no file name: name the socket, too")]
    NoName,
    #[error("the directory {} does not exist: create it first", .0.display())]
    NoDirectory(PathBuf),
    #[error("{} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    #[error("the directory {} is not writable: {error}", .directory.display())]
    NotWritable { directory: PathBuf, error: io::Error },
    #[error("is {0}, not a socket, and is left alone: remove it, or use another path")]
    NotASocket(&'static str),
    #[error("another process serves this socket: stop it, or use another path")]
    Live,
    #[error("cannot tell whether another process serves this socket: {0}")]
    Unknown(io::Error),
    #[error("the directory {} is kept locked by another process: see `lslocks`", .0.display())]
    Locked(PathBuf),
    #[error("cannot {0}: {1}")]
    System(&'static str, io::Error),
}

/// What stands at a path where a socket can be made.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Free,
    Stale,
}

/// The file of a socket that we made. Dropping it removes the file, if it is still the one that we made.
///
/// Drop it while the listener is open: until then nobody takes it for stale, and its inode number is not used again.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
    /// Whether it is ours to remove.
    ours: bool,
}

impl SocketFile {
    /// The file of a socket that another process has made and is about to hand over.
    pub(crate) fn of_another(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.into(), identity: identity(path)?, ours: false })
    }

    /// It was handed over: from now on it is ours.
    pub(crate) fn take_over(&mut self) {
        self.ours = true;
    }

    /// Leaves the file: another process serves the socket.
    pub(crate) fn leave(mut self) {
        self.ours = false;
    }

    /// The directory that it is in.
    pub(crate) fn directory(&self) -> &Path {
        directory_of(&self.path).unwrap_or(Path::new("/"))
    }
}

/// Says whether [`listen_at`] would work, and touches nothing.
pub(crate) fn check(path: &Path) -> Result<(), SocketError> {
    let directory = directory_of(path)?;
    match directory.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(SocketError::NoDirectory(directory.into()));
        }
        Err(error) => return Err(SocketError::NotWritable { directory: directory.into(), error }),
        Ok(metadata) if !metadata.is_dir() => return Err(SocketError::NotADirectory(directory.into())),
        Ok(_) => {}
    }
    access(directory, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| SocketError::NotWritable { directory: directory.into(), error: error.into() })?;
    probe(path)?;
    Ok(())
}

/// Makes a listening socket at the path, in the place of a stale one if need be.
pub(crate) fn listen_at(
    path: &Path,
    access: &SocketAccess,
) -> Result<(UnixListener, SocketFile), SocketError> {
    check(path)?;
    let _lock = lock_directory(directory_of(path)?, LOCK_WAIT_MAX)?;
    if probe(path)? == Place::Stale {
        std::fs::remove_file(path)
            .map_err(|error| SocketError::System("remove the stale socket there", error))?;
        log::info!("replacing the stale socket {}", path.display());
    }
    let listener = listen_unseen(path, access)?;
    let identity =
        identity(path).map_err(|error| SocketError::System("look at the socket just made", error))?;
    Ok((listener, SocketFile { path: path.into(), identity, ours: true }))
}

/// Makes the socket where nobody sees it, and gives it its name when it is ready.
fn listen_unseen(path: &Path, access: &SocketAccess) -> Result<UnixListener, SocketError> {
    let name = path.file_name().ok_or(SocketError::NoName)?;
    // Gone, with everything in it, when this returns.
    let private = tempfile::Builder::new()
        .prefix(".sluice-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir_in(directory_of(path)?)
        .map_err(|error| SocketError::System("make a directory beside it", error))?;
    let unseen = private.path().join(name);
    let socket = bind_at(&unseen, private.path())?;
    let system = |what| move |error: Errno| SocketError::System(what, error.into());
    if access.uid.is_some() || access.gid.is_some() {
        chown(&unseen, access.uid.map(Uid::from_raw), access.gid.map(Gid::from_raw)).map_err(system(
            "give the socket to that owner (that takes CAP_CHOWN, or to belong to the group)",
        ))?;
    }
    chmod(&unseen, access.mode.into()).map_err(system("set the socket's mode"))?;
    listen(&socket, Server::BACKLOG).map_err(system("listen"))?;
    name_socket(&unseen, path)?;
    Ok(socket.into())
}

/// Binds a socket at a path that may be longer than an address can have.
fn bind_at(path: &Path, directory: &Path) -> Result<rustix::fd::OwnedFd, SocketError> {
    let socket = stream_socket(SocketType::STREAM)?;
    let failed = |error: io::Error| SocketError::System("bind a socket there", error);
    let bound = if path.as_os_str().len() <= PATH_BYTES_MAX {
        bind(&socket, &address(path)?)
    } else {
        let directory = File::open(directory).map_err(failed)?;
        let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
        bind(&socket, &address(&Path::new(&link).join(path.file_name().ok_or(SocketError::NoName)?))?)
    };
    bound.map_err(|error| failed(error.into()))?;
    Ok(socket)
}

fn name_socket(unseen: &Path, path: &Path) -> Result<(), SocketError> {
    let failed = |error: io::Error| SocketError::System("give the socket its name", error);
    match renameat_with(CWD, unseen, CWD, path, RenameFlags::NOREPLACE) {
        Err(Errno::EXIST) => Err(SocketError::Live),
        // Some file systems cannot say no. Nothing was there a moment ago, and the directory is locked.
        Err(Errno::INVAL | Errno::NOSYS) => std::fs::rename(unseen, path).map_err(failed),
        result => result.map_err(|error| failed(error.into())),
    }
}

/// Finds out what stands at the path.
fn probe(path: &Path) -> Result<Place, SocketError> {
    let kind = match path.symlink_metadata() {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Place::Free),
        Err(error) => return Err(SocketError::Unknown(error)),
    };
    if !kind.is_socket() {
        return Err(SocketError::NotASocket(match kind {
            kind if kind.is_file() => "a file",
            kind if kind.is_dir() => "a directory",
            kind if kind.is_symlink() => "a symbolic link",
            _ => "a device or a pipe",
        }));
    }
    match connect(stream_socket(SocketType::DGRAM)?, &address(path)?) {
        Err(Errno::CONNREFUSED) => Ok(Place::Stale),
        // It went away since we looked.
        Err(Errno::NOENT) => Ok(Place::Free),
        // A datagram socket that somebody holds lets us connect.
        Ok(()) | Err(Errno::PROTOTYPE) => Err(SocketError::Live),
        Err(error) => Err(SocketError::Unknown(error.into())),
    }
}

fn stream_socket(kind: SocketType) -> Result<rustix::fd::OwnedFd, SocketError> {
    socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
        .map_err(|error| SocketError::System("make a socket", error.into()))
}

fn address(path: &Path) -> Result<SocketAddrUnix, SocketError> {
    SocketAddrUnix::new(path).map_err(|_| SocketError::TooLong(path.as_os_str().len()))
}

/// The directory of a path that a socket can have.
fn directory_of(path: &Path) -> Result<&Path, SocketError> {
    let length = path.as_os_str().len();
    if length > PATH_BYTES_MAX {
        return Err(SocketError::TooLong(length));
    }
    match path.parent() {
        None => Err(SocketError::NoName),
        Some(_) if path.file_name().is_none() => Err(SocketError::NoName),
        Some(parent) if parent.as_os_str().is_empty() => Ok(Path::new(".")),
        Some(parent) => Ok(parent),
    }
}

/// Holds off other daemons that want to bind in this directory until the lock is dropped.
fn lock_directory(directory: &Path, wait_max: Duration) -> Result<File, SocketError> {
    let file = File::open(directory).map_err(|error| SocketError::System("open the directory", error))?;
    let deadline = Instant::now() + wait_max;
    loop {
        match flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(LOCK_RETRY),
            Err(Errno::WOULDBLOCK) => return Err(SocketError::Locked(directory.into())),
            Err(Errno::INTR) => {}
            // Some network file systems lock no directories; their sockets are as good without.
            Err(error) => {
                log::warn!(
                    "cannot lock {}: {error}; do not start two daemons on one socket at once",
                    directory.display()
                );
                return Ok(file);
            }
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = path.symlink_metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.ours
            && identity(&self.path).is_ok_and(|found| found == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::warn!("cannot remove the socket {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests;
