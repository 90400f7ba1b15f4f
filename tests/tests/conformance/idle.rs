//! Disks that are connected and quiet cost nothing, and do not look as if they waited for something.
//!
//! What a process costs is what the kernel has counted of its threads, what it waits for what the kernel says of the control
//! group that it is in. Both stand still, or they do not: no time is compared with another.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::driver::PATIENCE;
use sluice_tests::guest::{Drive, Guest};
use sluice_tests::memory::GuestMemory;
use sluice_tests::request::{Request, SECTOR};
use sluice_tests::shape::Shape;
use sluice_tests::subject::Subject;

sluice_tests::suite! {
    quiet_disks_cost_no_context_switch_and_no_cpu: [SeveralDisks],
    quiet_disks_do_not_look_as_if_they_waited_for_io: [SeveralDisks],
}

/// How long a process is watched.
const WATCH: Duration = Duration::from_millis(300);

/// Two guests on one daemon, which have done something and do nothing more, and its process.
fn quiet_guests(subject: Subject) -> ([Guest; 2], u32) {
    let disks = [Disk::new(&DiskSpec::default()), Disk::new(&DiskSpec::default())];
    let served = subject.serve_two(disks.each_ref());
    let pid = served[0].pid().expect("the product is a process");
    let ([one, two], [served_one, served_two]) = (disks, served);
    let connect = |disk, served| {
        let mut guest = Guest::connect(subject, disk, served, &Drive::default(), GuestMemory::new());
        for round in 0..20 {
            guest.check(&Request::write(round, vec![0x51; SECTOR]), &Shape::default());
            guest.check(&Request::read(round, 8 * SECTOR), &Shape::default());
        }
        guest
    };
    ([connect(one, served_one), connect(two, served_two)], pid)
}

/// The context switches of all threads of a process, and the nanoseconds that they were on a CPU.
fn activity(pid: u32) -> (u64, u64) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    let tasks: Vec<_> = tasks.map(|task| task.unwrap().path()).collect();
    assert!(tasks.len() > 1, "it has workers");
    let switches = |task: &PathBuf| {
        let status = fs::read_to_string(task.join("status")).unwrap();
        let lines = status.lines().filter_map(|line| line.split_once("ctxt_switches:"));
        lines.map(|(_, count)| count.trim().parse::<u64>().unwrap()).sum::<u64>()
    };
    let on_cpu = |task: &PathBuf| {
        let times = fs::read_to_string(task.join("schedstat")).unwrap();
        times.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    (tasks.iter().map(switches).sum(), tasks.iter().map(on_cpu).sum())
}

/// Waits until a process does nothing for a while. What it had done until then.
fn wait_for_rest(pid: u32) -> (u64, u64) {
    let deadline = Instant::now() + PATIENCE;
    let mut before = activity(pid);
    loop {
        sleep(Duration::from_millis(50));
        let now = activity(pid);
        if now == before {
            return now;
        }
        assert!(Instant::now() < deadline, "it never rests: {before:?}, {now:?} switches and nanoseconds");
        before = now;
    }
}

fn quiet_disks_cost_no_context_switch_and_no_cpu(subject: Subject) {
    let (mut guests, pid) = quiet_guests(subject);
    let before = wait_for_rest(pid);
    sleep(WATCH);
    assert_eq!(activity(pid), before, "{subject}: switches, and nanoseconds on a CPU");
    for guest in &mut guests {
        guest.check(&Request::read(0, SECTOR), &Shape::default());
    }
}

/// A control group with one process, until dropped.
struct ControlGroup {
    parent: PathBuf,
    path: PathBuf,
    pid: u32,
}

impl ControlGroup {
    /// None, and it says why, where this user can make none.
    fn of(pid: u32) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/mounts").expect("there is a list of mounts");
        let mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let Some(mount) = mounts.into_iter().find(|mount| mount[2] == "cgroup2") else {
            eprintln!("skipped: control groups (version 2) are not mounted");
            return None;
        };
        let parent = PathBuf::from(mount[1]);
        let group = Self { path: parent.join(format!("sluice-test-{pid}")), parent, pid };
        let made = fs::create_dir(&group.path).and_then(|()| move_process(pid, &group.path));
        let pressure = made.and_then(|()| fs::read(group.path.join("io.pressure")));
        pressure.map_err(|error| eprintln!("skipped: no control group of its own: {error}")).ok()?;
        Some(group)
    }

    /// For how many microseconds its processes have waited for I/O.
    fn io_pressure_us(&self) -> u64 {
        let pressure = fs::read_to_string(self.path.join("io.pressure")).expect("it was there before");
        let some = pressure.lines().find(|line| line.starts_with("some ")).expect("a line of some");
        let (_, total) = some.split_once("total=").expect("a total at the end");
        total.parse().expect("a number")
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let _ = move_process(self.pid, &self.parent);
        let _ = fs::remove_dir(&self.path);
    }
}

fn move_process(pid: u32, group: &Path) -> std::io::Result<()> {
    fs::write(group.join("cgroup.procs"), pid.to_string())
}

/// Whether Linux can be told that a wait in a ring is not one for I/O: since 6.15.
fn has_waits_without_iowait() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (6, 15)
}

fn quiet_disks_do_not_look_as_if_they_waited_for_io(subject: Subject) {
    if !has_waits_without_iowait() {
        eprintln!("skipped: before Linux 6.15 every wait in a ring looks like one for I/O");
        return;
    }
    let (mut guests, pid) = quiet_guests(subject);
    let Some(group) = ControlGroup::of(pid) else { return };
    // A sleep that began before it was moved counts too, but is over after this.
    for guest in &mut guests {
        guest.check(&Request::read(0, SECTOR), &Shape::default());
    }
    wait_for_rest(pid);
    let before = group.io_pressure_us();
    sleep(WATCH);
    assert_eq!(group.io_pressure_us(), before, "{subject}: microseconds of waiting for I/O");
}
