//! What every engine does alike.

use std::collections::HashSet;
use std::fs::File;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::doubles::dice::Dice;
use crate::doubles::guest_ram::GuestRam;
use crate::doubles::patience::in_time;
use crate::engine::ring::Ring;
use crate::request::Command;

use super::rig::{FILE_BYTES, Kind, Rig, engine, with_each, with_each_file};
use super::*;

const WRITE: Command = Command::Write { dsync: false };

/// Memory of 64 KiB: whole, in a few pieces, in so many that they need a table, and over two regions.
fn shapes() -> [Vec<(u64, usize)>; 4] {
    let sectors = (0..128).map(|i| (i * 1024, 512)).collect();
    [vec![(4096, 65536)], vec![(512, 4096), (8192, 61440)], sectors, vec![((512 << 12) - 32768, 65536)]]
}

#[test]
fn what_is_written_is_read_back() {
    with_each(|mut rig| {
        for (i, pieces) in shapes().into_iter().enumerate() {
            let offset = i as u64 * 512 * 1001;
            let data = Dice::new(offset).bytes(65536);
            let mut left = &data[..];
            for (addr, len) in &pieces {
                let (now, later) = left.split_at(*len);
                rig.ram.write(*addr, now);
                left = later;
            }
            assert_eq!(rig.run(WRITE, offset, 65536, &pieces), Ok(65536));
            assert!(rig.in_file(offset, 65536) == data, "written from {pieces:?}");
            pieces.iter().for_each(|(addr, len)| rig.ram.write(*addr, &vec![0; *len]));
            assert_eq!(rig.run(Command::Read, offset, 65536, &pieces), Ok(65536));
            let read: Vec<u8> = pieces.iter().flat_map(|(addr, len)| rig.ram.read(*addr, *len)).collect();
            assert!(read == data, "read to {pieces:?}");
        }
    });
}

#[test]
fn a_read_at_the_end_of_the_file_says_how_much_there_was() {
    with_each(|mut rig| {
        rig.fill(FILE_BYTES - 512, &[3; 512]);
        assert_eq!(rig.run(Command::Read, FILE_BYTES - 512, 4096, &[(0, 4096)]), Ok(512));
        assert_eq!(rig.ram.read(0, 512), [3; 512]);
        assert_eq!(rig.run(Command::Read, FILE_BYTES, 4096, &[(0, 4096)]), Ok(0));
    });
}

#[test]
fn a_discarded_range_gives_its_space_back() {
    with_each(|mut rig| {
        rig.fill(0, &vec![5; 1 << 20]);
        let before = rig.allocated();
        assert_eq!(rig.run(Command::Discard, 1 << 18, 1 << 19, &[]), Ok(0));
        if let (Some(before), Some(after)) = (before, rig.allocated()) {
            assert!(after + (1 << 19) <= before, "{after} of {before} bytes");
            assert_eq!(rig.file().as_file().metadata().expect("fstat(2)").len(), FILE_BYTES);
        }
        assert_eq!(rig.in_file((1 << 18) - 1, 2), [5, 0]);
        assert_eq!(rig.in_file((3 << 18) - 1, 2), [0, 5]);
    });
}

/// What the file system says to zeroes that keep their space. Memory does zeroes always.
fn zero_range(rig: &Rig) -> Result<(), Errno> {
    if rig.allocated().is_none() {
        return Ok(());
    }
    fallocate(rig.file().as_file(), FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, 0, 4096)
}

#[test]
fn a_zeroed_range_reads_as_zeroes_and_keeps_its_space_or_not() {
    with_each(|mut rig| {
        for unmap in [false, true] {
            rig.fill(0, &vec![5; 1 << 20]);
            let before = rig.allocated();
            let known = if unmap { Ok(()) } else { zero_range(&rig) };
            assert_eq!(rig.run(Command::Zero { unmap }, 4096, 1 << 19, &[]), known.map(|()| 0));
            if known.is_err() {
                eprintln!("SKIPPED: the temporary directory's file system cannot zero and keep the space");
                continue;
            }
            let mut expected = vec![0; 1 << 19];
            expected.extend([5; 4096]);
            assert!(rig.in_file(4096, expected.len()) == expected);
            if let (Some(before), Some(after)) = (before, rig.allocated()) {
                assert_eq!(after + (1 << 19) <= before, unmap, "{after} of {before}");
            }
            // The page cache and the file agree.
            assert_eq!(rig.run(Command::Read, 4096, 4096, &[(0, 4096)]), Ok(4096));
            assert_eq!(rig.ram.read(0, 4096), [0; 4096]);
        }
    });
}

