//! sluice.
fn main() {}
