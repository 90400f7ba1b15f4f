//! A running split ring: take heads, put used elements, tell the driver (virtio 1.3, 2.7).
//!
//! A ring that is being set up is a [`RingSetup`], a plain description; [`Vring::start`] checks it against the guest's
//! memory and gives the running ring, so that a ring that runs has addresses that can be accessed. Those are resolved
//! once, not per request. Indices are single 16-bit atomic accesses; `used.idx` is published once per batch, with
//! release order, after the elements and the status bytes before them.
//!
//! The driver is not trusted: what it can get wrong in the rings themselves is a [`RingFault`], after which nothing
//! more is fetched.
#![cfg_attr(not(test), deny(clippy::indexing_slicing, clippy::arithmetic_side_effects))]

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use sluice_mem::guest::MemPin;
use sluice_mem::slice::GuestSlice;
use sluice_mem::sync::fence;
use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use virtio_queue::desc::split::Descriptor;

use self::order::Order;
use self::used_log::UsedLog;
use crate::inflight::{Inflight, InflightSetup, Resumed};

pub use self::setup::{Part, RingSetup, SIZE_MAX, SetupError, check_size, parts};

mod order;
mod setup;
mod used_log;

/// What a driver got wrong in the ring itself. The ring stops until it is set up anew.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum RingFault {
    /// `avail.idx` is ahead by more than there are descriptors, or went back.
    #[error("avail.idx {idx} is more than {size} ahead of {next}")]
    AvailIndex {
        /// What the driver wrote.
        idx: u16,
        /// What is taken next.
        next: u16,
        /// Descriptors of the ring.
        size: u16,
    },
    /// A head that is no descriptor.
    #[error("head {head} of a ring of {size}")]
    Head {
        /// What the driver wrote.
        head: u16,
        /// Descriptors of the ring.
        size: u16,
    },
    /// A head that is in flight already.
    #[error("head {head} was made available while it is in flight")]
    HeadInFlight {
        /// The head.
        head: u16,
    },
    /// A chain that leads nowhere good: see the reason.
    #[error("the chain at head {head} {reason}")]
    Chain {
        /// The chain's head.
        head: u16,
        /// What is wrong with it.
        reason: &'static str,
    },
}

const AVAIL_FLAGS: usize = 0;
const AVAIL_IDX: usize = 2;
const AVAIL_RING: usize = 4;
const USED_FLAGS: usize = 0;
const USED_IDX: usize = 2;
const USED_RING: usize = 4;

/// A running ring.
#[derive(Debug)]
pub struct Vring {
    desc: GuestSlice,
    avail: GuestSlice,
    used: GuestSlice,
    size: u16,
    /// An index of this many bits is a place in the rings.
    mask: u16,
    event_idx: bool,
    indirect: bool,
    /// The index of the next available entry to take.
    next_avail: u16,
    /// `avail.idx` as it was read last.
    seen_avail: u16,
    /// The index of the next used element to write.
    next_used: u16,
    /// `used.idx` as the driver can see it.
    published: u16,
    /// And as it was when it was last asked whether the driver wants to be called.
    told: u16,
    in_flight: Vec<bool>,
    /// Heads that a predecessor has taken and not given back: they are taken first.
    replay: VecDeque<u16>,
    inflight: Option<Inflight>,
    order: Option<Order>,
    log: Option<UsedLog>,
}

impl Vring {
    /// Starts a ring where `setup` says. The used index is what the ring has in memory. With an account of what is in flight
    /// it goes on where that says, and keeps it. Without one, a ring that is answered in order goes on at the used index: a
    /// front-end whose back-end has died may know how far the driver has come, but not how far the dead one had.
    ///
    /// # Errors
    /// [`SetupError`] when the description does not fit the memory, or the account the ring.
    pub fn start(
        setup: &RingSetup,
        pin: &MemPin,
        inflight: Option<&InflightSetup>,
    ) -> Result<Self, SetupError> {
        check_size(u32::from(setup.size))?;
        let [desc, avail, used] = parts(setup);
        let desc = desc.slice(pin, setup.desc)?;
        let avail = avail.slice(pin, setup.avail)?;
        let used = used.slice(pin, setup.used)?;
        let log = setup.used_log(pin.memory().log())?;
        if let Some(log) = &log {
            // Of what a predecessor has written last the marks may be missing.
            log.mark(0, used.len());
        }
        let next_used = used.load_u16(USED_IDX, Ordering::Acquire);
        let inflight =
            inflight.map(|inflight| Inflight::start(inflight, setup.size, next_used)).transpose()?;
        let (inflight, resumed) = inflight.unzip();
        let Resumed { heads, next_avail } = resumed.unwrap_or_default();
        let next_avail = next_avail.unwrap_or(if setup.in_order { next_used } else { setup.next_avail });
        let mut in_flight = vec![false; usize::from(setup.size)];
        for head in &heads {
            let slot = in_flight.get_mut(usize::from(*head));
            *slot.expect("heads of an account that was checked") = true;
        }
        Ok(Self {
            desc,
            avail,
            used,
            size: setup.size,
            mask: setup.size.wrapping_sub(1),
            event_idx: setup.event_idx,
            indirect: setup.indirect,
            next_avail,
            seen_avail: next_avail,
            next_used,
            published: next_used,
            told: next_used,
            in_flight,
            replay: heads.into(),
            inflight,
            order: setup.in_order.then(|| Order::new(setup.size)),
            log,
        })
    }

