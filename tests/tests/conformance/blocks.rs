//! Blocks that are not those of the disk: sectors of 512 bytes on a device with blocks of 4096, and the other way round.
//!
//! Where the disk is addressed past the page cache, a sector of such a device is a part of what can be read and written at
//! once: the rest of the block must come through unharmed, whoever writes to it at the same time.

use std::path::Path;

use sluice_tests::disk::DiskSpec;
use sluice_tests::guest::{Drive, Guest};
use sluice_tests::lane::Lane;
use sluice_tests::mixture::Mixture;
use sluice_tests::model::{Answer, IOERR, Model, OK};
use sluice_tests::request::{Extent, Request, SECTOR};
use sluice_tests::rng::Rng;
use sluice_tests::shape::{Place, Shape};
use sluice_tests::subject::Subject;
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_BLK_SIZE;

use crate::config_space::{at, bits, config, field};

sluice_tests::suite! {
    a_sector_is_written_and_its_block_stays: [BlockDevices],
    transfers_begin_and_end_within_blocks: [BlockDevices],
    parts_of_blocks_are_zeroed_and_discarded: [BlockDevices],
    a_random_mixture_shares_blocks: [BlockDevices],
    two_queues_write_to_the_same_blocks_at_once: [BlockDevices],
    a_transfer_is_many_segments_of_a_sector: [BlockDevices],
    the_guest_is_told_of_the_large_blocks: [BlockDevices],
    a_device_of_sectors_has_large_blocks_for_the_guest: [BlockDevices],
    a_driver_that_knows_no_blocks_uses_sectors: [BlockDevices],
}

/// Sectors of a block of the device.
const BLOCK: u64 = 8;
/// How far buffers are from where a page starts.
const SKEWS: [usize; 4] = [0, 1, 16, 512];

/// A device with blocks of 4096 bytes that is served in sectors.
fn spec() -> Option<DiskSpec> {
    Some(DiskSpec { logical_block: Some(512), ..DiskSpec::on_device(4096)? })
}

fn boot(subject: Subject) -> Option<Guest> {
    Some(Guest::boot(subject, &spec()?))
}

/// Every sector of a block, from memory of every alignment; after each, the blocks around it are compared.
fn a_sector_is_written_and_its_block_stays(subject: Subject) {
    let Some(mut guest) = boot(subject) else { return };
    let mut rng = Rng::for_test(70);
    for sector in 0..BLOCK {
        for skew in SKEWS {
            let (sector, shape) = (3 * BLOCK + sector, Shape::default().skewed(skew));
            guest.check(&Request::write(sector, rng.bytes(SECTOR)), &shape);
            guest.check(&Request::read(sector, SECTOR), &shape);
            guest.check(&Request::read(2 * BLOCK, 24 * SECTOR), &Shape::default());
        }
    }
    let last = guest.sectors() - 1;
    guest.check(&Request::write(last, rng.bytes(SECTOR)), &Shape::default());
    guest.check(&Request::write(last, rng.bytes(2 * SECTOR)), &Shape::default());
    guest.check(&Request::read(last, SECTOR), &Shape::default().skewed(1));
    guest.check_file();
}

fn transfers_begin_and_end_within_blocks(subject: Subject) {
    let Some(mut guest) = boot(subject) else { return };
    let mut rng = Rng::for_test(71);
    for start in 0..BLOCK {
        for sectors in [2, 7, 8, 9, 15, 16, 17, 300] {
            let shape = Shape::pieces(&[*rng.pick(&[512, 1000, 4096, usize::MAX])]);
            let shape = shape.indirect().skewed(*rng.pick(&SKEWS));
            let sector = 40 * BLOCK + start;
            guest.check(&Request::write(sector, rng.bytes(sectors * SECTOR)), &shape);
            guest.check(&Request::read(sector, sectors * SECTOR), &shape);
            guest.check(&Request::read(39 * BLOCK, (sectors + 24) * SECTOR), &Shape::default());
        }
    }
    guest.check_file();
}

fn extent(sector: u64, sectors: u32, flags: u32) -> Extent {
    Extent { sector, sectors, flags }
}

