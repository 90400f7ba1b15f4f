//! What is fuzzed in one process. Each target is a function of bytes that panics when something is wrong.
//!
//! | target | from bytes | held against |
//! |---|---|---|
//! | [`chains`] | batches of descriptor chains on a ring of a disk in memory | the oracle and the model of `sluice-tests` |
//! | [`messages`] | messages with fds on a connection, or any bytes | the device lives and serves the next front-end |
//! | [`inflight`] | memory that a front-end kept, and a ring's life after that | a list of what is in flight |
//! | [`configuration`] | a configuration file, a `--disk` option or a size | errors name their place; what is read says itself |
//!
//! A target that shall be looked at by the fuzzer is a file in `fuzz_targets/`, a directory in `corpus/` and a line in
//! [`TARGETS`].

pub mod chains;
pub mod choices;
pub mod configuration;
pub mod inflight;
pub mod messages;

/// A target: its name, and what is done with an input.
pub type Target = (&'static str, fn(&[u8]));

/// The targets.
pub const TARGETS: [Target; 4] = [
    ("chains", chains::run),
    ("messages", messages::run),
    ("inflight", inflight::run),
    ("config", configuration::run),
];
