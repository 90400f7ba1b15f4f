//! The process that starts the next daemon: the running one may start nothing once it is in its sandbox.
//!
//! It is started before there is a sandbox, with the same options, and waits on its standard input for one of two wishes of the
//! daemon's: to start the program that is installed by then, with one end of a socket pair, or to end what it has started. That
//! is all that a guest who has got hold of the daemon could make it do. It ends when the daemon does.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_setfd, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use signal_hook::consts::SIGUSR2;

use super::UpgradeError;
use super::successor::{ACTIVATED, HANDOVER};
use crate::inherited;

const START: u8 = b's';
const END: u8 = b'e';
/// How long a process that has failed may take to end by itself.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How long this one may take to end, when there is no daemon any more. Others serve meanwhile.
const LEAVE_MAX: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
/// What process lists show, so that nobody takes it for the daemon.
const NAME: &str = "sluice-starter";

/// The options of that process, which are no user's.
#[derive(Debug, clap::Args)]
pub(crate) struct StarterArgs {
    /// The program to start
    program: PathBuf,
    /// Its options
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<OsString>,
}

/// The process, from the daemon's side.
#[derive(Debug)]
pub(crate) struct Starter {
    wishes: UnixStream,
    process: OwnedFd,
}

impl Starter {
    /// Starts it. To be called while this process still may.
    pub(crate) fn launch() -> io::Result<Self> {
        let program = std::env::current_exe()?;
        let (wishes, theirs) = UnixStream::pair()?;
        let child = Command::new(&program)
            .arg0(NAME)
            .arg("starter")
            .arg(&program)
            .args(std::env::args_os().skip(1))
            .stdin(OwnedFd::from(theirs))
            .env(ACTIVATED, inherited::activated().len().to_string())
            .env_remove(HANDOVER)
            .spawn()?;
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        Ok(Self { wishes, process })
    }

    /// Lets it end, and waits for that. Whom it has started last is then a child of whoever adopts those that have lost their
    /// parent: of the service manager, which waits for the end of its children only.
    pub(crate) fn leave(self) {
        drop(self.wishes);
        let mut process = [PollFd::new(&self.process, PollFlags::IN)];
        // It has nothing to do before that, and nothing is lost without it.
        let _ = retry_on_intr(|| poll(&mut process, Some(&LEAVE_MAX)));
    }

    /// Has the next daemon started, with `peer`.
    pub(super) fn start(&self, peer: OwnedFd) -> Result<(), UpgradeError> {
        let fds = [peer.as_fd()];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        retry_on_intr(|| sendmsg(&self.wishes, &[IoSlice::new(&[START])], &mut ancillary, flags))
            .map_err(|error| UpgradeError::NoStarter(error.into()))?;
        Ok(())
    }

    /// Has it ended, if it has been started.
    pub(super) fn end(&self) {
        // Fails when there is nobody who could have started one.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let _ = rustix::net::send(&self.wishes, &[END], flags);
    }
}

/// That process. Returns when the daemon has ended.
pub(crate) fn run(args: &StarterArgs) -> Result<u8> {
    let _ = rustix::thread::set_name(c"sluice-starter");
    // Meant for the daemon, by somebody who signals all processes of a service.
    signal_hook::flag::register(SIGUSR2, Arc::new(AtomicBool::new(false))).context("SIGUSR2")?;
    let wishes = std::io::stdin().as_fd().try_clone_to_owned().context("standard input")?;
    let mut started: Option<Child> = None;
    while let Some((wish, fd)) = receive(&wishes).context("what the daemon wishes")? {
        if let Some(child) = started.take() {
            end(child);
        }
        if let (START, Some(fd)) = (wish, fd) {
            match start(args, &fd) {
                Ok(child) => started = Some(child),
                Err(error) => eprintln!("error: cannot start {}: {error}", args.program.display()),
            }
        }
    }
    Ok(0)
}

fn start(args: &StarterArgs, peer: &OwnedFd) -> io::Result<Child> {
    fcntl_setfd(peer, FdFlags::empty())?;
    Command::new(&args.program)
        .args(&args.options)
        .env(HANDOVER, peer.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .spawn()
}

/// Ends what an attempt has left that has failed, when it has had the time to say why.
fn end(mut child: Child) {
    let until = Instant::now() + LAST_WORDS;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// The next wish; none when there is no daemon any more.
fn receive(wishes: &OwnedFd) -> io::Result<Option<(u8, Option<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut wish = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let seen = retry_on_intr(|| recvmsg(wishes, &mut [IoSliceMut::new(&mut wish)], &mut ancillary, flags))?;
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((seen.bytes > 0).then_some((wish[0], fd)))
}
