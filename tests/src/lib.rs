//! The test harness: everything that the suites in `tests/tests` share.
//!
//! A suite boots a [`guest::Guest`] on a [`subject::Subject`] (a device that is tested), sends it [`request`]s in any
//! [`shape`] over a [`driver`]-side ring, and compares the answers with the [`model`], which is nothing but a vector of
//! bytes. The [`mod@reference`] device is a subject too: written the usual way with other people's crates, it is the
//! second opinion on what a device must do, and the baseline for how fast.

pub mod dirty;
pub mod disk;
pub mod driver;
pub mod frontend;
pub mod fuse_disk;
pub mod fuse_export;
pub mod generations;
pub mod guest;
pub mod holdings;
pub mod hostile;
pub mod huge_pages;
pub mod lane;
pub mod lineage;
pub mod loop_device;
pub mod memory;
pub mod memory_kind;
pub mod mixture;
pub mod model;
pub mod page_cache;
pub mod power;
pub mod reference;
pub mod request;
pub mod rng;

pub mod shape;
pub mod signal;
pub mod slot;
pub mod subject;
pub mod systemd;
pub mod throttle;
pub mod vm;
pub mod wire;
