//! The daemon is upgraded under load, again and again, and a guest notices nothing: not its driver, whose writes are all
//! answered once, not its front-end, whose connection stays open. And upgrades that fail, after which all is as before.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use sluice_tests::disk::Disk;
use sluice_tests::frontend::Session;
use sluice_tests::generations::{RING, Writer, spec};
use sluice_tests::guest::VERSION_1;
use sluice_tests::holdings::Holdings;
use sluice_tests::lineage::Lineage;
use sluice_tests::subject::sluice_path;
use sluice_tests::systemd::Systemd;

/// How often the daemon is upgraded: `SLUICE_UPGRADES`, else so often.
fn upgrades(default: usize) -> usize {
    std::env::var("SLUICE_UPGRADES").map_or(default, |count| count.parse().unwrap())
}

/// A disk, who serves it, and a driver that writes to it.
struct Rig {
    daemon: Lineage,
    session: Session,
    writer: Writer,
    program: PathBuf,
    options: Vec<String>,
    socket: PathBuf,
    // Last: the others are in its directory.
    disk: Disk,
}

impl Rig {
    fn new(seed: u64, options: &[&str], keeps_inflight: bool) -> Self {
        Self::managed(seed, options, keeps_inflight, None)
    }

    /// As the service of a manager.
    fn managed(seed: u64, options: &[&str], keeps_inflight: bool, manager: Option<&Systemd>) -> Self {
        let disk = Disk::new(&spec());
        let program = disk.dir().join("sluice");
        fs::hard_link(sluice_path(), &program)
            .or_else(|_| fs::copy(sluice_path(), &program).map(|_| ()))
            .unwrap();
        let socket = disk.dir().join("socket");
        let mut args = vec![
            format!("--socket-path={}", socket.display()),
            format!("--blk-file={}", disk.path().display()),
            "--num-queues=2".to_owned(),
        ];
        args.extend(options.iter().map(|option| (*option).to_owned()));
        let daemon = match manager {
            None => Lineage::start(&program, &args, disk.dir(), &socket),
            Some(manager) => start_managed(manager, &program, &args, disk.dir(), &socket),
        };
        let writer = Writer::new(false, seed);
        let mut session = Session::connect(&socket);
        session.negotiate(VERSION_1).unwrap();
        session.set_mem_table(writer.memory.regions()).unwrap();
        if keeps_inflight {
            let inflight = session.make_inflight(2, RING).unwrap();
            session.set_inflight(&inflight).unwrap();
        }
        session.start_ring(0, &writer.ring, 0, true).unwrap();
        Self { daemon, session, writer, program, options: args, socket, disk }
    }

    /// Keeps as many writes under way as can be, while something else is done. Returns for how long none was answered at most.
    fn write_while(&mut self, done: impl Fn() -> bool) -> Duration {
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        loop {
            for _ in 0..8 {
                self.writer.write();
            }
            self.writer.ring.submit();
            if self.writer.take() > 0 {
                longest = longest.max(last.elapsed());
                last = Instant::now();
            } else if done() {
                return longest.max(last.elapsed());
            }
        }
    }

    /// Is upgraded under load. Returns for how long nothing was answered at most.
    fn upgrade(&mut self) -> Duration {
        let command = Command::new(&self.program).arg("upgrade").arg(&self.socket).spawn().unwrap();
        let asked = std::thread::spawn(move || command.wait_with_output().unwrap().status.success());
        let longest = self.write_while(|| asked.is_finished());
        assert!(asked.join().unwrap(), "{}", self.daemon.log());
        let before = self.daemon.pid();
        self.daemon.follow();
        assert_ne!(self.daemon.pid(), before, "{}", self.daemon.log());
        longest
    }

    fn settle(&mut self, what: &str) {
        self.writer.settle(&self.disk.path(), what);
    }

    /// Puts a script in the program's place.
    fn replace_program(&self, script: &str) {
        let new = self.program.with_extension("new");
        fs::write(&new, script).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, &self.program).unwrap();
    }

    /// Puts the program back where it was.
    fn restore_program(&self) {
        let new = self.program.with_extension("new");
        fs::copy(sluice_path(), &new).unwrap();
        fs::rename(new, &self.program).unwrap();
    }

    /// Descriptors do not pile up from one process to the next. A few come and go with what they do.
    fn check_holds_no_more_than(&self, fds: usize) {
        let holds = || Holdings::of(self.daemon.pid()).fds;
        self.daemon.await_that("it gives descriptors back", || holds() <= fds + 2);
    }

    /// All is as it was: the driver, the front-end, and who serves them.
    fn check_serves(&mut self, what: &str) {
        self.writer.work(5);
        self.settle(what);
        assert_eq!(self.session.config(20, 4).unwrap(), 512_u32.to_le_bytes(), "{what}");
    }
}

