//! The daemon is upgraded over and over while a guest boots, writes and verifies, makes a file system, reboots: it notices
//! nothing. QEMU does not connect again, so that a connection that is lost or begun anew would be its disk's end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use sluice_tests::disk::Disk;
use sluice_tests::lineage::Lineage;
use sluice_tests::rng::Rng;
use sluice_tests::subject::{arguments, sluice_path};
use sluice_tests::vm::{Ended, LinuxReport, Machine, Running};

use crate::setup::{MIB, PC, Setup, assert_unnoticed, endure};

/// About how often the daemon is upgraded while fio runs: `SLUICE_VM_UPGRADES`, else so often.
fn upgrades(default: u32) -> u32 {
    std::env::var("SLUICE_VM_UPGRADES").map_or(default, |count| count.parse().unwrap())
}

/// A daemon that is upgraded, of one or more disks.
struct Upgraded {
    daemon: Lineage,
    sockets: Vec<PathBuf>,
    rng: Rng,
    count: usize,
}

impl Upgraded {
    fn start(setup: Setup, disks: &[&Disk], seed: u64) -> Self {
        let dir = disks[0].dir();
        let sockets: Vec<_> = (0..disks.len()).map(|number| dir.join(format!("socket{number}"))).collect();
        let pairs: Vec<_> = disks.iter().copied().zip(sockets.iter().map(PathBuf::as_path)).collect();
        let arguments = arguments(setup.engine, setup.cache, &pairs, None);
        let daemon = Lineage::start(&sluice_path(), &arguments, dir, sockets.last().unwrap());
        Self { daemon, sockets, rng: Rng::for_test(seed), count: 0 }
    }

    fn socket(&self, number: usize) -> &Path {
        &self.sockets[number]
    }

    /// At some time within the next 0.3 s.
    fn upgrade_soon(&mut self) {
        std::thread::sleep(Duration::from_millis(self.rng.between(100, 300) as u64));
        self.daemon.upgrade();
        self.count += 1;
    }

    /// Ends it. As many front-ends have connected as there were, all upgrades have worked, and none of the daemons had anything to
    /// complain about.
    fn finish(self, front_ends: usize) {
        let log = self.daemon.log();
        let path = self.daemon.log_path().to_owned();
        self.daemon.end();
        assert_eq!(log.matches("a front-end has connected").count(), front_ends, "{log}");
        let pauses = pauses(&log);
        assert_eq!(pauses.len(), self.count, "{log}");
        let log = std::fs::read_to_string(path).unwrap();
        let is_complaint = |line: &str| line.contains(" WARN ") || line.contains(" ERROR ");
        assert!(!log.lines().any(is_complaint), "a daemon complains:\n{log}");
        let at = |share: usize| pauses[(pauses.len() * share).div_ceil(100) - 1];
        eprintln!(
            "{} upgrades; nobody has served for {} ms (median), {} ms (p99), {} ms (most)",
            pauses.len(),
            at(50),
            at(99),
            at(100)
        );
    }
}

/// For how many milliseconds nobody has served, each time, in ascending order.
fn pauses(log: &str) -> Vec<f64> {
    let told = log.lines().filter_map(|line| line.split_once("nobody has served for "));
    let mut pauses: Vec<f64> = told.map(|(_, time)| milliseconds(time)).collect();
    pauses.sort_by(f64::total_cmp);
    pauses
}

/// As [`Duration`] shows itself.
fn milliseconds(time: &str) -> f64 {
    let units = [("ms", 1.0), ("µs", 1e-3), ("s", 1e3)];
    let (number, factor) =
        units.iter().find_map(|(unit, factor)| Some((time.trim().strip_suffix(unit)?, factor))).unwrap();
    number.parse::<f64>().unwrap() * factor
}

/// How long the slowest of fio's requests has taken, as its report says.
fn longest_latency(ended: &Ended, name: &str) -> Duration {
    let (begin, end) = (format!("@begin fio.{name}.json\n"), format!("@end fio.{name}.json"));
    let text = ended.results.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end)).unwrap().0;
    let report: serde_json::Value = serde_json::from_str(text).unwrap();
    let jobs = report["jobs"].as_array().unwrap();
    let all = jobs.iter().flat_map(|job| ["read", "write"].map(|way| &job[way]["lat_ns"]["max"]));
    Duration::from_nanos(all.filter_map(serde_json::Value::as_u64).max().unwrap())
}

