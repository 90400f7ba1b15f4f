//! The driver's side of a split virtqueue, written from the virtio 1.3 specification, section 2.7.
//!
//! A [`Ring`] offers any [`Chain`] of descriptors and hands back used elements in order. It is strict as a good
//! driver is: a used element must name a head that is in flight, and a completion that arrives without the wake-up
//! that was asked for is a failure ("lost wake-up"). The `raw_` functions write whatever they are told, so that
//! hostile rings can be made with the same tool.
//!
//! ```text
//! descriptors: 16 bytes each   addr u64 | len u32 | flags u16 | next u16
//! avail:       flags u16 | idx u16 | ring u16 * size | used_event u16
//! used:        flags u16 | idx u16 | (id u32, len u32) * size | avail_event u16
//! ```

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
};
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestMemory;
use crate::signal::Signal;

/// The buffer continues in the descriptor `next`.
pub const NEXT: u16 = flag(VRING_DESC_F_NEXT);
/// The device writes the buffer.
pub const WRITE: u16 = flag(VRING_DESC_F_WRITE);
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = flag(VRING_DESC_F_INDIRECT);
const NO_INTERRUPT: u16 = flag(VRING_AVAIL_F_NO_INTERRUPT);
const NO_NOTIFY: u16 = flag(VRING_USED_F_NO_NOTIFY);
const DESC_BYTES: u64 = 16;
/// Longer than any request of a test takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The flags of a ring are 16 bits wide; the constants of the bindings are not.
const fn flag(bits: u32) -> u16 {
    assert!(bits <= 0xffff);
    (bits & 0xffff) as u16
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desc {
    /// Guest address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// Whether the device writes it; else it reads it.
    pub writable: bool,
}

/// A descriptor chain: first the direct descriptors, then, if there are any, the indirect ones in a table of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Descriptors in the ring's own table.
    pub direct: Vec<Desc>,
    /// Descriptors in one indirect table, which ends the chain.
    pub indirect: Vec<Desc>,
}

impl Chain {
    /// How many of the ring's descriptors the chain takes.
    pub fn slots(&self) -> usize {
        self.direct.len() + usize::from(!self.indirect.is_empty())
    }
}

/// A used element: the device is done with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The chain, by its first descriptor.
    pub head: u16,
    /// The number of bytes that the device says it wrote.
    pub len: u32,
}

/// What a chain in flight holds.
#[derive(Debug)]
struct Held {
    slots: Vec<u16>,
    table: Option<(u64, usize)>,
}

/// A split virtqueue.
#[derive(Debug)]
pub struct Ring {
    memory: Arc<GuestMemory>,
    size: u16,
    /// Guest address of the descriptor table.
    pub desc: u64,
    /// Guest address of the available ring.
    pub avail: u64,
    /// Guest address of the used ring.
    pub used: u64,
    event_idx: bool,
    free: VecDeque<u16>,
    in_flight: HashMap<u16, Held>,
    next_avail: u16,
    published: u16,
    next_used: u16,
    /// Written by the driver: work is available.
    pub kick: EventFd,
    /// Written by the device: work was used.
    pub call: Signal,
    /// Written by the device: the ring is broken.
    pub err: Signal,
    /// Calls that the device made and this driver has taken.
    pub calls_taken: u64,
    /// Kicks sent.
    pub kicks_sent: u64,
}

impl Ring {
    /// A ring of `size` descriptors, a power of two, whose indices start at `base`.
    pub fn new(memory: &Arc<GuestMemory>, size: u16, base: u16, event_idx: bool) -> Self {
        assert!(size.is_power_of_two(), "a split ring's size is a power of two");
        let n = usize::from(size);
        let mut ring = Ring {
            memory: Arc::clone(memory),
            size,
            desc: memory.alloc(16 * n, 16),
            avail: memory.alloc(6 + 2 * n, 2),
            used: memory.alloc(6 + 8 * n, 4),
            event_idx,
            free: VecDeque::new(),
            in_flight: HashMap::new(),
            next_avail: 0,
            published: 0,
            next_used: 0,
            kick: EventFd::new(0).expect("an eventfd can be made"),
            call: Signal::new(),
            err: Signal::new(),
            calls_taken: 0,
            kicks_sent: 0,
        };
        ring.reset(base);
        ring
    }

