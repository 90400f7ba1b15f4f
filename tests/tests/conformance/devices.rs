//! A block device behind the disk, instead of a file: its size, its blocks, and what it forgets.

use std::os::unix::fs::MetadataExt;

use sluice_tests::disk::DiskSpec;
use sluice_tests::guest::Guest;
use sluice_tests::mixture::Mixture;
use sluice_tests::request::{Extent, Request, SECTOR};
use sluice_tests::rng::Rng;
use sluice_tests::shape::Shape;
use sluice_tests::subject::Subject;

sluice_tests::suite! {
    a_block_device_is_written_and_read: [BlockDevices],
    the_blocks_of_a_device_are_those_of_the_disk: [BlockDevices],
    a_device_forgets_what_is_discarded: [BlockDevices],
    a_random_mixture_on_a_device_is_answered: [BlockDevices],
}

fn a_block_device_is_written_and_read(subject: Subject) {
    let Some(spec) = DiskSpec::on_device(512) else { return };
    let mut guest = Guest::boot(subject, &spec);
    let last = guest.sectors();
    for (sector, sectors) in [(0, 1), (7, 9), (last - 1, 1), (500, 2048)] {
        for skew in [0, 1, 512] {
            let shape = Shape::pieces(&[5000]).skewed(skew).indirect();
            guest.check(&Request::write(sector, vec![0x31; sectors * SECTOR]), &shape);
            guest.check(&Request::read(sector, sectors * SECTOR), &shape);
        }
    }
    guest.check(&Request::read(last, SECTOR), &Shape::default());
    guest.check(&Request::write(last - 1, vec![1; 2 * SECTOR]), &Shape::default());
    guest.check_file();
}

fn the_blocks_of_a_device_are_those_of_the_disk(subject: Subject) {
    for block in [512, 4096] {
        let Some(spec) = DiskSpec::on_device(block) else { return };
        let mut guest = Guest::boot(subject, &spec);
        let blk_size = guest.session().config(20, 4);
        assert_eq!(guest.need(blk_size, "GET_CONFIG"), block.to_le_bytes(), "{subject}: blk_size");
        for (sector, sectors) in [(8, 8), (16, 1), (3, 8), (0, 64)] {
            guest.check(&Request::write(sector, vec![0x32; sectors * SECTOR]), &Shape::default());
            guest.check(&Request::read(sector, sectors * SECTOR), &Shape::default().skewed(3));
        }
        guest.check_file();
    }
}

fn a_device_forgets_what_is_discarded(subject: Subject) {
    let Some(spec) = DiskSpec::on_device(512) else { return };
    let mut guest = Guest::boot(subject, &spec);
    let extent = |sector, sectors, flags| Extent { sector, sectors, flags };
    let allocated = |guest: &Guest| std::fs::metadata(guest.disk.file()).unwrap().blocks();
    let full = allocated(&guest);
    guest.check(&Request::discard(&[extent(0, 2048, 0), extent(4096, 2048, 0)]), &Shape::default());
    let discarded = allocated(&guest);
    assert!(discarded + 4000 <= full, "{subject}: a discard of 4096 sectors freed {}", full - discarded);
    guest.check(&Request::zeroes(&[extent(8192, 2048, 1), extent(10_001, 3, 0)]), &Shape::default());
    guest.check(&Request::zeroes(&[extent(12_288, 2048, 0)]), &Shape::default());
    guest.check(&Request::read(0, 14_400 * SECTOR), &Shape::pieces(&[1 << 20]));
    let unmapped = allocated(&guest);
    assert!(unmapped + 2000 <= discarded, "{subject}: unmapping 2048 sectors freed {}", discarded - unmapped);
}

/// In whole pages: the page cache of a device cannot drop a part of a page that a neighbour is just writing.
fn a_random_mixture_on_a_device_is_answered(subject: Subject) {
    for block in [512, 4096] {
        let Some(spec) = DiskSpec::on_device(block) else { return };
        let mut guest = Guest::boot(subject, &spec);
        let mixture = Mixture { start: 0, sectors: 8 << 11, transfer_max: 96, block: 8, depth: 48 };
        mixture.pour(&mut guest.lanes[0], &mut Rng::for_test(60), 1000);
    }
}
