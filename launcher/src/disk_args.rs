//! The options of one disk, the same on the command line, in `--disk` and in a configuration file.
//!
//! An option is parsed by one function, whoever wrote it, and [`key::KEYS`] is the table of them all; what is
//! missing or does not go together is found later, in [`crate::plan`], when all disks are known.
//! Why a table beside clap's derived struct: clap stops at its first error and knows no lines, a configuration file
//! deserves all errors with theirs. A test keeps the two lists of options the same.

use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use sluice_backend::device::{Device, ID_BYTES};
use sluice_blk::disk::{Cache, Discard, Locking};
use sluice_blk::queue::OnEnospc;

use crate::accounts::{Group, parse_group};
use crate::socket::SocketMode;

mod engine;
mod key;

pub(crate) use engine::EngineName;
pub(crate) use key::{Key, ValueKind};

/// The elements of a queue where nobody says how many.
pub(crate) const QUEUE_SIZE_DEFAULT: u16 = 256;

/// Where front-ends connect.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct SocketArgs {
    /// Listen on a Unix socket at this path
    ///
    /// Removed at the end. A socket that is left from a dead process is replaced, one that
    /// a living process serves never, and neither is anything that is not a socket. At most 107 bytes.
    #[arg(long, value_name = "PATH", conflicts_with = "fd", help_heading = "Socket")]
    pub(crate) socket_path: Option<PathBuf>,

    /// The group of the socket, a name or a number [default: --group, else the group of new files there]
    ///
    /// The socket never has another one. Its owner is --user, else who starts sluice.
    #[arg(long, value_name = "GROUP", value_parser = parse_group, conflicts_with = "fd", help_heading = "Socket")]
    pub(crate) socket_group: Option<Group>,

    /// The permissions of the socket in octal, such as 0660 [default: 0600]
    ///
    /// Whoever may write to it can read and write the disk. The socket never has another mode, whatever the umask.
    #[arg(long, value_name = "MODE", value_parser = parse_socket_mode, conflicts_with = "fd", help_heading = "Socket")]
    pub(crate) socket_mode: Option<SocketMode>,

    /// Use this inherited descriptor instead: a listening or a connected Unix socket
    ///
    /// With a connected one the daemon ends when the front-end leaves. Without --fd and --socket-path, the socket
    /// that systemd passes (LISTEN_FDS) is used.
    #[arg(long, value_name = "N", value_parser = parse_fd, help_heading = "Socket")]
    pub(crate) fd: Option<RawFd>,
}

