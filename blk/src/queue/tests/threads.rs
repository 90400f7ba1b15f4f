//! Real threads, each with a queue of its own on one disk with large blocks, on real files: no write is ever lost.
//!
//! The disk is cut into stretches of some sectors, each of which belongs to one of the threads; most blocks belong to
//! several. A thread changes only what is its own, so it knows what must be there.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use tempfile::NamedTempFile;

use crate::bio::Op;
use crate::disk::{Cache, Disk, DiskOptions, EngineKind};
use crate::doubles::dice::{Dice, for_seeds};
use crate::doubles::guest_ram::GuestRam;
use crate::doubles::loop_device::LoopDevice;
use crate::doubles::patience::in_time;
use crate::engine::ring::{Client, Ring, Wait};
use crate::sector::{DiskRange, Sector};

use super::*;

const SECTORS: usize = 400 * 8;
const THREADS: usize = 4;
const DEPTH: u16 = 6;
/// How many chains a thread submits.
const CHAINS: usize = 150;
/// The most sectors of a stretch, and so of a chain.
const STRETCH_MAX: usize = 20;

/// An event fd that wakes a thread.
#[derive(Debug)]
struct Kick(OwnedFd);

impl Kick {
    fn new() -> Arc<Self> {
        Arc::new(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd(2)")))
    }
}

impl Wake for Kick {
    fn wake(&self) {
        rustix::io::write(&self.0, &1_u64.to_ne_bytes()).expect("room in the counter");
    }
}

/// Where a thread sleeps until its I/O, or another queue, wakes it.
enum Sleeper {
    Ring(Ring, Client),
    Poll,
}

impl Sleeper {
    fn new(engine: EngineKind, kick: &Kick) -> Self {
        match engine {
            EngineKind::Sync => Self::Poll,
            EngineKind::Uring => {
                let ring = Ring::new(8).expect("tests need io_uring");
                let mut client = ring.client(8);
                client.watch(kick.0.as_fd(), 1).expect("it can be polled");
                Self::Ring(ring, client)
            }
        }
    }

    fn ring(&self) -> Option<&Ring> {
        match self {
            Self::Ring(ring, _) => Some(ring),
            Self::Poll => None,
        }
    }

    fn sleep(&mut self, kick: &Kick) {
        match self {
            Self::Ring(ring, client) => {
                ring.enter(Wait::Forever).expect("io_uring_enter(2)");
                while client.next_event().is_some() {}
            }
            Self::Poll => {
                poll(&mut [PollFd::new(&kick.0, PollFlags::IN)], None).expect("poll(2)");
                rustix::io::read(&kick.0, &mut [0; 8]).expect("it is readable");
            }
        }
    }
}

/// A chain under way.
struct Flight {
    op: Op,
    sectors: Range<usize>,
}

struct Writer {
    dice: Dice,
    queue: RequestQueue,
    sleeper: Sleeper,
    kick: Arc<Kick>,
    ram: GuestRam,
    /// The stretches that belong to it.
    own: Vec<Range<usize>>,
    /// What is on the disk, where that belongs to it.
    model: Vec<u8>,
    /// Sectors that were discarded since: there may be zeroes.
    discarded: Vec<bool>,
    flights: Vec<Option<Flight>>,
}

impl Writer {
    fn new(mut dice: Dice, disk: &Disk, limits: QueueLimits, own: Vec<Range<usize>>, model: Vec<u8>) -> Self {
        let kick = Kick::new();
        let sleeper = Sleeper::new(disk.engine_kind(), &kick);
        let engine = disk.engine(RequestQueue::tags(DEPTH), sleeper.ring()).expect("a free slot");
        let overlaps = Some((Arc::clone(disk.overlaps()), Arc::clone(&kick) as Arc<dyn Wake>));
        let config = QueueConfig { overlaps, ..QueueConfig::new(DEPTH, limits) };
        let queue = RequestQueue::new(config, engine).expect("address space");
        let ram = GuestRam::new(1, usize::from(DEPTH) * 4);
        let dice = Dice::new(dice.roll());
        let flights = (0..DEPTH).map(|_| None).collect();
        let discarded = vec![false; SECTORS];
        Self { dice, queue, sleeper, kick, ram, own, model, discarded, flights }
    }