    /// Forgets everything in flight and starts with clean memory at index `base`, as a driver does after a reset.
    pub fn reset(&mut self, base: u16) {
        let n = usize::from(self.size);
        for (_, held) in self.in_flight.drain() {
            if let Some((addr, len)) = held.table {
                self.memory.free(addr, len);
            }
        }
        self.memory.write(self.desc, &vec![0; 16 * n]);
        self.memory.write(self.avail, &vec![0; 6 + 2 * n]);
        self.memory.write(self.used, &vec![0; 6 + 8 * n]);
        self.free = (0..self.size).collect();
        (self.next_avail, self.published, self.next_used) = (base, base, base);
        self.raw_avail_idx(base);
        self.memory.store(self.used + 2, base.to_le(), Ordering::Release);
        if self.event_idx {
            self.memory.store(self.avail_event_addr(), base.to_le(), Ordering::Release);
        }
    }

    /// The memory that the ring is in.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The index of the next used element: what the device answers when this ring is stopped with nothing in flight.
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    /// The index of the next available entry.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Chains that were offered and not used yet.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Descriptors that are free.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Puts a chain into the available ring and returns its head. The device sees it after [`publish`](Self::publish).
    ///
    /// # Panics
    /// If the chain is empty or the ring has not enough descriptors.
    pub fn offer(&mut self, chain: &Chain) -> u16 {
        let wanted = chain.slots();
        assert!(wanted > 0 && wanted <= self.room(), "{wanted} descriptors wanted, {} free", self.room());
        let slots: Vec<u16> = self.free.drain(..wanted).collect();
        let table = (!chain.indirect.is_empty()).then(|| self.write_table(&chain.indirect));
        for (i, &slot) in slots.iter().enumerate() {
            let next = slots.get(i + 1).copied();
            let (addr, len, flags) = match chain.direct.get(i) {
                Some(desc) => (desc.addr, desc.len, direction(desc)),
                None => table
                    .map(|(addr, bytes)| (addr, len32(bytes), INDIRECT))
                    .expect("the last slot is the table"),
            };
            self.raw_desc(slot, addr, len, flags | next.map_or(0, |_| NEXT), next.unwrap_or(0));
        }
        let head = slots[0];
        self.in_flight.insert(head, Held { slots, table });
        self.raw_avail(self.next_avail, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        head
    }

    fn write_table(&self, descs: &[Desc]) -> (u64, usize) {
        let bytes = descs.len() * 16;
        // The specification asks for no alignment of an indirect table (2.7.5.3); 8 is less than a descriptor.
        let table = self.memory.alloc(bytes, 8);
        for (i, desc) in descs.iter().enumerate() {
            let more = i + 1 < descs.len();
            let next = if more { index16(i + 1) } else { 0 };
            let flags = direction(desc) | if more { NEXT } else { 0 };
            write_desc(&self.memory, table + i as u64 * DESC_BYTES, desc.addr, desc.len, flags, next);
        }
        (table, bytes)
    }

    /// Shows the device everything offered so far, without a kick. Returns whether the device wants one.
    pub fn publish(&mut self) -> bool {
        let old = std::mem::replace(&mut self.published, self.next_avail);
        self.raw_avail_idx(self.next_avail);
        self.wants_kick(self.next_avail, old)
    }

    /// Whether the device wants a kick for an index of the available ring that moved from `old` to `new`.
    pub fn wants_kick(&self, new: u16, old: u16) -> bool {
        // The store of avail.idx comes before the load of avail_event or the flags (2.7.13.4.1).
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = u16::from_le(self.memory.load(self.avail_event_addr(), Ordering::Acquire));
            need_event(event, new, old)
        } else {
            u16::from_le(self.memory.load(self.used, Ordering::Acquire)) & NO_NOTIFY == 0
        }
    }

