//! Measurements that belong together: taken in turn, round after round, and compared within the rounds.

use std::time::Duration;

use super::contender::{Contender, SLUICE};
use super::finding::{Bar, Finding, Unit};
use super::running::{Failure, Ground};
use super::sample::{Metric, Sample};
use super::statistics::Spread;
use super::workload::Workload;

/// What a measurement takes beside the measuring: starting, connecting, ending.
const OVERHEAD: Duration = Duration::from_millis(150);
/// And what it takes when much was written, until that is on the disk.
const SETTLING: Duration = Duration::from_secs(2);

/// A workload and the one who does it.
pub(super) type Key = (Workload, &'static str);

/// One contender at one workload, over all rounds.
#[derive(Debug)]
pub(super) struct Cell {
    pub(super) workload: Workload,
    pub(super) contender: Contender,
    pub(super) samples: Vec<Sample>,
    /// Why there will be no more samples.
    pub(super) failure: Option<Failure>,
}

/// A row to be, out of the cells of its batch.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) words: String,
    pub(super) value: Value,
    pub(super) unit: Unit,
    pub(super) bar: Bar,
}

/// A figure out of cells.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// One cell's.
    Plain(Metric, Key),
    /// The first cell's for each of the second's.
    Ratio(Metric, Key, Key),
    /// The first cell's less the second's.
    Difference(Metric, Key, Key),
}

/// Cells that are measured in turn.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) name: &'static str,
    pub(super) cells: Vec<Cell>,
    pub(super) rows: Vec<Row>,
    /// Whether only the chart shows it.
    pub(super) is_chart: bool,
}

impl Batch {
    /// A batch without rows; contenders that are not there are left out.
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, cells: Vec::new(), rows: Vec::new(), is_chart: false }
    }

    /// Adds a contender at a workload.
    pub(super) fn cell(mut self, workload: Workload, contender: &Contender) -> Self {
        self.cells.push(Cell { workload, contender: contender.clone(), samples: Vec::new(), failure: None });
        self
    }

    /// Adds those of this name at a workload: one, or none if it is not there.
    pub(super) fn named(self, workload: Workload, contenders: &[Contender], name: &str) -> Self {
        match contenders.iter().find(|contender| contender.name() == name) {
            Some(contender) => self.cell(workload, contender),
            None => self,
        }
    }

    /// Adds a row.
    pub(super) fn row(mut self, words: impl Into<String>, value: Value, unit: Unit, bar: Bar) -> Self {
        self.rows.push(Row { words: words.into(), value, unit, bar });
        self
    }

    /// What tells a cell from the others.
    pub(super) fn label(&self, cell: &Cell) -> String {
        let is_one_workload = self.cells.iter().all(|other| other.workload == cell.workload);
        let is_one_contender = self.cells.iter().all(|other| other.contender.name() == cell.contender.name());
        match (is_one_workload, is_one_contender) {
            (true, _) => cell.contender.to_string(),
            (false, true) => cell.workload.to_string(),
            (false, false) => format!("{} {}", cell.contender, cell.workload),
        }
    }

    /// About how long a round takes.
    pub(super) fn round_time(&self, ground: &Ground) -> Duration {
        let cells = self.cells.iter().map(|cell| {
            let settling = if cell.workload.is_written_to_cache() { SETTLING } else { Duration::ZERO };
            ground.extent.time + ground.extent.warm_up + OVERHEAD + settling
        });
        cells.sum()
    }

    /// What the rows come to.
    pub(super) fn findings(&self) -> Vec<Finding> {
        self.rows.iter().map(|row| self.finding(row)).collect()
    }

    fn finding(&self, row: &Row) -> Finding {
        let (value, against) = match row.value {
            Value::Plain(metric, of) => (self.figures(metric, of).map(Spread::of), String::new()),
            Value::Ratio(metric, of, to) => (self.pairs(metric, of, to, |a, b| a / b), against(of, to)),
            Value::Difference(metric, of, to) => (self.pairs(metric, of, to, |a, b| a - b), against(of, to)),
        };
        let value =
            value.and_then(|value| value.ok_or_else(|| Failure::Failed("no round was measured".into())));
        Finding { row: row.words.clone(), against, unit: row.unit, bar: row.bar, value }
    }

    fn pairs(
        &self,
        metric: Metric,
        of: Key,
        to: Key,
        join: fn(f64, f64) -> f64,
    ) -> Result<Option<Spread>, Failure> {
        Ok(Spread::of_pairs(&self.figures(metric, of)?, &self.figures(metric, to)?, join))
    }

    /// A figure of a cell in each round.
    fn figures(&self, metric: Metric, (workload, name): Key) -> Result<Vec<f64>, Failure> {
        let of_key = |cell: &&Cell| cell.workload == workload && cell.contender.name() == name;
        let Some(cell) = self.cells.iter().find(of_key) else {
            return Err(Failure::NotThere(format!("no {name} here")));
        };
        match &cell.failure {
            Some(Failure::NotThere(why)) => Err(Failure::NotThere(format!("{name}: {why}"))),
            Some(Failure::Failed(why)) => Err(Failure::Failed(format!("{name}: {why}"))),
            None => Ok(cell.samples.iter().map(|sample| sample.figure(metric)).collect()),
        }
    }
}

