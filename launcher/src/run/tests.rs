//! The plan of a run, and what its end means.

use super::args::parse_memory;
use super::*;

/// A plan with everything in it.
pub(super) fn plan() -> VmPlan {
    VmPlan {
        socket: "/tmp/a,b/disk.sock".into(),
        num_queues: 2,
        queue_size: None,
        machine: MachineKind::Q35,
        memory_mib: 512,
        cpus: 2,
        boot: Boot::Kernel {
            kernel: "/k".into(),
            initramfs: Some("/i".into()),
            cmdline: "console=ttyS0 quiet".into(),
        },
        results: Some("/tmp/results".into()),
        vmm_arguments: vec!["-device".into(), "virtio-rng-pci".into()],
    }
}

#[derive(Debug, clap::Parser)]
#[command(no_binary_name = true)]
struct Parser {
    #[command(flatten)]
    run: RunArgs,
}

fn parse(arguments: &[&str]) -> Result<RunArgs, clap::Error> {
    <Parser as clap::Parser>::try_parse_from(arguments).map(|parser| parser.run)
}

#[test]
fn memory_is_in_mebibytes_unless_it_says_otherwise() {
    assert_eq!(parse_memory("512M"), Ok(512));
    assert_eq!(parse_memory("512"), Ok(512));
    assert_eq!(parse_memory("2G"), Ok(2048));
    for text in ["", "0", "G", "1.5G", "-1M", "5000000G", "1T"] {
        assert!(parse_memory(text).is_err(), "{text}");
    }
}

#[test]
fn what_follows_two_hyphens_is_for_the_vmm() {
    let run = parse(&["--blk-file=/f", "--cpus=4", "--", "-cpu", "max", "--job"]).unwrap();
    assert_eq!(run.vmm_arguments, ["-cpu", "max", "--job"]);
    assert_eq!(run.cpus, 4);
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    for arguments in [
        &["--blk-file=/f", "--kernel=/k", "--boot=disk"][..],
        &["--blk-file=/f", "--kernel=/k", "--job=smoke"],
        &["--blk-file=/f", "--initramfs=/i"],
        &["--blk-file=/f", "--job-arg=fio=quick"],
        &["--blk-file=/f", "--job=fio", "--job-arg=quick"],
        &["--blk-file=/f", "--job=smoke now"],
        &["--blk-file=/f", "--socket-path=/s"],
        &["--blk-file=/f", "--cpus=0"],
    ] {
        assert!(parse(arguments).is_err(), "{arguments:?}");
    }
    let errors = |arguments: &[&str]| check(&parse(arguments).unwrap()).unwrap_err().to_string();
    assert_eq!(
        errors(&["--machine=microvm", "--boot=disk"]),
        "--blk-file is missing: give the raw file or block device to serve\n\
         --boot=disk: cannot be used with --machine=microvm, which has no firmware for disks: use q35"
    );
    assert_eq!(
        errors(&["--blk-file=/f", "--machine=microvm", "--vmm=cloud-hypervisor"]),
        "--machine=microvm: is a machine of QEMU's: leave it out, or use --vmm=qemu"
    );
    assert_eq!(
        errors(&["--blk-file=/f", "--boot=disk", "--vmm=cloud-hypervisor"]),
        "--boot=disk: Cloud Hypervisor brings no firmware: name one behind two hyphens, as in \
         `-- --firmware=hypervisor-fw`"
    );
    let firmware = ["--blk-file=/f", "--boot=disk", "--vmm=cloud-hypervisor", "--", "--firmware=/fw"];
    assert!(check(&parse(&firmware).unwrap()).is_ok());
}