    fn run(mut self) -> Self {
        let mut left = CHAINS;
        while left > 0 || !self.queue.is_idle() {
            while left > 0 && self.submit() {
                left -= 1;
            }
            self.queue.dispatch();
            let mut done = Vec::new();
            self.queue.reap(|completed| done.push(completed));
            done.into_iter().for_each(|completed| self.check(completed));
            if !self.queue.has_parked() && !self.queue.is_idle() {
                self.sleeper.sleep(&self.kick);
            }
        }
        check_nothing_is_held(&self.queue);
        self
    }

    /// Submits a chain on a stretch that no other is on. False when there is no room for more.
    fn submit(&mut self) -> bool {
        let Some(slot) = self.flights.iter().position(Option::is_none) else { return false };
        let stretch = self.own[self.dice.size(0..self.own.len())].clone();
        let busy = |flight: &Flight| stretch.contains(&flight.sectors.start);
        if self.flights.iter().flatten().any(busy) || !self.queue.can_accept() {
            return false;
        }
        let start = self.dice.size(stretch.clone());
        let sectors = start..self.dice.size(start + 1..stretch.end + 1);
        let (fua, unmap) = (self.dice.chance(10), self.dice.chance(50));
        let op = match self.dice.within(0..10) {
            0..5 => Op::Write { fua },
            5 => Op::WriteZeroes { unmap, fua },
            6 => Op::Discard { fua },
            _ => Op::Read,
        };
        let bytes = bytes_of(&sectors);
        if matches!(op, Op::Write { .. } | Op::WriteZeroes { .. }) {
            self.discarded[sectors.clone()].fill(false);
        }
        // Most memory is misaligned too.
        let addr = slot as u64 * 4 * PAGE_SIZE as u64 + self.dice.pick(&[0, 1, 512, 77]);
        let range =
            DiskRange::new(Sector(sectors.start as u64), bytes.len() as u64, Sector(SECTORS as u64), 512);
        let mut bio = self.queue.bios().try_take(op, range.expect("on the disk")).expect("room was seen");
        if matches!(op, Op::Read | Op::Write { .. }) {
            let data = self.dice.bytes(bytes.len());
            self.ram.write(addr, &data);
            bio.sg = self.ram.list([(addr, data.len())]);
            if matches!(op, Op::Write { .. }) {
                self.model[bytes].copy_from_slice(&data);
            }
        } else if matches!(op, Op::WriteZeroes { .. }) {
            self.model[bytes].fill(0);
        }
        self.flights[slot] = Some(Flight { op, sectors });
        let mut chain = BioChain::new();
        chain.push(bio);
        // The slot and where in it the memory is.
        let cookie = u32::try_from(addr).expect("a small memory");
        self.queue.submit(chain, cookie).expect("not full");
        true
    }

    fn check(&mut self, completed: Completed) {
        let addr = u64::from(completed.cookie);
        let slot = usize::try_from(addr).expect("small") / (4 * PAGE_SIZE);
        let Flight { op, sectors } = self.flights[slot].take().expect("a chain completes once");
        assert_eq!(completed.status, Status::Ok, "{op:?}");
        let bytes = bytes_of(&sectors);
        match op {
            Op::Read => {
                let data = self.ram.read(addr, bytes.len());
                for (i, sector) in sectors.clone().enumerate() {
                    self.check_sector(sector, &data[i * 512..i * 512 + 512]);
                }
            }
            Op::Discard { .. } => self.discarded[sectors].fill(true),
            _ => {}
        }
    }

