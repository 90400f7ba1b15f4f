//! The command line: what it can be, and its help.
//!
//! Without a sub-command it is what management tools call: one disk by `--socket-path` and `--blk-file`.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::bench::BenchArgs;
use crate::disk_args::{DiskSpec, parse_size};
use crate::doctor::DoctorArgs;
use crate::run::RunArgs;
use crate::sandbox::SandboxArgs;
use crate::upgrade::command::UpgradeArgs;
use crate::upgrade::starter::StarterArgs;
use crate::worker_args::WorkerArgs;

const ABOUT: &str = "Serves raw files and block devices as disks to virtual machines over vhost-user sockets";

// Paragraphs are one line each: clap wraps them to the terminal.
const LONG_ABOUT: &str = "\
Serves raw files and block devices as disks to virtual machines over vhost-user sockets.

A virtual machine monitor (QEMU, Cloud Hypervisor, Firecracker, crosvm, libvirt) connects to the socket and shares the \
guest's memory; the guest sees a virtio-blk disk. Without a command, sluice serves one disk until it gets SIGTERM or \
SIGINT; meanwhile front-ends can leave and come back.";

const EXAMPLES: &str = "\
Examples:
  One disk, and a virtual machine on it (its memory must be shared):
    sluice --socket-path=/run/vm1.sock --blk-file=/srv/vm1.img
    qemu-system-x86_64 -M q35,memory-backend=mem -m 1G \\
      -object memory-backend-memfd,id=mem,size=1G,share=on \\
      -chardev socket,id=c0,path=/run/vm1.sock \\
      -device vhost-user-blk-pci,chardev=c0 ...
    cloud-hypervisor --memory size=1G,shared=on \\
      --disk vhost_user=true,socket=/run/vm1.sock ...

  Two disks in one process:
    sluice serve --disk socket-path=/run/a.sock,blk-file=/srv/a.img \\
                 --disk socket-path=/run/b.sock,blk-file=/srv/b.iso,read-only

  Try a disk in a virtual machine, with the console in this terminal:
    sluice run --blk-file=/srv/vm1.img --boot disk

Environment:
  RUST_LOG       what is logged: error, warn, info (default), debug, trace
  LISTEN_FDS     sockets from systemd, for disks without a socket of their own
  NOTIFY_SOCKET  where systemd hears that the daemon is ready (Type=notify)
  FDSTORE        how many descriptors systemd keeps (FileDescriptorStoreMax=)

Exit codes: 0 ended as asked, 1 failed, 2 wrong usage.";

const SERVE_ABOUT: &str = "\
Serves several disks in one process.

The disks are described by --disk, by a configuration file, or by both. Everything is checked before anything starts: \
when one disk cannot be served, none is.";

const SERVE_EXAMPLES: &str = "\
The keys of a disk are the options of `sluice --help` without the dashes: socket-path or fd, socket-group, \
socket-mode, blk-file, read-only, cache, num-queues, queue-size, serial, logical-block-size, discard, \
discard-granularity, discard-alignment, write-zeroes, lock, in-order, on-enospc, io-timeout, memory-budget, engine, size. \
In --disk, a comma inside a value is written twice.

A configuration file:
  workers = 2

  [[disk]]
  socket-path = \"/run/a.sock\"
  blk-file = \"/srv/a.img\"
  num-queues = 4

  [[disk]]
  socket-path = \"/run/b.sock\"
  blk-file = \"/dev/vg0/b\"
  read-only = true
  cache = \"writeback\"

Relative paths start from the directory in which sluice is started.";

/// Everything that the command line says.
#[derive(Debug, Parser)]
#[command(
    name = "sluice",
    version,
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_help = "See `sluice --help` for examples.",
    after_long_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 120
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    #[command(flatten)]
    pub(crate) disk: DiskSpec,

    #[command(flatten)]
    pub(crate) workers: WorkerArgs,

    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,

    /// Print what this program can do, as JSON for management tools, and exit
    #[arg(long)]
    pub(crate) print_capabilities: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Serve(ServeArgs),
    Run(Box<RunArgs>),
    Bench(Box<BenchArgs>),
    Doctor(DoctorArgs),
    Upgrade(UpgradeArgs),
    /// What a daemon uses to start the next one
    #[command(hide = true)]
    Starter(StarterArgs),
}

/// Serve several disks in one process
#[derive(Debug, clap::Args)]
#[command(long_about = SERVE_ABOUT, after_help = SERVE_EXAMPLES, arg_required_else_help = true)]
pub(crate) struct ServeArgs {
    /// A disk: socket-path=PATH,blk-file=PATH and more options; can be given several times
    #[arg(long = "disk", value_name = "KEY=VALUE,...")]
    pub(crate) disks: Vec<String>,

    /// A TOML file with a table `[[disk]]` for each disk
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// The most memory for the I/O of all disks together, such as 256M [default: what the disks may use each]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) memory_budget: Option<usize>,

    #[command(flatten)]
    pub(crate) workers: WorkerArgs,

    #[command(flatten)]
    pub(crate) sandbox: SandboxArgs,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["sluice"], arguments].concat())
    }

    #[test]
    fn the_definition_contradicts_itself_nowhere() {
        Cli::command().debug_assert();
    }

    #[test]
    fn one_disk_needs_no_command() {
        let cli = parse(&["--socket-path=/s", "--blk-file", "/f"]).unwrap();
        assert!(cli.command.is_none());
        assert_eq!(cli.disk.disk.blk_file, Some("/f".into()));
    }

    #[test]
    fn a_command_has_its_own_options_only() {
        let cli = parse(&["serve", "--disk", "blk-file=/f", "--disk=blk-file=/g", "--config=/c"]).unwrap();
        let Some(Command::Serve(serve)) = cli.command else { panic!("the command serve") };
        assert_eq!(serve.disks, ["blk-file=/f", "blk-file=/g"]);
        assert_eq!(serve.config, Some("/c".into()));
        assert!(parse(&["--blk-file=/f", "serve", "--config=/c"]).is_err());
        assert!(parse(&["serve", "--blk-file=/f"]).is_err());
    }

    #[test]
    fn the_help_shows_examples_defaults_and_units() {
        let help = Cli::command().term_width(120).render_long_help().to_string();
        for words in ["sluice serve --disk", "[default: 256]", "at most 20 bytes", "RUST_LOG", "Exit codes"] {
            assert!(help.contains(words), "{words}: {help}");
        }
        let examples = EXAMPLES.lines().chain(SERVE_EXAMPLES.lines()).filter(|line| line.starts_with(' '));
        assert!(examples.clone().all(|line| line.chars().count() <= 79), "a line that an old terminal wraps");
    }
}
