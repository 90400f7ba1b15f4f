//! What happens to a guest in the middle of its I/O: it is reset, reboots, takes its driver off the disk, loses the disk and
//! gets it back, is given more memory. Each time what it had flushed is there, the daemon has nothing to complain about, and
//! in the end it holds what it held before.

use std::time::Duration;

use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::frontend::Session;
use sluice_tests::guest::VERSION_1;
use sluice_tests::holdings::Holdings;
use sluice_tests::vm::{Daemon, LinuxReport, Machine, Running, Vm};

use crate::setup::{MIB, PC, Setup, endure};

/// A daemon with a disk of zeroes, and what it holds.
pub(crate) struct Stage {
    pub(crate) daemon: Daemon,
    pub(crate) before: Holdings,
    /// It outlives the daemon.
    pub(crate) disk: Disk,
}

impl Stage {
    pub(crate) fn new(setup: Setup, options: &[(&'static str, &'static str)]) -> Self {
        let disk = Disk::new(&DiskSpec { options: options.to_vec(), ..setup.spec(64 * MIB, None) });
        let daemon = setup.daemon(&[&disk]);
        // When a first front-end was served, all is there that stays.
        let mut session = Session::connect(daemon.socket(0));
        session.negotiate(VERSION_1).unwrap();
        drop(session);
        let before = Holdings::settled_of(daemon.pid());
        Self { daemon, before, disk }
    }

    /// Waits for the guest's end, which has to be a good one, and looks at what it leaves.
    fn finish(mut self, vm: Running) -> LinuxReport {
        let report = LinuxReport::passed(vm.finish());
        self.daemon.assert_well();
        self.before.await_of(self.daemon.pid());
        drop(self.disk);
        report
    }
}

#[test]
fn a_guest_reboots_and_reloads_its_driver() {
    let setup = Setup { queues: 2, ..PC };
    let stage = Stage::new(setup, &[]);
    let vm = setup.vm(&stage.daemon, &["reboots"]).word("sluice.reboots=2").rebooting();
    let report = stage.finish(vm.start());
    report.assert_made("area.after.reboot.2");
    for step in ["bind", "bind.busy", "load"] {
        report.assert_made(&format!("area.after.{step}.3"));
    }
}

#[test]
fn a_guest_over_mmio_reboots_and_reloads_its_driver() {
    let setup = Setup { machine: Machine::Microvm, queues: 1, block: 4096, cache: "writeback", ..PC };
    let stage = Stage::new(setup, &[]);
    let vm = setup.vm(&stage.daemon, &["reboots"]).word("sluice.reboots=1").rebooting();
    let report = stage.finish(vm.start());
    report.assert_made("area.after.reboot.1");
    report.assert_made("area.after.load.3");
}

/// The disk is pulled out by the front-end, whose connection stays, and put in again, so many times.
fn is_unplugged_and_plugged(stage: Stage, vm: &Vm, device: &str) {
    const TIMES: u32 = 3;
    let mut vm = vm.clone().word(&format!("sluice.plugs={TIMES}")).start();
    for number in 1..=TIMES {
        let (unplug, plug) = (format!("hotplug: unplug {number}"), format!("hotplug: plug {number}"));
        vm.wait_until(&unplug, |vm| vm.console().contains(&unplug));
        vm.command("device_del disk");
        vm.wait_until(&plug, |vm| vm.console().contains(&plug));
        // The guest has let go of it, and QEMU does so a moment later.
        vm.wait_until_takes(&format!("device_add {device}"));
    }
    let report = stage.finish(vm);
    report.assert_made(&format!("area.after.plug.{TIMES}"));
    report.assert_made("area.write.last");
}

#[test]
fn a_disk_is_unplugged_from_a_pc_and_plugged_in_again() {
    let setup = Setup { machine: Machine::Pc, queues: 2, ..PC };
    let stage = Stage::new(setup, &[("in-order", "on")]);
    let vm = Vm::linux(setup.machine, 2, &["hotplug"]).disk_with(stage.daemon.socket(0), 2, "id=disk");
    is_unplugged_and_plugged(stage, &vm, "vhost-user-blk-pci,chardev=c0,num-queues=2,id=disk");
}

#[test]
fn a_disk_is_unplugged_from_a_port_of_pci_express_and_plugged_in_again() {
    let setup = Setup { queues: 1, ..PC };
    let stage = Stage::new(setup, &[]);
    let vm = Vm::linux(setup.machine, 1, &["hotplug"]).device("pcie-root-port,id=port0,chassis=1");
    let vm = vm.disk_with(stage.daemon.socket(0), 1, "id=disk,bus=port0");
    is_unplugged_and_plugged(stage, &vm, "vhost-user-blk-pci,chardev=c0,num-queues=1,id=disk,bus=port0");
}

#[test]
fn memory_is_plugged_in_and_out_while_a_guest_writes() {
    const DIMMS: u32 = 3;
    let setup = Setup { queues: 2, ..PC };
    let stage = Stage::new(setup, &[("in-order", "on")]);
    let vm = setup.vm(&stage.daemon, &["memory"]).growing_to(2048).word("memhp_default_state=online_movable");
    let vm = vm.word("sluice.grows=300").file("fio/endure.fio", endure(8).as_bytes());
    let mut vm = vm.start();
    vm.wait_until("fio runs", |vm| vm.console().contains("fio: endure"));
    for number in 0..DIMMS {
        std::thread::sleep(Duration::from_secs(1));
        vm.command(&format!("object_add memory-backend-memfd,id=more{number},size=128M,share=on"));
        vm.command(&format!("device_add pc-dimm,id=dimm{number},memdev=more{number}"));
    }
    vm.wait_until("fio runs again", |vm| vm.console().contains("memory: unplug"));
    vm.command(&format!("device_del dimm{}", DIMMS - 1));
    let report = stage.finish(vm);
    report.assert_made("fio.endure");
    report.assert_made("memory.used");
    report.assert_made("fio.large");
    report.assert_made("memory.shrunk");
    report.assert_made("fio.small");
}
