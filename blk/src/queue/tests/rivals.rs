//! Two queues that write to the same blocks: who waits for whom, and that nobody waits for ever.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bio::Op;
use crate::doubles::dice::Dice;
use crate::doubles::guest_ram::GuestRam;

use super::bench::{config, large_blocks, range};
use super::scripted::{DISCARDED, Disk, Knows, Scripted};
use super::*;

/// Whether the thread of a queue was woken.
#[derive(Debug, Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Two queues on one disk of sevens.
struct Rivals {
    disk: Rc<RefCell<Disk>>,
    queues: [Option<RequestQueue>; 2],
    woken: [Arc<Woken>; 2],
    ram: GuestRam,
}

impl Rivals {
    fn new() -> Self {
        let disk = Disk::of(vec![7; 16 * 4096], large_blocks(), Dice::new(1));
        let overlaps = Arc::new(Overlaps::default());
        let woken: [Arc<Woken>; 2] = Default::default();
        let queues = [0, 1].map(|which| {
            let wake = Arc::clone(&woken[which]) as Arc<dyn Wake>;
            let overlaps = Some((Arc::clone(&overlaps), wake));
            let engine = Scripted { disk: Rc::clone(&disk), queue: which };
            let config = QueueConfig { overlaps, ..config(4, large_blocks()) };
            Some(RequestQueue::new(config, Box::new(engine)).expect("address space"))
        });
        Self { disk, queues, woken, ram: GuestRam::new(1, 64) }
    }

    fn queue(&mut self, which: usize) -> &mut RequestQueue {
        self.queues[which].as_mut().expect("it is not dropped yet")
    }

    /// Has a queue write so many of the byte at `offset`, and dispatches it.
    fn write(&mut self, which: usize, offset: u64, len: usize, byte: u8) {
        let addr = u64::from(byte) * 8192;
        self.ram.write(addr, &vec![byte; len]);
        let sg = self.ram.list([(addr, len)]);
        let mut chain = BioChain::new();
        let write = Op::Write { fua: false };
        chain.push(self.queue(which).bios().try_take(write, range(offset, len as u64)).expect("free")).sg =
            sg;
        self.submit(which, chain);
    }

    fn bare(&mut self, which: usize, op: Op, offset: u64, len: u64) {
        let mut chain = BioChain::new();
        chain.push(self.queue(which).bios().try_take(op, range(offset, len)).expect("free"));
        self.submit(which, chain);
    }

    fn submit(&mut self, which: usize, chain: BioChain) {
        self.queue(which).submit(chain, 0).expect("not full");
        self.queue(which).dispatch();
    }

    /// How many requests a queue has in the engine.
    fn in_flight(&self, which: usize) -> usize {
        self.disk.borrow().in_flight(which)
    }

    /// Lets a queue finish all that it has.
    fn finish(&mut self, which: usize) {
        for _ in 0..10_000 {
            self.queue(which).dispatch();
            self.queue(which).reap(|completed| assert_eq!(completed.status, Status::Ok));
            if self.queue(which).is_idle() {
                return check_nothing_is_held(self.queue(which));
            }
        }
        panic!("queue {which} makes no progress");
    }

    fn was_woken(&self, which: usize) -> bool {
        self.woken[which].0.swap(false, Ordering::Relaxed)
    }

    fn on_disk(&self, offset: u64, len: usize) -> Vec<u8> {
        self.disk.borrow().read(offset, len)
    }
}

#[test]
fn two_queues_that_write_parts_of_one_block_do_so_one_after_the_other() {
    let mut rivals = Rivals::new();
    rivals.write(0, 0, 512, 1);
    rivals.write(1, 512, 512, 2);
    assert_eq!((rivals.in_flight(0), rivals.in_flight(1)), (1, 0), "the block is in use");
    assert!(!rivals.queue(1).is_idle() && !rivals.queue(1).has_parked(), "nothing to do but wait");
    rivals.finish(0);
    assert!(rivals.was_woken(1) && !rivals.was_woken(0));
    rivals.finish(1);
    assert!(rivals.on_disk(0, 4096) == [&[1; 512][..], &[2; 512], &[7; 3072]].concat());
}

#[test]
fn parts_of_different_blocks_are_written_at_the_same_time() {
    let mut rivals = Rivals::new();
    rivals.write(0, 0, 512, 1);
    rivals.write(1, 4096, 512, 2);
    assert_eq!((rivals.in_flight(0), rivals.in_flight(1)), (1, 1));
    rivals.finish(0);
    rivals.finish(1);
    assert!(!rivals.was_woken(0) && !rivals.was_woken(1));
}

