//! What the fuzzer tries out of this crate. What people write: a configuration file, the value of `--disk`, a size. Nothing of it is trusted to be text of the right
//! form; errors say where they are, and what was understood can be said again.

use std::path::Path;

use crate::config::parse;
use crate::disk_args::{parse_disk_option, parse_size};

/// By the first byte: a file, an option, or a size.
///
/// # Panics
/// When something is wrong.
pub fn run(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    match first % 4 {
        0 => option(&text),
        1 => size(&text),
        _ => file(&text),
    }
}

fn file(text: &str) {
    match parse(Path::new("disks.toml"), text) {
        Ok(config) => assert!(!config.disks.is_empty(), "a file without a disk is an error"),
        Err(error) => {
            assert!(!error.0.is_empty(), "an error that says nothing");
            for line in &error.0 {
                assert!(line.starts_with("disks.toml:"), "an error without its place: {line}");
            }
        }
    }
}

/// What was understood, written as an option again, is the same disk.
fn option(text: &str) {
    match parse_disk_option(text) {
        Err(errors) => assert!(!errors.is_empty(), "an error that says nothing"),
        Ok(spec) => {
            let settings = spec.disk.settings().into_iter();
            let again: Vec<_> =
                settings.map(|(key, value)| format!("{key}={}", value.replace(',', ",,"))).collect();
            if !again.is_empty() {
                let said = parse_disk_option(&again.join(","));
                assert_eq!(said.map(|spec| spec.disk), Ok(spec.disk), "of {text:?}");
            }
        }
    }
}

fn size(text: &str) {
    if let Ok(size) = parse_size(text) {
        assert_eq!(parse_size(&size.to_string()), Ok(size), "of {text:?}");
    }
}
