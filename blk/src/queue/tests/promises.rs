//! What is accepted and handed back, in what order things go on, and what always comes back.

use crate::bio::Op;
use crate::sector::DiskRange;

use super::bench::{bench, config, direct, range, short_of_memory};
use super::*;

#[test]
fn an_empty_chain_is_handed_back() {
    let mut bench = bench(config(1, QueueLimits::default()));
    let refused = bench.queue.submit(BioChain::new(), 1).expect_err("there is nothing to do");
    assert_eq!(refused.reason, RefuseReason::Empty);
    assert_eq!(refused.to_string(), "the chain is empty");
    assert_eq!(
        bench.queue.make_request(BioChain::new(), Gfp::NOWAIT).expect_err("nor here").reason,
        RefuseReason::Empty
    );
}

#[test]
fn a_chain_of_two_directions_is_handed_back_as_it_was() {
    let mut bench = bench(config(1, QueueLimits::default()));
    let mut chain = bench.transfer(Op::Read, 0, &[(0, 512)]);
    let mut write = bench.transfer(Op::Write { fua: false }, 512, &[(512, 512)]);
    chain.push(write.pop().expect("one bio"));
    let refused = bench.queue.submit(chain, 1).expect_err("it goes both ways");
    assert_eq!(refused.reason, RefuseReason::MixedDirections);
    let refused = bench.queue.make_request(refused.chain, Gfp::NOWAIT).expect_err("still");
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
    let request = bench.queue.make_request(refused.chain, Gfp::NOWAIT).expect("one direction");
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
        let request = bench.queue.make_request(chain, Gfp::NOWAIT).expect("one direction");
        bench.queue.execute(request.with(PassthroughCommand::DeviceId), cookie).expect("not full");
    }
    assert!(!bench.queue.can_accept() && !bench.queue.is_idle());
    assert_eq!(bench.finish().len(), 2);
}

#[test]
fn chains_start_in_the_order_in_which_they_came() {
    let mut bench = bench(short_of_memory(8, direct(512)));
    for cookie in 0..8 {
        // The first is so large that it has to wait for memory; the others would not.
        let len = if cookie == 0 { 4 << 20 } else { 512 };
        let offset = if cookie == 0 { 0 } else { 8 << 20 };
        let chain = bench.transfer(Op::Write { fua: false }, offset, &[(1, len)]);
        bench.submit(chain, cookie);
    }
    bench.queue.dispatch();
    assert!(bench.commands().len() < 4, "memory is short");
    bench.finish();
    let starts: Vec<u64> = bench.disk().log.iter().map(|(_, offset, _)| *offset).collect();
    assert!(starts[0] == 0 && starts.is_sorted(), "{starts:?}");
}

#[test]
fn memory_that_came_back_is_told_though_no_chain_is_done() {
    let mut bench = bench(short_of_memory(1, direct(512)));
    let chain = bench.transfer(Op::Read, 0, &[(1, 4 << 20)]);
    bench.submit(chain, 0);
    assert!(bench.queue.has_parked(), "it was never dispatched");
    bench.queue.dispatch();
    assert!(bench.disk().in_flight(0) > 0 && !bench.queue.has_parked(), "the engine has what it can take");
    while bench.disk().in_flight(0) > 0 {
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
    assert_eq!(arena.used_pages(), 0);
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
