//! All that is measured, and the bars: what this project wants to be, in figures.
//!
//! A bar names the contender that it is about. Ratios are sluice's figure for each of the other's.

use super::batch::{Batch, Value};
use super::contender::{BARE, Contender, QEMU, REFERENCE, SLUICE};
use super::finding::{Bar, Unit};
use super::sample::Metric;
use super::workload::{Medium, Op, Order, Workload};

/// The depths of the chart.
const CHART_DEPTHS: [u16; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];
/// The name of what is measured for the chart.
const CHART: &str = "chart";

/// Everything, with these contenders.
pub(super) fn batches(contenders: &[Contender]) -> Vec<Batch> {
    let mut batches = cached(contenders);
    batches.extend(tmpfs(contenders));
    batches.extend(disk(contenders));
    batches.extend(without_files(contenders));
    batches.extend(scaling(contenders));
    batches.extend(bounced(contenders));
    batches
}

/// What the chart shows.
pub(super) fn chart(contenders: &[Contender]) -> Batch {
    let depths = CHART_DEPTHS.map(|depth| Workload::new(Medium::Cached, Op::Read, depth));
    let cells = depths.iter().flat_map(|depth| contenders.iter().map(move |contender| (*depth, contender)));
    let batch = cells.fold(Batch::new(CHART), |batch, (depth, contender)| batch.cell(depth, contender));
    Batch { is_chart: true, ..batch }
}

/// All contenders at one workload; those who cannot do it are not asked.
fn race(name: &'static str, workload: Workload, contenders: &[Contender]) -> Batch {
    let is_direct = workload.medium == Medium::Disk;
    let can = |contender: &&Contender| !(is_direct && contender.name() == REFERENCE);
    contenders.iter().filter(can).fold(Batch::new(name), |batch, contender| batch.cell(workload, contender))
}

/// Rows of a batch of one workload.
struct Rows {
    batch: Batch,
    workload: Workload,
}

impl Rows {
    fn new(name: &'static str, workload: Workload, contenders: &[Contender]) -> Self {
        Self { batch: race(name, workload, contenders), workload }
    }

    fn row(self, what: &str, value: Value, unit: Unit, bar: Bar) -> Self {
        let words = format!("{}: {what}", self.workload.words());
        Self { batch: self.batch.row(words, value, unit, bar), ..self }
    }

    fn ratio(self, what: &str, metric: Metric, to: &'static str, bar: Bar) -> Self {
        let value = Value::Ratio(metric, (self.workload, SLUICE), (self.workload, to));
        self.row(what, value, Unit::Times, bar)
    }

    fn iops(self, to: &'static str, least: f64) -> Self {
        self.ratio("IOPS", Metric::Iops, to, Bar::AtLeast(least))
    }

    fn cpu(self, most: f64) -> Self {
        self.ratio("CPU per I/O", Metric::Cpu, QEMU, Bar::AtMost(most))
    }

    fn p999(self) -> Self {
        self.ratio("p99.9 latency", Metric::P999, QEMU, Bar::AtMost(1.0))
    }
}

fn cached(contenders: &[Contender]) -> Vec<Batch> {
    let read = |depth| Workload::new(Medium::Cached, Op::Read, depth);
    let sequential = Workload { order: Order::Sequential, block: 128 << 10, ..read(8) };
    let deep = Rows::new("cached-read-d32", read(32), contenders).iops(QEMU, 2.6).iops(BARE, 0.85).cpu(0.4);
    let alone = Rows::new("cached-read-d1", read(1), contenders).iops(QEMU, 3.3).p999();
    let polling = read(1).polling();
    let polls = contenders.iter().filter(|contender| ![BARE, REFERENCE].contains(&contender.name()));
    let polls =
        polls.fold(Batch::new("cached-read-d1-polling"), |batch, contender| batch.cell(polling, contender));
    let polls = polls.named(read(1), contenders, BARE).row(
        format!("{}: IOPS", polling.words()),
        Value::Ratio(Metric::Iops, (polling, SLUICE), (read(1), BARE)),
        Unit::Times,
        Bar::AtLeast(0.5),
    );
    let write = Workload::new(Medium::Cached, Op::Write, 32);
    let write = Rows::new("cached-write-d32", write, contenders).iops(QEMU, 2.8).iops(BARE, 1.3);
    let sequential = Rows::new("cached-seqread-d8", sequential, contenders).iops(QEMU, 1.4).iops(BARE, 0.97);
    vec![deep.batch, alone.batch, polls, write.batch, sequential.batch]
}

