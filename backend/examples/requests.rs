//! Serves so many requests without any I/O and ends: `requests KIND BATCH COUNT`, to be counted or profiled from outside.
//!
//! `scripts/instructions.sh` counts its instructions. A profile of the path: `perf record requests read-direct 32 100000000`.

use std::process::ExitCode;

use driver::{Driver, KINDS, Kind};

#[path = "../benches/driver/mod.rs"]
mod driver;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match parse(&arguments) {
        Some((kind, batch, count)) => {
            serve(kind, batch, count);
            ExitCode::SUCCESS
        }
        None => {
            let kinds: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
            eprintln!("usage: requests KIND BATCH COUNT\nKIND is one of {}, BATCH 1 to 64", kinds.join(", "));
            ExitCode::from(2)
        }
    }
}

fn parse(arguments: &[String]) -> Option<(Kind, u16, u64)> {
    let [kind, batch, count] = arguments else { return None };
    let kind = KINDS.into_iter().find(|known| known.name == kind)?;
    let batch = batch.parse().ok().filter(|batch| (1..=64).contains(batch))?;
    Some((kind, batch, count.parse().ok()?))
}

fn serve(kind: Kind, batch: u16, count: u64) {
    let mut driver = Driver::new(kind);
    driver.check(kind);
    for _ in 0..count / u64::from(batch) {
        driver.run(batch);
    }
}
