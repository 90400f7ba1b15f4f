//! Rings that lie: the device stops looking at that ring, says so once, and serves the others.

use std::time::{Duration, Instant};

use sluice_tests::driver::{Desc, INDIRECT, NEXT, WRITE, write_desc};
use sluice_tests::hostile::Bench;
use sluice_tests::hostile::Outcome::{self, Broken, Done, IoErr};
use sluice_tests::memory::HOLE;
use sluice_tests::request::Request;
use sluice_tests::subject::Subject;

sluice_tests::suite! {
    chains_that_loop: [BreaksRing],
    chains_that_lead_out_of_the_table: [BreaksRing],
    indirect_chains_that_loop_or_lead_out: [BreaksRing],
    heads_outside_of_the_table: [BreaksRing],
    an_index_that_jumps: [BreaksRing],
    a_head_that_is_in_flight: [BreaksRing],
    indirect_tables_that_are_none: [BreaksRing],
    indirect_tables_in_the_wrong_place: [BreaksRing],
    an_indirect_table_to_be_written_is_a_table_all_the_same: [],
    a_broken_ring_does_not_touch_its_neighbour: [BreaksRing],
}

/// Publishes whatever `rig` wrote into the ring's memory as the next available entry, which names `head`.
fn check(bench: &mut Bench, name: &str, head: u16, allowed: &[Outcome], rig: impl FnOnce(&Bench)) {
    bench.prepare(&Request::read(8, 512));
    rig(bench);
    let ring = bench.guest.ring();
    // The descriptors are the harness's: a driver that lies offers nothing that it would take back.
    let index = ring.next_avail();
    ring.raw_avail(index, head);
    ring.raw_avail_idx(index.wrapping_add(1));
    ring.kick();
    let outcome = raw_outcome(bench, name);
    assert!(allowed.contains(&outcome), "{}: {name}: {outcome:?}, not {allowed:?}", bench.guest.subject);
    if outcome == Broken {
        bench.recover(name, Broken);
    } else {
        bench.guest.renew_ring();
        bench.guest.check_works();
    }
}

/// What becomes of an entry that the harness does not know: by its status byte and the used index.
fn raw_outcome(bench: &mut Bench, name: &str) -> Outcome {
    let subject = bench.guest.subject;
    let status = bench.status().addr;
    let ring = bench.guest.ring();
    for _ in 0..5000 {
        if ring.err.wait(Duration::from_millis(1)) > 0 {
            return Broken;
        }
        if ring.used_idx() != ring.next_used() {
            return match ring.memory().read(status, 1)[0] {
                0 => Done,
                1 => IoErr,
                other => panic!("{subject}: {name}: used with status {other:#x}"),
            };
        }
    }
    panic!("{subject}: {name}: no answer, and no sign of a broken ring");
}

/// Writes a chain into the ring's own table from slot 0 on, each descriptor with the next one's index but the last,
/// whose flags and next are given.
fn write_chain(bench: &Bench, descs: &[Desc], last_flags: u16, last_next: u16) {
    let ring = &bench.guest.lanes[0].ring;
    for (i, desc) in descs.iter().enumerate() {
        let slot = u16::try_from(i).unwrap();
        let direction = if desc.writable { WRITE } else { 0 };
        let (flags, next) = if i + 1 < descs.len() { (NEXT, slot + 1) } else { (last_flags, last_next) };
        ring.raw_desc(slot, desc.addr, desc.len, direction | flags, next);
    }
}

fn good(bench: &Bench) -> [Desc; 3] {
    [bench.header(16), bench.room(512), bench.status()]
}

fn chains_that_loop(subject: Subject) {
    let mut b = Bench::new(subject);
    for back_to in 0..3 {
        let name = format!("the last descriptor leads back to {back_to}");
        check(&mut b, &name, 0, &[IoErr, Broken], |b| write_chain(b, &good(b), NEXT, back_to));
    }
    check(&mut b, "a descriptor leads to itself", 0, &[IoErr, Broken], |b| {
        write_chain(b, &[b.header(16)], NEXT, 0)
    });
}

