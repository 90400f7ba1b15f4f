//! Writes of parts of the disk's blocks: a block is read, changed and written, and no other write is ever lost.

use crate::bio::Op;
use crate::request::Command;

use super::bench::{Bench, bench, config, large_blocks, range};
use super::scripted::{DISCARDED, Faults, Knows};
use super::*;

const READ: Command = Command::Read;
const WRITE: Command = Command::Write { dsync: false };
const DURABLE: Command = Command::Write { dsync: true };

/// A bench on a disk of sevens.
fn sevens(config: QueueConfig) -> Bench {
    let bench = bench(config);
    bench.disk().write(0, &[7; 8 * 4096]);
    bench
}

/// Checks that the disk has `bytes` at `offset`, and sevens around them.
fn check(bench: &Bench, offset: u64, bytes: &[u8]) {
    let end = offset + bytes.len() as u64;
    assert!(bench.disk().read(0, usize::try_from(offset).expect("small")).iter().all(|byte| *byte == 7));
    assert!(bench.disk().read(offset, bytes.len()) == bytes);
    let rest = usize::try_from(8 * 4096 - end).expect("small");
    assert!(bench.disk().read(end, rest).iter().all(|byte| *byte == 7));
}

fn log(bench: &Bench) -> Vec<(Command, u64, u64)> {
    bench.disk().log.clone()
}

#[test]
fn a_part_of_a_block_is_written_by_way_of_the_whole_block() {
    for (fua, ignore_flush, write) in [(false, false, WRITE), (true, false, DURABLE), (true, true, WRITE)] {
        let mut bench = sevens(QueueConfig { ignore_flush, ..config(1, large_blocks()) });
        bench.ram.write(3, &[1; 1024]);
        let chain = bench.transfer(Op::Write { fua }, 4096 + 512, &[(3, 1024)]);
        assert_eq!(bench.run(chain), (Status::Ok, 0));
        check(&bench, 4096 + 512, &[1; 1024]);
        assert_eq!(log(&bench), [(READ, 4096, 4096), (write, 4096, 4096)]);
        let stats = bench.queue.stats();
        assert_eq!((stats.bytes_written.value(), stats.bytes_read.value()), (1024, 0), "the guest's bytes");
    }
}

#[test]
fn a_part_of_a_block_is_read_by_way_of_the_whole_block() {
    let mut bench = sevens(config(1, large_blocks()));
    let chain = bench.transfer(Op::Read, 4096 + 512, &[(3, 600), (1000, 424)]);
    assert_eq!(bench.run(chain), (Status::Ok, 1024));
    let expected = [&[0; 3][..], &[7; 600], &[0; 397], &[7; 424], &[0; 100]].concat();
    assert!(bench.ram.read(0, expected.len()) == expected);
    assert_eq!(log(&bench), [(READ, 4096, 4096)]);
    assert_eq!(bench.queue.stats().bytes_read.value(), 1024);
}

#[test]
fn of_a_range_only_the_blocks_at_its_ends_are_read() {
    let mut bench = sevens(config(1, large_blocks()));
    bench.ram.write(0, &[1; 3 * 4096]);
    let pieces = [(0, 512), (4096, 8192), (512, 512)];
    let chain = bench.transfer(Op::Write { fua: false }, 2 * 4096 - 512, &pieces);
    assert_eq!(bench.run(chain), (Status::Ok, 0));
    check(&bench, 2 * 4096 - 512, &[1; 512 + 8192 + 512]);
    let mut log = log(&bench);
    log.sort_by_key(|(command, offset, _)| (*offset, *command != READ));
    let head = [(READ, 4096, 4096), (WRITE, 4096, 4096)];
    let tail = [(READ, 4 * 4096, 4096), (WRITE, 4 * 4096, 4096)];
    assert_eq!(log, [&head[..], &[(WRITE, 2 * 4096, 8192)], &tail].concat());
}

#[test]
fn zeroes_are_exact_and_discards_leave_parts_of_blocks_alone() {
    let (unmap, fua) = (true, true);
    for knows in [Knows::ALL, Knows { zero: false, zero_unmap: false, ..Knows::ALL }] {
        let mut bench = sevens(config(1, large_blocks()));
        bench.disk().knows = knows;
        let chain = bench.bare(Op::WriteZeroes { unmap, fua }, range(2 * 4096 - 512, 512 + 4096 + 512));
        assert_eq!(bench.run(chain), (Status::Ok, 0));
        check(&bench, 2 * 4096 - 512, &[0; 512 + 4096 + 512]);
        assert!(!bench.disk().is_volatile(0..8 * 4096, 0..u64::MAX));
    }
    let mut bench = sevens(config(1, large_blocks()));
    let chain = bench.bare(Op::Discard { fua }, range(2 * 4096 - 512, 512 + 4096 + 512));
    assert_eq!(bench.run(chain), (Status::Ok, 0));
    check(&bench, 2 * 4096, &[DISCARDED; 4096]);
    assert_eq!(log(&bench), [(Command::Discard, 2 * 4096, 4096), (Command::Sync, 2 * 4096, 4096)]);
    let chain = bench.bare(Op::Discard { fua }, range(512, 1024));
    assert_eq!(bench.run(chain), (Status::Ok, 0));
    check(&bench, 2 * 4096, &[DISCARDED; 4096]);
}

#[test]
fn a_block_that_cannot_be_read_is_not_written() {
    let mut bench = sevens(config(2, large_blocks()));
    bench.disk().faults = Faults { io_error: 100, ..Faults::default() };
    let chain = bench.transfer(Op::Write { fua: false }, 512, &[(0, 512)]);
    assert_eq!(bench.run(chain).0, Status::IoErr);
    assert_eq!(log(&bench), [(READ, 0, 4096)]);
    check(&bench, 0, &[7; 512]);
    bench.disk().faults = Faults::default();
    let chain = bench.transfer(Op::Write { fua: false }, 512, &[(0, 512)]);
    assert_eq!(bench.run(chain), (Status::Ok, 0), "and the block is not held any more");
}

#[test]
fn a_block_that_is_moved_in_part_is_moved_again_from_its_start() {
    for op in [Op::Read, Op::Write { fua: true }, Op::WriteZeroes { unmap: false, fua: true }] {
        let limits = QueueLimits { logical_block_size: 512, disk_block_size: 4096, ..QueueLimits::default() };
        let mut bench = sevens(config(1, limits));
        bench.disk().faults = Faults { short: 70, ..Faults::default() };
        let chain = match op {
            Op::WriteZeroes { .. } => bench.bare(op, range(512, 512)),
            _ => bench.transfer(op, 512, &[(1, 512)]),
        };
        assert_eq!(bench.run(chain).0, Status::Ok);
        assert!(log(&bench).iter().all(|(_, offset, len)| (*offset, *len) == (0, 4096)), "{op:?}");
        check(&bench, 512, &[if op == Op::Read { 7 } else { 0 }; 512]);
    }
}

#[test]
fn a_block_that_is_never_moved_wholly_fails_the_chain() {
    let limits = QueueLimits { logical_block_size: 512, disk_block_size: 4096, ..QueueLimits::default() };
    let mut bench = sevens(config(1, limits));
    bench.disk().faults = Faults { end: 100, ..Faults::default() };
    let chain = bench.transfer(Op::Write { fua: false }, 512, &[(0, 512)]);
    assert_eq!(bench.run(chain).0, Status::IoErr);
    check(&bench, 512, &[7; 512]);
}