    /// How many descriptors it has.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Whether indirect descriptors were negotiated.
    #[must_use]
    pub fn has_indirect(&self) -> bool {
        self.indirect
    }

    /// Whether the ring goes on where somebody else has left it, who may have died before the driver was called.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.next_used != 0 || self.next_avail != 0
    }

    /// The index of the next available entry: what GET_VRING_BASE answers.
    #[must_use]
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// A copy of a descriptor, read once. `None` when `index` is not below the ring's size.
    #[must_use]
    #[inline]
    pub fn descriptor(&self, index: u16) -> Option<Descriptor> {
        // The table is as long as the ring's descriptors.
        self.desc.try_read(16 * usize::from(index))
    }

    /// Takes the next head; `None` when there is none. `avail.idx` is read when all entries up to the one read last
    /// were taken.
    ///
    /// # Errors
    /// [`RingFault`] when the index or the head cannot be. Nothing is taken.
    #[inline]
    pub fn take_head(&mut self) -> Result<Option<u16>, RingFault> {
        if self.next_avail == self.seen_avail {
            if let Some(head) = self.replay.pop_front() {
                self.note_order(head);
                return Ok(Some(head));
            }
            // Acquire: the entries, and what they lead to, were written before the index.
            let idx = self.avail.load_u16(AVAIL_IDX, Ordering::Acquire);
            if idx.wrapping_sub(self.next_avail) > self.size {
                return Err(RingFault::AvailIndex { idx, next: self.next_avail, size: self.size });
            }
            self.seen_avail = idx;
            if idx == self.next_avail {
                return Ok(None);
            }
        }
        let entry = avail_entry(self.position(self.next_avail));
        let head = self.avail.load_u16(entry, Ordering::Relaxed);
        match self.in_flight.get_mut(usize::from(head)) {
            None => Err(RingFault::Head { head, size: self.size }),
            Some(true) => Err(RingFault::HeadInFlight { head }),
            Some(in_flight) => {
                *in_flight = true;
                if let Some(inflight) = &mut self.inflight {
                    inflight.take(head);
                }
                self.next_avail = self.next_avail.wrapping_add(1);
                self.note_order(head);
                Ok(Some(head))
            }
        }
    }

    /// Gives a head back with `len` bytes written to its buffers. The driver sees it after [`Vring::publish`], on a ring that
    /// is answered in order when all that were taken before are given back too.
    ///
    /// # Panics
    /// When the head is not in flight.
    #[inline(always)]
    pub fn put_used(&mut self, head: u16, len: u32) {
        if self.order.is_some() { self.put_in_order(head, len) } else { self.put(head, len) }
    }

    #[inline(never)]
    fn put_in_order(&mut self, head: u16, len: u32) {
        if let Some(order) = &mut self.order {
            order.done(head, len);
        }
        while let Some((head, len)) = self.order.as_mut().and_then(Order::pop) {
            self.put(head, len);
        }
    }

    #[inline]
    fn note_order(&mut self, head: u16) {
        if let Some(order) = &mut self.order {
            order.take(head);
        }
    }

    #[inline(always)]
    fn put(&mut self, head: u16, len: u32) {
        let was_in_flight = self.in_flight.get_mut(usize::from(head)).is_some_and(std::mem::take);
        assert!(was_in_flight, "a head is given back once");
        // id (u32) | len (u32), both little-endian.
        let element = u64::from(head) | u64::from(len) << 32;
        self.used.write(used_element(self.position(self.next_used)), element.to_le());
        self.next_used = self.next_used.wrapping_add(1);
        if let Some(inflight) = &mut self.inflight {
            inflight.put(head);
        }
    }

    /// Whether the driver has used elements to be shown.
    #[must_use]
    pub fn has_unpublished(&self) -> bool {
        self.published != self.next_used
    }

    /// Shows the driver all used elements. Sooner or later it is to be asked whether it [wants to be
    /// called](Vring::wants_call).
    pub fn publish(&mut self) {
        if !self.has_unpublished() {
            return;
        }
        let before = std::mem::replace(&mut self.published, self.next_used);
        if self.log.is_some() {
            self.mark_elements(before);
        }
        // Release: the elements and the status bytes come first.
        self.used.store_u16(USED_IDX, self.next_used, Ordering::Release);
        // Once more, for who has taken the mark and copied the page before the index was there.
        self.mark_used(USED_IDX, size_of::<u16>());
        if let Some(inflight) = &mut self.inflight {
            inflight.publish(self.next_used);
        }
    }

    /// Whether the driver has been shown anything since it was last asked.
    #[must_use]
    pub fn has_untold(&self) -> bool {
        self.told != self.published
    }

    /// Whether the driver wants to be called for what it has been shown since it was last asked.
    #[must_use]
    pub fn wants_call(&mut self) -> bool {
        if !self.has_untold() {
            return false;
        }
        let before = std::mem::replace(&mut self.told, self.published);
        // The index has to be visible before the driver's wish is read, or a wish made in between is lost.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            let flags = self.avail.load_u16(AVAIL_FLAGS, Ordering::Relaxed);
            return u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0;
        }
        let event = self.avail.load_u16(avail_entry(usize::from(self.size)), Ordering::Relaxed);
        // virtio 1.3, 2.7.7.2: when the index has moved past the one that the driver waits for.
        self.told.wrapping_sub(event).wrapping_sub(1) < self.told.wrapping_sub(before)
    }

    /// How many heads the driver has made available that were not taken, if it is honest: it may say anything.
    #[must_use]
    pub fn available(&self) -> usize {
        let new = self.avail.load_u16(AVAIL_IDX, Ordering::Relaxed).wrapping_sub(self.next_avail);
        usize::from(new).saturating_add(self.replay.len())
    }

    /// Asks the driver to kick for whatever it makes available from now on. Returns whether something is available
    /// already: then no kick will come for it.
    pub fn enable_kick(&mut self) -> bool {
        self.wish_for_kick(0, self.next_avail);
        // The wish has to be visible before the index is read, or a kick is missed.
        fence(Ordering::SeqCst);
        self.available() > 0
    }

    /// Asks the driver not to kick: with event indices by naming an entry that has passed. It may have been asked to kick
    /// for the next one and have made none available since, while the device was woken by its disk.
    pub fn disable_kick(&mut self) {
        let flags = u16::try_from(VRING_USED_F_NO_NOTIFY).expect("a flag of 16 bits");
        self.wish_for_kick(flags, self.next_avail.wrapping_sub(1));
    }

    /// Says what the driver has to know of kicks: the flags, or with event indices the entry that a kick is due for.
    fn wish_for_kick(&self, flags: u16, event: u16) {
        let (offset, wish) =
            if self.event_idx { (used_element(usize::from(self.size)), event) } else { (USED_FLAGS, flags) };
        self.used.store_u16(offset, wish, Ordering::Relaxed);
        self.mark_used(offset, size_of::<u16>());
    }

    /// Marks the elements that were put since `from`, and the index that is about to show them.
    #[cold]
    fn mark_elements(&self, from: u16) {
        for n in 0..self.next_used.wrapping_sub(from) {
            self.mark_used(used_element(self.position(from.wrapping_add(n))), size_of::<u64>());
        }
        self.mark_used(USED_IDX, size_of::<u16>());
    }

    /// Marks what was written to the used ring.
    #[inline(always)]
    fn mark_used(&self, offset: usize, len: usize) {
        if let Some(log) = &self.log {
            log.mark(offset, len);
        }
    }

    fn position(&self, index: u16) -> usize {
        usize::from(index & self.mask)
    }
}

/// Where an entry of the available ring is; after the last one is used_event.
#[inline]
fn avail_entry(position: usize) -> usize {
    position.wrapping_mul(2).wrapping_add(AVAIL_RING)
}

/// Where an element of the used ring is; after the last one is avail_event.
#[inline]
fn used_element(position: usize) -> usize {
    position.wrapping_mul(8).wrapping_add(USED_RING)
}

#[cfg(all(test, feature = "loom"))]
mod loom;
#[cfg(test)]
mod tests;
