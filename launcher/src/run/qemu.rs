//! QEMU's command line for one virtual machine on our disk.
//!
//! It follows guests/linux/README.md: no default devices, memory that is shared with the daemon, console on the first
//! serial port with QEMU's monitor behind Ctrl-A c (Ctrl-A x ends the VM), results on the second, exit code by
//! isa-debug-exit.

use super::accel::Accel;
use super::command_line::{CommandLine, path_setting};
use super::guest::Boot;
use super::{MachineKind, VmPlan};

/// The name of the program.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";
/// What a processor's clock is taken for where nobody says.
const CLOCK_KHZ_DEFAULT: u64 = 2_000_000;

/// The words that the project's guest needs on this machine beside its own.
pub(crate) fn guest_words(machine: MachineKind, accel: Accel) -> String {
    match (machine, accel) {
        // Linux calibrates its clock against timers; translated on a busy host, microvm hangs at it.
        (MachineKind::Microvm, Accel::Tcg) => {
            let khz = clock_khz();
            format!("tsc_early_khz={khz} lpj={}", khz * 4)
        }
        _ => String::new(),
    }
}

/// The command line for a plan.
pub(super) fn command_line(plan: &VmPlan, accel: Accel) -> CommandLine {
    let mut line = CommandLine::new(PROGRAM);
    line.flag("-nodefaults").flag("-no-user-config").option("-display", "none").flag("-no-reboot");
    machine(&mut line, plan);
    match accel {
        Accel::Kvm => line.option("-accel", "kvm").option("-cpu", "host"),
        // A processor with few features is translated fastest.
        Accel::Tcg => line.option("-accel", "tcg,thread=multi").option("-cpu", "Nehalem,-spec-ctrl"),
    };
    let memory = format!("{}M", plan.memory_mib);
    line.option("-smp", cpus(plan, accel))
        .option("-m", memory.as_str())
        .option("-object", format!("memory-backend-memfd,id=mem,size={memory},share=on"))
        .option("-serial", "mon:stdio");
    results(&mut line, plan);
    line.option("-device", "isa-debug-exit,iobase=0xf4,iosize=4")
        .option("-chardev", path_setting("socket,id=c0,path=", &plan.socket))
        .option("-device", disk_device(plan));
    if let Boot::Kernel { kernel, initramfs, cmdline } = &plan.boot {
        line.option("-kernel", kernel);
        if let Some(initramfs) = initramfs {
            line.option("-initrd", initramfs);
        }
        line.option("-append", cmdline);
    }
    line.extend(&plan.vmm_arguments);
    line
}

/// Where only one CPU is possible QEMU translates the guest's memory barriers to plain instructions. Beside a disk that is served
/// by another process that is one too few: now and then the guest would wait for ever for a call.
fn cpus(plan: &VmPlan, accel: Accel) -> String {
    match (accel, plan.cpus) {
        (Accel::Tcg, 1) => "1,maxcpus=2".to_owned(),
        (_, cpus) => cpus.to_string(),
    }
}

fn machine(line: &mut CommandLine, plan: &VmPlan) {
    match (plan.machine, &plan.boot) {
        // Without graphics the firmware and the boot loader speak on the serial port.
        (MachineKind::Q35, Boot::Disk) => line.option("-M", "q35,memory-backend=mem,graphics=off"),
        (MachineKind::Q35, Boot::Kernel { .. }) => line.option("-M", "q35,memory-backend=mem"),
        (MachineKind::Microvm, _) => line
            .option("-M", "microvm,memory-backend=mem,acpi=on,isa-serial=on,x-option-roms=off,rtc=on")
            .option("-bios", "qboot.rom")
            .option("-global", "virtio-mmio.force-legacy=false"),
    };
}

fn results(line: &mut CommandLine, plan: &VmPlan) {
    let Some(results) = &plan.results else { return };
    line.option("-chardev", path_setting("file,id=results,path=", results));
    match plan.machine {
        MachineKind::Q35 => line.option("-serial", "chardev:results"),
        // microvm has one -serial; the second port is a device.
        MachineKind::Microvm => line.option("-device", "isa-serial,index=1,chardev=results"),
    };
}

