//! Running rings against a naive model that counts without wrapping, and what a driver can get wrong in them.

mod order;
mod setup;

use proptest::prelude::*;

use super::*;
use crate::doubles::guest_ram::GuestRam;

const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x10_0000;
const USED: u64 = 0x20_0000;
const RAM: std::ops::Range<u64> = 0x1000..0x30_0000;

fn setup(size: u16, event_idx: bool, next_avail: u16) -> RingSetup {
    RingSetup {
        size,
        desc: DESC,
        avail: AVAIL,
        used: USED,
        next_avail,
        event_idx,
        indirect: true,
        ..RingSetup::default()
    }
}

/// A driver and what a device must do with its ring, in numbers that never wrap.
struct Model {
    ram: GuestRam,
    size: u16,
    event_idx: bool,
    /// The heads made available: all that ever were.
    available: Vec<u16>,
    taken: usize,
    in_flight: Vec<u16>,
    /// The elements used: all that ever were.
    used: Vec<(u16, u32)>,
    published: usize,
    /// What was published when it was last asked whether the driver wants to be called.
    told: usize,
    base_avail: u16,
    base_used: u16,
}

impl Model {
    fn new(size: u16, event_idx: bool, base_avail: u16, base_used: u16) -> (Self, Vring) {
        let ram = GuestRam::new(&[RAM]);
        ram.write(AVAIL + 2, &base_avail.to_le_bytes());
        ram.write(USED + 2, &base_used.to_le_bytes());
        let vring = Vring::start(&setup(size, event_idx, base_avail), &ram.pin(), None).expect("a good ring");
        let none = (Vec::new(), Vec::new(), Vec::new());
        let (available, in_flight, used) = none;
        let model = Self {
            ram,
            size,
            event_idx,
            available,
            taken: 0,
            in_flight,
            used,
            published: 0,
            told: 0,
            base_avail,
            base_used,
        };
        (model, vring)
    }

    /// The index that the entry after `count` of them has.
    fn index(base: u16, count: usize) -> u16 {
        u16::try_from((usize::from(base) + count) % 65536).expect("a remainder")
    }

    fn slot(&self, base: u16, count: usize) -> u64 {
        ((usize::from(base) + count) % usize::from(self.size)) as u64
    }

    /// Makes a head available that the device does not have.
    fn make_available(&mut self, wish: u16) {
        let waiting = &self.available[self.taken..];
        let busy = |head: &u16| waiting.contains(head) || self.in_flight.contains(head);
        let heads = (0..self.size).map(|n| (wish % self.size + n) % self.size);
        let Some(head) = heads.clone().find(|head| !busy(head)) else { return };
        let entry = AVAIL + 4 + 2 * self.slot(self.base_avail, self.available.len());
        self.ram.write(entry, &head.to_le_bytes());
        self.available.push(head);
        let index = Self::index(self.base_avail, self.available.len());
        self.ram.write(AVAIL + 2, &index.to_le_bytes());
    }

    fn take(&mut self, vring: &mut Vring) {
        let expected = self.available.get(self.taken).copied();
        assert_eq!(vring.take_head(), Ok(expected));
        self.in_flight.extend(expected);
        self.taken += usize::from(expected.is_some());
        assert_eq!(vring.next_avail(), Self::index(self.base_avail, self.taken));
    }

    fn put(&mut self, vring: &mut Vring, wish: usize, len: u32) {
        if self.in_flight.is_empty() {
            return;
        }
        let head = self.in_flight.swap_remove(wish % self.in_flight.len());
        let slot = self.slot(self.base_used, self.used.len());
        vring.put_used(head, len);
        self.used.push((head, len));
        let element = self.ram.read(USED + 4 + 8 * slot, 8);
        assert_eq!(element, [u32::from(head).to_le_bytes(), len.to_le_bytes()].concat());
        let visible = Self::index(self.base_used, self.published);
        assert_eq!(self.ram.read_u16(USED + 2), visible, "seen before it is published");
    }

