//! Virtual machines: real guests, booted by QEMU on the product's sockets.
//!
//! A [`Vm`] says what to boot and on which disks. Starting it gives a [`Running`] machine, which is killed when it is
//! dropped; that ends as [`Ended`], and [`BareReport`] and [`LinuxReport`] read what the guest reported. The contracts
//! with the two guests are in `guests/bare/README.md` and `guests/linux/README.md`.
//!
//! Nothing is skipped: what is missing on this machine fails the test, with the command that brings it. Whatever goes
//! wrong in a VM is told with its last words and the command line that started it. In the environment:
//!
//! - `SLUICE_ACCEL`: QEMU's `-accel`, for example `kvm`; by default `tcg,thread=multi`, which works everywhere. KVM is
//!   never tried on its own: where it is there and only emulates instructions, guests fail in odd ways.
//! - `SLUICE_CPU`: QEMU's `-cpu`; by default `host` with KVM, else an old one that every QEMU can translate.
//! - `SLUICE_KEEP`: when set, the files of each VM stay, so that its command line can be run again.

mod archive;
mod daemon;
mod ended;
mod images;
mod migration;
mod qemu;
mod qmp;
mod report;
mod running;

use std::path::{Path, PathBuf};
use std::time::Duration;

use self::archive::Archive;
pub use self::daemon::Daemon;
pub use self::ended::Ended;
use self::images::Images;
pub use self::migration::{Migration, Moving};
pub use self::report::{BareReport, LinuxReport};
pub use self::running::Running;

/// QEMU's board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// A PC with PCI Express: virtio-pci.
    Q35,
    /// The PC before that.
    Pc,
    /// A board without PCI: virtio-mmio.
    Microvm,
}

/// What is booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    Bare,
    Linux,
}

/// A disk of a VM.
#[derive(Clone, Debug)]
struct VmDisk {
    socket: PathBuf,
    queues: u16,
    /// More properties of the device, in QEMU's words.
    properties: String,
}

/// What is to be booted.
#[derive(Clone, Debug)]
pub struct Vm {
    kernel: Kernel,
    machine: Machine,
    cpus: u16,
    memory_mib: u32,
    huge_pages: bool,
    /// Up to so much memory can be plugged in.
    memory_mib_max: Option<u32>,
    devices: Vec<String>,
    disks: Vec<VmDisk>,
    words: Vec<String>,
    files: Archive,
    may_reboot: bool,
    reconnects: bool,
    incoming: bool,
    time_max: Duration,
    qemu: PathBuf,
    images: Images,
}

impl Vm {
    /// The bare-metal guest on a q35 board. It has one processor, whatever its disks have queues.
    pub fn bare() -> Self {
        Vm {
            kernel: Kernel::Bare,
            machine: Machine::Q35,
            cpus: 1,
            memory_mib: 64,
            huge_pages: false,
            memory_mib_max: None,
            devices: Vec::new(),
            disks: Vec::new(),
            words: Vec::new(),
            files: Archive::default(),
            may_reboot: false,
            reconnects: false,
            incoming: false,
            // Under a second on an idle machine; a busy one can take a hundred times as long.
            time_max: Duration::from_secs(100),
            qemu: "qemu-system-x86_64".into(),
            images: Images::of_the_project(),
        }
    }

