//! What stands in for a guest and for chance in this crate's tests.

pub(crate) mod dice;
pub(crate) mod guest_ram;
