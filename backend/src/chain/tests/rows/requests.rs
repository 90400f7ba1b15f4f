//! Chains that are chains, and requests that are none.

use super::super::model::{Desc, INDIRECT, WRITE};
use super::super::{Bench, HOLE, LARGE, Made, TOP};
use super::{BORDER, DATA, INDIRECT_TABLE, Is, OUT, READ, chained, desc, header, room, status};
use crate::config::DiskConfig;

#[test]
fn data_that_is_nowhere_or_goes_the_wrong_way_is_an_error() {
    let mut bench = Bench::new(Made::default());
    let away = [HOLE.start, HOLE.start - 8, TOP.end - 100, TOP.end, u64::MAX - 511, u64::MAX - 100, u64::MAX];
    for addr in away {
        bench.put_header(READ, 8);
        bench.expect(&format!("room at {addr:#x}"), &[header(), room(addr, 512), status()], Is::IoErr);
        bench.put_header(OUT, 8);
        bench.expect(&format!("data at {addr:#x}"), &[header(), desc(addr, 512), status()], Is::IoErr);
    }
    for (name, data, last) in [
        ("nothing", vec![], Is::IoErr),
        ("room", vec![room(DATA, 512)], Is::IoErr),
        ("both", vec![desc(DATA, 512), room(DATA, 512)], Is::IoErr),
        ("data after room", vec![room(DATA, 512), desc(DATA, 512)], Is::IoErr),
        ("a block", vec![desc(DATA, 512)], Is::Moves(512)),
        ("less than a block", vec![desc(DATA, 511)], Is::IoErr),
        ("more than a block", vec![desc(DATA, 512), desc(DATA, 1)], Is::IoErr),
    ] {
        let descs: Vec<_> = [header()].into_iter().chain(data).chain([status()]).collect();
        bench.expect(name, &descs, last);
    }
    let mut bench = Bench::new(Made { read_only: true, ..Made::default() });
    bench.put_header(OUT, 8);
    bench.expect("a write to what is only read", &[header(), desc(DATA, 512), status()], Is::IoErr);
}

#[test]
fn a_read_or_write_of_one_buffer_is_seen_to_be_a_plain_transfer() {
    let mut bench = Bench::new(Made::default());
    bench.put_header(READ, 8);
    bench.expect(
        "a read, in the ring and in a table",
        &[header(), room(DATA, 512), status()],
        Is::Moves(512),
    );
    assert_eq!(bench.transfers, 2);
    bench.put_header(OUT, 8);
    bench.expect(
        "a write, in the ring and in a table",
        &[header(), desc(DATA, 512), status()],
        Is::Moves(512),
    );
    assert_eq!(bench.transfers, 4);
    bench.expect("two buffers", &[header(), desc(DATA, 512), desc(DATA, 512), status()], Is::Moves(1024));
    bench.expect("one over two regions", &[header(), desc(BORDER - 256, 512), status()], Is::Moves(512));
    assert_eq!(bench.transfers, 4, "and others are not");
}

#[test]
fn sectors_past_the_end_are_errors() {
    let mut bench = Bench::new(Made { sectors: 64, ..Made::default() });
    for (sector, expected) in [
        (62, 2),
        (63, 0),
        (64, 0),
        (1 << 54, 0),
        (1 << 55, 0),
        ((1 << 55) - 1, 0),
        (u64::MAX - 1, 0),
        (u64::MAX, 0),
    ] {
        bench.put_header(OUT, sector);
        let expected = if expected > 0 { Is::Moves(1024) } else { Is::IoErr };
        bench.expect(&format!("at {sector}"), &[header(), desc(DATA, 1024), status()], expected);
    }
}

#[test]
fn lengths_are_summed_in_numbers_that_do_not_wrap() {
    let mut bench = Bench::new(Made { sectors: 1 << 25, ..Made::default() });
    let chunk = u32::try_from(LARGE.end - LARGE.start).unwrap();
    for (last, expected) in [
        (chunk - 512, Is::Moves((1 << 32) - 512)),
        (chunk, Is::IoErr),
        // 2^32 + 512 and 2^32 + 4096: what a sum of 32 bits would take for small.
        (chunk - 512 + 1024, Is::IoErr),
        (chunk + 4096, Is::IoErr),
    ] {
        for kind in [READ, OUT] {
            bench.put_header(kind, 0);
            let flags = if kind == READ { WRITE } else { 0 };
            let data = |len| Desc { flags, ..desc(LARGE.start, len) };
            let mut descs = vec![header()];
            descs.extend([data(chunk); 1023]);
            descs.extend([data(last), status()]);
            bench.put(INDIRECT_TABLE, &chained(&descs));
            let table = Desc { flags: INDIRECT, ..desc(INDIRECT_TABLE, 16 * 1026) };
            bench.expect_raw(&format!("1023 * {chunk} + {last}"), &[table], expected);
        }
    }
}

