//! What was found, as text: the rows with their bars, then the figures of every contender.

use std::fmt::Write;

use super::batch::{Batch, Cell};
use super::finding::{Bar, Finding, Unit, Verdict};
use super::sample::Metric;
use super::statistics::Spread;

/// The columns of the figures, and how wide they are.
const FIGURES: [(&str, Metric); 8] = [
    ("kIOPS", Metric::Iops),
    ("p50 us", Metric::P50),
    ("p99 us", Metric::P99),
    ("p99.9 us", Metric::P999),
    ("CPU us/IO", Metric::Cpu),
    ("cores", Metric::Cores),
    ("switches/IO", Metric::Switches),
    ("memory MiB", Metric::Memory),
];

/// The rows: what, against whom, the bar, the value, the mark.
pub(super) fn rows(findings: &[Finding]) -> String {
    let mut table = vec![["", "against", "bar", "value", ""].map(str::to_owned)];
    for finding in findings {
        let value =
            finding.value.as_ref().map_or_else(|_| "-".into(), |value| value_words(value, finding.unit));
        table.push([
            finding.row.clone(),
            finding.against.clone(),
            finding.bar.words(finding.unit),
            value,
            finding.verdict().to_string(),
        ]);
    }
    aligned(&table)
}

/// Why rows have no value, each reason once.
pub(super) fn reasons(findings: &[Finding]) -> String {
    let mut reasons: Vec<String> = Vec::new();
    for finding in findings {
        if let Err(why) = &finding.value {
            let reason = why.to_string();
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
    }
    reasons.iter().fold(String::new(), |text, reason| text + reason + "\n")
}

/// How many bars there are and how they were met.
pub(super) fn summary(findings: &[Finding]) -> String {
    let count = |wanted| findings.iter().filter(|finding| finding.verdict() == wanted).count();
    let (met, missed) = (count(Verdict::Ok), count(Verdict::Missed));
    let bars = findings.iter().filter(|finding| finding.bar != Bar::Open).count();
    let mut text = format!("{bars} bars: {met} reached, {missed} missed");
    for (count, words) in [(count(Verdict::NotThere), "not there yet"), (count(Verdict::Failed), "failed")] {
        if count > 0 {
            write!(text, ", {count} rows {words}").expect("a string takes everything");
        }
    }
    text
}

/// The figures of every contender at every workload.
pub(super) fn figures(batches: &[Batch]) -> String {
    let mut text = String::new();
    for batch in batches.iter().filter(|batch| !batch.is_chart) {
        let mut table: Vec<Vec<String>> = Vec::new();
        for cell in batch.cells.iter().filter(|cell| !cell.samples.is_empty()) {
            if table.is_empty() {
                let header = FIGURES.iter().map(|(name, _)| (*name).to_owned());
                table.push(
                    [batch.name.into(), String::new()]
                        .into_iter()
                        .chain(header)
                        .chain(["rounds".into()])
                        .collect(),
                );
            }
            table.push(figures_of(cell));
        }
        if !table.is_empty() {
            text.push_str(&aligned(&table));
            text.push('\n');
        }
    }
    text
}

fn figures_of(cell: &Cell) -> Vec<String> {
    let mut words = vec![format!("  {}", cell.workload), cell.contender.to_string()];
    for (_, metric) in FIGURES {
        let Some(spread) = cell.spread(metric) else { continue };
        words.push(match metric {
            Metric::Iops => format!("{:.1}", spread.median / 1e3),
            Metric::Cpu | Metric::Cores | Metric::Switches => format!("{:.2}", spread.median),
            _ => format!("{:.1}", spread.median),
        });
    }
    let rounds = cell.spread(Metric::Iops);
    words.push(
        rounds.map_or_else(String::new, |rounds| range(&rounds, |figure| format!("{:.1}", figure / 1e3))),
    );
    words
}

/// A median, with its range where the rounds differ much.
fn value_words(value: &Spread, unit: Unit) -> String {
    let median = unit.words(value.median);
    if value.is_wide() { format!("{median} ({})", range(value, |figure| bare(unit, figure))) } else { median }
}

/// A figure without its unit.
fn bare(unit: Unit, figure: f64) -> String {
    let words = unit.words(figure);
    words.trim_end_matches(|char: char| !char.is_ascii_digit()).to_owned()
}

fn range(spread: &Spread, words: impl Fn(f64) -> String) -> String {
    format!("{}..{}", words(spread.min), words(spread.max))
}

/// Columns as wide as their widest word: the first two to the left, figures to the right.
fn aligned<Words: AsRef<[String]>>(table: &[Words]) -> String {
    let columns = table.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
    let width = |column: usize| {
        let words = table.iter().filter_map(|row| row.as_ref().get(column));
        words.map(|word| word.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in table {
        let mut line = String::new();
        for (column, (word, width)) in row.as_ref().iter().zip(&widths).enumerate() {
            let is_last = column + 1 == columns;
            match column {
                0 | 1 => write!(line, "{word:<width$}  "),
                _ if is_last => write!(line, " {word}"),
                _ => write!(line, "{word:>width$}  "),
            }
            .expect("a string takes everything");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::contender::Contender;
    use super::super::running::Failure;
    use super::super::sample::Sample;
    use super::super::workload::{Medium, Op, Workload};
    use super::*;

    fn finding(row: &str, bar: Bar, value: Result<[f64; 3], Failure>) -> Finding {
        let value = value.map(|[min, median, max]| Spread { median, min, max });
        Finding { row: row.into(), against: "qemu".into(), unit: Unit::Times, bar, value }
    }

    fn findings() -> Vec<Finding> {
        vec![
            finding("reads", Bar::AtLeast(2.6), Ok([2.7, 2.71, 2.72])),
            finding("writes", Bar::AtLeast(2.8), Ok([1.0, 1.5, 2.0])),
            finding("null", Bar::AtLeast(5.5), Err(Failure::NotThere("no such engine".into()))),
            finding("null again", Bar::AtLeast(8.0), Err(Failure::NotThere("no such engine".into()))),
            finding("broken", Bar::Open, Err(Failure::Failed("it died".into()))),
        ]
    }

    #[test]
    fn a_row_says_bar_value_and_mark_and_how_wide_the_rounds_are() {
        assert_eq!(
            rows(&findings()),
            "            against       bar               value\n\
             reads       qemu     >= 2.60x               2.71x   ok\n\
             writes      qemu     >= 2.80x  1.50x (1.00..2.00)   MISSED\n\
             null        qemu     >= 5.50x                   -   not there yet\n\
             null again  qemu     >= 8.00x                   -   not there yet\n\
             broken      qemu                                -   FAILED\n"
        );
    }

    #[test]
    fn every_bar_is_counted_and_every_reason_told_once() {
        assert_eq!(summary(&findings()), "4 bars: 1 reached, 1 missed, 2 rows not there yet, 1 rows failed");
        assert_eq!(reasons(&findings()), "not there yet: no such engine\nfailed: it died\n");
    }

    #[test]
    fn figures_are_medians_with_the_range_of_the_rates() {
        let workload = Workload::new(Medium::Cached, Op::Read, 32);
        let mut batch = Batch::new("b").cell(workload, &Contender::Sluice).cell(workload, &Contender::Bare);
        let sample = |iops| Sample {
            iops,
            p50_us: 1.25,
            p99_us: 2.0,
            p999_us: 300.0,
            cpu_us: 0.5,
            cores: 1.0,
            switches: 0.123,
            memory_mib: 6.0,
        };
        batch.cells[0].samples = vec![sample(1e5), sample(3e5), sample(2e5)];
        assert_eq!(
            figures(&[batch]),
            "b                          kIOPS  p50 us  p99 us  p99.9 us  CPU us/IO  cores  switches/IO  memory MiB   \
             rounds\n  cached-read-d32  sluice  200.0     1.2     2.0     300.0       0.50   1.00         0.12         \
             6.0   100.0..300.0\n\n"
        );
    }
}
