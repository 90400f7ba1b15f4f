//! Files that are not as a disk should be: that become shorter or longer while they are served, that are mostly holes, or
//! whose size is no whole number of blocks.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::guest::{Drive, Guest};
use sluice_tests::memory::GuestMemory;
use sluice_tests::mixture::Mixture;
use sluice_tests::model::{IOERR, Model};
use sluice_tests::request::{Extent, Request, SECTOR};
use sluice_tests::rng::Rng;
use sluice_tests::shape::{Placed, Shape};
use sluice_tests::subject::Subject;

use crate::config_space::{at, config, field};

sluice_tests::suite! {
    a_file_that_shrinks_fails_reads_past_its_end: [OddSizes],
    a_file_that_shrinks_under_load_fails_no_other_requests: [OddSizes],
    a_file_that_grows_stays_the_disk_that_it_was: [],
    a_file_of_holes_reads_as_zeroes_and_keeps_them: [],
    no_byte_of_an_odd_size_is_cut_off: [OddSizes],
    no_byte_of_an_odd_device_is_cut_off: [OddSizes, BlockDevices],
}

fn resize(file: &Path, bytes: usize) {
    File::options().write(true).open(file).unwrap().set_len(bytes as u64).unwrap();
}

/// The shapes that reads come in: taken as they are, bounced, in many pieces.
fn shapes() -> [Shape; 4] {
    [
        Shape::default(),
        Shape::default().skewed(1),
        Shape::pieces(&[33 * SECTOR, SECTOR]).indirect(),
        Shape::pieces(&[10_000]).indirect().skewed(16),
    ]
}

/// A read that ends past the end of the file fails, and what it leaves in memory is not from elsewhere: it is from the
/// file, or zero, or as it was before.
fn expect_failure(guest: &mut Guest, sector: u64, sectors: usize, shape: &Shape) {
    let subject = guest.subject;
    let (written, used) = guest.run(&Request::read(sector, sectors * SECTOR), shape);
    assert_eq!((written.status, used), (IOERR, 1), "{subject}: {sectors} sectors at {sector}, {shape:?}");
    let start = usize::try_from(sector).unwrap() * SECTOR;
    let disk = &guest.lanes[0].model.data()[start..];
    let stale = written
        .data
        .iter()
        .zip(disk)
        .position(|(&got, &byte)| got != byte && got != 0 && !Placed::is_untouched(got));
    assert_eq!(stale, None, "{subject}: a failed read at sector {sector} left bytes that are not the disk's");
}

fn a_file_that_shrinks_fails_reads_past_its_end(subject: Subject) {
    let spec = DiskSpec { bytes: 1 << 20, ..DiskSpec::default() };
    // At the end of a page, of a sector, and of neither.
    for end in [512 << 10, (512 << 10) - 1024, (512 << 10) - 100] {
        let mut guest = Guest::boot(subject, &spec);
        for shape in shapes() {
            guest.check(&Request::read(0, spec.bytes), &shape);
        }
        resize(&guest.disk.file(), end);
        let whole = end / SECTOR;
        let first_gone = whole as u64;
        for shape in shapes() {
            for (sector, sectors) in [
                (first_gone, 1),
                (first_gone + 8, 8),
                (guest.sectors() - 1, 1),
                (first_gone - 1, 2),
                (first_gone - 16, 32),
                (0, spec.bytes / SECTOR),
            ] {
                expect_failure(&mut guest, sector, sectors, &shape);
            }
            guest.check(&Request::read(0, whole * SECTOR), &shape);
            guest.check(&Request::read(first_gone - 1, SECTOR), &shape);
        }
        guest.check(&Request::flush(), &Shape::default());
        guest.check(&Request::write(3, vec![0x71; 9 * SECTOR]), &Shape::default().skewed(1));
        check_longer_again(guest, end);
    }
}

/// When the file is as long as it was, the disk is whole, with zeroes where it was cut off.
fn check_longer_again(mut guest: Guest, end: usize) {
    let spec = guest.disk.spec.clone();
    let mut data = guest.lanes[0].model.data().to_vec();
    resize(&guest.disk.file(), data.len());
    data[end..].fill(0);
    guest.lanes[0].model = Model::new(data, spec.read_only, SECTOR, spec.serial.as_deref());
    for shape in shapes() {
        guest.check(&Request::read(0, spec.bytes), &shape);
    }
    let mixture = Mixture { start: 0, sectors: 2048, transfer_max: 40, block: 1, depth: 24 };
    mixture.pour(&mut guest.lanes[0], &mut Rng::for_test(90), 50);
    guest.reconnect();
    guest.check_works();
}

/// Half of the requests in flight are for the part that goes.
fn a_file_that_shrinks_under_load_fails_no_other_requests(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let file = guest.disk.file();
    let sectors = guest.sectors();
    let mut rng = Rng::for_test(91);
    for round in 0..20 {
        let (lane, shapes) = (&mut guest.lanes[0], shapes());
        for _ in 0..16 {
            let sector = rng.below(usize::try_from(sectors / 2).unwrap() - 64) as u64;
            let (kept, gone) = (Request::read(sector, 32 * SECTOR), sectors / 2 + sector);
            lane.launch(&kept, rng.pick(&shapes));
            // Such as were done before the file is cut succeed: they are not judged.
            lane.launch_unjudged(&Request::read(gone, 32 * SECTOR), rng.pick(&shapes));
        }
        lane.ring.submit();
        resize(&file, (4 << 20) + round % 2 * 512);
        lane.land_all();
        let data = lane.model.data().to_vec();
        std::fs::write(&file, data).unwrap();
    }
    guest.check_works();
}

