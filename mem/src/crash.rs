//! Tests only: a process that dies between two stores to guest memory.
//!
//! What the dead process has stored is there for its successor, and nothing else. A thread that is told to
//! [die after](run) so many stores unwinds instead of doing the next one.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

thread_local! {
    /// How many stores are left.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// The process has died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Died;

/// Runs `life`, which ends when it has stored `stores` times and wants to once more.
///
/// # Errors
/// [`Died`] if it has.
pub fn run<T>(stores: u32, life: impl FnOnce() -> T) -> Result<T, Died> {
    LEFT.set(Some(stores));
    let result = catch_unwind(AssertUnwindSafe(life));
    LEFT.set(None);
    result.map_err(|payload| if payload.is::<Died>() { Died } else { resume_unwind(payload) })
}

/// A store is about to be done.
pub(crate) fn point() {
    match LEFT.get() {
        Some(0) => resume_unwind(Box::new(Died)),
        Some(left) => LEFT.set(Some(left - 1)),
        None => {}
    }
}
