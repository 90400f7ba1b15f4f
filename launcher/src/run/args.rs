//! The command line of `sluice run`, and its help.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::ValueEnum;

use crate::disk_args::DiskArgs;

// Paragraphs are one line each: clap wraps them to the terminal.
const ABOUT: &str = "\
Starts a virtual machine on a disk, with the console in this terminal.

The daemon and the VM start and end together. Without --kernel and --boot the project's Linux guest boots, if it is \
built (guests/linux/build.sh): to a shell, or to do a --job. QEMU uses KVM where that works; elsewhere it translates \
(TCG), several times slower. In QEMU, Ctrl-A x ends the VM and Ctrl-A c leads to its monitor.";

const EXAMPLES: &str = "\
Examples:
  Boot from the disk:
    sluice run --blk-file=debian.img --boot disk --memory 2G

  A kernel of your own:
    sluice run --blk-file=root.img --kernel bzImage --initramfs initrd.img \\
      --cmdline 'console=ttyS0 root=/dev/vda1'

  fio in the project's guest (all jobs: guests/linux/README.md):
    sluice run --blk-file=scratch.img --job fio --job-arg fio=quick \\
      --results results.txt

  One more device, in the VMM's words:
    sluice run --blk-file=debian.img --boot disk -- -device virtio-rng-pci

The exit code is the guest's: what its results end in (exit=N), or what it wrote to QEMU's isa-debug-exit; else 0 \
after a power-off. 1 also means that the VM or the disk did not start, 2 wrong usage.";

/// The virtual machine monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Vmm {
    Qemu,
    CloudHypervisor,
}

/// QEMU's machine: a PC with PCI, or a small one with virtio-mmio.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum MachineKind {
    Q35,
    Microvm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum BootFrom {
    Disk,
}

/// Start a virtual machine on a disk
#[derive(Debug, clap::Args)]
#[command(long_about = ABOUT, after_long_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(super) disk: DiskArgs,

    /// The virtual machine monitor to start
    #[arg(long, value_enum, default_value = "qemu", help_heading = "Virtual machine")]
    pub(super) vmm: Vmm,

    /// QEMU's machine: q35 (a PC, the disk on PCI) or microvm (the disk on virtio-mmio)
    #[arg(long, value_enum, default_value = "q35", help_heading = "Virtual machine")]
    pub(super) machine: MachineKind,

    /// The guest's memory: a number and M or G (MiB, GiB)
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = parse_memory, help_heading = "Virtual machine")]
    pub(super) memory: u32,

    /// The guest's processors; the disk gets as many queues, unless --num-queues says otherwise
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Virtual machine")]
    pub(super) cpus: u16,

    /// The kernel to boot: a bzImage, or an ELF file with a PVH entry
    #[arg(long, value_name = "FILE", help_heading = "Guest")]
    pub(super) kernel: Option<PathBuf>,

    /// The kernel's initramfs
    #[arg(long, value_name = "FILE", requires = "kernel", help_heading = "Guest")]
    pub(super) initramfs: Option<PathBuf>,

    /// The kernel's command line [default: console=ttyS0 panic=-1]; without --kernel, words added to that of the
    /// project's guest
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true, help_heading = "Guest")]
    pub(super) cmdline: Option<String>,

    /// Boot by firmware from the disk
    #[arg(long, value_name = "disk", conflicts_with_all = ["kernel", "cmdline"], value_enum, hide_possible_values = true, help_heading = "Guest")]
    pub(super) boot: Option<BootFrom>,

    /// A job for the project's guest [default: shell]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["kernel", "boot"], value_parser = parse_word, help_heading = "Guest")]
    pub(super) job: Option<String>,

    /// A parameter of the job; can be given several times
    #[arg(long, value_name = "KEY=VALUE", requires = "job", value_parser = parse_job_argument, help_heading = "Guest")]
    pub(super) job_arg: Vec<String>,

    /// Where the guest's results go: what it writes to its second serial port
    #[arg(long, value_name = "FILE", help_heading = "Guest")]
    pub(super) results: Option<PathBuf>,

    /// Further arguments for the VMM
    #[arg(last = true, value_name = "VMM ARGUMENTS")]
    pub(super) vmm_arguments: Vec<OsString>,
}

/// Memory in MiB.
pub(super) fn parse_memory(text: &str) -> Result<u32, String> {
    let (number, unit_mib) = match text.strip_suffix(['G', 'g']) {
        Some(number) => (number, 1024),
        None => (text.strip_suffix(['M', 'm']).unwrap_or(text), 1),
    };
    match number.parse::<u32>().ok().and_then(|number| number.checked_mul(unit_mib)) {
        Some(mib) if mib > 0 => Ok(mib),
        _ => Err("must be a number and M or G, such as 512M or 2G".into()),
    }
}

/// A word of a kernel's command line.
fn parse_word(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(|char: char| char.is_whitespace() || char == '"') {
        return Err("must be a word without spaces and quotes".into());
    }
    Ok(text.into())
}

fn parse_job_argument(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.is_empty() => parse_word(text),
        _ => Err("must be KEY=VALUE, such as fio=quick".into()),
    }
}
