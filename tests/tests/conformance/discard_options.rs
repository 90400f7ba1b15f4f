//! The options that say what discards and zeroes do: what the guest is told, and what it gets.

use std::os::unix::fs::MetadataExt;

use sluice_tests::disk::{Clears, DiskSpec};
use sluice_tests::guest::Guest;
use sluice_tests::model::{Answer, UNSUPP};
use sluice_tests::request::{Extent, Request, SECTOR};
use sluice_tests::shape::Shape;
use sluice_tests::subject::Subject;
use virtio_bindings::virtio_blk as blk;

use crate::config_space::{at, bits, config, field};

sluice_tests::suite! {
    the_guest_is_told_where_to_discard: [DiscardOptions],
    discards_anywhere_are_taken_whatever_was_told: [DiscardOptions],
    an_ignored_discard_changes_nothing: [DiscardOptions],
    a_discard_gives_space_back_by_default: [DiscardOptions],
    without_zeroes_there_is_no_such_request: [DiscardOptions],
}

fn boot(subject: Subject, clears: Clears, logical_block: Option<u32>) -> Guest {
    Guest::boot(subject, &DiskSpec { clears, logical_block, ..DiskSpec::default() })
}

/// Granularity and alignment in bytes, and the block: what discard_sector_alignment is to be. Where nothing is asked for, it
/// is the file system's block.
fn the_guest_is_told_where_to_discard(subject: Subject) {
    let granularity = |bytes| Clears { discard_granularity: Some(bytes), ..Clears::default() };
    let alignment = |bytes| Clears { discard_alignment: Some(bytes), ..Clears::default() };
    for (clears, block, expected) in [
        (granularity(512), 512, Some(1)),
        // What some guests do not trim below.
        (granularity(32 << 10), 512, Some(64)),
        (granularity(1 << 20), 4096, Some(2048)),
        (alignment(8192), 512, Some(16)),
        (Clears { discard_alignment: Some(4096), ..granularity(64 << 10) }, 512, Some(8)),
        (Clears::default(), 512, None),
    ] {
        let name = format!("{subject}: {clears:?}");
        let mut guest = boot(subject, clears, Some(block));
        let config = config(&mut guest);
        let told = field(&config, at::DISCARD_SECTOR_ALIGNMENT, 4);
        let file_system = std::fs::metadata(guest.disk.file()).unwrap().blksize() / 512;
        assert_eq!(told, expected.unwrap_or(file_system), "{name}: discard_sector_alignment");
        for (at, what) in
            [(at::MAX_DISCARD_SEG, "max_discard_seg"), (at::MAX_WRITE_ZEROES_SEG, "max_write_zeroes_seg")]
        {
            assert!(field(&config, at, 4) >= 16, "{name}: {what}");
        }
        // A range as long as the largest unit that is told, at least.
        for at in [at::MAX_DISCARD_SECTORS, at::MAX_WRITE_ZEROES_SECTORS] {
            assert!(field(&config, at, 4) >= 4096, "{name}: sectors of a range");
        }
    }
}

fn extent(sector: u64, sectors: u32, flags: u32) -> Extent {
    Extent { sector, sectors, flags }
}

/// What is told is a wish (virtio 1.3, 5.2.6.1: the driver "MAY"), so a driver that does not follow it is answered.
fn discards_anywhere_are_taken_whatever_was_told(subject: Subject) {
    let clears = Clears { discard_granularity: Some(64 << 10), ..Clears::default() };
    let mut guest = boot(subject, clears, Some(512));
    for (sector, sectors) in [(0, 128), (1, 1), (127, 2), (130, 700), (5, 0), (guest.sectors() - 1, 1)] {
        guest.check(&Request::discard(&[extent(sector, sectors, 0)]), &Shape::default());
        guest.check(&Request::zeroes(&[extent(sector + 1024, sectors / 2, 1)]), &Shape::default());
        guest.check(&Request::read(0, 4096 * SECTOR), &Shape::default());
    }
}

/// Bytes that the file takes on its disk, with all of it written.
fn allocated(guest: &mut Guest) -> u64 {
    guest.check(&Request::flush(), &Shape::default());
    std::fs::metadata(guest.disk.file()).unwrap().blocks() * 512
}

/// The data stays as it was, which a disk need not promise and this option does; zeroes are zeroes and keep their space.
fn an_ignored_discard_changes_nothing(subject: Subject) {
    let clears = Clears { discard: Some("ignore"), ..Clears::default() };
    let mut guest = boot(subject, clears, None);
    let offered = guest.features & bits(&[blk::VIRTIO_BLK_F_DISCARD]);
    assert_ne!(offered, 0, "{subject}: guests that discard are not to notice");
    let before = allocated(&mut guest);
    guest.check(&Request::discard(&[extent(0, 4096, 0), extent(5001, 33, 0)]), &Shape::default());
    guest.check_file();
    guest.check(&Request::zeroes(&[extent(8192, 4096, 1), extent(13_001, 33, 1)]), &Shape::default());
    guest.check(&Request::read(8000, 5100 * SECTOR), &Shape::pieces(&[1 << 20]));
    guest.check_file();
    // What the file system needs for itself may have become more.
    assert!(allocated(&mut guest) >= before, "{subject}: space was given back");
}

fn a_discard_gives_space_back_by_default(subject: Subject) {
    for discard in [None, Some("unmap")] {
        let mut guest = boot(subject, Clears { discard, ..Clears::default() }, None);
        let before = allocated(&mut guest);
        guest.check(&Request::discard(&[extent(0, 4096, 0)]), &Shape::default());
        guest.check(&Request::zeroes(&[extent(8192, 4096, 1), extent(13_000, 32, 0)]), &Shape::default());
        guest.check(&Request::read(0, 4096 * SECTOR), &Shape::pieces(&[1 << 20]));
        guest.check(&Request::read(8000, 5100 * SECTOR), &Shape::pieces(&[1 << 20]));
        let freed = before - allocated(&mut guest);
        assert!(freed.abs_diff(8192 * 512) <= 64 << 10, "{subject}: {freed} bytes were freed");
    }
}

/// The feature is not offered, its fields are empty, and a driver that does it all the same is told that it cannot.
fn without_zeroes_there_is_no_such_request(subject: Subject) {
    let clears = Clears { write_zeroes: Some(false), ..Clears::default() };
    let mut guest = boot(subject, clears, None);
    let offered = guest.session().offered;
    assert_eq!(offered & bits(&[blk::VIRTIO_BLK_F_WRITE_ZEROES]), 0, "{subject}: WRITE_ZEROES is offered");
    assert_ne!(offered & bits(&[blk::VIRTIO_BLK_F_DISCARD]), 0, "{subject}: DISCARD is not offered");
    let config = config(&mut guest);
    assert_eq!(config[at::MAX_WRITE_ZEROES_SECTORS..at::END], [0; 12], "{subject}: the fields of zeroes");
    for flags in [0, 1] {
        let zeroes = Request::zeroes(&[extent(8, 64, flags)]);
        guest.expect(&zeroes, &Shape::default(), &Answer::status(UNSUPP));
    }
    guest.check_file();
    guest.check(&Request::discard(&[extent(8, 64, 0)]), &Shape::default());
    guest.check_works();
    let mut with = boot(subject, Clears { write_zeroes: Some(true), ..Clears::default() }, None);
    assert_ne!(with.session().offered & bits(&[blk::VIRTIO_BLK_F_WRITE_ZEROES]), 0, "{subject}");
}
