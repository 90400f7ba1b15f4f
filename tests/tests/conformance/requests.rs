//! Every type of request, on the data it is for: reads, writes, flush, identity, discard, zeroes, and the unknown.

use sluice_tests::disk::DiskSpec;
use sluice_tests::guest::Guest;
use sluice_tests::model::{Answer, OK, UNSUPP};
use sluice_tests::request::{Extent, Request, SECTOR};
use sluice_tests::rng::Rng;
use sluice_tests::shape::Shape;
use sluice_tests::subject::{Ability, Subject};
use virtio_bindings::virtio_blk as blk;

sluice_tests::suite! {
    reads_return_what_is_on_the_disk: [],
    writes_change_their_sectors_and_no_others: [],
    a_flush_succeeds_with_and_without_a_sector: [],
    the_identity_is_cut_to_the_room: [Serial],
    the_default_identity_differs_between_disks: [Serial],
    discard_takes_many_segments: [ManyExtents],
    zeroes_are_read_back_as_zeroes: [ManyExtents],
    unmapped_ranges_leave_the_file: [Unmaps],
    unknown_types_are_unsupported: [],
    a_read_only_disk_reads_flushes_and_tells_its_name: [],
    a_block_of_4096_serves_blocks: [],
    parts_of_a_block_of_4096_are_refused: [WholeBlocks],
    the_last_sector_of_an_odd_disk_is_there: [],
}

fn reads_return_what_is_on_the_disk(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let last = guest.sectors();
    for (sector, sectors) in [(0, 1), (1, 7), (8, 8), (3, 256), (last - 1, 1), (last - 2048, 2048)] {
        guest.check(&Request::read(sector, sectors * SECTOR), &Shape::default());
    }
}

fn writes_change_their_sectors_and_no_others(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let mut rng = Rng::for_test(2);
    let last = guest.sectors();
    for (sector, sectors) in [(0, 1), (1, 7), (8, 8), (1001, 300), (last - 1, 1), (last - 2048, 2000)] {
        let data = rng.bytes(sectors * SECTOR);
        guest.check(&Request::write(sector, data), &Shape::default());
        let first = sector.saturating_sub(2);
        let end = (sector + sectors as u64 + 2).min(last);
        let len = usize::try_from(end - first).unwrap() * SECTOR;
        guest.check(&Request::read(first, len), &Shape::default());
    }
    guest.check_file();
}

fn a_flush_succeeds_with_and_without_a_sector(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    guest.check(&Request::write(5, vec![0x11; 4096]), &Shape::default());
    guest.check(&Request::flush(), &Shape::default());
    guest.check(&Request { sector: 7, ..Request::flush() }, &Shape::default());
    guest.check(&Request { sector: u64::MAX, ..Request::flush() }, &Shape::default());
}

fn the_identity_is_cut_to_the_room(subject: Subject) {
    for serial in ["s", "nineteen bytes long", "twenty bytes exactly", "more than twenty bytes in it"] {
        if serial.len() > 20 && subject != Subject::Reference {
            // The product refuses what GET_ID cannot carry, rather than telling two disks apart by nothing.
            continue;
        }
        let mut guest =
            Guest::boot(subject, &DiskSpec { serial: Some(serial.into()), ..DiskSpec::default() });
        for room in [1, 7, 19, 20, 21, 512, 4096] {
            guest.check(&Request::id(room), &Shape::default());
        }
        guest.check(&Request::id(20), &Shape::pieces(&[10]));
        guest.check(&Request::id(33), &Shape::pieces(&[3, 1, 5]));
    }
}

fn the_default_identity_differs_between_disks(subject: Subject) {
    let spec = DiskSpec { serial: None, ..DiskSpec::default() };
    let identity = || {
        let (written, used) = Guest::boot(subject, &spec).run(&Request::id(20), &Shape::default());
        assert_eq!((written.status, used), (OK, 21), "{subject}");
        written.data
    };
    let (one, other) = (identity(), identity());
    assert!(one.iter().any(|&byte| byte != 0), "{subject}: the default identity is empty");
    if subject != Subject::Reference {
        assert_ne!(one, other, "{subject}: two disks have the same identity");
    }
}

fn extent(sector: u64, sectors: u32, flags: u32) -> Extent {
    Extent { sector, sectors, flags }
}

fn discard_takes_many_segments(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let last = guest.sectors();
    guest.check(&Request::discard(&[extent(8, 8, 0)]), &Shape::default());
    guest.check(
        &Request::discard(&[extent(64, 128, 0), extent(1, 3, 0), extent(last - 8, 8, 0)]),
        &Shape::default(),
    );
    guest.check(&Request::discard(&[extent(0, 0, 0), extent(500, 1, 0)]), &Shape::pieces(&[5]));
    let many: Vec<_> = (0..16).map(|i| extent(1000 + 24 * i, 8, 0)).collect();
    guest.check(&Request::discard(&many), &Shape::default());
    guest.check(&Request::read(0, 2048 * SECTOR), &Shape::default());
    guest.check(&Request::read(last - 64, 64 * SECTOR), &Shape::default());
}

fn zeroes_are_read_back_as_zeroes(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let last = guest.sectors();
    for unmap in [0, 1] {
        let start = 4096 * u64::from(unmap);
        guest.check(&Request::zeroes(&[extent(start + 8, 8, unmap)]), &Shape::default());
        guest.check(
            &Request::zeroes(&[extent(start + 33, 61, unmap), extent(start + 17, 2, 0)]),
            &Shape::default(),
        );
        guest.check(&Request::zeroes(&[extent(start + 200, 0, unmap)]), &Shape::default());
        guest.check(&Request::read(start, 256 * SECTOR), &Shape::default());
    }
    guest.check(&Request::zeroes(&[extent(last - 1, 1, 1), extent(last - 4, 1, 0)]), &Shape::default());
    guest.check(&Request::read(last - 8, 8 * SECTOR), &Shape::default());
    guest.check_file();
}

