//! From addresses to memory, against a naive model.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;
use crate::region::RegionInfo;

/// A region of so many pages in which each byte is the low byte of its number, times `factor`.
fn region(guest_addr: u64, user_addr: u64, pages: u64, factor: usize) -> Region {
    let size = pages * 0x1000;
    let bytes: Vec<u8> =
        (0..usize::try_from(size).expect("small")).map(|i| (i * factor).to_le_bytes()[0]).collect();
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(&bytes).expect("room");
    Region::map(RegionInfo { guest_addr, size, user_addr, mmap_offset: 0 }, file).expect("a good region")
}

fn overlaps(regions: Vec<Region>) -> Option<u64> {
    match GuestMem::new(regions) {
        Ok(_) => None,
        Err(RegionError::Overlaps { guest_addr }) => Some(guest_addr),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn regions_that_share_guest_addresses_are_refused() {
    assert_eq!(overlaps(vec![region(0x1000, 0x1000, 2, 1), region(0x2000, 0x8000, 1, 1)]), Some(0x2000));
    assert_eq!(overlaps(vec![region(0x2000, 0x8000, 1, 1), region(0x1000, 0x1000, 2, 1)]), Some(0x2000));
    assert_eq!(overlaps(vec![region(0x1000, 0x1000, 1, 1), region(0x1000, 0x8000, 1, 1)]), Some(0x1000));
    assert_eq!(
        overlaps(vec![region(0x1000, 0x8000, 9, 1), region(0x4000, 0x1000, 1, 1)]),
        Some(0x4000),
        "inside"
    );
}

#[test]
fn regions_that_share_user_addresses_are_refused() {
    assert_eq!(overlaps(vec![region(0x1000, 0x8000, 2, 1), region(0x4000, 0x9000, 1, 1)]), Some(0x4000));
    assert_eq!(overlaps(vec![region(0x1000, 0x8000, 1, 1), region(0x4000, 0x8000, 1, 1)]), Some(0x4000));
}

#[test]
fn neighbours_are_accepted_in_any_order() {
    let memory =
        GuestMem::new(vec![region(0x3000, 0x1000, 1, 1), region(0x1000, 0x2000, 2, 1)]).expect("disjoint");
    assert_eq!(memory.regions().iter().map(Region::guest_addr).collect::<Vec<_>>(), [0x1000, 0x3000]);
    assert_eq!(overlaps(vec![]), None);
}

#[test]
fn user_addresses_are_looked_up_in_one_region() {
    let memory =
        GuestMem::new(vec![region(0x3000, 0x1000, 1, 1), region(0x1000, 0x2000, 2, 1)]).expect("disjoint");
    for (user_addr, len, guest_addr) in [
        (0x1000, 0x1000, Some(0x3000)),
        (0x1fff, 1, Some(0x3fff)),
        (0x1fff, 2, None),
        (0x2000, 0x2000, Some(0x1000)),
        (0x2001, 0x2000, None),
        (0x2000, u64::MAX, None),
        (0xfff, 1, None),
        (0x4000, 1, None),
        (u64::MAX, 1, None),
    ] {
        assert_eq!(memory.user_to_guest(user_addr, len), guest_addr, "{len} bytes at {user_addr:#x}");
    }
}

#[test]
fn what_is_near_a_place_is_found_wherever_it_is() {
    let regions = [region(0x1000, 0, 2, 1), region(0x3000, 0x10000, 1, 3), region(0x8000, 0x20000, 1, 7)];
    let pin = MemPin::new(Arc::new(GuestMem::new(regions.to_vec()).expect("disjoint")));
    let edges = [0, 0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0x8000, 0x9000, u64::MAX];
    let addrs: Vec<u64> =
        edges.iter().flat_map(|edge| (-9..9).map(|by| edge.wrapping_add_signed(by))).collect();
    for place in &addrs {
        let Some(near) = pin.near(*place) else {
            assert!(pin.slice(*place, 1).is_err());
            continue;
        };
        for (addr, len) in addrs.iter().flat_map(|addr| [1, 8, 0x1000].map(|len| (*addr, len))) {
            let value = |slice: Result<GuestSlice, BadAddress>| slice.map(|slice| slice.read::<u8>(len - 1));
            assert_eq!(
                value(near.slice(addr, len)),
                value(pin.slice(addr, len)),
                "{addr:#x} near {place:#x}"
            );
        }
        for addr in &addrs {
            let there = pin.slice(*addr, 8).ok().map(|slice| slice.read::<u64>(0));
            assert_eq!(near.read_value::<u64>(*addr), there, "{addr:#x} near {place:#x}");
        }
    }
}

#[test]
fn a_slice_is_in_one_region_and_a_read_may_be_in_several() {
    let memory =
        GuestMem::new(vec![region(0x1000, 0x1000, 1, 1), region(0x2000, 0x2000, 1, 3)]).expect("disjoint");
    let pin = MemPin::new(Arc::new(memory));
    let bad = BadAddress { addr: 0x1ffe, len: 4 };
    assert_eq!(pin.slice(0x1ffe, 4).err(), Some(bad));
    assert_eq!(bad.to_string(), "4 bytes at 0x1ffe are not in the guest's memory");
    let mut bytes = [0; 4];
    pin.read(0x1ffe, &mut bytes).expect("two regions");
    assert_eq!(bytes, [0xfe, 0xff, 0, 3]);
    assert_eq!(pin.read(0x2ffe, &mut bytes), Err(BadAddress { addr: 0x3000, len: 2 }));
    assert_eq!(pin.slice(0x2fff, 1).map(|slice| slice.len()), Ok(1));
    assert!(pin.slice(0x3000, 0).is_err() && pin.slice(0x2fff, usize::MAX).is_err());
}

#[test]
fn the_end_of_the_address_space_is_no_bridge_to_its_start() {
    // The last page cannot be used: its end would be past the last number.
    let top = u64::MAX - 0x1fff;
    let memory = GuestMem::new(vec![region(top, 0x1000, 1, 1), region(0, 0x8000, 1, 1)]).expect("disjoint");
    let pin = MemPin::new(Arc::new(memory));
    let mut bytes = [0; 32];
    assert!(pin.read(top + 0xff0, &mut bytes).is_err());
    assert!(pin.read(u64::MAX - 15, &mut bytes).is_err());
    assert!(pin.slice(u64::MAX, 1).is_err());
    assert!(pin.read(top + 0xfe0, &mut bytes).is_ok());
}

#[test]
fn pins_of_one_snapshot_are_the_same_and_outlive_it() {
    let memory = Arc::new(GuestMem::new(vec![region(0x1000, 0x1000, 1, 1)]).expect("one region"));
    let (pin, other) = (MemPin::new(Arc::clone(&memory)), MemPin::new(Arc::clone(&memory)));
    assert!(pin.same(&pin.clone()) && !pin.same(&other));
    let slice = pin.slice(0x1005, 1).expect("mapped");
    drop((pin, other, memory));
    assert_eq!(slice.read::<u8>(0), 5);
}

proptest! {
    #[test]
    fn addresses_lead_to_the_bytes_that_a_map_of_all_addresses_has(
        pages in prop::collection::vec((0..3_u64, 1..4_u64), 1..6),
        looks in prop::collection::vec((0..0x1_8000_u64, 0..0x3000_usize), 1..40),
    ) {
        let mut model = BTreeMap::new();
        let (mut regions, mut at) = (Vec::new(), 0);
        for (i, (gap, pages)) in pages.into_iter().enumerate() {
            at += gap * 0x1000;
            let factor = 2 * i + 1;
            regions.push(region(at, at, pages, factor));
            for n in 0..pages * 0x1000 {
                let byte = (usize::try_from(n).expect("small") * factor).to_le_bytes()[0];
                model.insert(at + n, byte);
            }
            at += pages * 0x1000;
        }
        let starts: Vec<(u64, u64)> = regions.iter().map(|r| (r.guest_addr(), r.guest_addr() + r.size())).collect();
        let pin = MemPin::new(Arc::new(GuestMem::new(regions).expect("disjoint")));
        for (addr, len) in looks {
            let end = addr + len as u64;
            let expected: Vec<u8> = model.range(addr..end).map(|(_, byte)| *byte).collect();
            let whole = expected.len() == len;
            let mut bytes = vec![0; len];
            prop_assert_eq!(pin.read(addr, &mut bytes).is_ok(), whole);
            prop_assert!(!whole || bytes == expected);
            let in_one = starts.iter().any(|(start, stop)| *start <= addr && addr < *stop && end <= *stop);
            match pin.slice(addr, len) {
                Ok(slice) => {
                    prop_assert!(in_one && slice.len() == len);
                    let read: Vec<u8> = (0..len).map(|i| slice.read(i)).collect();
                    prop_assert!(read == expected);
                }
                Err(bad) => {
                    prop_assert!(!in_one);
                    prop_assert_eq!(bad, BadAddress { addr, len: len as u64 });
                }
            }
        }
    }
}

#[test]
fn all_of_a_memory_is_marked_and_nothing_between_its_regions() {
    let memory =
        GuestMem::new(vec![region(0x1000, 0, 2, 1), region(0x9000, 0x1_0000, 1, 1)]).expect("disjoint");
    // Without a log there is nothing to mark.
    memory.mark_all();
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(0x1000).expect("room");
    let alarm = Alarm::new().expect("an fd is free");
    let log = DirtyLog::map(2, 0, file.try_clone().expect("an fd is free"), &alarm).expect("a good log");
    memory.with_log(Some(Arc::new(log))).mark_all();
    let mut bits = [0; 2];
    file.read_exact_at(&mut bits, 0).expect("it is as long");
    assert_eq!(u16::from_le_bytes(bits), 1 << 1 | 1 << 2 | 1 << 9);
}
