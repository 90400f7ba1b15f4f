//! What the reference device does for a request: the rules of virtio 1.3, 5.2.6, on a plain file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FallocateFlags;
use virtio_bindings::virtio_blk as blk;
use vm_memory::GuestMemoryMmap;

use super::EXTENTS_MAX;
use super::chain::Buffers;
use crate::disk::{Disk, DiskSpec};

const SECTOR: u64 = 512;
const HEADER: usize = 16;
const ID: usize = 20;
/// More than SEG_MAX * SIZE_MAX would be legal; no test needs it, and one request must not take all memory.
const DATA_MAX: usize = 64 << 20;

/// A request failed: the status to report.
type Refusal = u32;

/// The file, and what outlives a connection.
#[derive(Clone, Debug)]
pub struct Backing {
    file: Arc<File>,
    sectors: u64,
    read_only: bool,
    /// Transfers are whole blocks, of so many bytes.
    block: u64,
    serial: [u8; ID],
    writeback: Arc<AtomicBool>,
}

impl Backing {
    /// Opens the file of a disk.
    pub fn open(disk: &Disk) -> Self {
        Self::open_at(&disk.path(), &disk.spec).expect("a disk file can be opened")
    }

    /// Opens any file as the disk that is described.
    ///
    /// # Errors
    /// When it cannot be opened for what it is to be.
    pub fn open_at(path: &Path, spec: &DiskSpec) -> io::Result<Self> {
        let file = File::options().read(true).write(!spec.read_only).open(path)?;
        let mut serial = [0; ID];
        let text = spec.serial.as_deref().unwrap_or("reference").as_bytes();
        let len = text.len().min(ID);
        serial[..len].copy_from_slice(&text[..len]);
        Ok(Backing {
            file: Arc::new(file),
            sectors: spec.bytes as u64 / SECTOR,
            read_only: spec.read_only,
            block: spec.logical_block.unwrap_or(512).into(),
            serial,
            writeback: Arc::new(AtomicBool::new(true)),
        })
    }

    /// The size of the disk.
    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether writes wait for a flush to become durable.
    pub(super) fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    /// Switches between write-back and write-through.
    pub(super) fn set_writeback(&self, on: bool) {
        self.writeback.store(on, Ordering::Relaxed);
    }

    /// Does a request and returns the number of bytes written to the driver.
    pub(super) fn execute(&self, buffers: &Buffers, memory: &GuestMemoryMmap) -> u32 {
        let (status, written) = match self.request(buffers, memory) {
            Ok(data) => match buffers.scatter(memory, &data) {
                Some(()) => (blk::VIRTIO_BLK_S_OK, data.len()),
                None => (blk::VIRTIO_BLK_S_IOERR, 0),
            },
            Err(status) => (status, 0),
        };
        let status = u8::try_from(status).expect("a status is a byte");
        let reported = buffers.set_status(memory, status).map_or(0, |()| 1);
        u32::try_from(written + reported).expect("a request is shorter than 4 GiB")
    }

