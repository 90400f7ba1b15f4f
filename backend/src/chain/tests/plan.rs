//! Random chains: a request as a driver would make it, then some things about it wrong.

mod any;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

use super::model::{Desc, INDIRECT, NEXT, Outcome, WRITE};
use super::{Bench, HOLE, MANY, Made, TABLE};

/// Sectors of the disk.
const SECTORS: u64 = 1 << 17;

/// A request and how it lies in memory.
#[derive(Debug, Clone)]
struct Plan {
    made: Made,
    writethrough: bool,
    kind: u32,
    sector: u64,
    header: u64,
    /// Where the header is cut into descriptors.
    cuts: Vec<u32>,
    /// Bytes of data in the descriptor in which the header ends.
    with_header: u32,
    data: Vec<(u64, u32)>,
    /// Whether the data is the device's to write; `None`: as the request has it.
    writable: Option<bool>,
    segments: Vec<(u64, u32, u32)>,
    status: u64,
    /// The status is the last byte of the data.
    shared: bool,
    /// How many descriptors come before the indirect table, if there is one, and where that is.
    table: Option<(usize, u64)>,
    /// Where the chain begins in the ring, and how far it is from one of its descriptors to the next.
    head: u16,
    stride: u16,
    wrong: Vec<(Index, Wrong)>,
}

/// Something wrong with a descriptor.
#[derive(Debug, Clone, Copy)]
enum Wrong {
    Flags(u16),
    Len(u32),
    Addr(u64),
    Next(u16),
}

impl Plan {
    /// Makes sizes and places fit what is asked for.
    fn tamed(mut self) -> Self {
        let near = |addr: u64| {
            if (HOLE.end..=MANY + 512).contains(&addr) { addr } else { 0x4_0000 + addr % 0x5_f000 }
        };
        let moves_data = self.kind < 2;
        self.sector = self.sector % SECTORS / 64 * 8;
        (self.header, self.status, self.writable) = (near(self.header), near(self.status), None);
        self.with_header = if self.kind == 1 { self.with_header % 8 * 512 } else { 0 };
        for (addr, len) in &mut self.data {
            *addr = near(*addr);
            *len = if moves_data && *len != 16 {
                (*len % 0x4_0000).max(1).next_multiple_of(512)
            } else {
                *len % 50
            };
        }
        if self.kind > 8 {
            self.segments.truncate(16);
            let mut left = u32::try_from(16 * self.segments.len()).unwrap();
            for (_, len) in &mut self.data {
                *len = left.min(*len);
                left -= *len;
            }
            self.data.push((0x4_0000 + self.sector, left));
        }
        for (sector, sectors, flags) in &mut self.segments {
            *sector = *sector % SECTORS / 64 * 8;
            (*sectors, *flags) = (*sectors % 64 * 8, if self.kind == 13 { *flags & 1 } else { 0 });
        }
        self
    }

    /// The descriptors, without what chains them.
    fn buffers(&self) -> Vec<Desc> {
        let desc = |addr, len, write| Desc { addr, len, flags: if write { WRITE } else { 0 }, next: 0 };
        let mut descs = Vec::new();
        let mut at = 0;
        for cut in &self.cuts {
            if at + cut < 16 {
                descs.push(desc(self.header.wrapping_add(at.into()), *cut, false));
                at += cut;
            }
        }
        descs.push(desc(
            self.header.wrapping_add(at.into()),
            (16 - at).saturating_add(self.with_header),
            false,
        ));
        let writable = self.writable.unwrap_or(matches!(self.kind, 0 | 8));
        descs.extend(self.data.iter().map(|(addr, len)| desc(*addr, *len, writable)));
        match descs.last_mut() {
            Some(last) if self.shared && last.flags == WRITE => last.len = last.len.saturating_add(1),
            _ => descs.push(desc(self.status, 1, true)),
        }
        descs
    }

