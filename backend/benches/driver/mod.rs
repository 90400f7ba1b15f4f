//! A driver and the device that it drives, on one thread: the path of a request without any I/O.
//!
//! All that a driver does is done in advance, but for moving `avail.idx`: descriptors, headers and the available ring
//! are there before the first request, and stay. So what is measured is the device's part of a request, from the
//! available ring to the used ring, on a disk that answers at once and moves nothing. Event indices are negotiated, as
//! every driver does, and the driver does not want to be called, so that no system call is measured.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use sluice_backend::call::SignalRings;
use sluice_backend::device::{Device, DeviceOptions};
use sluice_backend::service::{Service, ServiceSetup};
use sluice_backend::vring::RingSetup;
use sluice_blk::disk::{Disk, DiskOptions, Medium};
use sluice_blk::overlap::Wake;
use sluice_mem::guest::{GuestMem, MemPin};
use sluice_mem::region::{Region, RegionInfo};
use sluice_mem::slice::GuestSlice;

/// Elements of the ring.
const RING: u16 = 256;
/// Requests that are prepared. Direct ones take three descriptors each.
const SLOTS: u16 = 64;
/// Bytes of a request.
const BYTES: u32 = 4096;

// Guest addresses. Each part of the ring has pages of its own, as drivers give them.
const START: u64 = 0x10_0000;
const AVAIL: u64 = START + 0x2000;
const USED: u64 = START + 0x3000;
const TABLES: u64 = START + 0x5000;
const HEADERS: u64 = START + 0x8000;
const STATUS: u64 = START + 0x9000;
const DATA: u64 = START + 0x1_0000;
const SIZE: u64 = 0x8_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    /// What it is called.
    pub(crate) name: &'static str,
    /// Whether it writes, and otherwise reads.
    pub(crate) write: bool,
    /// Whether its descriptors are in a table of their own.
    pub(crate) indirect: bool,
}

/// All kinds: 4 KiB, aligned, in one piece.
pub(crate) const KINDS: [Kind; 4] = [
    Kind { name: "read-direct", write: false, indirect: false },
    Kind { name: "read-indirect", write: false, indirect: true },
    Kind { name: "write-direct", write: true, indirect: false },
    Kind { name: "write-indirect", write: true, indirect: true },
];

/// A device with one ring, and its driver.
#[derive(Debug)]
pub(crate) struct Driver {
    service: Service,
    avail: GuestSlice,
    used: GuestSlice,
    status: GuestSlice,
    next: u16,
}

/// A queue that waits for nobody.
#[derive(Debug)]
struct Alone;

impl Wake for Alone {
    fn wake(&self) {}
}

impl Driver {
    /// A driver that makes requests of one kind.
    pub(crate) fn new(kind: Kind) -> Self {
        let memory = memory();
        let pin = MemPin::new(Arc::clone(&memory));
        prepare(&pin, kind);
        let part = |addr, len| pin.slice(addr, len).expect("in the memory");
        let (avail, used) = (part(AVAIL, 0x1000), part(USED, 0x1000));
        let status = part(STATUS, usize::from(SLOTS));
        Self { service: service(memory), avail, used, status, next: 0 }
    }

    /// Has `count` requests done.
    pub(crate) fn run(&mut self, count: u16) {
        self.next = self.next.wrapping_add(count);
        self.avail.store_u16(2, self.next, Ordering::Release);
        self.service.disarm();
        while self.used.load_u16(2, Ordering::Acquire) != self.next {
            self.service.turn(false);
        }
    }

    /// Has each request that is prepared done once, and checks what the device says.
    pub(crate) fn check(&mut self, kind: Kind) {
        for slot in 0..usize::from(SLOTS) {
            self.status.write(slot, 0xff_u8);
        }
        let first = self.next;
        self.run(SLOTS);
        for slot in 0..SLOTS {
            assert_eq!(self.status.read::<u8>(slot.into()), 0, "the status of request {slot}");
            let place = usize::from(first.wrapping_add(slot) % RING);
            let len: u32 = self.used.read(4 + 8 * place + 4);
            assert_eq!(u32::from_le(len), if kind.write { 1 } else { BYTES + 1 });
        }
    }
}

fn memory() -> Arc<GuestMem> {
    let file = File::from(memfd_create("driver", MemfdFlags::CLOEXEC).expect("memfd_create(2)"));
    file.set_len(SIZE).expect("address space");
    let info = RegionInfo { guest_addr: START, size: SIZE, user_addr: START, mmap_offset: 0 };
    let region = Region::map(info, file).expect("a good region");
    Arc::new(GuestMem::new(vec![region]).expect("one region"))
}

fn service(memory: Arc<GuestMem>) -> Service {
    let disk =
        Disk::open(&DiskOptions::on(Medium::Null { bytes: 1 << 30 })).expect("nothing is there always");
    let options =
        DeviceOptions { num_queues: 1, queue_size: RING, serial: None, memory_budget: None, in_order: false };
    let device = Device::new(disk, &options).expect("good options");
    let setup = ServiceSetup {
        held_back: false,
        name: "benchmark".to_owned(),
        index: 0,
        ring: RingSetup {
            size: RING,
            desc: START,
            avail: AVAIL,
            used: USED,
            next_avail: 0,
            event_idx: true,
            indirect: true,
            in_order: false,
            used_log: None,
        },
        inflight: None,
        memory,
        lock: device.disk().lock().acquire(|| ()).expect("it is no file"),
        device: Arc::new(device),
        kick: Arc::new(File::from(eventfd(0, EventfdFlags::CLOEXEC).expect("an fd is free"))),
        call: None,
        err: None,
    };
    Service::start(setup, None, Arc::new(Alone), &SignalRings::growing()).expect("a good ring")
}

/// Writes all that requests are made of, and the available ring, in which they follow one another over and over.
fn prepare(pin: &MemPin, kind: Kind) {
    let write = |addr, bytes: &[u8]| {
        let slice = pin.slice(addr, bytes.len()).expect("in the memory");
        bytes.iter().enumerate().for_each(|(at, byte)| slice.write(at, *byte));
    };
    let descriptor = |addr: u64, len: u32, flags: u16, next: u16| {
        [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
    };
    for slot in 0..SLOTS {
        let at = u64::from(slot);
        let header = HEADERS + 16 * at;
        let sector = at * 4093 * 8;
        write(header, &[&[u8::from(kind.write), 0, 0, 0, 0, 0, 0, 0][..], &sector.to_le_bytes()].concat());
        let first = if kind.indirect { 0 } else { 3 * slot };
        let chain = [
            descriptor(header, 16, NEXT, first + 1),
            descriptor(DATA + at * 4096, BYTES, NEXT | if kind.write { 0 } else { WRITE }, first + 2),
            descriptor(STATUS + at, 1, WRITE, 0),
        ];
        if kind.indirect {
            write(TABLES + 48 * at, &chain.concat());
            write(START + 16 * at, &descriptor(TABLES + 48 * at, 48, INDIRECT, 0));
        } else {
            write(START + 48 * at, &chain.concat());
        }
    }
    for entry in 0..RING {
        let slot = entry % SLOTS;
        let head = if kind.indirect { slot } else { 3 * slot };
        write(AVAIL + 4 + 2 * u64::from(entry), &head.to_le_bytes());
    }
}
