//! What can be wrong about a chain: rows of what a hostile guest does, each with its parameters chosen at random.
//!
//! Some of it may turn out to be right: a length that is changed to what it was, a flag that nobody looks at. What is
//! due is for the oracle to say.

use super::oracle::Oracle;
use super::plan::{Draft, Laid};
use crate::driver::{INDIRECT, NEXT, WRITE};
use crate::memory::HOLE;
use crate::request::{Extent, HEADER};
use crate::rng::Choose;

/// One thing that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wrong {
    /// A type that nobody offered.
    Type,
    /// Fewer than 16 bytes of header.
    ShortHeader,
    /// The header is for the device to write.
    WritableHeader,
    /// A sector at or past the end, or one that overflows.
    Sector,
    /// Data that is not whole sectors or segments, or none.
    Length,
    /// Data in the wrong direction.
    Direction,
    /// A segment with flags, a sector or a length that cannot be, or too many of them.
    Segments,
    /// No status byte.
    NoStatus,
    /// What the device writes before what it reads.
    Order,
    /// A descriptor of length 0.
    Empty,
    /// A descriptor's address.
    Addr,
    /// A descriptor's length.
    Len,
    /// A descriptor's flags.
    Flags,
    /// Where a descriptor leads.
    Next,
    /// The descriptor of the indirect table.
    Table,
    /// Two descriptors' buffers in each other's place.
    Swap,
}

impl Wrong {
    /// All there are.
    pub const ALL: [Wrong; 16] = [
        Wrong::Type,
        Wrong::ShortHeader,
        Wrong::WritableHeader,
        Wrong::Sector,
        Wrong::Length,
        Wrong::Direction,
        Wrong::Segments,
        Wrong::NoStatus,
        Wrong::Order,
        Wrong::Empty,
        Wrong::Addr,
        Wrong::Len,
        Wrong::Flags,
        Wrong::Next,
        Wrong::Table,
        Wrong::Swap,
    ];

    /// Any of them.
    pub fn any(choose: &mut impl Choose) -> Self {
        choose.pick(&Self::ALL)
    }

    /// Does it to a request, if it is a thing of the request.
    pub fn spoil_draft(self, draft: &mut Draft, oracle: &Oracle, choose: &mut impl Choose) {
        match self {
            Wrong::Type => draft.kind = kind(choose),
            Wrong::ShortHeader => draft.header_len = choose.below(HEADER),
            Wrong::WritableHeader => draft.header_write = true,
            Wrong::Sector => draft.sector = sector(oracle, choose),
            Wrong::Length => length(&mut draft.data, choose),
            Wrong::Direction => draft.data_write = !draft.data_write,
            Wrong::Segments => segments(draft, oracle, choose),
            Wrong::NoStatus => draft.has_status = false,
            Wrong::Order => draft.writable_first = true,
            Wrong::Empty if !draft.data.is_empty() => {
                let at = choose.below(draft.data.len() + 1);
                draft.data.insert(at, 0);
            }
            _ => {}
        }
    }

    /// Does it to a chain's descriptors, if it is a thing of those. They are linked already.
    pub fn spoil_chain(self, laid: &mut Laid, oracle: &Oracle, choose: &mut impl Choose) {
        let (base, used) = (laid.arena.base, laid.arena.bytes.len());
        let count = laid.direct.len() + laid.indirect.len();
        let (i, j) = (choose.below(count), choose.below(count));
        match self {
            Wrong::Addr => {
                let len = descriptor(laid, i).len;
                descriptor(laid, i).addr = address(oracle, choose, (base, used), len);
            }
            Wrong::Len => {
                let len = descriptor(laid, i).len;
                let lens = [0, 1, len.wrapping_add(1), len.wrapping_sub(1), len / 2, 511, 1 << 31, u32::MAX];
                descriptor(laid, i).len = choose.pick(&lens);
            }
            Wrong::Flags => {
                let flags = [WRITE, WRITE, NEXT, INDIRECT, INDIRECT | NEXT, 8, 0x80, 0x8000, 0xfff8];
                descriptor(laid, i).flags ^= choose.pick(&flags);
            }
            Wrong::Next => {
                let (any, other) = (choose.below_u16(300), descriptor(laid, j).next);
                let past_table = u16::try_from(laid.indirect.len()).expect("a table is short");
                // The sizes of the rings are among them.
                let nexts = [any, other, past_table, 8, 32, 128, 256, 257, 0x8000, u16::MAX];
                descriptor(laid, i).next = choose.pick(&nexts);
                descriptor(laid, i).flags |= choose.pick(&[0, NEXT]);
            }
            Wrong::Table if !laid.indirect.is_empty() => table(laid, oracle, choose),
            Wrong::Swap => {
                let (a, b) = (*descriptor(laid, i), *descriptor(laid, j));
                (descriptor(laid, i).addr, descriptor(laid, i).len) = (b.addr, b.len);
                (descriptor(laid, j).addr, descriptor(laid, j).len) = (a.addr, a.len);
            }
            _ => {}
        }
    }
}

