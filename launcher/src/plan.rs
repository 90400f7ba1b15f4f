//! What is going to be served: all disks together, checked before anything is opened, bound or started.
//!
//! A [`Plan`] has at least one disk, each with a file (or none, and a size) and a place where front-ends connect, no two at the same place,
//! and no file under two disks of which one writes. Whatever contradicts that is reported at once and completely, each
//! error led by where its cause stands.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use sluice_blk::disk::Medium;

use crate::disk_args::{DiskArgs, DiskSpec, EngineName, SocketArgs};
use crate::sandbox::SandboxArgs;
use crate::socket::SocketAccess;
use crate::worker_args::WorkerArgs;

/// What somebody who called the program must mend; all of it at once.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UsageError(pub(crate) Vec<String>);

/// Where a disk was described.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// By options of the command line.
    Arguments,
    /// By the so-manieth `--disk`, from 1.
    DiskOption(usize),
    /// By the so-manieth `[[disk]]`, from 1, of a file; with the line of the table and of each key.
    File { path: PathBuf, number: usize, line: usize, key_lines: BTreeMap<String, usize> },
}

/// Where front-ends connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// To a socket that is to be made.
    Path(PathBuf),
    /// To a descriptor that was inherited.
    Inherited(RawFd),
}

/// One disk of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedDisk {
    pub(crate) endpoint: Endpoint,
    /// Who may connect, where the socket is to be made.
    pub(crate) access: SocketAccess,
    pub(crate) medium: Medium,
    pub(crate) options: DiskArgs,
    origin: Origin,
}

/// All disks of a daemon.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) disks: Vec<PlannedDisk>,
    /// The most memory for the I/O of all disks together, in bytes. `None`: what they may use each.
    pub(crate) memory_budget: Option<usize>,
    /// The threads that serve them.
    pub(crate) workers: WorkerArgs,
    /// How they are confined.
    pub(crate) sandbox: SandboxArgs,
}

impl Origin {
    /// The words that lead an error about a key of this disk.
    pub(crate) fn at(&self, key: &str, value: &str) -> String {
        match self {
            Self::Arguments => format!("--{key}={value}"),
            Self::DiskOption(number) => format!("--disk #{number}: {key}={value}"),
            Self::File { .. } => format!("{}: {key} = {value}", self.place(Some(key))),
        }
    }

    fn about(&self, key: &str) -> String {
        match self {
            Self::Arguments => format!("--{key}"),
            _ => format!("{}: {key}", self.place(Some(key))),
        }
    }

    /// A short name of the disk, for errors about another one.
    fn place(&self, key: Option<&str>) -> String {
        match self {
            Self::Arguments => "the command line".into(),
            Self::DiskOption(number) => format!("--disk #{number}"),
            Self::File { path, number, line, key_lines } => {
                let line = key.and_then(|key| key_lines.get(key)).unwrap_or(line);
                format!("{}:{line}: disk #{number}", path.display())
            }
        }
    }
}

impl Plan {
    /// Checks what is described; `activated` are the descriptors that systemd passed, for disks without a socket.
    pub(crate) fn new(specs: Vec<(DiskSpec, Origin)>, activated: &[RawFd]) -> Result<Self, UsageError> {
        let mut errors = Vec::new();
        let specs = give_activated(specs, activated, &mut errors);
        let disks: Vec<_> =
            specs.into_iter().filter_map(|(spec, origin)| complete(spec, origin, &mut errors)).collect();
        find_shared_endpoints(&disks, &mut errors);
        find_shared_files(&disks, &mut errors);
        if disks.is_empty() && errors.is_empty() {
            errors.push(
                "no disk is described: give --disk or a configuration file with [[disk]] tables".into(),
            );
        }
        if errors.is_empty() {
            Ok(Self {
                disks,
                memory_budget: None,
                workers: WorkerArgs::default(),
                sandbox: SandboxArgs::default(),
            })
        } else {
            Err(UsageError(errors))
        }
    }
}

impl PlannedDisk {
    /// The words that lead an error about the medium, which names a file, or a size, itself.
    pub(crate) fn about_medium(&self) -> String {
        self.origin.about(if self.medium.is_file() { "blk-file" } else { "size" })
    }

    fn file(&self) -> Option<&Path> {
        match &self.medium {
            Medium::File(path) => Some(path),
            _ => None,
        }
    }

    /// The words that lead an error about the socket.
    pub(crate) fn at_endpoint(&self) -> String {
        self.origin.at(self.endpoint.key(), &self.endpoint.to_string())
    }

    /// The disk alone, on a socket at this path.
    pub(crate) fn on_socket(socket_path: PathBuf, medium: Medium, options: DiskArgs) -> Self {
        let (endpoint, access) = (Endpoint::Path(socket_path), SocketAccess::default());
        Self { endpoint, access, medium, options, origin: Origin::Arguments }
    }
}

impl Endpoint {
    fn key(&self) -> &'static str {
        match self {
            Self::Path(_) => "socket-path",
            Self::Inherited(_) => "fd",
        }
    }

    /// The same value for the same place, however its path is written.
    pub(crate) fn identity(&self) -> Self {
        match self {
            Self::Path(path) => Self::Path(resolve_directory(path)),
            Self::Inherited(fd) => Self::Inherited(*fd),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Inherited(fd) => fd.fmt(f),
        }
    }
}

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for UsageError {}

