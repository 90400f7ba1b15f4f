//! Chains that are given back in the order in which they were taken, however the disk is done with them (virtio 1.3,
//! 2.7.9, "In-order use of descriptors").
//!
//! What is done before its turn waits here; the driver is not shown it. So `used.idx` alone says where a ring is: all chains
//! before it are answered, and of those from there on none is. That is what a successor needs to know if nobody has kept an
//! account of what is in flight.

use std::collections::VecDeque;

/// The chains of a ring that are in flight, in order. No Linux counterpart: its vhost devices are done in order by nature.
#[derive(Debug)]
pub(super) struct Order {
    /// Heads, in the order in which they were taken. At most as many as the ring has descriptors.
    taken: VecDeque<u16>,
    /// What was written to the buffers of each head that is done and waits.
    done: Box<[Option<u32>]>,
}

impl Order {
    /// Of a ring with so many descriptors.
    pub(super) fn new(size: u16) -> Self {
        let heads = usize::from(size);
        Self { taken: VecDeque::with_capacity(heads), done: vec![None; heads].into() }
    }

    /// A head is taken.
    #[inline]
    pub(super) fn take(&mut self, head: u16) {
        self.taken.push_back(head);
    }

    /// A head that was taken is done.
    ///
    /// # Panics
    /// When it was done before.
    #[inline]
    pub(super) fn done(&mut self, head: u16, len: u32) {
        let before = self.done.get_mut(usize::from(head)).and_then(|done| done.replace(len));
        assert!(before.is_none(), "a head is given back once");
    }

    /// The next head whose turn it is to be given back, if it is done.
    #[inline]
    pub(super) fn pop(&mut self) -> Option<(u16, u32)> {
        let head = *self.taken.front()?;
        let len = self.done.get_mut(usize::from(head))?.take()?;
        self.taken.pop_front();
        Some((head, len))
    }
}
