//! Nothing of one guest reaches another: not on the same daemon, not on the disk that one had before the other, and not
//! within a guest either.
//!
//! The first guest fills everything that the device may use on the way with one byte, [`SECRET`]: misaligned and large
//! transfers in both directions. The other one then does all that could show memory that somebody else had before: reads
//! that fail half way, odd lengths, answers shorter than their room, ranges that were discarded. After each request all of
//! its memory is looked through, not only the buffers, and at the end its disk.

use std::fs::File;
use std::sync::Arc;

use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::guest::{Drive, Guest};
use sluice_tests::memory::{GuestMemory, Region, memory_file};
use sluice_tests::model::{IOERR, OK};
use sluice_tests::request::{Extent, Request, SECTOR};
use sluice_tests::shape::Shape;
use sluice_tests::subject::{Served, Subject};

sluice_tests::suite! {
    a_secret_that_is_there_is_found: [],
    a_guest_sees_nothing_of_another_on_its_daemon: [SeveralDisks],
    the_next_guest_on_a_disk_sees_nothing_of_the_one_before: [OddSizes],
    a_ring_shows_nothing_of_what_it_carried_before: [OddSizes],
}

/// What the first guest's data is, all of it.
const SECRET: u8 = 0xc7;
/// So many in a row are no accident.
const RUN: usize = 4;
const DISK_BYTES: usize = 4 << 20;

/// A disk of zeroes.
fn spec() -> DiskSpec {
    DiskSpec { bytes: DISK_BYTES, content: None, ..DiskSpec::default() }
}

fn find_secret(bytes: &[u8]) -> Option<usize> {
    let mut run = 0;
    bytes.iter().position(|&byte| {
        run = if byte == SECRET { run + 1 } else { 0 };
        run == RUN
    })
}

/// Where in a guest's memory the secret is.
fn hunt(memory: &GuestMemory) -> Option<u64> {
    memory.regions().iter().find_map(|region| {
        let bytes = memory.read(region.guest_addr, usize::try_from(region.size).unwrap());
        find_secret(&bytes).map(|at| region.guest_addr + at as u64)
    })
}

/// So much memory, so that it can be looked through often.
fn memory(bytes: u64) -> Arc<GuestMemory> {
    GuestMemory::with_regions(vec![Region::new(0, bytes, &memory_file(bytes), 0)])
}

fn connect(subject: Subject, disk: Disk, served: Served, memory: Arc<GuestMemory>) -> Guest {
    Guest::connect(subject, disk, served, &Drive::default(), memory)
}

/// Shapes that make a device use memory of its own.
fn bounced() -> [Shape; 3] {
    [
        Shape::default().skewed(1),
        Shape::pieces(&[777]).indirect().skewed(3),
        Shape { status_joins_data: true, ..Shape::default().skewed(2) },
    ]
}

/// Fills what the device may use with the secret, on the way to the disk and back.
fn spill(guest: &mut Guest) {
    for shape in bounced() {
        for sectors in [1, 9, 256, 1024] {
            guest.check(&Request::write(3, vec![SECRET; sectors * SECTOR]), &shape);
            guest.check(&Request::read(3, sectors * SECTOR), &shape);
        }
    }
    for i in 0..24 {
        let request = Request::write(i * 64, vec![SECRET; 64 * SECTOR]);
        assert!(guest.lanes[0].launch(&request, &Shape::default().skewed(1).indirect()));
    }
    guest.ring().submit();
    guest.lanes[0].land_all();
}

/// Sends a request and hunts. Returns the status.
fn look(guest: &mut Guest, request: &Request, shape: &Shape) -> u8 {
    let (written, _) = guest.run(request, shape);
    let found = hunt(&guest.memory);
    assert_eq!(found, None, "{}: {request:?} shows what is not this guest's, {shape:?}", guest.subject);
    written.status
}

/// Does all that could show old memory, on a disk whose file is cut off.
fn look_everywhere(guest: &mut Guest) {
    let subject = guest.subject;
    let end = DISK_BYTES / 2 - 100;
    File::options().write(true).open(guest.disk.file()).unwrap().set_len(end as u64).unwrap();
    let whole = (end / SECTOR) as u64;
    for shape in bounced() {
        for (sector, sectors) in
            [(whole, 1), (whole - 1, 2), (whole - 7, 100), (whole + 99, 8), (whole - 300, 400)]
        {
            let status = look(guest, &Request::read(sector, sectors * SECTOR), &shape);
            assert_eq!(status, IOERR, "{subject}: {sectors} sectors at {sector} are not all there");
        }
        let discarded = Extent { sector: 11, sectors: 200, flags: 0 };
        for clear in [Request::discard(&[discarded]), Request::zeroes(&[discarded])] {
            assert_eq!(look(guest, &clear, &shape), OK, "{subject}: {clear:?}");
        }
        for (sector, sectors) in [(0, 300), (12, 1), (208, 9), (whole - 1, 1)] {
            assert_eq!(look(guest, &Request::read(sector, sectors * SECTOR), &shape), OK, "{subject}");
        }
        for room in [1, 19, 20, 21, 512, 4096, 100_000] {
            assert_eq!(look(guest, &Request::id(room), &shape), OK, "{subject}: GET_ID with room for {room}");
        }
        for room in [1, 511, 513, 1000, 4097] {
            assert_eq!(look(guest, &Request::read(8, room), &shape), IOERR, "{subject}: a read of {room}");
        }
        for room in [1, 512, 5000] {
            look(guest, &Request::other(77, vec![], room), &shape);
        }
        assert_eq!(look(guest, &Request::write(17, vec![0; SECTOR]), &shape), OK, "{subject}");
    }
    assert_eq!(look(guest, &Request::flush(), &Shape::default()), OK, "{subject}");
    assert_eq!(find_secret(&guest.disk.bytes()), None, "{subject}: the secret is on the disk");
}