    fn publish(&mut self, vring: &mut Vring) {
        vring.publish();
        self.published = self.used.len();
        assert_eq!(self.ram.read_u16(USED + 2), Self::index(self.base_used, self.published));
    }

    fn ask(&mut self, vring: &mut Vring) {
        let event = self.ram.read_u16(AVAIL + 4 + 2 * u64::from(self.size));
        let mut new = self.told..self.published;
        assert_eq!(vring.has_untold(), !new.is_empty());
        // 2.7.7.2: whether the element at the index that the driver named is among the new ones.
        let reached = new.clone().any(|count| Self::index(self.base_used, count) == event);
        let wanted = if self.event_idx { reached } else { self.ram.read_u16(AVAIL) & 1 == 0 };
        assert_eq!(vring.wants_call(), wanted && new.next().is_some(), "elements {new:?}, event {event}");
        self.told = self.published;
    }

    fn enable_kick(&self, vring: &mut Vring) {
        assert_eq!(vring.enable_kick(), self.available.len() > self.taken);
        let next = Self::index(self.base_avail, self.taken);
        let event = self.ram.read_u16(USED + 4 + 8 * u64::from(self.size));
        if self.event_idx {
            assert_eq!(event, next, "kicks are due from the next entry on");
        } else {
            assert_eq!((self.ram.read_u16(USED), event), (0, 0), "kicks are wanted");
        }
    }

    fn disable_kick(&self, vring: &mut Vring) {
        vring.disable_kick();
        let event = self.ram.read_u16(USED + 4 + 8 * u64::from(self.size));
        if self.event_idx {
            // 2.7.10.1: however many the driver makes available at a time, it does not get to the event.
            let next = Self::index(self.base_avail, self.taken);
            let reached = (0..self.size).any(|ahead| next.wrapping_add(ahead) == event);
            assert!(!reached, "no kick is due for any entry from {next} on, with {event}");
            assert_eq!(self.ram.read_u16(USED), 0);
        } else {
            assert_eq!((self.ram.read_u16(USED), event), (1, 0), "VIRTQ_USED_F_NO_NOTIFY");
        }
    }

