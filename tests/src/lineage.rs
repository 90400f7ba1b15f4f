//! A daemon that is upgraded: a process, and those that take its place one after another.
//!
//! They are in a process group of their own, so that all of them can be found, and ended. This process adopts and buries those
//! whose parent has gone.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, kill_process_group, set_child_subreaper, waitpgid,
};

/// How long a process may take to listen, and to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon, whichever process that is now.
pub struct Lineage {
    program: PathBuf,
    group: Pid,
    pid: Pid,
    log: PathBuf,
}

impl Lineage {
    /// Starts `program`, logs to a file in `dir`, and waits until somebody listens at `socket`.
    ///
    /// # Panics
    /// If it cannot be started, or does not listen in time.
    #[expect(clippy::zombie_processes, reason = "it is waited for with its process group")]
    pub fn start(program: &Path, args: &[impl AsRef<OsStr>], dir: &Path, socket: &Path) -> Self {
        set_child_subreaper(Some(getpid())).expect("Linux has subreapers");
        let log = dir.join("log");
        let file = File::options().create(true).append(true).open(&log).expect("a log");
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).process_group(0);
        let child = command.spawn().expect("the daemon can be started");
        let pid = Pid::from_child(&child);
        let lineage = Self { program: program.into(), group: pid, pid, log };
        lineage.await_that("it listens", || socket.exists());
        lineage
    }

    /// The number of the process that serves.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Where all of them log.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What all of them have logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks for an upgrade as a person does, by `sluice upgrade`, of a process or of who serves a socket.
    #[must_use]
    pub fn ask(&self, whom: impl AsRef<OsStr>) -> Output {
        let mut command = Command::new(&self.program);
        command.arg("upgrade").arg(whom.as_ref()).output().expect("sluice can be started")
    }

    /// Asks for an upgrade, and waits for it. Nothing is said of how that was asked for.
    ///
    /// # Panics
    /// If it fails.
    pub fn upgrade(&mut self) {
        self.signal(Signal::USR2);
        let before = self.log().len();
        let (pid, log) = (self.pid, self.log.clone());
        self.await_that("another one serves", || {
            waitpgid(self.group, WaitOptions::NOHANG).ok();
            fs::read_to_string(&log)
                .is_ok_and(|log| log[before.min(log.len())..].contains("nobody has served"))
        });
        self.follow();
        assert_ne!(self.pid, pid, "{}", self.log());
    }

    /// Takes note of which process serves now, as the log says.
    ///
    /// # Panics
    /// If the log says none.
    pub fn follow(&mut self) {
        let log = self.log();
        if let Some(line) = log.lines().rev().find(|line| line.contains("handed over to process")) {
            let number = line.split("process ").nth(1).and_then(|rest| rest.split(';').next());
            let number = number.and_then(|number| number.trim().parse().ok()).and_then(Pid::from_raw);
            self.pid = number.unwrap_or_else(|| panic!("a process in {line:?}"));
        }
    }

    /// Asks for an upgrade that has to fail, and waits until the log says why.
    ///
    /// # Panics
    /// If it does not.
    pub fn fail_to_upgrade(&self, why: &str) {
        let before = self.log().len();
        self.signal(Signal::USR2);
        self.await_that("it says that it goes on", || self.log()[before..].contains("served as before"));
        assert!(self.log()[before..].contains(why), "{why:?} is not in {}", &self.log()[before..]);
    }

    /// Signals the process that serves.
    ///
    /// # Panics
    /// If there is none.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).expect("it runs");
    }

    /// How many processes there are, with those that start others.
    #[must_use]
    pub fn processes(&self) -> usize {
        self.bury();
        let pids = fs::read_dir("/proc")
            .expect("proc")
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let of_group = |pid: &String| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let group = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(2).map(str::to_owned));
            group.is_some_and(|group| group == self.group.to_string())
        };
        pids.filter(|pid| pid.parse::<u32>().is_ok()).filter(of_group).count()
    }

    /// Those that have ended.
    fn bury(&self) {
        while matches!(waitpgid(self.group, WaitOptions::NOHANG), Ok(Some(_))) {}
    }

    /// Waits until something is so.
    ///
    /// # Panics
    /// If it is not in time.
    pub fn await_that(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "not in time: {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends it as a service manager does, and waits until none of its processes is left.
    ///
    /// # Panics
    /// If it does not end.
    pub fn end(&self) {
        self.signal(Signal::TERM);
        self.await_that("it ends", || self.processes() == 0);
    }
}

impl Drop for Lineage {
    fn drop(&mut self) {
        let _ = kill_process_group(self.group, Signal::KILL);
        let deadline = Instant::now() + PATIENCE;
        while waitpgid(self.group, WaitOptions::NOHANG).is_ok() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
