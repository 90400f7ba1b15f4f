//! Random requests in random shapes, many in flight, each judged by the model.
//!
//! What is in flight at a time does not overlap, so that the order in which a device does it does not matter, and the
//! model can do each request when it is sent.

use crate::lane::Lane;
use crate::request::{Extent, HEADER, Request, SECTOR};
use crate::rng::Rng;
use crate::shape::{Place, Shape, Table};
use crate::subject::{Ability, Subject};

/// Which requests are made, and where on the disk.
#[derive(Clone, Copy, Debug)]
pub struct Mixture {
    /// First sector that may be touched.
    pub start: u64,
    /// Number of sectors that may be touched.
    pub sectors: usize,
    /// The most sectors of one read or write.
    pub transfer_max: usize,
    /// Transfers are multiples of so many sectors, and start at one.
    pub block: usize,
    /// The most requests in flight.
    pub depth: usize,
}

impl Mixture {
    /// Sends `count` requests on a lane, sometimes in batches, and judges all answers.
    ///
    /// # Panics
    /// If an answer is not the model's.
    pub fn pour(&self, lane: &mut Lane, rng: &mut Rng, count: usize) {
        let mut sent = 0;
        while sent < count {
            for _ in 0..rng.between(1, 12) {
                let (request, shape) = (self.request(lane.subject, rng), shape(lane.subject, rng));
                let fits = lane.in_flight() < self.depth && !lane.overlaps(&request);
                if !fits || !lane.launch(&request, &shape) {
                    break;
                }
                sent += 1;
            }
            lane.ring.submit();
            for _ in 0..rng.below(10).min(lane.in_flight()) {
                let used = lane.next_used();
                lane.land(used);
            }
            if lane.ring.room() < 16 {
                lane.land_all();
            }
        }
        lane.land_all();
    }

    /// Any request of it.
    pub fn request(&self, subject: Subject, rng: &mut Rng) -> Request {
        let (sector, sectors) = self.extent(rng, self.transfer_max);
        match rng.below(20) {
            0 => Request::flush(),
            1 if subject.lacks(Ability::Serial).is_none() => Request::id(rng.between(1, 40)),
            2 => Request::other(77, vec![], rng.below(100)),
            3 => Request::read(u64::MAX - sector, SECTOR),
            4 | 5 => self.clear(subject, rng),
            6..12 => Request::read(sector, sectors * SECTOR),
            _ => Request::write(sector, rng.bytes(sectors * SECTOR)),
        }
    }

    fn clear(&self, subject: Subject, rng: &mut Rng) -> Request {
        let many = if subject.lacks(Ability::ManyExtents).is_some() { 1 } else { 4 };
        let discard = rng.one_in(2);
        let extents: Vec<Extent> = (0..rng.between(1, many))
            .map(|_| {
                let (sector, sectors) = self.extent(rng, 4 * self.transfer_max);
                let sectors = u32::try_from(sectors).expect("a few sectors");
                Extent { sector, sectors, flags: u32::from(!discard && rng.one_in(2)) }
            })
            .collect();
        // Segments of one request that overlap would make the order in which they are done matter.
        let apart = |a: &Extent, b: &Extent| a.sector + u64::from(a.sectors) <= b.sector;
        let disjoint =
            extents.iter().enumerate().all(|(i, a)| extents[..i].iter().all(|b| apart(a, b) || apart(b, a)));
        let extents = if disjoint { &extents[..] } else { &extents[..1] };
        if discard { Request::discard(extents) } else { Request::zeroes(extents) }
    }

    /// A range of whole blocks within the part of the disk that may be touched.
    fn extent(&self, rng: &mut Rng, sectors_max: usize) -> (u64, usize) {
        let sectors = rng.between(1, (sectors_max / self.block).max(1)) * self.block;
        let last = (self.sectors - sectors) / self.block;
        (self.start + (rng.between(0, last) * self.block) as u64, sectors)
    }
}

/// Any shape that the specification allows, within what the subject takes.
pub fn shape(subject: Subject, rng: &mut Rng) -> Shape {
    let first = rng.between(1, HEADER - 1);
    let align = 1 << rng.below(13);
    let table = match rng.below(3) {
        0 => Table::Direct,
        1 if subject.lacks(Ability::IndirectTail).is_none() => Table::IndirectAfter(rng.between(1, 4)),
        _ => Table::Indirect,
    };
    Shape {
        header: if rng.one_in(2) { vec![HEADER] } else { vec![first, HEADER - first] },
        data: (0..rng.between(1, 4)).map(|_| rng.between(500, 9000)).collect(),
        header_joins_data: rng.one_in(3),
        status_joins_data: rng.one_in(3),
        table,
        place: Place::Aligned { align, skew: rng.below(align) },
    }
}