fn parts_of_blocks_are_zeroed_and_discarded(subject: Subject) {
    let Some(mut guest) = boot(subject) else { return };
    let mut rng = Rng::for_test(72);
    for start in 0..BLOCK {
        for sectors in [1, 7, 8, 9, 17, 40] {
            for clear in [Request::discard, Request::zeroes] {
                let unmap = u32::from(rng.one_in(2) && clear(&[]).kind == Request::zeroes(&[]).kind);
                // Two ranges of one request are parts of the same block.
                let ranges = [extent(start, sectors, unmap), extent(start + 7 * BLOCK, 1, 0)];
                guest.check(&Request::write(0, rng.bytes(80 * SECTOR)), &Shape::default());
                guest.check(&clear(&ranges), &Shape::default());
                guest.check(&Request::read(0, 80 * SECTOR), &Shape::default().skewed(1));
            }
        }
    }
    // What is zeroed is zero for whoever else looks at the device.
    guest.check(&Request::write(0, rng.bytes(80 * SECTOR)), &Shape::default());
    guest.check(&Request::zeroes(&[extent(3, 30, 0), extent(35, 2, 1), extent(77, 1, 1)]), &Shape::default());
    guest.check(&Request::flush(), &Shape::default());
    assert!(guest.lanes[0].model.may_read_as(0, &guest.disk.bytes()[..80 * SECTOR]), "{subject}: the file");
}

/// Many in flight in few blocks, which all of them change at the same time.
fn a_random_mixture_shares_blocks(subject: Subject) {
    let Some(mut guest) = boot(subject) else { return };
    let mut rng = Rng::for_test(73);
    let crowded = Mixture { start: 3, sectors: 400, transfer_max: 11, block: 1, depth: 48 };
    crowded.pour(&mut guest.lanes[0], &mut rng, 700);
    let wide = Mixture { start: 0, sectors: 8 << 11, transfer_max: 96, ..crowded };
    wide.pour(&mut guest.lanes[0], &mut rng, 300);
    guest.check(&Request::read(0, 512 * SECTOR), &Shape::default());
}

/// Sectors that two queues write to, each those of its own parity: no block is one queue's alone.
const SHARED: u64 = 32 * BLOCK;

fn two_queues_write_to_the_same_blocks_at_once(subject: Subject) {
    let Some(spec) = spec() else { return };
    let spec = DiskSpec { queues: 2, ..spec };
    let mut guest = Guest::boot_with(subject, &spec, &Drive { rings: 2, ..Drive::default() });
    let seeds = Rng::for_test(74);
    std::thread::scope(|scope| {
        for (index, lane) in guest.lanes.iter_mut().enumerate() {
            let mut seeds = seeds.clone();
            let mut rng = Rng::new((0..=index).fold(0, |_, _| seeds.next_u64()));
            scope.spawn(move || (0..3).for_each(|_| write_own_sectors(index as u64, lane, &mut rng)));
        }
    });
    let (read, used) = guest.run(&Request::read(0, SECTOR * 256), &Shape::default());
    assert_eq!((read.status, used), (OK, 256 * 512 + 1), "{subject}");
    guest.check(&Request::flush(), &Shape::default());
    for (place, data) in [("the device", &read.data[..]), ("the file", &guest.disk.bytes()[..])] {
        for (sector, data) in (0..SHARED).zip(data.chunks(SECTOR)) {
            let owner = &guest.lanes[usize::try_from(sector % 2).unwrap()].model;
            assert!(
                owner.may_read_as(sector, data),
                "{subject}: sector {sector} of {place} is not its owner's"
            );
        }
    }
}

/// Writes or zeroes each sector of a parity once, in any order, with as many in flight as the ring holds.
fn write_own_sectors(parity: u64, lane: &mut Lane, rng: &mut Rng) {
    let mut own: Vec<_> = (0..SHARED).filter(|sector| sector % 2 == parity).collect();
    while !own.is_empty() {
        let sector = own.swap_remove(rng.below(own.len()));
        let request = match rng.one_in(8) {
            true => Request::zeroes(&[extent(sector, 1, u32::from(rng.one_in(2)))]),
            false => Request::write(sector, rng.bytes(SECTOR)),
        };
        let shape = Shape::default().indirect().skewed(*rng.pick(&SKEWS));
        while !lane.launch(&request, &shape) {
            lane.ring.submit();
            let used = lane.next_used();
            lane.land(used);
        }
        if rng.one_in(4) {
            lane.ring.submit();
        }
    }
    lane.ring.submit();
    lane.land_all();
}

