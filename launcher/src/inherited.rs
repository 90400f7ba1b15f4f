//! Sockets that whoever started us has opened: `--fd=N`, and systemd's socket activation (sd_listen_fds(3)).
//!
//! A number says nothing about ownership, so it is not believed: the descriptor is passed to ourselves over a socket
//! pair, and what arrives is a duplicate of our own, closed on exec; a wrong number is an error of the kernel's, and
//! never somebody else's descriptor closed. The original stays open until the process ends.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::str::FromStr;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketType, sockopt};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::systemd::is_stored;
use crate::upgrade::successor::{ACTIVATED, HANDOVER};

/// The first descriptor that socket activation passes.
const ACTIVATED_FIRST: RawFd = 3;

/// A socket that was handed over, by what it can do.
#[derive(Debug)]
pub(crate) enum InheritedSocket {
    /// Front-ends can connect to it.
    Listening(UnixListener),
    /// A front-end is at its other end.
    Connected(UnixStream),
}

/// Why a descriptor is no use. The option that named it leads the message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InheritedError {
    #[error("is not an open descriptor: whoever starts sluice must open it and let it be inherited")]
    NotOpen,
    #[error("is not a socket: pass a listening or connected Unix stream socket")]
    NotASocket,
    #[error("is not a Unix stream socket: pass a listening or connected one")]
    WrongKind,
    #[error("is neither listening nor connected: call listen(2) or connect(2) on it first")]
    Idle,
    #[error("cannot take it over: {0}")]
    System(#[from] io::Error),
}

impl InheritedSocket {
    /// Takes a duplicate of the descriptor with this number.
    pub(crate) fn take(number: RawFd) -> Result<Self, InheritedError> {
        let fd = duplicate(number)?;
        let system = |error: rustix::io::Errno| InheritedError::System(error.into());
        match sockopt::socket_domain(&fd) {
            Ok(AddressFamily::UNIX) => {}
            Ok(_) => return Err(InheritedError::WrongKind),
            Err(_) => return Err(InheritedError::NotASocket),
        }
        if sockopt::socket_type(&fd).map_err(system)? != SocketType::STREAM {
            return Err(InheritedError::WrongKind);
        }
        if sockopt::socket_acceptconn(&fd).map_err(system)? {
            return Ok(Self::Listening(fd.into()));
        }
        rustix::net::getpeername(&fd).map_err(|_| InheritedError::Idle)?;
        Ok(Self::Connected(fd.into()))
    }
}

/// The descriptor with this number, which is open for nothing else: of a program that has passed it to this one only.
pub(crate) fn take(number: RawFd) -> Result<OwnedFd, InheritedError> {
    let fd = duplicate(number)?;
    nix::unistd::close(number).map_err(io::Error::from)?;
    Ok(fd)
}

/// A duplicate of the descriptor with this number.
fn duplicate(number: RawFd) -> Result<OwnedFd, InheritedError> {
    let (here, there) = UnixStream::pair()?;
    here.send_with_fd(&[0_u8][..], number).map_err(|error| match error.errno() {
        errno if errno == rustix::io::Errno::BADF.raw_os_error() => InheritedError::NotOpen,
        errno => InheritedError::System(io::Error::from_raw_os_error(errno)),
    })?;
    let (_, file) = there
        .recv_with_fd(&mut [0])
        .map_err(|error| InheritedError::System(io::Error::from_raw_os_error(error.errno())))?;
    let fd: OwnedFd = file.ok_or(InheritedError::NotOpen)?.into();
    fcntl_setfd(&fd, FdFlags::CLOEXEC).map_err(io::Error::from)?;
    Ok(fd)
}

/// The descriptors that systemd passed to this process, by its environment; to one that takes over from another, the numbers
/// that they had there.
pub(crate) fn activated() -> Vec<RawFd> {
    let variable = |name: &str| std::env::var(name).ok();
    match (variable(HANDOVER), variable(ACTIVATED)) {
        (Some(_), Some(count)) => numbers(count.parse().unwrap_or(0)),
        _ => activated_by(variable, std::process::id()),
    }
}

