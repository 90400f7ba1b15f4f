//! The product as VMs meet it: one process with one or more disks.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::disk::Disk;
use crate::subject::Engine;
use crate::subject::process::{self, Process};

/// A running sluice. Dropping it ends it by SIGTERM, and fails the test if that does not end it well.
pub struct Daemon {
    process: Process,
    sockets: Vec<PathBuf>,
    _dir: TempDir,
}

impl Daemon {
    /// Serves disks: one as management tools have it done, several by `sluice serve`.
    ///
    /// # Panics
    /// If the binary is not there or does not start.
    pub fn start(engine: Engine, cache: &str, disks: &[&Disk]) -> Self {
        let dir = TempDir::with_prefix("sluice-").expect("a directory for sockets can be made");
        let sockets: Vec<_> = (0..disks.len()).map(|n| dir.path().join(format!("disk{n}"))).collect();
        let process = match disks {
            [disk] => process::sluice(engine, cache, disk, &sockets[0]),
            _ => {
                let pairs: Vec<_> = disks.iter().copied().zip(sockets.iter().map(PathBuf::as_path)).collect();
                process::sluice_serving(engine, cache, &pairs, None)
            }
        };
        Daemon { process, sockets, _dir: dir }
    }

    /// Where a disk is served, by its number.
    pub fn socket(&self, number: usize) -> &Path {
        &self.sockets[number]
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Ends it at once, as an unlucky one ends, and waits until it is gone, as a service manager does.
    pub fn kill(&mut self) {
        self.process.kill();
        while self.process.fault().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends it by SIGTERM.
    ///
    /// # Panics
    /// If it does not end well.
    pub fn end(&mut self) {
        self.process.end().unwrap_or_else(|fault| panic!("{fault}"));
    }

    /// Serves the first disk again, after it was killed or ended.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart(&mut self, engine: Engine, cache: &str, disk: &Disk) {
        self.process = process::sluice(engine, cache, disk, &self.sockets[0]);
    }

    /// The same, and waits until a front-end has come back. Returns how long that has
    /// taken since it listened.
    ///
    /// # Panics
    /// If nobody comes back.
    pub fn start_again(&mut self, engine: Engine, cache: &str, disk: &Disk) -> Duration {
        let came = |log: &str| log.matches("a front-end has connected").count();
        let before = came(&self.process.log());
        self.restart(engine, cache, disk);
        let begun = Instant::now();
        while came(&self.process.log()) == before {
            assert!(begun.elapsed() < Duration::from_secs(20), "nobody comes back:\n{}", self.process.log());
            self.assert_serves();
            std::thread::sleep(Duration::from_millis(1));
        }
        begun.elapsed()
    }

    /// What it has logged, and others that serve the same disk.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Requires that it runs, has served a front-end, and had nothing to complain about.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn assert_well(&mut self) {
        self.assert_serves();
        let log = self.process.log();
        // A log without this says nothing at all. How many there were it does not tell: such lines are rate-limited.
        let tells = log.contains("a front-end has connected");
        assert!(tells, "no connection in the log (it needs RUST_LOG=info or more):\n{log}");
        let is_complaint = |line: &str| line.contains(" WARN ") || line.contains(" ERROR ");
        assert!(!log.lines().any(is_complaint), "the daemon complains:\n{log}");
    }

    /// Requires that it runs.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn assert_serves(&mut self) {
        if let Some(fault) = self.process.fault() {
            panic!("{fault}");
        }
    }
}