fn a_file_that_grows_stays_the_disk_that_it_was(subject: Subject) {
    let spec = DiskSpec { bytes: 1 << 20, ..DiskSpec::default() };
    let mut guest = Guest::boot(subject, &spec);
    let (sectors, file) = (guest.sectors(), guest.disk.file());
    resize(&file, 2 << 20);
    assert_eq!(field(&config(&mut guest), at::CAPACITY, 8), sectors, "{subject}: capacity");
    for shape in shapes() {
        guest.check(&Request::read(0, spec.bytes), &shape);
        for request in [Request::read(sectors - 1, 2 * SECTOR), Request::write(sectors, vec![1; SECTOR])] {
            guest.check(&request, &shape);
        }
    }
    let past_the_end = Extent { sector: sectors, sectors: 1, flags: 0 };
    guest.check(&Request::zeroes(&[past_the_end]), &Shape::default());
    let mixture = Mixture { start: 0, sectors: 2048, transfer_max: 40, block: 1, depth: 24 };
    mixture.pour(&mut guest.lanes[0], &mut Rng::for_test(92), 200);
    guest.reconnect();
    assert_eq!(field(&config(&mut guest), at::CAPACITY, 8), sectors, "{subject}: capacity of the next guest");
    guest.check(&Request::flush(), &Shape::default());
    assert!(
        guest.disk.bytes()[1 << 20..].iter().all(|&byte| byte == 0),
        "{subject}: what grew was written to"
    );
}

/// Reading fills no hole, and writing as much as was written, with the file system's blocks around it.
fn a_file_of_holes_reads_as_zeroes_and_keeps_them(subject: Subject) {
    let spec = DiskSpec { bytes: 32 << 20, content: None, ..DiskSpec::default() };
    let mut guest = Guest::boot(subject, &spec);
    for shape in shapes() {
        guest.check(&Request::read(0, 1024 * SECTOR), &shape);
        guest.check(&Request::read(guest.sectors() - 9, 9 * SECTOR), &shape);
    }
    let allocated = |guest: &Guest| std::fs::metadata(guest.disk.file()).unwrap().blocks() * 512;
    guest.check(&Request::flush(), &Shape::default());
    assert_eq!(allocated(&guest), 0, "{subject}: reads fill holes");
    for (sector, sectors) in [(0, 1), (10_001, 3), (40_000, 64), (65_535, 1)] {
        for shape in [Shape::default(), Shape::default().skewed(1)] {
            guest.check(&Request::write(sector, vec![0x93; sectors * SECTOR]), &shape);
        }
        let around = sector.saturating_sub(20);
        let len = (guest.sectors() - around).min(120);
        guest.check(&Request::read(around, usize::try_from(len).unwrap() * SECTOR), &Shape::default());
    }
    guest.check_file();
    let most = 256 << 10;
    assert!(allocated(&guest) <= most, "{subject}: 69 sectors take {} bytes", allocated(&guest));
}

/// The disk is served with all of its bytes, or refused with a message that says what its size is and what to do, which
/// helps.
fn check_odd(subject: Subject, spec: &DiskSpec, must_serve: bool) {
    let disk = Disk::new(spec);
    let served = match subject.try_serve(&disk) {
        Ok(served) => served,
        Err(message) => {
            assert!(!must_serve, "{subject}: {} bytes are refused: {message}", spec.bytes);
            let says = |text: &str| message.contains(text);
            assert!(says(&format!("has {} bytes, which is not a multiple of", spec.bytes)), "{message}");
            if spec.device.is_none() {
                follow_advice(&message, &disk);
                drop(subject.serve(&disk));
            }
            return;
        }
    };
    let memory = GuestMemory::new();
    let mut guest = Guest::connect(subject, disk, served, &Drive::default(), memory);
    let capacity = field(&config(&mut guest), at::CAPACITY, 8);
    assert_eq!(capacity * 512, spec.bytes as u64, "{subject}: {} bytes are cut", spec.bytes);
    for shape in shapes() {
        guest.check(&Request::read(capacity - 1, SECTOR), &shape);
        guest.check(&Request::write(capacity - 3, vec![0x94; 3 * SECTOR]), &shape);
        guest.check(&Request::read(capacity - 17, 17 * SECTOR), &shape);
        guest.check(&Request::read(capacity - 1, 2 * SECTOR), &shape);
    }
    guest.check_file();
}

/// Runs the command that the message has between backticks, on the disk.
fn follow_advice(message: &str, disk: &Disk) {
    let command = message.split('`').nth(1).unwrap_or_else(|| panic!("no advice: {message}"));
    let status = Command::new("sh").arg("-c").arg(format!("{command} \"$0\"")).arg(disk.file()).status();
    assert!(status.unwrap().success(), "{command}");
}

fn no_byte_of_an_odd_size_is_cut_off(subject: Subject) {
    for odd in [1, 100, 511, 512, 513, 2048, 3584, 4095] {
        let spec = DiskSpec { bytes: (64 << 10) + odd, ..DiskSpec::default() };
        let buffered = subject.to_string().contains("writeback");
        check_odd(subject, &spec, buffered && odd % SECTOR == 0);
        let large = DiskSpec { logical_block: Some(4096), ..spec };
        check_odd(subject, &large, false);
    }
}

/// A device has a size in sectors, whatever its blocks are.
fn no_byte_of_an_odd_device_is_cut_off(subject: Subject) {
    for (block, odd) in [(512, 512), (512, 2048), (4096, 512), (4096, 2048)] {
        let Some(spec) = DiskSpec::on_device(block) else { return };
        for logical_block in [None, Some(512)] {
            let spec = DiskSpec { bytes: (64 << 10) + odd, logical_block, ..spec.clone() };
            check_odd(subject, &spec, block == 512);
        }
    }
}
