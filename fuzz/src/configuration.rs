//! What people write: the launcher's own trial of it.

pub use sluice_launcher::trial::run;
