//! Requests that no good driver sends, one row each: what the device must answer, and that nothing else happens.

use sluice_tests::driver::{Chain, Desc};
use sluice_tests::hostile::Bench;
use sluice_tests::hostile::Outcome::{self, Broken, Done, IoErr, Unsupp};
use sluice_tests::request::{Extent, Request};
use sluice_tests::subject::{Ability, Subject};

sluice_tests::suite! {
    headers_that_are_none: [StrictRequests],
    status_bytes_that_are_nowhere: [StrictRequests, BreaksRing],
    buffers_outside_of_memory: [StrictRequests],
    lengths_that_are_no_sectors: [StrictRequests],
    sectors_past_the_end: [StrictRequests],
    lengths_that_overflow: [StrictRequests, BreaksRing],
    buffers_in_the_wrong_direction: [StrictRequests],
    more_than_was_advertised: [StrictRequests],
    requests_with_too_much_to_say: [StrictRequests],
    segments_that_are_none: [StrictRequests],
    segments_with_flags_that_are_none: [StrictRequests],
    segments_past_the_end: [StrictRequests],
}

/// Sends chains of one table of direct descriptors, row by row; each a second time as an indirect table.
fn check(bench: &mut Bench, name: &str, request: &Request, descs: &[Desc], allowed: &[Outcome]) {
    // Where a broken ring cannot be seen, no row is run whose answer may be one.
    if allowed.contains(&Broken) && bench.guest.subject.lacks(Ability::BreaksRing).is_some() {
        return;
    }
    let direct = Chain { direct: descs.to_vec(), indirect: vec![] };
    bench.expect(name, request, &direct, allowed);
    let indirect = Chain { direct: vec![], indirect: descs.to_vec() };
    bench.expect(&format!("{name}, indirect"), request, &indirect, allowed);
}

fn written(sectors: usize) -> Request {
    Request::write(8, vec![0xee; sectors * 512])
}

fn headers_that_are_none(subject: Subject) {
    let mut b = Bench::new(subject);
    let read = Request::read(8, 512);
    let (room, status) = (b.room(512), b.status());
    for len in [1, 8, 15] {
        let name = format!("a header of {len} bytes");
        let descs = [b.header(len), room, status];
        check(&mut b, &name, &read, &descs, &[IoErr]);
    }
    // Without anything to read it may as well be a ring that lies.
    check(&mut b, "no header, one byte to write", &read, &[status], &[IoErr, Broken]);
    let header = Desc { writable: true, ..b.header(16) };
    check(&mut b, "a header to write", &read, &[header, room, status], &[IoErr, Broken]);
    let split = [b.header(8), b.header(7), status];
    check(&mut b, "a header of 8 + 7 bytes", &Request::flush(), &split, &[IoErr]);
}

fn status_bytes_that_are_nowhere(subject: Subject) {
    let mut b = Bench::new(subject);
    let (header, out) = (b.header(16), b.out(512));
    check(&mut b, "no status", &written(1), &[header, out], &[Broken]);
    check(&mut b, "a header only", &Request::flush(), &[header], &[Broken]);
    let status = Desc { writable: false, ..b.status() };
    check(&mut b, "a status to read", &written(1), &[header, out, status], &[Broken]);
    let hole = b.hole(1, true);
    check(&mut b, "a status in a hole", &written(1), &[header, out, hole], &[Broken]);
    let end = Desc { addr: u64::MAX, len: 1, writable: true };
    check(&mut b, "a status at the end of the address space", &written(1), &[header, out, end], &[Broken]);
}