fn start_managed(
    manager: &Systemd,
    program: &Path,
    options: &[String],
    dir: &Path,
    socket: &Path,
) -> Lineage {
    let script = manager.script(program, options);
    Lineage::start(Path::new("/bin/bash"), &["-c", &script], dir, socket)
}

/// Median, 99 in 100, and the longest.
fn told(mut pauses: Vec<Duration>) -> String {
    pauses.sort_unstable();
    let at = |share: usize| pauses[(pauses.len() * share).div_ceil(100).max(1) - 1];
    format!("p50 {:?}, p99 {:?}, max {:?}", at(50), at(99), at(100))
}

fn upgrade_often(mut rig: Rig, count: usize) {
    let undisturbed: Vec<_> = (0..count)
        .map(|_| {
            let until = Instant::now() + Duration::from_millis(40);
            rig.write_while(|| Instant::now() > until)
        })
        .collect();
    rig.upgrade();
    let fds = Holdings::of(rig.daemon.pid()).fds;
    let mut pauses = Vec::new();
    for upgrade in 0..count {
        pauses.push(rig.upgrade());
        if upgrade % 10 == 0 {
            rig.settle(&format!("upgrade {upgrade}"));
            rig.check_serves("messages");
        }
    }
    rig.settle("the end");
    rig.check_serves("the end");
    eprintln!("{count} upgrades under load, {} writes; no answer for: {}", rig.writer.writes(), told(pauses));
    eprintln!("without upgrades, as often: {}", told(undisturbed));
    assert_eq!(rig.session.stop_ring(0).unwrap(), rig.writer.ring.next_avail());
    // Whoever asks connects for a moment, and is refused.
    assert_eq!(rig.daemon.log().matches("a front-end has connected").count(), 1, "it has connected again");
    assert_eq!(rig.daemon.processes(), 2, "the daemon and its starter");
    rig.check_holds_no_more_than(fds);
}

#[test]
fn a_guest_does_not_notice_upgrades_under_load() {
    let count = upgrades(60);
    upgrade_often(Rig::new(7, &[], true), count.div_ceil(2));
    upgrade_often(Rig::new(8, &["--cache=writeback", "--workers=1"], false), count.div_ceil(4));
    upgrade_often(Rig::new(9, &["--sandbox=none", "--engine=sync"], true), count.div_ceil(4));
}

#[test]
fn a_program_that_cannot_take_over_changes_nothing() {
    let mut rig = Rig::new(10, &[], true);
    rig.check_serves("at first");
    let holdings = Holdings::of(rig.daemon.pid());
    fs::rename(&rig.program, rig.program.with_extension("away")).unwrap();
    rig.daemon.fail_to_upgrade("the next daemon has ended");
    rig.check_serves("nothing to start");
    rig.replace_program("#!/bin/sh\nexit 1\n");
    rig.daemon.fail_to_upgrade("the next daemon has ended");
    rig.check_serves("one that ends");
    rig.replace_program("#!/bin/sh\nexec sleep 100\n");
    rig.daemon.fail_to_upgrade("does not answer");
    rig.check_serves("one that says nothing");
    holdings.await_of(rig.daemon.pid());
    rig.restore_program();
    rig.upgrade();
    rig.check_serves("the right program again");
    rig.daemon.await_that("what was started in vain has ended", || rig.daemon.processes() == 2);
}

/// As far as it gets with fewer and fewer descriptors, or less and less memory: when the driver is served again, by whomever,
/// nothing is lost.
#[test]
fn a_successor_that_fails_on_its_way_changes_nothing() {
    let mut rig = Rig::new(11, &[], true);
    for (limit, value) in
        [("n", 8), ("n", 14), ("n", 18), ("n", 22), ("n", 26), ("v", 60_000), ("v", 200_000)]
    {
        let program = sluice_path();
        rig.replace_program(&format!(
            "#!/bin/sh\nulimit -{limit} {value}\nexec {} \"$@\"\n",
            program.display()
        ));
        let before = rig.daemon.log().len();
        rig.daemon.signal(Signal::USR2);
        let path = rig.daemon.log_path().to_owned();
        rig.write_while(|| {
            let log = fs::read_to_string(&path).unwrap();
            ["served as before", "nobody has served"].iter().any(|end| log[before..].contains(end))
        });
        rig.daemon.follow();
        rig.check_serves(&format!("ulimit -{limit} {value}"));
    }
    assert!(rig.daemon.log().contains("served as before"), "{}", rig.daemon.log());
}