/// 1024 segments, which is as many as there may be, apart from each other in memory or one after the other.
fn a_transfer_is_many_segments_of_a_sector(subject: Subject) {
    let Some(mut guest) = boot(subject) else { return };
    let mut rng = Rng::for_test(75);
    let bytes = 1024 * SECTOR;
    let next_to_each_other = guest.memory.alloc(bytes + 2 * 4096, 4096);
    for place in [
        Place::Aligned { align: 512, skew: 0 },
        Place::Aligned { align: 512, skew: 1 },
        Place::At(next_to_each_other),
        // The data begins where a page does.
        Place::At(next_to_each_other + 4096 - 16),
    ] {
        let shape = Shape { place, ..Shape::pieces(&[SECTOR]).indirect() };
        for sector in [0, 5] {
            guest.check(&Request::write(sector, rng.bytes(bytes)), &shape);
            guest.check(&Request::read(sector, bytes), &shape);
        }
    }
    guest.check_file();
}

/// What Linux says of a block device's queue.
fn sysfs(device: &Path, name: &str) -> u64 {
    let device = device.file_name().unwrap().to_str().unwrap();
    let text = std::fs::read_to_string(format!("/sys/block/{device}/queue/{name}")).unwrap();
    text.trim().parse().unwrap()
}

fn the_guest_is_told_of_the_large_blocks(subject: Subject) {
    let Some(mut guest) = boot(subject) else { return };
    let device = guest.disk.path();
    let config = config(&mut guest);
    for (name, at, len, expected) in [
        ("capacity", at::CAPACITY, 8, guest.sectors()),
        ("blk_size", at::BLK_SIZE, 4, 512),
        ("physical_block_exp", at::PHYSICAL_BLOCK_EXP, 1, 3),
        ("alignment_offset", at::ALIGNMENT_OFFSET, 1, 0),
        ("min_io_size", at::MIN_IO_SIZE, 2, sysfs(&device, "minimum_io_size") / 512),
        ("opt_io_size", at::OPT_IO_SIZE, 4, sysfs(&device, "optimal_io_size") / 512),
        (
            "discard_sector_alignment",
            at::DISCARD_SECTOR_ALIGNMENT,
            4,
            sysfs(&device, "discard_granularity") / 512,
        ),
    ] {
        assert_eq!(field(&config, at, len), expected, "{subject}: {name}");
    }
    assert_eq!(field(&config, at::MIN_IO_SIZE, 2), BLOCK, "{subject}: this device prefers whole blocks");
}

fn a_device_of_sectors_has_large_blocks_for_the_guest(subject: Subject) {
    let Some(spec) = DiskSpec::on_device(512) else { return };
    let mut guest = Guest::boot(subject, &DiskSpec { logical_block: Some(4096), ..spec });
    let config = config(&mut guest);
    assert_eq!(field(&config, at::BLK_SIZE, 4), 4096, "{subject}: blk_size");
    assert_eq!(field(&config, at::PHYSICAL_BLOCK_EXP, 1), 0, "{subject}: physical_block_exp");
    let mut rng = Rng::for_test(76);
    for (sector, sectors) in [(8, 8), (0, 64), (24, 1), (3, 8), (8, 9), (8, 4)] {
        let shape = Shape::default().skewed(*rng.pick(&SKEWS));
        guest.check(&Request::write(sector, rng.bytes(sectors * SECTOR)), &shape);
        guest.check(&Request::read(sector, sectors * SECTOR), &shape);
    }
    let whole = Mixture { start: 0, sectors: 4096, transfer_max: 96, block: 8, depth: 24 };
    whole.pour(&mut guest.lanes[0], &mut rng, 200);
}

/// A driver that does not accept BLK_SIZE never reads blk_size, so its unit is the sector. The next one that does is held
/// to the blocks again.
fn a_driver_that_knows_no_blocks_uses_sectors(subject: Subject) {
    let Some(spec) = DiskSpec::on_device(4096) else { return };
    let features = !bits(&[VIRTIO_BLK_F_BLK_SIZE]);
    let mut guest = Guest::boot_with(subject, &spec, &Drive { features, ..Drive::default() });
    let mut rng = Rng::for_test(77);
    let blocks = guest.lanes[0].model.clone();
    guest.lanes[0].model = Model::new(guest.disk.bytes(), false, SECTOR, spec.serial.as_deref());
    for sector in 0..2 * BLOCK {
        guest.check(&Request::write(sector, rng.bytes(SECTOR)), &Shape::default());
        guest.check(&Request::read(sector, 3 * SECTOR), &Shape::default().skewed(1));
    }
    guest.check_file();
    guest.drive = Drive::default();
    guest.reconnect();
    guest.lanes[0].model = blocks;
    let part = Request::write(1, vec![7; SECTOR]);
    guest.expect(&part, &Shape::default(), &Answer::status(IOERR));
    guest.check(&Request::write(0, rng.bytes(16 * SECTOR)), &Shape::default());
    guest.check_file();
}
