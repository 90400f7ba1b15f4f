//! Disks that vanish with the test.

use std::sync::Arc;

use sluice_blk::disk::{Cache, Disk, DiskOptions, EngineKind};
use tempfile::NamedTempFile;

use crate::device::{Device, DeviceOptions};

/// A disk in a temporary file.
#[derive(Debug)]
pub(crate) struct TestDisk {
    /// The file.
    pub(crate) file: NamedTempFile,
    /// How it is opened.
    pub(crate) options: DiskOptions,
}

impl TestDisk {
    /// A disk of so many sectors, all zero, served by the sync engine out of the page cache.
    pub(crate) fn new(sectors: u64) -> Self {
        let file = NamedTempFile::new().expect("a temporary file");
        file.as_file().set_len(sectors * 512).expect("a sparse file");
        let options = DiskOptions {
            cache: Some(Cache::Writeback),
            engine: EngineKind::Sync,
            logical_block_size: Some(512),
            ..DiskOptions::new(file.path())
        };
        Self { file, options }
    }

    /// The same, opened in another way.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut DiskOptions)) -> Self {
        change(&mut self.options);
        self
    }

    /// The disk, opened.
    pub(crate) fn open(&self) -> Disk {
        Disk::open(&self.options).expect("a disk that can be opened")
    }

    /// A device of it with so many queues.
    pub(crate) fn device(&self, num_queues: u16) -> Arc<Device> {
        let options = DeviceOptions {
            num_queues,
            queue_size: 256,
            serial: Some("test serial".to_owned()),
            memory_budget: None,
            in_order: false,
        };
        Arc::new(Device::new(self.open(), &options).expect("good options"))
    }
}
