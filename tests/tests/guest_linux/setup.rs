//! What the suites share: where a disk is used and how, what the guest has to say of it, and the host's own tools.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::subject::Engine;
use sluice_tests::vm::{Daemon, LinuxReport, Machine, Vm};
use virtio_bindings::bindings::{virtio_blk, virtio_config, virtio_ring};

pub(crate) const MIB: usize = 1 << 20;
/// What the fio job `quick` may overwrite, from the start of the disk.
pub(crate) const QUICK_BYTES: usize = 16 * MIB;
pub(crate) const SECTOR: u64 = 512;

/// Where and how a disk is used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) machine: Machine,
    pub(crate) queues: u16,
    pub(crate) block: u32,
    pub(crate) engine: Engine,
    pub(crate) cache: &'static str,
}

impl Setup {
    /// A disk of so many bytes: random ones, or a sparse file.
    pub(crate) fn disk(&self, bytes: usize, content: Option<u64>) -> Disk {
        let disk = Disk::new(&self.spec(bytes, content));
        // The tests look at what is allocated, and at what is not written yet.
        File::open(disk.path()).unwrap().sync_all().unwrap();
        disk
    }

    pub(crate) fn spec(&self, bytes: usize, content: Option<u64>) -> DiskSpec {
        let serial = Some(format!("linux-{}-{}", self.queues, self.block));
        let (queues, logical_block) = (self.queues, Some(self.block));
        DiskSpec { bytes, content, queues, serial, logical_block, ..DiskSpec::default() }
    }

    pub(crate) fn daemon(&self, disks: &[&Disk]) -> Daemon {
        Daemon::start(self.engine, self.cache, disks)
    }

    /// A VM with a processor for each queue, on the first disk.
    pub(crate) fn vm(&self, daemon: &Daemon, jobs: &[&str]) -> Vm {
        self.vm_on(daemon.socket(0), jobs)
    }

    /// The same on a disk that somebody else serves.
    pub(crate) fn vm_on(&self, socket: &Path, jobs: &[&str]) -> Vm {
        Vm::linux(self.machine, self.queues, jobs).disk(socket, self.queues)
    }
}

pub(crate) const PC: Setup =
    Setup { machine: Machine::Q35, queues: 4, block: 512, engine: Engine::Uring, cache: "none" };

/// What the kernel says about a disk is what the daemon was told.
pub(crate) fn assert_described(report: &LinuxReport, name: &str, spec: &DiskSpec) {
    let key = |attribute: &str| format!("{name}.{attribute}");
    let block = spec.logical_block.unwrap().to_string();
    report.assert_value(&key("size_sectors"), &(spec.bytes as u64 / SECTOR).to_string());
    report.assert_value(&key("serial"), spec.serial.as_deref().unwrap());
    report.assert_value(&key("queues"), &spec.queues.to_string());
    report.assert_value(&key("queue.logical_block_size"), &block);
    report.assert_value(&key("ro"), if spec.read_only { "1" } else { "0" });
    report.assert_value(&key("cache_type"), "write back");
    let physical = report.number(&key("queue.physical_block_size"));
    assert!(physical.is_power_of_two() && physical >= 512, "physical blocks of {physical}");

    // A request of 1 MiB is one chain, also when each of its pages is a segment.
    assert!(report.number(&key("queue.max_segments")) >= 256);
    assert!(report.number(&key("queue.max_segment_size")) >= MIB as u64);
    assert!(report.number(&key("queue.max_hw_sectors_kb")) >= 1024);
    for limit in ["discard_max_bytes", "write_zeroes_max_bytes"] {
        let bytes = report.number(&key(&format!("queue.{limit}")));
        assert_eq!(bytes > 0, !spec.read_only, "{limit} of {bytes}");
    }
    if !spec.read_only {
        let granularity = report.number(&key("queue.discard_granularity"));
        assert!(
            granularity > 0 && granularity.is_multiple_of(u64::from(spec.logical_block.unwrap())),
            "{granularity}"
        );
    }
    assert_features(report.value(&key("features")), spec);
}

