//! Who is measured: how each backend is told to serve a workload.
//!
//! Each gets what its own documentation has as its best for the medium. A contender that is not installed is left out,
//! and the report says so.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::args::Peer;
use super::workload::{Medium, Workload};
use crate::run::{find_program, quote};

/// The bare file, by the client's own io_uring.
pub(super) const BARE: &str = "bare file";
pub(super) const SLUICE: &str = "sluice";
pub(super) const QEMU: &str = "qemu-storage-daemon";
/// The reference device of the project's tests.
pub(super) const REFERENCE: &str = "reference";
/// The size of disks that have no file, as an option says it.
const SIZE_WITHOUT_FILE: &str = "1G";
/// The same in bytes.
pub(super) const BYTES_WITHOUT_FILE: u64 = 1 << 30;

/// One of those that are compared.
#[derive(Debug, Clone)]
pub(super) enum Contender {
    Bare,
    Sluice,
    Qemu(PathBuf),
    Reference(PathBuf),
    Peer(Peer),
}

/// What a backend is to serve: a socket for each disk, and the file under all of them.
pub(super) struct Service<'a> {
    pub(super) workload: &'a Workload,
    pub(super) sockets: &'a [PathBuf],
    pub(super) file: Option<&'a Path>,
}

impl Contender {
    /// Everyone who is there, and what is said about who is not.
    pub(super) fn find(reference: Option<&Path>, peers: &[Peer]) -> (Vec<Self>, Vec<String>) {
        let mut found = vec![Self::Bare, Self::Sluice];
        let mut missing = Vec::new();
        match find_program(QEMU) {
            Some(program) => found.push(Self::Qemu(program)),
            None => missing.push(format!("{QEMU} is not installed (Debian: qemu-utils)")),
        }
        let beside = std::env::current_exe().map(|own| own.with_file_name("reference-device"));
        let reference = reference.map(Path::to_owned).or(beside.ok().filter(|path| path.is_file()));
        match reference {
            Some(program) => found.push(Self::Reference(program)),
            None => missing.push(
                "the reference device is not built (cargo build --release -p sluice-tests --bin reference-device)"
                    .into(),
            ),
        }
        found.extend(peers.iter().cloned().map(Self::Peer));
        (found, missing)
    }

    pub(super) fn name(&self) -> &str {
        match self {
            Self::Bare => BARE,
            Self::Sluice => SLUICE,
            Self::Qemu(_) => QEMU,
            Self::Reference(_) => REFERENCE,
            Self::Peer(peer) => &peer.name,
        }
    }

    /// The command that serves it; none for who cannot.
    pub(super) fn command(&self, service: &Service<'_>) -> Option<Command> {
        let medium = service.workload.medium;
        match self {
            Self::Bare => None,
            Self::Sluice => Some(sluice(service)),
            Self::Qemu(program) if medium != Medium::Ram => qemu(program, service),
            // Without direct I/O it would only measure the page cache.
            Self::Reference(program) if matches!(medium, Medium::Cached | Medium::Tmpfs) => {
                reference(program, service)
            }
            Self::Qemu(_) | Self::Reference(_) => None,
            Self::Peer(peer) => peer_command(peer, service),
        }
    }