#[test]
fn whole_blocks_zeroes_and_discards_wait_for_parts_and_parts_for_them() {
    for op in
        [Op::Write { fua: false }, Op::Discard { fua: false }, Op::WriteZeroes { unmap: true, fua: false }]
    {
        for part_first in [true, false] {
            let mut rivals = Rivals::new();
            let whole = |rivals: &mut Rivals, which| match op {
                Op::Write { .. } => rivals.write(which, 0, 8192, 2),
                _ => rivals.bare(which, op, 0, 8192),
            };
            if part_first {
                rivals.write(0, 512, 512, 1);
                whole(&mut rivals, 1);
            } else {
                whole(&mut rivals, 0);
                rivals.write(1, 512, 512, 1);
            }
            assert_eq!((rivals.in_flight(0), rivals.in_flight(1)), (1, 0), "{op:?}");
            rivals.finish(0);
            assert!(rivals.was_woken(1));
            rivals.finish(1);
            let byte = match op {
                Op::Write { .. } => 2,
                Op::Discard { .. } => DISCARDED,
                _ => 0,
            };
            let mut expected = vec![byte; 8192];
            if !part_first {
                expected[512..1024].fill(1);
            }
            assert!(rivals.on_disk(0, 8192) == expected, "{op:?}");
        }
    }
}

#[test]
fn reads_wait_for_nobody() {
    let mut rivals = Rivals::new();
    rivals.write(0, 512, 512, 1);
    let sg = rivals.ram.list([(100 * 512, 512)]);
    let mut chain = BioChain::new();
    chain.push(rivals.queue(1).bios().try_take(Op::Read, range(512, 512)).expect("free")).sg = sg;
    rivals.submit(1, chain);
    assert_eq!(rivals.in_flight(1), 1);
    rivals.finish(1);
    rivals.finish(0);
}

#[test]
fn a_queue_that_is_dropped_gives_back_its_blocks_and_its_claims() {
    let mut rivals = Rivals::new();
    rivals.write(0, 0, 512, 1);
    rivals.write(1, 0, 8192, 2);
    rivals.queues[0] = None;
    assert!(rivals.was_woken(1), "the block is free");
    rivals.finish(1);
    let mut rivals = Rivals::new();
    rivals.write(0, 0, 512, 1);
    rivals.write(1, 512, 8192, 2);
    rivals.queues[1] = None;
    // It would be refused what a claim is on.
    rivals.write(0, 4096, 512, 3);
    assert_eq!(rivals.in_flight(0), 2);
    rivals.finish(0);
}

#[test]
fn a_chain_that_has_failed_waits_for_nothing_any_more() {
    let mut rivals = Rivals::new();
    rivals.write(0, 4096, 512, 1);
    // Its first part fails, its second waits for the block.
    rivals.write(1, 0, 4096 + 512, 2);
    assert_eq!(rivals.in_flight(1), 1);
    rivals.disk.borrow_mut().faults.io_error = 100;
    let mut done = Vec::new();
    while !rivals.queue(1).is_idle() {
        rivals.queue(1).dispatch();
        rivals.queue(1).reap(|completed| done.push(completed.status));
    }
    assert_eq!(done, [Status::IoErr]);
    check_nothing_is_held(rivals.queue(1));
    rivals.disk.borrow_mut().faults.io_error = 0;
    // Queue 0 is behind nobody's claim.
    rivals.write(0, 8192, 512, 3);
    assert_eq!(rivals.in_flight(0), 2);
    rivals.finish(0);
}

#[test]
fn the_block_stays_in_use_while_the_engine_is_full_between_reading_and_writing() {
    let mut rivals = Rivals::new();
    rivals.write(0, 0, 512, 1);
    let refused = |rivals: &mut Rivals| {
        rivals.queue(0).dispatch();
        rivals.queue(0).again.len() == 1
    };
    while rivals.in_flight(0) > 0 {
        rivals.queue(0).reap(|completed| panic!("{completed:?} was only read"));
    }
    rivals.disk.borrow_mut().room = 0;
    assert!(refused(&mut rivals));
    rivals.disk.borrow_mut().room = 1;
    rivals.write(1, 512, 512, 2);
    assert_eq!(rivals.in_flight(1), 0);
    rivals.finish(0);
    rivals.finish(1);
    assert!(rivals.on_disk(0, 1024) == [[1; 512], [2; 512]].concat());
}

#[test]
fn zeroes_that_are_done_another_way_are_still_nobody_elses() {
    let mut rivals = Rivals::new();
    rivals.disk.borrow_mut().knows = Knows { zero: false, zero_unmap: false, ..Knows::ALL };
    rivals.bare(0, Op::WriteZeroes { unmap: true, fua: false }, 0, 8192);
    rivals.write(1, 512, 512, 2);
    assert_eq!(rivals.in_flight(1), 0);
    // Between two ways to do it nothing is in use, and it is the other's turn.
    while rivals.in_flight(0) > 0 {
        rivals.queue(0).reap(|completed| panic!("{completed:?} was not done"));
    }
    assert!(rivals.was_woken(1));
    rivals.queue(1).dispatch();
    assert_eq!(rivals.in_flight(1), 1);
    rivals.queue(0).dispatch();
    assert_eq!(rivals.in_flight(0), 0);
    rivals.finish(1);
    assert!(rivals.was_woken(0));
    rivals.finish(0);
    assert!(rivals.on_disk(0, 8192) == [0; 8192]);
}
