//! A driver: one ring in a guest's memory, and requests over it.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::guest_ram::GuestRam;
use crate::device::Device;
use crate::service::ServiceSetup;
use crate::vring::RingSetup;

/// How long something may take that has to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A ring as its driver has it: everything of it within 64 KiB from `at`.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) at: u64,
    pub(crate) size: u16,
    pub(crate) kick: File,
    pub(crate) call: File,
    pub(crate) err: File,
    pub(crate) next_avail: u16,
    pub(crate) next_used: u16,
}

impl Driver {
    /// Bytes of memory that a driver uses.
    pub(crate) const BYTES: usize = 0x1_0000;
    const AVAIL: u64 = 0x4000;
    const USED: u64 = 0x5000;
    const HEADERS: u64 = 0x8000;
    const STATUS: u64 = 0xa000;
    const DATA: u64 = 0xc000;

    /// A ring of `size` descriptors, at most 512, that was not used yet.
    pub(crate) fn new(ram: &Arc<GuestRam>, at: u64, size: u16) -> Self {
        let event = || event_fd(EventfdFlags::NONBLOCK);
        let (kick, call, err) = (event(), event(), event());
        Self { ram: Arc::clone(ram), at, size, kick, call, err, next_avail: 0, next_used: 0 }
    }

    /// Where the descriptor table, the available ring and the used ring are in the guest.
    pub(crate) fn parts(&self) -> [u64; 3] {
        [self.at, self.at + Self::AVAIL, self.at + Self::USED]
    }

    /// What it takes to serve the ring, without event indices.
    pub(crate) fn setup(&self, device: &Arc<Device>, index: u16) -> ServiceSetup {
        let share = |file: &File| Arc::new(file.try_clone().expect("an fd is free"));
        let [desc, avail, used] = self.parts();
        ServiceSetup {
            held_back: false,
            name: "test".to_owned(),
            index,
            ring: RingSetup {
                size: self.size,
                desc,
                avail,
                used,
                next_avail: self.next_avail,
                event_idx: false,
                indirect: true,
                in_order: device.in_order(),
                used_log: None,
            },
            inflight: None,
            memory: Arc::clone(self.ram.memory()),
            lock: device.disk().lock().acquire(|| ()).expect("nobody has it"),
            device: Arc::clone(device),
            kick: share(&self.kick),
            call: Some(share(&self.call)),
            err: Some(share(&self.err)),
        }
    }

