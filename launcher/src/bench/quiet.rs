//! Disks that nobody uses, and what they cost: processor time, context switches, memory.
//!
//! Every disk has a front-end connected and has done a request; then nothing happens for a while. Two backends, one with
//! a single disk and one with many, are watched in the same while.

use super::contender::Contender;
use super::finding::{Bar, Finding, Unit};
use super::running::{Failure, Ground, Running};
use super::statistics::Spread;
use super::usage::{Usage, own_memory};
use super::workload::{Medium, Op, Workload};

/// The name by which it is chosen.
pub(super) const NAME: &str = "idle-and-memory";
/// How many disks are many.
const MANY: u16 = 64;

/// What quiet disks cost.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Quiet {
    percent: f64,
    switches: f64,
    memory_mib: f64,
}

/// Watches quiet disks and says what was found.
pub(super) fn findings(ground: &mut Ground) -> Vec<Finding> {
    let (one, many) = match watch(ground) {
        Ok([one, many]) => (Ok(one), Ok(many)),
        Err(why) => (Err(why.clone()), Err(why)),
    };
    let seconds = ground.extent.quiet.as_secs();
    let mut findings = Vec::new();
    for (words, quiet) in [("1 quiet disk".to_owned(), &one), (format!("{MANY} quiet disks"), &many)] {
        let cpu = quiet.clone().map(|quiet| quiet.percent);
        findings.push(finding(format!("{words}, {seconds} s: CPU"), Unit::Percent, 0.0, cpu));
        let switches = quiet.clone().map(|quiet| quiet.switches);
        findings.push(finding(format!("{words}, {seconds} s: context switches"), Unit::Count, 0.0, switches));
    }
    let memory = one.clone().map(|one| one.memory_mib);
    findings.push(finding("memory, 1 disk, 1 queue of 256".into(), Unit::Mib, 8.0, memory));
    let further = one.and_then(|one| Ok(further_kib(one, many?)));
    findings.push(finding("memory, each further disk".into(), Unit::Kib, 512.0, further));
    findings
}

/// The memory of each disk after the first.
fn further_kib(one: Quiet, many: Quiet) -> f64 {
    (many.memory_mib - one.memory_mib) * 1024.0 / f64::from(MANY - 1)
}

fn finding(row: String, unit: Unit, most: f64, value: Result<f64, Failure>) -> Finding {
    let value = value.map(|figure| Spread { median: figure, min: figure, max: figure });
    Finding { row, against: String::new(), unit, bar: Bar::AtMost(most), value }
}

fn watch(ground: &mut Ground) -> Result<[Quiet; 2], Failure> {
    let mut one = start(ground, 1)?;
    let mut many = start(ground, MANY)?;
    // What follows a start or a request is done by then.
    std::thread::sleep(ground.extent.quiet / 10);
    let failed = |why: std::io::Error| Failure::Failed(why.to_string());
    let before = [Usage::of(one.id()).map_err(failed)?, Usage::of(many.id()).map_err(failed)?];
    std::thread::sleep(ground.extent.quiet);
    let after = [Usage::of(one.id()).map_err(failed)?, Usage::of(many.id()).map_err(failed)?];
    let mut quiet = [Quiet { percent: 0.0, switches: 0.0, memory_mib: 0.0 }; 2];
    for (index, running) in [&mut one, &mut many].into_iter().enumerate() {
        let spent = after[index].since(&before[index]);
        quiet[index] = Quiet {
            percent: 100.0 * spent.cpu.as_secs_f64() / ground.extent.quiet.as_secs_f64(),
            switches: spent.switches as f64,
            memory_mib: own_memory(running.id()).map_err(failed)? as f64 / f64::from(1 << 20),
        };
        // Nothing was measured if it serves no more.
        running.client.touch().map_err(|error| running.explain(&error))?;
    }
    Ok(quiet)
}

/// Starts sluice with so many disks, each of which does a request.
fn start(ground: &mut Ground, disks: u16) -> Result<Running, Failure> {
    let workload = Workload { disks, ..Workload::new(Medium::Cached, Op::Read, 1) };
    let workload = if disks > 1 { workload.polling() } else { workload };
    let mut running = ground.start(&Contender::Sluice, &workload)?;
    running.client.touch().map_err(|error| running.explain(&error))?;
    Ok(running)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_disk_is_not_shared_out() {
        let quiet = |memory_mib| Quiet { percent: 0.0, switches: 0.0, memory_mib };
        assert!((further_kib(quiet(5.0), quiet(5.0 + 63.0)) - 1024.0).abs() < 1e-9);
    }
}
