//! Overlapping writes, each with a generation of its own, and what the blocks may hold after them.
//!
//! A driver that keeps up to [`DEPTH`] writes under way, several of the same blocks too. Each block says of which write it is,
//! so that one that is lost, that lands late, or that is answered twice is seen, whatever happens to whoever serves the ring.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::disk::DiskSpec;
use crate::driver::{PATIENCE, Ring};
use crate::memory::GuestMemory;
use crate::model::OK;
use crate::request::Request;
use crate::rng::Rng;
use crate::slot::Slot;

/// Writes under way.
pub const DEPTH: usize = 32;
/// The descriptors of the ring.
pub const RING: u16 = 128;
const BLOCK: usize = 4096;
/// Few, so that writes overlap.
const BLOCKS: usize = 24;

/// A disk that holds all blocks, of zeroes.
#[must_use]
pub fn spec() -> DiskSpec {
    DiskSpec { content: None, bytes: BLOCKS * BLOCK, ..DiskSpec::default() }
}

/// A write of a whole block.
#[derive(Clone, Copy, Debug)]
struct Write {
    generation: u64,
    submitted: u64,
    /// When its end was seen.
    completed: Option<u64>,
}

/// What the blocks may hold: of each, the writes that no later one has replaced.
struct Oracle {
    /// Counts submissions and completions.
    clock: u64,
    blocks: Vec<Vec<Write>>,
}

impl Oracle {
    fn new() -> Self {
        let never = Write { generation: 0, submitted: 0, completed: Some(0) };
        Self { clock: 0, blocks: vec![vec![never]; BLOCKS] }
    }

    fn submit(&mut self, block: usize) -> u64 {
        self.clock += 1;
        let write = Write { generation: self.clock, submitted: self.clock, completed: None };
        self.blocks[block].push(write);
        self.clock
    }

    fn complete(&mut self, block: usize, generation: u64) {
        self.clock += 1;
        let writes = &mut self.blocks[block];
        let write = writes.iter_mut().find(|write| write.generation == generation).expect("it was submitted");
        assert_eq!(write.completed.replace(self.clock), None, "generation {generation} completes twice");
        let submitted = write.submitted;
        // What was complete when this one was submitted is gone now.
        writes.retain(|write| write.completed.is_none_or(|at| at > submitted));
    }

    /// Checks what is on the disk when nothing is under way.
    fn check(&self, disk: &[u8], what: &str) {
        for (block, writes) in self.blocks.iter().enumerate() {
            let bytes = &disk[block * BLOCK..][..BLOCK];
            let found = writes.iter().find(|write| content(block, write.generation) == bytes);
            assert!(
                found.is_some(),
                "{what}: block {block} begins with {:?}, and may be one of {writes:?}",
                bytes.chunks(8).next()
            );
        }
    }
}

/// A block of this generation: all of it says which one it is. Generation 0 is what was there at first.
fn content(block: usize, generation: u64) -> Vec<u8> {
    let words = (0..BLOCK as u64 / 8)
        .map(|word| if generation == 0 { 0 } else { generation << 24 | (block as u64) << 16 | word });
    words.flat_map(u64::to_le_bytes).collect()
}

/// The driver.
pub struct Writer {
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// The ring.
    pub ring: Ring,
    /// Where its choices come from.
    pub rng: Rng,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// What was offered and not answered, in order.
    order: VecDeque<u16>,
    /// Whether answers have to come in that order.
    in_order: bool,
    /// By head: slot, block, generation.
    flying: HashMap<u16, (usize, usize, u64)>,
    oracle: Oracle,
}

impl Writer {
    /// A driver whose ring nobody serves yet.
    #[must_use]
    pub fn new(in_order: bool, seed: u64) -> Self {
        let memory = GuestMemory::new();
        let ring = Ring::new(&memory, RING, 0, false);
        Self {
            ring,
            slots: (0..DEPTH).map(|_| Slot::new(&memory, BLOCK, BLOCK)).collect(),
            free: (0..DEPTH).collect(),
            order: VecDeque::new(),
            in_order,
            flying: HashMap::new(),
            oracle: Oracle::new(),
            rng: Rng::for_test(seed),
            memory,
        }
    }

    /// How many writes are under way.
    #[must_use]
    pub fn flying(&self) -> usize {
        self.flying.len()
    }

    /// How many writes there were in all.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.oracle.clock / 2
    }

    /// Offers a write, if not so many are under way; the device is told of it by the ring's `submit`.
    pub fn write(&mut self) {
        let Some(slot) = self.free.pop() else { return };
        let block = self.rng.below(BLOCKS);
        let generation = self.oracle.submit(block);
        let request = Request::write((block * BLOCK / 512) as u64, content(block, generation));
        let head = self.ring.offer(&self.slots[slot].lay_out(&self.memory, &request));
        self.flying.insert(head, (slot, block, generation));
        self.order.push_back(head);
    }

    /// Takes what is done, and says how many that were. The ring's own checks see that nothing is used twice.
    pub fn take(&mut self) -> usize {
        let mut count = 0;
        while let Some(used) = self.ring.poll() {
            let (slot, block, generation) = self.flying.remove(&used.head).expect("it is under way");
            assert_eq!(self.slots[slot].answer(&self.memory), OK, "an error in the guest");
            assert_eq!(used.len, 1);
            let turn = self.order.iter().position(|head| *head == used.head).expect("it is under way");
            assert!(!self.in_order || turn == 0, "it overtakes {turn} others");
            self.order.remove(turn);
            self.oracle.complete(block, generation);
            self.free.push(slot);
            count += 1;
        }
        count
    }

    /// Writes for a while.
    pub fn work(&mut self, turns: usize) {
        for _ in 0..turns {
            for _ in 0..self.rng.between(1, 8) {
                self.write();
            }
            self.ring.submit();
            self.take();
            if self.rng.one_in(3) {
                std::thread::sleep(Duration::from_micros(self.rng.below(300) as u64));
            }
        }
    }

    /// Waits until nothing is under way, and checks what is on the disk.
    ///
    /// # Panics
    /// When a write is never answered, or the disk holds something else than it may.
    pub fn settle(&mut self, disk: &std::path::Path, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.flying.is_empty() {
            if self.take() == 0 {
                assert!(Instant::now() < deadline, "{what}: {} writes are answered never", self.flying.len());
                self.ring.sleep(Duration::from_millis(1));
            }
        }
        self.oracle.check(&std::fs::read(disk).expect("a disk"), what);
    }
}
