//! Choices out of the bytes of a fuzzer: it sees which byte decides what, and changes one choice at a time.

use arbitrary::Unstructured;
use sluice_tests::rng::Choose;

/// Choices until the bytes are used up; the first possibility of each from then on.
#[derive(Debug)]
pub struct Choices<'a>(Unstructured<'a>);

impl<'a> Choices<'a> {
    /// Choices out of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    /// Whether there is nothing left to choose by.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// What is left.
    pub fn rest(self) -> &'a [u8] {
        self.0.take_rest()
    }
}

impl Choose for Choices<'_> {
    fn below(&mut self, bound: usize) -> usize {
        self.0.int_in_range(0..=bound - 1).unwrap_or(0)
    }

    fn any_u64(&mut self) -> u64 {
        self.0.arbitrary().unwrap_or(0)
    }
}
