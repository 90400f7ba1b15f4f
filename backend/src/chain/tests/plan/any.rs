//! What random requests are made of.

use proptest::prelude::*;
use proptest::sample::Index;

use super::super::model::{INDIRECT, NEXT, WRITE};
use super::super::{HOLE, MANY, Made, TOP};
use super::{Plan, SECTORS, Wrong};

fn addr() -> impl Strategy<Value = u64> {
    prop_oneof![
        12 => 0x4_0000..0x8_0000_u64,
        // Over the end of a region into the next one.
        4 => 0x9_0000 - 600..0x9_0000_u64,
        2 => (0..64_u64, 0..0x1000_u64).prop_map(|(page, at)| MANY + page * 0x1000 + at),
        2 => TOP.start..TOP.end - 0x3000,
        // Over the end of a region into nothing, and in nothing.
        1 => HOLE.start - 600..HOLE.start,
        1 => HOLE,
        1 => TOP.end - 600..TOP.end,
        1 => (0..600_u64).prop_map(|back| u64::MAX - back),
        1 => any::<u64>(),
    ]
}

fn good_addr() -> impl Strategy<Value = u64> {
    prop_oneof![9 => 0x4_0000..0x8_0000_u64, 1 => 0x9_0000 - 20..0x9_0000_u64, 1 => addr()]
}

fn len() -> impl Strategy<Value = u32> {
    prop_oneof![
        8 => (1..9_u32).prop_map(|sectors| sectors * 512),
        4 => (1..5_u32).prop_map(|segments| segments * 16),
        2 => 0..40_u32,
        1 => (1..40_u32).prop_map(|pages| pages * 4096),
        1 => prop_oneof![Just(u32::MAX), Just(0xffff_fe00), Just(1 << 31), any::<u32>()],
    ]
}

fn kind() -> impl Strategy<Value = u32> {
    prop_oneof![
        6 => Just(0_u32),
        6 => Just(1_u32),
        2 => Just(4_u32),
        3 => Just(8_u32),
        4 => Just(11_u32),
        4 => Just(13_u32),
        1 => 0..32_u32,
        1 => any::<u32>(),
    ]
}

/// Sectors of the disk and others.
fn sector() -> impl Strategy<Value = u64> {
    prop_oneof![
        12 => (0..500_u64).prop_map(|block| block * 8),
        2 => 0..4000_u64,
        1 => SECTORS - 16..SECTORS + 4,
        1 => prop_oneof![Just(u64::MAX), Just(1_u64 << 55), Just((1_u64 << 55) - 1), any::<u64>()],
    ]
}

fn segment() -> impl Strategy<Value = (u64, u32, u32)> {
    let sectors = prop_oneof![
        8 => (0..9_u32).prop_map(|n| n * 8),
        1 => 0..100_u32,
        1 => prop_oneof![Just(u32::MAX), Just(4 << 20), Just((4 << 20) + 1), any::<u32>()],
    ];
    (sector(), sectors, prop_oneof![12 => 0..2_u32, 1 => Just(2_u32), 1 => any::<u32>()])
}

fn wrong() -> impl Strategy<Value = Wrong> {
    prop_oneof![
        3 => prop_oneof![Just(NEXT), Just(WRITE), Just(INDIRECT), Just(INDIRECT | NEXT), any::<u16>()].prop_map(Wrong::Flags),
        3 => len().prop_map(Wrong::Len),
        3 => addr().prop_map(Wrong::Addr),
        2 => prop_oneof![0..64_u16, any::<u16>()].prop_map(Wrong::Next),
    ]
}

fn made() -> impl Strategy<Value = Made> {
    let size = prop_oneof![1 => 0..3_u32, 6 => 3..8_u32].prop_map(|log| 1_u16 << log);
    (size, prop::bool::weighted(0.9), prop::bool::weighted(0.1), prop::bool::weighted(0.3)).prop_map(
        |(size, indirect, read_only, large)| Made {
            size,
            indirect,
            read_only,
            sectors: SECTORS,
            block: if large { 4096 } else { 512 },
        },
    )
}

prop_compose! {
    fn request()(
        kind in kind(),
        sector in sector(),
        header in good_addr(),
        cuts in prop_oneof![
            6 => Just(vec![]),
            2 => prop::collection::vec(0..17_u32, 1..4),
            1 => Just(vec![1; 15]),
        ],
        with_header in prop_oneof![6 => Just(0_u32), 1 => len()],
        data in prop_oneof![
            8 => prop::collection::vec((prop_oneof![3 => good_addr(), 1 => addr()], len()), 1..6),
            1 => prop::collection::vec((good_addr(), len()), 0..2),
            8 => prop::collection::vec((good_addr(), len()), 1..2),
            1 => prop::collection::vec((good_addr(), Just(16_u32)), 320..321),
            1 => prop::collection::vec((good_addr(), 1..3_u32), 0..60),
            1 => prop::collection::vec((good_addr(), Just(64_u32)), 56..57),
            1 => prop::collection::vec((MANY..MANY + 512, Just(0x3_f000_u32)), 30..80),
        ],
        writable in prop::option::weighted(0.1, any::<bool>()),
        segments in prop_oneof![
            9 => prop::collection::vec(segment(), 0..19),
            1 => prop::collection::vec((sector(), Just(0_u32), 0..2_u32), 1..5),
        ],
        status in good_addr(),
        shared in any::<bool>(),
    ) -> Plan {
        Plan {
            made: Made::default(), writethrough: false, kind, sector, header, cuts, with_header, data, writable,
            segments, status, shared, table: None, head: 0, stride: 1, wrong: vec![],
        }
    }
}

prop_compose! {
    pub(super) fn plan()(
        plan in request(),
        made in made(),
        writethrough in any::<bool>(),
        table in prop::option::of((prop_oneof![3 => Just(0_usize), 1 => 0..6_usize], prop_oneof![4 => 0x8_0000..0x8_f000_u64, 1 => good_addr()])),
        head in any::<u16>(),
        stride in prop_oneof![Just(1_u16), (0..64_u16).prop_map(|n| 2 * n + 1), any::<u16>()],
        wrong in prop_oneof![2 => Just(vec![]), 1 => prop::collection::vec((any::<Index>(), wrong()), 1..3)],
        tame in prop::bool::weighted(0.6),
    ) -> Plan {
        let plan = Plan { made, writethrough, table, head, stride, wrong, ..plan };
        if tame { plan.tamed() } else { plan }
    }
}
