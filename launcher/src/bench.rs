//! `sluice bench`: how fast this is, beside others, measured the same way.
//!
//! [`catalogue`] is what there is to measure and what sluice must reach; [`batch`] takes it in rounds; [`sample`] is one
//! measurement of a [`contender`] at a [`workload`], by the [`client`] with its [`lane`]s, on the files of [`media`].
//! [`quiet`] and [`startup`] measure what is no rate. What was found goes to [`table`], [`json`] and [`chart`].
//!
//! Nothing is left out to look better: every sample counts, an I/O error or wrong data fails the row, and what slows the
//! machine down is said first.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::signals::StopSignals;

mod args;
mod batch;
mod catalogue;
mod chart;
mod client;
mod contender;
mod finding;
mod host;
mod json;
mod lane;
mod media;
pub(crate) mod once;
mod pattern;
mod process;
mod quiet;
mod running;
mod sample;
mod startup;
mod statistics;
mod table;
mod usage;
mod workload;

pub(crate) use args::BenchArgs;

use batch::Batch;
use contender::Contender;
use finding::{Finding, Verdict};
use host::Host;
use media::Media;
use running::{Failure, Ground};
use sample::Metric;

/// The exit code when something could not be measured that should have been.
const FAILED: u8 = 1;
/// The most rounds of the chart: it shows shapes, not bars.
const CHART_ROUNDS: u16 = 2;

/// What is measured when it is no rate.
type Probe = (&'static str, fn(&mut Ground, &[Contender]) -> Vec<Finding>);
const PROBES: [Probe; 2] =
    [(startup::NAME, startup::findings), (quiet::NAME, |ground, _| quiet::findings(ground))];

/// A run from start to end.
struct Bench {
    ground: Ground,
    contenders: Vec<Contender>,
    batches: Vec<Batch>,
    probes: Vec<Probe>,
    findings: Vec<Finding>,
    stop: Arc<AtomicBool>,
    begun: Instant,
}

/// Measures what is wanted, and returns the exit code.
pub(crate) fn run(arguments: &BenchArgs) -> Result<u8> {
    let (contenders, missing) = Contender::find(arguments.reference.as_deref(), &arguments.peer);
    let (batches, probes) = chosen(arguments, &contenders);
    if arguments.list {
        for name in batches.iter().map(|batch| batch.name).chain(probes.iter().map(|probe| probe.0)) {
            println!("{name}");
        }
        return Ok(0);
    }
    if batches.is_empty() && probes.is_empty() {
        bail!("--only={}: nothing has this in its name; see --list", arguments.only.join(", --only="));
    }
    let host = Host::look([&arguments.dir, &arguments.tmpfs], &contenders);
    eprint!("{}", host.words());
    for warning in missing.into_iter().chain(host.warnings()) {
        eprintln!("note: {warning}");
    }
    let mut bench = Bench {
        ground: ground(arguments)?,
        contenders,
        batches,
        probes,
        findings: Vec::new(),
        stop: stop_on_signals()?,
        begun: Instant::now(),
    };
    bench.measure()?;
    bench.report(arguments, &host)
}

/// What somebody wants measured.
fn chosen(arguments: &BenchArgs, contenders: &[Contender]) -> (Vec<Batch>, Vec<Probe>) {
    let mut batches = catalogue::batches(contenders);
    if arguments.chart.is_some() || arguments.list {
        batches.push(catalogue::chart(contenders));
    }
    // Who asks for a chart wants it, whatever else there shall be.
    batches.retain(|batch| arguments.wants(batch.name) || (batch.is_chart && arguments.chart.is_some()));
    let probes = PROBES.into_iter().filter(|probe| arguments.wants(probe.0)).collect();
    (batches, probes)
}

fn ground(arguments: &BenchArgs) -> Result<Ground> {
    let extent = arguments.extent();
    let cpus = match (arguments.pin, std::thread::available_parallelism()?.get()) {
        (false, _) => None,
        (true, 1) => bail!("--pin: there is only one CPU"),
        (true, cpus) => {
            process::pin(&[0]).context("--pin")?;
            Some((1..cpus).collect())
        }
    };
    let media = Media::new(&arguments.dir, &arguments.tmpfs, extent.bytes)?;
    Ok(Ground { media, extent, cpus, started: 0 })
}

/// A flag that a signal sets: what is being measured is finished, and files are removed.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let signals = StopSignals::install().context("cannot take over signals")?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    std::thread::Builder::new().name("stop".into()).spawn(move || {
        if let Err(error) = signals.wait(&[]) {
            eprintln!("bench: cannot wait for signals: {error}");
        }
        flag.store(true, Ordering::Relaxed);
    })?;
    Ok(stop)
}

