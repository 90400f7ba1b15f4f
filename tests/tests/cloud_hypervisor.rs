//! The bare-metal guest on Cloud Hypervisor, a front-end with a life of its own: it keeps what is in flight, connects again, and
//! moves a guest with the device's state. The daemon is killed, ended, upgraded, and the guest reboots and moves, in the middle of
//! its checks, which all pass.
//!
//! Not among the checks of each change, as Cloud Hypervisor is no package of the systems that these run on, and needs a
//! /dev/kvm: `SLUICE_CLOUD_HYPERVISOR=PROGRAM cargo test -p sluice-tests --test cloud_hypervisor -- --ignored`, with
//! `ch-remote` in the program's folder.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::lineage::Lineage;
use sluice_tests::rng::Rng;
use sluice_tests::subject::{Engine, arguments, sluice_path};
use sluice_tests::vm::Daemon;

const GUEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../guests/.cache/bare/bare.elf");
/// The guest takes some seconds, where KVM emulates each of its instructions.
const PATIENCE: Duration = Duration::from_secs(120);

fn program(name: &str) -> PathBuf {
    let hypervisor = std::env::var_os("SLUICE_CLOUD_HYPERVISOR");
    PathBuf::from(hypervisor.expect("SLUICE_CLOUD_HYPERVISOR names the program")).with_file_name(name)
}

/// A Cloud Hypervisor. Ended when dropped.
struct Vmm {
    process: Child,
    dir: PathBuf,
    name: &'static str,
}

impl Vmm {
    /// One that can be told what to do, with these arguments beside.
    fn start(dir: &Path, name: &'static str, arguments: &[String]) -> Self {
        let log = fs::File::create(dir.join(format!("{name}.log"))).unwrap();
        let mut command = Command::new(program("cloud-hypervisor"));
        // Its filter of system calls is not always made for the C library that it was linked with.
        command.args(["--seccomp=false", "--api-socket"]).arg(dir.join(name)).args(arguments);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Self { process, dir: dir.to_owned(), name }
    }

    /// The guest, on a disk.
    fn boot(disk: &Disk, socket: &Path) -> Self {
        let console = disk.dir().join("console");
        let arguments = [
            format!("--kernel={GUEST}"),
            "--cmdline=sluice.disks=1".to_owned(),
            "--cpus=boot=1".to_owned(),
            "--memory=size=64M,shared=on".to_owned(),
            format!("--serial=file={}", console.display()),
            "--console=off".to_owned(),
            format!("--disk=vhost_user=on,socket={},num_queues=1,queue_size=128", socket.display()),
        ];
        Self::start(disk.dir(), "vmm", &arguments)
    }

    fn tell(&self, words: &[&str]) -> Child {
        let mut command = Command::new(program("ch-remote"));
        command.arg("--api-socket").arg(self.dir.join(self.name)).args(words);
        command.stdout(Stdio::null()).spawn().unwrap()
    }

    fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// Waits until the guest has ended, and requires that its checks have passed.
    #[track_caller]
    fn finish(mut self) {
        let until = Instant::now() + PATIENCE;
        while self.is_running() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        let report = console(&self.dir);
        let log = fs::read_to_string(self.dir.join(format!("{}.log", self.name))).unwrap_or_default();
        // Where it has moved to its console begins anew, so the lines are not counted here but by the guest.
        let last =
            report.lines().last().and_then(|line| line.strip_prefix("done: ")?.split_once(" ok, 0 failed,"));
        let passed = last.map_or(0, |(count, _)| count.parse().unwrap());
        assert!(passed > 30 && !report.contains("FAIL"), "{report}\n{log}");
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        self.process.wait().unwrap();
    }
}

fn console(dir: &Path) -> String {
    fs::read_to_string(dir.join("console")).unwrap_or_default()
}

fn disk() -> Disk {
    Disk::new(&DiskSpec { content: None, serial: Some("cloud".to_owned()), ..DiskSpec::default() })
}

