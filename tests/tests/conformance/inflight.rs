//! Memory for what is in flight: what front-ends may ask for, what they may give back, and what a device makes of it.
//!
//! That a killed daemon's requests are each answered once is another suite's (`tests/kill.rs`).

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use sluice_tests::disk::DiskSpec;
use sluice_tests::frontend::Inflight;
use sluice_tests::guest::{Drive, Guest};
use sluice_tests::memory::memory_file;
use sluice_tests::model::OK;
use sluice_tests::request::Request;
use sluice_tests::shape::Shape;
use sluice_tests::slot::Slot;
use sluice_tests::subject::Subject;

sluice_tests::suite! {
    memory_is_as_large_as_it_has_to_be: [Inflight],
    memory_for_queues_that_there_are_not_is_refused: [Inflight],
    memory_that_is_too_small_is_refused: [Inflight],
    memory_of_which_a_part_is_made_up_starts_no_ring: [Inflight],
    a_ring_goes_on_with_what_was_in_flight: [Inflight],
    a_successor_knows_that_the_write_cache_is_off: [Inflight, WriteCacheSwitch],
    memory_that_is_taken_away_ends_the_connection: [Inflight, SurvivesLostMemory],
}

const GET_INFLIGHT_FD: u32 = 31;
const SET_INFLIGHT_FD: u32 = 32;
const RING: u16 = 128;

fn boot(subject: Subject) -> Guest {
    let spec = DiskSpec { queues: 2, ..DiskSpec::default() };
    Guest::boot_with(subject, &spec, &Drive { ring_size: RING, ..Drive::default() })
}

fn body(size: u64, offset: u64, queues: u16, queue_size: u16) -> Vec<u8> {
    let numbers = [size, offset].map(u64::to_le_bytes).concat();
    [&numbers[..], &queues.to_le_bytes(), &queue_size.to_le_bytes(), &[0; 4]].concat()
}

/// Gives the guest's device memory for what is in flight, on a ring that is stopped.
fn track(guest: &mut Guest) -> Inflight {
    let base = guest.stop_ring();
    let inflight = guest.session().make_inflight(2, RING).unwrap();
    guest.session().set_inflight(&inflight).unwrap();
    guest.resume_ring(base);
    inflight
}

fn memory_is_as_large_as_it_has_to_be(subject: Subject) {
    let mut guest = boot(subject);
    for (queues, size) in [(1, 1), (1, 128), (2, 1024), (2, 3)] {
        let Inflight { info, file } = guest.session().make_inflight(queues, size).unwrap();
        let (mmap_size, offset) = (info.mmap_size, info.mmap_offset);
        // vhost-user.rst: for each queue a header of 16 bytes, and 16 for each head.
        assert!(mmap_size >= u64::from(queues) * (16 + 16 * u64::from(size)), "{subject}: {mmap_size}");
        assert!(file.metadata().unwrap().len() >= offset + mmap_size, "{subject}: the file is shorter");
        assert_eq!((info.num_queues, info.queue_size), (queues, size));
    }
    track(&mut guest);
    guest.check_works();
}

fn memory_for_queues_that_there_are_not_is_refused(subject: Subject) {
    let mut guest = boot(subject);
    for (queues, size) in [(0, 128), (3, 128), (1, 0), (1, 1025), (65535, 65535)] {
        guest.session().raw(GET_INFLIGHT_FD, 1, &body(0, 0, queues, size), &[]).unwrap();
        let reply = guest.session().reply().unwrap();
        assert_eq!(
            (reply.code, &reply.body[..8]),
            (GET_INFLIGHT_FD, &[0; 8][..]),
            "{subject}: {queues} x {size}"
        );
        let file = memory_file(1 << 20);
        let given = guest.session().acked(SET_INFLIGHT_FD, &body(1 << 20, 0, queues, size), &[file.as_fd()]);
        // A number of 0 makes it no message at all, by the crate that takes messages apart.
        let is_none = queues == 0 || size == 0;
        assert!(given.map_or(is_none, |value| value != 0), "{subject}: {queues} x {size} is taken");
        if is_none {
            guest.reconnect();
        }
        guest.check_works();
    }
}

fn memory_that_is_too_small_is_refused(subject: Subject) {
    let mut guest = boot(subject);
    let (small, large) = (memory_file(4096), memory_file(1 << 20));
    let cases: [(&str, &File, Vec<u8>); 6] = [
        ("a file that is shorter", &small, body(1 << 20, 0, 2, RING)),
        ("a size that is smaller", &large, body(64, 0, 2, RING)),
        ("an offset at the end", &large, body(1 << 20, 1 << 20, 2, RING)),
        ("an offset that wraps", &large, body(1 << 20, u64::MAX - 4095, 2, RING)),
        ("an offset within a page", &large, body(1 << 20, 8, 2, RING)),
        ("no memory at all", &large, body(0, 0, 2, RING)),
    ];
    for (name, file, body) in cases {
        let given = guest.session().acked(SET_INFLIGHT_FD, &body, &[file.as_fd()]);
        assert!(matches!(given, Ok(value) if value != 0), "{subject}: {name}: {given:?}");
        guest.check_works();
    }
}

