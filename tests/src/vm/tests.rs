//! The runner itself: what it says when something goes wrong, by stand-ins for QEMU.

use std::any::Any;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use tempfile::TempDir;

use super::*;

/// A VM whose QEMU does what a shell script says; `$console` is the file of the first serial port.
fn stand_in(dir: &TempDir, script: &str) -> Vm {
    let path = dir.path().join("qemu");
    let console = "for word; do case $word in file:*) console=${word#file:};; esac; done";
    std::fs::write(&path, format!("#!/bin/sh\n{console}\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir_all(dir.path().join("bare")).unwrap();
    std::fs::write(dir.path().join("bare/bare.elf"), []).unwrap();
    let images = Images::in_dir(dir.path());
    Vm { qemu: path, images, ..Vm::bare() }
}

fn failure<T>(action: impl FnOnce() -> T) -> String {
    let error: Box<dyn Any + Send> = match catch_unwind(AssertUnwindSafe(action)) {
        Ok(_) => panic!("no failure"),
        Err(error) => error,
    };
    *error.downcast::<String>().expect("a failure is told in words")
}

#[test]
fn a_vm_that_does_not_end_is_killed_and_its_last_words_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut vm = stand_in(&dir, "echo $$ >${0%/*}/pid; echo last words >$console; exec sleep 60");
    // Enough for a shell to say its last words, also on a busy machine.
    vm.time_max = Duration::from_secs(2);
    let words = failure(|| vm.run());
    for expected in ["killed after 2 s", "the end of the guest", "last words", "-append", "q35"] {
        assert!(words.contains(expected), "{expected}: {words}");
    }
    let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "process {pid} lives");
}

#[test]
fn a_dropped_vm_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let pid_file = dir.path().join("pid");
    let mut running = stand_in(&dir, "echo $$ >${0%/*}/pid; exec sleep 60").start();
    running.wait_until("the process says its id", |_| {
        std::fs::read_to_string(&pid_file).is_ok_and(|pid| pid.ends_with('\n'))
    });
    drop(running);
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "process {pid} lives");
}

#[test]
fn a_vm_that_ends_early_is_told_from_one_that_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut running = stand_in(&dir, "echo no such machine >&2; exit 1").start();
    let words = failure(|| running.wait_until("the moon is full", |_| false));
    for expected in ["the moon is full", "no such machine", "exit status: 1"] {
        assert!(words.contains(expected), "{expected}: {words}");
    }
}

#[test]
fn a_missing_qemu_is_named_with_the_command_that_installs_it() {
    let vm = Vm { qemu: "qemu-system-abacus".into(), ..Vm::bare() };
    let words = failure(|| vm.start());
    assert!(words.contains("qemu-system-abacus is not installed"), "{words}");
    assert!(words.contains("scripts/setup.sh guest"), "{words}");
}

#[test]
fn a_missing_image_is_named_with_the_script_that_builds_it() {
    let dir = tempfile::tempdir().unwrap();
    let vm = stand_in(&dir, "exit 33");
    std::fs::remove_file(dir.path().join("bare/bare.elf")).unwrap();
    let words = failure(|| vm.start());
    assert!(words.contains("bare.elf is missing: build it with `guests/bare/build.sh`"), "{words}");
    let vm = Vm { qemu: vm.qemu, images: vm.images, ..Vm::linux(Machine::Q35, 1, &["smoke"]) };
    assert!(failure(|| vm.start()).contains("guests/linux/build.sh"));
}

#[test]
fn bare_reports_pass_only_when_complete() {
    let dir = tempfile::tempdir().unwrap();
    let good = "echo 'ok disks' >$console; echo 'skip disk0/x: why' >>$console";
    let done = "echo 'done: 1 ok, 0 failed, 1 skipped' >>$console";
    let report = BareReport::passed(stand_in(&dir, &format!("{good}; {done}; exit 33")).run());
    report.assert_made("disks");
    assert!(failure(|| report.assert_made("disk0/x")).contains("was not made"));
    assert!(failure(|| report.assert_nothing_skipped()).contains("disk0/x: why"));
    for script in [
        format!("{good}; exit 33"),
        format!("{good}; {done}; exit 35"),
        format!("{good}; {done}; echo noise >&2; exit 33"),
        format!("{good}; echo 'FAIL disk0/y: no' >>$console; {done}; exit 33"),
        "exit 33".to_owned(),
    ] {
        failure(|| BareReport::passed(stand_in(&dir, &script).run()));
    }
}

#[test]
fn linux_reports_pass_only_when_complete() {
    let dir = tempfile::tempdir().unwrap();
    let ended = |results: &str, script: &str| {
        let mut ended = stand_in(&dir, script).run();
        ended.results = results.to_owned();
        ended
    };
    let good = "sluice-guest=1\nx=1\n@begin log\nx=2\n@end log\ncheck.a=ok\nexit=0\n";
    let report = LinuxReport::passed(ended(good, "exit 1"));
    assert_eq!(report.number("x"), 1);
    report.assert_made("a");
    assert!(failure(|| report.assert_made("b")).contains("no result check.b"));
    assert!(failure(|| report.assert_value("x", "2")).contains("x is \"1\" and not \"2\""));
    for results in [
        "",
        "sluice-guest=1\ncheck.a=ok\n",
        "sluice-guest=1\ncheck.a=ok\nexit=1\n",
        "sluice-guest=1\ncheck.a=failed: why\ncheck.a=ok\nexit=0\n",
        "sluice-guest=1\nexit=0\nsluice-guest=1\n",
    ] {
        failure(|| LinuxReport::passed(ended(results, "exit 1")));
    }
    for script in ["exit 0", "exit 3", "echo noise >&2; exit 1"] {
        failure(|| LinuxReport::passed(ended(good, script)));
    }
}
