//! What is accepted and handed back, in what order things go on, and what always comes back.

use sluice_mem::kzalloc::kzalloc;

use crate::doubles::dice::Dice;
use crate::sector::DiskRange;

use super::bench::{bench, config, direct, range};
use super::*;

#[test]
fn an_empty_chain_is_handed_back() {
    let mut bench = bench(config(1, QueueLimits::default()));
    let refused = bench.queue.submit(BioChain::new(), 1).expect_err("there is nothing to do");
    assert_eq!(refused.reason, RefuseReason::Empty);
    assert_eq!(refused.to_string(), "the chain is empty");
    assert_eq!(bench.queue.make_request(BioChain::new()).expect_err("nor here").reason, RefuseReason::Empty);
}

#[test]
fn a_chain_of_two_directions_is_handed_back_as_it_was() {
    let mut bench = bench(config(1, QueueLimits::default()));
    let mut chain = bench.transfer(Op::Read, 0, &[(0, 512)]);
    let mut write = bench.transfer(Op::Write { fua: false }, 512, &[(512, 512)]);
    chain.push(write.pop().expect("one bio"));
    let refused = bench.queue.submit(chain, 1).expect_err("it goes both ways");
    assert_eq!(refused.reason, RefuseReason::MixedDirections);
    let refused = bench.queue.make_request(refused.chain).expect_err("still");
    let bios: Vec<_> = refused.chain.iter().map(|bio| (bio.op, bio.range, bio.sg.bytes())).collect();
    assert_eq!(bios, [(Op::Read, range(0, 512), 512), (Op::Write { fua: false }, range(512, 512), 512)]);
    bench.queue.bios().put_chain(refused.chain);
    check_nothing_is_held(&bench.queue);
}

#[test]
fn a_full_queue_accepts_nothing_and_hands_back() {
    let mut bench = bench(config(2, QueueLimits::default()));
    for cookie in 0..2 {
        assert!(bench.queue.can_accept());
        let chain = bench.bare(Op::Flush, DiskRange::none());
        bench.submit(chain, cookie);
    }
    assert!(!bench.queue.can_accept());
    let chain = bench.bare(Op::Flush, DiskRange::none());
    let refused = bench.queue.submit(chain, 9).expect_err("two are submitted");
    assert_eq!(refused.reason, RefuseReason::Full);
    let request = bench.queue.make_request(refused.chain).expect("one direction");
    let refused = bench.queue.execute(request, 9).expect_err("it is still full");
    bench.queue.bios().put_chain(refused.chain);
    assert_eq!(bench.finish().len(), 2);
    assert!(bench.queue.can_accept());
}

#[test]
fn what_is_done_counts_until_it_is_reaped() {
    let mut bench = bench(config(2, QueueLimits::default()));
    for cookie in 0..2 {
        let chain = bench.transfer(Op::DeviceId, 0, &[(0, 512)]);
        let request = bench.queue.make_request(chain).expect("one direction");
        bench.queue.execute(request.device_id(), cookie).expect("not full");
    }
    assert!(!bench.queue.can_accept() && !bench.queue.is_idle());
    assert_eq!(bench.finish().len(), 2);
}

#[test]
fn who_the_disk_is_goes_into_the_memory_as_far_as_that_goes() {
    let mut bench = bench(config(1, QueueLimits::default()));
    for (pieces, expected) in [
        (&[(100, 7), (300, 5), (200, 30)][..], &b"disk-of-the-tests-01"[..]),
        (&[(100, 1)], b"d"),
        (&[(4090, 10), (5000, 8)], b"disk-of-the-tests-"),
    ] {
        bench.ram.write(0, &[0xee; 6000]);
        let mut chain = BioChain::new();
        for piece in pieces {
            let sg = bench.ram.list([*piece]);
            chain.push(bench.queue.bios().try_take(Op::DeviceId, DiskRange::none()).expect("free")).sg = sg;
        }
        let request = bench.queue.make_request(chain).expect("one direction");
        bench.queue.execute(request.device_id(), 3).expect("not full");
        let bytes = u32::try_from(expected.len()).expect("short");
        assert_eq!(bench.finish(), [Completed { cookie: 3, status: Status::Ok, bytes }]);
        let memory: Vec<u8> = pieces.iter().flat_map(|(addr, len)| bench.ram.read(*addr, *len)).collect();
        assert_eq!(&memory[..expected.len()], expected);
        assert!(memory[expected.len()..].iter().all(|byte| *byte == 0xee));
    }
    assert_eq!(bench.commands(), []);
}

#[test]
fn a_request_that_was_not_initialised_is_not_supported() {
    let mut bench = bench(config(1, QueueLimits::default()));
    let chain = bench.transfer(Op::DeviceId, 0, &[(0, 512)]);
    let request = bench.queue.make_request(chain).expect("one direction");
    bench.queue.execute(request, 3).expect("not full");
    assert_eq!(bench.finish(), [Completed { cookie: 3, status: Status::NotSupp, bytes: 0 }]);
    let chain = bench.transfer(Op::DeviceId, 0, &[(0, 512)]);
    assert_eq!(bench.run(chain), (Status::NotSupp, 0));
}

