//! A descriptor chain taken apart: what to read, what to write, where the status goes.

use virtio_queue::DescriptorChain;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryLoadGuard, GuestMemoryMmap};

/// A piece of guest memory.
type Piece = (GuestAddress, usize);

/// The buffers of a request.
pub(crate) struct Buffers {
    /// The header, then data for the device.
    readable: Vec<Piece>,
    /// Room for data from the device.
    writable: Vec<Piece>,
    status: GuestAddress,
    /// A buffer to read after one to write (virtio 1.3, 2.7.4.2 forbids it).
    disordered: bool,
}

impl Buffers {
    /// Takes a chain apart. None if no byte of it may be written.
    pub(crate) fn of(chain: DescriptorChain<GuestMemoryLoadGuard<GuestMemoryMmap>>) -> Option<Self> {
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let mut disordered = false;
        for desc in chain.filter(|desc| desc.len() > 0) {
            let piece = (desc.addr(), usize::try_from(desc.len()).expect("u32 fits usize"));
            if desc.is_write_only() {
                writable.push(piece);
            } else {
                disordered |= !writable.is_empty();
                readable.push(piece);
            }
        }
        let (addr, len) = writable.pop()?;
        if len > 1 {
            writable.push((addr, len - 1));
        }
        let status = addr.checked_add(len as u64 - 1)?;
        Some(Buffers { readable, writable, status, disordered })
    }

    /// Whether the order of the buffers is one that the specification forbids.
    pub(crate) fn disordered(&self) -> bool {
        self.disordered
    }

    /// Whether the guest has all of the memory that the chain names. Checked before anything is touched.
    pub(crate) fn are_there(&self, memory: &GuestMemoryMmap) -> bool {
        self.readable.iter().chain(&self.writable).all(|&(addr, len)| memory.check_range(addr, len))
    }

    /// Everything that the device reads, at most `max` bytes of it.
    pub(crate) fn gather(&self, memory: &GuestMemoryMmap, max: usize) -> Option<Vec<u8>> {
        if self.readable.iter().map(|piece| piece.1).sum::<usize>() > max {
            return None;
        }
        let mut bytes = Vec::new();
        for &(addr, len) in &self.readable {
            let start = bytes.len();
            bytes.resize(start + len, 0);
            memory.read_slice(&mut bytes[start..], addr).ok()?;
        }
        Some(bytes)
    }

    /// The number of bytes that the device may write, without the status.
    pub(crate) fn room(&self) -> usize {
        self.writable.iter().map(|piece| piece.1).sum()
    }

    /// Writes data for the driver, from the start of the room on.
    pub(crate) fn scatter(&self, memory: &GuestMemoryMmap, mut bytes: &[u8]) -> Option<()> {
        for &(addr, len) in &self.writable {
            let (now, later) = bytes.split_at(len.min(bytes.len()));
            memory.write_slice(now, addr).ok()?;
            bytes = later;
        }
        Some(())
    }

    /// Writes the status byte.
    pub(crate) fn set_status(&self, memory: &GuestMemoryMmap, status: u8) -> Option<()> {
        memory.write_obj(status, self.status).ok()
    }
}
