//! `sluice run` with a stand-in for QEMU: a script that looks at its disk's socket and ends as the test says.
//!
//! The trial for KVM is answered by the script, too, so that these tests are the same on every machine.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rustix::process::Signal;

use crate::fixture::{Place, Running, eventually, option, output_of, sluice};

/// The trial's exit code: "KVM works". Then what every test needs: the path of the disk's socket and of the results.
const PROLOGUE: &str = r#"#!/bin/sh
case "$*" in *trial-firmware*) exit 33 ;; esac
for word; do
  case $word in
    socket,id=c0,path=*) socket=${word#*path=} ;;
    file,id=results,path=*) results=${word#*path=} ;;
  esac
done
test -S "$socket" || exit 99
"#;

/// A run of a kernel that does not matter, on a QEMU that does what the script says.
fn run(place: &Place, script: &str) -> Command {
    let qemu = place.at("qemu-system-x86_64");
    std::fs::write(&qemu, format!("{PROLOGUE}{script}\n")).expect("a script");
    std::fs::set_permissions(&qemu, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    std::fs::write(place.at("kernel"), "").expect("a file");
    std::fs::create_dir_all(place.at("tmp")).expect("a directory");
    let path = format!("{}:{}", place.path().display(), std::env::var("PATH").expect("a path"));
    let mut command = sluice();
    command
        .args(["run", &option("blk-file", &place.disk("d")), &option("kernel", &place.at("kernel"))])
        .env("PATH", path)
        .env("TMPDIR", place.at("tmp"));
    command
}

fn leftovers(place: &Place) -> usize {
    std::fs::read_dir(place.at("tmp")).expect("a directory").count()
}

#[test]
fn the_exit_code_is_the_guests_and_nothing_is_left_behind() {
    for (script, code) in [
        ("exit 0", 0),
        ("exit 33", 16),
        ("echo exit=5 >\"$results\"; exit 0", 5),
        ("echo exit=0 >\"$results\"; exit 1", 0),
        ("exit 1", 1),
    ] {
        let place = Place::new();
        let (found, _, words) = output_of(&mut run(&place, script));
        assert_eq!(found, Some(code), "{script}: {words}");
        assert_eq!(leftovers(&place), 0);
    }
}

#[test]
fn the_command_lines_are_shown_and_the_console_is_passed_through() {
    let place = Place::new();
    let results = place.at("results");
    let mut command = run(&place, "echo hello from the guest; echo exit=0 >\"$results\"");
    command.args([&option("results", &results), "--num-queues=3", "--", "-device", "virtio-rng-pci"]);
    let (code, stdout, words) = output_of(&mut command);
    assert_eq!((code, stdout.as_str()), (Some(0), "hello from the guest\n"), "{words}");
    assert_eq!(std::fs::read_to_string(&results).unwrap(), "exit=0\n");
    for expected in [
        "sluice \\\n    --socket-path=",
        "--num-queues=3",
        "qemu-system-x86_64 \\\n    -nodefaults",
        "-device vhost-user-blk-pci,chardev=c0,num-queues=3",
        "-device virtio-rng-pci",
    ] {
        assert!(words.contains(expected), "{expected}: {words}");
    }
}

#[test]
fn a_signal_ends_the_vm_and_then_the_daemon() {
    let place = Place::new();
    let mut running = Running::start(&mut run(&place, "echo $$ >\"$results\"; exec sleep 60"));
    let pid = eventually("the VM's process id", || {
        let directory = std::fs::read_dir(place.at("tmp")).unwrap().next()?.unwrap().path();
        std::fs::read_to_string(directory.join("results")).ok()?.trim().parse::<u32>().ok()
    });
    running.signal(Signal::TERM);
    let (code, words) = running.wait();
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("error: the VM was ended by a signal to sluice"), "{words}");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(leftovers(&place), 0);
}

#[test]
fn a_real_qemu_boots_from_the_disk_and_ends_with_the_exit_code_of_what_it_boots() {
    let place = Place::new();
    let disk = place.disk("d");
    // mov al, 5; out 0xf4, al; hlt; and the signature of a boot sector.
    let sector = [&[0xb0, 5, 0xe6, 0xf4, 0xf4][..], &[0; 505], &[0x55, 0xaa]].concat();
    std::fs::OpenOptions::new().write(true).open(&disk).unwrap().write_all(&sector).unwrap();
    let mut command = sluice();
    command.args(["run", &option("blk-file", &disk), "--boot=disk", "--memory=64M"]);
    let (code, _, words) = output_of(&mut command);
    assert_eq!(code, Some(5), "{words}");
}

#[test]
fn a_disk_that_cannot_be_served_starts_no_vm() {
    let place = Place::new();
    let mut command = run(&place, "echo started");
    std::fs::remove_file(place.at("d")).unwrap();
    let (code, stdout, words) = output_of(&mut command);
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert!(words.contains("error: --blk-file: "), "{words}");
}

#[test]
fn a_vmm_that_is_not_installed_is_named_with_what_to_do() {
    let place = Place::new();
    let mut command = run(&place, "");
    let (code, _, words) = output_of(command.arg("--vmm=cloud-hypervisor").env("PATH", "/no"));
    assert_eq!(code, Some(1));
    assert_eq!(
        words,
        "error: cloud-hypervisor is not installed; put its release binary into a directory of PATH, or use \
         --vmm=qemu\n"
    );
}