/// In memory wherever it is, and through a device.
fn a_secret_that_is_there_is_found(subject: Subject) {
    let bare = memory(2 << 20);
    for at in [0, 4093, 70_001, (2 << 20) - RUN as u64] {
        bare.write(at, &[SECRET; RUN]);
        assert_eq!(hunt(&bare), Some(at + RUN as u64 - 1));
        bare.write(at, &[0; RUN]);
    }
    let disk = Disk::new(&spec());
    let served = subject.serve(&disk);
    let mut guest = connect(subject, disk, served, memory(2 << 20));
    for shape in bounced() {
        guest.check(&Request::write(9, vec![0; 2 * SECTOR]), &shape);
        assert_eq!(hunt(&guest.memory), None);
        guest.check(&Request::write(9, [vec![0; 2 * SECTOR - RUN], vec![SECRET; RUN]].concat()), &shape);
        assert!(hunt(&guest.memory).is_some(), "{subject}: what was written is in the buffer");
        // The buffer goes, and the read brings it back.
        guest.check(&Request::read(0, 256 * SECTOR), &Shape::default());
        let (written, _) = guest.run(&Request::read(9, 3 * SECTOR), &shape);
        assert!(find_secret(&written.data).is_some() && hunt(&guest.memory).is_some(), "{subject}");
        guest.check(&Request::write(0, vec![0; 256 * SECTOR]), &Shape::default());
    }
    guest.check(&Request::write(30, vec![SECRET; SECTOR]), &Shape::default());
    guest.check(&Request::flush(), &Shape::default());
    assert!(find_secret(&guest.disk.bytes()).is_some(), "{subject}: on the disk");
}

fn a_guest_sees_nothing_of_another_on_its_daemon(subject: Subject) {
    let disks = [Disk::new(&spec()), Disk::new(&spec())];
    let served = subject.serve_two(disks.each_ref());
    let ([first, other], [served_first, served_other]) = (disks, served);
    let mut first = connect(subject, first, served_first, memory(8 << 20));
    let mut other = connect(subject, other, served_other, memory(2 << 20));
    spill(&mut first);
    look_everywhere(&mut other);
    // And when the first has gone, with what it had given back.
    spill(&mut first);
    first.redial();
    other.reconnect();
    look_everywhere(&mut other);
}

/// Writes zeroes to all of the disk from memory that the device takes as it is, so that what is left of the secret can only
/// be in the device.
fn overwrite(guest: &mut Guest) {
    for sector in (0..guest.sectors()).step_by(2048) {
        guest.check(&Request::write(sector, vec![0; 2048 * SECTOR]), &Shape::default());
    }
    guest.check(&Request::flush(), &Shape::default());
}

fn the_next_guest_on_a_disk_sees_nothing_of_the_one_before(subject: Subject) {
    let disk = Disk::new(&spec());
    let served = subject.serve(&disk);
    let mut guest = connect(subject, disk, served, memory(8 << 20));
    for _ in 0..2 {
        spill(&mut guest);
        overwrite(&mut guest);
        let large = std::mem::replace(&mut guest.memory, memory(2 << 20));
        guest.reconnect();
        look_everywhere(&mut guest);
        // The first one again, for another round.
        File::options().write(true).open(guest.disk.file()).unwrap().set_len(DISK_BYTES as u64).unwrap();
        guest.memory = large;
        guest.reconnect();
    }
}

/// Memory that the device uses for one ring is used again and again while that runs: programs in a guest are strangers to
/// each other too.
fn a_ring_shows_nothing_of_what_it_carried_before(subject: Subject) {
    let disk = Disk::new(&spec());
    let served = subject.serve(&disk);
    let mut guest = connect(subject, disk, served, memory(4 << 20));
    spill(&mut guest);
    overwrite(&mut guest);
    guest.memory.wipe();
    look_everywhere(&mut guest);
}