    /// Writes header and segments to where the descriptors have them, as far as there is memory.
    fn write_contents(&self, bench: &Bench) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&self.kind.to_le_bytes());
        header[8..].copy_from_slice(&self.sector.to_le_bytes());
        let segment = |(sector, sectors, flags): &(u64, u32, u32)| {
            [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
        };
        let mut content: Vec<u8> = self.segments.iter().flat_map(segment).collect();
        for (addr, len) in self.data.iter().filter(|(_, len)| *len < 4096) {
            let take = (*len as usize).min(content.len());
            bench.ram.try_write(*addr, &content.drain(..take).collect::<Vec<_>>());
        }
        bench.ram.try_write(self.header, &header);
    }

    /// Writes the descriptors, chained, and says where the chain begins.
    fn write_chain(&self, bench: &Bench) -> u16 {
        let mut direct = self.buffers();
        let size = self.made.size;
        let mut indirect = Vec::new();
        if let Some((before, addr)) = self.table {
            indirect = direct.split_off(before.min(direct.len()));
            let len = u32::try_from(16 * indirect.len()).unwrap();
            direct.push(Desc { addr, len, flags: INDIRECT, next: 0 });
        }
        let slot =
            |n: usize| self.head.wrapping_add(self.stride.wrapping_mul(u16::try_from(n).unwrap())) % size;
        chain(&mut direct, slot);
        chain(&mut indirect, |n| u16::try_from(n).unwrap());
        let count = direct.len() + indirect.len();
        for (index, wrong) in &self.wrong {
            let at = index.index(count);
            let (before, desc) = (direct.len(), at.checked_sub(direct.len()));
            let desc = match desc {
                Some(at) => &mut indirect[at],
                None => &mut direct[at.min(before - 1)],
            };
            match *wrong {
                Wrong::Flags(flags) => desc.flags ^= flags,
                Wrong::Len(len) => desc.len = len,
                Wrong::Addr(addr) => desc.addr = addr,
                Wrong::Next(next) => desc.next = next,
            }
        }
        if let Some((_, addr)) = self.table {
            bench.ram.try_write(addr, &indirect.iter().flat_map(|desc| desc.bytes()).collect::<Vec<_>>());
        }
        // A chain that is longer than the ring overwrites itself.
        for (n, desc) in direct.iter().enumerate() {
            bench.put(TABLE + 16 * u64::from(slot(n)), &[*desc]);
        }
        slot(0)
    }
}

/// Chains descriptors that are at these places.
fn chain(descs: &mut [Desc], slot: impl Fn(usize) -> u16) {
    let last = descs.len().saturating_sub(1);
    for (n, desc) in descs.iter_mut().enumerate().take(last) {
        desc.flags |= NEXT;
        desc.next = slot(n + 1);
    }
}

/// Which kind of outcome, to count how often each was met.
fn name(outcome: Option<&Outcome>) -> String {
    match outcome {
        None => "fault".to_owned(),
        Some(Outcome::Answer(status)) => format!("{status:?}"),
        Some(Outcome::DeviceId(_)) => "DeviceId".to_owned(),
        Some(Outcome::Submit(parts)) => {
            let op = format!("{:?}", parts[0].op);
            let op = op.split([' ', '{']).next().unwrap_or_default().to_owned();
            if parts.len() > 1 { format!("{op} in several bios") } else { op }
        }
    }
}

#[test]
fn the_parser_says_what_the_model_says() {
    let config = Config { cases: 3000, source_file: Some(file!()), ..Config::default() };
    let (met, benches) = (RefCell::new(BTreeMap::new()), RefCell::new(HashMap::new()));
    let result = TestRunner::new(config).run(&any::plan(), |plan| {
        let mut benches = benches.borrow_mut();
        let bench = benches.entry(plan.made).or_insert_with(|| Bench::new(plan.made));
        bench.ram.take_back();
        bench.device.config().write(32, &[u8::from(!plan.writethrough)]).unwrap();
        plan.write_contents(bench);
        let head = plan.write_chain(bench);
        let outcome = bench.check(head);
        *met.borrow_mut().entry(name(outcome.as_ref())).or_insert(0) += 1;
        Ok(())
    });
    result.unwrap_or_else(|e| panic!("{e}"));
    let transfers: u32 = benches.into_inner().values().map(|bench| bench.transfers).sum();
    assert!(transfers > 50, "only {transfers} chains were plain transfers");
    let met = met.into_inner();
    for outcome in [
        "fault",
        "Ok",
        "IoErr",
        "Unsupp",
        "Read",
        "Write",
        "Flush",
        "DeviceId",
        "Discard",
        "WriteZeroes",
        "Read in several bios",
        "Write in several bios",
        "Discard in several bios",
    ] {
        assert!(met.get(outcome).is_some_and(|count| *count > 0), "{outcome} was hardly met: {met:?}");
    }
    let answered: i32 = met.values().sum();
    assert!(met["fault"] + met["IoErr"] < answered * 3 / 4, "too few requests are good ones: {met:?}");
}
