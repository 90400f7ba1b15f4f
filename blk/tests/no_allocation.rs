//! After start-up the data path makes no heap allocation: an allocator that counts shows it, over all request types,
//! with bounces, cuts, parts of blocks and waiting included.
#![expect(unsafe_code, reason = "an allocator is unsafe to implement")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use sluice_blk::bio::{BioChain, Op};
use sluice_blk::disk::{Cache, Disk, DiskOptions, EngineKind, Medium};
use sluice_blk::engine::ring::{Ring, Wait};
use sluice_blk::limits::QueueLimits;
use sluice_blk::overlap::Wake;
use sluice_blk::queue::{PassthroughCommand, QueueConfig, QueueMemory, RequestQueue};
use sluice_blk::request::Status;
use sluice_blk::sector::{DiskRange, Sector};
use sluice_mem::budget::Budget;
use sluice_mem::gfp::Gfp;
use sluice_mem::guest::{GuestMem, MemPin};
use sluice_mem::region::{Region, RegionInfo};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, which counts what each thread allocates.
struct Counting;

// SAFETY: everything is passed on to the system's allocator as it came. Counting allocates nothing: the counter is a
// number in the thread's own storage, without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller vouches.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller vouches.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller vouches.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const DISK_BYTES: u64 = 8 << 20;
const DEPTH: u16 = 8;
/// The cookie of what erases, which files cannot: it goes all the way to the kernel and back as an error.
const ERASES: u32 = 7;

/// Wakes nobody: one thread turns both queues.
#[derive(Debug)]
struct Awake;

impl Wake for Awake {
    fn wake(&self) {}
}

/// Two queues on one disk, with little memory, and a guest's memory.
struct Rig {
    queues: [RequestQueue; 2],
    ring: Option<Ring>,
    pin: MemPin,
}

impl Rig {
    fn new(medium: Medium, engine: EngineKind) -> Self {
        let options = DiskOptions { engine, cache: Some(Cache::Writeback), ..DiskOptions::on(medium) };
        let disk = Disk::open(&options).expect("a good disk");
        // As direct I/O on large blocks has it, on any file.
        let limits = QueueLimits {
            disk_block_size: 4096,
            dma_alignment: 512,
            length_alignment: 4096,
            max_bytes: 64 << 10,
            ..*disk.limits()
        };
        let ring = (engine == EngineKind::Uring).then(|| Ring::new(32).expect("tests need io_uring"));
        let queues = [0, 1].map(|_| {
            let config = QueueConfig {
                device_id: b"allocations".to_vec(),
                lifetime: Some([0; 6]),
                secure_erase: true,
                memory: QueueMemory::of(Budget::new("test's", QueueMemory::LEAST)),
                overlaps: Some((Arc::clone(disk.overlaps()), Arc::new(Awake))),
                ..QueueConfig::new(DEPTH, limits)
            };
            let engine = disk.engine(RequestQueue::tags(DEPTH), ring.as_ref()).expect("a free slot");
            RequestQueue::new(config, engine).expect("there is memory")
        });
        Self { queues, ring, pin: memory() }
    }

    /// A chain with a bio for every 256 pieces.
    fn chain(
        &mut self,
        which: usize,
        op: Op,
        offset: u64,
        pieces: impl Iterator<Item = (u64, usize)>,
    ) -> BioChain {
        let queue = &mut self.queues[which];
        let arena = queue.arena().clone();
        let mut chain = BioChain::new();
        let mut pieces = pieces.peekable();
        let mut start = offset;
        while pieces.peek().is_some() {
            let bio = queue.bios().try_take(op, DiskRange::none()).expect("room was seen");
            let bio = chain.push(bio);
            for (addr, len) in pieces.by_ref().take(256) {
                assert_eq!(bio.sg.push_guest(&self.pin, addr, len, &arena), Ok(len));
            }
            let len = bio.sg.bytes() as u64;
            if op != Op::DeviceId {
                bio.range = range(start, len);
            }
            start += len;
        }
        chain
    }

    fn bare(&mut self, which: usize, op: Op, range: DiskRange) -> BioChain {
        let mut chain = BioChain::new();
        chain.push(self.queues[which].bios().try_take(op, range).expect("room was seen"));
        chain
    }

    fn submit(&mut self, which: usize, chain: BioChain) {
        self.queues[which].submit(chain, 0).expect("not full");
    }

    fn command(&mut self, which: usize, command: PassthroughCommand) {
        let chain = self.chain(which, Op::DeviceId, 0, [(1, 30)].into_iter());
        let request = self.queues[which].make_request(chain, Gfp::NOWAIT).expect("there is memory");
        self.queues[which].execute(request.with(command), 0).expect("not full");
    }

