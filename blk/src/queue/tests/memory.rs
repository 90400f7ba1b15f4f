//! What happens while memory is short: big I/O is split, a partial allocation is progress, and nobody waits for ever.

use std::rc::Rc;

use sluice_mem::kzalloc::{KBox, kzalloc};

use crate::bio::Op;
use crate::doubles::dice::Dice;
use crate::request::Command;
use crate::sector::DiskRange;

use super::bench::{Bench, bench, config, direct, large_blocks, memory, range, short_of_memory};
use super::scripted::Knows;
use super::*;

/// As little as is legal: progress is by blocks.
fn smallest() -> QueueMemory {
    let reserve = QueueMemory::RESERVE_MIN;
    let most = reserve + RequestQueue::PAGES_TO_ACCEPT * PAGE_SIZE;
    QueueMemory { budget: Budget::new("test's", most), reserve, most }
}

/// Takes all pages of the queue that are no reserve.
fn hog(bench: &Bench) -> Vec<KBox> {
    let arena = bench.queue.arena().clone();
    std::iter::from_fn(|| kzalloc(&arena, 1, Gfp::NOWAIT).ok()).collect()
}

/// Goes on until all is done, though pages are hogged.
fn finish(bench: &mut Bench) -> Vec<Status> {
    let mut done = Vec::new();
    for _ in 0..100_000 {
        bench.queue.dispatch();
        bench.queue.reap(|completed| done.push(completed.status));
        if bench.queue.is_idle() {
            return done;
        }
    }
    panic!("{:?} makes no progress", bench.queue);
}

/// Lengths of the requests that the disk was given.
fn lengths(bench: &Bench) -> Vec<u64> {
    bench.disk.borrow().log.iter().map(|(_, _, len)| *len).collect()
}

#[test]
fn a_big_io_is_split_into_smaller_parts_when_allocation_fails() {
    let mut bench = bench(short_of_memory(1, direct(512)));
    let data = Dice::new(5).bytes(15 << 20);
    bench.ram.write(3, &data);
    let chain = bench.transfer(Op::Write { fua: false }, 0, &[(3, data.len())]);
    assert_eq!(bench.run(chain), (Status::Ok, 0));
    assert!(bench.disk().read(0, data.len()) == data);
    let lengths = lengths(&bench);
    assert!(lengths.len() > 15 && lengths.iter().any(|len| *len < 1 << 20), "{lengths:?}");
    assert_eq!(bench.queue.stats().bounced_misaligned.value(), lengths.len() as u64);
    assert!(bench.queue.stats().parked.value() > 0);
}

#[test]
fn a_partial_allocation_is_progress_and_the_rest_goes_on_when_memory_returns() {
    let mut bench = bench(short_of_memory(1, direct(512)));
    let mut hogs = hog(&bench);
    // In so many pieces that what is cut off needs a table.
    let pieces: Vec<(u64, usize)> = (0..240).map(|i| (1 + i * 20_000, 16 << 10)).collect();
    let data = Dice::new(6).bytes(240 * (16 << 10));
    bench.disk().write(0, &data);
    let chain = bench.transfer(Op::Read, 0, &pieces);
    bench.submit(chain, 0);
    // Of the reserve too, all but the pages for two blocks, the buffer's table and the rest's.
    let arena = bench.queue.arena().clone();
    while arena.available_pages(Gfp::ATOMIC) > 4 {
        hogs.push(kzalloc(&arena, 1, Gfp::ATOMIC).expect("it is available"));
    }
    bench.queue.dispatch();
    assert_eq!((lengths(&bench), bench.queue.stats().parked.value()), (vec![8192], 1));
    hogs.clear();
    assert_eq!(finish(&mut bench), [Status::Ok]);
    assert!(lengths(&bench)[1..].contains(&(1 << 20)), "with more memory the pieces are larger");
    let read: Vec<u8> = pieces.iter().flat_map(|(addr, len)| bench.ram.read(*addr, *len)).collect();
    assert!(read == data);
    check_nothing_is_held(&bench.queue);
}

#[test]
fn the_reserve_alone_carries_the_largest_piece() {
    let mut bench = bench(short_of_memory(1, direct(512)));
    let hogs = hog(&bench);
    let pieces: Vec<(u64, usize)> = (0..240).map(|i| (1 + i * 20_000, 16 << 10)).collect();
    let chain = bench.transfer(Op::Read, 0, &pieces);
    bench.submit(chain, 0);
    bench.queue.dispatch();
    assert_eq!(lengths(&bench), [1 << 20]);
    assert_eq!(finish(&mut bench), [Status::Ok]);
    drop(hogs);
    check_nothing_is_held(&bench.queue);
}

