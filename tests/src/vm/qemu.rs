//! QEMU's command line for a VM.

use std::path::{Path, PathBuf};

use super::{Kernel, Machine, Vm, VmDisk, images};

/// What a VM leaves in its directory.
pub(super) struct Files {
    /// The first serial port.
    pub(super) console: PathBuf,
    /// The second serial port.
    pub(super) results: PathBuf,
    /// QEMU's own messages.
    pub(super) errors: PathBuf,
    /// The socket of QEMU's monitor for people.
    pub(super) monitor: PathBuf,
    /// That of the one for programs.
    pub(super) qmp: PathBuf,
    /// Where a guest comes from that moves here.
    pub(super) incoming: PathBuf,
    /// The initramfs with the VM's own files.
    pub(super) initramfs: PathBuf,
}

impl Files {
    /// Their names in a directory.
    pub(super) fn in_dir(dir: &Path) -> Self {
        Files {
            console: dir.join("console"),
            results: dir.join("results"),
            errors: dir.join("qemu-errors"),
            monitor: dir.join("monitor"),
            qmp: dir.join("qmp"),
            incoming: dir.join("incoming"),
            initramfs: dir.join("initramfs"),
        }
    }
}

/// The arguments.
pub(super) fn arguments(vm: &Vm, files: &Files) -> Vec<String> {
    let mut line = Line(Vec::new());
    line.words("-nodefaults -no-user-config -display none");
    if !vm.may_reboot {
        line.words("-no-reboot");
    }
    board(&mut line, vm.machine);
    line.words(&format!("-accel {} -cpu {}", accel(), cpu()));
    let grows = vm.memory_mib_max.map(|most| format!(",slots=8,maxmem={most}M")).unwrap_or_default();
    // Where only one CPU is possible QEMU translates the guest's memory barriers (`lock addl`) to plain instructions, also beside
    // back-ends with threads of their own: now and then the guest would wait for ever for a call.
    let possible = vm.cpus.max(2);
    line.words(&format!("-smp {},maxcpus={possible} -m {}{grows}", vm.cpus, vm.memory_mib));
    let pages = if vm.huge_pages { ",hugetlb=on,hugetlbsize=2M" } else { "" };
    line.words(&format!("-object memory-backend-memfd,id=mem,size={}M,share=on{pages}", vm.memory_mib));
    line.option("-chardev", format!("socket,id=monitor,path={},server=on,wait=off", files.monitor.display()));
    line.words("-mon chardev=monitor,mode=readline");
    line.option("-chardev", format!("socket,id=qmp,path={},server=on,wait=off", files.qmp.display()));
    line.words("-mon chardev=qmp,mode=control");
    if vm.incoming {
        line.option("-incoming", format!("unix:{}", files.incoming.display()));
    }
    line.option("-serial", format!("file:{}", files.console.display()));
    line.words("-device isa-debug-exit,iobase=0xf4,iosize=4");
    for device in &vm.devices {
        line.option("-device", device.clone());
    }
    for (number, disk) in vm.disks.iter().enumerate() {
        attach(&mut line, vm, number, disk);
    }
    match vm.kernel {
        Kernel::Bare => boot_bare(&mut line, vm),
        Kernel::Linux => boot_linux(&mut line, vm, files),
    }
    line.0
}

/// A command line as a shell takes it.
pub(super) fn shown(program: &Path, arguments: &[String]) -> String {
    let words = std::iter::once(program.display().to_string()).chain(arguments.iter().cloned());
    words.map(|word| quoted(&word)).collect::<Vec<_>>().join(" ")
}

fn board(line: &mut Line, machine: Machine) {
    line.words(match machine {
        Machine::Q35 => "-M q35,memory-backend=mem",
        Machine::Pc => "-M pc,memory-backend=mem",
        Machine::Microvm => {
            "-M microvm,memory-backend=mem,acpi=on,isa-serial=on,x-option-roms=off,rtc=on -bios qboot.rom \
             -global virtio-mmio.force-legacy=false"
        }
    });
}

