//! What is bounced, why, and what is not: told by the counters.

use crate::bio::Op;
use crate::doubles::dice::Dice;
use crate::doubles::guest_ram::GuestRam;
use crate::split::BounceReason;

use super::bench::{Bench, bench, config, direct, large_blocks, range};
use super::scripted::Knows;
use super::*;

/// How often something was bounced, by reason, in the order of [`BounceReason::ALL`].
fn counts(bench: &Bench) -> [u64; BounceReason::ALL.len()] {
    BounceReason::ALL.map(|reason| bench.queue.stats.bounced(reason).value())
}

/// The same, when it was for one reason alone.
fn only(reason: BounceReason, count: u64) -> [u64; BounceReason::ALL.len()] {
    BounceReason::ALL.map(|other| if other == reason { count } else { 0 })
}

/// Reads and writes as many bytes as `pieces` have at `offset`, and checks what arrives.
fn both_ways(bench: &mut Bench, offset: u64, pieces: &[(u64, usize)]) {
    let bytes: usize = pieces.iter().map(|piece| piece.1).sum();
    let data = Dice::new(offset ^ bytes as u64).bytes(bytes);
    bench.disk().write(offset, &data);
    let read = bench.transfer(Op::Read, offset, pieces);
    assert_eq!(bench.run(read), (Status::Ok, u32::try_from(bytes).expect("small")));
    bench.disk().write(offset, &vec![0; bytes]);
    let write = bench.transfer(Op::Write { fua: false }, offset, pieces);
    assert_eq!(bench.run(write), (Status::Ok, 0));
    assert!(bench.disk().read(offset, bytes) == data, "at {offset} by way of {pieces:x?}");
}

#[test]
fn a_buffer_that_fits_is_never_copied() {
    let mib = 1 << 20;
    let any = QueueLimits::default();
    for (limits, offset, pieces) in [
        // Through the page cache everything fits.
        (any, 512, &[(1, 512)][..]),
        (any, 512, &[(7, 1), (100, 510), (1000, 1)]),
        (direct(512), 512, &[(512, 512)]),
        (direct(512), 512, &[(0, 512), (4096 + 1536, 1024), (9 * 4096, 4096)]),
        (direct(4096), 8192, &[(512, 4096)]),
        (direct(4096), 8192, &[(512, 512), (2048, 3584)]),
        (direct(512), 0, &[(0, 4 * mib)]),
        (large_blocks(), 4096, &[(512, 4096), (3 * 4096, 8192)]),
        (QueueLimits { dma_alignment: 4, ..direct(512) }, 512, &[(4, 512), (1028, 512)]),
        // Only writes have to be stable, and only what cannot be pinned is not.
        (QueueLimits { needs_pinning: true, ..direct(512) }, 0, &[(0, 4096)]),
    ] {
        let mut bench = bench(config(1, limits));
        both_ways(&mut bench, offset, pieces);
        assert_eq!(counts(&bench), [0; BounceReason::ALL.len()], "{pieces:x?} on {limits:?}");
    }
}

#[test]
fn neither_is_its_memory_allocated() {
    let mut bench = bench(config(1, direct(512)));
    let read = bench.transfer(Op::Read, 0, &[(0, 1 << 20)]);
    bench.submit(read, 0);
    bench.queue.dispatch();
    assert_eq!((bench.disk().in_flight(0), bench.queue.arena.used_pages()), (1, 0));
    bench.finish();
}

#[test]
fn an_address_or_a_length_that_does_not_fit_is_a_reason() {
    for (limits, pieces) in [
        (direct(512), &[(1, 512)][..]),
        (direct(512), &[(512 + 16, 4096)]),
        (direct(512), &[(0, 511), (1024, 1)]),
        (direct(4096), &[(0, 4000), (8192, 96)]),
        (QueueLimits { dma_alignment: 4096, length_alignment: 4096, ..direct(4096) }, &[(512, 4096)]),
        (large_blocks(), &[(0, 512), (4096, 3584)]),
    ] {
        let mut bench = bench(config(1, limits));
        both_ways(&mut bench, 8192, pieces);
        assert_eq!(counts(&bench), only(BounceReason::Misaligned, 2), "{pieces:x?} on {limits:?}");
    }
}