    /// Does a request and returns the data for the driver.
    fn request(&self, buffers: &Buffers, memory: &GuestMemoryMmap) -> Result<Vec<u8>, Refusal> {
        if !buffers.are_there(memory) {
            return Err(blk::VIRTIO_BLK_S_IOERR);
        }
        let readable = buffers.gather(memory, DATA_MAX).ok_or(blk::VIRTIO_BLK_S_IOERR)?;
        if readable.len() < HEADER || buffers.disordered() || buffers.room() > DATA_MAX {
            return Err(blk::VIRTIO_BLK_S_IOERR);
        }
        let (header, data) = readable.split_at(HEADER);
        let kind = u32::from_le_bytes(header[..4].try_into().expect("four bytes"));
        let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
        let changes = [blk::VIRTIO_BLK_T_OUT, blk::VIRTIO_BLK_T_DISCARD, blk::VIRTIO_BLK_T_WRITE_ZEROES];
        if self.read_only && changes.contains(&kind) {
            return Err(blk::VIRTIO_BLK_S_IOERR);
        }
        match kind {
            blk::VIRTIO_BLK_T_IN => self.read(sector, buffers.room()),
            blk::VIRTIO_BLK_T_OUT => self.write(sector, data).map(|()| vec![]),
            blk::VIRTIO_BLK_T_FLUSH => self.sync().map(|()| vec![]),
            blk::VIRTIO_BLK_T_GET_ID if buffers.room() > 0 => {
                Ok(self.serial[..ID.min(buffers.room())].to_vec())
            }
            blk::VIRTIO_BLK_T_GET_ID => Err(blk::VIRTIO_BLK_S_IOERR),
            blk::VIRTIO_BLK_T_DISCARD => self.clear(data, true).map(|()| vec![]),
            blk::VIRTIO_BLK_T_WRITE_ZEROES => self.clear(data, false).map(|()| vec![]),
            _ => Err(blk::VIRTIO_BLK_S_UNSUPP),
        }
    }

    fn read(&self, sector: u64, len: usize) -> Result<Vec<u8>, Refusal> {
        let offset = self.offset(sector, len as u64)?;
        let mut data = vec![0; len];
        self.file.read_exact_at(&mut data, offset).map_err(|_| blk::VIRTIO_BLK_S_IOERR)?;
        Ok(data)
    }

    fn write(&self, sector: u64, data: &[u8]) -> Result<(), Refusal> {
        let offset = self.offset(sector, data.len() as u64)?;
        self.file.write_all_at(data, offset).map_err(|_| blk::VIRTIO_BLK_S_IOERR)?;
        self.settle()
    }

    fn sync(&self) -> Result<(), Refusal> {
        self.file.sync_data().map_err(|_| blk::VIRTIO_BLK_S_IOERR)
    }

    /// With write-through, what a request changed is durable before the request is done.
    fn settle(&self) -> Result<(), Refusal> {
        if self.writeback() { Ok(()) } else { self.sync() }
    }

    /// The byte offset of a transfer that is whole blocks, at least one, and all on the disk.
    fn offset(&self, sector: u64, len: u64) -> Result<u64, Refusal> {
        let end = sector.checked_add(len / SECTOR).ok_or(blk::VIRTIO_BLK_S_IOERR)?;
        let whole = len.is_multiple_of(self.block) && sector.is_multiple_of(self.block / SECTOR);
        if whole && len > 0 && end <= self.sectors {
            Ok(sector * SECTOR)
        } else {
            Err(blk::VIRTIO_BLK_S_IOERR)
        }
    }

    /// DISCARD and WRITE_ZEROES: each range is checked before the first is touched.
    fn clear(&self, data: &[u8], discard: bool) -> Result<(), Refusal> {
        let mut extents = Vec::new();
        if data.is_empty() || !data.len().is_multiple_of(16) || data.len() / 16 > EXTENTS_MAX as usize {
            return Err(blk::VIRTIO_BLK_S_IOERR);
        }
        for segment in data.chunks(16) {
            let sector = u64::from_le_bytes(segment[..8].try_into().expect("eight bytes"));
            let count = u64::from(u32::from_le_bytes(segment[8..12].try_into().expect("four bytes")));
            let flags = u32::from_le_bytes(segment[12..].try_into().expect("four bytes"));
            if flags > u32::from(!discard) {
                return Err(blk::VIRTIO_BLK_S_UNSUPP);
            }
            if sector.checked_add(count).is_none_or(|end| end > self.sectors) {
                return Err(blk::VIRTIO_BLK_S_IOERR);
            }
            extents.push((sector * SECTOR, count * SECTOR, discard || flags == 1));
        }
        for (offset, len, unmap) in extents.into_iter().filter(|&(_, len, _)| len > 0) {
            let how = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
            let how = how | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&self.file, how, offset, len).map_err(|_| blk::VIRTIO_BLK_S_IOERR)?;
        }
        self.settle()
    }
}