fn attach(line: &mut Line, vm: &Vm, number: usize, disk: &VmDisk) {
    let machine = vm.machine;
    let reconnect = if vm.reconnects { reconnect(&vm.qemu) } else { "" };
    line.option("-chardev", format!("socket,id=c{number},path={}{reconnect}", disk.socket.display()));
    let device = match machine {
        Machine::Q35 | Machine::Pc => "vhost-user-blk-pci",
        Machine::Microvm => "vhost-user-blk",
    };
    let more = if disk.properties.is_empty() { String::new() } else { format!(",{}", disk.properties) };
    line.option("-device", format!("{device},chardev=c{number},num-queues={}{more}", disk.queues));
}

/// How QEMU is told to connect again: since 9.2 it counts milliseconds.
fn reconnect(qemu: &Path) -> &'static str {
    let version = std::process::Command::new(qemu).arg("--version").output().map(|output| output.stdout);
    let version = String::from_utf8_lossy(&version.unwrap_or_default()).into_owned();
    let numbers = version.split_whitespace().find_map(|word| {
        let mut numbers = word.split('.').map_while(|number| number.parse::<u32>().ok());
        Some((numbers.next()?, numbers.next()?))
    });
    if numbers.is_some_and(|version| version >= (9, 2)) { ",reconnect-ms=20" } else { ",reconnect=1" }
}

fn boot_bare(line: &mut Line, vm: &Vm) {
    line.option("-kernel", vm.images.bare().display().to_string());
    line.option("-append", vm.words.join(" "));
}

fn boot_linux(line: &mut Line, vm: &Vm, files: &Files) {
    let results = files.results.display();
    match vm.machine {
        Machine::Q35 | Machine::Pc => line.option("-serial", format!("file:{results}")),
        // microvm has one -serial; the second port is a device.
        Machine::Microvm => {
            line.option("-chardev", format!("file,id=results,path={results}"));
            line.words("-device isa-serial,index=1,chardev=results");
        }
    }
    line.option("-kernel", vm.images.vmlinux().display().to_string());
    line.option("-initrd", files.initramfs.display().to_string());
    line.option("-append", linux_words(vm).join(" "));
}

fn linux_words(vm: &Vm) -> Vec<String> {
    let mut words = vec![images::linux_cmdline()];
    // The guest gives up before the test does, which then has its results, and before QEMU would stay without a test.
    words.push(format!("sluice.timeout={}", vm.time_max.as_secs() * 3 / 4));
    words.extend(vm.words.iter().cloned());
    if is_tcg()
        && let Some(khz) = clock_khz()
    {
        // Without KVM, on a busy host, Linux does not find out the frequency of its clock: it is told.
        words.push(format!("tsc_early_khz={khz} lpj={}", khz * 4));
    }
    words
}

fn accel() -> String {
    std::env::var("SLUICE_ACCEL").unwrap_or_else(|_| "tcg,thread=multi".to_owned())
}

fn is_tcg() -> bool {
    accel().starts_with("tcg")
}

fn cpu() -> String {
    let default = if is_tcg() { "Nehalem,-spec-ctrl" } else { "host" };
    std::env::var("SLUICE_CPU").unwrap_or_else(|_| default.to_owned())
}

/// The frequency of this machine's clock, where the processor tells it.
fn clock_khz() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("cpu MHz"))?;
    let mhz = line.split(':').nth(1)?.trim();
    let (whole, thousandths) = mhz.split_once('.')?;
    format!("{whole}{thousandths}").parse().ok()
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=.,:/+%@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

struct Line(Vec<String>);

impl Line {
    /// Adds words that are separated by spaces.
    fn words(&mut self, words: &str) {
        self.0.extend(words.split_whitespace().map(str::to_owned));
    }

    /// Adds an option with a value, which may have spaces.
    fn option(&mut self, name: &str, value: String) {
        self.0.push(name.to_owned());
        self.0.push(value);
    }
}

/// A program on the PATH.
pub(super) fn find(program: &Path) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A program that is named with a folder stays as it is when joined.
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|candidate| candidate.exists())
}
