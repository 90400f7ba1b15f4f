//! A backend as a process: started, watched, ended.

use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_setaffinity};

/// How long a backend may take to end after SIGTERM.
const END_TIME_MAX: Duration = Duration::from_secs(3);

/// A running backend, ended when this is dropped.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    log: PathBuf,
}

/// A backend that has ended by itself.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("{}", self.words())]
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// The last line that it printed.
    pub(super) last_words: String,
}

impl Ended {
    fn words(&self) -> String {
        let how = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("ended with exit code {code}"),
            (None, Some(signal)) => format!("was ended by signal {signal}"),
            (None, None) => "ended".into(),
        };
        if self.last_words.is_empty() { how } else { format!("{how}: {}", self.last_words) }
    }
}

impl Process {
    /// Starts a backend with its output in a file, on some CPUs if these are named.
    pub(super) fn start(mut command: Command, log: &Path, cpus: Option<&[usize]>) -> io::Result<Self> {
        let output = File::create(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // Ctrl-C is for us: a backend that died of it would leave the client waiting.
        command.process_group(0);
        let child = match cpus {
            None => command.spawn()?,
            // A child starts where the thread is that makes it.
            Some(cpus) => std::thread::scope(|scope| {
                let start = || {
                    pin(cpus)?;
                    command.spawn()
                };
                scope.spawn(start).join().expect("starting a process does not panic")
            })?,
        };
        Ok(Self { child, log: log.into() })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails when it has ended by itself.
    pub(super) fn check(&mut self) -> Result<(), Ended> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.ended(status)),
            Err(error) => Err(Ended { status: ExitStatus::default(), last_words: error.to_string() }),
        }
    }

    fn ended(&self, status: ExitStatus) -> Ended {
        let words = std::fs::read_to_string(&self.log).unwrap_or_default();
        // The first error is the cause; programs without the word say it last.
        let mut lines = words.lines().filter(|line| !line.trim().is_empty());
        let error = words.lines().find(|line| line.to_lowercase().contains("error"));
        let line = error.or_else(|| lines.next_back()).unwrap_or_default();
        Ended { status, last_words: line.trim().into() }
    }

    fn end(&mut self) -> io::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let deadline = Instant::now() + END_TIME_MAX;
        while Instant::now() < deadline {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.child.kill()?;
        self.child.wait().map(|_| ())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("bench: cannot end process {}: {error}", self.child.id());
        }
    }
}

/// Ends a process, not kindly.
pub(super) fn kill(id: u32) -> io::Result<()> {
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(kill_process(pid, Signal::KILL)?)
}

/// Lets the calling thread, and what it starts, run on these CPUs only.
pub(super) fn pin(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu);
    }
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, log: &Path) -> Process {
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        Process::start(command, log, None).unwrap()
    }

    fn end_of(script: &str) -> Ended {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut process = shell(script, log.path());
        process.child.wait().unwrap();
        process.check().unwrap_err()
    }

    #[test]
    fn an_end_says_how_and_why() {
        assert_eq!(end_of("exit 3").to_string(), "ended with exit code 3");
        assert_eq!(end_of("echo a; echo b; exit 1").to_string(), "ended with exit code 1: b");
        assert_eq!(
            end_of("echo Error: no >&2; echo; echo try --help; exit 2").to_string(),
            "ended with exit code 2: Error: no"
        );
        assert_eq!(end_of("kill -9 $$").to_string(), "was ended by signal 9");
    }

    #[test]
    fn a_process_does_not_outlive_its_value() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut process = shell("exec sleep 60", log.path());
        assert_eq!(process.check(), Ok(()));
        let path = PathBuf::from(format!("/proc/{}", process.id()));
        drop(process);
        assert!(!path.exists());
    }

    #[test]
    fn a_pinned_process_runs_where_it_may() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new("grep");
        command.args(["Cpus_allowed_list", "/proc/self/status"]);
        let mut process = Process::start(command, log.path(), Some(&[0])).unwrap();
        process.child.wait().unwrap();
        let words = std::fs::read_to_string(log.path()).unwrap();
        assert_eq!(words.split_whitespace().nth(1), Some("0"), "{words}");
    }
}
