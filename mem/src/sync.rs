//! What threads of the daemon share without a lock, or with one: the standard library's, or those of loom.
//!
//! With the feature `loom`, locks, fences and atomics are loom's, which runs a test in every order of its threads'
//! steps that the memory model allows. Only tests whose names begin with `loom` can run then. Everything else is the
//! standard library's, also with the feature. No Linux counterpart, but for the litmus tests in `tools/memory-model`.

#[cfg(not(feature = "loom"))]
pub use std::sync::{
    Condvar, Mutex, MutexGuard, atomic::AtomicPtr, atomic::AtomicU16, atomic::AtomicUsize, atomic::fence,
};

#[cfg(feature = "loom")]
pub use self::model::word;
#[cfg(feature = "loom")]
pub use loom::sync::{
    Condvar, Mutex, MutexGuard, atomic::AtomicPtr, atomic::AtomicU16, atomic::AtomicUsize, atomic::fence,
};

/// The 16-bit number of a guest's memory that is accessed as `word`.
#[cfg(not(feature = "loom"))]
#[inline]
pub(crate) fn word(word: &AtomicU16) -> &AtomicU16 {
    word
}

#[cfg(feature = "loom")]
mod model {
    use std::collections::HashMap;
    use std::sync::{Arc, PoisonError};

    use loom::sync::atomic::AtomicU16;

    loom::lazy_static! {
        /// Memory of a guest as loom has it: by address, anew in each run.
        static ref WORDS: std::sync::Mutex<HashMap<usize, Arc<AtomicU16>>> = std::sync::Mutex::default();
    }

    /// Loom's stand-in for a 16-bit number of a guest's memory, which is zero at first.
    pub fn word(word: &std::sync::atomic::AtomicU16) -> Arc<AtomicU16> {
        let address = std::ptr::from_ref(word).addr();
        let mut words = WORDS.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(words.entry(address).or_insert_with(|| Arc::new(AtomicU16::new(0))))
    }
}