fn numbers(count: RawFd) -> Vec<RawFd> {
    (ACTIVATED_FIRST..ACTIVATED_FIRST + count.clamp(0, RawFd::from(u16::MAX))).collect()
}

fn activated_by(variable: impl Fn(&str) -> Option<String>, pid: u32) -> Vec<RawFd> {
    let sockets = passed_by(variable, pid).into_iter().filter(|(_, name)| !is_stored(name));
    sockets.map(|(number, _)| number).collect()
}

/// All descriptors that systemd passed to this process, with their names.
pub(crate) fn passed() -> Vec<(RawFd, String)> {
    passed_by(|name| std::env::var(name).ok(), std::process::id())
}

fn passed_by(variable: impl Fn(&str) -> Option<String>, pid: u32) -> Vec<(RawFd, String)> {
    // Variables that a parent forgot to unset speak of another process.
    if number::<u32>(variable("LISTEN_PID")) != Some(pid) {
        return Vec::new();
    }
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let names = names.split(':').map(str::to_owned).chain(std::iter::repeat(String::new()));
    numbers(number(variable("LISTEN_FDS")).unwrap_or(0)).into_iter().zip(names).collect()
}

fn number<N: FromStr>(text: Option<String>) -> Option<N> {
    text?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use rustix::net::{SocketFlags, socket_with};

    use super::*;

    #[test]
    fn a_listening_and_a_connected_socket_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let taken = InheritedSocket::take(listener.as_raw_fd()).unwrap();
        assert!(matches!(taken, InheritedSocket::Listening(_)), "{taken:?}");
        let stream = UnixStream::connect(&path).unwrap();
        let taken = InheritedSocket::take(stream.as_raw_fd()).unwrap();
        assert!(matches!(taken, InheritedSocket::Connected(_)), "{taken:?}");
    }

    #[test]
    fn what_is_taken_is_a_duplicate_that_is_closed_on_exec() {
        let (stream, _peer) = UnixStream::pair().unwrap();
        let InheritedSocket::Connected(taken) = InheritedSocket::take(stream.as_raw_fd()).unwrap() else {
            panic!("a connected socket")
        };
        assert_ne!(taken.as_raw_fd(), stream.as_raw_fd());
        assert_eq!(rustix::io::fcntl_getfd(&taken).unwrap(), FdFlags::CLOEXEC);
    }

    #[test]
    fn what_is_no_use_is_refused_with_what_to_do() {
        let file = tempfile::tempfile().unwrap();
        let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let idle = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let error = |number| InheritedSocket::take(number).unwrap_err().to_string();
        assert!(error(1_000_000).starts_with("is not an open descriptor"));
        assert!(error(file.as_raw_fd()).starts_with("is not a socket"));
        assert!(error(datagram.as_raw_fd()).starts_with("is not a Unix stream socket"));
        assert!(error(tcp.as_raw_fd()).starts_with("is not a Unix stream socket"));
        assert!(error(idle.as_raw_fd()).starts_with("is neither listening nor connected"));
    }

    #[test]
    fn socket_activation_counts_from_three_and_only_for_this_process() {
        let passed = |pid: &'static str, fds: &'static str| {
            let variable = move |name: &str| match name {
                "LISTEN_PID" => Some(pid.to_owned()),
                "LISTEN_FDS" => Some(fds.to_owned()),
                _ => None,
            };
            activated_by(variable, 42)
        };
        assert_eq!(passed("42", "2"), [3, 4]);
        assert!(passed("43", "2").is_empty());
        assert!(passed("42", "-1").is_empty());
        assert!(passed("42", "many").is_empty());
        assert!(activated_by(|_| None, 42).is_empty());
    }

    #[test]
    fn what_was_stored_is_no_socket_to_serve() {
        let variable = |name: &str| {
            let value = match name {
                "LISTEN_PID" => "42",
                "LISTEN_FDS" => "5",
                "LISTEN_FDNAMES" => "a.socket:sluice-0:b.socket:sluice-state",
                _ => return None,
            };
            Some(value.to_owned())
        };
        assert_eq!(activated_by(variable, 42), [3, 5, 7]);
    }
}
