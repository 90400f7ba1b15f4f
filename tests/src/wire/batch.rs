//! The chains of one batch, with what is due to each.

use std::fmt;

use crate::memory::GuestMemory;
use crate::model::{Answer, Model};
use crate::request::Request;
use crate::rng::Choose;
use crate::wire::chain::RawDesc;
use crate::wire::oracle::{Action, Oracle, Verdict};
use crate::wire::plan::{ARENA, Made, make};

/// What ends a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Its last chain.
    None,
    /// A chain that breaks the ring.
    Chain,
    /// A head that there is not.
    Head(u16),
    /// The last head once more, while it is in flight or not any more.
    Twice,
    /// When all is answered, an index that is wrong by this.
    Jump(u16),
}

/// A chain that is to be answered.
#[derive(Debug)]
pub struct Chain {
    /// The chain.
    pub made: Made,
    /// Where the status byte is.
    status: u64,
    action: Action,
    /// Since the model was asked.
    answer: Option<Answer>,
}

/// Chains to be sent together.
///
/// No two of them touch the same sectors if one of them writes, so that a device may do them in any order.
#[derive(Debug)]
pub struct Batch {
    /// In the order in which they are made available.
    pub chains: Vec<Chain>,
    /// The last breaks the ring.
    breaks: bool,
    size: usize,
}

impl Batch {
    /// Makes up to `depth` chains and writes them into `table`. `memory` is where their arenas are, and what is in them.
    pub fn make(
        oracle: &Oracle,
        choose: &mut impl Choose,
        table: &mut [RawDesc],
        (arenas, noise): (u64, &[u8]),
        depth: usize,
    ) -> Self {
        let mut free = shuffled(choose, table.len());
        let mut batch = Batch { chains: vec![], breaks: false, size: table.len() };
        for _ in 0..2 * depth {
            if batch.breaks || batch.chains.len() == depth {
                break;
            }
            let noise = &noise[8 * choose.below((noise.len() - ARENA) / 8)..];
            let wrongs = choose.pick(&[0, 0, 0, 0, 0, 0, 1, 1, 1, 2]);
            let base = arenas + (ARENA * batch.chains.len()) as u64;
            let Some(made) = make(oracle, choose, table, &mut free, (base, noise), wrongs) else { break };
            let verdict = oracle.judge(table, made.head(), &made.arena);
            // Few chains that break the ring: starting it anew takes as long as many requests.
            let sent = verdict != Verdict::Broken || choose.one_in(16);
            if !sent || !batch.take(made.clone(), verdict) {
                free.extend(made.slots);
            }
        }
        batch.settle(oracle, table)
    }

    /// Takes a chain that can be judged beside the others, and says whether it is that.
    fn take(&mut self, made: Made, verdict: Verdict) -> bool {
        let (status, action) = match verdict {
            Verdict::Open => return false,
            Verdict::Broken => {
                self.breaks = true;
                (0, Action::Status(0))
            }
            Verdict::Due(status, action) => (status, action),
        };
        let free = self.chains.iter().all(|other| !conflict(&other.action, &action));
        if free {
            self.chains.push(Chain { made, status, action, answer: None });
        }
        free
    }

    /// Judges all of them again, now that the table is complete: a chain may lead to another's descriptors. Ends before the
    /// first that cannot be judged, and after the first that breaks the ring.
    fn settle(mut self, oracle: &Oracle, table: &[RawDesc]) -> Self {
        let chains = std::mem::take(&mut self.chains);
        self.breaks = false;
        for chain in chains {
            let verdict = oracle.judge(table, chain.made.head(), &chain.made.arena);
            if self.breaks || !self.take(chain.made, verdict) {
                break;
            }
        }
        self
    }

    /// Has the model do what is to be answered.
    pub fn execute(&mut self, model: &mut Model) {
        let answered = self.answered();
        for chain in &mut self.chains[..answered] {
            chain.answer = Some(match &chain.action {
                Action::Status(status) => Answer::status(*status),
                Action::Execute(request, _) => model.execute(request),
            });
        }
    }

    /// How many chains are to be answered.
    pub fn answered(&self) -> usize {
        self.chains.len() - usize::from(self.breaks)
    }

    /// The chain that breaks the ring.
    pub fn breaker(&self) -> Option<&Chain> {
        self.chains.last().filter(|_| self.breaks)
    }

    /// What the available ring gets.
    pub fn heads(&self) -> Vec<u16> {
        self.chains.iter().map(|chain| chain.made.head()).collect()
    }

    /// How the batch is to end.
    pub fn tail(&self, choose: &mut impl Choose) -> Tail {
        let size = u16::try_from(self.size).expect("a ring's size is 16 bits");
        let room = self.chains.len() < self.size;
        let is_plain = self.chains.last().is_some_and(|chain| chain.made.wrong.is_empty());
        match choose.below(40) {
            _ if self.breaks => Tail::Chain,
            0 if room => Tail::Head(choose.pick(&[size, size + 1, 0x8000, u16::MAX])),
            1 if room && is_plain => Tail::Twice,
            2 => Tail::Jump(choose.pick(&[size + 1, 0x8000, u16::MAX])),
            _ => Tail::None,
        }
    }

