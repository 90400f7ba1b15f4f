//! What is asked of the disk, and what is made of its answers.

use crate::bio::Op;
use crate::doubles::dice::Dice;
use crate::request::Command;
use crate::sector::DiskRange;

use super::bench::{bench, config, direct, range};
use super::scripted::{DISCARDED, Faults, Knows};
use super::*;

#[test]
fn a_flush_is_a_sync_unless_flushes_are_ignored() {
    for (ignore_flush, commands) in [(false, &[Command::Sync][..]), (true, &[])] {
        let mut bench = bench(QueueConfig { ignore_flush, ..config(1, QueueLimits::default()) });
        let chain = bench.bare(Op::Flush, DiskRange::none());
        assert_eq!(bench.run(chain), (Status::Ok, 0));
        assert_eq!(bench.commands(), commands);
    }
}

#[test]
fn what_shall_be_durable_is_written_so_or_synced_afterwards() {
    let zero = Op::WriteZeroes { unmap: true, fua: true };
    for (op, commands, ignored) in [
        (Op::Discard { fua: true }, &[Command::Discard, Command::Sync][..], &[Command::Discard][..]),
        (zero, &[Command::Zero { unmap: true }, Command::Sync], &[Command::Zero { unmap: true }]),
        (Op::Write { fua: true }, &[Command::Write { dsync: true }], &[Command::Write { dsync: false }]),
        (Op::Write { fua: false }, &[Command::Write { dsync: false }], &[Command::Write { dsync: false }]),
    ] {
        for ignore_flush in [false, true] {
            let mut bench = bench(QueueConfig { ignore_flush, ..config(1, QueueLimits::default()) });
            let chain = match op {
                Op::Write { .. } => bench.transfer(op, 0, &[(0, 512)]),
                _ => bench.bare(op, range(0, 512)),
            };
            assert_eq!(bench.run(chain), (Status::Ok, 0));
            assert_eq!(bench.commands(), if ignore_flush { ignored } else { commands }, "{op:?}");
        }
    }
}

#[test]
fn a_disk_that_cannot_zero_gets_zeroes_written_and_is_asked_once() {
    let (unmap, keep) = (Command::Zero { unmap: true }, Command::Zero { unmap: false });
    let write = Command::Write { dsync: true };
    for (zero_unmap, zero, commands) in [
        (true, true, &[unmap, Command::Sync, unmap, Command::Sync][..]),
        (false, true, &[unmap, keep, Command::Sync, keep, Command::Sync]),
        (true, false, &[unmap, Command::Sync, unmap, Command::Sync]),
        (false, false, &[unmap, keep, write, write, write, write]),
    ] {
        let mut bench = bench(config(1, direct(4096)));
        bench.disk().knows = Knows { zero, zero_unmap, ..Knows::ALL };
        bench.disk().write(0, &vec![7; 4 << 20]);
        for offset in [4096, 2 << 20] {
            let chain = bench.bare(Op::WriteZeroes { unmap: true, fua: true }, range(offset, 0x10_1000));
            assert_eq!(bench.run(chain), (Status::Ok, 0));
            assert!(bench.disk().read(offset, 0x10_1000).iter().all(|byte| *byte == 0));
            assert_eq!(bench.disk().read(offset - 1, 1), [7]);
            assert_eq!(bench.disk().read(offset + 0x10_1000, 1), [7]);
        }
        assert_eq!(bench.commands(), commands);
    }
}

#[test]
fn a_disk_that_cannot_discard_succeeds_and_is_asked_once() {
    let mut bench = bench(config(1, QueueLimits::default()));
    bench.disk().knows.discard = false;
    for _ in 0..2 {
        let chain = bench.bare(Op::Discard { fua: true }, range(0, 4096));
        assert_eq!(bench.run(chain), (Status::Ok, 0));
    }
    assert_eq!(bench.commands(), [Command::Discard]);
}

#[test]
fn a_range_that_the_disk_does_not_take_is_done_another_way_and_others_are_not() {
    let (unmap, discard) = (Command::Zero { unmap: true }, Command::Discard);
    let write = Command::Write { dsync: false };
    let zeroes = Op::WriteZeroes { unmap: true, fua: false };
    let mut bench = bench(config(1, QueueLimits::default()));
    bench.disk().command_unit = 4096;
    bench.disk().write(0, &[7; 4 * 4096]);
    for (op, start, len, commands) in [
        (zeroes, 512, 512, &[unmap, write][..]),
        (zeroes, 4096, 4096, &[unmap]),
        (Op::Discard { fua: true }, 8192, 512, &[discard]),
        (Op::Discard { fua: false }, 8192, 4096, &[discard]),
    ] {
        bench.disk().log.clear();
        let chain = bench.bare(op, range(start, len));
        assert_eq!(bench.run(chain), (Status::Ok, 0));
        assert_eq!(bench.commands(), commands, "{op:?}");
    }
    let disk = [&[7; 512][..], &[0; 512], &[7; 3072], &[0; 4096], &[DISCARDED; 4096], &[7; 4096]].concat();
    assert!(bench.disk().read(0, 4 * 4096) == disk);
}

