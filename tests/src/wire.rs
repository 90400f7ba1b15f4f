//! Chains for fuzzing a device over its socket: more than half of them good, the rest wrong in one or two places.
//!
//! A [`plan`] makes a chain by choices, [`wrong`] spoils some, the [`oracle`] says what is due to each, and a [`lane`]
//! sends them in batches to a running device and compares: status byte, used length, every byte of the chain's memory,
//! and at last every byte of the disk. The oracle looks at the chain as it lies in memory, not at how it was made, so
//! that nothing has to be known about what a change does to a chain.
//!
//! A chain has an [`chain::Arena`] of its own for everything that it refers to. One that refers to somebody else's
//! memory is not sent, as it would be judged by what others do at the same time; what a guest gets that lets a device
//! write over its rings and its neighbours' requests is for it to know. That the device lives through it is tested by
//! [`lane::Lane::harm_itself`].

pub mod batch;
pub mod chain;
pub mod lane;
pub mod message;
pub mod oracle;
pub mod plan;
pub mod tally;
pub mod wrong;
