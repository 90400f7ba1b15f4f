//! A queue, a scripted disk and a guest's memory, for tests that submit a chain and look at what becomes of it.

use std::cell::{RefCell, RefMut};
use std::rc::Rc;

use crate::bio::Op;
use crate::doubles::dice::Dice;
use crate::doubles::guest_ram::GuestRam;
use crate::request::Command;
use crate::sector::{DiskRange, Sector};

use super::scripted::{Disk, Scripted};
use super::*;

const SECTORS: usize = 32768;

/// A queue over a scripted disk, with memory of a guest of 16 MiB.
pub(super) struct Bench {
    pub(super) queue: RequestQueue,
    pub(super) disk: Rc<RefCell<Disk>>,
    pub(super) ram: GuestRam,
}

pub(super) fn config(depth: u16, limits: QueueLimits) -> QueueConfig {
    QueueConfig { device_id: b"disk-of-the-tests-01".to_vec(), ..QueueConfig::new(depth, limits) }
}

/// The same, with as little memory as a queue can have.
pub(super) fn short_of_memory(depth: u16, limits: QueueLimits) -> QueueConfig {
    QueueConfig { memory: memory(QueueMemory::LEAST), ..config(depth, limits) }
}

/// So much memory, and a reserve that serves every piece.
pub(super) fn memory(bytes: usize) -> QueueMemory {
    QueueMemory::of(Budget::new("test's", bytes))
}

pub(super) fn bench(config: QueueConfig) -> Bench {
    let disk = Disk::new(SECTORS, config.limits, Dice::new(1));
    let engine = Scripted { disk: Rc::clone(&disk), queue: 0 };
    let queue = RequestQueue::new(config, Box::new(engine)).expect("address space");
    Bench { queue, disk, ram: GuestRam::new(1, 4096) }
}

/// A disk with direct I/O.
pub(super) fn direct(logical_block_size: u32) -> QueueLimits {
    QueueLimits {
        logical_block_size,
        disk_block_size: logical_block_size,
        dma_alignment: 512,
        length_alignment: 512,
        ..QueueLimits::default()
    }
}

pub(super) fn range(offset: u64, len: u64) -> DiskRange {
    DiskRange::new(Sector(offset / 512), len, Sector(SECTORS as u64), 512).expect("on the disk")
}

/// A disk whose guests see blocks of 512 bytes and that has blocks of 4096, with direct I/O.
pub(super) fn large_blocks() -> QueueLimits {
    QueueLimits { logical_block_size: 512, length_alignment: 4096, ..direct(4096) }
}

impl Bench {
    pub(super) fn disk(&self) -> RefMut<'_, Disk> {
        self.disk.borrow_mut()
    }

    /// A chain of one bio without memory.
    pub(super) fn bare(&mut self, op: Op, range: DiskRange) -> BioChain {
        let mut chain = BioChain::new();
        chain.push(self.queue.bios().try_take(op, range).expect("a bio is free"));
        chain
    }

    /// A chain that transfers the pieces of memory from or to `offset`, with a bio for every 256 of them.
    pub(super) fn transfer(&mut self, op: Op, offset: u64, pieces: &[(u64, usize)]) -> BioChain {
        let mut chain = BioChain::new();
        let bytes: usize = pieces.iter().map(|piece| piece.1).sum();
        let mut whole = range(offset, bytes as u64);
        for part in pieces.chunks(256) {
            let sg = self.ram.list(part.iter().copied());
            let bio = chain.push(self.queue.bios().try_take(op, DiskRange::none()).expect("a bio is free"));
            bio.range = whole.take_front(sg.bytes() as u64);
            bio.sg = sg;
        }
        chain
    }

    pub(super) fn submit(&mut self, chain: BioChain, cookie: u32) {
        self.queue.submit(chain, cookie).expect("not full");
    }

    /// Goes on until the queue says that there is nothing more to do.
    pub(super) fn finish(&mut self) -> Vec<Completed> {
        let mut done = Vec::new();
        for _ in 0..100_000 {
            self.queue.dispatch();
            self.queue.reap(|completed| done.push(completed));
            if self.queue.is_idle() {
                check_nothing_is_held(&self.queue);
                return done;
            }
        }
        panic!("{:?} makes no progress", self.queue);
    }

    /// Submits one chain, waits for it, and returns how it ended.
    pub(super) fn run(&mut self, chain: BioChain) -> (Status, u32) {
        self.submit(chain, 5);
        match self.finish()[..] {
            [Completed { cookie: 5, status, bytes }] => (status, bytes),
            ref other => panic!("one chain was submitted: {other:?}"),
        }
    }

    pub(super) fn commands(&self) -> Vec<Command> {
        self.disk.borrow().log.iter().map(|(command, _, _)| *command).collect()
    }
}
