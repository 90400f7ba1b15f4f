//! One ring and the oracle beside it: where requests are sent and answers judged.
//!
//! A lane is all that a thread needs, so that several threads can drive several rings of one device. A failure says
//! subject, request, shape, expected and got.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;

use crate::driver::{Ring, Used};
use crate::memory::GuestMemory;
use crate::model::{Answer, Model, OK};
use crate::request::Request;
use crate::shape::{NO_STATUS, Placed, Shape, Written};
use crate::subject::{Ability, Subject};

/// A ring, the requests in flight on it, and the model of the disk.
pub struct Lane {
    /// What is tested.
    pub subject: Subject,
    /// The guest's memory.
    pub memory: Arc<GuestMemory>,
    /// The ring, running.
    pub ring: Ring,
    /// The oracle.
    pub model: Model,
    /// Whether the device calls; else the driver looks.
    pub calls: bool,
    flying: HashMap<u16, (Order, Placed)>,
}

/// What a request on its way is about.
struct Order {
    request: Request,
    shape: Shape,
    /// None where the test looks at the answer itself.
    expected: Option<Answer>,
}

impl Lane {
    /// A lane with nothing in flight.
    pub fn new(subject: Subject, ring: Ring, model: Model, calls: bool) -> Self {
        let memory = Arc::clone(ring.memory());
        Lane { subject, memory, ring, model, calls, flying: HashMap::new() }
    }

    /// Sends a request and returns what came back, with the used length, unjudged but for the bytes around the buffers.
    ///
    /// # Panics
    /// If no answer comes, or the device wrote where it must not.
    pub fn run(&mut self, request: &Request, shape: &Shape) -> (Written, u32) {
        assert!(self.flying.is_empty(), "{}: run is for one request at a time", self.subject);
        self.offer(request, shape, None);
        self.ring.submit();
        let used = self.next_used();
        let (_, written) = self.take(used);
        (written, used.len)
    }

    /// Sends a request and compares the answer with the model's.
    ///
    /// # Panics
    /// If they differ.
    pub fn check(&mut self, request: &Request, shape: &Shape) {
        let expected = self.model.execute(request);
        self.expect(request, shape, &expected);
    }

    /// Sends a request and compares the answer with this one.
    ///
    /// # Panics
    /// If they differ.
    pub fn expect(&mut self, request: &Request, shape: &Shape, expected: &Answer) {
        let (written, used) = self.run(request, shape);
        self.judge(request, shape, expected, &written, used);
    }

    /// Offers a request, if the ring has room, without showing it to the device yet. What is in flight must not
    /// overlap: the model does the request now. Returns whether there was room.
    pub fn launch(&mut self, request: &Request, shape: &Shape) -> bool {
        if shape.slots(request) > self.ring.room() {
            return false;
        }
        let expected = self.model.execute(request);
        self.offer(request, shape, Some(expected));
        true
    }

    /// As [`launch`](Self::launch), for a request whose answer is open: only that there is one, and that nothing is written
    /// outside of its buffers, is judged when it lands.
    pub fn launch_unjudged(&mut self, request: &Request, shape: &Shape) -> bool {
        if shape.slots(request) > self.ring.room() {
            return false;
        }
        self.offer(request, shape, None);
        true
    }

    fn offer(&mut self, request: &Request, shape: &Shape, expected: Option<Answer>) {
        let placed = shape.place(request, &self.memory);
        let head = self.ring.offer(&placed.chain);
        let order = Order { request: request.clone(), shape: shape.clone(), expected };
        self.flying.insert(head, (order, placed));
    }

    /// Waits for the next used element, in the way that this driver waits.
    ///
    /// # Panics
    /// If none comes.
    pub fn next_used(&mut self) -> Used {
        if self.calls { self.ring.wait() } else { self.ring.spin() }
    }

    /// Judges the request of a used element.
    ///
    /// # Panics
    /// If the answer is not the model's.
    pub fn land(&mut self, used: Used) {
        let (order, written) = self.take(used);
        if let Some(expected) = &order.expected {
            self.judge(&order.request, &order.shape, expected, &written, used.len);
        }
    }

    /// What came back with a used element, unjudged but for the bytes around the buffers.
    ///
    /// # Panics
    /// If the device wrote where it must not.
    pub fn land_unjudged(&mut self, used: Used) -> Written {
        self.take(used).1
    }

    /// Waits for everything in flight, and judges it.
    ///
    /// # Panics
    /// If an answer does not come or is not the model's.
    pub fn land_all(&mut self) {
        while !self.flying.is_empty() {
            let used = self.next_used();
            self.land(used);
        }
    }

    /// Where the device may write for a request in flight.
    ///
    /// # Panics
    /// If it is not in flight.
    pub fn writable(&self, head: u16) -> Vec<Range<u64>> {
        self.flying[&head].1.writable()
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.flying.len()
    }

    /// Forgets what is in flight: the device will not answer any more.
    pub fn abandon(&mut self) {
        self.flying.clear();
    }

    /// Whether a request touches sectors that one in flight touches.
    pub fn overlaps(&self, request: &Request) -> bool {
        self.flying.values().any(|(order, _)| overlap(&order.request, request))
    }

    /// Looks at what a completed request wrote, and that it wrote nothing else.
    fn take(&mut self, used: Used) -> (Order, Written) {
        let subject = self.subject;
        let flying = self.flying.remove(&used.head);
        let (order, placed) =
            flying.unwrap_or_else(|| panic!("{subject}: {used:?} is for no request in flight"));
        let what = &order.request;
        let written = placed.finish();
        let written = written.unwrap_or_else(|at| panic!("{subject}: {what:?}: the device wrote to {at:#x}"));
        assert_ne!(written.status, NO_STATUS, "{subject}: {what:?}: used before its status was written");
        (order, written)
    }

    fn judge(&self, request: &Request, shape: &Shape, expected: &Answer, written: &Written, used: u32) {
        let (got_data, rest) = written.data.split_at(expected.data.len());
        let got = Answer { status: written.status, used, data: got_data.to_vec() };
        let data_fits = expected.data == got.data
            || (request.kind == VIRTIO_BLK_T_IN && self.model.may_read_as(request.sector, &got.data));
        // A request that failed may have left part of its data; one that was done leaves no more than it says.
        let rest_fits = expected.status != OK || rest.iter().all(|&byte| Placed::is_untouched(byte));
        let used_fits = expected.used == got.used || self.subject.lacks(Ability::ExactUsedLength).is_some();
        if expected.status == got.status && used_fits && data_fits && rest_fits {
            return;
        }
        let differs = (0..expected.data.len()).find(|&i| expected.data[i] != got.data[i]);
        panic!(
            "{}: {request:?}\n   shape: {shape:?}\nexpected: {expected:?}\n     got: {got:?}, first byte of data that \
             differs: {differs:?}, bytes after the data untouched: {rest_fits}",
            self.subject
        );
    }
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}, {} bytes of room", self.status, self.data.len())
    }
}

/// Whether two requests touch a sector in common.
fn overlap(a: &Request, b: &Request) -> bool {
    a.extents().iter().any(|x| b.extents().iter().any(|y| x.0 < y.1 && y.0 < x.1))
}
