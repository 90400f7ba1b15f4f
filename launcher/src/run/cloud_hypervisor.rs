//! Cloud Hypervisor's command line for one virtual machine on our disk.
//!
//! It has one serial port, on the terminal, so that results come over its virtio console, and no exit code: the guest
//! powers off, and its results say how it went. It needs KVM.

use std::ffi::OsString;
use std::path::Path;

use super::VmPlan;
use super::command_line::CommandLine;
use super::guest::Boot;

/// The name of the program.
pub(crate) const PROGRAM: &str = "cloud-hypervisor";
/// The words that the project's guest needs here: where results go, and how it ends.
pub(crate) const GUEST_WORDS: &str = "sluice.results=hvc0 sluice.exit=poweroff";

/// The command line for a plan.
pub(super) fn command_line(plan: &VmPlan) -> CommandLine {
    let mut line = CommandLine::new(PROGRAM);
    line.option("--cpus", format!("boot={}", plan.cpus))
        .option("--memory", format!("size={}M,shared=on", plan.memory_mib))
        .option("--serial", "tty")
        .option(
            "--console",
            plan.results.as_ref().map_or_else(|| "off".into(), |path| setting("file=", path)),
        )
        .option("--disk", disk(plan));
    if let Boot::Kernel { kernel, initramfs, cmdline } = &plan.boot {
        line.option("--kernel", kernel);
        if let Some(initramfs) = initramfs {
            line.option("--initramfs", initramfs);
        }
        line.option("--cmdline", cmdline);
    }
    line.extend(&plan.vmm_arguments);
    line
}

fn disk(plan: &VmPlan) -> OsString {
    let mut disk = setting("vhost_user=true,socket=", &plan.socket);
    disk.push(format!(",num_queues={}", plan.num_queues));
    if let Some(size) = plan.queue_size {
        disk.push(format!(",queue_size={size}"));
    }
    disk
}

/// `key=PATH`, in quotes where the path has a comma.
fn setting(start: &str, path: &Path) -> OsString {
    let path = path.to_string_lossy();
    if path.contains(',') { format!("{start}\"{path}\"").into() } else { format!("{start}{path}").into() }
}

#[cfg(test)]
mod tests {
    use super::super::tests::plan;
    use super::*;

    #[test]
    fn a_kernel_boots_with_its_console_on_the_terminal_and_its_results_in_a_file() {
        assert_eq!(
            command_line(&VmPlan { queue_size: Some(64), vmm_arguments: Vec::new(), ..plan() }).to_string(),
            "cloud-hypervisor \\
    --cpus boot=2 \\
    --memory size=512M,shared=on \\
    --serial tty \\
    --console file=/tmp/results \\
    --disk 'vhost_user=true,socket=\"/tmp/a,b/disk.sock\",num_queues=2,queue_size=64' \\
    --kernel /k \\
    --initramfs /i \\
    --cmdline 'console=ttyS0 quiet'"
        );
    }

    #[test]
    fn a_boot_from_the_disk_leaves_the_firmware_to_further_arguments() {
        let plan = VmPlan {
            boot: Boot::Disk,
            results: None,
            vmm_arguments: vec!["--firmware".into(), "/fw".into()],
            ..plan()
        };
        let line = command_line(&plan).to_string();
        assert!(line.ends_with("\\\n    --firmware /fw"), "{line}");
        assert!(line.contains("--console off"), "{line}");
        assert!(!line.contains("--kernel"), "{line}");
    }
}