    /// The Linux guest, which runs some of its jobs one after the other, on a board with so many processors: Linux uses
    /// as many queues of a disk at most.
    ///
    /// Beside the guest's own jobs there are those of this folder's `jobs/`.
    pub fn linux(machine: Machine, cpus: u16, jobs: &[&str]) -> Self {
        let mut files = Archive::default();
        files.add("jobs/several", 0o755, include_bytes!("vm/jobs/several"));
        files.add("jobs/exchange", 0o755, include_bytes!("vm/jobs/exchange"));
        files.add("jobs/cached", 0o755, include_bytes!("vm/jobs/cached"));
        files.add("jobs/held", 0o755, include_bytes!("vm/jobs/held"));
        files.add("jobs/unmap", 0o755, include_bytes!("vm/jobs/unmap"));
        files.add("jobs/small-blocks", 0o755, include_bytes!("vm/jobs/small-blocks"));
        files.add("jobs/write-through", 0o755, include_bytes!("vm/jobs/write-through"));
        files.add("jobs/reboots", 0o755, include_bytes!("vm/jobs/reboots"));
        files.add("jobs/hotplug", 0o755, include_bytes!("vm/jobs/hotplug"));
        files.add("jobs/memory", 0o755, include_bytes!("vm/jobs/memory"));
        let vm = Vm {
            kernel: Kernel::Linux,
            machine,
            cpus,
            memory_mib: 512,
            files,
            // Five to ten seconds on an idle machine with two processors; a busy one, or its disk, is no failure.
            time_max: Duration::from_secs(400),
            ..Vm::bare()
        };
        vm.word("sluice.job=several").word(&format!("sluice.jobs={}", jobs.join(",")))
    }

    /// Adds a disk: the back-end's socket, and how many queues the device has.
    #[must_use]
    pub fn disk(self, socket: &Path, queues: u16) -> Self {
        self.disk_with(socket, queues, "")
    }

    /// Adds a disk with more properties of QEMU's device, as `NAME=VALUE,...`.
    #[must_use]
    pub fn disk_with(mut self, socket: &Path, queues: u16, properties: &str) -> Self {
        let disk = VmDisk { socket: socket.to_path_buf(), queues, properties: properties.to_owned() };
        self.disks.push(disk);
        self
    }

    /// So much memory.
    #[must_use]
    pub fn memory(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Another board.
    #[must_use]
    pub fn machine(mut self, machine: Machine) -> Self {
        self.machine = machine;
        self
    }

    /// Memory of huge pages of 2 MiB, of which the host has to have enough; so many MiB of them.
    #[must_use]
    pub fn huge_pages(mut self, memory_mib: u32) -> Self {
        self.huge_pages = true;
        self.memory_mib = memory_mib;
        self
    }

    /// Memory can be plugged in while it runs, up to so many MiB.
    #[must_use]
    pub fn growing_to(mut self, memory_mib_max: u32) -> Self {
        self.memory_mib_max = Some(memory_mib_max);
        self
    }

    /// Adds a device before the disks, in QEMU's words.
    #[must_use]
    pub fn device(mut self, device: &str) -> Self {
        self.devices.push(device.to_owned());
        self
    }

    /// Adds a word to the kernel's command line.
    #[must_use]
    pub fn word(mut self, word: &str) -> Self {
        self.words.push(word.to_owned());
        self
    }

    /// Adds a file to the Linux guest's root.
    #[must_use]
    pub fn file(mut self, path: &str, content: &[u8]) -> Self {
        self.files.add(path, 0o644, content);
        self
    }

    /// A reset starts the guest again; otherwise QEMU ends instead, so that a guest that panics is noticed.
    #[must_use]
    pub fn rebooting(mut self) -> Self {
        self.may_reboot = true;
        self
    }

    /// QEMU connects again when a back-end has gone, and tries that often.
    #[must_use]
    pub fn reconnecting(mut self) -> Self {
        self.reconnects = true;
        self
    }

    /// Boots nothing, and waits for a guest that [moves](Running::migrate) here.
    #[must_use]
    pub fn incoming(mut self) -> Self {
        self.incoming = true;
        self
    }

    /// The same, on other sockets of back-ends, in the order of its disks.
    #[must_use]
    pub fn on_sockets(mut self, sockets: &[&Path]) -> Self {
        for (disk, socket) in self.disks.iter_mut().zip(sockets) {
            disk.socket = socket.to_path_buf();
        }
        self
    }

    /// Starts it.
    ///
    /// # Panics
    /// If QEMU or the guest's image is not there, with the command that brings it.
    pub fn start(&self) -> Running {
        Running::start(self)
    }

    /// Starts it and waits until it has ended.
    ///
    /// # Panics
    /// As [`Vm::start`]; and if it does not end in time.
    pub fn run(&self) -> Ended {
        self.start().finish()
    }
}

#[cfg(test)]
mod tests;