#[test]
fn a_disk_that_has_become_another_one_stays_with_who_serves_it() {
    let mut rig = Rig::new(12, &[], true);
    let disk = fs::File::options().write(true).open(rig.disk.path()).unwrap();
    let bytes = disk.metadata().unwrap().len();
    disk.set_len(bytes - 4096).unwrap();
    rig.daemon.fail_to_upgrade("capacity in sectors is not as the guest knows it");
    rig.daemon.await_that("the other one has ended", || rig.daemon.processes() == 2);
    assert!(rig.socket.exists(), "the socket is still who serves it's");
    disk.set_len(bytes).unwrap();
    rig.check_serves("another size");
    rig.upgrade();
    rig.check_serves("the right size again");
}

/// A configuration file, and the files in it.
fn configured(dir: &Path, disks: &[&str], more: &str) -> PathBuf {
    let config = dir.join("sluice.toml");
    let tables = disks.iter().map(|name| {
        let image = dir.join(format!("{name}.img"));
        fs::File::options().create(true).append(true).open(&image).unwrap().set_len(1 << 20).unwrap();
        let socket = dir.join(format!("{name}.socket"));
        format!("[[disk]]\nsocket-path = {socket:?}\nblk-file = {image:?}\n")
    });
    fs::write(&config, format!("{more}\n{}", tables.collect::<String>())).unwrap();
    config
}

#[test]
fn the_next_daemon_reads_the_configuration_again() {
    let dir = tempfile::tempdir().unwrap();
    let config = configured(dir.path(), &["a", "b"], "");
    let args = ["serve".into(), format!("--config={}", config.display())];
    let mut daemon = Lineage::start(&sluice_path(), &args, dir.path(), &dir.path().join("b.socket"));
    let serves = |name: &str| {
        Session::connect(&dir.path().join(format!("{name}.socket"))).negotiate(VERSION_1).is_ok()
    };
    configured(dir.path(), &["b", "c", "a"], "workers = 1");
    daemon.upgrade();
    assert!(serves("a") && serves("b") && serves("c"));
    configured(dir.path(), &["b", "c"], "");
    daemon.fail_to_upgrade("the next daemon has ended");
    let why = "a.socket is served, and not described any more";
    daemon.await_that("it says why", || daemon.log().contains(why));
    configured(dir.path(), &["b", "c", "a"], "workers = \"many\"");
    daemon.fail_to_upgrade("the next daemon has ended");
    assert!(serves("a") && serves("b") && serves("c"));
    configured(dir.path(), &["b", "c", "a"], "");
    daemon.upgrade();
    assert!(serves("a") && serves("b") && serves("c"));
    daemon.end();
    for name in ["a", "b", "c"] {
        let socket = dir.path().join(format!("{name}.socket"));
        assert!(!socket.exists(), "the last daemon removes what the first has made");
    }
}

#[test]
fn inherited_sockets_are_handed_on() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let fd = OwnedFd::from(listener);
    fcntl_setfd(&fd, FdFlags::empty()).unwrap();
    // As a service manager passes them: from descriptor 3 on, told by variables.
    let script = format!(
        "exec 3<&{} && LISTEN_FDS=1 LISTEN_PID=$$ exec {} --blk-file={}",
        fd.as_raw_fd(),
        sluice_path().display(),
        image.display()
    );
    let mut daemon = Lineage::start(Path::new("/bin/bash"), &["-c", &script], dir.path(), &socket);
    let serves = || Session::connect(&socket).negotiate(VERSION_1).is_ok();
    assert!(serves());
    for _ in 0..3 {
        daemon.upgrade();
        assert!(serves());
    }
}

#[test]
fn a_daemon_of_a_user_of_its_own_is_upgraded() {
    let mut rig = Rig::new(13, &["--user=nobody"], true);
    rig.upgrade();
    rig.upgrade();
    rig.check_serves("nobody");
    let status = fs::read_to_string(format!("/proc/{}/status", rig.daemon.pid())).unwrap();
    assert!(status.lines().any(|line| line == "CapEff:\t0000000000000000"), "{status}");
}