fn unmapped_ranges_leave_the_file(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let allocated = |guest: &Guest| {
        let stat = std::fs::metadata(guest.disk.path()).unwrap();
        std::os::unix::fs::MetadataExt::blocks(&stat)
    };
    let full = allocated(&guest);
    guest.check(&Request::discard(&[extent(0, 4096, 0)]), &Shape::default());
    let discarded = allocated(&guest);
    assert!(discarded <= full - 4000, "{subject}: a discard of 4096 sectors freed {}", full - discarded);
    guest.check(&Request::zeroes(&[extent(8192, 4096, 1)]), &Shape::default());
    let unmapped = allocated(&guest);
    assert!(unmapped <= discarded - 4000, "{subject}: unmapping 4096 sectors freed {}", discarded - unmapped);
    guest.check(&Request::zeroes(&[extent(4096, 4096, 0)]), &Shape::default());
    let kept = allocated(&guest);
    assert!(kept + 64 >= unmapped, "{subject}: zeroes without unmap freed {}", unmapped - kept);
    assert_eq!(guest.disk.bytes().len(), guest.disk.spec.bytes, "{subject}: the file's size changed");
    guest.check(&Request::read(4096, 8192 * SECTOR), &Shape::default());
}

fn unknown_types_are_unsupported(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let unknown = [
        blk::VIRTIO_BLK_T_SCSI_CMD,
        blk::VIRTIO_BLK_T_SECURE_ERASE,
        blk::VIRTIO_BLK_T_ZONE_APPEND,
        blk::VIRTIO_BLK_T_ZONE_REPORT,
        blk::VIRTIO_BLK_T_ZONE_RESET_ALL,
        3,
        5,
        99,
        u32::MAX,
        blk::VIRTIO_BLK_T_BARRIER,
    ];
    let ignores_barrier = subject.lacks(Ability::NoBarrierBit).is_some();
    for kind in unknown.into_iter().filter(|&kind| !(ignores_barrier && kind == blk::VIRTIO_BLK_T_BARRIER)) {
        for (out, room) in [(vec![], 0), (vec![1; 512], 0), (vec![], 512)] {
            let request = Request::other(kind, out, room);
            guest.expect(&request, &Shape::default(), &Answer::status(UNSUPP));
        }
    }
    guest.check_works();
}

fn a_read_only_disk_reads_flushes_and_tells_its_name(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec { read_only: true, ..DiskSpec::default() });
    let before = guest.disk.bytes();
    guest.check(&Request::read(7, 9 * SECTOR), &Shape::default());
    guest.check(&Request::flush(), &Shape::default());
    guest.check(&Request::write(7, vec![1; SECTOR]), &Shape::default());
    guest.check(&Request::discard(&[extent(0, 8, 0)]), &Shape::default());
    guest.check(&Request::zeroes(&[extent(0, 8, 0)]), &Shape::default());
    guest.check(&Request::zeroes(&[extent(0, 8, 1)]), &Shape::default());
    if subject != Subject::Qemu {
        guest.check(&Request::id(20), &Shape::default());
    }
    guest.check(&Request::read(0, 64 * SECTOR), &Shape::default());
    assert!(guest.disk.bytes() == before, "{subject}: a read-only disk was changed");
}

fn a_block_of_4096_serves_blocks(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec { logical_block: Some(4096), ..DiskSpec::default() });
    let last = guest.sectors();
    for sector in [0, 8, 800, last - 8] {
        guest.check(&Request::write(sector, vec![0x77; 4096]), &Shape::default());
        guest.check(&Request::write(sector / 2 / 8 * 8, vec![0x78; 8192]), &Shape::default().skewed(515));
        guest.check(&Request::read(sector, 4096), &Shape::default());
    }
    guest.check(&Request::read(0, 1 << 20), &Shape::default());
}

/// blk_size is a promise of the device that the driver relies on (5.2.5.2 has it use no smaller unit), so that a part of
/// a block is an error, and not a block that is read, changed and written.
fn parts_of_a_block_of_4096_are_refused(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec { logical_block: Some(4096), ..DiskSpec::default() });
    for (sector, sectors) in [(0, 1), (1, 8), (8, 9), (15, 1), (7, 2), (4, 8)] {
        guest.check(&Request::write(sector, vec![0x66; sectors * SECTOR]), &Shape::default());
        guest.check(&Request::read(sector, sectors * SECTOR), &Shape::default());
    }
    guest.check_file();
}

/// 512-byte sectors that are no multiple of a page, on a file system with pages of 4096.
fn the_last_sector_of_an_odd_disk_is_there(subject: Subject) {
    let sectors = 2051;
    let mut guest = Guest::boot(subject, &DiskSpec { bytes: sectors * SECTOR, ..DiskSpec::default() });
    let last = sectors as u64 - 1;
    guest.check(&Request::read(last, SECTOR), &Shape::default());
    guest.check(&Request::read(last - 10, 11 * SECTOR), &Shape::default());
    guest.check(&Request::write(last, vec![9; SECTOR]), &Shape::default());
    guest.check(&Request::write(last - 2, vec![8; 3 * SECTOR]), &Shape::default().skewed(100));
    guest.check(&Request::read(last + 1, SECTOR), &Shape::default());
    guest.check(&Request::write(last, vec![9; 2 * SECTOR]), &Shape::default());
    guest.check_file();
}