fn tmpfs(contenders: &[Contender]) -> Vec<Batch> {
    let tmpfs = |op, depth| Workload::new(Medium::Tmpfs, op, depth);
    vec![
        Rows::new("tmpfs-read-d32", tmpfs(Op::Read, 32), contenders).iops(QEMU, 3.1).batch,
        Rows::new("tmpfs-write-d32", tmpfs(Op::Write, 32), contenders).iops(QEMU, 2.8).batch,
        Rows::new("tmpfs-read-d1", tmpfs(Op::Read, 1), contenders).iops(QEMU, 2.5).batch,
    ]
}

fn disk(contenders: &[Contender]) -> Vec<Batch> {
    let disk = |op, depth| Workload::new(Medium::Disk, op, depth);
    let read = disk(Op::Read, 1);
    let later = Value::Difference(Metric::P50, (read, SLUICE), (read, BARE));
    let alone = Rows::new("disk-read-d1", read, contenders)
        .row("median latency, added", later, Unit::Microseconds, Bar::AtMost(10.0))
        .row("CPU", Value::Plain(Metric::Cores, (read, SLUICE)), Unit::Cores, Bar::AtMost(0.4))
        .p999();
    vec![
        alone.batch,
        Rows::new("disk-read-d32", disk(Op::Read, 32), contenders).iops(BARE, 0.97).cpu(0.6).batch,
        Rows::new("disk-write-d32", disk(Op::Write, 32), contenders).iops(BARE, 0.95).batch,
        Rows::new("disk-mixed-d32", disk(Op::Mixed, 32), contenders).iops(BARE, 0.95).batch,
    ]
}

/// The way of a request without the I/O.
fn without_files(contenders: &[Contender]) -> Vec<Batch> {
    let read = |medium, depth| Workload::new(medium, Op::Read, depth);
    let sleeping = (read(Medium::Null, 32), read(Medium::Ram, 32), read(Medium::Null, 32));
    let polling = (
        read(Medium::Null, 128).polling(),
        read(Medium::Ram, 32).polling(),
        read(Medium::Null, 32).polling(),
    );
    let batch = |name, (null, ram, qemu_beside_ram): (Workload, Workload, Workload), bars: [f64; 2]| {
        let mut batch = Batch::new(name)
            .named(null, contenders, QEMU)
            .named(null, contenders, SLUICE)
            .named(ram, contenders, SLUICE);
        if qemu_beside_ram != null {
            batch = batch.named(qemu_beside_ram, contenders, QEMU);
        }
        for (workload, qemu, bar) in [(null, null, bars[0]), (ram, qemu_beside_ram, bars[1])] {
            let value = Value::Ratio(Metric::Iops, (workload, SLUICE), (qemu, QEMU));
            let words = format!("{}: IOPS", workload.words());
            batch = batch.row(words, value, Unit::Times, Bar::AtLeast(bar));
        }
        batch
    };
    vec![batch("null-and-ram", sleeping, [5.5, 1.4]), batch("null-and-ram-polling", polling, [8.0, 1.8])]
}

/// More queues, more disks.
fn scaling(contenders: &[Contender]) -> Vec<Batch> {
    let read = |depth| Workload::new(Medium::Cached, Op::Read, depth);
    let two = Workload { queues: 2, ..read(32) };
    let many = Workload { disks: 64, ..read(1).polling() };
    let one = read(64).polling();
    [("queues", two, read(32), 1.0), ("disks", many, one, 0.8)]
        .into_iter()
        .map(|(name, more, less, bar)| {
            Batch::new(name).named(more, contenders, SLUICE).named(less, contenders, SLUICE).row(
                format!("{}: IOPS", more.words()),
                Value::Ratio(Metric::Iops, (more, SLUICE), (less, SLUICE)),
                Unit::Times,
                Bar::AtLeast(bar),
            )
        })
        .collect()
}