#[test]
fn the_smallest_legal_reserve_carries_every_request_block_by_block() {
    for limits in [direct(512), direct(4096), large_blocks()] {
        for op in [Op::Read, Op::Write { fua: true }, Op::WriteZeroes { unmap: true, fua: true }] {
            let mut bench = bench(QueueConfig { memory: smallest(), ..config(1, limits) });
            bench.disk().knows = Knows { zero: false, zero_unmap: false, ..Knows::ALL };
            let hogs = hog(&bench);
            let len = 4 << 20;
            let data = Dice::new(7).bytes(len);
            bench.disk().write(0, &data);
            let pieces: Vec<(u64, usize)> = (0..1024).map(|i| (1 + i * 5000, 4096)).collect();
            let chain = match op {
                Op::WriteZeroes { .. } => bench.bare(op, range(512 * 8, len as u64)),
                // Not at a block's start, where the guest may do that.
                _ => bench.transfer(op, u64::from(limits.logical_block_size), &pieces),
            };
            bench.submit(chain, 0);
            assert_eq!(finish(&mut bench), [Status::Ok], "{op:?} on {limits:?}");
            drop(hogs);
            check_nothing_is_held(&bench.queue);
            let reads =
                bench.disk().log.iter().filter(|entry| entry.0 == Command::Read).map(|entry| entry.2).max();
            // The last two blocks, of which nothing is cut off, need no table for that.
            assert!(reads.is_none_or(|len| len <= 8192), "there is no memory for {reads:?}");
        }
    }
}

#[test]
fn so_it_does_with_blocks_in_hundreds_of_pieces() {
    let mut bench = bench(QueueConfig { memory: smallest(), ..config(1, direct(4096)) });
    let pieces: Vec<(u64, usize)> = (0..4096).map(|i| (1 + 3 * i, 2)).collect();
    let hogs = hog(&bench);
    let chain = bench.transfer(Op::Read, 0, &pieces);
    bench.submit(chain, 0);
    assert_eq!(finish(&mut bench), [Status::Ok]);
    drop(hogs);
    check_nothing_is_held(&bench.queue);
}

#[test]
#[should_panic(expected = "too small for progress")]
fn less_than_the_smallest_reserve_is_a_mistake_of_ours() {
    let memory = QueueMemory { reserve: QueueMemory::RESERVE_MIN - PAGE_SIZE, ..smallest() };
    bench(QueueConfig { memory, ..config(1, direct(512)) });
}

#[test]
fn a_queue_is_not_made_where_there_is_no_memory_for_progress() {
    let disk = super::scripted::Disk::new(8, direct(512), Dice::new(1));
    let queue = |memory: QueueMemory| {
        let engine = super::scripted::Scripted { disk: Rc::clone(&disk), queue: 0 };
        RequestQueue::new(QueueConfig { memory, ..config(1, direct(512)) }, Box::new(engine))
    };
    assert!(queue(memory(QueueMemory::LEAST)).is_ok());
    let error = queue(memory(QueueMemory::LEAST - PAGE_SIZE)).expect_err("a page is missing");
    assert!(error.to_string().starts_with("there is no memory for one request"), "{error}");
    let error = queue(memory(QueueMemory::RESERVE - PAGE_SIZE)).expect_err("not even the reserve");
    assert!(error.to_string().contains("over the test's budget"), "{error}");
    let most = QueueMemory::LEAST - PAGE_SIZE;
    assert!(queue(QueueMemory { most, ..QueueMemory::default() }).is_err());
}

#[test]
fn others_that_use_up_the_budget_never_stop_a_queue() {
    let shared = memory(QueueMemory::LEAST * 2);
    let mut bench = bench(QueueConfig { memory: shared.clone(), ..config(1, direct(512)) });
    let left = shared.budget.limit() - shared.budget.used();
    let _others = shared.budget.charge(left, Gfp::NOWAIT).expect("it is left");
    for _ in 0..3 {
        assert!(bench.queue.can_accept(), "an idle queue accepts any chain");
        let chain = bench.transfer(Op::Read, 0, &[(1, 4 << 20)]);
        assert_eq!(bench.run(chain), (Status::Ok, 4 << 20));
    }
}

#[test]
fn only_the_first_bio_of_a_chain_may_wait_and_once_it_is_had_so_are_the_others() {
    let mut bench = bench(short_of_memory(1, direct(512)));
    let mut hogs = hog(&bench);
    let mut refused = 0;
    while !bench.queue.can_accept() {
        refused += 1;
        hogs.pop().expect("with no hogs it accepts");
    }
    assert_eq!(refused, RequestQueue::PAGES_TO_ACCEPT);
    // The longest chain, each bio of which needs a table.
    let arena = bench.queue.arena().clone();
    let mut chain = BioChain::new();
    for i in 0..BioSet::CHAIN_MAX as u64 {
        let bio = bench.queue.bios().try_take(Op::Read, range(i * 4096, 4096)).expect("room was seen");
        let bio = chain.push(bio);
        for piece in 0..8 {
            let addr = (i * 8 + piece) * 1024;
            assert_eq!(bio.sg.push_guest(bench.ram.pin(), addr, 512, &arena), Ok(512));
        }
    }
    bench.submit(chain, 0);
    assert_eq!(finish(&mut bench), [Status::Ok]);
}

#[test]
fn a_chain_that_waits_for_memory_takes_none_from_those_that_have_some() {
    let mut bench = bench(QueueConfig { memory: smallest(), ..config(4, direct(512)) });
    for cookie in 0..4 {
        let chain = bench.transfer(Op::Write { fua: false }, u64::from(cookie) << 20, &[(1, 1 << 20)]);
        bench.submit(chain, cookie);
    }
    assert_eq!(bench.finish().len(), 4);
    let flush = bench.bare(Op::Flush, DiskRange::none());
    assert_eq!(bench.run(flush), (Status::Ok, 0));
    assert!(bench.queue.arena().capacity_pages() * PAGE_SIZE <= smallest().most, "and never takes more");
}