#[test]
fn durable_writes_and_syncs_are_accepted() {
    with_each(|mut rig| {
        rig.ram.write(0, &[4; 8192]);
        assert_eq!(rig.run(Command::Write { dsync: true }, 4096, 4096, &[(0, 4096)]), Ok(4096));
        assert_eq!(rig.run(Command::Write { dsync: true }, 8192, 4096, &[(0, 512), (1024, 3584)]), Ok(4096));
        assert_eq!(rig.run(Command::Sync, 0, 0, &[]), Ok(0));
        assert!(rig.in_file(4096, 8192) == [4; 8192]);
    });
}

#[test]
fn an_error_is_the_systems() {
    with_each_file(|mut rig| {
        let read_only = Arc::new(Backing::new(File::open(rig.file().path()).expect("it exists"), false));
        rig.engine = engine(&read_only, rig.ring.as_ref());
        assert_eq!(rig.run(WRITE, 0, 512, &[(0, 512)]), Err(Errno::BADF));
        assert_eq!(rig.run(Command::Discard, 0, 512, &[]), Err(Errno::BADF));
        assert_eq!(rig.run(Command::Read, 0, 512, &[(0, 512)]), Ok(512), "and the engine goes on");
    });
}

#[test]
fn direct_io_on_memory_that_cannot_be_pinned_is_a_bad_address() {
    for uring in [false, true] {
        let ring = uring.then(|| Ring::new(8).expect("tests need io_uring"));
        let (Some(mut rig), Some(secret)) = (Rig::new(Kind::Direct, ring), GuestRam::secret(4)) else {
            return;
        };
        rig.ram = secret;
        // Not a hole, of which nothing is transferred.
        rig.fill(0, &[1; 8192]);
        for command in [Command::Read, WRITE] {
            assert_eq!(rig.run(command, 4096, 4096, &[(4096, 4096)]), Err(Errno::FAULT));
        }
    }
}

#[test]
fn more_requests_than_the_ring_has_entries_all_come_back_once() {
    with_each(|mut rig| {
        let data = Dice::new(8).bytes(64 * 4096);
        rig.fill(0, &data);
        for round in 0..3 {
            for i in 0..64 {
                let place = (i + round) % 64;
                let request = rig.request(Command::Read, place * 4096, 4096, &[(place * 8192, 4096)]);
                rig.engine.submit(request).expect("as many as its depth");
            }
            let done = rig.wait(64);
            let tags: HashSet<usize> = done.iter().map(|(request, _)| request.tag().index()).collect();
            assert_eq!(tags.len(), 64);
            for (request, result) in done {
                assert_eq!(result, Ok(4096));
                let place = usize::try_from(request.offset()).expect("small");
                assert!(rig.ram.read(2 * place as u64, 4096) == data[place..place + 4096]);
                rig.put(request);
            }
        }
    });
}

#[test]
fn dropping_an_engine_waits_for_what_is_in_flight() {
    in_time(|| {
        with_each(|mut rig| {
            let data = Dice::new(9).bytes(64 * 4096);
            rig.ram.write(0, &data);
            for i in 0..64 {
                let pieces = [(i * 4096, 512), (i * 4096 + 512, 3584)];
                let request = rig.request(WRITE, i * 4096, 4096, &pieces);
                rig.engine.submit(request).expect("as many as its depth");
            }
            let medium = rig.into_medium();
            assert!(medium.read(0, data.len()) == data, "all was written when the drop was over");
        });
    });
}

#[test]
fn the_null_engine_does_nothing_and_says_that_it_has() {
    let mut rig = Rig::without_medium();
    rig.ram.write(0, &[7; 4096]);
    assert_eq!(rig.run(Command::Read, 1 << 40, 4096, &[(0, 512), (512, 3584)]), Ok(4096));
    assert_eq!(rig.ram.read(0, 4096), [7; 4096], "not even zeroes");
    assert_eq!(rig.run(WRITE, 0, 4096, &[(0, 4096)]), Ok(4096));
    for command in [Command::Sync, Command::Discard, Command::Zero { unmap: true }] {
        assert_eq!(rig.run(command, 4096, 1 << 31, &[]), Ok(0));
    }
}