impl Bench {
    fn measure(&mut self) -> Result<()> {
        let steps = self.batches.len() + self.probes.len();
        let rates: Duration = self.batches.iter().map(|batch| self.time_of(batch)).sum();
        let mut left = rates + self.ground.extent.quiet * u32::try_from(self.probes.len())?;
        eprintln!("about {} to measure", minutes(left));
        let mut batches = std::mem::take(&mut self.batches);
        for (index, batch) in batches.iter_mut().enumerate() {
            if self.is_stopped() {
                break;
            }
            eprintln!("\n==> {}/{steps} {}, {} left", index + 1, batch.name, minutes(left));
            let time = self.time_of(batch);
            self.measure_batch(batch)?;
            if !self.is_stopped() {
                self.findings.extend(batch.findings());
            }
            left = left.saturating_sub(time);
        }
        let done = batches.len();
        self.batches = batches;
        for (index, (name, probe)) in self.probes.iter().enumerate() {
            if self.is_stopped() {
                break;
            }
            eprintln!("\n==> {}/{steps} {name}", done + index + 1);
            self.ground.media.warm()?;
            self.findings.extend(probe(&mut self.ground, &self.contenders));
        }
        Ok(())
    }

    fn measure_batch(&mut self, batch: &mut Batch) -> Result<()> {
        if batch.cells.iter().any(|cell| cell.workload.medium == workload::Medium::Cached) {
            self.ground.media.warm()?;
        }
        let labels: Vec<_> = batch.cells.iter().map(|cell| batch.label(cell)).collect();
        let rounds = self.rounds_of(batch);
        for round in 1..=rounds {
            if self.is_stopped() {
                break;
            }
            eprint!("    {round}/{rounds}:");
            for (cell, label) in batch.cells.iter_mut().zip(&labels) {
                if self.is_stopped() {
                    break;
                }
                cell.measure(&mut self.ground);
                let rate = cell.samples.last().map(|sample| sample.figure(Metric::Iops) / 1e3);
                match (&cell.failure, rate) {
                    (None, Some(rate)) => eprint!("  {label} {rate:.1}k"),
                    _ => eprint!("  {label} -"),
                }
            }
            eprintln!();
        }
        for (cell, label) in batch.cells.iter().zip(&labels) {
            if let Some(why) = &cell.failure {
                eprintln!("    {label}: {why}");
            }
        }
        Ok(())
    }

    fn rounds_of(&self, batch: &Batch) -> u16 {
        if batch.is_chart { self.ground.extent.rounds.min(CHART_ROUNDS) } else { self.ground.extent.rounds }
    }

    fn time_of(&self, batch: &Batch) -> Duration {
        batch.round_time(&self.ground) * u32::from(self.rounds_of(batch))
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Tells what was found; the exit code says whether all of it could be measured.
    fn report(&self, arguments: &BenchArgs, host: &Host) -> Result<u8> {
        let extent = &self.ground.extent;
        println!("\n{}", host.words());
        println!("{}", table::figures(&self.batches));
        println!("{}", table::rows(&self.findings));
        print!("{}", table::reasons(&self.findings));
        println!(
            "{}; medians of {} rounds of {:.1} s; {} in all",
            table::summary(&self.findings),
            extent.rounds,
            extent.time.as_secs_f64(),
            minutes(self.begun.elapsed())
        );
        let stopped = self.is_stopped().then(|| "stopped by a signal: this is not all".to_owned());
        for warning in host.warnings().into_iter().chain(stopped) {
            println!("note: {warning}");
        }
        if let Some(path) = &arguments.json {
            let document = json::document(host, extent, &self.findings, &self.batches);
            write(path, &format!("{document:#}\n"))?;
        }
        if let (Some(path), Some(batch)) =
            (&arguments.chart, self.batches.iter().find(|batch| batch.is_chart))
        {
            let title = "Random reads of 4 KiB from a cached file";
            let subtitle = format!("{} CPUs ({}), Linux {}", host.cpus, host.processor, host.kernel);
            write(path, &chart::svg(batch, title, &subtitle))?;
        }
        Ok(if self.has_failed() || self.is_stopped() { FAILED } else { 0 })
    }

    fn has_failed(&self) -> bool {
        let mut cells = self.batches.iter().flat_map(|batch| &batch.cells);
        cells.any(|cell| matches!(cell.failure, Some(Failure::Failed(_))))
            || self.findings.iter().any(|finding| finding.verdict() == Verdict::Failed)
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| path.display().to_string())?;
    println!("{} is written", path.display());
    Ok(())
}

fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 90 { format!("{seconds} s") } else { format!("{} min", (seconds + 30) / 60) }
}
