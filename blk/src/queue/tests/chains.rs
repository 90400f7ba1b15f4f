//! Requests of so many pieces that they are chains of bios.

use crate::bio::{BIO_MAX_VECS, BioSet, Op};
use crate::doubles::dice::Dice;
use crate::request::Command;

use super::bench::{bench, config, direct, large_blocks};
use super::*;

/// Reads and writes `pieces` at 1 MiB of a disk with such limits, checks what arrives, and returns the counters.
fn both_ways(limits: QueueLimits, pieces: &[(u64, usize)]) -> (usize, Arc<Stats>) {
    let mut bench = bench(config(1, limits));
    let bytes: usize = pieces.iter().map(|piece| piece.1).sum();
    let data = Dice::new(4).bytes(bytes);
    bench.disk().write(1 << 20, &data);
    let chain = bench.transfer(Op::Read, 1 << 20, pieces);
    let bios = chain.len();
    assert_eq!(bench.run(chain), (Status::Ok, u32::try_from(bytes).expect("small")));
    let read: Vec<u8> = pieces.iter().flat_map(|(addr, len)| bench.ram.read(*addr, *len)).collect();
    assert!(read == data);
    let written: Vec<u8> = data.iter().map(|byte| !byte).collect();
    let mut left = &written[..];
    for (addr, len) in pieces {
        let (now, later) = left.split_at(*len);
        bench.ram.write(*addr, now);
        left = later;
    }
    let chain = bench.transfer(Op::Write { fua: false }, 1 << 20, pieces);
    assert_eq!(bench.run(chain), (Status::Ok, 0));
    assert!(bench.disk().read(1 << 20, bytes) == written);
    assert!(bench.disk().read((1 << 20) - 512, 512) == [0; 512]);
    assert!(bench.disk().read((1 << 20) + bytes as u64, 512) == [0; 512]);
    (bios, bench.queue.stats())
}

#[test]
fn a_request_of_1024_one_page_segments_is_four_bios_and_moves_4_mib_in_place() {
    let pieces: Vec<(u64, usize)> = (0..1024).map(|i| (i * 8192, 4096)).collect();
    for limits in [direct(512), direct(4096), large_blocks()] {
        let (bios, stats) = both_ways(limits, &pieces);
        assert_eq!(bios, 1024 / BIO_MAX_VECS);
        assert_eq!((stats.requests.value(), stats.splits.value()), (8, 0));
        assert_eq!(stats.bounced_misaligned.value(), 0);
    }
}

#[test]
fn a_request_of_1024_segments_of_512_bytes_works_on_every_disk() {
    let pieces: Vec<(u64, usize)> = (0..1024).map(|i| (i * 1024, 512)).collect();
    let (_, stats) = both_ways(direct(512), &pieces);
    assert_eq!(stats.bounced_misaligned.value(), 0, "whole sectors at sectors' addresses");
    // Blocks of 4096 bytes in pieces of 512 are more than such a disk takes.
    let (bios, stats) = both_ways(large_blocks(), &pieces);
    assert_eq!((bios, stats.bounced_misaligned.value()), (4, 8));
    let shifted: Vec<(u64, usize)> = pieces.iter().map(|(addr, len)| (addr + 1, *len)).collect();
    let (_, stats) = both_ways(direct(512), &shifted);
    assert_eq!(stats.bounced_misaligned.value(), 8);
}

#[test]
fn a_block_in_hundreds_of_pieces_is_gathered() {
    // 4096 pieces of 2 bytes, which do not touch: two blocks in sixteen bios of 512 bytes.
    let pieces: Vec<(u64, usize)> = (0..4096).map(|i| (1 + 3 * i, 2)).collect();
    let (bios, stats) = both_ways(direct(4096), &pieces);
    assert_eq!((bios, stats.bounced_fragmented.value()), (BioSet::CHAIN_MAX, 4));
    // Where the guest may write parts of blocks each bio is one.
    let (_, stats) = both_ways(large_blocks(), &pieces);
    assert_eq!((stats.bounced_fragmented.value(), stats.bounced_partial_block.value()), (0, 32));
}

#[test]
fn memory_between_the_pieces_is_left_alone() {
    let mut bench = bench(config(1, direct(4096)));
    let pieces: Vec<(u64, usize)> = (0..4096).map(|i| (1 + 3 * i, 2)).collect();
    bench.disk().write(4096, &[7; 8192]);
    let chain = bench.transfer(Op::Read, 4096, &pieces);
    assert_eq!(bench.run(chain), (Status::Ok, 8192));
    assert!((0..4097).all(|i| bench.ram.read(3 * i, 1) == [0]));
}

#[test]
fn a_block_that_bios_share_fails_all_of_them() {
    let mut bench = bench(config(1, direct(4096)));
    let pieces: Vec<(u64, usize)> = (0..2048).map(|i| (1 + 3 * i, 2)).collect();
    bench.disk().faults.io_error = 100;
    let chain = bench.transfer(Op::Read, 0, &pieces);
    assert_eq!(bench.run(chain).0, Status::IoErr);
    assert_eq!(bench.commands(), [Command::Read]);
}