    /// Lets what the device writes for some chains go to other places: any in and around `targets`.
    pub fn aim(&mut self, choose: &mut impl Choose, table: &mut [RawDesc], targets: &[u64]) {
        for desc in table.iter_mut().filter(|desc| desc.is_write() && desc.len > 1) {
            if choose.one_in(2) {
                desc.addr = choose.pick(targets) + choose.below(64) as u64;
            }
        }
    }
}

/// What is wrong in it.
impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wrong = self.chains.iter().map(|chain| &chain.made.wrong).filter(|wrong| !wrong.is_empty());
        write!(f, "{} chains, of which these are wrong: {:?}", self.chains.len(), wrong.collect::<Vec<_>>())
    }
}

impl Chain {
    /// Compares what came back with what is due, to every byte of the arena. Returns the status.
    ///
    /// # Panics
    /// If it differs.
    pub fn judge(&self, memory: &GuestMemory, used: u32, model: &Model, table: &[RawDesc]) -> u8 {
        let answer = self.answer.as_ref().expect("the model was asked");
        let arena = &self.made.arena;
        let mut after = memory.read(arena.base, arena.bytes.len());
        let mut expected = arena.bytes.clone();
        let status =
            arena.find(self.status, 1).expect("a status byte that was judged is the chain's own").start;
        let got = after[status];
        if let Action::Execute(request, ranges) = &self.action {
            self.place(request, ranges, answer, model, (&mut after, &mut expected));
        }
        expected[status] = answer.status;
        after[status] = got;
        if got == answer.status && used == answer.used && after == expected {
            return got;
        }
        let differs = (0..after.len()).find(|&i| after[i] != expected[i]);
        let slots = self.made.slots.iter().map(|&slot| (slot, table[usize::from(slot)]));
        panic!(
            "expected: {answer:?}\n     got: status {got}, used.len {used}, first byte that differs: {:#x?}\n  action: \
             {:?}\n   wrong: {:?}\n   slots: {:x?}\n  status: {:#x}",
            differs.map(|i| arena.base + i as u64),
            self.action,
            self.made.wrong,
            slots.collect::<Vec<_>>(),
            self.status,
        );
    }

    /// Puts the data that is due into what is expected. Where more than one answer is right, what came is expected.
    fn place(
        &self,
        request: &Request,
        ranges: &[(u64, u64)],
        answer: &Answer,
        model: &Model,
        (after, expected): (&mut [u8], &mut [u8]),
    ) {
        let arena = &self.made.arena;
        let places: Vec<_> = ranges.iter().filter_map(|&(addr, len)| arena.find(addr, len)).collect();
        let overlaps = places.iter().enumerate().any(|(i, a)| {
            let others = places[..i].iter();
            others.chain([&(self.offset()..self.offset() + 1)]).any(|b| a.start < b.end && b.start < a.end)
        });
        let came: Vec<u8> = places.iter().flat_map(|place| after[place.clone()].to_vec()).collect();
        let is_read = request.kind == virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;
        let right = came.starts_with(&answer.data)
            || (is_read && came.len() == answer.data.len() && model.may_read_as(request.sector, &came));
        if overlaps || right {
            let mut left = if overlaps { came.len() } else { answer.data.len() };
            for place in places {
                let now = left.min(place.len());
                let place = place.start..place.start + now;
                expected[place.clone()].copy_from_slice(&after[place]);
                left -= now;
            }
        } else {
            let mut left = &answer.data[..];
            for place in places {
                let (now, later) = left.split_at(left.len().min(place.len()));
                expected[place.start..place.start + now.len()].copy_from_slice(now);
                left = later;
            }
        }
    }

    /// Where the status byte is in the arena.
    fn offset(&self) -> usize {
        self.made.arena.find(self.status, 1).map_or(0, |range| range.start)
    }
}

/// Whether two chains must not be in flight at the same time: one writes what the other one reads or writes.
fn conflict(a: &Action, b: &Action) -> bool {
    let (Action::Execute(a, _), Action::Execute(b, _)) = (a, b) else { return false };
    let reads = |request: &Request| request.kind == virtio_bindings::virtio_blk::VIRTIO_BLK_T_IN;
    if reads(a) && reads(b) {
        return false;
    }
    a.extents().iter().any(|x| b.extents().iter().any(|y| x.0 < y.1 && y.0 < x.1))
}

/// All slots of a ring, in some order: from anywhere, by an odd step, as the size is a power of two.
fn shuffled(choose: &mut impl Choose, size: usize) -> Vec<u16> {
    let (start, step) = (choose.below(size), 2 * choose.below(size / 2) + 1);
    let slot = |i: usize| u16::try_from((start + i * step) % size).expect("a ring's size is 16 bits");
    (0..size).map(slot).collect()
}
