//! One measurement: a contender, a workload, and what came of it.

use std::time::Duration;

use super::contender::Contender;
use super::running::{Failure, Ground, Running};
use super::statistics::Latencies;
use super::usage::{Spent, Usage, own_memory};
use super::workload::{Op, Workload};

/// The figures of one measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    pub(super) iops: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) p999_us: f64,
    /// Processor time of the backend per request; for the bare file the client's.
    pub(super) cpu_us: f64,
    /// Processor time of the backend per time that passed.
    pub(super) cores: f64,
    /// Context switches of the backend per request.
    pub(super) switches: f64,
    /// Resident memory of the backend, without the client's.
    pub(super) memory_mib: f64,
}

/// One of a sample's figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Metric {
    Iops,
    P50,
    P99,
    P999,
    Cpu,
    Cores,
    Switches,
    Memory,
}

impl Metric {
    /// All of them, in the order of tables.
    pub(super) const ALL: [Self; 8] =
        [Self::Iops, Self::P50, Self::P99, Self::P999, Self::Cpu, Self::Cores, Self::Switches, Self::Memory];

    /// The key in the JSON, which says the unit.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::Iops => "iops",
            Self::P50 => "p50_us",
            Self::P99 => "p99_us",
            Self::P999 => "p99.9_us",
            Self::Cpu => "cpu_us_per_io",
            Self::Cores => "cpu_cores",
            Self::Switches => "context_switches_per_io",
            Self::Memory => "own_memory_mib",
        }
    }
}

impl Sample {
    pub(super) fn figure(&self, metric: Metric) -> f64 {
        match metric {
            Metric::Iops => self.iops,
            Metric::P50 => self.p50_us,
            Metric::P99 => self.p99_us,
            Metric::P999 => self.p999_us,
            Metric::Cpu => self.cpu_us,
            Metric::Cores => self.cores,
            Metric::Switches => self.switches,
            Metric::Memory => self.memory_mib,
        }
    }

    fn of(elapsed: Duration, latencies: &Latencies, spent: Spent, memory_bytes: u64) -> Self {
        let requests = latencies.count() as f64;
        let cpu = spent.cpu.as_secs_f64();
        Self {
            iops: requests / elapsed.as_secs_f64(),
            p50_us: latencies.quantile_us(0.5),
            p99_us: latencies.quantile_us(0.99),
            p999_us: latencies.quantile_us(0.999),
            cpu_us: cpu * 1e6 / requests,
            cores: cpu / elapsed.as_secs_f64(),
            switches: spent.switches as f64 / requests,
            memory_mib: memory_bytes as f64 / f64::from(1 << 20),
        }
    }
}

impl Ground {
    /// Measures a contender at a workload once.
    pub(super) fn measure(&mut self, contender: &Contender, workload: &Workload) -> Result<Sample, Failure> {
        let mut running = self.start(contender, workload)?;
        let sample = self.drive(&mut running, workload).map_err(|error| running.explain(&error));
        drop(running);
        if workload.op != Op::Read || workload.medium.is_direct() {
            self.media.settle(workload.medium).map_err(|why| Failure::Failed(format!("{why:#}")))?;
        }
        sample
    }

    fn drive(&self, running: &mut Running, workload: &Workload) -> anyhow::Result<Sample> {
        let mut latencies = Latencies::new();
        running.client.run(self.extent.warm_up, &mut Latencies::new())?;
        let before = Usage::of(running.id())?;
        let elapsed = running.client.run(self.extent.time, &mut latencies)?;
        let spent = Usage::of(running.id())?.since(&before);
        let memory_bytes = own_memory(running.id())?;
        if workload.reads_stamps() {
            running.client.verify()?;
        }
        Ok(Sample::of(elapsed, &latencies, spent, memory_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_per_request_and_per_second() {
        let mut latencies = Latencies::new();
        for us in 1..=1000 {
            latencies.record(Duration::from_micros(us));
        }
        let spent = Spent { cpu: Duration::from_millis(100), switches: 500 };
        let sample = Sample::of(Duration::from_millis(500), &latencies, spent, 3 << 20);
        let close = |a: f64, b: f64| assert!((a - b).abs() <= b / 1000.0, "{a} is not {b}");
        for (metric, figure) in
            Metric::ALL.into_iter().zip([2000.0, 500.0, 990.0, 999.0, 100.0, 0.2, 0.5, 3.0])
        {
            close(sample.figure(metric), figure);
        }
    }
}
