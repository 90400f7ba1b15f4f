//! blk_make_request(9), sentence by sentence.

use sluice_mem::gfp::MayWait;
use sluice_mem::kzalloc::kzalloc;
use sluice_mem::sglist::SgList;

use crate::bio::Op;
use crate::doubles::dice::Dice;
use crate::doubles::guest_ram::GuestRam;
use crate::request::Command;
use crate::sector::DiskRange;

use super::bench::{Bench, bench, config, direct, memory, range, short_of_memory};
use super::scripted::ERASED;
use super::*;

const LIFETIME: [u8; 6] = [1, 0, 2, 0, 11, 0];

/// Pass-through commands write to memory in these tests, but for secure erase.
fn bios(bench: &mut Bench, pieces: &[(u64, usize)]) -> BioChain {
    let mut chain = BioChain::new();
    for piece in pieces {
        let bio = bench.queue.bios().try_take(Op::DeviceId, DiskRange::none()).expect("a bio is free");
        chain.push(bio).sg = bench.ram.list([*piece]);
    }
    chain
}

fn run(bench: &mut Bench, chain: BioChain, command: PassthroughCommand) -> (Status, u32) {
    let request = bench.queue.make_request(chain, Gfp::NOWAIT).expect("there is memory");
    bench.queue.execute(request.with(command), 3).expect("not full");
    match bench.finish()[..] {
        [Completed { cookie: 3, status, bytes }] => (status, bytes),
        ref other => panic!("one chain was submitted: {other:?}"),
    }
}

#[test]
fn it_is_the_parallel_of_submit_for_commands_and_the_caller_initialises_the_request() {
    let lifetime = Some(LIFETIME);
    let mut bench = bench(QueueConfig { lifetime, secure_erase: true, ..config(1, QueueLimits::default()) });
    for (command, answer) in [
        (PassthroughCommand::DeviceId, &b"disk-of-the-tests-01"[..]),
        (PassthroughCommand::Lifetime, &LIFETIME),
    ] {
        let chain = bios(&mut bench, &[(0, 512)]);
        let bytes = u32::try_from(answer.len()).expect("short");
        assert_eq!(run(&mut bench, chain, command), (Status::Ok, bytes));
        assert_eq!(bench.ram.read(0, answer.len()), answer);
    }
    assert_eq!(bench.commands(), [], "the queue knows these itself");
    bench.disk().write(0, &[7; 3 * 4096]);
    let chain = bench.bare(Op::SecureErase, range(4096, 4096));
    assert_eq!(run(&mut bench, chain, PassthroughCommand::SecureErase), (Status::Ok, 0));
    assert_eq!(bench.commands(), [Command::SecureErase]);
    let disk: Vec<u8> = [[7; 4096], [ERASED; 4096], [7; 4096]].concat();
    assert!(bench.disk().read(0, 3 * 4096) == disk);
}

#[test]
fn a_request_that_was_not_initialised_is_not_supported() {
    let mut bench = bench(config(1, QueueLimits::default()));
    let chain = bios(&mut bench, &[(0, 512)]);
    let request = bench.queue.make_request(chain, Gfp::NOWAIT).expect("one direction");
    bench.queue.execute(request, 3).expect("not full");
    assert_eq!(bench.finish(), [Completed { cookie: 3, status: Status::NotSupp, bytes: 0 }]);
}

#[test]
fn what_the_disk_does_not_have_is_not_supported_and_touches_nothing() {
    let mut bench = bench(config(1, QueueLimits::default()));
    bench.ram.write(0, &[7; 512]);
    for command in [PassthroughCommand::Lifetime, PassthroughCommand::SecureErase] {
        let chain = bios(&mut bench, &[(0, 512)]);
        assert_eq!(run(&mut bench, chain, command), (Status::NotSupp, 0));
    }
    assert_eq!((bench.ram.read(0, 512), bench.commands()), (vec![7; 512], vec![]));
}

#[test]
fn what_is_submitted_and_not_made_a_request_of_is_no_command() {
    let mut bench = bench(config(1, QueueLimits::default()));
    let chain = bios(&mut bench, &[(0, 512)]);
    assert_eq!(bench.run(chain), (Status::NotSupp, 0));
}

