//! What a hostile guest does, one by one, with the answers named: here the model is tested too.

mod requests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::model::{Desc, INDIRECT, NEXT, Outcome, WRITE};
use super::{Bench, HOLE, Made, TABLE, TOP};
use crate::chain::BlkStatus;
use crate::config::DiskConfig;
use crate::doubles::driver::PATIENCE;

const HEADER: u64 = 0x2_0000;
const DATA: u64 = 0x3_0000;
const STATUS: u64 = 0x2_1000;
/// Where one region ends and its neighbour begins.
const BORDER: u64 = 0x9_0000;
const INDIRECT_TABLE: u64 = 0x4_0000;
/// The most descriptors in an indirect table.
const MOST: usize = DiskConfig::SEG_MAX as usize + 2;

const READ: u32 = 0;
const OUT: u32 = 1;

/// What is expected of a chain, roughly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Fault,
    IoErr,
    Unsupp,
    Done,
    /// So many bytes are read or written.
    Moves(u64),
    /// So many ranges are changed.
    Changes(usize),
    Flush,
    /// The disk's name goes to so many bytes.
    Id(usize),
}

fn is(outcome: Option<&Outcome>) -> Is {
    match outcome {
        None => Is::Fault,
        Some(Outcome::Answer(BlkStatus::IoErr)) => Is::IoErr,
        Some(Outcome::Answer(BlkStatus::Unsupp)) => Is::Unsupp,
        Some(Outcome::Answer(BlkStatus::Ok)) => Is::Done,
        Some(Outcome::DeviceId(parts)) => {
            Is::Id(parts.iter().flat_map(|part| &part.pieces).map(|(_, len)| *len).sum())
        }
        Some(Outcome::Submit(parts)) => match parts[0].op {
            sluice_blk::bio::Op::Flush => Is::Flush,
            sluice_blk::bio::Op::Read | sluice_blk::bio::Op::Write { .. } => {
                Is::Moves(parts.iter().map(|part| part.len).sum())
            }
            _ => Is::Changes(parts.len()),
        },
    }
}

fn desc(addr: u64, len: u32) -> Desc {
    Desc { addr, len, flags: 0, next: 0 }
}

fn room(addr: u64, len: u32) -> Desc {
    Desc { addr, len, flags: WRITE, next: 0 }
}

fn header() -> Desc {
    desc(HEADER, 16)
}

fn status() -> Desc {
    room(STATUS, 1)
}

fn chained(descs: &[Desc]) -> Vec<Desc> {
    let mut descs = descs.to_vec();
    let last = descs.len() - 1;
    for (n, desc) in descs.iter_mut().enumerate().take(last) {
        desc.flags |= NEXT;
        desc.next = u16::try_from(n + 1).unwrap();
    }
    descs
}