fn disk_device(plan: &VmPlan) -> String {
    let name = match plan.machine {
        MachineKind::Q35 => "vhost-user-blk-pci",
        MachineKind::Microvm => "vhost-user-blk",
    };
    let mut device = format!("{name},chardev=c0,num-queues={}", plan.num_queues);
    if let Some(size) = plan.queue_size {
        device.push_str(&format!(",queue-size={size}"));
    }
    device
}

fn clock_khz() -> u64 {
    std::fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| clock_khz_in(&text))
        .unwrap_or(CLOCK_KHZ_DEFAULT)
}

fn clock_khz_in(cpuinfo: &str) -> Option<u64> {
    let line = cpuinfo.lines().find(|line| line.starts_with("cpu MHz"))?;
    let (mhz, fraction) = line.split_once(':')?.1.trim().split_once('.')?;
    let thousandths = fraction.get(..3)?;
    Some(mhz.parse::<u64>().ok()?.checked_mul(1000)? + thousandths.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::super::tests::plan;
    use super::*;

    #[test]
    fn q35_boots_a_kernel_with_console_results_and_exit_code() {
        assert_eq!(
            command_line(&plan(), Accel::Tcg).to_string(),
            "qemu-system-x86_64 \\
    -nodefaults \\
    -no-user-config \\
    -display none \\
    -no-reboot \\
    -M q35,memory-backend=mem \\
    -accel tcg,thread=multi \\
    -cpu Nehalem,-spec-ctrl \\
    -smp 2 \\
    -m 512M \\
    -object memory-backend-memfd,id=mem,size=512M,share=on \\
    -serial mon:stdio \\
    -chardev file,id=results,path=/tmp/results \\
    -serial chardev:results \\
    -device isa-debug-exit,iobase=0xf4,iosize=4 \\
    -chardev socket,id=c0,path=/tmp/a,,b/disk.sock \\
    -device vhost-user-blk-pci,chardev=c0,num-queues=2 \\
    -kernel /k \\
    -initrd /i \\
    -append 'console=ttyS0 quiet' \\
    -device virtio-rng-pci"
        );
    }

    #[test]
    fn microvm_has_its_own_devices_and_firmware() {
        let plan = VmPlan { machine: MachineKind::Microvm, queue_size: Some(1024), ..plan() };
        let line = command_line(&plan, Accel::Kvm).to_string();
        for words in [
            "-M microvm,memory-backend=mem,",
            "-accel kvm \\\n    -cpu host",
            "-bios qboot.rom",
            "-global virtio-mmio.force-legacy=false",
            "-device isa-serial,index=1,chardev=results",
            "-device vhost-user-blk,chardev=c0,num-queues=2,queue-size=1024",
        ] {
            assert!(line.contains(words), "{words}: {line}");
        }
        assert!(!line.contains("-serial chardev:results"), "{line}");
    }

    #[test]
    fn a_boot_from_the_disk_has_no_kernel_and_its_firmware_on_the_serial_port() {
        let line =
            command_line(&VmPlan { boot: Boot::Disk, results: None, ..plan() }, Accel::Tcg).to_string();
        assert!(line.contains("-M q35,memory-backend=mem,graphics=off"), "{line}");
        for words in ["-kernel", "-initrd", "-append", "results"] {
            assert!(!line.contains(words), "{words}: {line}");
        }
    }

    #[test]
    fn a_translated_guest_with_one_cpu_could_have_a_second() {
        let line = |cpus, accel| command_line(&VmPlan { cpus, ..plan() }, accel).to_string();
        assert!(line(1, Accel::Tcg).contains("-smp 1,maxcpus=2 "));
        assert!(line(1, Accel::Kvm).contains("-smp 1 ") && line(4, Accel::Tcg).contains("-smp 4 "));
    }

    #[test]
    fn the_clock_is_read_in_kilohertz() {
        assert_eq!(clock_khz_in("processor\t: 0\ncpu MHz\t\t: 2649.998\n"), Some(2_649_998));
        assert_eq!(clock_khz_in("BogoMIPS : 100\n"), None);
        assert!(guest_words(MachineKind::Microvm, Accel::Tcg).starts_with("tsc_early_khz="));
        assert_eq!(guest_words(MachineKind::Q35, Accel::Tcg), "");
    }
}
