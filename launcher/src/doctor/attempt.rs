//! What code that has taken the daemon over might try first.
//!
//! Each is one call of the kernel, made in a process that is confined as the daemon is. With another error than a refusal
//! the kernel has looked at the call, so that it is not refused.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::LazyLock;

use anyhow::{Context, Result};
use rustix::fs::{Access, CWD};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};
use rustix::process::{Pid, Resource, Rlimit};
use sluice_backend::reactor::{DormantReactor, Reactor};
use sluice_backend::workers::{PreparedWorkers, WorkersOptions};
use sluice_blk::engine::ring::{self, DormantRing};

use crate::sandbox::{self, Identity, Mode, SandboxArgs};

/// Asked for before the sandbox, where the question would be what the process is ended for.
static PARENT: LazyLock<Option<Pid>> = LazyLock::new(rustix::process::getppid);

/// What a process says when it is confined and about to try.
pub(super) const CONFINED: &str = "confined:";
/// Not an attempt: it says what landlock stops it from.
pub(super) const LANDLOCK: &str = "landlock";
/// The exit code of a process that was refused what it tried, and that of one that was not.
pub(super) const REFUSED: u8 = 3;
const NOT_REFUSED: u8 = 4;

/// What has to come of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Refused,
    /// It succeeds, and says this on standard error.
    Works(&'static str),
}

/// Something to try.
pub(super) struct Attempt {
    pub(super) what: String,
    pub(super) expected: Expected,
    act: Act,
}

type Call = fn() -> io::Result<()>;

enum Act {
    Call(Call),
    Ring(ring::Attempt),
}

/// System calls, by what they would be good for.
const CALLS: [(&str, Call); 17] = [
    ("open a file: openat(/etc/passwd)", || File::open("/etc/passwd").map(drop)),
    ("make a directory: mkdirat", || {
        Ok(rustix::fs::mkdirat(CWD, "/nowhere/sluice", rustix::fs::Mode::RWXU)?)
    }),
    ("remove a file that is not beside a socket", || std::fs::remove_file(precious())),
    ("change a file's mode: chmod", || Ok(rustix::fs::chmod("/nowhere", rustix::fs::Mode::RUSR)?)),
    ("look for a file: access", || Ok(rustix::fs::access("/etc", Access::EXISTS)?)),
    ("start a program: execve(/bin/true)", || Err(Command::new("/bin/true").exec())),
    ("make a process: clone", || Command::new("/bin/true").spawn().map(drop)),
    ("make a thread: clone3", || std::thread::Builder::new().spawn(|| ()).map(drop)),
    ("make a socket: socket(AF_INET)", || {
        Ok(rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).map(drop)?)
    }),
    ("make a socket: socket(AF_UNIX)", || {
        Ok(rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).map(drop)?)
    }),
    ("trace a process: ptrace", || Ok(nix::sys::ptrace::traceme()?)),
    ("signal a process: kill(parent)", || {
        let parent = PARENT.ok_or(io::ErrorKind::NotFound)?;
        Ok(rustix::process::test_kill_process(parent)?)
    }),
    ("mount a file system: mount", || {
        Ok(rustix::mount::mount("none", "/nowhere", "tmpfs", rustix::mount::MountFlags::empty(), None)?)
    }),
    ("become root: setuid", || Ok(rustix::thread::set_thread_uid(rustix::process::Uid::ROOT)?)),
    ("change a limit: prlimit64", || {
        Ok(rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum: Some(64) })?)
    }),
    ("change the root directory: chroot", || Ok(rustix::process::chroot("/nowhere")?)),
    ("make an io_uring: io_uring_setup", || DormantRing::new(8).map(drop)),
];

const PANIC: &str = "a panic of the doctor's";

static ALL: LazyLock<Vec<Attempt>> = LazyLock::new(|| {
    let refused = |what: &str, act| Attempt { what: what.to_owned(), expected: Expected::Refused, act };
    let calls = CALLS.into_iter().map(|(what, call)| refused(what, Act::Call(call)));
    let rings = ring::Attempt::ALL.into_iter().map(|attempt| refused(words(attempt), Act::Ring(attempt)));
    let panic = Attempt {
        what: "panic, and say where".to_owned(),
        expected: Expected::Works(PANIC),
        act: Act::Call(|| {
            let panic = std::panic::catch_unwind(|| panic!("{PANIC}"));
            panic.map_err(|_| io::Error::other("its message is readable"))
        }),
    };
    calls.chain(rings).chain([panic]).collect()
});

impl Attempt {
    /// All of them, in the order of the table.
    pub(super) fn all() -> &'static [Self] {
        &ALL
    }
}

fn words(attempt: ring::Attempt) -> &'static str {
    match attempt {
        ring::Attempt::OpenAt => "io_uring: open a file",
        ring::Attempt::Socket => "io_uring: make a socket",
        ring::Attempt::Connect => "io_uring: connect a socket",
        ring::Attempt::Link => "io_uring: chain operations",
        ring::Attempt::RegisterBuffers => "io_uring: register memory",
        ring::Attempt::RegisterFiles => "io_uring: register files",
    }
}

/// Confines this process as a daemon confines itself, tries something, and says what came of it.
pub(super) fn run(what: &str, mode: Mode) -> Result<u8> {
    let sandbox = SandboxArgs { sandbox: Some(mode), ..SandboxArgs::default() };
    let workers = PreparedWorkers::new(&WorkersOptions::new(1), DormantReactor::new)?;
    let ring = DormantReactor::new()?;
    LazyLock::force(&PARENT);
    File::create(precious())?;
    let sockets = std::env::temp_dir().join("sockets");
    std::fs::create_dir(&sockets)?;
    let confined = sandbox::confine(&sandbox, Identity::default(), &[&sockets])?;
    let _workers = workers.start()?;
    let mut ring = ring.wake()?;
    let landlock = confined.landlock();
    confined.seal()?;
    if what == LANDLOCK {
        say(&format!("{CONFINED} {landlock}"))?;
        std::process::exit(0);
    }
    let attempt = ALL.iter().find(|attempt| attempt.what == what).context("there is no such attempt")?;
    say(CONFINED)?;
    let answer = match &attempt.act {
        Act::Call(call) => call(),
        Act::Ring(attempt) => try_ring(&mut ring, *attempt),
    };
    let code = match &answer {
        Ok(()) => NOT_REFUSED,
        Err(error) if is_refusal(error) => REFUSED,
        Err(_) if attempt.expected != Expected::Refused => 0,
        Err(_) => NOT_REFUSED,
    };
    say(&answer.map_or_else(|error| name(&error), |()| "it was done".to_owned()))?;
    // At once: the threads that were made are not worth an orderly end.
    std::process::exit(code.into())
}

/// A file in the directory for temporary files, which is one that the doctor has made for this.
fn precious() -> PathBuf {
    std::env::temp_dir().join("precious")
}

fn say(words: &str) -> Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{words}")?;
    Ok(out.flush()?)
}

fn try_ring(reactor: &mut Reactor, attempt: ring::Attempt) -> io::Result<()> {
    match reactor {
        Reactor::Uring { client, .. } => Ok(client.attempt(attempt)?.map(drop)?),
        Reactor::Epoll(_) => Err(Errno::PERM.into()),
    }
}

fn is_refusal(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::ACCESS | Errno::PERM))
}

fn name(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::ACCESS) => "EACCES".to_owned(),
        Some(Errno::PERM) => "EPERM".to_owned(),
        _ => error.to_string(),
    }
}
