//! `sluice upgrade`: asks a running daemon for an upgrade, and waits for it.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{STANDSTILL_MAX, START_MAX, TAKE_MAX};

/// Have a running daemon go on as the program that is installed now, without its guests noticing
#[derive(Debug, clap::Args)]
#[command(long_about = "\
Has a running daemon go on as the program that is installed now, without its guests noticing.

The daemon starts that program with its own options, which reads the configuration file again, and hands over its sockets, \
its connections and its rings. When the new process cannot take all of it over, the running one goes on as if nothing had \
happened, and its log says why. SIGUSR2 asks it for the same.")]
pub(crate) struct UpgradeArgs {
    /// The daemon: the number of its process, or the path of a socket that it serves
    #[arg(value_name = "PID|SOCKET")]
    daemon: PathBuf,
}

/// Asks, waits, and says how it has ended.
pub(crate) fn run(args: &UpgradeArgs) -> Result<u8> {
    let daemon = &args.daemon;
    let pid = match daemon.to_str().and_then(|text| text.parse().ok()) {
        Some(number) => number,
        None => server_of(daemon)?,
    };
    let process = open(pid)?;
    ensure!(
        takes_upgrades(pid)?,
        "process {pid} is no daemon of sluice that can be upgraded: it does not know SIGUSR2"
    );
    match pidfd_send_signal(&process, Signal::USR2) {
        Err(Errno::PERM) => bail!("process {pid} belongs to somebody else: ask as root, or as its user"),
        sent => sent.with_context(|| format!("cannot signal process {pid}"))?,
    }
    if !ends_within(&process, START_MAX + STANDSTILL_MAX + TAKE_MAX + Duration::from_secs(1))? {
        bail!("process {pid} goes on: its log says why");
    }
    if daemon.to_str().and_then(|text| text.parse::<i32>().ok()).is_some() {
        println!("process {pid} has handed over");
        return Ok(0);
    }
    let Some(next) = successor_of(pid, daemon) else {
        bail!("process {pid} has ended, and nobody serves {} now", daemon.display())
    };
    println!("process {pid} has handed over to process {next}");
    Ok(0)
}

/// Who listens at a socket instead of a process that has ended. The next one may be about to say that it does.
fn successor_of(pid: i32, socket: &Path) -> Option<i32> {
    let until = Instant::now() + TAKE_MAX;
    while Instant::now() < until {
        match server_of(socket) {
            Ok(next) if next != pid => return Some(next),
            Ok(_) => std::thread::sleep(Duration::from_millis(1)),
            Err(_) => return None,
        }
    }
    None
}

/// Who listens at a socket: the kernel says so to who connects. The daemon sees somebody who comes and goes.
fn server_of(socket: &Path) -> Result<i32> {
    let about = || format!("{} is no process, and nobody serves a socket there", socket.display());
    let stream = UnixStream::connect(socket).with_context(about)?;
    let pid = getsockopt(&stream, PeerCredentials).with_context(about)?.pid();
    ensure!(pid > 0, "{}: its daemon is in another namespace of processes", socket.display());
    Ok(pid)
}

fn open(pid: i32) -> Result<OwnedFd> {
    let valid = Pid::from_raw(pid).filter(|_| pid > 0).with_context(|| format!("{pid} is no process"))?;
    pidfd_open(valid, PidfdFlags::empty()).with_context(|| format!("process {pid}"))
}

/// Whether the process handles the signal. One that does not would be ended by it.
fn takes_upgrades(pid: i32) -> Result<bool> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let is_sluice =
        status.lines().any(|line| line.strip_prefix("Name:").is_some_and(|name| name.trim() == "sluice"));
    Ok(is_sluice && caught & (1 << (Signal::USR2.as_raw() - 1)) != 0)
}

fn ends_within(process: &OwnedFd, time: Duration) -> Result<bool> {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    let time = Timespec::try_from(time).context("a time")?;
    Ok(retry_on_intr(|| poll(&mut fds, Some(&time)))? > 0)
}