fn buffers_outside_of_memory(subject: Subject) {
    let mut b = Bench::new(subject);
    let (read, write) = (Request::read(8, 4096), written(8));
    let (header, room, out, status) = (b.header(16), b.room(4096), b.out(4096), b.status());
    let last = b.guest.memory.regions()[1].clone();
    let end = last.guest_addr + last.size;
    for (name, addr) in [
        ("in a hole", sluice_tests::memory::HOLE),
        ("over the end of a region", end - 8),
        ("that begins at the end of a region", end),
        ("that wraps", u64::MAX - 7),
        ("at the end of 64 bits", u64::MAX),
    ] {
        let header_there = Desc { addr, ..header };
        check(&mut b, &format!("a header {name}"), &read, &[header_there, room, status], &[IoErr]);
        let room_there = Desc { addr, ..room };
        check(&mut b, &format!("room {name}"), &read, &[header, room_there, status], &[IoErr]);
        let out_there = Desc { addr, ..out };
        check(&mut b, &format!("data {name}"), &write, &[header, out_there, status], &[IoErr]);
        let halves = [header, b.out(2048), Desc { addr, len: 2048, ..out }, status];
        check(&mut b, &format!("half of the data {name}"), &write, &halves, &[IoErr]);
    }
    // The last bytes before the hole are the guest's: nothing of a transfer that failed may be in them.
    b.guest.memory.write(end - 2048, &[0x99; 2048]);
    let over = Desc { addr: end - 2048, ..room };
    check(&mut b, "room over the end", &read, &[header, over, status], &[IoErr]);
    assert_eq!(b.guest.memory.read(end - 2048, 2048), [0x99; 2048], "{subject}: a failed read left data");
}

fn lengths_that_are_no_sectors(subject: Subject) {
    let mut b = Bench::new(subject);
    let (header, status) = (b.header(16), b.status());
    check(&mut b, "a read of nothing", &Request::read(8, 512), &[header, status], &[IoErr]);
    check(&mut b, "a write of nothing", &written(1), &[header, status], &[IoErr]);
    for len in [1, 511, 513, 4095, 1000] {
        let (room, out) = (b.room(len), b.out(len));
        check(&mut b, &format!("a read of {len}"), &Request::read(8, 512), &[header, room, status], &[IoErr]);
        check(&mut b, &format!("a write of {len}"), &written(1), &[header, out, status], &[IoErr]);
    }
}

fn sectors_past_the_end(subject: Subject) {
    let mut b = Bench::new(subject);
    let (header, room, out, status) = (b.header(16), b.room(1024), b.out(1024), b.status());
    let end = b.guest.sectors();
    for sector in [end - 1, end, end + 1, 1 << 33, 1 << 54, 1 << 55, (1 << 55) - 1, u64::MAX - 1, u64::MAX] {
        let (read, write) = (Request::read(sector, 1024), Request { sector, ..written(2) });
        check(&mut b, &format!("a read at {sector}"), &read, &[header, room, status], &[IoErr]);
        check(&mut b, &format!("a write at {sector}"), &write, &[header, out, status], &[IoErr]);
    }
}

fn lengths_that_overflow(subject: Subject) {
    let mut b = Bench::new(subject);
    let (header, status) = (b.header(16), b.status());
    // The sums are 512 modulo 2^32.
    for lens in [vec![1 << 31, 1 << 31, 512], vec![u32::MAX, 513], vec![0xffff_fe00, 1024], vec![1 << 30; 4]]
    {
        let name = format!("lengths {lens:?}");
        for writable in [false, true] {
            let request = if writable { Request::read(8, 512) } else { written(1) };
            let data = lens.iter().map(|&len| Desc { writable, ..b.out(len) });
            let descs: Vec<_> = [header].into_iter().chain(data).chain([status]).collect();
            check(&mut b, &name, &request, &descs, &[IoErr]);
        }
    }
}

fn buffers_in_the_wrong_direction(subject: Subject) {
    let mut b = Bench::new(subject);
    let (header, room, out, status) = (b.header(16), b.room(512), b.out(512), b.status());
    check(&mut b, "a write of data to write", &written(1), &[header, room, status], &[IoErr]);
    check(&mut b, "a read into data to read", &Request::read(8, 512), &[header, out, status], &[IoErr]);
    assert_eq!(b.guest.memory.read(out.addr, 512), [0xd5; 512], "{subject}: data to read was written");
    check(&mut b, "data after the status", &written(1), &[header, status, out], &[IoErr, Broken]);
    check(&mut b, "the header last", &Request::read(8, 512), &[room, status, header], &[IoErr, Broken]);
    check(&mut b, "mixed", &Request::read(8, 512), &[header, room, out, status], &[IoErr, Broken]);
}