fn chains_that_lead_out_of_the_table(subject: Subject) {
    let mut b = Bench::new(subject);
    let size = b.guest.ring().size();
    for next in [size, size + 1, u16::MAX] {
        check(&mut b, &format!("next {next}"), 0, &[Broken], |b| write_chain(b, &good(b), NEXT, next));
    }
}

fn heads_outside_of_the_table(subject: Subject) {
    let mut b = Bench::new(subject);
    let size = b.guest.ring().size();
    for head in [size, size + 1, u16::MAX] {
        check(&mut b, &format!("head {head}"), head, &[Broken], |_| ());
    }
}

fn an_index_that_jumps(subject: Subject) {
    let mut b = Bench::new(subject);
    let size = b.guest.ring().size();
    for jump in [size + 1, 2 * size, 1 << 15, u16::MAX] {
        let name = format!("avail.idx jumps by {jump}");
        b.prepare(&Request::read(8, 512));
        write_chain(&b, &good(&b), 0, 0);
        let ring = b.guest.ring();
        ring.raw_avail_idx(ring.next_avail().wrapping_add(jump));
        ring.kick();
        assert_eq!(raw_outcome(&mut b, &name), Broken, "{subject}: {name}");
        b.recover(&name, Broken);
    }
}

/// The same head twice in one go: by the time the second is looked at the first may be done, and then it is a new
/// request. Before that it is a lie.
fn a_head_that_is_in_flight(subject: Subject) {
    let mut b = Bench::new(subject);
    let mut broken = 0;
    for round in 0..20 {
        b.prepare(&Request::read(8, 512));
        write_chain(&b, &good(&b), 0, 0);
        let ring = b.guest.ring();
        let index = ring.next_avail();
        ring.raw_avail(index, 0);
        ring.raw_avail(index.wrapping_add(1), 0);
        ring.raw_avail_idx(index.wrapping_add(2));
        ring.kick();
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            if ring.err.wait(Duration::from_millis(1)) > 0 {
                broken += 1;
                break;
            }
            if ring.used_idx() == index.wrapping_add(2) {
                break;
            }
            assert!(Instant::now() < deadline, "{subject}: round {round}: neither answered nor broken");
        }
        b.guest.renew_ring();
        b.guest.check_works();
    }
    eprintln!("{broken} of 20 times the ring was broken");
}

/// Puts the good chain into an indirect table and has the ring's first descriptor point to it, with these changes.
fn write_table(b: &Bench, addr: Option<u64>, len: u32, flags: u16) {
    let table = b.room(0).addr + 4096;
    for (i, desc) in good(b).iter().enumerate() {
        let direction = if desc.writable { WRITE } else { 0 };
        let more = if i < 2 { NEXT } else { 0 };
        let at = table + 16 * i as u64;
        write_desc(&b.guest.memory, at, desc.addr, desc.len, direction | more, u16::try_from(i).unwrap() + 1);
    }
    b.guest.lanes[0].ring.raw_desc(0, addr.unwrap_or(table), len, INDIRECT | flags, 1);
}

fn indirect_tables_that_are_none(subject: Subject) {
    let mut b = Bench::new(subject);
    for len in [0, 1, 8, 15, 17, 47, 49] {
        check(&mut b, &format!("a table of {len} bytes"), 0, &[Broken], |b| write_table(b, None, len, 0));
    }
    for addr in [HOLE, u64::MAX, u64::MAX - 15, 1 << 63] {
        check(&mut b, &format!("a table at {addr:#x}"), 0, &[Broken], |b| write_table(b, Some(addr), 48, 0));
    }
    // A million entries, all of them mapped or none: what counts is that nobody reads a million entries.
    let allowed = [IoErr, Broken];
    check(&mut b, "a table of a million entries", 0, &allowed, |b| {
        write_table(b, Some(1 << 32), 16 << 20, 0)
    });
    let region = b.guest.memory.regions()[1].clone();
    let large = u32::try_from(region.size / 2).unwrap();
    check(&mut b, "a mapped table of a million", 0, &[IoErr, Broken, Done], |b| {
        write_table(b, None, large, 0);
    });
}

