//! virtio-blk requests (virtio 1.3, 5.2.6): what they say, not how they lie in memory ([`crate::shape`]).
//!
//! ```text
//! readable: header (16 bytes) | data of OUT, DISCARD, WRITE_ZEROES
//! writable: data of IN, GET_ID | status (1 byte)
//! ```

use std::fmt;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

/// The unit of all positions in virtio-blk, whatever the block size.
pub const SECTOR: usize = 512;
/// Length of a request header.
pub const HEADER: usize = 16;

/// A range of a DISCARD or WRITE_ZEROES request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First sector.
    pub sector: u64,
    /// Number of sectors.
    pub sectors: u32,
    /// The flags; bit 0 is unmap.
    pub flags: u32,
}

impl Extent {
    /// The segment as it goes over the wire.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.sector.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.sectors.to_le_bytes());
        bytes[12..].copy_from_slice(&self.flags.to_le_bytes());
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Panics
    /// If it is not 16 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let sector = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
        Extent { sector, sectors: u32_at(8), flags: u32_at(12) }
    }
}

/// A request: header fields, what the device reads after the header, and how much it may write before the status.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// VIRTIO_BLK_T_*.
    pub kind: u32,
    /// First sector.
    pub sector: u64,
    /// Data for the device.
    pub out: Vec<u8>,
    /// Room for data from the device.
    pub room: usize,
}

impl Request {
    /// Reads `len` bytes.
    pub fn read(sector: u64, len: usize) -> Self {
        Request { kind: VIRTIO_BLK_T_IN, sector, out: vec![], room: len }
    }

    /// Writes the bytes.
    pub fn write(sector: u64, data: Vec<u8>) -> Self {
        Request { kind: VIRTIO_BLK_T_OUT, sector, out: data, room: 0 }
    }

    /// Makes everything written before durable.
    pub fn flush() -> Self {
        Request { kind: VIRTIO_BLK_T_FLUSH, sector: 0, out: vec![], room: 0 }
    }

    /// Asks for the serial number.
    pub fn id(len: usize) -> Self {
        Request { kind: VIRTIO_BLK_T_GET_ID, sector: 0, out: vec![], room: len }
    }

    /// Tells that the ranges are no longer needed.
    pub fn discard(extents: &[Extent]) -> Self {
        let out = extents.iter().flat_map(|e| e.to_bytes()).collect();
        Request { kind: VIRTIO_BLK_T_DISCARD, sector: 0, out, room: 0 }
    }

    /// Writes zeroes to the ranges.
    pub fn zeroes(extents: &[Extent]) -> Self {
        Request { kind: VIRTIO_BLK_T_WRITE_ZEROES, ..Self::discard(extents) }
    }

    /// A request of any type.
    pub fn other(kind: u32, out: Vec<u8>, room: usize) -> Self {
        Request { kind, sector: 0, out, room }
    }

    /// The sectors that the request touches: first and one past the last.
    pub fn extents(&self) -> Vec<(u64, u64)> {
        let len = self.out.len().max(self.room) as u64;
        match self.kind {
            VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT => {
                vec![(self.sector, self.sector.saturating_add(len.div_ceil(SECTOR as u64)))]
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                let segments = self.out.chunks_exact(16).map(Extent::from_bytes);
                segments.map(|e| (e.sector, e.sector.saturating_add(e.sectors.into()))).collect()
            }
            _ => vec![],
        }
    }

    /// The header as it goes over the wire.
    pub fn header(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&self.kind.to_le_bytes());
        bytes[8..].copy_from_slice(&self.sector.to_le_bytes());
        bytes
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.kind {
            VIRTIO_BLK_T_IN => "IN",
            VIRTIO_BLK_T_OUT => "OUT",
            VIRTIO_BLK_T_FLUSH => "FLUSH",
            VIRTIO_BLK_T_GET_ID => "GET_ID",
            VIRTIO_BLK_T_DISCARD => "DISCARD",
            VIRTIO_BLK_T_WRITE_ZEROES => "WRITE_ZEROES",
            _ => "type",
        };
        let (kind, sector) = (self.kind, self.sector);
        write!(
            f,
            "{name}({kind}) at sector {sector}, {} bytes to the device, {} from it",
            self.out.len(),
            self.room
        )
    }
}
