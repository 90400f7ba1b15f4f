//! Subjects that are processes: the sluice binary, and QEMU's storage daemon.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::{Backend, Engine};
use crate::disk::Disk;

/// Where Debian puts QEMU's storage daemon.
pub(crate) const QEMU: &str = "/usr/bin/qemu-storage-daemon";
/// How long a process may take until it listens, and until it has ended.
const PATIENCE: Duration = Duration::from_secs(10);

/// A process with its output in a file.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
    /// Whether it matters how the process ends when it is asked to.
    judged: bool,
    /// It was asked to end.
    is_asked: bool,
    /// It was asked to end, and has.
    has_ended_well: bool,
}

/// Starts the sluice binary on one disk.
///
/// # Panics
/// If it refuses the disk.
pub(crate) fn sluice(engine: Engine, cache: &str, disk: &Disk, socket: &Path) -> Process {
    try_sluice(engine, cache, disk, socket).unwrap_or_else(|fault| panic!("{fault}"))
}

/// Starts the sluice binary on one disk, which it may refuse.
pub(super) fn try_sluice(engine: Engine, cache: &str, disk: &Disk, socket: &Path) -> Result<Process, String> {
    let mut command = Command::new(sluice_path());
    command.args(arguments(engine, cache, &[(disk, socket)], None));
    Process::try_start(command, disk, socket)
}

/// What the sluice binary is told for disks, each with its socket: one as management tools have it done, several by `sluice serve`,
/// which may have so many threads.
pub fn arguments(
    engine: Engine,
    cache: &str,
    disks: &[(&Disk, &Path)],
    workers: Option<usize>,
) -> Vec<String> {
    if let ([(disk, socket)], None) = (disks, workers) {
        let options = options(engine, cache, disk, socket);
        return options.map(|(name, value)| format!("--{name}={value}")).collect();
    }
    let mut arguments = vec!["serve".to_owned()];
    arguments.extend(workers.map(|count| format!("--workers={count}")));
    for (disk, socket) in disks {
        let settings: Vec<_> = options(engine, cache, disk, socket)
            .map(|(name, value)| format!("{name}={}", value.replace(',', ",,")))
            .collect();
        arguments.extend(["--disk".to_owned(), settings.join(",")]);
    }
    arguments
}

/// Starts one sluice binary on several disks, each with its socket, and with so many threads for them. The log is that of the first disk.
pub(crate) fn sluice_serving(
    engine: Engine,
    cache: &str,
    disks: &[(&Disk, &Path)],
    workers: Option<usize>,
) -> Process {
    let mut command = Command::new(sluice_path());
    command.args(arguments(engine, cache, disks, workers));
    let (first, _) = disks.first().expect("there is a disk to serve");
    let (_, last) = disks.last().expect("there is a disk to serve");
    Process::start(command, first, last)
}

/// The options that a disk asks for, by the names that they have on the command line and in `--disk`.
fn options(
    engine: Engine,
    cache: &str,
    disk: &Disk,
    socket: &Path,
) -> impl Iterator<Item = (&'static str, String)> {
    let spec = &disk.spec;
    let in_memory = engine == Engine::Ram;
    let options = [
        ("socket-path", Some(socket.display().to_string())),
        ("blk-file", (!in_memory).then(|| disk.path().display().to_string())),
        ("size", in_memory.then(|| spec.bytes.to_string())),
        ("engine", Some(engine.to_string())),
        ("cache", Some(spec.cache.unwrap_or(cache).to_owned())),
        ("num-queues", Some(spec.queues.to_string())),
        ("queue-size", Some(spec.queue_size.to_string())),
        ("read-only", spec.read_only.then(|| switch(true).to_owned())),
        ("serial", spec.serial.clone()),
        ("logical-block-size", spec.logical_block.map(|bytes| bytes.to_string())),
        ("discard", spec.clears.discard.map(str::to_owned)),
        ("discard-granularity", spec.clears.discard_granularity.map(|bytes| bytes.to_string())),
        ("discard-alignment", spec.clears.discard_alignment.map(|bytes| bytes.to_string())),
        ("write-zeroes", spec.clears.write_zeroes.map(|on| switch(on).to_owned())),
    ];
    let more = spec.options.iter().map(|(name, value)| (*name, (*value).to_owned()));
    options.into_iter().filter_map(|(name, value)| Some((name, value?))).chain(more)
}