fn memory_of_which_a_part_is_made_up_starts_no_ring(subject: Subject) {
    // Offsets in the region of a queue: version 8, desc_num 10, last_batch_head 12, used_idx 14, then the heads.
    let lies: [(&str, &[(u64, u16)]); 6] = [
        ("another version", &[(8, 2)]),
        ("fewer heads", &[(8, 1), (10, 64)]),
        ("more done than the ring has", &[(8, 1), (10, RING), (14, 5)]),
        ("a list that leads out", &[(8, 1), (10, RING), (14, 0xffff), (12, 500)]),
        ("a list that goes round", &[(8, 1), (10, RING), (14, 0xfffe), (12, 0), (16 + 6, 0)]),
        ("two heads at a time", &[(8, 1), (10, RING), (14, 0), (16, 1), (32, 1)]),
    ];
    for (name, lie) in lies {
        let mut guest = boot(subject);
        guest.stop_ring();
        guest.ring().reset(0);
        let inflight = guest.session().make_inflight(2, RING).unwrap();
        for (offset, value) in lie {
            inflight.file.write_all_at(&value.to_le_bytes(), *offset).unwrap();
        }
        guest.session().set_inflight(&inflight).unwrap();
        assert!(guest.try_resume_ring(0).is_err(), "{subject}: {name}: the ring runs");
        guest.reconnect();
        guest.check_works();
    }
}

fn a_ring_goes_on_with_what_was_in_flight(subject: Subject) {
    let mut guest = boot(subject);
    let inflight = track(&mut guest);
    guest.check_works();
    let base = guest.stop_ring();
    // Two reads as a dead daemon has left them: the driver waits, and the account says that they were taken.
    let memory = std::sync::Arc::clone(&guest.memory);
    let reads = [8, 64].map(|sector| {
        let slot = Slot::new(&memory, 4096, 4096);
        (guest.ring().offer(&slot.lay_out(&memory, &Request::read(sector, 4096))), slot)
    });
    guest.ring().publish();
    for (counter, (head, _)) in (1000_u64..).zip(&reads) {
        inflight.leave(*head, counter);
    }
    // The front-end knows the used ring only.
    guest.resume_ring(base);
    let used: Vec<u16> = reads.iter().map(|_| guest.ring().wait().head).collect();
    assert!(reads.iter().all(|(head, _)| used.contains(head)), "{subject}: {used:?}");
    for (sector, (_, slot)) in [8, 64].into_iter().zip(&reads) {
        assert_eq!(slot.answer(&memory), OK);
        assert_eq!(memory.read(slot.data, 4096), guest.disk.bytes()[sector * 512..][..4096], "{subject}");
    }
    guest.check(&Request::read(0, 4096), &Shape::default());
}

/// A driver that has switched the cache off does not say so again when its back-end has died, and does not flush.
fn a_successor_knows_that_the_write_cache_is_off(subject: Subject) {
    const WRITEBACK: u32 = 32;
    let mut guest = boot(subject);
    let inflight = track(&mut guest);
    let first = guest.session().config(WRITEBACK, 1).unwrap()[0];
    for value in [1 - first, first] {
        guest.session().set_config(WRITEBACK, &[value]).unwrap();
        guest = boot(subject);
        assert_eq!(
            guest.session().config(WRITEBACK, 1).unwrap(),
            [first],
            "{subject}: of a driver that is new"
        );
        let base = guest.stop_ring();
        guest.session().set_inflight(&inflight).unwrap();
        assert_eq!(guest.session().config(WRITEBACK, 1).unwrap(), [value], "{subject}: of one that is not");
        guest.resume_ring(base);
    }
    guest.check_works();
}

fn memory_that_is_taken_away_ends_the_connection(subject: Subject) {
    let mut guest = boot(subject);
    let inflight = track(&mut guest);
    inflight.file.set_len(0).unwrap();
    guest.lanes[0].launch(&Request::read(0, 512), &Shape::default());
    guest.ring().submit();
    let patience = std::time::Duration::from_secs(10);
    assert!(guest.session().closed_within(patience), "{subject}: the connection stays");
    guest.lanes[0].abandon();
    guest.reconnect();
    guest.check_works();
}