#[test]
fn a_block_in_hundreds_of_pieces_is_gathered() {
    let mut bench = bench(config(1, direct(4096)));
    // 4096 pieces of 2 bytes, which do not touch: two blocks in sixteen bios of 512 bytes.
    let pieces: Vec<(u64, usize)> = (0..4096).map(|i| (1 + 3 * i, 2)).collect();
    let data = Dice::new(4).bytes(8192);
    bench.disk().write(4096, &data);
    let chain = bench.transfer(Op::Read, 4096, &pieces);
    assert_eq!(chain.len(), BioSet::CHAIN_MAX);
    assert_eq!(bench.run(chain), (Status::Ok, 8192));
    let read: Vec<u8> = pieces.iter().flat_map(|(addr, len)| bench.ram.read(*addr, *len)).collect();
    assert!(read == data);
    assert!((0..4097).all(|i| bench.ram.read(3 * i, 1) == [0]), "the bytes between the pieces");
    assert_eq!(bench.queue.stats().bounced_fragmented.value(), 2);
    let chain = bench.transfer(Op::Write { fua: false }, 1 << 20, &pieces);
    assert_eq!(bench.run(chain), (Status::Ok, 0));
    assert!(bench.disk().read(1 << 20, 8192) == data);
}

#[test]
fn the_smallest_queue_carries_the_largest_request() {
    let mut bench = bench(config(1, direct(512)));
    let data = Dice::new(5).bytes(15 << 20);
    bench.ram.write(3, &data);
    let chain = bench.transfer(Op::Write { fua: false }, 0, &[(3, data.len())]);
    assert_eq!(bench.run(chain), (Status::Ok, 0));
    assert!(bench.disk().read(0, data.len()) == data);
    assert_eq!(bench.queue.stats().bounced_misaligned.value(), 15);
    assert!(bench.queue.stats().parked.value() > 0);
}

#[test]
fn the_reserve_alone_carries_any_piece() {
    let mut bench = bench(config(1, direct(512)));
    let arena = bench.queue.arena().clone();
    let hogs: Vec<_> = std::iter::from_fn(|| kzalloc(&arena, 1, Gfp::Nowait).ok()).collect();
    // In so many pieces that what is cut off needs a table.
    let pieces: Vec<(u64, usize)> = (0..240).map(|i| (1 + i * 20_000, 16 << 10)).collect();
    let data = Dice::new(6).bytes(240 * (16 << 10));
    bench.disk().write(0, &data);
    let chain = bench.transfer(Op::Read, 0, &pieces);
    bench.submit(chain, 0);
    let one_more = kzalloc(&arena, 1, Gfp::Atomic).expect("the reserve is free");
    bench.queue.dispatch();
    assert_eq!((bench.commands().len(), bench.queue.stats().parked.value()), (0, 1));
    drop(one_more);
    let mut done = Vec::new();
    for _ in 0..1000 {
        bench.queue.dispatch();
        bench.queue.reap(|completed| done.push(completed.status));
    }
    assert_eq!(done, [Status::Ok]);
    let read: Vec<u8> = pieces.iter().flat_map(|(addr, len)| bench.ram.read(*addr, *len)).collect();
    assert!(read == data);
    drop(hogs);
    check_nothing_is_held(&bench.queue);
}

#[test]
fn chains_start_in_the_order_in_which_they_came() {
    let mut bench = bench(config(8, direct(512)));
    for cookie in 0..8 {
        // The first is so large that it has to wait for memory; the others would not.
        let len = if cookie == 0 { 4 << 20 } else { 512 };
        let chain = bench.transfer(Op::Write { fua: false }, 0, &[(1, len)]);
        bench.submit(chain, cookie);
    }
    bench.queue.dispatch();
    assert!(bench.commands().len() < 4, "memory is short");
    bench.finish();
    let offsets: Vec<u64> = bench.disk().log.iter().map(|(_, offset, _)| *offset).collect();
    assert_eq!(offsets[..4], [0, 1 << 20, 2 << 20, 3 << 20]);
}

#[test]
fn memory_that_came_back_is_told_though_no_chain_is_done() {
    let mut bench = bench(config(1, direct(512)));
    let chain = bench.transfer(Op::Read, 0, &[(1, 4 << 20)]);
    bench.submit(chain, 0);
    assert!(bench.queue.has_parked(), "it was never dispatched");
    bench.queue.dispatch();
    assert!(bench.disk().in_flight() > 0 && !bench.queue.has_parked(), "the engine has what it can take");
    while bench.disk().in_flight() > 0 {
        bench.queue.reap(|completed| panic!("{completed:?} is not all there"));
    }
    assert!(bench.queue.has_parked() && !bench.queue.is_idle());
    assert_eq!(bench.finish().len(), 1);
}

#[test]
fn a_queue_can_be_dropped_with_requests_in_flight_and_parked() {
    let mut bench = bench(config(2, direct(512)));
    for cookie in 0..2 {
        let chain = bench.transfer(Op::Read, 0, &[(1, 4 << 20)]);
        bench.submit(chain, cookie);
    }
    bench.queue.dispatch();
    let arena = bench.queue.arena().clone();
    drop(bench.queue);
    drop(bench.disk);
    assert_eq!(arena.available_pages(Gfp::Atomic), arena.capacity_pages());
}

#[test]
#[should_panic(expected = "a range is as long as its memory")]
fn a_bio_with_more_memory_than_disk_is_a_mistake_of_ours() {
    let mut bench = bench(config(1, QueueLimits::default()));
    let mut chain = bench.transfer(Op::Write { fua: false }, 0, &[(0, 1024)]);
    let mut bio = chain.pop().expect("one bio");
    bio.range = range(0, 512);
    chain.push(bio);
    let _ = bench.queue.submit(chain, 0);
}

#[test]
#[should_panic(expected = "max_bytes: 2097152")]
fn limits_that_no_bounce_buffer_could_serve_are_a_mistake_of_ours() {
    bench(config(1, QueueLimits { max_bytes: 2 << 20, ..QueueLimits::default() }));
}
