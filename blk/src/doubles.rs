//! What stands in for a guest, for chance and for a block device in this crate's tests.

pub(crate) mod dice;
pub(crate) mod guest_ram;
pub(crate) mod loop_device;
pub(crate) mod patience;