#[test]
fn it_may_be_a_chain_and_the_vecs_describe_the_memory() {
    for limits in [QueueLimits::default(), direct(512)] {
        let mut bench = bench(config(1, limits));
        for (pieces, expected) in [
            (&[(100, 7), (300, 5), (200, 30)][..], &b"disk-of-the-tests-01"[..]),
            (&[(100, 1)], b"d"),
            (&[(4090, 10), (5000, 8)], b"disk-of-the-tests-"),
        ] {
            bench.ram.write(0, &[0xee; 6000]);
            let chain = bios(&mut bench, pieces);
            let bytes = u32::try_from(expected.len()).expect("short");
            assert_eq!(run(&mut bench, chain, PassthroughCommand::DeviceId), (Status::Ok, bytes));
            let memory: Vec<u8> = pieces.iter().flat_map(|(addr, len)| bench.ram.read(*addr, *len)).collect();
            assert_eq!(&memory[..expected.len()], expected);
            assert!(memory[expected.len()..].iter().all(|byte| *byte == 0xee), "and no more than the answer");
        }
        let chain = {
            let mut chain = bench.bare(Op::SecureErase, range(0, 4096));
            chain.push(bench.queue.bios().try_take(Op::SecureErase, range(8192, 4096)).expect("free"));
            chain
        };
        bench.queue.config.secure_erase = true;
        assert_eq!(run(&mut bench, chain, PassthroughCommand::SecureErase), (Status::Ok, 0));
        assert_eq!(
            bench.disk().log[..],
            [(Command::SecureErase, 0, 4096), (Command::SecureErase, 8192, 4096)]
        );
    }
}

#[test]
fn a_bio_of_another_direction_than_the_first_gets_the_chain_handed_back() {
    let mut bench = bench(config(1, QueueLimits::default()));
    let mut chain = bios(&mut bench, &[(0, 512), (512, 512)]);
    let mut write = bench.transfer(Op::Write { fua: false }, 512, &[(1024, 512)]);
    chain.push(write.pop().expect("one bio"));
    let before = shapes(&chain);
    let refused = bench.queue.make_request(chain, Gfp::NOWAIT).expect_err("it goes both ways");
    assert_eq!((refused.reason, shapes(&refused.chain)), (RefuseReason::MixedDirections, before));
    bench.queue.bios().put_chain(refused.chain);
    check_nothing_is_held(&bench.queue);
}

#[test]
fn where_it_may_not_sleep_what_has_to_be_bounced_and_cannot_comes_back_unharmed() {
    let mut bench = bench(short_of_memory(1, direct(512)));
    bench.ram.write(0, &[0xee; 4096]);
    let chain = bios(&mut bench, &[(512, 10), (1025, 7)]);
    let before = shapes(&chain);
    let arena = bench.queue.arena().clone();
    let hogs: Vec<_> = std::iter::from_fn(|| kzalloc(&arena, 1, Gfp::NOWAIT).ok()).collect();
    let refused = bench.queue.make_request(chain, Gfp::NOWAIT).expect_err("there is no memory");
    assert_eq!((refused.reason, shapes(&refused.chain)), (RefuseReason::NoMemory, before.clone()));
    assert_eq!(refused.to_string(), "there is no memory to bounce the chain's");
    assert_eq!(bench.ram.read(0, 4096), [0xee; 4096]);
    assert_eq!(bench.queue.stats().bounced_misaligned.value(), 0);
    // The kernel would BUG. Here it is a request once there is memory, and the reserve is some.
    let request = bench.queue.make_request(refused.chain, Gfp::ATOMIC).expect("the reserve is free");
    let chain = request.into_chain();
    assert_eq!(shapes(&chain), before, "and it can be given up");
    bench.queue.bios().put_chain(chain);
    let aligned = bios(&mut bench, &[(512, 512)]);
    let aligned = bench.queue.make_request(aligned, Gfp::NOWAIT).expect("it needs no memory");
    bench.queue.execute(aligned.with(PassthroughCommand::DeviceId), 1).expect("not full");
    drop(hogs);
    assert_eq!(bench.finish().len(), 1);
}

#[test]
fn what_was_refused_is_a_request_when_memory_has_come_back() {
    let mut bench = bench(short_of_memory(1, direct(512)));
    let chain = bios(&mut bench, &[(513, 100)]);
    let arena = bench.queue.arena().clone();
    let hogs: Vec<_> = std::iter::from_fn(|| kzalloc(&arena, 1, Gfp::NOWAIT).ok()).collect();
    let refused = bench.queue.make_request(chain, Gfp::NOWAIT).expect_err("there is no memory");
    drop(hogs);
    assert_eq!(run(&mut bench, refused.chain, PassthroughCommand::DeviceId), (Status::Ok, 20));
    assert_eq!(bench.ram.read(513, 21), b"disk-of-the-tests-01\0");
    assert_eq!(bench.queue.stats().bounced_misaligned.value(), 1);
}

