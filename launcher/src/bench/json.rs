//! All figures for programs.
//!
//! ```text
//! { "host": {...}, "extent": {...},
//!   "findings": [{ "row", "against", "unit", "at_least" | "at_most", "median", "min", "max", "verdict", "why" }],
//!   "cells": [{ "batch", "workload", "contender", "rounds": [{ "iops", "p50_us", ... }], "failure" }] }
//! ```

use serde_json::{Map, Value, json};

use super::args::Extent;
use super::batch::{Batch, Cell};
use super::finding::{Bar, Finding};
use super::host::Host;
use super::sample::{Metric, Sample};

/// The whole document.
pub(super) fn document(host: &Host, extent: &Extent, findings: &[Finding], batches: &[Batch]) -> Value {
    let cells = batches.iter().flat_map(|batch| batch.cells.iter().map(|one| cell(batch.name, one)));
    let versions: Map<_, _> =
        host.versions.iter().map(|(name, version)| (name.clone(), json!(version))).collect();
    json!({
        "host": {
            "processor": host.processor,
            "cpus": host.cpus,
            "kernel": host.kernel,
            "file_systems": host.file_systems,
            "load": host.load,
            "versions": versions,
        },
        "extent": {
            "rounds": extent.rounds,
            "seconds": extent.time.as_secs_f64(),
            "file_bytes": extent.bytes,
        },
        "findings": findings.iter().map(finding).collect::<Vec<_>>(),
        "cells": cells.collect::<Vec<_>>(),
    })
}

fn finding(finding: &Finding) -> Value {
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| object.insert(key.into(), value);
    put("row", json!(finding.row));
    put("against", json!(finding.against));
    put("unit", json!(finding.unit.key()));
    match finding.bar {
        Bar::AtLeast(bar) => put("at_least", json!(bar)),
        Bar::AtMost(bar) => put("at_most", json!(bar)),
        Bar::Open => None,
    };
    match &finding.value {
        Ok(spread) => {
            put("median", json!(spread.median));
            put("min", json!(spread.min));
            put("max", json!(spread.max));
        }
        Err(why) => {
            put("why", json!(why.to_string()));
        }
    }
    put("verdict", json!(finding.verdict().to_string()));
    Value::Object(object)
}

fn cell(batch: &str, cell: &Cell) -> Value {
    json!({
        "batch": batch,
        "workload": cell.workload.to_string(),
        "contender": cell.contender.name(),
        "rounds": cell.samples.iter().map(round).collect::<Vec<_>>(),
        "failure": cell.failure.as_ref().map(ToString::to_string),
    })
}

fn round(sample: &Sample) -> Value {
    Metric::ALL.iter().map(|metric| (metric.key(), json!(sample.figure(*metric)))).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::contender::Contender;
    use super::super::finding::Unit;
    use super::super::running::Failure;
    use super::super::statistics::Spread;
    use super::super::workload::{Medium, Op, Workload};
    use super::*;

    #[test]
    fn every_figure_of_every_round_is_in_it() {
        let workload = Workload::new(Medium::Cached, Op::Read, 1);
        let mut batch = Batch::new("b").cell(workload, &Contender::Sluice).cell(workload, &Contender::Bare);
        batch.cells[0].samples.push(Sample {
            iops: 1.0,
            p50_us: 2.0,
            p99_us: 3.0,
            p999_us: 4.0,
            cpu_us: 5.0,
            cores: 6.0,
            switches: 7.0,
            memory_mib: 8.0,
        });
        batch.cells[1].failure = Some(Failure::Failed("x".into()));
        let spread = Spread { median: 2.0, min: 1.0, max: 3.0 };
        let found =
            |bar, value| Finding { row: "r".into(), against: String::new(), unit: Unit::Kib, bar, value };
        let findings = [
            found(Bar::AtMost(2.0), Ok(spread)),
            found(Bar::AtLeast(1.0), Err(Failure::NotThere("no".into()))),
        ];
        let host = Host {
            processor: "p".into(),
            cpus: 2,
            kernel: "k".into(),
            file_systems: ["ext4".into(), "tmpfs".into()],
            load: "0.1".into(),
            versions: vec![("sluice".into(), "1".into())],
        };
        let second = Duration::from_secs(1);
        let extent = Extent { rounds: 1, time: second, warm_up: second, quiet: second, bytes: 4096 };
        let document = document(&host, &extent, &findings, &[batch]);
        let round = &document["cells"][0]["rounds"][0];
        for (number, key) in Metric::ALL.into_iter().map(Metric::key).enumerate() {
            assert_eq!(round[key].as_f64(), Some(number as f64 + 1.0), "{key}: {round}");
        }
        assert_eq!(document["cells"][1]["failure"], "failed: x");
        assert_eq!(
            document["findings"],
            json!([
                { "row": "r", "against": "", "unit": "kib", "at_most": 2.0, "median": 2.0, "min": 1.0, "max": 3.0,
                  "verdict": "ok" },
                { "row": "r", "against": "", "unit": "kib", "at_least": 1.0, "why": "not there yet: no",
                  "verdict": "not there yet" },
            ])
        );
        assert_eq!(document["host"]["versions"]["sluice"], "1");
    }
}
