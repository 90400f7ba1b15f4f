//! What stands in for a guest, its disk and its front-end in this crate's tests.

pub(crate) mod disk;
pub(crate) mod driver;
pub(crate) mod front_end;
pub(crate) mod guest_ram;
