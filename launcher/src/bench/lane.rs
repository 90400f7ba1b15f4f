//! One queue of the client: kept full, every completion checked and timed.
//!
//! Per request there is no allocation and no system call but those of libblkio's core; the clock is read once per batch
//! of completions: that is when they are done, and when the requests that take their place begin.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use blkio::{Blkioq, Completion, MemoryRegion, ReqFlags};

use super::pattern::{Pattern, SECTOR, Step, WRITTEN, belongs};
use super::statistics::Latencies;
use super::workload::Workload;

/// How long nothing may complete.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes that a buffer may begin late.
const SHIFT_MAX: usize = 4096;

/// A queue, its share of the client's memory, and what is in flight.
pub(super) struct Lane {
    queue: Blkioq,
    /// Whether nothing may complete for [`PATIENCE`] only. The bare file needs no limit: the kernel does not die.
    limited: bool,
    pattern: Pattern,
    buffers: Buffers,
    slots: Box<[Slot]>,
    completions: Completions,
    in_flight: usize,
    /// When the last request completed.
    last: Instant,
}

/// Two buffers for each slot: what was read stays as it is until it has been looked at.
pub(super) struct Buffers {
    /// The memory that the queue's device knows, and the file behind it.
    address: usize,
    memory: File,
    start: usize,
    stride: usize,
    block: usize,
    shift: usize,
}

/// A request in flight, or the last one that was.
#[derive(Clone, Copy)]
struct Slot {
    step: Step,
    begun: Instant,
}

/// Room for completions; all of it is initialised at all times.
struct Completions(Box<[MaybeUninit<Completion>]>);

impl Completions {
    fn new(count: usize) -> Self {
        let empty =
            || Completion { user_data: 0, error_msg: ptr::null(), ret: 0, reserved_: Default::default() };
        Self(std::iter::repeat_with(|| MaybeUninit::new(empty())).take(count).collect())
    }

    /// The slot and the result of a completion.
    #[expect(unsafe_code, reason = "blkio takes only memory that may be uninitialised")]
    fn at(&self, index: usize) -> (usize, i32) {
        // SAFETY: all elements were initialised when the room was made, and blkio writes only whole completions.
        let completion = unsafe { self.0[index].assume_init_ref() };
        (completion.user_data, completion.ret)
    }
}

impl Buffers {
    /// The memory that a lane needs, in bytes.
    pub(super) fn bytes(workload: &Workload) -> Result<usize> {
        Ok(2 * usize::from(workload.depth) * Self::stride(workload)?)
    }

    fn stride(workload: &Workload) -> Result<usize> {
        Ok(usize::try_from(workload.block)?.next_multiple_of(SHIFT_MAX) + SHIFT_MAX)
    }

    /// The part of a region for the so-manieth lane, with data to be written in it.
    pub(super) fn new(workload: &Workload, region: &MemoryRegion, index: usize) -> Result<Self> {
        // The region's descriptor belongs to blkio; by this path the same memory is opened once more.
        let memory = File::options().read(true).write(true).open(format!("/proc/self/fd/{}", region.fd));
        let buffers = Self {
            address: region.addr,
            memory: memory.context("cannot open the client's memory")?,
            start: index * Self::bytes(workload)?,
            stride: Self::stride(workload)?,
            block: usize::try_from(workload.block)?,
            shift: workload.shift.into(),
        };
        let mut data = vec![0; buffers.block];
        for sector in data.chunks_mut(usize::try_from(SECTOR)?) {
            sector[..8].copy_from_slice(&WRITTEN.to_le_bytes());
        }
        for slot in 0..workload.depth {
            for write in [false, true] {
                let at = buffers.start_of(slot.into(), write);
                // Into the other one as well: now all pages are there.
                buffers.memory.write_all_at(&data, u64::try_from(at)?)?;
            }
        }
        Ok(buffers)
    }

    /// Where a slot's buffer begins, from the start of the region.
    fn start_of(&self, slot: usize, write: bool) -> usize {
        self.start + (2 * slot + usize::from(write)) * self.stride + self.shift
    }

    fn pointer(&self, slot: usize, write: bool) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.address + self.start_of(slot, write))
    }

    /// The first word that a slot read.
    fn word(&self, slot: usize) -> Result<u64> {
        let mut word = [0; 8];
        self.memory.read_exact_at(&mut word, u64::try_from(self.start_of(slot, false))?)?;
        Ok(u64::from_le_bytes(word))
    }
}

impl Lane {
    pub(super) fn new(
        queue: Blkioq,
        buffers: Buffers,
        pattern: Pattern,
        workload: &Workload,
        limited: bool,
    ) -> Self {
        let depth = usize::from(workload.depth);
        let now = Instant::now();
        let unused = Slot { step: Step { position: 0, write: true }, begun: now };
        Self {
            queue,
            limited,
            pattern,
            buffers,
            slots: vec![unused; depth].into(),
            completions: Completions::new(depth),
            in_flight: 0,
            last: now,
        }
    }

    /// Begins as many requests as there may be.
    pub(super) fn fill(&mut self) {
        let now = Instant::now();
        for slot in 0..self.slots.len() {
            self.begin(slot, now);
        }
        self.in_flight = self.slots.len();
    }

    /// Waits for at least so many completions; those before `end` make room for new requests. Returns how many there
    /// were.
    pub(super) fn turn(&mut self, least: usize, end: Instant, latencies: &mut Latencies) -> Result<usize> {
        let mut timeout = PATIENCE;
        let timeout = self.limited.then_some(&mut timeout);
        let count = self
            .queue
            .do_io(&mut self.completions.0, least, timeout, None)
            .with_context(|| format!("no completion, and {} requests in flight", self.in_flight))?;
        if count == 0 {
            return Ok(0);
        }
        let now = Instant::now();
        for index in 0..count {
            let (slot, result) = self.completions.at(index);
            let Slot { step, begun } = self.slots[slot];
            ensure!(result == 0, "{step:?} failed: {}", std::io::Error::from_raw_os_error(-result));
            latencies.record(now - begun);
            if now < end {
                self.begin(slot, now);
            } else {
                self.in_flight -= 1;
            }
        }
        self.last = now;
        Ok(count)
    }

    fn begin(&mut self, slot: usize, now: Instant) {
        let step = self.pattern.next();
        self.slots[slot] = Slot { step, begun: now };
        let (pointer, len) = (self.buffers.pointer(slot, step.write), self.buffers.block);
        if step.write {
            self.queue.write(step.position, pointer, len, slot, ReqFlags::empty());
        } else {
            self.queue.read(step.position, pointer, len, slot, ReqFlags::empty());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.in_flight == 0
    }

    /// When the last request completed.
    pub(super) fn last(&self) -> Instant {
        self.last
    }

    /// Checks by the stamps that the last requests have read what is there; says how many that were.
    pub(super) fn verify(&self) -> Result<usize> {
        let reads = self.slots.iter().enumerate().filter(|(_, slot)| !slot.step.write);
        let mut count = 0;
        for (index, Slot { step, .. }) in reads {
            let word = self.buffers.word(index)?;
            if !belongs(word, step.position) {
                bail!("the read at byte {} returned something else: {word:#x}", step.position);
            }
            count += 1;
        }
        Ok(count)
    }
}
