//! The Linux guest on QEMU: what its block layer, fio and file systems see of the product, and what the host finds in
//! the file afterwards.
//!
//! A boot takes seconds, so each does several jobs, which `guests/linux/README.md` and `tests/src/vm/jobs` describe.

#![allow(clippy::unwrap_used, reason = "an unwrap that fails is a test that fails")]

mod border;
mod disks;
mod events;
mod hosts;
mod kills;
mod migration_kills;
mod migrations;
mod setup;
mod upgrades;
mod workloads;
