//! Messages that no good front-end sends: refused, and nothing is different afterwards.

use sluice_tests::disk::DiskSpec;
use sluice_tests::frontend::{NEED_REPLY, ring_addresses};
use sluice_tests::guest::Guest;
use sluice_tests::memory::HOLE;
use sluice_tests::subject::{Ability, Subject};

sluice_tests::suite! {
    ring_sizes_that_are_none: [ChecksRing],
    ring_addresses_that_are_none: [ChecksRing],
    indices_that_are_too_large: [ChecksRing],
    what_a_running_ring_is_made_of: [ChecksRing],
    rings_that_do_not_exist: [ChecksMessages],
    configuration_reads_past_the_end: [ConfigOffset],
    configuration_writes_to_what_is_fixed: [ChecksMessages],
    features_nobody_offered: [RefusesFeatures],
}

const SET_FEATURES: u32 = 2;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_VRING_ERR: u32 = 14;
const SET_VRING_ENABLE: u32 = 18;
const GET_CONFIG: u32 = 24;
const SET_CONFIG: u32 = 25;

/// Sends a message that must be refused. Afterwards the device is as it was: on the same connection, where the subject
/// can do that, else on a new one.
fn refused(guest: &mut Guest, name: &str, code: u32, body: &[u8]) {
    let subject = guest.subject;
    let answer = guest.session().acked(code, body, &[]);
    let may_hang_up = subject.lacks(Ability::SurvivesBadMessage).is_some();
    match answer {
        Ok(0) => panic!("{subject}: {name} is accepted"),
        Ok(_) => {}
        Err(_) if may_hang_up => {}
        Err(e) => panic!("{subject}: {name}: no answer: {e}"),
    }
    if may_hang_up {
        guest.reconnect();
    }
    guest.check_works();
}

/// Index and number, the payload of most ring messages.
fn state(index: u32, num: u32) -> Vec<u8> {
    [index.to_le_bytes(), num.to_le_bytes()].concat()
}

/// Sends a message about a ring that is stopped, so that it is wrong by its content only.
fn refused_when_stopped(guest: &mut Guest, name: &str, code: u32, body: &[u8]) {
    let base = guest.stop_ring();
    let answer = guest.session().acked(code, body, &[]);
    assert!(matches!(answer, Ok(value) if value != 0), "{}: {name}: {answer:?}", guest.subject);
    guest.resume_ring(base);
    guest.check_works();
}

fn ring_sizes_that_are_none(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    for size in [0, 3, 100, 255, 32_769, 65_536, u32::MAX] {
        refused_when_stopped(&mut guest, &format!("a ring of {size}"), SET_VRING_NUM, &state(0, size));
    }
}

fn addresses(flags: u32, desc: u64, used: u64, avail: u64) -> Vec<u8> {
    let mut body = state(0, flags);
    for address in [desc, used, avail, 0] {
        body.extend_from_slice(&address.to_le_bytes());
    }
    body
}

fn ring_addresses_that_are_none(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let right = ring_addresses(&guest.lanes[0].ring);
    let region = guest.memory.regions()[0].clone();
    let last = guest.memory.regions()[1].clone();
    let (hole, end) = (HOLE - region.guest_addr + region.user_addr, last.user_addr + last.size);
    for (part, bad) in (0..3).flat_map(|part| [0, hole, end - 16, end, u64::MAX - 15].map(|bad| (part, bad)))
    {
        let mut all = [right.desc_table_addr, right.used_ring_addr, right.avail_ring_addr];
        all[part] = bad;
        let name = format!("address {bad:#x} for part {part}");
        refused_when_stopped(&mut guest, &name, SET_VRING_ADDR, &addresses(0, all[0], all[1], all[2]));
    }
}

fn indices_that_are_too_large(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    for base in [65_536, u32::MAX] {
        refused_when_stopped(&mut guest, &format!("base {base}"), SET_VRING_BASE, &state(0, base));
    }
}

