//! The conformance suite: what a vhost-user-blk device must do, proven on every subject through its real socket.
//!
//! Each module is a theme and opens with the list of its tests. What a subject cannot do is in
//! `sluice_tests::subject`, with the reason; nothing is skipped for another.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

mod blocks;
mod config_space;
mod device_state;
mod devices;
mod dirty_log;
mod dirty_log_kills;
mod discard_options;
mod hostile_messages;
mod hostile_requests;
mod hostile_rings;
mod idle;
mod inflight;
mod isolation;
mod lifecycle;
mod lost_memory;
mod memory_kinds;
mod mixtures;
mod negotiation;
mod odd_files;
mod requests;
mod rings;
mod shapes;
