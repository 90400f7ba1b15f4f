//! From what a header asks for and the buffers that go with it to bios.
//!
//! What is asked for is checked before a bio is taken; where something is wrong with the memory, all that was taken goes back.
//! Past this module a bio lies within the disk, in whole blocks, and has memory for all bytes that it moves. Whatever is wrong
//! is answered with a status and never a fault of the ring: the chain's status byte has been found.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use sluice_blk::bio::{BioChain, BioSet, Op};
use sluice_blk::queue::{PassthroughCommand, RequestQueue};
use sluice_blk::sector::{DiskRange, Sector};
use sluice_mem::guest::MemPin;
use sluice_mem::sglist::SgList;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_SECURE_ERASE,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

use super::buffers::Buffers;
use super::{Action, BlkStatus, segments};
use crate::config::DiskConfig;

/// The type of a request for how worn the disk is (virtio 1.3, 5.2.6).
const VIRTIO_BLK_T_GET_LIFETIME: u32 = 10;

/// Builds bios out of a queue's.
pub(super) struct Builder<'a> {
    pub(super) pin: &'a MemPin,
    pub(super) config: &'a DiskConfig,
    pub(super) queue: &'a mut RequestQueue,
}

impl Builder<'_> {
    /// What a header asks for that is not a transfer.
    pub(super) fn other(
        &mut self,
        kind: u32,
        mut readable: Buffers<'_>,
        writable: Buffers<'_>,
    ) -> Result<Action, BlkStatus> {
        let config = self.config;
        match kind {
            VIRTIO_BLK_T_FLUSH => self.flush(),
            VIRTIO_BLK_T_GET_ID => self.answer(PassthroughCommand::DeviceId, writable),
            VIRTIO_BLK_T_GET_LIFETIME if config.has_lifetime() => {
                self.answer(PassthroughCommand::Lifetime, writable)
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if config.is_read_only() => {
                Err(BlkStatus::IoErr)
            }
            VIRTIO_BLK_T_DISCARD => self.ranges(segments::Kind::Discard, &mut readable),
            VIRTIO_BLK_T_WRITE_ZEROES if config.has_write_zeroes() => {
                self.ranges(segments::Kind::WriteZeroes, &mut readable)
            }
            VIRTIO_BLK_T_SECURE_ERASE if config.has_secure_erase() => {
                self.ranges(segments::Kind::SecureErase, &mut readable)
            }
            _ => Err(BlkStatus::Unsupp),
        }
    }

    /// A read into, or a write from, `data`. `other` is data that goes the other way, of which there must be none.
    #[inline]
    pub(super) fn transfer(
        &mut self,
        op: Op,
        sector: Sector,
        data: Buffers<'_>,
        other: &Buffers<'_>,
    ) -> Result<Action, BlkStatus> {
        let len = data.bytes();
        let writes = matches!(op, Op::Write { .. });
        // The used length is a u32 and counts the status byte too.
        if len == 0
            || len >= u64::from(u32::MAX)
            || !other.is_empty()
            || (writes && self.config.is_read_only())
        {
            return Err(BlkStatus::IoErr);
        }
        let range = self.range(sector, len)?;
        self.map(op, range, data).map(Action::Submit)
    }

    fn flush(&mut self) -> Result<Action, BlkStatus> {
        let mut chain = BioChain::new();
        let bio = self.queue.bios().try_take(Op::Flush, DiskRange::none()).ok_or(BlkStatus::IoErr)?;
        chain.push(bio);
        Ok(Action::Submit(chain))
    }

    /// A command that writes its answer to `data`.
    fn answer(&mut self, command: PassthroughCommand, data: Buffers<'_>) -> Result<Action, BlkStatus> {
        if data.is_empty() {
            return Err(BlkStatus::IoErr);
        }
        let chain = self.map(Op::DeviceId, DiskRange::none(), data)?;
        Ok(Action::Passthrough(chain, command))
    }

    /// A range of the disk, in whole blocks as the queue takes them.
    #[inline]
    pub(super) fn range(&self, start: Sector, len: u64) -> Result<DiskRange, BlkStatus> {
        let block = self.queue.limits().logical_block_size;
        DiskRange::new(start, len, self.config.capacity(), block).map_err(|_| BlkStatus::IoErr)
    }

    /// Bios for `op` with the memory that `data` names, as many as that takes.
    #[inline(always)]
    fn map(&mut self, op: Op, range: DiskRange, mut data: Buffers<'_>) -> Result<BioChain, BlkStatus> {
        let mut chain = BioChain::new();
        let mapped = self.map_into(&mut chain, op, range, &mut data);
        if let Err(status) = mapped {
            self.queue.bios().put_chain(chain);
            return Err(status);
        }
        Ok(chain)
    }

    #[inline(always)]
    fn map_into(
        &mut self,
        chain: &mut BioChain,
        op: Op,
        mut range: DiskRange,
        data: &mut Buffers<'_>,
    ) -> Result<(), BlkStatus> {
        // A bio for all that is left, until one is not full.
        for _ in 0..BioSet::CHAIN_MAX {
            let bio = self.queue.bios().try_take(op, range).ok_or(BlkStatus::IoErr)?;
            let bio = chain.push(bio);
            self.fill(&mut bio.sg, data)?;
            if data.is_empty() {
                return Ok(());
            }
            if range.len() > 0 {
                bio.range = range.take_front(bio.sg.bytes() as u64);
            }
        }
        // More pieces than in any legal chain: buffers over many regions of memory.
        Err(BlkStatus::IoErr)
    }

    /// Moves as much of `data` to a list as that has room for.
    #[inline(always)]
    fn fill(&self, list: &mut SgList, data: &mut Buffers<'_>) -> Result<(), BlkStatus> {
        while let Some(buffer) = data.0.first() {
            let len = buffer.len as usize;
            // The guest's bad address; memory for the table was seen to be there before the head was taken.
            let pushed = list
                .push_guest(self.pin, buffer.addr, len, self.queue.arena())
                .map_err(|_| BlkStatus::IoErr)?;
            data.skip(pushed);
            if pushed < len {
                break;
            }
        }
        Ok(())
    }

    /// Discards or zeroes the ranges that `data` lists.
    fn ranges(&mut self, kind: segments::Kind, data: &mut Buffers<'_>) -> Result<Action, BlkStatus> {
        let mut chain = BioChain::new();
        if let Err(status) = segments::build(kind, data, self, &mut chain) {
            self.queue.bios().put_chain(chain);
            return Err(status);
        }
        Ok(match kind {
            // Ranges of no sectors only: nothing to do, and so it is done.
            _ if chain.is_empty() => Action::Answer(BlkStatus::Ok),
            segments::Kind::SecureErase => Action::Passthrough(chain, PassthroughCommand::SecureErase),
            segments::Kind::Discard | segments::Kind::WriteZeroes => Action::Submit(chain),
        })
    }
}
