//! The hunt for stale bytes: whatever fails, no guest is shown what was in our memory before.

use std::cell::RefCell;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use rustix::io::Errno;
use tempfile::NamedTempFile;

use crate::bio::Op;
use crate::disk::{Cache, Disk as RealDisk, DiskOptions, EngineKind};
use crate::doubles::dice::{Dice, for_seeds};
use crate::doubles::guest_ram::GuestRam;
use crate::doubles::patience::in_time;
use crate::engine::ring::{Ring, Wait};
use crate::sector::{DiskRange, Sector};

use super::bench::{Bench, bench, config, direct, large_blocks, short_of_memory};
use super::scripted::{Disk, Faults};
use super::*;

/// What one guest has written, and no other may see.
const SECRET: u8 = 0x5e;
/// What is in memory before a read, and on the disk.
const MEMORY: u8 = 0x11;
const DISK: u8 = 0x22;

/// Has the queue write secrets by way of all of its bounce buffers, to a part of the disk that nobody reads.
fn spread_secrets(bench: &mut Bench) {
    bench.ram.write(0, &vec![SECRET; 3 << 20]);
    for pieces in [&[(1, 2 << 20)][..], &[(1, 512), (513, 3584)]] {
        let chain = bench.transfer(Op::Write { fua: false }, 8 << 20, pieces);
        assert_eq!(bench.run(chain), (Status::Ok, 0));
    }
}

#[test]
fn reads_that_are_cut_short_or_fail_show_nothing_but_the_disk() {
    for_seeds(20, |mut dice| {
        let limits = dice.pick(&[direct(512), direct(4096), large_blocks()]);
        let mut bench = bench(short_of_memory(1, limits));
        bench.disk().write(0, &vec![DISK; 1 << 20]);
        spread_secrets(&mut bench);
        let bytes = 3 << 20;
        bench.ram.write(0, &vec![MEMORY; bytes]);
        bench.disk().faults = Faults { short: 60, again: 20, io_error: 20, end: 20, full: 0 };
        for _ in 0..10 {
            let block = u64::from(limits.logical_block_size);
            let len = dice.size(1..40) * limits.logical_block_size as usize;
            let (offset, addr) = (dice.within(0..100) * block, dice.within(0..100_000));
            let cut = dice.size(1..len);
            let chain = bench.transfer(Op::Read, offset, &[(addr, cut), (addr + 200_000, len - cut)]);
            bench.run(chain);
        }
        let shown = bench.ram.read(0, bytes);
        assert!(shown.iter().all(|byte| [MEMORY, DISK].contains(byte)), "{limits:?}");
    });
}

/// An engine that says that it has read all, and has read nothing.
struct Liar(Vec<Request>);

impl Engine for Liar {
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        self.0.push(request);
        Ok(())
    }

    fn reap(&mut self, done: &mut Vec<(Request, IoResult)>) {
        let all = |request: &Request| u32::try_from(request.len()).map_err(|_| Errno::INVAL);
        done.extend(self.0.drain(..).map(|request| {
            let result = all(&request);
            (request, result)
        }));
    }
}

#[test]
fn what_a_disk_says_that_it_has_read_and_has_not_is_zero() {
    for limits in [direct(512), direct(4096), large_blocks()] {
        let queue =
            RequestQueue::new(short_of_memory(1, limits), Box::new(Liar(Vec::new()))).expect("memory");
        let disk: Rc<RefCell<Disk>> = Disk::new(8, limits, Dice::new(1));
        let mut bench = Bench { queue, disk, ram: GuestRam::new(1, 4096) };
        spread_secrets(&mut bench);
        bench.ram.write(0, &vec![MEMORY; 5 << 20]);
        for (offset, pieces) in [(4096, &[(1, 4 << 20)][..]), (4096, &[(1, 4096), (8193, 8192)])] {
            let chain = bench.transfer(Op::Read, offset, pieces);
            assert_eq!(bench.run(chain).0, Status::Ok);
            for (addr, len) in pieces {
                assert!(bench.ram.read(*addr, *len).iter().all(|byte| *byte == 0), "{limits:?}");
            }
        }
        assert!(bench.queue.stats().bounced_misaligned.value() > 0);
    }
}