impl Bench {
    fn put_header(&self, kind: u32, sector: u64) {
        self.ram.write(HEADER, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
    }

    /// Checks a chain as descriptors of the ring and, where they allow it, as an indirect table.
    fn expect(&mut self, name: &str, descs: &[Desc], expected: Is) {
        let descs = chained(descs);
        self.put(TABLE, &descs);
        assert_eq!(is(self.check(0).as_ref()), expected, "{name}");
        let table =
            Desc { flags: INDIRECT, ..desc(INDIRECT_TABLE, u32::try_from(16 * descs.len()).unwrap()) };
        self.put(TABLE, &[table]);
        self.put(INDIRECT_TABLE, &descs);
        assert_eq!(is(self.check(0).as_ref()), expected, "{name}, in an indirect table");
    }

    /// Checks descriptors that are a chain already, as they are.
    fn expect_raw(&mut self, name: &str, descs: &[Desc], expected: Is) {
        self.put(TABLE, descs);
        assert_eq!(is(self.check(0).as_ref()), expected, "{name}");
    }
}

#[test]
fn a_chain_that_loops_or_leads_out_of_its_table_is_a_fault() {
    let mut bench = Bench::new(Made::default());
    bench.put_header(READ, 0);
    let next = |at: u16| Desc { flags: NEXT, next: at, ..header() };
    for (name, at) in [("to itself", 0), ("to 16", 16), ("to 17", 17), ("to 65535", 65535)] {
        bench.expect_raw(name, &[next(at)], Is::Fault);
        bench.expect(name, &[next(at)], Is::Fault);
    }
    bench.expect_raw("a loop of two", &[next(1), next(0)], Is::Fault);
    let longest: Vec<_> = std::iter::once(header()).chain([desc(HEADER, 0); 14]).chain([status()]).collect();
    bench.expect("as long as the ring", &longest, Is::IoErr);
}

#[test]
fn an_indirect_table_that_is_none_is_a_fault() {
    let mut bench = Bench::new(Made::default());
    bench.put_header(READ, 0);
    let good = chained(&[header(), room(DATA, 512), status()]);
    bench.put(INDIRECT_TABLE, &good);
    let table = |addr, len| Desc { flags: INDIRECT, ..desc(addr, len) };
    bench.expect_raw("a good one", &[table(INDIRECT_TABLE, 48)], Is::Moves(512));
    bench.expect_raw("larger than its chain", &[table(INDIRECT_TABLE, 480)], Is::Moves(512));
    for len in [0, 1, 15, 17, 47, 49, 32, 16 * (DiskConfig::SEG_MAX + 3), 16_000_000, u32::MAX, 0xffff_fff0] {
        bench.expect_raw(&format!("of {len} bytes"), &[table(INDIRECT_TABLE, len)], Is::Fault);
    }
    for addr in [HOLE.start, HOLE.start - 40, TOP.end, u64::MAX, u64::MAX - 15, u64::MAX - 47] {
        bench.expect_raw(&format!("at {addr:#x}"), &[table(addr, 48)], Is::Fault);
    }
    let both = Desc { flags: INDIRECT | NEXT, next: 1, ..table(INDIRECT_TABLE, 48) };
    bench.expect_raw("that goes on", &[both, status()], Is::Fault);
    bench.put(INDIRECT_TABLE, &[table(INDIRECT_TABLE, 48)]);
    bench.expect_raw("in itself", &[table(INDIRECT_TABLE, 48)], Is::Fault);
    let mut bench = Bench::new(Made { indirect: false, ..Made::default() });
    bench.put(INDIRECT_TABLE, &good);
    bench.expect_raw("that was not negotiated", &[table(INDIRECT_TABLE, 48)], Is::Fault);
}

#[test]
fn indirect_tables_are_legal_at_the_end_of_a_chain_wherever_they_lie() {
    let mut bench = Bench::new(Made::default());
    bench.put_header(READ, 0);
    let rest = chained(&[room(DATA, 512), room(DATA + 0x1000, 512), status()]);
    // Across two regions, in the middle of a descriptor.
    for (at, flags) in
        [(INDIRECT_TABLE, 0), (INDIRECT_TABLE + 1, WRITE), (0x9_0000 - 24, 0), (TOP.end - 48, WRITE)]
    {
        bench.put(at, &rest);
        let table = Desc { flags: INDIRECT | flags, ..desc(at, 48) };
        let first = Desc { flags: NEXT, next: 1, ..header() };
        bench.expect_raw(&format!("a table at {at:#x}"), &[first, table], Is::Moves(1024));
    }
    let most: Vec<_> = [header()].into_iter().chain([room(DATA, 512); MOST - 2]).chain([status()]).collect();
    bench.put(INDIRECT_TABLE, &chained(&most));
    let table = Desc { flags: INDIRECT, ..desc(INDIRECT_TABLE, 16 * (DiskConfig::SEG_MAX + 2)) };
    bench.expect_raw("as many segments as advertised", &[table], Is::Moves(512 * DiskConfig::SEG_MAX as u64));
}

#[test]
fn framing_is_free() {
    let mut bench = Bench::new(Made::default());
    bench.put_header(READ, 8);
    let halves = [desc(HEADER, 8), desc(HEADER + 8, 8)];
    bench.expect("a split header", &[halves[0], halves[1], room(DATA, 512), status()], Is::Moves(512));
    let empty = [header(), room(HOLE.start, 0), room(DATA, 512), desc(0, 0), status(), room(u64::MAX, 0)];
    bench.expect("empty descriptors", &empty, Is::Moves(512));
    bench.expect("data and status in one", &[header(), room(DATA, 513)], Is::Moves(512));
    bench.expect("status over two regions", &[header(), room(0x9_0000 - 512, 513)], Is::Moves(512));
    bench.put_header(OUT, 8);
    bench.expect("header and data in one", &[desc(HEADER, 16 + 512), status()], Is::Moves(512));
    let pieces = [desc(HEADER, 10), desc(HEADER + 10, 6 + 100), desc(DATA, 412), status()];
    bench.expect("a header that ends in data", &pieces, Is::Moves(512));
}

#[test]
fn a_header_or_a_status_that_is_nowhere() {
    let mut bench = Bench::new(Made::default());
    bench.put_header(READ, 8);
    let data = room(DATA, 512);
    for len in [0, 1, 15] {
        bench.expect(&format!("a header of {len}"), &[desc(HEADER, len), data, status()], Is::IoErr);
    }
    bench.expect("a header to write", &[room(HEADER, 16), data, status()], Is::Fault);
    bench.expect("a status to read", &[header(), desc(DATA, 512), desc(STATUS, 1)], Is::Fault);
    bench.expect("no status", &[header()], Is::Fault);
    bench.expect("a status of no bytes", &[header(), room(STATUS, 0)], Is::Fault);
    for addr in [HOLE.start, TOP.end, u64::MAX, 0] {
        bench.expect(&format!("a status at {addr:#x}"), &[header(), data, room(addr, 1)], Is::Fault);
        bench.expect(&format!("a header at {addr:#x}"), &[desc(addr, 16), data, status()], Is::IoErr);
    }
    bench.expect("a header over the end", &[desc(HOLE.start - 8, 16), data, status()], Is::IoErr);
    bench.expect("a status that wraps", &[header(), room(u64::MAX - 10, 20)], Is::Fault);
}

/// What is read of a chain is what was checked: a driver that rewrites it all the time gets one of the answers that the
/// chain had, with as much memory as disk, and nothing else happens.
#[test]
fn a_chain_is_read_once_however_it_changes() {
    let mut bench = Bench::new(Made { sectors: 64, ..Made::default() });
    bench.put_header(READ, 62);
    bench.put(TABLE, &chained(&[header(), room(DATA, 512), status()]));
    let stop = AtomicBool::new(false);
    let file = bench.ram.file().try_clone().unwrap();
    std::thread::scope(|scope| {
        let flips = || {
            use std::os::unix::fs::FileExt;
            // The table is at the start of the first region, which is at the start of the file.
            let len = 16 + 8;
            let (next, header) = (2 * 16 - 2, HEADER - TABLE);
            let mut round = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                file.write_all_at(&[512, 1024, 1536, u32::MAX][round as usize % 4].to_le_bytes(), len)
                    .unwrap();
                file.write_all_at(&[2_u16, 2, 9, 65535][round as usize / 4 % 4].to_le_bytes(), next).unwrap();
                file.write_all_at(&[0_u32, 1, 99, 8][round as usize / 16 % 4].to_le_bytes(), header).unwrap();
            }
        };
        scope.spawn(flips);
        let (mut good, mut rounds, start) = (0, 0, Instant::now());
        // On a machine with much to do the driver may not come to do its part for a while.
        while rounds < 20_000 || (good == 0 && start.elapsed() < PATIENCE) {
            rounds += 1;
            let parsed = bench.transfer(0).or_else(|| {
                let config = bench.device.config();
                bench.parser.parse(&bench.vring, 0, &bench.pin, config, &mut bench.queue).ok()
            });
            let Some(parsed) = parsed else { continue };
            if let Outcome::Submit(parts) = bench.take(parsed.action) {
                let memory: usize = parts[0].pieces.iter().map(|(_, len)| *len).sum();
                assert_eq!(memory as u64, parts[0].len);
                assert!([512, 1024].contains(&memory), "{memory} bytes from sector 62 of 64");
                good += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(good > 0, "no chain was a good one at any time");
    });
}