fn descriptor(laid: &mut Laid, i: usize) -> &mut super::chain::RawDesc {
    let direct = laid.direct.len();
    if i < direct { &mut laid.direct[i] } else { &mut laid.indirect[i - direct] }
}

/// SCSI, GET_LIFETIME, SECURE_ERASE, the zones', the barrier bit, what is not known to anybody, and other good ones.
fn kind(choose: &mut impl Choose) -> u32 {
    let any = choose.below_u32(32);
    choose.pick(&[
        any,
        any,
        2,
        3,
        7,
        10,
        14,
        15,
        16,
        24,
        26,
        1 << 31,
        (1 << 31) | 1,
        u32::MAX,
        0,
        1,
        4,
        8,
        11,
        13,
    ])
}

fn sector(oracle: &Oracle, choose: &mut impl Choose) -> u64 {
    let end = oracle.facts.sectors;
    let near = end.wrapping_sub(choose.below(30) as u64);
    let any = choose.any_u64();
    choose.pick(&[
        near,
        near,
        end,
        end + 1,
        1 << 31,
        1 << 32,
        1 << 54,
        1 << 55,
        1 << 63,
        u64::MAX,
        !near,
        any,
    ])
}

fn length(data: &mut Vec<usize>, choose: &mut impl Choose) {
    match choose.below(4) {
        0 => data.clear(),
        1 => data.push(choose.between(1, 511)),
        _ => {
            if let Some(last) = data.last_mut() {
                let lens = [1, 15, 16, 17, 511, 513, last.saturating_sub(1)];
                *last = choose.pick(&lens);
            }
        }
    }
}

fn segments(draft: &mut Draft, oracle: &Oracle, choose: &mut impl Choose) {
    let end = oracle.facts.sectors;
    let flags = 1 << choose.below(32);
    let max = oracle.facts.segment_sectors_max;
    let bad = sector(oracle, choose);
    let many = usize::try_from(oracle.facts.segments_max).unwrap_or(0).min(64) + 1;
    let at = choose.below(draft.segments.len().max(1));
    match (choose.below(5), draft.segments.get_mut(at)) {
        (0, Some(segment)) => segment.flags = choose.pick(&[flags, u32::MAX, 1, 3]),
        (1, Some(segment)) => segment.sector = bad,
        (2, Some(segment)) => {
            segment.sectors = choose.pick(&[u32::MAX, max, max.saturating_add(1), 1 << 31, 1 << 23]);
        }
        (3, Some(segment)) => {
            *segment = Extent { sector: end - 1, sectors: choose.below_u32(3), flags: 0 };
        }
        (_, Some(segment)) => {
            let one = Extent { sector: choose.below(64) as u64, sectors: 1, ..*segment };
            draft.segments = vec![one; many];
            draft.data = vec![16 * many];
        }
        (_, None) => {}
    }
}

/// In a hole, over an end of memory, past 64 bits, or elsewhere in the chain's own memory.
fn address(oracle: &Oracle, choose: &mut impl Choose, (base, used): (u64, usize), len: u32) -> u64 {
    let ends: Vec<_> = oracle.mapped.ends().collect();
    let end = choose.pick(&ends);
    let inside = end.wrapping_sub(choose.below(len.clamp(1, 1 << 20) as usize) as u64);
    let own = base + choose.below(used.max(1)) as u64;
    let wraps = u64::MAX - choose.below(64) as u64;
    choose.pick(&[HOLE, end, inside, inside, own, own, own, wraps, u64::MAX, 1 << 63])
}

fn table(laid: &mut Laid, oracle: &Oracle, choose: &mut impl Choose) {
    let (base, used) = (laid.arena.base, laid.arena.bytes.len());
    let (nested, at) = (choose.below(laid.indirect.len()), choose.below_u32(40));
    let table = laid.direct.last_mut().expect("the last of the direct descriptors leads to the table");
    match choose.below(7) {
        0 => {
            table.len =
                choose.pick(&[0, 1, 15, 17, at, table.len.wrapping_sub(16), table.len.wrapping_add(16)])
        }
        1 => table.len = choose.pick(&[16 << 20, !15, 16 * (oracle.facts.table_max + 1)]),
        2 => table.addr = address(oracle, choose, (base, used), table.len),
        3 => table.flags |= NEXT,
        4 => table.flags |= WRITE,
        5 => table.flags &= !INDIRECT,
        _ => laid.indirect[nested].flags |= INDIRECT,
    }
}
