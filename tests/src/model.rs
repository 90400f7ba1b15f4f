//! The oracle: a disk as a vector of bytes, and the rules of virtio-blk (virtio 1.3, 5.2.6) in the plainest words.
//!
//! It is compared with every device, so it shares no code with any. What the specification leaves open is open here
//! too: a discarded sector reads as it was or as zeroes, until it is written again.

use std::fmt;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::request::{Extent, Request, SECTOR};

/// Done.
pub const OK: u8 = status(VIRTIO_BLK_S_OK);
/// Failed, by the guest's fault or the disk's.
pub const IOERR: u8 = status(VIRTIO_BLK_S_IOERR);
/// Not a request that this device knows.
pub const UNSUPP: u8 = status(VIRTIO_BLK_S_UNSUPP);
/// Length of a serial number.
const ID: usize = VIRTIO_BLK_ID_BYTES as usize;

const fn status(value: u32) -> u8 {
    assert!(value <= 0xff);
    (value & 0xff) as u8
}

/// What a device is to answer.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status byte.
    pub status: u8,
    /// What the device says it wrote: data and status.
    pub used: u32,
    /// The data, as much as the device writes.
    pub data: Vec<u8>,
}

impl Answer {
    /// No data, this status.
    pub fn status(status: u8) -> Self {
        Answer { status, used: 1, data: vec![] }
    }

    fn data(data: Vec<u8>) -> Self {
        let used = u32::try_from(data.len() + 1).expect("a request is shorter than 4 GiB");
        Answer { status: OK, used, data }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}, used.len {}, {} bytes of data", self.status, self.used, self.data.len())
    }
}

/// A disk that is nothing but its bytes.
#[derive(Clone)]
pub struct Model {
    data: Vec<u8>,
    /// Sectors that were discarded and not written since.
    discarded: Vec<bool>,
    read_only: bool,
    /// Transfers are whole blocks of so many bytes, at multiples of it.
    block: usize,
    serial: [u8; ID],
}

impl Model {
    /// A disk with these bytes, in blocks of `block`. A serial number is cut off or padded with zeroes to 20 bytes.
    pub fn new(data: Vec<u8>, read_only: bool, block: usize, serial: Option<&str>) -> Self {
        let mut id = [0; ID];
        for (to, from) in id.iter_mut().zip(serial.unwrap_or_default().bytes()) {
            *to = from;
        }
        let sectors = data.len() / SECTOR;
        Model { data, discarded: vec![false; sectors], read_only, block, serial: id }
    }

    /// The size in sectors.
    pub fn sectors(&self) -> u64 {
        self.discarded.len() as u64
    }

    /// The bytes of the disk.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// Does what a device is to do, and says what it is to answer.
    pub fn execute(&mut self, request: &Request) -> Answer {
        match request.kind {
            VIRTIO_BLK_T_IN => self.read(request),
            VIRTIO_BLK_T_FLUSH => Answer::status(OK),
            VIRTIO_BLK_T_GET_ID if request.room > 0 => {
                Answer::data(self.serial[..ID.min(request.room)].to_vec())
            }
            VIRTIO_BLK_T_GET_ID => Answer::status(IOERR),
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if self.read_only => {
                Answer::status(IOERR)
            }
            VIRTIO_BLK_T_OUT => Answer::status(self.write(request)),
            VIRTIO_BLK_T_DISCARD => Answer::status(self.change_extents(request, 0, Self::forget)),
            VIRTIO_BLK_T_WRITE_ZEROES => {
                Answer::status(self.change_extents(request, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP, Self::zero))
            }
            _ => Answer::status(UNSUPP),
        }
    }

    /// Whether data read from `sector` on is what the disk may hold: the model's, or zeroes where discarded.
    pub fn may_read_as(&self, sector: u64, data: &[u8]) -> bool {
        let first = usize::try_from(sector).expect("the sector is on the disk");
        data.chunks(SECTOR).enumerate().all(|(i, chunk)| {
            let at = (first + i) * SECTOR;
            chunk == &self.data[at..at + chunk.len()]
                || (self.discarded[first + i] && chunk.iter().all(|&byte| byte == 0))
        })
    }