    /// Kicks, whether or not the device wants it.
    pub fn kick(&mut self) {
        self.kicks_sent += 1;
        self.kick.write(1).expect("a kick fits the counter");
    }

    /// Shows the device everything offered, and kicks if it wants that.
    pub fn submit(&mut self) {
        if self.publish() {
            self.kick();
        }
    }

    /// The next used element, if there is one. Its descriptors are free afterwards.
    ///
    /// # Panics
    /// If the element names a head that is not in flight, or the device's index ran ahead of what was offered.
    pub fn poll(&mut self) -> Option<Used> {
        let idx = self.used_idx();
        if idx == self.next_used {
            return None;
        }
        let ready = usize::from(idx.wrapping_sub(self.next_used));
        assert!(
            ready <= self.in_flight.len(),
            "used.idx says {ready} are done, {} in flight",
            self.in_flight.len()
        );
        let (id, len) = self.used_element(self.next_used);
        let head = u16::try_from(id).unwrap_or_else(|_| panic!("used id {id:#x} is no head"));
        let held =
            self.in_flight.remove(&head).unwrap_or_else(|| panic!("used head {head} is not in flight"));
        self.free.extend(held.slots);
        if let Some((addr, len)) = held.table {
            self.memory.free(addr, len);
        }
        self.next_used = self.next_used.wrapping_add(1);
        Some(Used { head, len })
    }

    /// The next used element, waited for by interrupt: asks for a call and sleeps until it comes.
    ///
    /// # Panics
    /// After [`PATIENCE`], saying whether the device did not answer or answered without the wake-up.
    pub fn wait(&mut self) -> Used {
        self.wait_until(Instant::now() + PATIENCE)
    }

    fn wait_until(&mut self, deadline: Instant) -> Used {
        loop {
            if let Some(used) = self.poll() {
                return used;
            }
            self.ask_for_call();
            if let Some(used) = self.poll() {
                return used;
            }
            if !self.sleep(deadline.saturating_duration_since(Instant::now())) {
                let idx = self.used_idx();
                let lost = idx != self.next_used;
                let why = if lost { "lost wake-up: used, but no call" } else { "no answer" };
                panic!("{why}: used.idx {idx}, seen {}, in flight {}", self.next_used, self.in_flight.len());
            }
        }
    }