#[test]
fn what_no_disk_without_a_file_does_is_not_supported() {
    for mut rig in [Rig::in_memory(), Rig::without_medium()] {
        assert_eq!(rig.run(Command::SecureErase, 4096, 4096, &[]), Err(Errno::OPNOTSUPP));
    }
}

#[test]
fn two_engines_on_one_ring_get_their_own_requests_back() {
    let ring = Ring::new(8).expect("tests need io_uring");
    let mut rigs: Vec<Rig> = (0..2).filter_map(|_| Rig::new(Kind::Cached, Some(ring.clone()))).collect();
    for i in 0..64 {
        for (which, rig) in rigs.iter_mut().enumerate() {
            let byte = 100 * u8::try_from(which).expect("two") + u8::try_from(i).expect("64");
            rig.ram.write(i * 512, &[byte; 512]);
            let request = rig.request(WRITE, i * 512, 512, &[(i * 512, 512)]);
            rig.engine.submit(request).expect("as many as its depth");
        }
    }
    for (which, rig) in rigs.iter_mut().enumerate() {
        for (request, result) in rig.wait(64) {
            assert_eq!(result, Ok(512));
            let byte = 100 * which + usize::try_from(request.offset() / 512).expect("64");
            assert!(rig.in_file(request.offset(), 512).iter().all(|is| usize::from(*is) == byte));
            rig.put(request);
        }
    }
}

#[test]
fn an_engine_in_the_place_of_another_has_its_own_file() {
    let ring = Ring::new(8).expect("tests need io_uring");
    for byte in 1..4 {
        let mut rig = Rig::new(Kind::Cached, Some(ring.clone())).expect("buffered files exist");
        rig.fill(0, &[byte; 512]);
        assert_eq!(rig.run(Command::Read, 0, 512, &[(0, 512)]), Ok(512));
        assert_eq!(rig.ram.read(0, 512), [byte; 512]);
    }
}

#[test]
fn after_a_failed_sync_all_fail() {
    let backing = Backing::new(tempfile::tempfile().expect("a temporary file"), false);
    assert_eq!(backing.synced(Ok(0)), Ok(0));
    assert_eq!(backing.synced(Err(Errno::INTR)), Err(Errno::INTR), "not failed, to be tried again");
    assert_eq!(backing.synced(Ok(0)), Ok(0));
    assert_eq!(backing.synced(Err(Errno::NOSPC)), Err(Errno::NOSPC));
    assert_eq!(backing.synced(Ok(0)), Err(Errno::IO), "what was lost is lost");
}

#[test]
fn each_engine_remembers_a_failed_sync() {
    with_each_file(|mut rig| {
        let backing = Arc::new(Backing::new(File::open(rig.file().path()).expect("it exists"), false));
        rig.engine = engine(&backing, rig.ring.as_ref());
        assert_eq!(rig.run(Command::Sync, 0, 0, &[]), Ok(0));
        assert_eq!(backing.synced(Err(Errno::IO)), Err(Errno::IO), "another queue's");
        assert_eq!(rig.run(Command::Sync, 0, 0, &[]), Err(Errno::IO));
    });
}

#[test]
fn a_sync_that_takes_long_holds_up_no_read_of_its_ring() {
    in_time(|| {
        let ring = Ring::new(8).expect("tests need io_uring");
        let mut rig = Rig::new(Kind::Cached, Some(ring)).expect("buffered files exist");
        let is_disk = !Backing::new(rig.file().reopen().expect("it exists"), false).is_in_memory;
        // All of the file is to be written before the sync ends.
        rig.fill(0, &Dice::new(1).bytes(usize::try_from(FILE_BYTES).expect("small")));
        let sync = rig.request(Command::Sync, 0, 0, &[]);
        let read = rig.request(Command::Read, 0, 4096, &[(0, 4096)]);
        rig.engine.submit(sync).expect("it is not full");
        rig.engine.submit(read).expect("it is not full");
        let done = rig.wait(2);
        let commands: Vec<_> = done.iter().map(|(request, _)| request.command()).collect();
        let expected = [Command::Read, Command::Sync];
        assert!(commands == expected || !is_disk, "{commands:?}: there is nothing to write in memory only");
        assert!(done.iter().all(|(_, result)| result.is_ok()));
        done.into_iter().for_each(|(request, _)| rig.put(request));
    });
}