    /// Checks what a sector is found to be, which it then is known to be.
    fn check_sector(&mut self, sector: usize, data: &[u8]) {
        let expected = &mut self.model[bytes_of(&(sector..sector + 1))];
        let zeroed = std::mem::take(&mut self.discarded[sector]) && data == [0; 512];
        assert!(zeroed || data == expected, "a write to sector {sector} was lost");
        expected.copy_from_slice(data);
    }
}

fn bytes_of(sectors: &Range<usize>) -> Range<usize> {
    sectors.start * 512..sectors.end * 512
}

/// Cuts the disk into stretches, and gives each to one of the threads.
fn share(dice: &mut Dice) -> [Vec<Range<usize>>; THREADS] {
    let mut shares: [Vec<Range<usize>>; THREADS] = Default::default();
    let mut at = 0;
    while at < SECTORS {
        let end = SECTORS.min(at + dice.size(1..STRETCH_MAX + 1));
        shares[dice.size(0..THREADS)].push(at..end);
        at = end;
    }
    shares
}

/// Has threads write to the disk, and checks what they and the disk say afterwards. `file` is what is on the disk.
fn rival(mut dice: Dice, disk: &Disk, limits: QueueLimits, file: &File) {
    assert!(limits.has_partial_blocks());
    let model = dice.bytes(SECTORS * 512);
    file.write_all_at(&model, 0).expect("there is room");
    file.sync_all().expect("fsync(2)");
    let shares = share(&mut dice);
    std::thread::scope(|scope| {
        let threads: Vec<_> = shares
            .into_iter()
            .map(|own| {
                let (dice, model) = (Dice::new(dice.roll()), model.clone());
                // A queue belongs to its thread.
                scope.spawn(move || {
                    let writer = Writer::new(dice, disk, limits, own, model).run();
                    (writer.own, writer.model, writer.discarded)
                })
            })
            .collect();
        let written = threads.into_iter().map(|thread| thread.join().expect("a thread does not fail"));
        let written: Vec<_> = written.collect();
        let mut on_disk = vec![0; SECTORS * 512];
        file.sync_all().expect("fsync(2)");
        file.read_exact_at(&mut on_disk, 0).expect("as long as it was");
        for (own, model, discarded) in written {
            for sector in own.into_iter().flatten() {
                let bytes = bytes_of(&(sector..sector + 1));
                let zeroed = discarded[sector] && on_disk[bytes.clone()] == [0; 512];
                assert!(
                    zeroed || on_disk[bytes.clone()] == model[bytes],
                    "a write to sector {sector} was lost"
                );
            }
        }
    });
}

fn options(path: &Path, engine: EngineKind, cache: Option<Cache>) -> DiskOptions {
    DiskOptions { engine, cache, logical_block_size: Some(512), ..DiskOptions::new(path) }
}

#[test]
fn threads_lose_no_write_to_parts_of_blocks_of_a_file() {
    in_time(|| {
        for_seeds(3, |mut dice| {
            for engine in EngineKind::ALL {
                for cache in [None, Some(Cache::Writeback)] {
                    let file = NamedTempFile::new().expect("a temporary file");
                    file.as_file().set_len(SECTORS as u64 * 512).expect("a sparse file");
                    let disk = Disk::open(&options(file.path(), engine, cache)).expect("a good file");
                    // As if it had large blocks.
                    let limits = QueueLimits { disk_block_size: 4096, ..*disk.limits() };
                    rival(Dice::new(dice.roll()), &disk, limits, file.as_file());
                }
            }
        });
    });
}

#[test]
fn threads_lose_no_write_to_parts_of_blocks_of_a_device() {
    in_time(|| {
        for_seeds(2, |mut dice| {
            for engine in EngineKind::ALL {
                let mut file = NamedTempFile::new().expect("a temporary file");
                file.write_all(&vec![0; SECTORS * 512]).expect("there is room");
                let Some(device) = LoopDevice::over(file.path(), 4096) else { return };
                let on_device =
                    File::options().read(true).write(true).open(device.path()).expect("it exists");
                let disk = Disk::open(&options(device.path(), engine, Some(Cache::None))).expect("a disk");
                rival(Dice::new(dice.roll()), &disk, *disk.limits(), &on_device);
            }
        });
    });
}
