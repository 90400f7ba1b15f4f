//! A disk that fails for real: a file that a storage daemon of QEMU's exports through FUSE, with errors injected by its
//! blkdebug driver. Stopping the process makes a disk that hangs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::subject::QEMU;

/// An error for each operation of a kind.
#[derive(Clone, Copy, Debug)]
pub struct Injected {
    /// `read`, `write`, `flush`, `discard` or `write-zeroes`.
    pub iotype: &'static str,
    /// Only where the operation touches this sector; none for all.
    pub sector: Option<u64>,
    /// The error's number.
    pub errno: i32,
    /// Whether it happens only once.
    pub once: bool,
}

/// A file that is exported, until this is dropped.
#[derive(Debug)]
pub struct FuseExport {
    process: Child,
    path: PathBuf,
}

impl FuseExport {
    /// How long the process may take until it exports.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// Whether that is possible here, and if not, why.
    pub fn is_here() -> Result<(), String> {
        for path in [QEMU, "/dev/fuse"] {
            if !Path::new(path).exists() {
                return Err(format!("there is no {path}"));
            }
        }
        rustix::process::geteuid().is_root().then_some(()).ok_or_else(|| "only root mounts".to_owned())
    }

    /// Exports `file` at a path in `dir`.
    ///
    /// # Panics
    /// If it cannot.
    pub fn start(file: &Path, dir: &Path, faults: &[Injected]) -> Self {
        let path = dir.join("export");
        std::fs::File::create(&path).expect("a place for the export can be made");
        let errors: Vec<String> = faults.iter().map(Injected::as_json).collect();
        // An empty list is not taken.
        let errors = if errors.is_empty() {
            String::new()
        } else {
            format!(r#","inject-error":[{}]"#, errors.join(","))
        };
        let debug =
            format!(r#"{{"driver":"blkdebug","node-name":"d","image":"f","discard":"unmap"{errors}}}"#);
        let file = format!("driver=file,node-name=f,discard=unmap,filename={}", file.display());
        let export = format!("type=fuse,id=e,node-name=d,writable=on,mountpoint={}", path.display());
        let mut command = Command::new(QEMU);
        command.args(["--blockdev", &file, "--blockdev", &debug, "--export", &export]);
        let process = command.stdin(Stdio::null()).spawn().expect("it starts");
        let export = Self { process, path };
        let deadline = Instant::now() + Self::PATIENCE;
        while std::fs::metadata(&export.path).map_or(0, |meta| meta.len()) == 0 {
            assert!(Instant::now() < deadline, "{} is not exported", export.path.display());
            std::thread::sleep(Duration::from_millis(2));
        }
        export
    }

    /// The file that fails.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// From now on nothing is answered.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// What was not answered is, and all else again.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("the process is there");
    }
}

impl Injected {
    fn as_json(&self) -> String {
        let Self { iotype, sector, errno, once } = self;
        let sector = sector.map(|sector| format!(r#","sector":{sector}"#)).unwrap_or_default();
        format!(
            r#"{{"event":"none","iotype":"{iotype}","errno":{errno},"once":{once},"immediately":true{sector}}}"#
        )
    }
}

impl Drop for FuseExport {
    fn drop(&mut self) {
        self.thaw();
        let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
        let _ = self.process.wait();
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}
