//! Everything at once: random requests in flight on one ring or several, on every kind of disk, against the model.

use sluice_tests::disk::DiskSpec;
use sluice_tests::guest::{Drive, EVENT_IDX, Guest};
use sluice_tests::lane::Lane;
use sluice_tests::mixture::Mixture;
use sluice_tests::request::{Request, SECTOR};
use sluice_tests::rng::Rng;
use sluice_tests::shape::Shape;
use sluice_tests::subject::{Engine, Subject};

sluice_tests::suite! {
    a_random_mixture_is_answered_as_by_the_model: [],
    a_small_ring_without_event_idx_is_enough: [],
    a_disk_with_blocks_of_4096_answers_too: [],
    the_write_through_cache_answers_the_same: [],
    four_rings_are_driven_by_four_threads: [],
    a_ring_is_stopped_in_the_middle_of_it_all: [StopDrains],
}

/// A disk in memory is no subject of every suite, as many look at the file below; whatever is asked of its guests' data, it
/// answers too.
#[test]
fn a_disk_in_memory_answers_as_the_model() {
    for test in [
        a_random_mixture_is_answered_as_by_the_model,
        a_small_ring_without_event_idx_is_enough,
        a_disk_with_blocks_of_4096_answers_too,
        the_write_through_cache_answers_the_same,
        four_rings_are_driven_by_four_threads,
        a_ring_is_stopped_in_the_middle_of_it_all,
    ] {
        test(Subject::Sluice { engine: Engine::Ram, cache: "writeback" });
    }
}

const WHOLE: Mixture = Mixture { start: 0, sectors: 8 << 11, transfer_max: 96, block: 1, depth: 48 };

fn a_random_mixture_is_answered_as_by_the_model(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let mut rng = Rng::for_test(50);
    WHOLE.pour(&mut guest.lanes[0], &mut rng, 3000);
    // Close together, so that neighbours in one block are in flight at the same time.
    let crowded = Mixture { start: 3, sectors: 400, transfer_max: 5, ..WHOLE };
    crowded.pour(&mut guest.lanes[0], &mut rng, 3000);
    sweep(&mut guest.lanes[0], WHOLE);
}

/// Reads all that a mixture may have touched.
fn sweep(lane: &mut Lane, mixture: Mixture) {
    let step = 1024;
    for first in (0..mixture.sectors).step_by(step) {
        let sectors = step.min(mixture.sectors - first);
        lane.check(&Request::read(mixture.start + first as u64, sectors * SECTOR), &Shape::default());
    }
}

fn a_small_ring_without_event_idx_is_enough(subject: Subject) {
    let drive = Drive { ring_size: 32, features: !EVENT_IDX, ..Drive::default() };
    let mut guest = Guest::boot_with(subject, &DiskSpec::default(), &drive);
    let small = Mixture { transfer_max: 20, ..WHOLE };
    small.pour(&mut guest.lanes[0], &mut Rng::for_test(51), 1500);
}

fn a_disk_with_blocks_of_4096_answers_too(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec { logical_block: Some(4096), ..DiskSpec::default() });
    let blocks = Mixture { block: 8, ..WHOLE };
    blocks.pour(&mut guest.lanes[0], &mut Rng::for_test(52), 1500);
}

fn the_write_through_cache_answers_the_same(subject: Subject) {
    for cache in ["writethrough", "directsync", "unsafe"] {
        let mut guest = Guest::boot(subject, &DiskSpec { cache: Some(cache), ..DiskSpec::default() });
        WHOLE.pour(&mut guest.lanes[0], &mut Rng::for_test(53), 200);
    }
}

fn four_rings_are_driven_by_four_threads(subject: Subject) {
    let spec = DiskSpec { queues: 4, ..DiskSpec::default() };
    let mut guest = Guest::boot_with(subject, &spec, &Drive { rings: 4, ..Drive::default() });
    let seeds = Rng::for_test(54);
    let pour = |index: usize, lane: &mut Lane, mut rng: Rng| {
        let sectors = WHOLE.sectors / 4 - 3;
        // The parts meet in the middle of pages: what one ring writes must not undo what another has written.
        let part = Mixture { start: (index * sectors) as u64, sectors, transfer_max: 40, ..WHOLE };
        part.pour(lane, &mut rng, 1000);
        let edge = Mixture { start: (index * sectors) as u64, sectors: 24, transfer_max: 3, ..WHOLE };
        edge.pour(lane, &mut rng, 300);
        let edge = Mixture { start: ((index + 1) * sectors - 24) as u64, ..edge };
        edge.pour(lane, &mut rng, 300);
        sweep(lane, part);
    };
    std::thread::scope(|scope| {
        for (index, lane) in guest.lanes.iter_mut().enumerate() {
            let mut seeds = seeds.clone();
            let rng = Rng::new((0..=index).fold(0, |_, _| seeds.next_u64()));
            scope.spawn(move || pour(index, lane, rng));
        }
    });
}

fn a_ring_is_stopped_in_the_middle_of_it_all(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let mut rng = Rng::for_test(55);
    for _ in 0..40 {
        WHOLE.pour(&mut guest.lanes[0], &mut rng, 20);
        let base = guest.stop_ring();
        guest.resume_ring(base);
        WHOLE.pour(&mut guest.lanes[0], &mut rng, 20);
        guest.reconnect();
    }
}
