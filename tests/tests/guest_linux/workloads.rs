//! fio with verification, file systems and discarding, over both buses, with one and with four queues, both sizes of
//! blocks, both engines and both kinds of caching.

use sluice_tests::rng::Rng;
use sluice_tests::subject::Engine;
use sluice_tests::vm::{LinuxReport, Machine};

use crate::setup::{MIB, PC, Setup, allocated, assert_bytes, assert_described, assert_fio_verified, run};

/// fio, and then a file system that the host looks into: its structure by e2fsck, and a file that the guest copied.
fn a_file_system_works(setup: Setup, fio: &[&str]) {
    eprintln!("{setup:?}");
    let disk = setup.disk(64 * MIB, None);
    let mut daemon = setup.daemon(&[&disk]);
    let copied = Rng::new(5).bytes(3 * MIB + 1234);
    let vm = setup.vm(&daemon, &["smoke", "fio", "mkfs"]).word(&format!("sluice.fio={}", fio.join(",")));
    let report = LinuxReport::passed(vm.file("jobs/copied", &copied).run());
    assert_described(&report, "vda", &disk.spec);
    assert_fio_verified(&report);
    fio.iter().for_each(|name| report.assert_made(&format!("fio.{name}")));
    for check in ["read.last", "copy", "fsck", "checksums", "trim", "fsck.again", "checksums.again"] {
        report.assert_made(check);
    }
    daemon.assert_well();

    let image = disk.path().display().to_string();
    run("e2fsck", &["-f", "-n", &image], "e2fsprogs");
    let found = disk.dir().join("copied");
    run("debugfs", &["-R", &format!("dump /jobs/copied {}", found.display()), &image], "e2fsprogs");
    assert_bytes("the guest's copy of a file", &std::fs::read(found).unwrap(), &copied);
}

/// fio, and then discarding all of a file that was full: nothing of it is left on the host.
fn discarding_frees_the_file(setup: Setup) {
    eprintln!("{setup:?}");
    let disk = setup.disk(32 * MIB, Some(7));
    assert!(allocated(&disk) >= 32 * MIB as u64, "the file was full");
    let mut daemon = setup.daemon(&[&disk]);
    let vm = setup.vm(&daemon, &["smoke", "fio", "discard"]).word("sluice.fio=quick");
    let report = LinuxReport::passed(vm.run());
    assert_described(&report, "vda", &disk.spec);
    assert_fio_verified(&report);
    report.assert_value("discard.supported", "yes");
    report.assert_value("write_zeroes.supported", "yes");
    for check in ["discard.after", "zeroout.zeros", "zero_range.zeros", "punch_hole.zeros", "discard.all"] {
        report.assert_made(check);
    }
    daemon.assert_well();
    let left = allocated(&disk);
    assert!(left < MIB as u64 / 8, "{left} bytes of the file are still allocated");
    assert_bytes("the file that was discarded", &disk.bytes(), &vec![0; 32 * MIB]);
}

#[test]
fn fio_and_ext4_work_on_four_queues_of_a_pc_with_io_uring_and_direct_io() {
    a_file_system_works(PC, &["quick", "sectors"]);
}

#[test]
fn fio_and_ext4_work_on_one_queue_of_a_pc_with_pread_and_the_page_cache() {
    let setup = Setup { queues: 1, block: 4096, engine: Engine::Sync, cache: "writeback", ..PC };
    a_file_system_works(setup, &["quick"]);
}

#[test]
fn fio_and_discard_work_on_four_queues_of_a_microvm_with_io_uring_and_the_page_cache() {
    discarding_frees_the_file(Setup { machine: Machine::Microvm, cache: "writeback", ..PC });
}

#[test]
fn fio_and_discard_work_on_one_queue_of_a_microvm_with_pread_and_direct_io() {
    let machine = Machine::Microvm;
    discarding_frees_the_file(Setup { machine, queues: 1, block: 4096, engine: Engine::Sync, ..PC });
}