/// Either it is done or it is not, but not half of it.
fn more_than_was_advertised(subject: Subject) {
    let mut b = Bench::new(subject);
    let seg_max = b.guest.session().config(12, 4).unwrap();
    let seg_max = u32::from_le_bytes(seg_max.try_into().unwrap());
    for segments in [seg_max + 1, seg_max + 100, 3 * seg_max] {
        let count = usize::try_from(segments).unwrap();
        let sectors = count.min(1000);
        let whole = Request::read(0, sectors * 512);
        let mut indirect = vec![b.header(16)];
        indirect.extend((0..count).map(|i| b.room(if i < sectors { 512 } else { 0 })));
        indirect.push(b.status());
        let chain = Chain { direct: vec![], indirect };
        let allowed = [IoErr, Done, Broken];
        if subject.lacks(Ability::BreaksRing).is_none() {
            b.expect(&format!("{segments} segments"), &whole, &chain, &allowed);
        }
    }
}

/// FLUSH with data is a FLUSH; GET_ID without room is an error.
fn requests_with_too_much_to_say(subject: Subject) {
    let mut b = Bench::new(subject);
    let (header, room, out, status) = (b.header(16), b.room(512), b.out(512), b.status());
    check(&mut b, "a flush with data", &Request::flush(), &[header, out, status], &[Done]);
    check(&mut b, "a flush with room", &Request::flush(), &[header, room, status], &[Done]);
    let far = Request { sector: u64::MAX, ..Request::flush() };
    check(&mut b, "a flush of a sector", &far, &[header, out, status], &[Done]);
    check(&mut b, "an identity without room", &Request::id(0), &[header, status], &[IoErr]);
}

fn extent(sector: u64, sectors: u32, flags: u32) -> Extent {
    Extent { sector, sectors, flags }
}

/// A DISCARD and a WRITE_ZEROES of these segments, in one piece.
fn check_segments(b: &mut Bench, name: &str, extents: &[Extent], allowed: &[Outcome]) {
    for request in [Request::discard(extents), Request::zeroes(extents)] {
        let len = u32::try_from(request.out.len()).unwrap();
        let descs = [b.header(16), b.out(len), b.status()];
        check(b, &format!("{request:?}, {name}"), &request, &descs, allowed);
    }
}

fn segments_that_are_none(subject: Subject) {
    let mut b = Bench::new(subject);
    let (header, status) = (b.header(16), b.status());
    for len in [0, 1, 8, 15, 17, 24, 31, 33] {
        for request in [Request::discard(&[extent(8, 8, 0); 3]), Request::zeroes(&[extent(8, 8, 0); 3])] {
            let mut descs = vec![header, b.out(len), status];
            descs.retain(|desc| desc.len > 0);
            check(&mut b, &format!("{request:?} cut to {len}"), &request, &descs, &[IoErr]);
        }
    }
    let limits = b.guest.session().config(36, 20).unwrap();
    let segments_max = u32::from_le_bytes(limits[4..8].try_into().unwrap());
    let many = vec![extent(8, 8, 0); usize::try_from(segments_max).unwrap() + 1];
    check_segments(&mut b, "one segment too many", &many, &[IoErr, Unsupp]);
}

fn segments_with_flags_that_are_none(subject: Subject) {
    let mut b = Bench::new(subject);
    for flags in [2, 3, 1 << 31, u32::MAX] {
        check_segments(&mut b, "unknown flags", &[extent(8, 8, flags)], &[Unsupp]);
        check_segments(
            &mut b,
            "unknown flags in the last",
            &[extent(8, 8, 0), extent(32, 8, flags)],
            &[Unsupp],
        );
    }
    let request = Request::discard(&[extent(8, 8, 1)]);
    let descs = [b.header(16), b.out(16), b.status()];
    check(&mut b, "a discard with unmap", &request, &descs, &[Unsupp]);
}

/// All segments are checked before any of them acts.
fn segments_past_the_end(subject: Subject) {
    let mut b = Bench::new(subject);
    let end = b.guest.sectors();
    for bad in [
        extent(end, 1, 0),
        extent(end - 1, 2, 0),
        extent(0, u32::MAX, 0),
        extent(u64::MAX, 1, 0),
        extent(u64::MAX, u32::MAX, 0),
        extent(1 << 55, 8, 0),
        extent(u64::MAX - 7, 8, 0),
    ] {
        let name = format!("{bad:?}");
        check_segments(&mut b, &name, &[bad], &[IoErr]);
        check_segments(&mut b, &format!("{name} after a good one"), &[extent(8, 8, 0), bad], &[IoErr]);
    }
}
