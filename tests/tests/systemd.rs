//! The example unit of `share/`, under a systemd of its own: a guest's driver writes all the time while the service is reloaded,
//! restarted and killed, and all of its writes are answered once.
//!
//! A user's systemd runs without being the first process, and takes the same units. It has to find the traces of one that is,
//! which it does in a /run of its own. What a unit may ask of name spaces it cannot give; those lines are switched off.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sluice_tests::disk::Disk;
use sluice_tests::frontend::{Inflight, Session};
use sluice_tests::generations::{RING, Writer, spec};
use sluice_tests::guest::VERSION_1;
use sluice_tests::subject::sluice_path;

/// How long systemd may take to start, and to do what it is told.
const PATIENCE: Duration = Duration::from_secs(60);
const UNIT: &str = include_str!("../../share/sluice.service");

/// A systemd with one service, ended when dropped.
struct Systemd {
    process: Child,
    runtime: PathBuf,
}

impl Systemd {
    /// One that keeps its files in `dir`, and has the unit there.
    fn start(dir: &Path, unit: &str, changes: &str) -> Self {
        let runtime = dir.join("run");
        let units = runtime.join("systemd/user");
        fs::create_dir_all(units.join("sluice.service.d")).unwrap();
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(units.join("sluice.service"), unit).unwrap();
        fs::write(units.join("sluice.service.d/changes.conf"), changes).unwrap();
        let script = "mount -t tmpfs none /run && mkdir -p /run/systemd/system && exec /usr/lib/systemd/systemd --user";
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", script]);
        command.env("XDG_RUNTIME_DIR", &runtime).env("HOME", dir).stdin(Stdio::null());
        let log = File::create(dir.join("systemd.log")).unwrap();
        let process = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let systemd = Self { process, runtime };
        let is_up = || systemd.tell(&["show", "sluice"]).status.success();
        await_that(&dir.join("systemd.log"), "systemd runs", is_up);
        systemd
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("systemctl");
        command.arg("--user").args(words).env("XDG_RUNTIME_DIR", &self.runtime);
        command
    }

    fn tell(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// What it knows of the service.
    fn number(&self, property: &str) -> i32 {
        let words = ["show", "sluice", "--value", "--property", property];
        let value = String::from_utf8(self.tell(&words).stdout).unwrap();
        value.trim().parse().unwrap_or_else(|_| panic!("{property}={value}"))
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
        self.process.wait().unwrap();
    }
}

#[track_caller]
fn await_that(log: &Path, what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        let log = || fs::read_to_string(log).unwrap_or_default();
        assert!(begun.elapsed() < PATIENCE, "{what}: not in time\n{}", log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The service of a disk, and a driver that writes to it.
struct Rig {
    systemd: Systemd,
    session: Session,
    inflight: Option<Inflight>,
    writer: Writer,
    log: PathBuf,
    // Last: the others are in its directory.
    disk: Disk,
}

impl Rig {
    fn start() -> Self {
        let disk = Disk::new(&spec());
        let (config, log) = (disk.dir().join("sluice.toml"), disk.dir().join("log"));
        let socket = disk.dir().join("run/sluice/disk");
        let (path, file) = (socket.display(), disk.path());
        fs::write(
            &config,
            format!("[[disk]]\nsocket-path = \"{path}\"\nblk-file = \"{}\"\n", file.display()),
        )
        .unwrap();
        let unit = UNIT.replace("/usr/local/bin/sluice", sluice_path().to_str().unwrap());
        let unit = unit.replace("/etc/sluice.toml", config.to_str().unwrap());
        let off = ["ProtectSystem", "ProtectKernelTunables", "ProtectControlGroups"];
        assert!(off.iter().all(|name| unit.contains(name)));
        let off: String = off.map(|name| format!("{name}=no\n")).concat();
        // No service is restarted as often as this one.
        let limit = "[Unit]\nStartLimitIntervalSec=0\n";
        let changes = format!("{limit}[Service]\nStandardError=append:{}\n{off}", log.display());
        let systemd = Systemd::start(disk.dir(), &unit, &changes);
        let started = systemd.tell(&["start", "sluice"]);
        assert!(started.status.success(), "{}", fs::read_to_string(&log).unwrap_or_default());
        let writer = Writer::new(false, 41);
        let session = Session::connect(&socket);
        let mut rig = Self { systemd, session, inflight: None, writer, log, disk };
        rig.boot();
        rig
    }

    /// What a front-end does with a connection.
    fn boot(&mut self) {
        self.session.negotiate(VERSION_1).unwrap();
        self.session.set_mem_table(self.writer.memory.regions()).unwrap();
        if self.inflight.is_none() {
            self.inflight = Some(self.session.make_inflight(1, RING).unwrap());
        }
        self.session.set_inflight(self.inflight.as_ref().unwrap()).unwrap();
        let ring = &self.writer.ring;
        self.session.start_ring(0, ring, ring.used_idx(), true).unwrap();
    }

    /// Has systemd do something with the service under load, after which another process serves, on the same connection.
    fn tell(&mut self, word: &str) {
        let before = self.systemd.number("MainPID");
        let mut told = self.systemd.command(&[word, "sluice"]).spawn().unwrap();
        let status = loop {
            self.writer.work(1);
            if let Some(status) = told.try_wait().unwrap() {
                break status;
            }
        };
        assert!(status.success(), "{word}: {status}");
        let systemd = &self.systemd;
        await_that(&self.log, "another one serves", || systemd.number("MainPID") != before);
        self.writer.work(5);
        self.writer.settle(&self.disk.path(), word);
        assert_eq!(self.systemd.number("NFileDescriptorStore"), 0, "what is taken is kept no more");
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.said());
        }
    }
}

#[test]
fn the_example_unit_is_reloaded_restarted_and_killed_under_a_driver_that_writes() {
    let mut rig = Rig::start();
    for _ in 0..5 {
        rig.tell("reload");
        rig.tell("restart");
    }
    assert_eq!(rig.said().matches("a front-end has connected").count(), 1);
    // Restart=on-failure, and the front-end connects again.
    rig.writer.work(5);
    kill_process(Pid::from_raw(rig.systemd.number("MainPID")).unwrap(), Signal::KILL).unwrap();
    assert!(rig.session.closed_within(PATIENCE));
    await_that(&rig.log, "it is started again", || rig.systemd.number("NRestarts") == 1);
    rig.session = Session::connect_trying(&rig.disk.dir().join("run/sluice/disk"), Duration::from_millis(5));
    rig.boot();
    rig.writer.work(5);
    rig.writer.settle(&rig.disk.path(), "killed");
    assert!(rig.systemd.tell(&["stop", "sluice"]).status.success());
    assert!(rig.session.closed_within(PATIENCE), "what is stopped is not kept");
    let is_complaint = |line: &str| line.contains(" WARN ") || line.contains(" ERROR ");
    assert!(!rig.said().lines().any(is_complaint));
}