impl Cell {
    /// Measures once more, unless that is of no use.
    pub(super) fn measure(&mut self, ground: &mut Ground) {
        if self.failure.is_some() {
            return;
        }
        match ground.measure(&self.contender, &self.workload) {
            Ok(sample) => self.samples.push(sample),
            Err(why) => self.failure = Some(why),
        }
    }

    /// A figure over all rounds.
    pub(super) fn spread(&self, metric: Metric) -> Option<Spread> {
        Spread::of(self.samples.iter().map(|sample| sample.figure(metric)))
    }
}

/// With what a row compares: another contender, or the same one at something else.
fn against((of, name): Key, (to, other): Key) -> String {
    match (name == other, of == to) {
        (true, _) if name == SLUICE => format!("its {to}"),
        (false, true) => other.into(),
        _ => format!("{other}, {to}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::contender::{BARE, QEMU};
    use super::super::finding::Verdict;
    use super::super::workload::{Medium, Op};
    use super::*;

    const WORKLOAD: Workload = Workload::new(Medium::Cached, Op::Read, 32);

    fn sample(iops: f64) -> Sample {
        Sample {
            iops,
            p50_us: 1.0,
            p99_us: 2.0,
            p999_us: 3.0,
            cpu_us: 4.0,
            cores: 0.5,
            switches: 1.0,
            memory_mib: 6.0,
        }
    }

    fn batch() -> Batch {
        let mut batch = Batch::new("b").cell(WORKLOAD, &Contender::Sluice).cell(WORKLOAD, &Contender::Bare);
        for (cell, rounds) in batch.cells.iter_mut().zip([[200.0, 90.0, 210.0], [100.0, 50.0, 100.0]]) {
            cell.samples = rounds.map(sample).to_vec();
        }
        batch
    }

    fn finding(batch: &Batch, value: Value) -> Finding {
        batch.finding(&Row { words: "r".into(), value, unit: Unit::Times, bar: Bar::AtLeast(2.0) })
    }

    #[test]
    fn contenders_are_compared_within_rounds() {
        let value = Value::Ratio(Metric::Iops, (WORKLOAD, SLUICE), (WORKLOAD, BARE));
        let found = finding(&batch(), value);
        assert_eq!(found.value, Ok(Spread { median: 2.0, min: 1.8, max: 2.1 }));
        assert_eq!((found.verdict(), found.against.as_str()), (Verdict::Ok, BARE));
        let value = Value::Difference(Metric::Iops, (WORKLOAD, SLUICE), (WORKLOAD, BARE));
        assert_eq!(finding(&batch(), value).value, Ok(Spread { median: 100.0, min: 40.0, max: 110.0 }));
    }

    #[test]
    fn a_label_says_what_differs() {
        let other = Workload::new(Medium::Null, Op::Read, 32);
        let label = |batch: &Batch| batch.label(&batch.cells[0]);
        assert_eq!(label(&batch()), "sluice");
        assert_eq!(label(&Batch::new("b").cell(WORKLOAD, &Contender::Sluice)), "sluice");
        let two = Batch::new("b").cell(WORKLOAD, &Contender::Sluice).cell(other, &Contender::Sluice);
        assert_eq!(label(&two), "cached-read-d32");
        assert_eq!(label(&two.cell(other, &Contender::Bare)), "sluice cached-read-d32");
    }

    #[test]
    fn a_contender_that_is_not_there_is_named() {
        let value = Value::Ratio(Metric::Iops, (WORKLOAD, SLUICE), (WORKLOAD, QEMU));
        let found = finding(&batch(), value);
        assert_eq!(found.value, Err(Failure::NotThere("no qemu-storage-daemon here".into())));
    }

    #[test]
    fn a_failure_is_that_of_the_row_whatever_was_measured_before() {
        let mut batch = batch();
        batch.cells[1].failure = Some(Failure::Failed("it died".into()));
        let value = Value::Ratio(Metric::Iops, (WORKLOAD, SLUICE), (WORKLOAD, BARE));
        assert_eq!(finding(&batch, value).value, Err(Failure::Failed("bare file: it died".into())));
        let value = Value::Plain(Metric::Iops, (WORKLOAD, SLUICE));
        assert_eq!(finding(&batch, value).value, Ok(Spread { median: 200.0, min: 90.0, max: 210.0 }));
    }

    #[test]
    fn what_a_row_compares_with_is_said_as_shortly_as_possible() {
        let other = Workload::new(Medium::Null, Op::Read, 32);
        assert_eq!(against((WORKLOAD, SLUICE), (other, SLUICE)), "its null-read-d32");
        assert_eq!(against((WORKLOAD, SLUICE), (other, QEMU)), "qemu-storage-daemon, null-read-d32");
    }
}