/// While the guest boots, while fio runs, and while it makes a file system.
fn is_upgraded_under_a_guest(setup: Setup, count: u32, seed: u64) {
    eprintln!("{setup:?}");
    let disk = setup.disk(64 * MIB, None);
    let mut daemon = Upgraded::start(setup, &[&disk], seed);
    // An upgrade every 0.2 s, and the time that it takes.
    let seconds = count * 3 / 10 + 2;
    let vm = setup.vm_on(daemon.socket(0), &["smoke", "fio", "mkfs"]).word("sluice.fio=endure");
    let mut vm = vm.file("fio/endure.fio", endure(seconds).as_bytes()).start();
    // A guest that stands still would else be awaited for minutes.
    let most = 10 * count as usize + 200;
    let mut at = |vm: &mut Running, what: &str, is_there: fn(&Running) -> bool| {
        vm.wait_until(what, |vm| {
            daemon.upgrade_soon();
            assert_unnoticed(&vm.console());
            assert!(daemon.count < most, "not after {most} upgrades: {what}\n{}", daemon.daemon.log());
            is_there(vm)
        });
        daemon.count
    };
    let begun = at(&mut vm, "fio runs", |vm| vm.console().contains("fio: endure"));
    let done = at(&mut vm, "fio is done", |vm| vm.results().contains("ran.fio="));
    let last = at(&mut vm, "there is a file system", |vm| vm.results().contains("check.fsck="));
    eprintln!("{begun} upgrades while it booted, {} under fio, {} under mkfs", done - begun, last - done);
    assert!(last >= count as usize, "{last} upgrades");
    let ended = vm.finish();
    assert_unnoticed(&ended.console);
    let longest = longest_latency(&ended, "endure");
    let report = LinuxReport::passed(ended);
    for check in ["fio.endure", "fsck", "checksums", "fsck.again", "checksums.again"] {
        report.assert_made(check);
    }
    eprintln!("fio's slowest request: {longest:?}");
    daemon.finish(1);
}

#[test]
fn a_guest_with_four_queues_does_not_notice_upgrades() {
    is_upgraded_under_a_guest(PC, upgrades(20), 15);
}

#[test]
fn a_guest_over_mmio_with_one_queue_does_not_notice_upgrades() {
    let setup = Setup { machine: Machine::Microvm, queues: 1, block: 4096, cache: "writeback", ..PC };
    is_upgraded_under_a_guest(setup, upgrades(20), 16);
}

/// By its own command, in the middle of writes, and its driver is taken off the disk and put back, all on a connection that its
/// front-end began with another process.
#[test]
fn a_guest_reboots_and_reloads_its_driver_under_upgrades() {
    let setup = Setup { queues: 2, ..PC };
    let disk = setup.disk(64 * MIB, None);
    let mut daemon = Upgraded::start(setup, &[&disk], 17);
    let vm = setup.vm_on(daemon.socket(0), &["reboots"]).word("sluice.reboots=1").rebooting();
    let mut vm = vm.start();
    vm.wait_until("it has done all", |vm| {
        daemon.upgrade_soon();
        vm.results().contains("check.area.after.load.3=")
    });
    let report = LinuxReport::passed(vm.finish());
    report.assert_made("area.after.reboot.1");
    report.assert_made("area.after.bind.busy.3");
    daemon.finish(1);
}

/// And one of them is reset, with requests in flight.
#[test]
fn two_guests_of_one_daemon_do_not_notice_upgrades() {
    let setups = [PC, Setup { machine: Machine::Microvm, block: 4096, queues: 2, ..PC }];
    let disks = setups.map(|setup| setup.disk(64 * MIB, None));
    let mut daemon = Upgraded::start(PC, &[&disks[0], &disks[1]], 18);
    let [mut first, mut second] = [0, 1].map(|number| {
        let vm = setups[number].vm_on(daemon.socket(number), &["fio"]).word("sluice.fio=endure");
        vm.file("fio/endure.fio", endure(5).as_bytes()).rebooting().start()
    });
    for vm in [&mut first, &mut second] {
        vm.wait_until("fio runs", |vm| vm.console().contains("fio: endure"));
    }
    for _ in 0..5 {
        daemon.upgrade_soon();
    }
    // Not the PC: QEMU 10.0 has ended there, once, by an assertion about its own map of the memory.
    second.reset();
    second.wait_until("fio runs again", |vm| {
        daemon.upgrade_soon();
        vm.console().matches("fio: endure").count() == 2
    });
    for _ in 0..5 {
        daemon.upgrade_soon();
    }
    for vm in [first, second] {
        let ended = vm.finish();
        assert_unnoticed(&ended.console);
        LinuxReport::passed(ended).assert_made("fio.endure");
    }
    daemon.finish(2);
}