#[test]
fn discards_that_are_ignored_are_done_without_the_disk_and_zeroes_keep_their_space() {
    let mut bench = bench(QueueConfig { ignore_discard: true, ..config(1, QueueLimits::default()) });
    bench.disk().write(0, &[7; 3 * 4096]);
    let chain = bench.bare(Op::Discard { fua: true }, range(0, 4096));
    assert_eq!(bench.run(chain), (Status::Ok, 0));
    assert_eq!(bench.commands(), []);
    let chain = bench.bare(Op::WriteZeroes { unmap: true, fua: false }, range(4096, 4096));
    assert_eq!(bench.run(chain), (Status::Ok, 0));
    assert_eq!(bench.commands(), [Command::Zero { unmap: false }]);
    assert!(bench.disk().read(0, 3 * 4096) == [[7; 4096], [0; 4096], [7; 4096]].concat());
}

#[test]
fn a_range_of_nothing_is_done_without_the_disk() {
    let mut bench = bench(config(1, direct(4096)));
    bench.disk().knows = Knows { discard: false, zero: false, zero_unmap: false, ..Knows::ALL };
    let (fua, unmap) = (true, true);
    for op in [Op::Read, Op::Write { fua }, Op::Discard { fua }, Op::WriteZeroes { unmap, fua }] {
        let chain = bench.bare(op, range(8192, 0));
        assert_eq!(bench.run(chain), (Status::Ok, 0), "{op:?}");
    }
    assert_eq!(bench.commands(), []);
}

#[test]
fn an_engine_that_never_gets_to_it_fails_the_chain_in_the_end() {
    let mut bench = bench(config(1, QueueLimits::default()));
    bench.disk().faults = Faults { again: 100, ..Faults::default() };
    let chain = bench.transfer(Op::Read, 0, &[(0, 4096)]);
    assert_eq!(bench.run(chain).0, Status::IoErr);
    assert_eq!(bench.commands().len(), 1 + usize::from(RequestQueue::RETRIES_MAX));
}

#[test]
fn an_engine_that_gets_on_may_be_interrupted_as_often_as_it_likes() {
    let mut bench = bench(config(1, QueueLimits::default()));
    bench.disk().faults = Faults { again: 90, short: 100, ..Faults::default() };
    let chain = bench.transfer(Op::Read, 0, &[(0, 1 << 20)]);
    assert_eq!(bench.run(chain), (Status::Ok, 1 << 20));
    assert!(bench.commands().len() > 2 * usize::from(RequestQueue::RETRIES_MAX));
}

#[test]
fn a_file_that_has_ended_fails_the_chain() {
    let mut bench = bench(config(1, QueueLimits::default()));
    bench.disk().faults = Faults { end: 100, ..Faults::default() };
    for op in [Op::Read, Op::Write { fua: false }] {
        let chain = bench.transfer(op, 0, &[(0, 4096)]);
        assert_eq!(bench.run(chain).0, Status::IoErr);
    }
    assert_eq!(bench.queue.stats().failed.value(), 2);
}

#[test]
fn a_failed_part_fails_its_chain_and_spares_the_disk_the_rest() {
    let mut bench = bench(config(2, direct(512)));
    bench.disk().faults = Faults { io_error: 100, ..Faults::default() };
    bench.disk().room = 2;
    // Eight parts of 1 MiB, misaligned, so that memory allows two at a time.
    let chain = bench.transfer(Op::Read, 0, &[(4, 8 << 20)]);
    assert_eq!(bench.run(chain).0, Status::IoErr);
    let asked = bench.commands().len();
    assert!(asked < 8, "{asked} parts were tried");
}

#[test]
fn a_short_transfer_is_continued() {
    let mut bench = bench(config(1, QueueLimits::default()));
    bench.disk().faults = Faults { short: 90, ..Faults::default() };
    let data = Dice::new(3).bytes(300_000 / 512 * 512);
    bench.disk().write(512, &data);
    let chain = bench.transfer(Op::Read, 512, &[(77, data.len())]);
    assert_eq!(bench.run(chain), (Status::Ok, u32::try_from(data.len()).expect("small")));
    assert!(bench.ram.read(77, data.len()) == data);
    assert!(bench.commands().len() > 1);
}