    fn read(&self, request: &Request) -> Answer {
        match self.range(request.sector, request.room) {
            Some(range) => Answer::data(self.data[range].to_vec()),
            None => Answer::status(IOERR),
        }
    }

    fn write(&mut self, request: &Request) -> u8 {
        let Some(range) = self.range(request.sector, request.out.len()) else { return IOERR };
        self.discarded[range.start / SECTOR..range.end / SECTOR].fill(false);
        self.data[range].copy_from_slice(&request.out);
        OK
    }

    /// The bytes that a transfer covers, if it is whole blocks, at least one, and all on the disk.
    fn range(&self, sector: u64, len: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(sector).ok()?.checked_mul(SECTOR)?;
        let end = start.checked_add(len)?;
        let whole = start.is_multiple_of(self.block) && len.is_multiple_of(self.block) && len > 0;
        (whole && end <= self.data.len()).then_some(start..end)
    }

    /// Applies `change` to each segment, after all of them were found good.
    fn change_extents(
        &mut self,
        request: &Request,
        flags: u32,
        change: fn(&mut Self, std::ops::Range<usize>),
    ) -> u8 {
        let bytes = &request.out;
        if bytes.is_empty() || !bytes.len().is_multiple_of(16) {
            return IOERR;
        }
        let extents: Vec<Extent> = bytes.chunks(16).map(Extent::from_bytes).collect();
        if extents.iter().any(|e| e.flags & !flags != 0) {
            return UNSUPP;
        }
        let ranges: Option<Vec<_>> = extents.iter().map(|e| self.sector_range(e)).collect();
        let Some(ranges) = ranges else { return IOERR };
        for range in ranges {
            change(self, range);
        }
        OK
    }

    fn sector_range(&self, extent: &Extent) -> Option<std::ops::Range<usize>> {
        let end =
            extent.sector.checked_add(u64::from(extent.sectors)).filter(|&end| end <= self.sectors())?;
        Some(usize::try_from(extent.sector).ok()?..usize::try_from(end).ok()?)
    }

    fn forget(&mut self, sectors: std::ops::Range<usize>) {
        self.discarded[sectors].fill(true);
    }

    fn zero(&mut self, sectors: std::ops::Range<usize>) {
        self.data[sectors.start * SECTOR..sectors.end * SECTOR].fill(0);
        self.discarded[sectors].fill(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_answers_as_the_specification_says() {
        let mut model = Model::new(vec![7; 4 * SECTOR], false, SECTOR, Some("serial"));
        assert_eq!(
            model.execute(&Request::read(3, 512)),
            Answer { status: OK, used: 513, data: vec![7; 512] }
        );
        assert_eq!(model.execute(&Request::read(3, 1024)), Answer::status(IOERR));
        assert_eq!(model.execute(&Request::read(1 << 55, 512)), Answer::status(IOERR));
        assert_eq!(model.execute(&Request::write(1, vec![1; 512])), Answer::status(OK));
        assert_eq!(model.data()[511..514], [7, 1, 1]);
        assert_eq!(model.execute(&Request::id(3)), Answer { status: OK, used: 4, data: b"ser".to_vec() });
        assert_eq!(model.execute(&Request::other(99, vec![], 5)), Answer::status(UNSUPP));
    }

    #[test]
    fn a_bad_segment_stops_all_segments() {
        let mut model = Model::new(vec![7; 4 * SECTOR], false, SECTOR, None);
        let good = Extent { sector: 0, sectors: 1, flags: 1 };
        let bad = Extent { sector: 4, sectors: 1, flags: 0 };
        assert_eq!(model.execute(&Request::zeroes(&[good, bad])).status, IOERR);
        assert_eq!(model.execute(&Request::discard(&[good])).status, UNSUPP);
        assert_eq!(model.data(), [7; 4 * SECTOR]);
        assert_eq!(model.execute(&Request::zeroes(&[good])).status, OK);
        assert!(model.may_read_as(0, &[0; 512]) && !model.may_read_as(0, &[7; 512]));
        let discard = Extent { sector: 1, sectors: 2, flags: 0 };
        assert_eq!(model.execute(&Request::discard(&[discard])).status, OK);
        assert!(model.may_read_as(1, &[7; 512]) && model.may_read_as(1, &[0; 1024]));
    }
}
