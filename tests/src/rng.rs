//! Seeded random numbers: a failing run is replayed by its seed.
//!
//! A test makes one [`Rng`] with [`Rng::for_test`], which prints the seed (shown by the test runner when the test
//! fails) and takes another one from `SLUICE_SEED`. The generator is SplitMix64: tests need spread and replay,
//! not secrecy.
//!
//! What makes something random out of choices takes any [`Choose`], so that a fuzzer can make the choices too.

/// Somebody who makes choices.
pub trait Choose {
    /// A number below `bound`, which is not 0.
    fn below(&mut self, bound: usize) -> usize;

    /// Any 64 bits.
    fn any_u64(&mut self) -> u64;

    /// A number in `low..=high`.
    fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// One of the items.
    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// True in one of `n` cases.
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A 16-bit number below `bound`.
    fn below_u16(&mut self, bound: u16) -> u16 {
        u16::try_from(self.below(bound.into())).expect("a number below a u16 is one")
    }

    /// A 32-bit number below `bound`.
    fn below_u32(&mut self, bound: u32) -> u32 {
        u32::try_from(self.any_u64() % u64::from(bound)).expect("a number below a u32 is one")
    }
}

impl Choose for Rng {
    fn below(&mut self, bound: usize) -> usize {
        Rng::below(self, bound)
    }

    fn any_u64(&mut self) -> u64 {
        self.next_u64()
    }
}

/// A generator of pseudo-random numbers.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// The same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Rng { state: seed }
    }

    /// A generator that starts from `SLUICE_SEED`, else from `default`, and prints how to replay it.
    ///
    /// # Panics
    /// If `SLUICE_SEED` is no number.
    pub fn for_test(default: u64) -> Self {
        let seed = match std::env::var("SLUICE_SEED") {
            Ok(text) => text.parse().expect("SLUICE_SEED is a decimal number"),
            Err(_) => default,
        };
        eprintln!("seed {seed} (replay with SLUICE_SEED={seed})");
        Rng::new(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next_u64() % bound as u64).expect("the remainder is below a usize")
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// One of the items.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// True in one of `n` cases.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// That many random bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next_u64().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