#[test]
fn the_parts_of_a_block_that_were_not_asked_for_stay_here() {
    let mut bench = bench(config(1, large_blocks()));
    bench.disk().write(0, &[SECRET; 4096]);
    bench.disk().write(1024, &[DISK; 512]);
    bench.ram.write(0, &[MEMORY; 8192]);
    let chain = bench.transfer(Op::Read, 1024, &[(100, 512)]);
    assert_eq!(bench.run(chain), (Status::Ok, 512));
    let expected = [&[MEMORY; 100][..], &[DISK; 512], &[MEMORY; 8192 - 612]].concat();
    assert!(bench.ram.read(0, 8192) == expected);
}

/// A queue on a file, with a guest's memory.
struct OnFile {
    queue: RequestQueue,
    ring: Option<Ring>,
    ram: GuestRam,
    file: NamedTempFile,
}

impl OnFile {
    /// On a file of 1 MiB; `None` where files take no direct I/O and that is asked for.
    fn new(engine: EngineKind, cache: Cache, disk_block_size: u32) -> Option<Self> {
        let file = NamedTempFile::new().expect("a temporary file");
        file.as_file().write_all_at(&vec![DISK; 1 << 20], 0).expect("there is room");
        let ring = (engine == EngineKind::Uring).then(|| Ring::new(8).expect("tests need io_uring"));
        let options = DiskOptions { engine, cache: Some(cache), ..DiskOptions::new(file.path()) };
        let disk = match RealDisk::open(&options) {
            Ok(disk) => disk,
            Err(error) => {
                assert!(cache == Cache::None, "{error}");
                eprintln!("SKIPPED: {error}");
                return None;
            }
        };
        let limits = QueueLimits { logical_block_size: 512, disk_block_size, ..*disk.limits() };
        let engine = disk.engine(RequestQueue::tags(1), ring.as_ref()).expect("a free slot");
        let queue = RequestQueue::new(short_of_memory(1, limits), engine).expect("memory");
        Some(Self { queue, ring, ram: GuestRam::new(1, 1024), file })
    }

    fn run(&mut self, op: Op, offset: u64, pieces: &[(u64, usize)]) -> Status {
        let bytes: usize = pieces.iter().map(|piece| piece.1).sum();
        let range =
            DiskRange::new(Sector(offset / 512), bytes as u64, Sector(2048), 512).expect("on the disk");
        let mut chain = BioChain::new();
        let bio = chain.push(self.queue.bios().try_take(op, range).expect("a bio is free"));
        if matches!(op, Op::Read | Op::Write { .. }) {
            bio.sg = self.ram.list(pieces.iter().copied());
        }
        self.queue.submit(chain, 0).expect("not full");
        let mut done = Vec::new();
        while done.is_empty() {
            self.queue.dispatch();
            if let (Some(ring), false) = (&self.ring, self.queue.has_parked()) {
                ring.enter(if self.queue.tags.in_flight() > 0 { Wait::Forever } else { Wait::No })
                    .expect("io_uring_enter(2)");
            }
            self.queue.reap(|completed| done.push(completed.status));
        }
        done[0]
    }
}

/// Calls `test` with a queue of each engine, through the page cache and not, on a disk of small and of large blocks.
fn with_each(test: impl Fn(OnFile)) {
    for engine in EngineKind::ALL {
        for cache in [Cache::None, Cache::Writeback] {
            for disk_block_size in [512, 4096] {
                if let Some(on_file) = OnFile::new(engine, cache, disk_block_size) {
                    eprintln!("{engine}, cache={cache}, blocks of {disk_block_size}");
                    test(on_file);
                }
            }
        }
    }
}