/// Gives the descriptors of socket activation, in their order, to the disks that name no socket.
fn give_activated(
    mut specs: Vec<(DiskSpec, Origin)>,
    activated: &[RawFd],
    errors: &mut Vec<String>,
) -> Vec<(DiskSpec, Origin)> {
    if activated.is_empty() {
        return specs;
    }
    let without: Vec<_> = specs
        .iter_mut()
        .filter(|(spec, _)| spec.socket.socket_path.is_none() && spec.socket.fd.is_none())
        .collect();
    // Where every disk names its socket, the descriptors can still be meant by --fd.
    if without.len() != activated.len() && !without.is_empty() {
        errors.push(format!(
            "LISTEN_FDS passes {} sockets, and {} disks name no socket of their own: these numbers must be equal",
            activated.len(),
            without.len()
        ));
    }
    for ((spec, _), fd) in without.into_iter().zip(activated) {
        spec.socket.fd = Some(*fd);
    }
    specs
}

/// Makes a planned disk of a described one, or says what is missing.
fn complete(spec: DiskSpec, origin: Origin, errors: &mut Vec<String>) -> Option<PlannedDisk> {
    let DiskSpec { socket, disk } = spec;
    let access = access(&socket, &origin, errors);
    let endpoint = match (socket.socket_path, socket.fd) {
        (Some(path), None) => Some(Endpoint::Path(path)),
        (None, Some(fd)) => Some(Endpoint::Inherited(fd)),
        (Some(_), Some(fd)) => {
            errors.push(format!(
                "{}: cannot be used with socket-path: give one of them",
                origin.at("fd", &fd.to_string())
            ));
            return None;
        }
        (None, None) => {
            errors.push(format!(
                "{} is missing: give the path where front-ends connect, or an inherited descriptor with fd",
                origin.about("socket-path")
            ));
            None
        }
    };
    let medium = medium(&disk, &origin).map_err(|why| errors.push(why)).ok();
    Some(PlannedDisk { endpoint: endpoint?, access, medium: medium?, options: disk, origin })
}

/// Who may connect. Of a socket that somebody else has made, they have decided that.
fn access(socket: &SocketArgs, origin: &Origin, errors: &mut Vec<String>) -> SocketAccess {
    let given = [
        ("socket-group", socket.socket_group.map(|group| group.gid.to_string())),
        ("socket-mode", socket.socket_mode.map(|mode| mode.to_string())),
    ];
    for (key, value) in given {
        if let (Some(value), true) = (value, socket.fd.is_some()) {
            errors.push(format!(
                "{}: is for a socket that is made at socket-path, an inherited one is what it is",
                origin.at(key, &value)
            ));
        }
    }
    SocketAccess {
        mode: socket.socket_mode.unwrap_or_default(),
        uid: None,
        gid: socket.socket_group.map(|group| group.gid),
    }
}

/// What a disk is on: a file, which has its size, or none, which is given one.
pub(crate) fn medium(disk: &DiskArgs, origin: &Origin) -> Result<Medium, String> {
    let engine = disk.engine.unwrap_or_default();
    let without_file = matches!(engine, EngineName::Ram | EngineName::Null);
    match (&disk.blk_file, disk.size) {
        (Some(file), None) if !without_file => Ok(Medium::File(file.clone())),
        (None, Some(bytes)) if engine == EngineName::Ram => Ok(Medium::Ram { bytes }),
        (None, Some(bytes)) if engine == EngineName::Null => Ok(Medium::Null { bytes }),
        (Some(file), _) if without_file => Err(format!(
            "{}: cannot be used with engine={engine}, which needs no file: give a size instead",
            origin.at("blk-file", &file.display().to_string())
        )),
        (_, Some(bytes)) => Err(format!(
            "{}: is only for engine=ram and engine=null: a file has a size of its own",
            origin.at("size", &bytes.to_string())
        )),
        (_, None) if without_file => Err(format!(
            "{} is missing: engine={engine} needs to know how large the disk is, such as 1G",
            origin.about("size")
        )),
        (_, None) => Err(format!(
            "{} is missing: give the raw file or block device to serve",
            origin.about("blk-file")
        )),
    }
}

fn find_shared_endpoints(disks: &[PlannedDisk], errors: &mut Vec<String>) {
    for (index, disk) in disks.iter().enumerate() {
        let identity = disk.endpoint.identity();
        if let Some(other) = disks[..index].iter().find(|other| other.endpoint.identity() == identity) {
            errors.push(format!(
                "{}: is the socket of {} too: each disk needs its own",
                disk.at_endpoint(),
                other.origin.place(Some(disk.endpoint.key()))
            ));
        }
    }
}

/// A file under two disks is somebody's mistake unless nobody writes to it: the guests would destroy each other's data.
fn find_shared_files(disks: &[PlannedDisk], errors: &mut Vec<String>) {
    for (index, disk) in disks.iter().enumerate() {
        let Some((file, identity)) = disk.file().and_then(|file| Some((file, file_identity(file)?))) else {
            continue;
        };
        let shared = disks[..index].iter().find(|other| {
            other.file().and_then(file_identity) == Some(identity)
                && !(disk.options.read_only && other.options.read_only)
        });
        if let Some(other) = shared {
            errors.push(format!(
                "{}: is the file of {} too: a file can be under two disks only when both are read-only",
                disk.origin.at("blk-file", &file.display().to_string()),
                other.origin.place(Some("blk-file"))
            ));
        }
    }
}

/// What a path leads to, if there is something: the device of a device node, else device and inode of the file.
fn file_identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = path.metadata().ok()?;
    if metadata.file_type().is_block_device() {
        // No file has inode 0, so that a device is never taken for a file.
        return Some((metadata.rdev(), 0));
    }
    Some((metadata.dev(), metadata.ino()))
}

fn resolve_directory(path: &Path) -> PathBuf {
    let Some(name) = path.file_name() else { return path.into() };
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    directory.canonicalize().map_or_else(|_| path.into(), |directory| directory.join(name))
}

#[cfg(test)]
mod tests;