fn switch(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// Starts QEMU's storage daemon.
pub(super) fn qemu(disk: &Disk, socket: &Path) -> Process {
    let spec = &disk.spec;
    let mut command = Command::new(QEMU);
    let read_only = switch(spec.read_only);
    let file = disk.path();
    let options = format!("driver=file,node-name=f,filename={},read-only={read_only}", file.display());
    command.args(["--blockdev", &format!("{options},discard=unmap")]);
    let writable = switch(!spec.read_only);
    let address = format!("addr.type=unix,addr.path={}", socket.display());
    let block = spec.logical_block.unwrap_or(512);
    let queues = format!("num-queues={},logical-block-size={block}", spec.queues);
    let export = format!("type=vhost-user-blk,id=e,node-name=f,writable={writable},{queues},{address}");
    command.args(["--export", &export]);
    // It takes its time to end when a ring was left with work, and that is no matter of ours.
    let mut process = Process::start(command, disk, socket);
    process.judged = false;
    process
}

/// The binary that the tests run: `SLUICE_BIN`, else `sluice` in the build directory of the running test.
///
/// # Panics
/// If it was not built: cargo cannot make it a dependency of a test in another package.
pub fn sluice_path() -> PathBuf {
    if let Some(path) = std::env::var_os("SLUICE_BIN") {
        return path.into();
    }
    let exe = std::env::current_exe().expect("a test knows its executable");
    let profile = exe.ancestors().nth(2).expect("a test is in PROFILE/deps");
    let path = profile.join("sluice");
    assert!(path.exists(), "{} is missing: build it with `cargo build -p sluice-launcher`", path.display());
    path
}

impl Process {
    /// Starts a command and waits until it listens.
    fn start(command: Command, disk: &Disk, socket: &Path) -> Self {
        Self::try_start(command, disk, socket).unwrap_or_else(|fault| panic!("{fault}"))
    }

    /// Starts a command and waits until it listens, or ends: then with what it printed.
    fn try_start(mut command: Command, disk: &Disk, socket: &Path) -> Result<Self, String> {
        let log = disk.dir().join("log");
        let out = File::options().create(true).append(true).open(&log).expect("a log file can be made");
        let err = out.try_clone().expect("a file can be cloned");
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?} does not start: {e}"));
        let mut process =
            Process { child, log, ended: None, judged: true, is_asked: false, has_ended_well: false };
        let deadline = Instant::now() + PATIENCE;
        while !listens(socket) {
            if let Some(fault) = process.fault() {
                process.judged = false;
                return Err(format!("{command:?}: {fault}"));
            }
            assert!(Instant::now() < deadline, "{command:?} does not listen");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(process)
    }

    /// Why the process is not running any more, if it is not.
    pub(crate) fn fault(&mut self) -> Option<String> {
        self.ended = self.ended.or_else(|| self.child.try_wait().ok().flatten());
        self.ended.map(|status| format!("the process ended by itself with {status}:\n{}", self.log()))
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends the process at once, and does not wait for that.
    pub(crate) fn kill(&mut self) {
        self.judged = false;
        self.child.kill().expect("the process is there");
    }

    /// What the process has printed.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn ask(&mut self) -> rustix::io::Result<()> {
        self.is_asked = true;
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM)
    }

    /// Asks the process to end, and kills it if it does not.
    pub(crate) fn end(&mut self) -> Result<(), String> {
        if self.has_ended_well {
            return Ok(());
        }
        if !self.judged {
            return self.child.kill().and_then(|()| self.child.wait()).map(drop).map_err(|e| e.to_string());
        }
        if !self.is_asked
            && let Some(fault) = self.fault()
        {
            return Err(fault);
        }
        let asked = if self.is_asked { Ok(()) } else { self.ask() };
        let deadline = Instant::now() + PATIENCE;
        while asked.is_ok() && Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                return if status.success() {
                    self.has_ended_well = true;
                    Ok(())
                } else {
                    Err(format!("SIGTERM ended it with {status}"))
                };
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let killed = self.child.kill().and_then(|()| self.child.wait());
        Err(format!("it did not end on SIGTERM, killed: {killed:?}"))
    }
}

/// Whether somebody listens on a socket: it can have its name a moment before that, and not every client tries again.
fn listens(socket: &Path) -> bool {
    // Num RefCount Protocol Flags Type St Inode Path, where the flag is __SO_ACCEPTCON (unix(7), linux/net.h).
    let sockets = std::fs::read_to_string("/proc/net/unix").expect("there is a list of sockets");
    // The path is that by which it was bound: some make a socket in a directory beside, and move it.
    let is_it = |path: &Path| {
        let directory = path.parent();
        path.file_name() == socket.file_name()
            && [directory, directory.and_then(Path::parent)].contains(&socket.parent())
    };
    socket.exists()
        && sockets.lines().any(|line| {
            let mut fields = line.split_whitespace();
            fields.nth(3) == Some("00010000") && fields.nth(3).is_some_and(|path| is_it(Path::new(path)))
        })
}

impl Backend for Process {
    fn fault(&mut self) -> Option<String> {
        Process::fault(self)
    }

    fn pid(&self) -> Option<u32> {
        Some(self.id())
    }

    fn kill(&mut self) {
        Process::kill(self);
    }

    fn ask_to_end(&mut self) {
        self.ask().expect("the process is there");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let end = self.end();
        if std::thread::panicking() {
            eprintln!("log of the process (ended: {end:?}):\n{}", self.log());
        } else if let Err(fault) = end {
            panic!("{fault}\n{}", self.log());
        }
    }
}
