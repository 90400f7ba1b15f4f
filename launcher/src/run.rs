//! `sluice run`: the daemon and a virtual machine on it, for a person or a script.
//!
//! The daemon runs in this process on a socket in a private directory; the VM is a child on this terminal. Both end
//! together, and the exit code is the guest's. The VMM's command line is shown, so that people learn it.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sluice_backend::device::Device;
use sluice_blk::disk::Medium;

use crate::daemon::Daemon;
use crate::disk_args::DiskArgs;
use crate::plan::{Origin, Plan, PlannedDisk, UsageError, medium};
use crate::sandbox::SandboxArgs;
use crate::signals::StopSignals;
use crate::worker_args::WorkerArgs;

mod accel;
mod args;
mod cloud_hypervisor;
mod command_line;
mod guest;
mod qemu;
mod verdict;
mod vm;

pub(crate) use args::RunArgs;
pub(crate) use command_line::quote;

use accel::Accel;
use args::{MachineKind, Vmm};
use command_line::CommandLine;
use guest::{Boot, LinuxGuest};
use verdict::Verdict;

/// A virtual machine, down to what a VMM's command line says.
#[derive(Debug, Clone)]
struct VmPlan {
    socket: PathBuf,
    num_queues: u16,
    /// As somebody gave it; else the VMM's default.
    queue_size: Option<u16>,
    machine: MachineKind,
    memory_mib: u32,
    cpus: u16,
    boot: Boot,
    results: Option<PathBuf>,
    vmm_arguments: Vec<OsString>,
}

/// What is going to boot, before it is known how the processors run.
enum Guest {
    Named(Boot),
    Linux(LinuxGuest),
}

/// Runs a virtual machine from start to end and returns the guest's exit code.
pub(crate) fn run(arguments: &RunArgs) -> Result<u8> {
    let medium = check(arguments)?;
    let guest = arguments.guest()?;
    let vmm = arguments.vmm.find()?;
    let directory = tempfile::Builder::new()
        .prefix("sluice-run.")
        .tempdir()
        .context("cannot make a temporary directory for the socket")?;
    let results = arguments.results.clone().unwrap_or_else(|| directory.path().join("results"));
    File::create(&results).with_context(|| format!("--results={}", results.display()))?;

    let accel = arguments.vmm.accel(&vmm, directory.path())?;
    let socket = directory.path().join("disk.sock");
    let plan = arguments.plan(&socket, &results, guest, accel);
    let command_line = match arguments.vmm {
        Vmm::Qemu => qemu::command_line(&plan, accel),
        Vmm::CloudHypervisor => cloud_hypervisor::command_line(&plan),
    };

    let mut signals = StopSignals::install().context("cannot take over signals")?;
    let options = arguments.disk_options(&plan);
    show(&socket, &options, &command_line);
    let served = Plan {
        disks: vec![PlannedDisk::on_socket(socket, medium, options)],
        memory_budget: None,
        workers: WorkerArgs::default(),
        // This process has a virtual machine to start, and a terminal to mend.
        sandbox: SandboxArgs::none(),
    };
    let daemon = Daemon::start(&served, &mut signals)?;
    let ending = vm::run(&command_line, &signals);
    daemon.stop();
    let text = std::fs::read(&results).with_context(|| format!("--results={}", results.display()))?;
    arguments.verdict().judge(ending?, guest::exit_code(&String::from_utf8_lossy(&text)))
}

/// Checks what clap cannot, and returns what the disk is on.
fn check(arguments: &RunArgs) -> Result<Medium> {
    let mut errors = Vec::new();
    let medium = medium(&arguments.disk, &Origin::Arguments).map_err(|why| errors.push(why));
    if arguments.machine == MachineKind::Microvm && arguments.boot.is_some() {
        errors.push(
            "--boot=disk: cannot be used with --machine=microvm, which has no firmware for disks: use q35"
                .into(),
        );
    }
    if arguments.machine == MachineKind::Microvm && arguments.vmm == Vmm::CloudHypervisor {
        errors.push("--machine=microvm: is a machine of QEMU's: leave it out, or use --vmm=qemu".into());
    }
    if arguments.boot.is_some() && arguments.vmm == Vmm::CloudHypervisor && arguments.vmm_arguments.is_empty()
    {
        errors.push(
            "--boot=disk: Cloud Hypervisor brings no firmware: name one behind two hyphens, as in \
             `-- --firmware=hypervisor-fw`"
                .into(),
        );
    }
    match medium {
        Ok(medium) if errors.is_empty() => Ok(medium),
        _ => Err(UsageError(errors).into()),
    }
}

