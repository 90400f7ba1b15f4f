//! From the start of a process to its first answer.
//!
//! It begins before the process is made, and ends when a read has completed: opening the disk, the socket, the front-end's
//! messages, mapping memory and starting a ring are all in it.

use std::time::{Duration, Instant};

use super::contender::{Contender, QEMU, SLUICE};
use super::finding::{Bar, Finding, Unit};
use super::running::{Failure, Ground};
use super::statistics::Spread;
use super::workload::{Medium, Op, Workload};

/// The name by which it is chosen.
pub(super) const NAME: &str = "start";
/// What an administrator does not notice, in milliseconds.
const BAR_MS: f64 = 20.0;

/// Starts backends in turn and says how long it takes.
pub(super) fn findings(ground: &mut Ground, contenders: &[Contender]) -> Vec<Finding> {
    let started = |contender: &&Contender| [SLUICE, QEMU].contains(&contender.name());
    let who: Vec<_> = contenders.iter().filter(started).collect();
    let mut times: Vec<Result<Vec<f64>, Failure>> = vec![Ok(Vec::new()); who.len()];
    for _ in 0..ground.extent.rounds {
        for (contender, times) in who.iter().zip(&mut times) {
            let Ok(so_far) = times else { continue };
            match start(ground, contender) {
                Ok(time) => so_far.push(time.as_secs_f64() * 1e3),
                Err(why) => *times = Err(why),
            }
        }
    }
    let found = |(contender, times): (&&Contender, Result<Vec<f64>, Failure>)| Finding {
        row: format!("{contender}: start to first request"),
        against: String::new(),
        unit: Unit::Milliseconds,
        bar: if contender.name() == SLUICE { Bar::AtMost(BAR_MS) } else { Bar::Open },
        value: times.and_then(|times| {
            Spread::of(times).ok_or_else(|| Failure::Failed("no round was measured".into()))
        }),
    };
    who.iter().zip(times).map(found).collect()
}

fn start(ground: &mut Ground, contender: &Contender) -> Result<Duration, Failure> {
    let workload = Workload::new(Medium::Cached, Op::Read, 1);
    // Not what is measured: the file is there.
    ground.media.prepare(workload.medium).map_err(|why| Failure::NotThere(format!("{why:#}")))?;
    let begun = Instant::now();
    let mut running = ground.start(contender, &workload)?;
    running.client.touch().map_err(|error| running.explain(&error))?;
    Ok(begun.elapsed())
}