/// Does something to the daemon over and over, as long as the guest makes its checks.
fn while_it_runs(disk: &Disk, vmm: &mut Vmm, seed: u64, mut act: impl FnMut()) {
    let mut rng = Rng::for_test(seed);
    let mut count = 0;
    let until = Instant::now() + PATIENCE;
    while !console(disk.dir()).contains("ok disk0/start") {
        assert!(Instant::now() < until && vmm.is_running(), "{}", console(disk.dir()));
        std::thread::sleep(Duration::from_millis(10));
    }
    while vmm.is_running() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(rng.between(20, 250) as u64));
        act();
        count += 1;
    }
    eprintln!("{count} times");
    assert!(count > 5, "the guest was too quick");
}

#[test]
#[ignore = "needs Cloud Hypervisor, see above"]
fn a_guest_does_not_notice_kills() {
    let disk = disk();
    let mut daemon = Daemon::start(Engine::Uring, "none", &[&disk]);
    let mut vmm = Vmm::boot(&disk, daemon.socket(0));
    let mut kill = true;
    while_it_runs(&disk, &mut vmm, 31, || {
        if kill {
            daemon.kill()
        } else {
            daemon.end()
        }
        daemon.restart(Engine::Uring, "none", &disk);
        kill = !kill;
    });
    vmm.finish();
    daemon.assert_serves();
}

#[test]
#[ignore = "needs Cloud Hypervisor, see above"]
fn a_guest_does_not_notice_upgrades() {
    let disk = disk();
    let socket = disk.dir().join("socket");
    let arguments = arguments(Engine::Uring, "none", &[(&disk, &socket)], None);
    let mut daemon = Lineage::start(&sluice_path(), &arguments, disk.dir(), &socket);
    let mut vmm = Vmm::boot(&disk, &socket);
    while_it_runs(&disk, &mut vmm, 32, || daemon.upgrade());
    vmm.finish();
    let log = daemon.log();
    assert_eq!(log.matches("a front-end has connected").count(), 1, "{log}");
    daemon.end();
}

#[test]
#[ignore = "needs Cloud Hypervisor, see above"]
fn a_guest_reboots_in_the_middle_of_its_io() {
    let disk = disk();
    let mut daemon = Daemon::start(Engine::Uring, "none", &[&disk]);
    let vmm = Vmm::boot(&disk, daemon.socket(0));
    let mut rng = Rng::for_test(33);
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(rng.between(500, 2000) as u64));
        assert!(vmm.tell(&["reboot"]).wait().unwrap().success());
    }
    vmm.finish();
    daemon.assert_well();
}

/// Each of the two daemons has the disk's lock at a time. The guest looks for its disk at the same socket there, so the first
/// daemon's is given another name.
#[test]
#[ignore = "needs Cloud Hypervisor, see above"]
fn a_guest_moves_and_does_not_notice() {
    let disk = disk();
    let dir = disk.dir();
    let (mut from, mut to) =
        (Daemon::start(Engine::Uring, "none", &[&disk]), Daemon::start(Engine::Uring, "none", &[&disk]));
    let (socket, there) = (dir.join("socket"), dir.join("there"));
    std::os::unix::fs::symlink(from.socket(0), &socket).unwrap();
    let vmm = Vmm::boot(&disk, &socket);
    while !console(dir).contains("ok disk0/first-block") {
        std::thread::sleep(Duration::from_millis(10));
    }
    fs::remove_file(&socket).unwrap();
    std::os::unix::fs::symlink(to.socket(0), &socket).unwrap();
    let new = Vmm::start(dir, "new", &[]);
    let until = Instant::now() + PATIENCE;
    while !dir.join("new").exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    let way = format!("unix:{}", there.display());
    let mut receives = new.tell(&["receive-migration", &format!("receiver_url={way}")]);
    while !there.exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(!console(dir).contains("done:"), "the guest was too quick");
    let mut sends = vmm.tell(&["send-migration", &format!("destination_url={way}")]);
    assert!(sends.wait().unwrap().success() && receives.wait().unwrap().success());
    new.finish();
    for daemon in [&mut from, &mut to] {
        daemon.assert_well();
    }
}