/// What is served, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct DiskArgs {
    /// The raw file or block device to serve (required, but with --engine=ram and --engine=null)
    #[arg(long, value_name = "PATH", help_heading = "Disk")]
    pub(crate) blk_file: Option<PathBuf>,

    /// Let the guest only read
    #[arg(
        long,
        value_name = "on|off",
        num_args = 0..=1,
        require_equals = true,
        default_value = "off",
        default_missing_value = "on",
        hide_default_value = true,
        value_parser = parse_switch,
        help_heading = "Disk"
    )]
    pub(crate) read_only: bool,

    /// Who caches and when a write is durable, in QEMU's words [default: none where the file takes direct I/O, else
    /// writeback]
    ///
    /// none: direct I/O, past the host's page cache. writeback: through the host's page cache. In both the guest
    /// flushes when it needs durability. writethrough: as writeback, and each write is durable before it completes.
    /// directsync: as none, and each write is durable before it completes. unsafe: as writeback, and flushes are
    /// ignored: for data that may be lost.
    #[arg(long, value_name = "MODE", value_parser = parse_cache, help_heading = "Disk")]
    pub(crate) cache: Option<Cache>,

    /// How many queues the disk offers, 1 to 256 [default: the number of CPUs]
    #[arg(long, value_name = "N", value_parser = parse_num_queues, help_heading = "Disk")]
    pub(crate) num_queues: Option<u16>,

    /// How many elements a queue is expected to have, a power of two from 2 to 1024 [default: 256]
    ///
    /// Larger queues, up to 1024, are served all the same: not every virtual machine monitor can be told.
    #[arg(long, value_name = "N", value_parser = parse_queue_size, help_heading = "Disk")]
    pub(crate) queue_size: Option<u16>,

    /// The serial number that the guest sees, at most 20 bytes [default: derived from the file, without one from the
    /// socket]
    #[arg(long, value_name = "TEXT", value_parser = parse_serial, help_heading = "Disk")]
    pub(crate) serial: Option<String>,

    /// The smallest unit of the guest's I/O, 512 or 4096 bytes [default: what the file or device has]
    ///
    /// With 512 on a disk that is addressed in blocks of 4096 bytes, parts of its blocks are read, changed and written;
    /// the guest is told (as a disk with 512e tells) so that it avoids that.
    #[arg(long, value_name = "BYTES", value_parser = parse_logical_block_size, help_heading = "Disk")]
    pub(crate) logical_block_size: Option<u32>,

    /// What discards do, in QEMU's words: unmap (give space back) or ignore (nothing) [default: unmap]
    #[arg(long, value_name = "MODE", value_parser = parse_discard, help_heading = "Disk")]
    pub(crate) discard: Option<Discard>,

    /// The unit in which the guest shall discard, in bytes [default: what the file or device has]
    ///
    /// Some guests do not discard at all in small units.
    #[arg(long, value_name = "BYTES", value_parser = parse_size32, help_heading = "Disk")]
    pub(crate) discard_granularity: Option<u32>,

    /// Where the guest's discards shall begin, in bytes: at multiples of this [default: the granularity]
    #[arg(long, value_name = "BYTES", value_parser = parse_size32, help_heading = "Disk")]
    pub(crate) discard_alignment: Option<u32>,

    /// Whether the guest may have ranges zeroed [default: on]
    #[arg(long, value_name = "on|off", value_parser = parse_switch, help_heading = "Disk")]
    pub(crate) write_zeroes: Option<bool>,

    /// Whom the file is shared with: exclusive (nobody), shared (others who say so too) or off (not looked at) [default:
    /// exclusive, read-only: shared]
    ///
    /// A lock that QEMU and its tools respect, held while a guest uses the disk. After a crash it is not to be had before the
    /// last write of the dead process has landed.
    #[arg(long, value_name = "LOCK", value_parser = parse_lock, help_heading = "Disk")]
    pub(crate) lock: Option<Locking>,

    /// Answer requests in the order in which the guest has made them
    ///
    /// For front-ends that connect again but keep no account of what is in flight (such as QEMU before 5.1): when the daemon has
    /// died, its successor finds in the ring what was not answered, and does that again. A request that takes long holds up the
    /// answers to those after it. Also a driver that does not know VIRTIO_F_IN_ORDER is answered so. To be switched while no
    /// guest uses the disk.
    #[arg(
        long,
        value_name = "on|off",
        num_args = 0..=1,
        require_equals = true,
        default_value = "off",
        default_missing_value = "on",
        hide_default_value = true,
        value_parser = parse_switch,
        help_heading = "Disk"
    )]
    pub(crate) in_order: bool,

    /// What becomes of a write for which the disk has no space, in QEMU's words: report (an error) or stop (it waits)
    /// [default: report]
    ///
    /// With stop it is tried again each second until there is space, and the log says so; reads and what needs no space
    /// go on. If the guest or the daemon is to stop meanwhile, it fails after all.
    #[arg(long, value_name = "POLICY", value_parser = parse_on_enospc, help_heading = "Disk")]
    pub(crate) on_enospc: Option<OnEnospc>,

    /// How many seconds the disk may take for a request, 0.1 to 3600 [default: as long as it takes]
    ///
    /// What takes longer fails, and so does all else until the disk has answered: nothing that was failed can land on top
    /// of what is written later. All data is copied then, so that the disk never touches memory that the guest has back;
    /// that costs some CPU time. Not with --engine=sync.
    #[arg(long, value_name = "SECONDS", value_parser = parse_io_timeout, help_heading = "Disk")]
    pub(crate) io_timeout: Option<Duration>,

    /// The most memory that the disk's I/O may use, such as 64M [default: 16M for each queue]
    ///
    /// Bounce buffers and lists of segments; what does not fit waits. At least 1.1M for each queue.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Disk")]
    pub(crate) memory_budget: Option<usize>,

    /// How I/O is done: uring (asynchronous, io_uring), sync (pread and pwrite), ram or null [default: uring]
    ///
    /// The last two need no file, but --size. ram: a disk in the daemon's memory, empty at first and gone when the
    /// daemon ends; what the guest discards is given back. null: for measuring only, nothing is kept, and a read
    /// leaves the guest's memory as it is, so that programs in the guest may see what others had there.
    #[arg(long, value_name = "ENGINE", value_parser = parse_engine, help_heading = "Disk")]
    pub(crate) engine: Option<EngineName>,

    /// How large a disk without a file is, such as 1G: a multiple of its blocks
    #[arg(long, value_name = "SIZE", value_parser = parse_size64, help_heading = "Disk")]
    pub(crate) size: Option<u64>,
}