    fn erase(&mut self, which: usize, range: DiskRange) {
        let chain = self.bare(which, Op::SecureErase, range);
        let request = self.queues[which].make_request(chain, Gfp::NOWAIT).expect("there is memory");
        let request = request.with(PassthroughCommand::SecureErase);
        self.queues[which].execute(request, ERASES).expect("not full");
    }

    /// Waits until all is done.
    fn finish(&mut self) {
        while !self.queues.iter().all(RequestQueue::is_idle) {
            for queue in &mut self.queues {
                queue.dispatch();
                queue.reap(|completed| {
                    let expected = if completed.cookie == ERASES { Status::IoErr } else { Status::Ok };
                    assert_eq!(completed.status, expected);
                });
            }
            if let Some(ring) = &self.ring {
                ring.enter(Wait::No).expect("io_uring_enter(2)");
            }
        }
    }

    /// Everything that a guest can ask for, several at a time.
    fn everything(&mut self) {
        let (fua, unmap) = (true, true);
        let write = Op::Write { fua: false };
        for which in [0, 1] {
            assert!(self.queues[which].can_accept());
            let scattered = self.chain(which, Op::Read, 4096, (0..1024).map(|i| (i * 1024, 512)));
            self.submit(which, scattered);
            self.finish();
            for op in [Op::Read, write, Op::Write { fua }] {
                let fits = self.chain(which, op, 1 << 20, [(4096, 256 << 10)].into_iter());
                self.submit(which, fits);
                let misaligned = self.chain(which, op, 2 << 20, [(4097, 1 << 20)].into_iter());
                self.submit(which, misaligned);
                self.finish();
            }
            for op in
                [Op::Discard { fua }, Op::WriteZeroes { unmap, fua }, Op::WriteZeroes { unmap: false, fua }]
            {
                let chain = self.bare(which, op, range((5 << 20) + 512, 300 << 10));
                self.submit(which, chain);
            }
            let flush = self.bare(which, Op::Flush, DiskRange::none());
            self.submit(which, flush);
            self.command(which, PassthroughCommand::DeviceId);
            self.command(which, PassthroughCommand::Lifetime);
            self.erase(which, range(6 << 20, 64 << 10));
            self.erase(which, range((7 << 20) + 512, 64 << 10));
            self.finish();
        }
        // Parts of the same blocks, so that each waits for the others.
        for part in 0..u64::from(DEPTH) / 2 {
            for which in [0, 1] {
                let offset = (part * 2 + which as u64) * 512;
                let chain = self.chain(which, write, offset, [(offset + 1, 512)].into_iter());
                self.submit(which, chain);
            }
        }
        self.finish();
    }
}

fn range(offset: u64, len: u64) -> DiskRange {
    DiskRange::new(Sector(offset / 512), len, Sector(DISK_BYTES / 512), 512).expect("on the disk")
}

fn memory() -> MemPin {
    let file = File::from(memfd_create("sluice-test", MemfdFlags::CLOEXEC).expect("memfd_create(2)"));
    let size = 4 << 20;
    file.set_len(size).expect("address space");
    let info = RegionInfo { guest_addr: 0, size, user_addr: 0, mmap_offset: 0 };
    let region = Region::map(info, file).expect("a good region");
    MemPin::new(Arc::new(GuestMem::new(vec![region]).expect("one region")))
}

#[test]
fn the_data_path_allocates_nothing_after_its_start() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let (bytes, on_file) = (DISK_BYTES, Medium::File(file.path().into()));
    for (medium, engine) in [
        (on_file.clone(), EngineKind::Uring),
        (on_file, EngineKind::Sync),
        (Medium::Ram { bytes }, EngineKind::Sync),
        (Medium::Null { bytes }, EngineKind::Sync),
    ] {
        file.as_file().write_all_at(&vec![1; 8 << 20], 0).expect("there is room");
        let name = format!("{medium}, {engine}");
        let mut rig = Rig::new(medium, engine);
        // The disk is found out not to know a command once, and that is logged.
        rig.everything();
        let before = ALLOCATIONS.get();
        for _ in 0..3 {
            rig.everything();
        }
        assert_eq!(ALLOCATIONS.get() - before, 0, "{name}");
        let stats = rig.queues[0].stats();
        for (name, counter) in [
            ("misaligned", &stats.bounced_misaligned),
            ("parts of blocks", &stats.bounced_partial_block),
            ("splits", &stats.splits),
            ("parked", &stats.parked),
        ] {
            assert!(counter.value() > 0, "the test does not reach {name}");
        }
    }
}

#[test]
fn the_allocator_counts() {
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(Box::new(7)));
    assert_eq!(ALLOCATIONS.get() - before, 1);
}
