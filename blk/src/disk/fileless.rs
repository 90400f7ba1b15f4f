//! Disks without a file: in memory of the daemon, or nowhere.

use std::path::Path;
use std::sync::Arc;

use sluice_mem::PAGE_SIZE;
use sluice_mem::anon::AnonMem;

use super::open::choose_discards;
use super::{Cache, Disk, DiskError, DiskOptions, ImageLock, Locking, Medium, Storage, serial_of};
use crate::limits::QueueLimits;
use crate::sector::{SECTOR_SIZE, Sector};

/// Makes a disk of `bytes` bytes on a medium that is no file.
pub(super) fn make(options: &DiskOptions, bytes: u64) -> Result<Disk, DiskError> {
    let mut limits = limits(options.logical_block_size.unwrap_or(512))?;
    choose_discards(options, &mut limits)?;
    let block = limits.logical_block_size;
    if bytes == 0 || !bytes.is_multiple_of(u64::from(block)) {
        return Err(DiskError::Bytes { bytes, block });
    }
    let storage = match options.medium {
        Medium::Null { .. } => Storage::Null,
        _ => {
            let memory = AnonMem::new(bytes).map_err(|source| DiskError::Memory { bytes, source })?;
            Storage::Ram(Arc::new(memory))
        }
    };
    Ok(Disk {
        storage,
        medium: options.medium.clone(),
        capacity: Sector(bytes / SECTOR_SIZE),
        limits,
        cache: options.cache.unwrap_or(Cache::Writeback),
        read_only: options.read_only,
        engine: options.engine,
        identity: serial_of(Path::new(&options.medium.to_string())),
        discard: options.discard,
        write_zeroes: options.write_zeroes,
        secure_erase: false,
        lifetime: None,
        overlaps: Arc::default(),
        lock: ImageLock::new(None, Locking::Off),
        on_enospc: options.on_enospc,
        io_timeout: None,
    })
}

/// Any memory of the guest's will do; whole pages are what is copied, and given back, best.
fn limits(block: u32) -> Result<QueueLimits, DiskError> {
    if !matches!(block, 512 | 4096) {
        return Err(DiskError::OddBlockSize { asked: block });
    }
    let page = u32::try_from(PAGE_SIZE).expect("a page is small");
    Ok(QueueLimits {
        logical_block_size: block,
        physical_block_size: page,
        io_min: page,
        discard_granularity: page,
        discard_alignment: page,
        ..QueueLimits::default()
    })
}