/// What buffers cost that the disk cannot take.
fn bounced(contenders: &[Contender]) -> Vec<Batch> {
    let shifted = |op, shift| Workload { shift, ..Workload::new(Medium::Disk, op, 32) };
    let batch = |name, op| {
        let aligned = shifted(op, 0);
        let batch = Batch::new(name).named(aligned, contenders, SLUICE);
        [1, 16, 512].into_iter().fold(batch, |batch, shift| {
            let bar = if op == Op::Read && shift == 1 { Bar::AtMost(1.25) } else { Bar::Open };
            batch.named(shifted(op, shift), contenders, SLUICE).row(
                format!("{}: CPU per I/O", shifted(op, shift).words()),
                Value::Ratio(Metric::Cpu, (shifted(op, shift), SLUICE), (aligned, SLUICE)),
                Unit::Times,
                bar,
            )
        })
    };
    let small = Workload { block: 512, ..Workload::new(Medium::Disk4k, Op::Write, 32) };
    let whole = Workload::new(Medium::Disk4k, Op::Write, 32);
    let partial =
        Batch::new("bounce-512-on-4k").named(whole, contenders, SLUICE).named(small, contenders, SLUICE).row(
            format!("{} (blocks of 4096): CPU per I/O", small.words()),
            Value::Ratio(Metric::Cpu, (small, SLUICE), (whole, SLUICE)),
            Unit::Times,
            Bar::Open,
        );
    vec![batch("bounce-read", Op::Read), batch("bounce-write", Op::Write), partial]
}

#[cfg(test)]
mod tests {
    use super::super::args::Peer;
    use super::*;

    fn everyone() -> Vec<Contender> {
        let peer = Peer { name: "peer".into(), command: String::new() };
        vec![
            Contender::Bare,
            Contender::Sluice,
            Contender::Qemu("q".into()),
            Contender::Reference("r".into()),
            Contender::Peer(peer),
        ]
    }

    fn keys(value: &Value) -> Vec<(Workload, &'static str)> {
        match value {
            Value::Plain(_, of) => vec![*of],
            Value::Ratio(_, of, to) | Value::Difference(_, of, to) => vec![*of, *to],
        }
    }

    #[test]
    fn every_row_has_its_cells() {
        for batch in batches(&everyone()) {
            assert!(!batch.rows.is_empty(), "{}", batch.name);
            for row in &batch.rows {
                for (workload, name) in keys(&row.value) {
                    let is_there = batch
                        .cells
                        .iter()
                        .any(|cell| cell.workload == workload && cell.contender.name() == name);
                    assert!(is_there, "{}: {}: no {name} at {workload}", batch.name, row.words);
                }
            }
        }
    }

    #[test]
    fn names_and_cells_are_there_once() {
        let mut batches = batches(&everyone());
        batches.push(chart(&everyone()));
        let mut names: Vec<_> = batches.iter().map(|batch| batch.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), batches.len());
        for batch in batches {
            let keys: Vec<_> =
                batch.cells.iter().map(|cell| format!("{} {}", cell.workload, cell.contender)).collect();
            let mut once = keys.clone();
            once.sort_unstable();
            once.dedup();
            assert_eq!(once.len(), keys.len(), "{}", batch.name);
        }
    }

    #[test]
    fn everyone_takes_part_where_that_is_fair() {
        for batch in batches(&everyone()) {
            let has = |name: &str| batch.cells.iter().any(|cell| cell.contender.name() == name);
            let files = batch.name.starts_with("cached") || batch.name.starts_with("tmpfs");
            assert_eq!(has("peer"), files || batch.name.starts_with("disk-"), "{}", batch.name);
            assert!(!has(REFERENCE) || files, "{}", batch.name);
            assert!(has(SLUICE), "{}", batch.name);
        }
    }
}
