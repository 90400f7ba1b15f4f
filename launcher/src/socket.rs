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
//! that instant if it binds to the same path; bind itself never replaces anything.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, FlockOperation, Mode, access, fchmod, flock};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// The longest path that fits a socket address: 108 bytes with the NUL (unix(7)).
const PATH_BYTES_MAX: usize = 107;
/// Only the owner may connect: who can write to the socket can read and write the disk.
const MODE: Mode = Mode::from_bits_retain(0o600);
/// Front-ends that may wait to be accepted or refused.
const BACKLOG: i32 = 16;
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
pub(crate) fn listen_at(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    check(path)?;
    let _lock = lock_directory(directory_of(path)?, LOCK_WAIT_MAX)?;
    if probe(path)? == Place::Stale {
        std::fs::remove_file(path)
            .map_err(|error| SocketError::System("remove the stale socket there", error))?;
        log::info!("replacing the stale socket {}", path.display());
    }
    let listener = bind_and_listen(path)?;
    let identity =
        identity(path).map_err(|error| SocketError::System("look at the socket just made", error))?;
    Ok((listener, SocketFile { path: path.into(), identity }))
}

fn bind_and_listen(path: &Path) -> Result<UnixListener, SocketError> {
    let socket = stream_socket(SocketType::STREAM)?;
    // The file takes the mode of the socket that is bound: there is no moment in which others could connect.
    fchmod(&socket, MODE).map_err(|error| SocketError::System("set the socket's mode", error.into()))?;
    match bind(&socket, &address(path)?) {
        Err(Errno::ADDRINUSE) => return Err(SocketError::Live),
        result => result.map_err(|error| SocketError::System("bind a socket there", error.into()))?,
    }
    listen(&socket, BACKLOG).map_err(|error| SocketError::System("listen", error.into()))?;
    Ok(socket.into())
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
        if identity(&self.path).is_ok_and(|found| found == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::warn!("cannot remove the socket {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests;
