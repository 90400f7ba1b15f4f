//! What is below the queue of a random test: the scripted disk, or a file or memory through a real engine.

use std::cell::RefCell;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use sluice_mem::PAGE_SIZE;
use sluice_mem::anon::AnonMem;
use sluice_mem::sglist::SgList;
use tempfile::NamedTempFile;

use crate::disk::{Cache, Disk as RealDisk, DiskOptions, EngineKind};
use crate::doubles::dice::Dice;
use crate::engine::ram::RamEngine;
use crate::engine::ring::{Ring, Wait};
use crate::request::Command;

use super::scripted::{DISCARDED, Disk, Faults, Knows, Scripted};
use super::*;

pub(super) enum Below {
    Scripted(Rc<RefCell<Disk>>),
    File(NamedTempFile, Option<Ring>),
    Memory(Arc<AnonMem>),
}

impl Below {
    /// A scripted disk with `model` on it, which may be `faulty`; its limits, and its engine.
    pub(super) fn scripted(
        dice: &mut Dice,
        model: &[u8],
        faulty: bool,
    ) -> (Self, QueueLimits, Box<dyn Engine>) {
        let (logical_block_size, disk_block_size) = dice.pick(&[(512, 512), (512, 4096), (4096, 4096)]);
        let dma_alignment: u32 = dice.pick(&[1, 512, 512, 4096]).min(disk_block_size);
        let limits = QueueLimits {
            logical_block_size,
            disk_block_size,
            dma_alignment,
            length_alignment: dice.pick(&[dma_alignment, dma_alignment.max(512), disk_block_size]),
            max_bytes: random_bytes_max(dice),
            ..QueueLimits::default()
        };
        let disk = Disk::of(model.to_vec(), limits, Dice::new(dice.roll()));
        {
            let disk = &mut *disk.borrow_mut();
            let mut rate = |most| dice.pick(&[0, most]);
            let faults = Faults { full: rate(40), short: rate(50), again: rate(20), io_error: 0, end: 0 };
            disk.faults = if faulty { Faults { io_error: 10, end: rate(3), ..faults } } else { faults };
            let mut knows = || dice.chance(60);
            disk.knows = Knows { discard: knows(), zero: knows(), zero_unmap: knows(), ..Knows::ALL };
            disk.room = dice.size(1..40);
        }
        let engine = Box::new(Scripted { disk: Rc::clone(&disk), queue: 0 });
        (Self::Scripted(disk), limits, engine)
    }

    /// A file with `model` in it, its limits, and an engine on it.
    pub(super) fn file(
        dice: &mut Dice,
        model: &[u8],
        engine: EngineKind,
    ) -> (Self, QueueLimits, Box<dyn Engine>) {
        let file = NamedTempFile::new().expect("a temporary file");
        file.as_file().write_all_at(model, 0).expect("there is room");
        let ring = (engine == EngineKind::Uring).then(|| Ring::new(8).expect("tests need io_uring"));
        let options = DiskOptions {
            // Direct I/O where the file takes it.
            cache: dice.pick(&[None, Some(Cache::Writeback)]),
            engine,
            logical_block_size: dice.pick(&[None, Some(4096)]),
            ..DiskOptions::new(file.path())
        };
        let disk = RealDisk::open(&options).expect("a good file");
        let found = *disk.limits();
        // As if the disk had larger blocks than the file needs.
        let disk_block_size = dice.pick(&[found.disk_block_size, 4096]);
        let limits = QueueLimits { disk_block_size, max_bytes: random_bytes_max(dice), ..found };
        let engine = disk.engine(RequestQueue::tags(1), ring.as_ref()).expect("a free slot");
        (Self::File(file, ring), limits, engine)
    }

    /// Memory with `model` in it, its limits, and an engine on it.
    pub(super) fn memory(dice: &mut Dice, model: &[u8]) -> (Self, QueueLimits, Box<dyn Engine>) {
        let memory = Arc::new(AnonMem::new(model.len() as u64).expect("some memory"));
        for (at, bytes) in (0..).step_by(PAGE_SIZE).zip(model.chunks(PAGE_SIZE)) {
            let list = page();
            list.write(bytes);
            memory.write(at, &list);
        }
        let logical_block_size = dice.pick(&[512, 4096]);
        let disk_block_size = dice.pick(&[512, 4096]);
        let max_bytes = random_bytes_max(dice);
        let limits = QueueLimits { logical_block_size, disk_block_size, max_bytes, ..QueueLimits::default() };
        let engine = RamEngine::new(Arc::clone(&memory), RequestQueue::tags(1));
        (Self::Memory(memory), limits, Box::new(engine))
    }

    /// Begins a chain that the queue calls by a number. Returns how many changes there were before.
    pub(super) fn begin(&self, chain: u32) -> u64 {
        let Self::Scripted(disk) = self else { return 0 };
        disk.borrow_mut().begin(0, chain)
    }

    /// Whether something of a chain has failed.
    pub(super) fn has_failed(&self, chain: u32) -> bool {
        matches!(self, Self::Scripted(disk) if disk.borrow().failed.contains(&(0, chain)))
    }

    /// Lets time pass; with `wait` until something happens.
    pub(super) fn pass(&self, wait: bool) {
        if let Self::File(_, Some(ring)) = self {
            ring.enter(if wait { Wait::Forever } else { Wait::No }).expect("io_uring_enter(2)");
        }
    }

    /// What is there.
    pub(super) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        match self {
            Self::Scripted(disk) => disk.borrow().read(offset, len),
            Self::File(file, _) => {
                let mut bytes = vec![0; len];
                file.as_file().read_exact_at(&mut bytes, offset).expect("as long as it was");
                bytes
            }
            Self::Memory(memory) => {
                let mut bytes = vec![0; len];
                for (at, bytes) in (offset..).step_by(PAGE_SIZE).zip(bytes.chunks_mut(PAGE_SIZE)) {
                    let list = page();
                    memory.read(at, &list);
                    list.read(bytes);
                }
                bytes
            }
        }
    }

    /// What is where something was discarded.
    pub(super) fn discarded(&self) -> u8 {
        if matches!(self, Self::Scripted(_)) { DISCARDED } else { 0 }
    }

    /// Whether one of `changes`, by their count, to a range is known not to survive a power failure.
    pub(super) fn is_volatile(&self, range: std::ops::Range<u64>, changes: std::ops::Range<u64>) -> bool {
        matches!(self, Self::Scripted(disk) if disk.borrow().is_volatile(range, changes))
    }

    /// What was asked of the disk, as far as that is known.
    pub(super) fn commands(&self) -> Vec<Command> {
        match self {
            Self::Scripted(disk) => disk.borrow().log.iter().map(|(command, _, _)| *command).collect(),
            Self::File(..) | Self::Memory(_) => Vec::new(),
        }
    }
}

fn page() -> SgList {
    let arena = Arena::new(PAGE_SIZE, 0).expect("address space");
    SgList::alloc(&arena, PAGE_SIZE, Gfp::NOWAIT).expect("a page")
}

fn random_bytes_max(dice: &mut Dice) -> u32 {
    dice.pick(&[4096, 8192, 12288, 65536, 1 << 20])
}
