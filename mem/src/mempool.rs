//! A fixed reserve of objects, made once.
//!
//! The counterpart of Linux's `mempool_t` with `min_nr` objects and nothing behind them: a pool never grows,
//! so what it bounds stays bounded, and it never waits, because its users are queue threads. Taking and
//! returning move a pointer; neither allocates.
//!
//! ```
//! use sluice_mem::mempool::Mempool;
//!
//! let mut pool = Mempool::new(1, || [0; 64]);
//! let object = pool.try_take().expect("one is free");
//! assert!(pool.try_take().is_none(), "and no more than one");
//! pool.put(object);
//! assert_eq!(pool.available(), pool.capacity());
//! ```

/// A reserve of at most `capacity` objects of type `T`.
#[derive(Debug)]
pub struct Mempool<T> {
    free: Vec<Box<T>>,
    capacity: usize,
}

impl<T> Mempool<T> {
    /// A pool of `capacity` objects, each made by `make` (Linux: `mempool_create`).
    pub fn new(capacity: usize, mut make: impl FnMut() -> T) -> Self {
        let free = (0..capacity).map(|_| Box::new(make())).collect();
        Self { free, capacity }
    }

    /// An object, or `None` while all are in use (Linux: `mempool_alloc`). It is as its last user returned it.
    #[inline]
    pub fn try_take(&mut self) -> Option<Box<T>> {
        self.free.pop()
    }

    /// Returns an object (Linux: `mempool_free`).
    ///
    /// # Panics
    /// When more objects come back than were ever handed out, which would make the pool grow.
    #[inline]
    pub fn put(&mut self, object: Box<T>) {
        assert!(self.free.len() < self.capacity, "a mempool got back more than it gave");
        self.free.push(object);
    }

    /// How many objects are free.
    #[must_use]
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// How many objects there are, free or in use.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_gives_what_it_has_and_no_more() {
        let mut pool = Mempool::new(2, || 7);
        let first = pool.try_take().expect("two are free");
        let second = pool.try_take().expect("one is free");
        assert_eq!(pool.try_take(), None);
        assert_eq!((*first, *second), (7, 7));
        pool.put(second);
        assert_eq!((pool.available(), pool.capacity()), (1, 2));
    }

    #[test]
    #[should_panic(expected = "more than it gave")]
    fn a_pool_never_grows() {
        Mempool::new(1, || 0).put(Box::new(1));
    }
}