    /// The next used element, waited for by looking only, as a polling driver does.
    ///
    /// # Panics
    /// After [`PATIENCE`].
    pub fn spin(&mut self) -> Used {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(used) = self.poll() {
                return used;
            }
            assert!(Instant::now() < deadline, "no answer to {} requests", self.in_flight.len());
            std::thread::yield_now();
        }
    }

    /// Tells the device to call at the next used element.
    pub fn ask_for_call(&mut self) {
        self.ask_for_call_at(self.next_used);
    }

    /// Tells the device to call when the used element with this index is published. Without event_idx, at any.
    pub fn ask_for_call_at(&mut self, index: u16) {
        if self.event_idx {
            self.memory.store(self.used_event_addr(), index.to_le(), Ordering::Release);
        } else {
            self.memory.store(self.avail, 0u16, Ordering::Release);
        }
        fence(Ordering::SeqCst);
    }

    /// Tells the device not to call: a used_event far away, or the flag.
    pub fn refuse_calls(&mut self) {
        if self.event_idx {
            self.ask_for_call_at(self.next_used.wrapping_sub(1));
        } else {
            self.memory.store(self.avail, NO_INTERRUPT.to_le(), Ordering::Release);
            fence(Ordering::SeqCst);
        }
    }

    /// Sleeps until a call arrives, takes it and returns true; false after `timeout`.
    pub fn sleep(&mut self, timeout: Duration) -> bool {
        let calls = self.call.wait(timeout);
        self.calls_taken += calls;
        calls > 0
    }

    /// Id and length of an element of the used ring, whether or not the device has shown it yet.
    pub fn used_element(&self, index: u16) -> (u32, u32) {
        let element = self.used + 4 + 8 * u64::from(index % self.size);
        let field = |at| u32::from_le(self.memory.load(at, Ordering::Relaxed));
        (field(element), field(element + 4))
    }

    /// The device's index into the used ring.
    pub fn used_idx(&self) -> u16 {
        u16::from_le(self.memory.load(self.used + 2, Ordering::Acquire))
    }

    /// Where the driver says up to which used element it wants no call.
    pub fn used_event_addr(&self) -> u64 {
        self.avail + 4 + 2 * u64::from(self.size)
    }

    /// Where the device says up to which available entry it wants no kick.
    pub fn avail_event_addr(&self) -> u64 {
        self.used + 4 + 8 * u64::from(self.size)
    }

    /// Writes a descriptor as told.
    pub fn raw_desc(&self, slot: u16, addr: u64, len: u32, flags: u16, next: u16) {
        write_desc(&self.memory, self.desc + u64::from(slot) * DESC_BYTES, addr, len, flags, next);
    }

    /// Writes the entry `index` of the available ring as told.
    pub fn raw_avail(&self, index: u16, head: u16) {
        self.memory.store(self.avail + 4 + 2 * u64::from(index % self.size), head.to_le(), Ordering::Relaxed);
    }

    /// Writes avail.idx as told.
    pub fn raw_avail_idx(&self, index: u16) {
        self.memory.store(self.avail + 2, index.to_le(), Ordering::Release);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let n = usize::from(self.size);
        for (addr, len) in [(self.desc, 16 * n), (self.avail, 6 + 2 * n), (self.used, 6 + 8 * n)] {
            self.memory.free(addr, len);
        }
    }
}

/// Writes one descriptor at a guest address: a ring's table or an indirect one.
pub fn write_desc(memory: &GuestMemory, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    memory.write(at, &bytes);
}

/// Whether an index that moved from `old` to `new` passed `event` (2.7.10, vring_need_event).
pub fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

fn direction(desc: &Desc) -> u16 {
    if desc.writable { WRITE } else { 0 }
}

fn len32(len: usize) -> u32 {
    u32::try_from(len).expect("a descriptor's length is 32 bits")
}

fn index16(index: usize) -> u16 {
    u16::try_from(index).expect("a descriptor's index is 16 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_needed_when_the_index_passes_it() {
        assert!(need_event(5, 6, 5));
        assert!(!need_event(6, 6, 5));
        assert!(!need_event(4, 6, 5));
        assert!(need_event(0xffff, 3, 0xfffe));
        assert!(!need_event(3, 3, 0xfffe));
    }

    #[test]
    fn a_used_element_frees_its_descriptors_in_order() {
        let memory = GuestMemory::new();
        let mut ring = Ring::new(&memory, 8, 0xffff, true);
        let buffer = |len| Desc { addr: 4096, len, writable: true };
        let a = ring.offer(&Chain { direct: vec![buffer(1), buffer(2)], indirect: vec![] });
        let b = ring.offer(&Chain { direct: vec![], indirect: vec![buffer(3); 5] });
        assert_eq!((ring.room(), ring.publish()), (5, true));
        for (slot, head) in [(7u64, b), (0, a)] {
            memory.write(ring.used + 4 + 8 * slot, &[u32::from(head).to_le_bytes(), [9, 0, 0, 0]].concat());
        }
        memory.store(ring.used + 2, 1u16, Ordering::Release);
        assert_eq!(ring.poll(), Some(Used { head: b, len: 9 }));
        assert_eq!(ring.poll(), Some(Used { head: a, len: 9 }));
        assert_eq!((ring.poll(), ring.room()), (None, 8));
    }
}