#[test]
fn a_read_past_the_end_of_a_file_that_has_shrunk_fails_and_shows_nothing() {
    in_time(|| {
        with_each(|mut on_file| {
            on_file.ram.write(0, &vec![SECRET; 1 << 20]);
            assert_eq!(on_file.run(Op::Write { fua: false }, 0, &[(1, 512 << 10)]), Status::Ok);
            on_file.file.as_file().write_all_at(&vec![DISK; 1 << 20], 0).expect("there is room");
            on_file.ram.write(0, &vec![MEMORY; 2 << 20]);
            let end = (300 << 10) + 700;
            on_file.file.as_file().set_len(end).expect("it shrinks");
            for (offset, pieces) in [
                (0, &[(1, 512 << 10)][..]),
                (end - 700, &[(1 << 20, 512), ((1 << 20) + 5000, 512)]),
                (end - 700, &[((1 << 20) + 1, 1024)]),
                (400 << 10, &[(1 << 20, 4096)]),
                ((400 << 10) + 512, &[((1 << 20) + 3, 512)]),
            ] {
                assert_eq!(on_file.run(Op::Read, offset, pieces), Status::IoErr, "{pieces:?} at {offset}");
            }
            let shown = on_file.ram.read(0, 2 << 20);
            assert!(shown.iter().all(|byte| [MEMORY, DISK].contains(byte)));
            assert_eq!(on_file.run(Op::Read, 512, &[(1, 512)]), Status::Ok, "and what is left can be read");
        });
    });
}

#[test]
fn what_was_discarded_or_zeroed_is_not_shown_again() {
    in_time(|| {
        with_each(|mut on_file| {
            on_file.ram.write(0, &vec![SECRET; 1 << 20]);
            assert_eq!(on_file.run(Op::Write { fua: false }, 4096, &[(1, 64 << 10)]), Status::Ok);
            let discard = Op::Discard { fua: true };
            let zeroes = Op::WriteZeroes { unmap: false, fua: true };
            assert_eq!(on_file.run(discard, 4096, &[(0, 32 << 10)]), Status::Ok);
            assert_eq!(on_file.run(zeroes, (36 << 10) + 512, &[(0, (32 << 10) - 1024)]), Status::Ok);
            on_file.ram.write(0, &vec![MEMORY; 1 << 20]);
            assert_eq!(on_file.run(Op::Read, 4096, &[(1, 64 << 10)]), Status::Ok);
            let mut expected = vec![0; 64 << 10];
            expected[32 << 10..(32 << 10) + 512].fill(SECRET);
            expected[(64 << 10) - 512..].fill(SECRET);
            assert!(on_file.ram.read(1, 64 << 10) == expected, "files are zero where they have holes");
            assert_eq!(
                (on_file.ram.read(0, 1), on_file.ram.read(1 + (64 << 10), 1)),
                (vec![MEMORY], vec![MEMORY])
            );
        });
    });
}

#[test]
fn direct_io_on_memory_that_cannot_be_pinned_fails_without_the_bounce_and_works_with_it() {
    in_time(|| {
        for engine in EngineKind::ALL {
            for (bounces, status) in [(false, Status::IoErr), (true, Status::Ok)] {
                let Some(mut on_file) = OnFile::new(engine, Cache::None, 512) else { return };
                let Some(secret) = GuestRam::secret(16) else { return };
                on_file.ram = secret;
                assert!(on_file.queue.config.limits.needs_pinning, "found out when the disk was opened");
                on_file.queue.config.limits.needs_pinning = bounces;
                for op in [Op::Read, Op::Write { fua: false }] {
                    assert_eq!(on_file.run(op, 4096, &[(4096, 8192)]), status, "{op:?}, {engine}");
                }
                let count = on_file.queue.stats.bounced_unaddressable.value();
                assert_eq!(count, if bounces { 2 } else { 0 });
                let mut read = [0; 8192];
                on_file.ram.pin().read(4096, &mut read).expect("mapped");
                assert!(read == [if bounces { DISK } else { 0 }; 8192]);
            }
            let Some(mut on_file) = OnFile::new(engine, Cache::Writeback, 512) else { return };
            let Some(secret) = GuestRam::secret(16) else { return };
            on_file.ram = secret;
            assert_eq!(on_file.run(Op::Read, 4096, &[(4096, 8192)]), Status::Ok);
            assert_eq!(on_file.queue.stats.bounced_unaddressable.value(), 0, "the page cache copies anyway");
        }
    });
}