    /// What its version is called.
    pub(super) fn version(&self) -> Option<String> {
        match self {
            Self::Sluice => Some(env!("CARGO_PKG_VERSION").into()),
            Self::Qemu(program) => {
                let output = Command::new(program).arg("--version").output().ok()?;
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                text.lines().next()?.rsplit_once("version ").map(|(_, version)| version.into())
            }
            Self::Peer(peer) => Some(peer.command.clone()),
            Self::Bare | Self::Reference(_) => None,
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

fn sluice(service: &Service<'_>) -> Command {
    let Service { workload, sockets, file } = service;
    // This very program, also when a new one was built meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.env_remove("RUST_LOG").env_remove("LISTEN_FDS");
    let settings = |socket: &Path| {
        let mut settings = vec![("socket-path", socket.display().to_string())];
        match (workload.medium, file) {
            (Medium::Null | Medium::Ram, _) | (_, None) => {
                settings.push(("engine", workload.medium.to_string()));
                settings.push(("size", SIZE_WITHOUT_FILE.into()));
            }
            (_, Some(file)) => {
                settings.push(("blk-file", file.display().to_string()));
                let cache = if workload.medium.is_direct() { "none" } else { "writeback" };
                settings.push(("cache", cache.into()));
                // Daemons that are measured beside one another have one file.
                settings.push(("lock", "off".into()));
            }
        }
        if workload.medium == Medium::Disk4k {
            settings.push(("logical-block-size", "512".into()));
        }
        settings.push(("num-queues", workload.queues.to_string()));
        settings.push(("queue-size", workload.ring_size().to_string()));
        settings
    };
    match sockets {
        [socket] => {
            for (key, value) in settings(socket) {
                command.arg(format!("--{key}={value}"));
            }
        }
        several => {
            command.arg("serve");
            for socket in *several {
                // A file can be under many disks when all of them only read.
                let mut words = vec!["read-only=on".to_owned()];
                let settings = settings(socket).into_iter();
                words.extend(settings.map(|(key, value)| format!("{key}={}", value.replace(',', ",,"))));
                command.args(["--disk", &words.join(",")]);
            }
        }
    }
    command
}

fn qemu(program: &Path, service: &Service<'_>) -> Option<Command> {
    let Service { workload, sockets: [socket], file } = service else { return None };
    let escaped = |path: &Path| path.display().to_string().replace(',', ",,");
    let disk = match (workload.medium, file) {
        (Medium::Null, _) | (_, None) => format!("driver=null-co,size={BYTES_WITHOUT_FILE}"),
        (medium, Some(file)) => {
            let driver = if medium == Medium::Disk4k { "host_device" } else { "file" };
            let direct = if medium.is_direct() { "on" } else { "off" };
            format!("driver={driver},filename={},aio=io_uring,cache.direct={direct}", escaped(file))
        }
    };
    let mut command = Command::new(program);
    let export = format!(
        "type=vhost-user-blk,id=e,node-name=f,writable=on,num-queues={},addr.type=unix,addr.path={}",
        workload.queues,
        escaped(socket)
    );
    command.args(["--blockdev", &format!("{disk},node-name=f"), "--export", &export]);
    Some(command)
}

fn reference(program: &Path, service: &Service<'_>) -> Option<Command> {
    let Service { workload, sockets: [socket], file: Some(file) } = service else { return None };
    let mut command = Command::new(program);
    command.arg(format!("--socket-path={}", socket.display()));
    command.arg(format!("--blk-file={}", file.display()));
    command.arg(format!("--num-queues={}", workload.queues));
    command.arg(format!("--queue-size={}", workload.ring_size()));
    Some(command)
}

fn peer_command(peer: &Peer, service: &Service<'_>) -> Option<Command> {
    let Service { workload, sockets: [socket], file: Some(file) } = service else { return None };
    let text = peer
        .command
        .replace("{socket}", &quote(socket.as_os_str()))
        .replace("{file}", &quote(file.as_os_str()))
        .replace("{direct}", if workload.medium.is_direct() { "true" } else { "false" })
        .replace("{queues}", &workload.queues.to_string())
        .replace("{ring}", &workload.ring_size().to_string());
    let mut command = Command::new("sh");
    // In the shell's place, so that what is measured and ended is the peer.
    command.arg("-c").arg(format!("exec {text}"));
    Some(command)
}

#[cfg(test)]
mod tests {
    use super::super::workload::Op;
    use super::*;

    fn words(contender: &Contender, workload: &Workload, sockets: &[PathBuf]) -> Option<String> {
        let service = Service { workload, sockets, file: Some(Path::new("/m/it's,f")) };
        let command = contender.command(&service)?;
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        Some(words.join(" "))
    }

    fn one() -> Vec<PathBuf> {
        vec!["/s".into()]
    }

    #[test]
    fn sluice_is_told_the_medium_by_its_options() {
        let told = |workload| words(&Contender::Sluice, &workload, &one()).unwrap();
        assert_eq!(
            told(Workload::new(Medium::Disk, Op::Read, 128)),
            "--socket-path=/s --blk-file=/m/it's,f --cache=none --lock=off --num-queues=1 --queue-size=512"
        );
        assert_eq!(
            told(Workload::new(Medium::Ram, Op::Read, 1)),
            "--socket-path=/s --engine=ram --size=1G --num-queues=1 --queue-size=256"
        );
    }

    #[test]
    fn many_disks_share_a_file_that_they_only_read() {
        let workload = Workload { disks: 2, ..Workload::new(Medium::Cached, Op::Read, 1) };
        let two = ["/a".into(), "/b".into()];
        let disk = |socket| {
            format!(
                "--disk read-only=on,socket-path={socket},blk-file=/m/it's,,f,cache=writeback,lock=off,\
                 num-queues=1,queue-size=256"
            )
        };
        assert_eq!(
            words(&Contender::Sluice, &workload, &two),
            Some(format!("serve {} {}", disk("/a"), disk("/b")))
        );
        assert_eq!(words(&Contender::Qemu("q".into()), &workload, &two), None);
    }

    #[test]
    fn qemu_gets_a_null_disk_where_there_is_no_file() {
        let qemu = Contender::Qemu("q".into());
        let told = words(&qemu, &Workload::new(Medium::Null, Op::Read, 1), &one()).unwrap();
        assert!(
            told.starts_with("--blockdev driver=null-co,size=1073741824,node-name=f --export "),
            "{told}"
        );
        let told = words(&qemu, &Workload::new(Medium::Tmpfs, Op::Read, 1), &one()).unwrap();
        assert!(told.contains("filename=/m/it's,,f,aio=io_uring,cache.direct=off"), "{told}");
        assert_eq!(words(&qemu, &Workload::new(Medium::Ram, Op::Read, 1), &one()), None);
    }

    #[test]
    fn a_peer_is_what_somebody_says_with_quoted_paths() {
        let peer =
            Peer { name: "p".into(), command: "p -s {socket} -f {file} -d {direct} -q {queues}".into() };
        let told = words(&Contender::Peer(peer), &Workload::new(Medium::Disk, Op::Read, 1), &one());
        assert_eq!(told.unwrap(), r"-c exec p -s /s -f '/m/it'\''s,f' -d true -q 1");
    }
}
