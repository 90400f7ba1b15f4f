//! Guest memory of every kind: rings, headers, data and status bytes all in it, and a few pages into its file.

use std::sync::Arc;

use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::guest::{Drive, Guest};
use sluice_tests::memory::{GuestMemory, Region, SEAM, memory_file};
use sluice_tests::memory_kind::{KindedMemory, MemoryKind};
use sluice_tests::mixture::Mixture;
use sluice_tests::request::{HEADER, Request, SECTOR};
use sluice_tests::rng::Rng;
use sluice_tests::shape::{Place, Shape};
use sluice_tests::subject::Subject;

sluice_tests::suite! {
    memory_is_a_memfd: [],
    memory_is_huge_pages: [],
    memory_is_a_file_of_a_tmpfs: [],
    memory_is_a_file_on_a_disk: [],
    memory_is_secret: [],
    a_buffer_spans_memory_of_two_kinds: [IndirectAcrossRegions],
    regions_begin_anywhere_in_one_file: [],
}

/// What fits a few MiB of memory.
const MIXTURE: Mixture = Mixture { start: 0, sectors: 8 << 11, transfer_max: 40, block: 1, depth: 24 };

/// A guest with this memory, on a disk of its own.
fn boot(subject: Subject, memory: &Arc<GuestMemory>) -> Guest {
    let disk = Disk::new(&DiskSpec::default());
    let served = subject.serve(&disk);
    Guest::connect(subject, disk, served, &Drive::default(), Arc::clone(memory))
}

/// Memory of these kinds; none, with a word on why, where this host has none of it.
fn of_kinds(below: MemoryKind, above: MemoryKind) -> Option<KindedMemory> {
    let memory = KindedMemory::new(below, above);
    memory.inspect_err(|why| eprintln!("skipped: {below:?} beside {above:?}: {why}")).ok()
}

fn works_in(subject: Subject, kind: MemoryKind) {
    let Some(kinded) = of_kinds(kind, kind) else { return };
    let mut guest = boot(subject, &kinded.memory);
    MIXTURE.pour(&mut guest.lanes[0], &mut Rng::for_test(80), 500);
    for skew in [0, 1, 16, 512] {
        let shape = Shape::default().skewed(skew);
        guest.check(&Request::write(9, vec![0x80; 100 * SECTOR]), &shape);
        guest.check(&Request::read(0, 200 * SECTOR), &shape);
        guest.check(&Request::flush(), &shape);
    }
    guest.reconnect();
    guest.check_works();
}

fn memory_is_a_memfd(subject: Subject) {
    works_in(subject, MemoryKind::Memfd);
}

fn memory_is_huge_pages(subject: Subject) {
    works_in(subject, MemoryKind::HugePages);
}

fn memory_is_a_file_of_a_tmpfs(subject: Subject) {
    works_in(subject, MemoryKind::Tmpfs);
}

fn memory_is_a_file_on_a_disk(subject: Subject) {
    works_in(subject, MemoryKind::File);
}

/// Direct I/O refuses it, so all of it is copied by the device, and nobody notices.
fn memory_is_secret(subject: Subject) {
    works_in(subject, MemoryKind::Secret);
}

fn a_buffer_spans_memory_of_two_kinds(subject: Subject) {
    use MemoryKind::{File, HugePages, Memfd, Secret, Tmpfs};
    for (below, above) in [(Memfd, Secret), (Secret, HugePages), (HugePages, Tmpfs), (File, Memfd)] {
        let Some(kinded) = of_kinds(below, above) else { continue };
        eprintln!("{below:?} beside {above:?}");
        let mut guest = boot(subject, &kinded.memory);
        let mut rng = Rng::for_test(81);
        // Aligned data that begins a page, and a sector, before the boundary; and data that lies anyhow around it.
        let before = |bytes: usize| Place::At(SEAM - (bytes + HEADER) as u64);
        for place in [before(4096), before(SECTOR), before(1000), Place::AcrossRegions] {
            for sectors in [1, 2, 16, 128] {
                for piece in [usize::MAX, SECTOR, 5000] {
                    let shape = Shape { place, ..Shape::pieces(&[piece]) };
                    let shape = if sectors > 16 { shape.indirect() } else { shape };
                    guest.check(&Request::write(sectors as u64, rng.bytes(sectors * SECTOR)), &shape);
                    guest.check(&Request::read(sectors as u64, sectors * SECTOR), &shape);
                }
            }
        }
        MIXTURE.pour(&mut guest.lanes[0], &mut rng, 100);
    }
}

/// Three regions out of one file, in another order than in the file and with pages between them.
fn regions_begin_anywhere_in_one_file(subject: Subject) {
    const MIB: u64 = 1 << 20;
    const PAGE: u64 = 4096;
    let file = memory_file(16 * MIB);
    let memory = GuestMemory::with_regions(vec![
        Region::new(0, 2 * MIB, &file, 9 * MIB + PAGE),
        Region::new(2 * MIB, MIB + PAGE, &file, PAGE),
        Region::new(64 * MIB, 3 * MIB - PAGE, &file, 3 * MIB + 7 * PAGE),
    ]);
    let mut guest = boot(subject, &memory);
    MIXTURE.pour(&mut guest.lanes[0], &mut Rng::for_test(82), 300);
    for addr in [MIB, 2 * MIB + PAGE, 65 * MIB] {
        let shape = Shape { place: Place::At(addr), ..Shape::default() };
        guest.check(&Request::write(5, vec![0x82; 64 * SECTOR]), &shape);
        guest.check(&Request::read(0, 128 * SECTOR), &shape);
    }
}