/// What is behind the table in memory would make a good chain.
fn indirect_chains_that_loop_or_lead_out(subject: Subject) {
    let mut b = Bench::new(subject);
    for (last_next, len) in [(0, 48), (1, 48), (2, 48), (3, 48), (4, 48), (u16::MAX, 48), (2, 32), (1, 16)] {
        let name = format!("a table of {len} bytes whose last descriptor leads to {last_next}");
        check(&mut b, &name, 0, &[IoErr, Broken], |b| {
            write_table(b, None, len, 0);
            let table = b.room(0).addr + 4096;
            let last = good(b)[usize::try_from(len).unwrap() / 16 - 1];
            let flags = NEXT | if last.writable { WRITE } else { 0 };
            write_desc(&b.guest.memory, table + u64::from(len) - 16, last.addr, last.len, flags, last_next);
            for beyond in 3..5 {
                let status = b.status();
                write_desc(&b.guest.memory, table + 16 * beyond, status.addr, status.len, WRITE, 0);
            }
        });
    }
}

fn indirect_tables_in_the_wrong_place(subject: Subject) {
    let mut b = Bench::new(subject);
    check(&mut b, "a table with a next", 0, &[Broken], |b| {
        let status = b.status();
        b.guest.lanes[0].ring.raw_desc(1, status.addr, status.len, WRITE, 0);
        write_table(b, None, 48, NEXT);
    });
    check(&mut b, "a table in a table", 0, &[Broken], |b| {
        write_table(b, None, 48, 0);
        let table = b.room(0).addr + 4096;
        write_desc(&b.guest.memory, table + 48, table, 48, INDIRECT, 0);
        b.guest.lanes[0].ring.raw_desc(0, table + 48, 16, INDIRECT, 0);
    });
    // The inner table has the data, so that a device that takes it for data finds header and status all the same.
    check(&mut b, "a table between header and status", 0, &[Broken], |b| {
        write_table(b, None, 48, 0);
        let (table, room) = (b.room(0).addr + 4096, b.room(512));
        write_desc(&b.guest.memory, table + 64, room.addr, room.len, WRITE, 0);
        write_desc(&b.guest.memory, table + 16, table + 64, 16, INDIRECT | NEXT, 2);
    });
}

/// 2.7.5.3.2: the device ignores the write flag of a descriptor that refers to a table.
fn an_indirect_table_to_be_written_is_a_table_all_the_same(subject: Subject) {
    let mut b = Bench::new(subject);
    for flags in [0, WRITE] {
        check(&mut b, &format!("a table with flags {flags}"), 0, &[Done], |b| {
            write_table(b, None, 48, flags)
        });
    }
}

fn a_broken_ring_does_not_touch_its_neighbour(subject: Subject) {
    use sluice_tests::disk::DiskSpec;
    use sluice_tests::guest::{Drive, Guest};
    let spec = DiskSpec { queues: 2, ..DiskSpec::default() };
    let mut guest = Guest::boot_with(subject, &spec, &Drive { rings: 2, ..Drive::default() });
    for round in 0..10 {
        let ring = guest.ring();
        ring.raw_avail(ring.next_avail(), u16::MAX);
        ring.raw_avail_idx(ring.next_avail().wrapping_add(1));
        ring.kick();
        let neighbour = &mut guest.lanes[1];
        for i in 0..20 {
            neighbour.check(&Request::read(1000 + 8 * i, 4096), &sluice_tests::shape::Shape::default());
        }
        let broken = guest.ring().err.wait(Duration::from_secs(5));
        assert_eq!(broken, 1, "{subject}: round {round}: signals of a broken ring");
        guest.renew_ring();
        guest.check_works();
    }
}