#[test]
fn memory_that_direct_io_cannot_address_is_a_reason_and_for_the_page_cache_it_is_none() {
    for (needs_pinning, expected) in [(true, 2), (false, 0)] {
        let Some(secret) = GuestRam::secret(16) else { return };
        let mut bench = bench(config(1, QueueLimits { needs_pinning, ..direct(512) }));
        bench.ram = secret;
        both_ways(&mut bench, 8192, &[(4096, 8192), (0, 512)]);
        assert_eq!(counts(&bench), only(BounceReason::Unaddressable, expected));
    }
}

#[test]
fn a_write_that_may_not_change_is_a_reason_and_what_the_guest_does_to_it_in_flight_is_not_written() {
    let mut bench = bench(config(1, QueueLimits { stable_writes: true, ..direct(512) }));
    both_ways(&mut bench, 8192, &[(4096, 8192)]);
    assert_eq!(counts(&bench), only(BounceReason::StableWrites, 1), "the read is in place");
    bench.ram.write(0, &[1; 8192]);
    let write = bench.transfer(Op::Write { fua: false }, 0, &[(0, 8192)]);
    bench.submit(write, 0);
    bench.queue.dispatch();
    bench.ram.write(0, &[2; 8192]);
    assert_eq!(bench.finish().len(), 1);
    assert!(bench.disk().read(0, 8192) == [1; 8192]);
}

#[test]
fn a_part_of_a_block_is_stable_once_it_is_written() {
    let mut bench = bench(config(1, QueueLimits { stable_writes: true, ..large_blocks() }));
    bench.ram.write(0, &[1; 512]);
    bench.disk().faults.again = 80;
    let write = bench.transfer(Op::Write { fua: false }, 512, &[(0, 512)]);
    bench.submit(write, 0);
    // The engine compares what it was given with what it writes.
    for byte in 2.. {
        bench.queue.dispatch();
        bench.queue.reap(|_| ());
        bench.ram.write(0, &[byte; 512]);
        if bench.queue.is_idle() {
            break;
        }
    }
    let written = bench.disk().read(512, 512);
    assert!(written.iter().all(|byte| *byte == written[0]), "of one moment");
}

#[test]
fn a_block_in_more_pieces_than_a_bio_has_is_a_reason() {
    let mut bench = bench(config(1, direct(4096)));
    let pieces: Vec<(u64, usize)> = (0..2048).map(|i| (1 + 3 * i, 2)).collect();
    both_ways(&mut bench, 4096, &pieces);
    assert_eq!(counts(&bench), only(BounceReason::Fragmented, 2));
}

#[test]
fn a_part_of_a_block_is_a_reason_for_that_part_alone() {
    let mut bench = bench(config(1, large_blocks()));
    // The last 512 bytes of a block, a whole one, and the first 512 of another.
    both_ways(&mut bench, 8192 - 512, &[(512, 512), (4096, 4096), (3 * 4096, 512)]);
    assert_eq!(counts(&bench), only(BounceReason::PartialBlock, 4));
}

#[test]
fn zeroes_that_the_disk_cannot_make_are_a_reason() {
    let mut bench = bench(config(1, direct(512)));
    bench.disk().knows = Knows { zero: false, zero_unmap: false, ..Knows::ALL };
    bench.disk().write(0, &vec![7; 3 << 20]);
    let zeroes = bench.bare(Op::WriteZeroes { unmap: false, fua: false }, range(0, 3 << 20));
    assert_eq!(bench.run(zeroes), (Status::Ok, 0));
    assert!(bench.disk().read(0, 3 << 20).iter().all(|byte| *byte == 0));
    assert_eq!(counts(&bench), only(BounceReason::Zeroes, 3));
}

#[test]
fn what_is_not_transferred_is_never_bounced() {
    let mut bench = bench(config(1, large_blocks()));
    let (fua, unmap) = (true, true);
    for op in [Op::Flush, Op::Discard { fua }, Op::WriteZeroes { unmap, fua }] {
        let whole = if op == Op::Flush { crate::sector::DiskRange::none() } else { range(4096, 8192) };
        let chain = bench.bare(op, whole);
        assert_eq!(bench.run(chain), (Status::Ok, 0));
    }
    assert_eq!(counts(&bench), [0; BounceReason::ALL.len()]);
}

#[test]
fn a_buffer_over_two_regions_is_two_pieces_and_no_reason() {
    let mut bench = bench(config(1, direct(512)));
    bench.ram = GuestRam::new(2, 4);
    both_ways(&mut bench, 0, &[(4 * 4096 - 512, 4096)]);
    assert_eq!(counts(&bench), [0; BounceReason::ALL.len()]);
}
