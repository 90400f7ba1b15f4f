//! The corpus of each target, replayed: what fuzzing has reached or found once stays reached and mended.

use std::fs;
use std::path::{Path, PathBuf};

/// The inputs of a target, in the order of their names.
fn inputs(target: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let entries = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut inputs: Vec<_> = entries.map(|entry| entry.expect("a directory can be read").path()).collect();
    inputs.sort();
    inputs
}

/// Runs all inputs of a target. A thread of the device that panics is a failure too, which no return value tells.
fn replay(target: &str) {
    let (_, run) = sluice_fuzz::TARGETS.into_iter().find(|(name, _)| *name == target).expect("a target");
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        before(info);
        std::process::abort();
    }));
    let inputs = inputs(target);
    assert!(inputs.len() > 10, "{target}: {} inputs", inputs.len());
    for input in &inputs {
        eprintln!("{}", input.display());
        run(&fs::read(input).expect("an input can be read"));
    }
}

#[test]
fn chains() {
    replay("chains");
}

#[test]
fn messages() {
    replay("messages");
}

#[test]
fn inflight() {
    replay("inflight");
}

#[test]
fn config() {
    replay("config");
}

/// Small enough to be read in a review, and to be replayed each time.
#[test]
fn the_corpus_is_small() {
    let all = sluice_fuzz::TARGETS.iter().flat_map(|(target, _)| inputs(target));
    let sizes: Vec<_> = all.map(|input| fs::metadata(input).expect("an input is there").len()).collect();
    assert!(sizes.len() < 300 && sizes.iter().sum::<u64>() < 300 << 10, "{} inputs", sizes.len());
}