#[test]
fn on_a_control_thread_it_waits_for_the_memory() {
    let shared = memory(QueueMemory::LEAST * 2);
    let budget = Arc::clone(&shared.budget);
    let (refused, goes_on) = std::sync::mpsc::channel();
    let (others, wait) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let control = scope.spawn(move || {
            let mut bench = bench(QueueConfig { memory: shared, ..config(1, direct(512)) });
            others.send(()).expect("the other thread waits for it");
            goes_on.recv().expect("the other thread has used up the budget");
            let arena = bench.queue.arena().clone();
            let _hogs: Vec<_> = std::iter::from_fn(|| kzalloc(&arena, 1, Gfp::NOWAIT).ok()).collect();
            let chain = bios(&mut bench, &[(513, 100)]);
            let chain = bench.queue.make_request(chain, Gfp::NOWAIT).expect_err("there is no memory").chain;
            others.send(()).expect("the other thread waits for it");
            let permission = MayWait::on_control_thread();
            bench.queue.make_request(chain, Gfp::kernel(&permission)).is_ok()
        });
        wait.recv().expect("the queue is made");
        let rest = budget.charge(budget.limit() - budget.used(), Gfp::NOWAIT).expect("it is left");
        refused.send(()).expect("the queue's thread waits for it");
        wait.recv().expect("the first try is over");
        drop(rest);
        assert!(control.join().expect("no panic"));
    });
}

#[test]
fn memory_that_was_allocated_with_the_devices_own_gfp_never_needs_bouncing() {
    let strictest =
        QueueLimits { dma_alignment: 4096, length_alignment: 4096, needs_pinning: true, ..direct(4096) };
    let mut bench = bench(config(1, strictest));
    let arena = bench.queue.arena().clone();
    bench.disk().write(0, &Dice::new(2).bytes(10 * 4096));
    let mut chain = bench.bare(Op::Read, range(0, 10 * 4096));
    let mut bio = chain.pop().expect("one bio");
    bio.sg = SgList::alloc(&arena, 10 * 4096, Gfp::NOWAIT).expect("it is free");
    chain.push(bio);
    assert_eq!(bench.run(chain), (Status::Ok, 10 * 4096));
    let mut chain = bios(&mut bench, &[(1, 1)]);
    let mut bio = chain.pop().expect("one bio");
    bio.sg = SgList::alloc(&arena, 20, Gfp::NOWAIT).expect("it is free");
    chain.push(bio);
    assert_eq!(run(&mut bench, chain, PassthroughCommand::DeviceId), (Status::Ok, 20));
    let stats = bench.queue.stats();
    assert_eq!((stats.bounced_misaligned.value(), stats.bounced_unaddressable.value()), (0, 0));
}

#[test]
fn memory_that_the_disk_cannot_address_is_bounced_and_counted() {
    let Some(secret) = GuestRam::secret(4) else { return };
    let mut bench = bench(config(1, QueueLimits { needs_pinning: true, ..direct(512) }));
    bench.ram = secret;
    let chain = bios(&mut bench, &[(512, 100)]);
    assert_eq!(run(&mut bench, chain, PassthroughCommand::DeviceId), (Status::Ok, 20));
    assert_eq!(bench.queue.stats().bounced_unaddressable.value(), 1);
    let mut answer = [0; 21];
    bench.ram.pin().read(512, &mut answer).expect("mapped");
    assert_eq!(&answer, b"disk-of-the-tests-01\0");
}

#[test]
fn a_secure_erase_of_a_part_of_a_block_fails_and_erases_nothing_of_it() {
    let limits = super::bench::large_blocks();
    let mut bench = bench(QueueConfig { secure_erase: true, ..config(1, limits) });
    bench.disk().write(0, &[7; 3 * 4096]);
    let chain = bench.bare(Op::SecureErase, range(512, 4096));
    assert_eq!(run(&mut bench, chain, PassthroughCommand::SecureErase), (Status::IoErr, 0));
    assert!(bench.disk().read(0, 3 * 4096) == [7; 3 * 4096]);
}

#[test]
fn a_secure_erase_that_the_disk_refuses_fails() {
    let mut bench = bench(QueueConfig { secure_erase: true, ..config(1, direct(512)) });
    bench.disk().knows.secure_erase = false;
    let chain = bench.bare(Op::SecureErase, range(0, 4096));
    assert_eq!(
        run(&mut bench, chain, PassthroughCommand::SecureErase),
        (Status::IoErr, 0),
        "not said to be done"
    );
}
