//! Framing carries no meaning: however a request is cut into descriptors, its answer is the same (virtio 1.3, 2.7.4).

use sluice_tests::disk::DiskSpec;
use sluice_tests::driver::{Chain, Desc, INDIRECT, NEXT, WRITE, write_desc};
use sluice_tests::guest::{Drive, Guest};
use sluice_tests::memory::SEAM;
use sluice_tests::mixture;
use sluice_tests::model::OK;
use sluice_tests::request::{Request, SECTOR};
use sluice_tests::rng::Rng;
use sluice_tests::shape::{Place, Shape, Table};
use sluice_tests::subject::Subject;

sluice_tests::suite! {
    header_and_status_are_split_or_joined: [],
    chains_are_direct_or_indirect: [],
    chains_end_in_an_indirect_table: [IndirectTail],
    a_mebibyte_comes_in_256_pages: [],
    four_mebibytes_come_in_1024_pages: [ProductFeatures],
    data_comes_in_many_tiny_pieces: [],
    data_comes_in_one_huge_piece: [],
    buffers_lie_anywhere: [],
    data_crosses_two_regions: [IndirectAcrossRegions],
    an_indirect_table_crosses_two_regions: [IndirectAcrossRegions],
    random_shapes_get_the_same_answers: [],
    empty_descriptors_break_nothing: [EmptyDescriptors],
}

/// Writes and reads back, at some place that depends on the round.
fn write_and_read(guest: &mut Guest, rng: &mut Rng, bytes: usize, shape: &Shape) {
    let sectors = usize::try_from(guest.sectors()).unwrap();
    let sector = rng.below(sectors - bytes / SECTOR) as u64;
    guest.check(&Request::write(sector, rng.bytes(bytes)), shape);
    guest.check(&Request::read(sector, bytes), shape);
}

fn header_and_status_are_split_or_joined(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let mut rng = Rng::for_test(10);
    let headers: [&[usize]; 6] = [&[16], &[8, 8], &[1, 15], &[15, 1], &[4, 4, 8], &[1; 16]];
    for header in headers {
        for (header_joins_data, status_joins_data) in
            [(false, false), (true, false), (false, true), (true, true)]
        {
            let header = header.to_vec();
            let shape = Shape { header, header_joins_data, status_joins_data, ..Shape::default() };
            write_and_read(&mut guest, &mut rng, 4096, &shape);
            write_and_read(&mut guest, &mut rng, 4096, &shape.clone().indirect());
            guest.check(&Request::flush(), &shape);
            guest.check(&Request::read(1 << 40, 512), &shape);
        }
    }
}

fn check_tables(subject: Subject, tables: &[Table]) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let mut rng = Rng::for_test(11);
    for &table in tables {
        for pieces in [1, 2, 7, 40] {
            let bytes = 40 * 1024;
            let shape = Shape { table, ..Shape::pieces(&[bytes / pieces / 8 * 8]) };
            write_and_read(&mut guest, &mut rng, bytes, &shape);
        }
    }
}

fn chains_are_direct_or_indirect(subject: Subject) {
    check_tables(subject, &[Table::Direct, Table::Indirect]);
}

fn chains_end_in_an_indirect_table(subject: Subject) {
    check_tables(subject, &[Table::IndirectAfter(1), Table::IndirectAfter(2), Table::IndirectAfter(5)]);
}

fn a_mebibyte_comes_in_256_pages(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let mut rng = Rng::for_test(12);
    write_and_read(&mut guest, &mut rng, 1 << 20, &Shape::pieces(&[4096]).indirect());
    // A guest with a ring of 16 has room for such a chain in a table only.
    let mut small =
        Guest::boot_with(subject, &DiskSpec::default(), &Drive { ring_size: 16, ..Drive::default() });
    write_and_read(&mut small, &mut rng, 1 << 20, &Shape::pieces(&[4096]).indirect());
}

fn four_mebibytes_come_in_1024_pages(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let mut rng = Rng::for_test(15);
    // One after the other in memory, and each apart from the next; in place, and to be bounced.
    for (align, skew) in [(4096, 0), (8192, 0), (8192, 1)] {
        let shape = Shape { place: Place::Aligned { align, skew }, ..Shape::pieces(&[4096]) };
        write_and_read(&mut guest, &mut rng, 4 << 20, &shape.indirect());
    }
}

fn data_comes_in_many_tiny_pieces(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let mut rng = Rng::for_test(13);
    let packed = Place::Aligned { align: 1, skew: 0 };
    let cuts: [(&[usize], usize); 6] = [
        (&[2], 512),
        (&[3, 5, 7], 1024),
        (&[511], 8192),
        (&[513], 65536),
        (&[1, 4095], 65536),
        (&[1000, 24], 65536),
    ];
    for (pieces, bytes) in cuts {
        for place in [packed, Place::Aligned { align: 64, skew: 1 }] {
            let shape = Shape { place, ..Shape::pieces(pieces) };
            write_and_read(&mut guest, &mut rng, bytes, &shape.clone().indirect());
        }
    }
    // As single bytes, as far as the descriptors of a direct chain go.
    let bytes = Shape { place: packed, ..Shape::pieces(&[1, 1, 1, 1, 508]) };
    write_and_read(&mut guest, &mut rng, 8192, &bytes);
}