/// Tells a person what is started, in commands to copy.
fn show(socket: &Path, options: &DiskArgs, command_line: &CommandLine) {
    let mut daemon = CommandLine::new("sluice");
    daemon.flag(&format!("--socket-path={}", socket.display()));
    for (key, value) in options.settings() {
        daemon.flag(&format!("--{key}={value}"));
    }
    eprintln!("sluice: this does the same as these two commands in two terminals:\n");
    eprintln!("  {daemon}\n\n  {command_line}\n");
}

impl Vmm {
    /// The program, or how to get it.
    fn find(self) -> Result<PathBuf> {
        let (name, advice) = match self {
            Self::Qemu => (qemu::PROGRAM, "on Debian: `apt-get install qemu-system-x86`"),
            Self::CloudHypervisor => (
                cloud_hypervisor::PROGRAM,
                "put its release binary into a directory of PATH, or use --vmm=qemu",
            ),
        };
        find_program(name).with_context(|| format!("{name} is not installed; {advice}"))
    }

    /// How the processors run; says what was found out.
    fn accel(self, program: &Path, directory: &Path) -> Result<Accel> {
        if self == Self::CloudHypervisor {
            if let Err(why) = accel::find_kvm() {
                bail!("Cloud Hypervisor needs KVM: {why}");
            }
            return Ok(Accel::Kvm);
        }
        let (accel, why) = accel::choose(program, directory)?;
        match why {
            None => eprintln!("sluice: KVM works here"),
            Some(why) => {
                eprintln!("sluice: without KVM, QEMU translates (TCG), several times slower: {why}");
            }
        }
        Ok(accel)
    }
}

impl RunArgs {
    fn guest(&self) -> Result<Guest> {
        if self.boot.is_some() {
            return Ok(Guest::Named(Boot::Disk));
        }
        match &self.kernel {
            Some(kernel) => guest::named_kernel(kernel, self.initramfs.as_deref(), self.cmdline.as_deref())
                .map(Guest::Named),
            None => LinuxGuest::find().map(Guest::Linux),
        }
    }

    fn plan(&self, socket: &Path, results: &Path, guest: Guest, accel: Accel) -> VmPlan {
        VmPlan {
            socket: socket.into(),
            num_queues: self.disk.num_queues.unwrap_or(self.cpus),
            queue_size: self.disk.queue_size,
            machine: self.machine,
            memory_mib: self.memory,
            cpus: self.cpus,
            boot: match guest {
                Guest::Named(boot) => boot,
                Guest::Linux(guest) => self.boot_linux(guest, accel),
            },
            results: Some(results.into()),
            vmm_arguments: self.vmm_arguments.clone(),
        }
    }

    fn boot_linux(&self, guest: LinuxGuest, accel: Accel) -> Boot {
        let words = match self.vmm {
            Vmm::Qemu => qemu::guest_words(self.machine, accel),
            Vmm::CloudHypervisor => cloud_hypervisor::GUEST_WORDS.into(),
        };
        let job = self.job.as_deref().unwrap_or("shell");
        guest.boot(job, &self.job_arg, &[&words, self.cmdline.as_deref().unwrap_or_default()])
    }

    fn disk_options(&self, plan: &VmPlan) -> DiskArgs {
        let queue_size = match (self.disk.queue_size, self.machine) {
            // QEMU's virtio-mmio lets the guest make rings as large as it can, whatever `queue-size` says.
            (None, MachineKind::Microvm) => Some(Device::QUEUE_SIZE_MAX),
            (given, _) => given,
        };
        DiskArgs { num_queues: Some(plan.num_queues), queue_size, ..self.disk.clone() }
    }

    fn verdict(&self) -> Verdict {
        match self.job.as_deref() {
            // A person can leave a shell by ending the VM.
            None | Some("shell") => Verdict::Vmm,
            Some(_) => Verdict::Results,
        }
    }
}

/// Finds a program as a shell does.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests;
