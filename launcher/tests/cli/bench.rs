//! `sluice bench`: a short run measures, reports and leaves nothing behind.

use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use serde_json::Value;

use crate::fixture::{Place, Running, eventually, option, output_of, sluice};

/// The benchmark on files in directories of the test's own.
fn bench(place: &Place) -> Command {
    for name in ["dir", "tmpfs"] {
        std::fs::create_dir_all(place.at(name)).expect("a directory");
    }
    let mut command = sluice();
    command.args(["bench", &option("dir", &place.at("dir")), &option("tmpfs", &place.at("tmpfs"))]);
    command
}

fn leftovers(place: &Place) -> usize {
    let count = |name| std::fs::read_dir(place.at(name)).expect("a directory").count();
    count("dir") + count("tmpfs")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).expect("a file")
}

#[test]
fn a_short_run_measures_and_reports_and_leaves_nothing_behind() {
    let place = Place::new();
    let json = place.at("figures.json");
    let mut command = bench(&place);
    command.args(["--quick", "--seconds=0.05", "--only=tmpfs-read-d1", &option("json", &json)]);
    let (code, stdout, stderr) = output_of(&mut command);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert!(stdout.contains("tmpfs-read-d1"), "{stdout}");
    assert_eq!(leftovers(&place), 0);

    let figures: Value = serde_json::from_str(&read(&json)).expect("JSON");
    for contender in ["bare file", "sluice"] {
        let cells = figures["cells"].as_array().expect("a list");
        let cell = cells.iter().find(|cell| cell["contender"] == contender).expect("a cell");
        let iops = cell["rounds"][0]["iops"].as_f64();
        assert!(iops.is_some_and(|iops| iops > 10.0), "{contender}: {cell}");
    }
}

#[test]
fn a_backend_that_fails_is_told_and_fails_the_run() {
    let place = Place::new();
    let mut command = bench(&place);
    command.args(["--quick", "--seconds=0.05", "--only=tmpfs-read-d1", "--peer"]);
    command.arg("broken=sh -c 'echo the error: no disk; exit 3' {socket} {file}");
    let (code, stdout, stderr) = output_of(&mut command);
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    let words = "broken: failed: ended with exit code 3: the error: no disk";
    assert!(stderr.contains(words), "{stderr}");
}

#[test]
fn a_signal_ends_it_and_its_files_and_what_was_measured_is_told() {
    let place = Place::new();
    let report = place.at("report");
    let mut command = bench(&place);
    command.args(["--quick", "--rounds=1000", "--only=tmpfs-read-d1"]);
    command.stdout(std::fs::File::create(&report).expect("a file"));
    let mut running = Running::start(&mut command);
    eventually("a file", || (leftovers(&place) == 2).then_some(()));
    running.signal(Signal::TERM);
    let (code, words) = running.wait();
    assert_eq!(code, Some(1), "{words}");
    assert!(read(&report).contains("stopped by a signal: this is not all"), "{words}");
    assert_eq!(leftovers(&place), 0);
}

#[test]
fn everything_has_a_name_and_nothing_has_another() {
    let place = Place::new();
    let (code, names, _) = output_of(bench(&place).arg("--list"));
    assert_eq!(code, Some(0));
    for name in ["cached-read-d32", "disk-mixed-d32", "null-and-ram", "start", "idle-and-memory", "chart"] {
        assert!(names.lines().any(|line| line == name), "{names}");
    }
    let (code, _, words) = output_of(bench(&place).arg("--only=nothing-like-this"));
    assert_eq!(code, Some(1));
    assert_eq!(words, "error: --only=nothing-like-this: nothing has this in its name; see --list\n");
}
