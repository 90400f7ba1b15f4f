//! Wrong usage: exit code 2, and words that say what to do.

use crate::fixture::{Place, option, output_of, sluice};

/// The words about arguments that are wrong usage.
fn words_about(arguments: &[&str]) -> String {
    let (code, stdout, stderr) = output_of(sluice().args(arguments));
    assert_eq!((code, stdout.as_str()), (Some(2), ""), "{arguments:?}: {stderr}");
    stderr
}

#[test]
fn a_wrong_value_names_the_option_the_value_and_what_to_do() {
    for (argument, words) in [
        ("--queue-size=300", "'300' for '--queue-size <N>': must be a power of two from 2 to 1024"),
        ("--num-queues=0", "'0' for '--num-queues <N>': must be a number from 1 to 256"),
        (
            "--cache=fast",
            "'fast' for '--cache <MODE>': must be one of none, writeback, writethrough, directsync, unsafe",
        ),
        ("--engine=aio", "'aio' for '--engine <ENGINE>': must be one of uring, sync, ram, null"),
        ("--logical-block-size=1k", "'1k' for '--logical-block-size <BYTES>': must be 512 or 4096"),
        ("--read-only=maybe", "'maybe' for '--read-only[=<on|off>]': must be on or off"),
        (
            "--sockt-path=/s",
            "unexpected argument '--sockt-path' found\n\n  tip: a similar argument exists: '--socket-path'",
        ),
    ] {
        let all = words_about(&[argument]);
        assert!(all.contains(words), "{all}");
    }
}

#[test]
fn everything_that_is_missing_is_named() {
    assert_eq!(
        words_about(&["--num-queues=2"]),
        "error: --socket-path is missing: give the path where front-ends connect, or an inherited descriptor with fd\n\
         error: --blk-file is missing: give the raw file or block device to serve\n\n\
         For more information, try 'sluice --help'.\n"
    );
}

#[test]
fn options_that_exclude_each_other_are_refused() {
    let words = words_about(&["--socket-path=/s", "--fd=3", "--blk-file=/f"]);
    assert!(words.contains("cannot be used with '--fd <N>'"), "{words}");
    let words = words_about(&["--blk-file=/f", "serve", "--disk=fd=3"]);
    assert!(words.contains("subcommand 'serve' cannot be used with"), "{words}");
}

#[test]
fn no_argument_at_all_shows_the_help() {
    let words = words_about(&[]);
    assert!(words.contains("Usage: sluice"), "{words}");
}

#[test]
fn all_errors_of_disks_and_of_a_configuration_file_are_reported_together() {
    let place = Place::new();
    let config = place.at("d.toml");
    std::fs::write(&config, "[[disk]]\nqueue-size = 3\ncolour = 1\n").unwrap();
    let words = words_about(&["serve", &option("config", &config), "--disk=fd=3,cache=fast"]);
    let file = config.display();
    assert_eq!(
        words,
        format!(
            "error: {file}:2: disk #1: queue-size = 3: must be a power of two from 2 to 1024\n\
             error: {file}:3: disk #1: colour = 1: there is no such option; a disk has socket-path, socket-group, socket-mode, fd, blk-file, \
             read-only, cache, num-queues, queue-size, serial, logical-block-size, discard, discard-granularity, discard-alignment, \
             write-zeroes, lock, in-order, on-enospc, io-timeout, memory-budget, engine, size\n\
             error: --disk #1: cache=fast: must be one of none, writeback, writethrough, directsync, unsafe\n\n\
             For more information, try 'sluice --help'.\n"
        )
    );
}

#[test]
fn help_and_version_go_to_standard_output() {
    let (code, stdout, stderr) = output_of(sluice().arg("--help"));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("Examples:"), "{stdout}");
    let (code, stdout, _) = output_of(sluice().arg("--version"));
    assert_eq!((code, stdout), (Some(0), format!("sluice {}\n", env!("CARGO_PKG_VERSION"))));
}