    fn step(&mut self, vring: &mut Vring, step: Step) {
        match step {
            Step::Available(wish) => self.make_available(wish),
            Step::Take => self.take(vring),
            Step::Put(wish, len) => self.put(vring, wish, len),
            Step::Publish => self.publish(vring),
            Step::Ask => self.ask(vring),
            Step::EnableKick => self.enable_kick(vring),
            Step::DisableKick => self.disable_kick(vring),
            Step::Wish { flags, ahead } => {
                self.ram.write(AVAIL, &flags.to_le_bytes());
                let event = Self::index(self.base_used, self.used.len()).wrapping_add_signed(ahead);
                self.ram.write(AVAIL + 4 + 2 * u64::from(self.size), &event.to_le_bytes());
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Available(u16),
    Take,
    Put(usize, u32),
    Publish,
    /// Whether the driver wants to be called.
    Ask,
    EnableKick,
    DisableKick,
    /// What the driver says of calls.
    Wish {
        flags: u16,
        ahead: i16,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any::<u16>().prop_map(Step::Available),
        6 => Just(Step::Take),
        6 => (any::<usize>(), any::<u32>()).prop_map(|(wish, len)| Step::Put(wish, len)),
        3 => Just(Step::Publish),
        2 => Just(Step::Ask),
        1 => Just(Step::EnableKick),
        1 => Just(Step::DisableKick),
        2 => (0..4_u16, prop_oneof![4 => -20..20_i16, 1 => any::<i16>()])
            .prop_map(|(flags, ahead)| Step::Wish { flags, ahead }),
    ]
}

/// Indices on either side of where they wrap.
fn base() -> impl Strategy<Value = u16> {
    prop_oneof![Just(0), 65500..=65535_u16, any::<u16>()]
}

proptest! {
    #[test]
    fn a_ring_does_what_a_naive_one_does(
        size_log in 0..6_u32,
        event_idx in any::<bool>(),
        (base_avail, base_used) in (base(), base()),
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let (mut model, mut vring) = Model::new(1 << size_log, event_idx, base_avail, base_used);
        for step in steps {
            model.step(&mut vring, step);
        }
    }
}

#[test]
fn the_largest_ring_goes_round_past_the_end_of_its_indices() {
    let (mut model, mut vring) = Model::new(SIZE_MAX, true, 65_000, 3);
    for _ in 0..3 {
        for wish in 0..SIZE_MAX {
            if wish % 16 == 0 {
                model.make_available(wish);
            }
        }
        let count = model.available.len() - model.taken;
        for _ in 0..count {
            model.take(&mut vring);
            model.put(&mut vring, 0, 1);
        }
        model.publish(&mut vring);
    }
}

/// A ring of 8 whose driver area says this: `avail.idx`, and the heads from its first entry on.
fn lying_ring(next_avail: u16, idx: u16, heads: &[u16]) -> Vring {
    let ram = GuestRam::new(&[RAM]);
    ram.write(AVAIL + 2, &idx.to_le_bytes());
    let heads: Vec<u8> = heads.iter().flat_map(|head| head.to_le_bytes()).collect();
    ram.write(AVAIL + 4, &heads);
    Vring::start(&setup(8, true, next_avail), &ram.pin(), None).expect("a good ring")
}

#[test]
fn an_available_index_that_jumps_is_a_fault_and_nothing_is_taken() {
    for (next, idx) in [(0, 9), (0, 65535), (5, 4), (65530, 3), (65535, 65534), (100, 32868), (100, 32867)] {
        let mut vring = lying_ring(next, idx, &[0; 8]);
        for _ in 0..2 {
            assert_eq!(vring.take_head(), Err(RingFault::AvailIndex { idx, next, size: 8 }));
            assert_eq!(vring.next_avail(), next);
        }
    }
}

#[test]
fn a_whole_ring_can_be_available_at_once() {
    let mut vring = lying_ring(65532, 4, &[4, 5, 6, 7, 0, 1, 2, 3]);
    for head in 0..8 {
        assert_eq!(vring.take_head(), Ok(Some(head)));
    }
    assert_eq!(vring.take_head(), Ok(None));
}

#[test]
fn a_head_that_is_no_descriptor_is_a_fault_and_nothing_is_taken() {
    for head in [8, 9, 255, 32768, 65535] {
        let mut vring = lying_ring(0, 2, &[3, head]);
        assert_eq!(vring.take_head(), Ok(Some(3)));
        assert_eq!(vring.take_head(), Err(RingFault::Head { head, size: 8 }));
        assert_eq!(vring.next_avail(), 1);
    }
}

#[test]
fn a_head_is_in_flight_until_it_is_given_back() {
    let mut vring = lying_ring(0, 2, &[3, 3]);
    assert_eq!(vring.take_head(), Ok(Some(3)));
    assert_eq!(vring.take_head(), Err(RingFault::HeadInFlight { head: 3 }));
    assert_eq!(vring.next_avail(), 1);
    vring.put_used(3, 0);
    assert_eq!(vring.take_head(), Ok(Some(3)));
}

#[test]
#[should_panic(expected = "given back once")]
fn a_head_is_given_back_once() {
    let mut vring = lying_ring(0, 1, &[3]);
    assert_eq!(vring.take_head(), Ok(Some(3)));
    vring.put_used(3, 0);
    vring.put_used(3, 0);
}

#[test]
fn a_call_is_due_only_when_something_new_was_published() {
    let (mut model, mut vring) = Model::new(4, false, 0, 0);
    vring.publish();
    assert!(!vring.wants_call());
    model.make_available(0);
    model.take(&mut vring);
    vring.put_used(0, 1);
    assert!(!vring.wants_call(), "the driver does not see it yet");
    vring.publish();
    assert!(vring.wants_call());
    vring.publish();
    assert!(!vring.wants_call());
}
