//! What the tests share: a directory with disks, the program as a child that never outlives its test, and the first
//! words of a vhost-user front-end.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take that takes milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// Messages of the vhost-user protocol that are answered with a number.
const GET_FEATURES: u32 = 1;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
const GET_QUEUE_NUM: u32 = 17;
/// Version 1, and in an answer the reply bit.
const REQUEST_FLAGS: u32 = 1;
const REPLY_FLAGS: u32 = 5;

/// A directory with disks and sockets.
pub(crate) struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a temporary directory") }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A disk of 1 MiB.
    pub(crate) fn disk(&self, name: &str) -> PathBuf {
        let path = self.at(name);
        File::create(&path).and_then(|file| file.set_len(1 << 20)).expect("a disk");
        path
    }
}

/// The program, to be given arguments.
pub(crate) fn sluice() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    command.stdin(Stdio::null()).env_remove("RUST_LOG").env_remove("LISTEN_FDS").env_remove("JOURNAL_STREAM");
    command
}

/// An option with a path: `--name=path`.
pub(crate) fn option(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// The output of a program that ends by itself.
pub(crate) fn output_of(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

/// A running program, killed when its test ends.
pub(crate) struct Running {
    child: Child,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::start_with_log(command, Stdio::piped())
    }

    pub(crate) fn start_with_log(command: &mut Command, log: Stdio) -> Self {
        Self { child: command.stderr(log).spawn().expect("the program starts") }
    }

    /// The process's number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process is there");
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_some()
    }

    /// Waits for the end; returns the exit code and what was written to standard error.
    pub(crate) fn wait(&mut self) -> (Option<i32>, String) {
        let status = self.wait_for_status();
        let mut words = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut words).expect("text");
        }
        (status.code(), words)
    }

    fn wait_for_status(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "the program did not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the program as a service manager does, and expects that it likes it.
    pub(crate) fn end(mut self) -> String {
        self.signal(Signal::TERM);
        let (code, words) = self.wait();
        assert_eq!(code, Some(0), "{words}");
        words
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if the child has been waited for.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Tries until it works.
pub(crate) fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A front-end that asks who is there.
pub(crate) struct FrontEnd {
    stream: UnixStream,
}

impl FrontEnd {
    /// Connects as soon as there is a socket.
    pub(crate) fn connect(path: &Path) -> Self {
        Self::on(eventually("a socket to connect to", || UnixStream::connect(path).ok()))
    }

    pub(crate) fn on(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Self { stream }
    }

    pub(crate) fn features(&mut self) -> u64 {
        self.ask(GET_FEATURES)
    }

    pub(crate) fn queues(&mut self) -> u64 {
        let protocol_features = self.ask(GET_PROTOCOL_FEATURES);
        self.send(SET_PROTOCOL_FEATURES, &(protocol_features & 1).to_ne_bytes());
        self.ask(GET_QUEUE_NUM)
    }

    fn ask(&mut self, request: u32) -> u64 {
        self.send(request, &[]);
        let mut answer = [0; 20];
        self.stream.read_exact(&mut answer).expect("an answer");
        let word = |at: usize| u32::from_ne_bytes(answer[at..at + 4].try_into().expect("four bytes"));
        assert_eq!((word(0), word(4), word(8)), (request, REPLY_FLAGS, 8));
        u64::from_ne_bytes(answer[12..].try_into().expect("eight bytes"))
    }

    fn send(&mut self, request: u32, payload: &[u8]) {
        let size = u32::try_from(payload.len()).expect("a short payload");
        let header = [request, REQUEST_FLAGS, size].map(u32::to_ne_bytes).concat();
        self.stream.write_all(&[&header, payload].concat()).expect("the daemon reads");
    }
}

impl Drop for FrontEnd {
    /// A child that another test is starting in this moment may still have the descriptor, and hold the connection open.
    fn drop(&mut self) {
        self.stream.shutdown(Shutdown::Both).ok();
    }
}
