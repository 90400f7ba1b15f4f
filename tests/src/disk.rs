//! A disk for a test: what it is to be, and the file behind it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::fuse_disk::{FuseDisk, Kind};
use crate::fuse_export::{FuseExport, Injected};
use crate::loop_device::LoopDevice;
use crate::model::Model;
use crate::request::SECTOR;
use crate::rng::Rng;

/// What a test asks of the disk and of the device that serves it.
#[derive(Clone, Debug)]
pub struct DiskSpec {
    /// Size of the file.
    pub bytes: usize,
    /// Seed of the bytes in the file; none for a sparse file of zeroes.
    pub content: Option<u64>,
    /// Whether the guest may only read.
    pub read_only: bool,
    /// Virtqueues.
    pub queues: u16,
    /// The largest ring.
    pub queue_size: u16,
    /// What GET_ID answers; none for the device's default.
    pub serial: Option<String>,
    /// 512 or 4096; none for the device's default.
    pub logical_block: Option<u32>,
    /// The file is served as a block device with blocks of so many bytes; none for the plain file.
    pub device: Option<u32>,
    /// The cache mode, where a test is about it; else the subject's own.
    pub cache: Option<&'static str>,
    /// What discards and zeroes do.
    pub clears: Clears,
    /// The file is served as a disk that fails like this, and can be [frozen](FuseExport::freeze).
    pub faults: Option<Vec<Injected>>,
    /// Instead of the file, a disk of zeroes is served whose log tells all that is done to it.
    pub logged: Option<Kind>,
    /// More of the product's options, by their names on the command line.
    pub options: Vec<(&'static str, &'static str)>,
}

/// What discards and zeroes do: the options of the same names, none of each for the device's default.
#[derive(Clone, Debug, Default)]
pub struct Clears {
    /// `unmap` or `ignore`.
    pub discard: Option<&'static str>,
    /// In bytes.
    pub discard_granularity: Option<u32>,
    /// In bytes.
    pub discard_alignment: Option<u32>,
    /// Whether the guest may have ranges zeroed.
    pub write_zeroes: Option<bool>,
}

impl Default for DiskSpec {
    /// 8 MiB of random bytes, writable, one queue of at most 256.
    fn default() -> Self {
        DiskSpec {
            bytes: 8 << 20,
            content: Some(1),
            read_only: false,
            queues: 1,
            queue_size: 256,
            serial: Some("conformance".into()),
            logical_block: None,
            device: None,
            cache: None,
            clears: Clears::default(),
            faults: None,
            logged: None,
            options: Vec::new(),
        }
    }
}

impl DiskSpec {
    /// The default on a device with blocks of so many bytes; none, with a word on why, where there are no such devices.
    pub fn on_device(block: u32) -> Option<Self> {
        let disk = Disk::new(&DiskSpec { bytes: 1 << 20, ..DiskSpec::default() });
        match LoopDevice::attach(&disk.file(), block) {
            Ok(_) => Some(DiskSpec { device: Some(block), ..DiskSpec::default() }),
            Err(why) => {
                eprintln!("skipped: no loop devices with blocks of {block} here: {why}");
                None
            }
        }
    }
}

/// A file that is a disk, in a directory that vanishes with it.
#[derive(Debug)]
pub struct Disk {
    /// Detached before its file goes.
    device: Option<LoopDevice>,
    /// Ended before its file goes.
    export: Option<FuseExport>,
    logged: Option<FuseDisk>,
    dir: TempDir,
    /// What the disk was made from.
    pub spec: DiskSpec,
}

impl Disk {
    /// Makes the file.
    pub fn new(spec: &DiskSpec) -> Self {
        Self::new_in(&disk_dir(), spec)
    }

    /// Makes the file in a directory of its own in `parent`.
    pub fn new_in(parent: &Path, spec: &DiskSpec) -> Self {
        let dir = TempDir::with_prefix_in("disk-", parent).expect("a directory for a disk can be made");
        let mut disk = Disk { device: None, export: None, logged: None, dir, spec: spec.clone() };
        let file = File::create(disk.file()).expect("a disk file can be made");
        file.set_len(spec.bytes as u64).expect("a disk file can be sized");
        if let Some(seed) = spec.content {
            file.write_all_at(&Rng::new(seed).bytes(spec.bytes), 0).expect("a disk file can be filled");
        }
        let attach =
            |block| LoopDevice::attach(&disk.file(), block).expect("the test made sure of loop devices");
        disk.device = spec.device.map(attach);
        let start = |kind| FuseDisk::start(disk.dir(), spec.bytes, kind, spec.content.unwrap_or(1));
        disk.logged = spec.logged.map(start);
        disk.export = spec.faults.as_ref().map(|faults| FuseExport::start(&disk.file(), disk.dir(), faults));
        disk
    }

    /// The process that fails for it.
    ///
    /// # Panics
    /// If it was not to fail.
    pub fn export(&self) -> &FuseExport {
        self.export.as_ref().expect("a disk with faults")
    }

    /// The disk with a log.
    ///
    /// # Panics
    /// If it was not to have one.
    pub fn logged(&self) -> &FuseDisk {
        self.logged.as_ref().expect("a disk with a log")
    }

    /// What is to be served: the file, or the block device on it, or the disk with faults, or with a log.
    pub fn path(&self) -> PathBuf {
        if let Some(logged) = &self.logged {
            return logged.path().to_path_buf();
        }
        if let Some(export) = &self.export {
            return export.path().to_path_buf();
        }
        self.device.as_ref().map_or_else(|| self.file(), |device| device.path().to_path_buf())
    }

    /// The file.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// The directory of the file, for what else a subject writes.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What the file holds now.
    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.file()).expect("a disk file can be read")
    }

    /// The oracle for this disk, as long as nobody has written to it.
    pub fn model(&self) -> Model {
        let spec = &self.spec;
        let data = match spec.content {
            Some(seed) => Rng::new(seed).bytes(spec.bytes),
            None => vec![0; spec.bytes],
        };
        let block = spec
            .logical_block
            .or(spec.device)
            .map_or(SECTOR, |block| usize::try_from(block).expect("u32 fits usize"));
        Model::new(data, spec.read_only, block, spec.serial.as_deref())
    }
}

/// Where disk files go: `SLUICE_TEST_DIR`, else beside the test's executable. Direct I/O works in a build directory,
/// and in a temporary directory only where that is no tmpfs.
pub(crate) fn disk_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("SLUICE_TEST_DIR") {
        return dir.into();
    }
    let exe = std::env::current_exe().expect("a test knows its executable");
    exe.parent().expect("an executable is in a directory").to_path_buf()
}
