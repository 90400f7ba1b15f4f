//! A backend with its client connected: what every measurement starts from.
//!
//! Each measurement has a process of its own, so that none inherits anything from the one before; the client goes first
//! at the end, as a front-end does.

use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result};

use super::args::Extent;
use super::client::{Client, Target};
use super::contender::{BYTES_WITHOUT_FILE, Contender, Service};
use super::media::Media;
use super::process::{self, Ended, Process};
use super::statistics::Latencies;
use super::workload::{Medium, Op, Order, Workload};

/// How long it may take to connect and to start a backend's rings. Longer than the client waits for a socket.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(15);
/// How long a disk is written before it is asked whether that was all of it.
const FILL_TIME: Duration = Duration::from_millis(20);
/// sluice's exit code for options that it does not know.
const WRONG_USAGE: i32 = 2;

/// What measurements need.
pub(super) struct Ground {
    pub(super) media: Media,
    pub(super) extent: Extent,
    /// Where backends run, if somebody says so.
    pub(super) cpus: Option<Vec<usize>>,
    /// How many were started: each has sockets of its own.
    pub(super) started: usize,
}

/// Why there is no figure.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub(super) enum Failure {
    /// The backend or this machine cannot do it.
    #[error("not there yet: {0}")]
    NotThere(String),
    /// It should have worked.
    #[error("failed: {0}")]
    Failed(String),
}

/// A backend that serves a workload, and the client that is connected to it.
pub(super) struct Running {
    // The client goes first.
    pub(super) client: Client,
    /// None for the bare file.
    process: Option<Process>,
    sockets: Vec<PathBuf>,
}

impl Ground {
    /// Starts a contender and connects to it.
    pub(super) fn start(&mut self, contender: &Contender, workload: &Workload) -> Result<Running, Failure> {
        let file =
            self.media.prepare(workload.medium).map_err(|why| Failure::NotThere(format!("{why:#}")))?;
        self.started += 1;
        let scratch = self.media.scratch().join(self.started.to_string());
        let sockets: Vec<_> =
            (0..workload.disks).map(|disk| scratch.with_extension(format!("{disk}.sock"))).collect();
        let service = Service { workload, sockets: &sockets, file: file.as_deref() };
        let bytes = if file.is_some() { self.media.bytes() } else { BYTES_WITHOUT_FILE };
        let failed = |why: anyhow::Error| Failure::Failed(format!("{why:#}"));
        let Some(command) = contender.command(&service) else {
            let path = service.file.context("there is no file to be read").map_err(failed)?;
            let target = Target::File { path, direct: workload.medium.is_direct() };
            let client = Client::connect(&target, workload, bytes, || Ok(())).map_err(failed)?;
            return Ok(Running { client, process: None, sockets: Vec::new() });
        };
        let started = Process::start(command, &scratch.with_extension("log"), self.cpus.as_deref());
        let mut process = started.context("cannot start it").map_err(failed)?;
        let target = Target::Sockets(&sockets);
        let (client, was_stuck) = unless_stuck(process.id(), || {
            let mut check = || Ok(process.check()?);
            if workload.medium == Medium::Ram && workload.op != Op::Write {
                fill(&target, bytes, &mut check)?;
            }
            Client::connect(&target, workload, bytes, check)
        });
        match client {
            Ok(client) => Ok(Running { client, process: Some(process), sockets }),
            Err(_) if was_stuck => Err(Failure::Failed("it does not answer".into())),
            Err(why) => Err(not_started(contender, workload, &why)),
        }
    }
}

/// Writes a disk in memory once: memory that nobody has written is one and the same page of zeroes, and always in the
/// CPU's cache.
fn fill(target: &Target<'_>, bytes: u64, check: &mut impl FnMut() -> Result<()>) -> Result<()> {
    let all =
        Workload { order: Order::Sequential, block: 128 << 10, ..Workload::new(Medium::Ram, Op::Write, 8) };
    let mut client = Client::connect(target, &all, bytes, check)?;
    let mut written = Latencies::new();
    while written.count() * u64::from(all.block) < bytes {
        client.run(FILL_TIME, &mut written)?;
    }
    Ok(())
}

/// Does what waits for a backend without an end, and ends the backend when it takes too long. Says whether it did.
fn unless_stuck<T>(id: u32, work: impl FnOnce() -> T) -> (T, bool) {
    let (finished, waiting) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let is_stuck = waiting.recv_timeout(ANSWER_TIME_MAX) == Err(RecvTimeoutError::Timeout);
            is_stuck && process::kill(id).is_ok()
        });
        let result = work();
        drop(finished);
        (result, watch.join().expect("watching does not panic"))
    })
}

impl Running {
    /// The process whose work counts: the backend, or of the bare file the client.
    pub(super) fn id(&self) -> u32 {
        self.process.as_ref().map_or_else(std::process::id, Process::id)
    }

    /// What an error of the client means: perhaps the backend has died.
    pub(super) fn explain(&mut self, error: &anyhow::Error) -> Failure {
        match self.process.as_mut().map(Process::check) {
            Some(Err(ended)) => Failure::Failed(format!("it {ended}")),
            _ => Failure::Failed(format!("{error:#}")),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for socket in &self.sockets {
            // Those that clean up have removed it.
            std::fs::remove_file(socket).ok();
        }
    }
}

/// What it means that a contender did not start.
fn not_started(contender: &Contender, workload: &Workload, error: &anyhow::Error) -> Failure {
    let text = format!("{error:#}");
    let Some(ended) = error.downcast_ref::<Ended>() else { return Failure::Failed(text) };
    let is_ours = matches!(contender, Contender::Sluice);
    let is_unknown = ended.status.code() == Some(WRONG_USAGE) || workload.medium == Medium::Disk4k;
    if is_ours && is_unknown { Failure::NotThere(text) } else { Failure::Failed(text) }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn who_answers_in_time_is_left_alone() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert_eq!(unless_stuck(child.id(), || 7), (7, false));
        assert!(child.try_wait().unwrap().is_none());
        process::kill(child.id()).unwrap();
        assert!(!child.wait().unwrap().success());
    }
}