/// The features that Linux negotiates with every disk, and those of this one.
fn assert_features(negotiated: &str, spec: &DiskSpec) {
    let always = [
        virtio_blk::VIRTIO_BLK_F_SEG_MAX,
        virtio_blk::VIRTIO_BLK_F_SIZE_MAX,
        virtio_blk::VIRTIO_BLK_F_BLK_SIZE,
        virtio_blk::VIRTIO_BLK_F_TOPOLOGY,
        virtio_blk::VIRTIO_BLK_F_FLUSH,
        virtio_ring::VIRTIO_RING_F_INDIRECT_DESC,
        virtio_ring::VIRTIO_RING_F_EVENT_IDX,
        virtio_config::VIRTIO_F_VERSION_1,
    ];
    let changing = [
        (virtio_blk::VIRTIO_BLK_F_RO, spec.read_only),
        (virtio_blk::VIRTIO_BLK_F_MQ, spec.queues > 1),
        (virtio_blk::VIRTIO_BLK_F_DISCARD, !spec.read_only),
        (virtio_blk::VIRTIO_BLK_F_WRITE_ZEROES, !spec.read_only),
    ];
    for (bit, expected) in always.map(|bit| (bit, true)).into_iter().chain(changing) {
        let is_set = negotiated.as_bytes()[bit as usize] == b'1';
        assert_eq!(is_set, expected, "feature {bit} of {negotiated}");
    }
}

/// The fio job `quick` wrote and verified.
pub(crate) fn assert_fio_verified(report: &LinuxReport) {
    report.assert_made("fio.quick");
    for job in ["seq-1m-d4", "seq-4k-d1", "rand-4k-d32", "mixed-4k-256k-d16"] {
        report.assert_value(&format!("fio.{job}.error"), "0");
        assert!(report.number(&format!("fio.{job}.write.kib")) >= 4096, "{job} has written");
        assert!(report.number(&format!("fio.{job}.read.kib")) >= 4096, "{job} has read back");
    }
}

/// A job file: fio writes at random for so long and reads back what it has written, in two sizes.
pub(crate) fn endure(seconds: u32) -> String {
    let job = "rw=randwrite\nverify=crc32c\nverify_fatal=1\nverify_backlog=256\ntime_based=1\nsize=24m\n";
    format!(
        "[global]\nfilename=${{DEV}}\nioengine=libaio\ndirect=1\nruntime={seconds}\n{job}\
         [small]\nbs=4k\niodepth=16\noffset=0\n[large]\nbs=64k\niodepth=8\noffset=32m\n"
    )
}

/// The guest's kernel has nothing to say about its disk.
#[track_caller]
pub(crate) fn assert_unnoticed(console: &str) {
    for error in ["I/O error", "blk_update_request", "hung", "is not a head"] {
        assert!(!console.contains(error), "the guest has noticed: {error}\n{console}");
    }
}

/// Bytes that the file takes on the host's disk.
pub(crate) fn allocated(disk: &Disk) -> u64 {
    let file = File::open(disk.path()).unwrap();
    file.sync_all().unwrap();
    file.metadata().unwrap().blocks() * SECTOR
}

/// Fails the test with what a program of the host printed, if it fails.
pub(crate) fn run(program: &str, arguments: &[&str], package: &str) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}; install it with `apt-get install {package}`"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{text}{errors}", output.status);
    text
}

/// Requires that bytes are what they should be.
#[track_caller]
pub(crate) fn assert_bytes(what: &str, found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len(), "{what}: bytes");
    if let Some(at) = found.iter().zip(expected).position(|(found, expected)| found != expected) {
        panic!("{what}: byte {at:#x} is {:#x} and not {:#x}", found[at], expected[at]);
    }
}