#[test]
fn other_requests() {
    let mut bench = Bench::new(Made::default());
    bench.put_header(4, u64::MAX);
    bench.expect("a flush", &[header(), status()], Is::Flush);
    bench.expect("a flush with data", &[header(), desc(DATA, 3), room(DATA, 5), status()], Is::Flush);
    bench.put_header(8, 0);
    bench.expect("a name without room", &[header(), status()], Is::IoErr);
    bench.expect("a name in two", &[header(), room(DATA, 10), room(DATA + 100, 10), status()], Is::Id(20));
    bench.expect("a name with much room", &[header(), room(DATA, 4096), status()], Is::Id(4096));
    for kind in [2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 24, 0x8000_0000, u32::MAX] {
        bench.put_header(kind, 0);
        bench.expect(&format!("type {kind}"), &[header(), desc(DATA, 16), status()], Is::Unsupp);
        bench.expect(&format!("type {kind}"), &[header(), room(DATA, 512), status()], Is::Unsupp);
    }
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn segments_are_all_checked_before_any_of_them_acts() {
    let mut bench = Bench::new(Made::default());
    let (good, most) = (segment(8, 8, 0), DiskConfig::RANGES_MAX as usize);
    let max = 4 * 1024 * 1024;
    for kind in [11, 13] {
        bench.put_header(kind, 0);
        let unmap = if kind == 13 { Is::Changes(1) } else { Is::Unsupp };
        for (name, segments, expected) in [
            ("one", good.clone(), Is::Changes(1)),
            ("most", good.repeat(most), Is::Changes(most)),
            ("too many", good.repeat(most + 1), Is::IoErr),
            ("none", vec![], Is::IoErr),
            ("part of one", good[..15].to_vec(), Is::IoErr),
            ("more than one", [&good[..], &[0]].concat(), Is::IoErr),
            ("unmap", segment(8, 8, 1), unmap),
            ("flags", [good.clone(), segment(8, 8, 2)].concat(), Is::Unsupp),
            ("all flags", segment(8, 8, u32::MAX), Is::Unsupp),
            ("of no sectors", segment(8, 0, 0), Is::Done),
            ("of some and of no sectors", [good.clone(), segment(8, 0, 0)].concat(), Is::Changes(1)),
            ("past the end", [good.clone(), segment(4095, 2, 0)].concat(), Is::IoErr),
            ("past all ends", segment(u64::MAX, 1, 0), Is::IoErr),
            ("too many sectors", segment(0, max + 1, 0), Is::IoErr),
            ("all sectors", segment(0, u32::MAX, 0), Is::IoErr),
        ] {
            bench.ram.write(DATA, &segments);
            let len = u32::try_from(segments.len()).unwrap();
            bench.expect(name, &[header(), desc(DATA, len), status()], expected);
            let (front, back) = (desc(DATA, len / 3), desc(DATA + u64::from(len / 3), len - len / 3));
            bench.expect(name, &[header(), front, back, status()], expected);
        }
        bench.expect("segments that are nowhere", &[header(), desc(HOLE.start, 16), status()], Is::IoErr);
    }
    let mut bench = Bench::new(Made { read_only: true, ..Made::default() });
    bench.put_header(11, 0);
    bench.ram.write(DATA, &good);
    bench.expect("on what is only read", &[header(), desc(DATA, 16), status()], Is::IoErr);
    let mut bench = Bench::new(Made { sectors: u64::from(max) * 2, ..Made::default() });
    bench.put_header(13, 0);
    bench.ram.write(DATA, &segment(0, max, 0));
    bench.expect("as many sectors as may be", &[header(), desc(DATA, 16), status()], Is::Changes(1));
    bench.ram.write(DATA, &segment(0, max + 1, 0));
    bench.expect("one sector more", &[header(), desc(DATA, 16), status()], Is::IoErr);
}