    /// Makes a request available: a header, 512 bytes of data and a status, in three descriptors from `3 * slot` on.
    pub(crate) fn offer(&mut self, slot: u16, kind: u32, sector: u64) {
        let number = u64::from(slot);
        let header = self.at + Self::HEADERS + 16 * number;
        self.ram.write(header, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        self.ram.write(self.status(slot), &[0xff]);
        let flags = if kind == 1 { 1 } else { 3 };
        let descs = [(header, 16_u32, 1_u16), (self.data(slot), 512, flags), (self.status(slot), 1, 2)];
        for (n, (addr, len, flags)) in (3 * slot..).zip(descs) {
            self.write_descriptor(n, addr, len, flags);
        }
        self.offer_head(3 * slot);
    }

    /// Writes a descriptor, which if it has a next one has the one after it.
    pub(crate) fn write_descriptor(&self, n: u16, addr: u64, len: u32, flags: u16) {
        let next = (n + 1).to_le_bytes();
        let desc = [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next].concat();
        self.ram.write(self.at + 16 * u64::from(n), &desc);
    }

    /// Makes a head available.
    pub(crate) fn offer_head(&mut self, head: u16) {
        let entry = 4 + 2 * u64::from(self.next_avail % self.size);
        self.ram.write(self.at + Self::AVAIL + entry, &head.to_le_bytes());
        self.next_avail = self.next_avail.wrapping_add(1);
        self.set_avail_idx(self.next_avail);
    }

    /// Says how many heads are available.
    pub(crate) fn set_avail_idx(&self, idx: u16) {
        self.ram.write(self.at + Self::AVAIL + 2, &idx.to_le_bytes());
    }

    /// Kicks.
    pub(crate) fn kick(&self) {
        notify(&self.kick);
    }

    /// Whether the device wants a kick for the head that was made available last (virtio 1.3, 2.7.10).
    pub(crate) fn wants_kick(&self, event_idx: bool) -> bool {
        let used = self.at + Self::USED;
        if event_idx {
            let event = self.ram.read_u16(used + 4 + 8 * u64::from(self.size));
            event == self.next_avail.wrapping_sub(1)
        } else {
            self.ram.read_u16(used) & 1 == 0
        }
    }

    /// Where the data of a request is.
    pub(crate) fn data(&self, slot: u16) -> u64 {
        self.at + Self::DATA + 512 * u64::from(slot)
    }

    fn status(&self, slot: u16) -> u64 {
        self.at + Self::STATUS + u64::from(slot)
    }

    /// `used.idx` as it is.
    pub(crate) fn used_idx(&self) -> u16 {
        self.ram.read_u16(self.at + Self::USED + 2)
    }

    /// Waits until the next request is done: which one, its status, and the length that was written.
    pub(crate) fn done(&mut self) -> (u16, u8, u32) {
        self.done_within(PATIENCE).expect("a request is done in time")
    }

    /// The same, within a time.
    pub(crate) fn done_within(&mut self, time: Duration) -> Option<(u16, u8, u32)> {
        eventually(time, || self.used_idx() != self.next_used)?;
        let at = self.at + Self::USED + 4 + 8 * u64::from(self.next_used % self.size);
        self.next_used = self.next_used.wrapping_add(1);
        let element = self.ram.read(at, 8);
        let head = u16::from_le_bytes([element[0], element[1]]);
        let len = u32::from_le_bytes([element[4], element[5], element[6], element[7]]);
        Some((head / 3, self.ram.read(self.status(head / 3), 1)[0], len))
    }

    /// Offers a request, kicks, waits for its end and says its status.
    pub(crate) fn request(&mut self, kind: u32, sector: u64) -> u8 {
        self.offer(0, kind, sector);
        self.kick();
        let (slot, status, _) = self.done();
        assert_eq!(slot, 0);
        status
    }

    /// Writes a sector full of `byte`, reads it back, and checks what came.
    pub(crate) fn check_works(&mut self, sector: u64, byte: u8) {
        self.ram.write(self.data(0), &[byte; 512]);
        assert_eq!(self.request(1, sector), 0, "a write");
        self.ram.write(self.data(0), &[0; 512]);
        assert_eq!(self.request(0, sector), 0, "a read");
        assert_eq!(self.ram.read(self.data(0), 512), [byte; 512]);
    }
}

/// An event fd that has not happened.
pub(crate) fn event_fd(flags: EventfdFlags) -> File {
    File::from(eventfd(0, EventfdFlags::CLOEXEC | flags).expect("an fd is free"))
}

/// Writes 1 to an event fd.
pub(crate) fn notify(event: &File) {
    rustix::io::write(event, &1_u64.to_ne_bytes()).expect("an event fd that is not full");
}

/// Takes what an event fd counts; 0 when nothing comes within `time`.
pub(crate) fn take_events(event: &File, time: Duration) -> u64 {
    let timeout = Timespec::try_from(time).expect("a short time");
    poll(&mut [PollFd::new(event, PollFlags::IN)], Some(&timeout)).expect("poll(2)");
    let mut count = [0; 8];
    match rustix::io::read(event, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(_) => 0,
    }
}

/// Waits until something is so; `None` when it is not within `time`.
pub(crate) fn eventually(time: Duration, mut is_so: impl FnMut() -> bool) -> Option<()> {
    let end = Instant::now() + time;
    while !is_so() {
        if Instant::now() > end {
            return None;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    Some(())
}