/// Even the values that it has already: a front-end that says so does not know that the ring runs.
fn what_a_running_ring_is_made_of(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    guest.check_works();
    let right = ring_addresses(&guest.lanes[0].ring);
    let elsewhere = addresses(0, right.desc_table_addr, right.used_ring_addr, right.avail_ring_addr + 4096);
    for (name, code, body) in [
        ("a size for a running ring", SET_VRING_NUM, state(0, 64)),
        ("addresses for a running ring", SET_VRING_ADDR, elsewhere),
        ("a base for a running ring", SET_VRING_BASE, state(0, 0)),
    ] {
        refused(&mut guest, name, code, &body);
    }
}

fn rings_that_do_not_exist(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    for index in [1, 2, 255, 256, u32::MAX] {
        refused(&mut guest, &format!("the size of ring {index}"), SET_VRING_NUM, &state(index, 128));
        refused(&mut guest, &format!("the base of ring {index}"), SET_VRING_BASE, &state(index, 0));
        refused(&mut guest, &format!("enabling ring {index}"), SET_VRING_ENABLE, &state(index, 1));
    }
    for (code, name) in [(SET_VRING_KICK, "kick"), (SET_VRING_CALL, "call"), (SET_VRING_ERR, "err")] {
        for index in [1u64, 255] {
            // Bit 8: without a descriptor.
            refused(&mut guest, &format!("no {name} of ring {index}"), code, &(index | 0x100).to_le_bytes());
        }
    }
}

fn config_body(offset: u32, len: u32, bytes: &[u8]) -> Vec<u8> {
    let mut body = [offset, len, 0].map(u32::to_le_bytes).concat();
    body.extend_from_slice(bytes);
    body
}

fn configuration_reads_past_the_end(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    // The space is 256 bytes at most, and its second place is 0x100 to 0x1ff.
    for (offset, len) in [(0x200u32, 4u32), (0xfff, 1), (0x1f0, 0x100), (0x1ff, 2)] {
        let blank = vec![0; usize::try_from(len).unwrap()];
        guest.session().raw(GET_CONFIG, NEED_REPLY | 1, &config_body(offset, len, &blank), &[]).unwrap();
        let reply = guest.session().reply();
        let reply = reply.unwrap_or_else(|e| panic!("{subject}: GET_CONFIG of {len} at {offset:#x}: {e}"));
        let told = u32::from_le_bytes(reply.body[4..8].try_into().unwrap());
        let (code, payload) = (reply.code, reply.body.len() - 12);
        assert_eq!(
            (code, told, payload),
            (GET_CONFIG, 0, 0),
            "{subject}: GET_CONFIG of {len} at {offset:#x}"
        );
        guest.check_works();
    }
}

fn configuration_writes_to_what_is_fixed(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let before = guest.session().config(0, 60).unwrap();
    for (name, offset, bytes) in [
        ("the capacity", 0, vec![0; 8]),
        ("a byte of the capacity", 1, vec![1]),
        ("the block size", 20, vec![0, 2, 0, 0]),
        ("the number of queues", 34, vec![9, 0]),
        ("a write cache of 2", 32, vec![2]),
        ("a write cache of 255", 32, vec![255]),
        ("the write cache and more", 32, vec![0, 0]),
        ("the whole space", 0, vec![0; 60]),
        ("past the end", 0x200, vec![0]),
    ] {
        let len = u32::try_from(bytes.len()).unwrap();
        refused(&mut guest, &format!("writing {name}"), SET_CONFIG, &config_body(offset, len, &bytes));
        let after = guest.session().config(0, 60).unwrap();
        assert_eq!(before, after, "{subject}: writing {name}");
    }
}

fn features_nobody_offered(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    for bit in [3, 8, 16, 17, 25, 33, 34, 41, 63] {
        let features = guest.features | 1 << bit;
        refused(&mut guest, &format!("feature {bit}"), SET_FEATURES, &features.to_le_bytes());
    }
}