fn data_comes_in_one_huge_piece(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let mut rng = Rng::for_test(14);
    for shape in [Shape::default(), Shape::default().skewed(512), Shape::default().skewed(1)] {
        write_and_read(&mut guest, &mut rng, 4 << 20, &shape);
    }
    write_and_read(&mut guest, &mut rng, 6 << 20, &Shape::pieces(&[3 << 20]));
}

fn buffers_lie_anywhere(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let mut rng = Rng::for_test(15);
    for skew in [1, 2, 4, 16, 63, 256, 511, 512, 513, 1024, 4095] {
        for bytes in [512, 4096, 24 * 512] {
            write_and_read(&mut guest, &mut rng, bytes, &Shape::default().skewed(skew));
            write_and_read(&mut guest, &mut rng, bytes, &Shape::pieces(&[1536]).skewed(skew));
        }
    }
}

fn data_crosses_two_regions(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let mut rng = Rng::for_test(16);
    for bytes in [512, 4096, 5 * 512, 256 * 1024] {
        for pieces in [usize::MAX, 1536] {
            let joined =
                Shape { status_joins_data: true, header_joins_data: true, ..Shape::pieces(&[pieces]) };
            for shape in [Shape::pieces(&[pieces]), joined] {
                let shape = Shape { place: Place::AcrossRegions, ..shape.indirect() };
                write_and_read(&mut guest, &mut rng, bytes, &shape);
            }
        }
    }
    // The header itself across the boundary.
    guest.check(&Request::flush(), &Shape { place: Place::AcrossRegions, ..Shape::default() });
}

/// The table's bytes are in two mappings, one descriptor even in both.
fn an_indirect_table_crosses_two_regions(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let request = Request::read(8, 8192);
    for split in [16, 24, 40, 56] {
        let placed = Shape::pieces(&[4096]).place(&request, &guest.memory);
        let (table, descs) = (SEAM - split, &placed.chain.direct);
        for (i, desc) in descs.iter().enumerate() {
            let more = if i + 1 < descs.len() { NEXT } else { 0 };
            let direction = if desc.writable { WRITE } else { 0 };
            let next = u16::try_from(i + 1).unwrap();
            write_desc(&guest.memory, table + 16 * i as u64, desc.addr, desc.len, direction | more, next);
        }
        let len = u32::try_from(16 * descs.len()).unwrap();
        let ring = guest.ring();
        let head =
            ring.offer(&Chain { direct: vec![Desc { addr: table, len, writable: false }], indirect: vec![] });
        ring.raw_desc(head, table, len, INDIRECT, 0);
        ring.submit();
        let used = ring.wait();
        let written = placed.finish().unwrap_or_else(|at| panic!("{subject}: wrote to {at:#x}"));
        assert_eq!((written.status, used.len), (OK, 8193), "{subject}: {split} bytes before the boundary");
        assert!(guest.lanes[0].model.may_read_as(8, &written.data), "{subject}: wrong data");
    }
}

fn random_shapes_get_the_same_answers(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let mut rng = Rng::for_test(17);
    for _ in 0..150 {
        let shape = mixture::shape(subject, &mut rng);
        let bytes = rng.between(1, 40) * SECTOR;
        write_and_read(&mut guest, &mut rng, bytes, &shape);
    }
}

/// A descriptor of length 0 is legal nowhere (2.7.5 speaks of buffers, not of nothing) and deadly nowhere: it is
/// skipped, or the request fails.
fn empty_descriptors_break_nothing(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    for at in 0..=3 {
        let placed = Shape::default().place(&Request::read(8, 4096), &guest.memory);
        let mut direct = placed.chain.direct.clone();
        let writable = at > 1;
        direct.insert(at, Desc { addr: 8192, len: 0, writable });
        let ring = guest.ring();
        ring.offer(&Chain { direct, indirect: vec![] });
        ring.submit();
        let used = ring.wait();
        let written = placed.finish().unwrap_or_else(|at| panic!("{subject}: wrote to {at:#x}"));
        match written.status {
            OK => {
                assert_eq!(used.len, 4097, "{subject}: empty descriptor at {at}");
                assert!(guest.lanes[0].model.may_read_as(8, &written.data), "{subject}: wrong data");
            }
            status => assert_eq!((status, used.len), (1, 1), "{subject}: empty descriptor at {at}"),
        }
    }
    guest.check_works();
}