/// One disk as somebody described it: its socket and its options.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct DiskSpec {
    #[command(flatten)]
    pub(crate) socket: SocketArgs,
    #[command(flatten)]
    pub(crate) disk: DiskArgs,
}

impl DiskArgs {
    /// What was given, as key and value.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        let DiskArgs {
            blk_file,
            read_only,
            cache,
            num_queues,
            queue_size,
            serial,
            logical_block_size,
            discard,
            discard_granularity,
            discard_alignment,
            write_zeroes,
            lock,
            in_order,
            on_enospc,
            io_timeout,
            memory_budget,
            engine,
            size,
        } = self;
        let settings = [
            ("blk-file", blk_file.as_ref().map(|path| path.display().to_string())),
            ("read-only", read_only.then(|| "on".to_owned())),
            ("cache", cache.map(|cache| cache.to_string())),
            ("num-queues", num_queues.map(|count| count.to_string())),
            ("queue-size", queue_size.map(|size| size.to_string())),
            ("serial", serial.clone()),
            ("logical-block-size", logical_block_size.map(|size| size.to_string())),
            ("discard", discard.map(|discard| discard.to_string())),
            ("discard-granularity", discard_granularity.map(|size| size.to_string())),
            ("discard-alignment", discard_alignment.map(|size| size.to_string())),
            ("write-zeroes", write_zeroes.map(|on| if on { "on" } else { "off" }.to_owned())),
            ("lock", lock.map(|lock| lock.to_string())),
            ("in-order", in_order.then(|| "on".to_owned())),
            ("on-enospc", on_enospc.map(|policy| policy.to_string())),
            ("io-timeout", io_timeout.map(|time| time.as_secs_f64().to_string())),
            ("memory-budget", memory_budget.map(|size| size.to_string())),
            ("engine", engine.map(|engine| engine.to_string())),
            ("size", size.map(|size| size.to_string())),
        ];
        settings.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }
}

fn parse_path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("must be a path, and is empty".into()) } else { Ok(text.into()) }
}

fn parse_fd(text: &str) -> Result<RawFd, String> {
    match text.parse() {
        Ok(fd) if fd >= 0 => Ok(fd),
        _ => Err("must be the number of an inherited descriptor, such as 3".into()),
    }
}

fn parse_socket_mode(text: &str) -> Result<SocketMode, String> {
    text.parse()
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err("must be on or off".into()),
    }
}

fn parse_num_queues(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(count @ 1..=Device::QUEUES_MAX) => Ok(count),
        _ => Err(format!("must be a number from 1 to {}", Device::QUEUES_MAX)),
    }
}

fn parse_queue_size(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(size @ 2..=Device::QUEUE_SIZE_MAX) if size.is_power_of_two() => Ok(size),
        _ => Err(format!("must be a power of two from 2 to {}", Device::QUEUE_SIZE_MAX)),
    }
}

fn parse_serial(text: &str) -> Result<String, String> {
    if text.len() > ID_BYTES {
        return Err(format!("is {} bytes long, at most {ID_BYTES} are possible", text.len()));
    }
    if text.is_empty() {
        return Err("is empty; leave the option out to have one derived from the file".into());
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
        return Err("must be printable ASCII".into());
    }
    Ok(text.into())
}

