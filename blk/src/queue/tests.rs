//! What a request queue promises.

mod below;
mod bench;
mod bounce;
mod chains;
mod commands;
mod faults;
mod flight;
mod make_request;
mod memory;
mod partial;
mod promises;
mod random;
mod rivals;
mod scripted;
mod simulation;
mod stale;
mod threads;

use sluice_mem::PAGE_SIZE;
use sluice_mem::budget::Budget;
use sluice_mem::sglist::IoVec;

use super::*;
use crate::bio::Op;
use crate::sector::DiskRange;

/// Bios, pages and tags are all free, and no chain is under way.
fn check_nothing_is_held(queue: &RequestQueue) {
    assert!(queue.is_idle());
    assert_eq!(queue.bios.available(), queue.bios.capacity(), "bios");
    assert_eq!(queue.arena.used_pages(), 0, "pages");
    assert_eq!(queue.tags.in_flight(), 0, "tags");
    assert!(queue.parked.is_empty() && queue.again.is_empty() && queue.done.is_empty());
}

/// What a bio consists of. A chain that is handed back has the shapes that it had.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shape {
    op: Op,
    range: DiskRange,
    pieces: Vec<(usize, usize)>,
}

fn shapes(chain: &BioChain) -> Vec<Shape> {
    let piece = |piece: &IoVec| (piece.as_ptr().addr(), piece.len());
    let shape = |bio: &Bio| {
        let pieces = bio.sg.pieces().iter().map(piece).collect();
        Shape { op: bio.op, range: bio.range, pieces }
    };
    chain.iter().map(shape).collect()
}