#[test]
fn whoever_asks_is_told_how_it_has_ended() {
    let mut rig = Rig::new(14, &[], true);
    let ask = |rig: &Rig, whom: &str| {
        let output = rig.daemon.ask(whom);
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (code, said) = ask(&rig, &rig.daemon.pid().to_string());
    assert!(code == Some(0) && said.ends_with("has handed over\n"), "{said}");
    rig.daemon.follow();
    rig.check_serves("asked by number");
    let (code, said) = ask(&rig, &std::process::id().to_string());
    assert!(code == Some(1) && said.contains("is no daemon of sluice that can be upgraded"), "{said}");
    let (code, said) = ask(&rig, "/nowhere");
    assert!(
        code == Some(1) && said.contains("/nowhere is no process, and nobody serves a socket there"),
        "{said}"
    );
    // A process that has ended.
    let mut child = Command::new("/bin/true").spawn().unwrap();
    child.wait().unwrap();
    assert_eq!(ask(&rig, &child.id().to_string()).0, Some(1));
}

impl Rig {
    /// Is ended by its manager, under load, and started again a while later.
    fn restart(&mut self, manager: &mut Systemd, between: impl FnOnce(&mut Systemd)) {
        for _ in 0..32 {
            self.writer.write();
        }
        self.writer.ring.submit();
        self.daemon.end();
        between(manager);
        self.daemon = start_managed(manager, &self.program, &self.options, self.disk.dir(), &self.socket);
        manager.await_state("READY=1");
    }
}

#[test]
fn a_service_that_is_restarted_goes_on_with_its_front_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Systemd::new(dir.path(), 64);
    let mut rig = Rig::managed(15, &[], true, Some(&manager));
    manager.await_state("READY=1");
    let fds = Holdings::of(rig.daemon.pid()).fds;
    for round in 0..10 {
        rig.restart(&mut manager, |manager| {
            manager.await_state("STOPPING=1");
            // Connection, listener, memory, the account of what is in flight, kick, call, err, and what is said of them.
            assert!(manager.stored() >= 7);
        });
        assert_eq!(manager.stored(), 0, "what is taken is stored no more");
        rig.settle(&format!("restart {round}"));
        rig.check_serves("restarted");
    }
    assert_eq!(rig.daemon.log().matches("a front-end has connected").count(), 1, "it has connected again");
    rig.check_holds_no_more_than(fds);
    // An upgrade tells who serves now.
    rig.daemon.upgrade();
    manager.await_state(&format!("MAINPID={}", rig.daemon.pid()));
    rig.check_serves("upgraded");
}

/// The parent of a process, and whether it is stopped.
fn parent_and_state(pid: u32) -> (u32, bool) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let mut fields = stat.rsplit(") ").next().unwrap().split(' ');
    let state = fields.next().unwrap();
    (fields.next().unwrap().parse().unwrap(), state == "T")
}

/// A manager waits for the end of its children only, of which the next daemon is one when what has started it has ended.
#[test]
fn a_manager_is_told_of_the_next_daemon_when_that_is_its_child() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Systemd::new(dir.path(), 64);
    let mut rig = Rig::managed(18, &[], true, Some(&manager));
    manager.await_state("READY=1");
    let starter_file = dir.path().join("starter");
    let script = "#!/bin/sh\necho $PPID > '{file}.new' && mv '{file}.new' '{file}'\nkill -STOP $PPID\nexec '{sluice}' \"$@\"\n";
    let script = script.replace("{file}", starter_file.to_str().unwrap());
    rig.replace_program(&script.replace("{sluice}", sluice_path().to_str().unwrap()));
    rig.daemon.signal(Signal::USR2);
    rig.daemon.await_that("the next one serves", || rig.daemon.log().contains("goes on with a front-end"));
    rig.writer.work(5);
    let starter: u32 = fs::read_to_string(&starter_file).unwrap().trim().parse().unwrap();
    assert!(parent_and_state(starter).1, "it is stopped");
    std::thread::sleep(Duration::from_millis(50));
    assert!(!manager.has_heard("MAINPID="), "it is told of a process that is not its child");
    kill_process(Pid::from_raw(starter.cast_signed()).unwrap(), Signal::CONT).unwrap();
    manager.await_state("MAINPID=");
    rig.daemon.follow();
    assert_eq!(parent_and_state(rig.daemon.pid()).0, std::process::id());
    rig.check_serves("upgraded");
}

#[test]
fn a_service_whose_store_is_too_small_or_has_lost_something_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut manager = Systemd::new(dir.path(), 64);
    let mut rig = Rig::managed(16, &[], true, Some(&manager));
    manager.await_state("READY=1");
    rig.settle("at first");
    rig.restart(&mut manager, Systemd::lose);
    assert!(rig.daemon.log().contains("begins anew"), "{}", rig.daemon.log());
    assert_eq!(manager.stored(), 0);
    assert!(rig.session.closed_within(Duration::from_secs(5)), "the connection is lost");
    assert!(Session::connect(&rig.socket).negotiate(VERSION_1).is_ok());
    let small = tempfile::tempdir().unwrap();
    let mut manager = Systemd::new(small.path(), 3);
    let mut rig = Rig::managed(17, &[], true, Some(&manager));
    rig.daemon.end();
    assert_eq!(manager.stored(), 0);
    assert!(rig.daemon.log().contains("FileDescriptorStoreMax=3"), "{}", rig.daemon.log());
    assert!(!rig.socket.exists() && rig.session.closed_within(Duration::from_secs(5)));
}