fn parse_logical_block_size(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(size @ (512 | 4096)) => Ok(size),
        _ => Err("must be 512 or 4096".into()),
    }
}

fn parse_cache(text: &str) -> Result<Cache, String> {
    text.parse().map_err(|_| format!("must be one of {}", words(&Cache::ALL).join(", ")))
}

fn parse_discard(text: &str) -> Result<Discard, String> {
    text.parse().map_err(|_| format!("must be one of {}", words(&Discard::ALL).join(", ")))
}

fn parse_lock(text: &str) -> Result<Locking, String> {
    text.parse().map_err(|_| format!("must be one of {}", words(&Locking::ALL).join(", ")))
}

fn parse_on_enospc(text: &str) -> Result<OnEnospc, String> {
    text.parse().map_err(|_| format!("must be one of {}", words(&OnEnospc::ALL).join(", ")))
}

fn parse_io_timeout(text: &str) -> Result<Duration, String> {
    let time = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let possible = Duration::from_millis(100)..=Duration::from_secs(3600);
    time.filter(|time| possible.contains(time))
        .ok_or_else(|| "must be a number of seconds from 0.1 to 3600".into())
}

/// A size in bytes: a number, and K, M, G or T for powers of 1024.
pub(crate) fn parse_size(text: &str) -> Result<usize, String> {
    let (number, power) = match text.strip_suffix(['K', 'M', 'G', 'T']) {
        Some(number) => (number, "KMGT".find(&text[number.len()..]).map_or(0, |index| index + 1)),
        None => (text, 0),
    };
    let size = number.parse::<usize>().ok().and_then(|number| number.checked_mul(1 << (10 * power)));
    size.filter(|size| *size > 0).ok_or_else(|| "must be a size such as 4096, 64K, 16M or 1G".to_owned())
}

fn parse_size32(text: &str) -> Result<u32, String> {
    u32::try_from(parse_size(text)?).map_err(|_| "must be less than 4G".into())
}

fn parse_size64(text: &str) -> Result<u64, String> {
    parse_size(text).map(|size| size as u64)
}

fn parse_engine(text: &str) -> Result<EngineName, String> {
    text.parse()
}

fn words(all: &[impl ToString]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

/// Reads the value of one `--disk`: `key=value,key=value`, a switch also without `=value`, and a comma inside a value
/// written twice, as QEMU has it. Returns every error, each led by the setting that it is about.
pub(crate) fn parse_disk_option(text: &str) -> Result<DiskSpec, Vec<String>> {
    let mut spec = DiskSpec::default();
    let mut seen = Vec::new();
    let mut errors = Vec::new();
    for setting in split_settings(text) {
        if let Err(why) = apply_setting(&mut spec, &mut seen, &setting) {
            errors.push(if setting.is_empty() { why } else { format!("{setting}: {why}") });
        }
    }
    if errors.is_empty() { Ok(spec) } else { Err(errors) }
}

fn apply_setting(spec: &mut DiskSpec, seen: &mut Vec<&str>, setting: &str) -> Result<(), String> {
    if setting.is_empty() {
        return Err("a setting is empty: there is a comma too many".into());
    }
    let (name, value) = match setting.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (setting, None),
    };
    let key = Key::find(name).map_err(|why| match value {
        Some(_) => why,
        None => format!("{why} (a comma inside a value is written twice)"),
    })?;
    if seen.contains(&key.name) {
        return Err("is given twice".into());
    }
    seen.push(key.name);
    match (value, key.kind) {
        (Some(value), _) => key.set(spec, value),
        (None, ValueKind::Switch) => key.set(spec, "on"),
        (None, _) => Err(format!("has no value: write {name}=VALUE")),
    }
}

/// Splits at single commas; two commas are one that belongs to the value.
fn split_settings(text: &str) -> Vec<String> {
    let mut settings = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(char) = rest.next() {
        match settings.last_mut() {
            Some(last) if char != ',' || rest.next_if_eq(&',').is_some() => last.push(char),
            _ => settings.push(String::new()),
        }
    }
    settings
}

#[cfg(test)]
mod tests;
