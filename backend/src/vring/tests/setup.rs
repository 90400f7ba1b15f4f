//! What a front-end can get wrong about a ring.

use super::{AVAIL, DESC, RAM, USED, setup};
use crate::doubles::guest_ram::GuestRam;
use crate::vring::{RingSetup, SetupError, Vring, check_size};

#[test]
fn only_powers_of_two_up_to_the_largest_are_sizes() {
    for size in 0..=u32::from(u16::MAX) + 3 {
        let good = size > 0 && size <= 32768 && size & (size - 1) == 0;
        let is = if good { Ok(u16::try_from(size).unwrap()) } else { Err(SetupError::Size { size }) };
        assert_eq!(check_size(size), is);
    }
}

/// Whether a ring at these addresses can be started in memory that has these regions.
fn start_at(regions: &[std::ops::Range<u64>], change: impl FnOnce(&mut RingSetup)) -> Result<(), SetupError> {
    let mut setup = setup(16, true, 0);
    change(&mut setup);
    Vring::start(&setup, &GuestRam::new(regions).pin(), None).map(|_| ())
}

#[test]
fn a_part_of_a_ring_that_is_not_aligned_is_refused() {
    let misaligned = |part, addr, align| Err(SetupError::Misaligned { part, addr, align });
    let desc = misaligned("descriptor table", DESC + 8, 16);
    assert_eq!(start_at(&[RAM], |setup| setup.desc += 8), desc);
    assert_eq!(start_at(&[RAM], |setup| setup.avail += 1), misaligned("available ring", AVAIL + 1, 2));
    assert_eq!(start_at(&[RAM], |setup| setup.used += 2), misaligned("used ring", USED + 2, 4));
    assert_eq!(
        start_at(&[RAM], |setup| (setup.desc, setup.avail, setup.used) = (0x1010, AVAIL + 2, USED + 4)),
        Ok(())
    );
}

#[test]
fn a_part_of_a_ring_that_is_not_wholly_in_one_region_is_refused() {
    let end = RAM.end;
    // Sizes of the parts of a ring of 16, with the event indices.
    for (part, len) in [("descriptor table", 256), ("available ring", 38), ("used ring", 134)] {
        let at = |addr: u64, regions: &[std::ops::Range<u64>]| {
            start_at(regions, |setup| match part {
                "descriptor table" => setup.desc = addr,
                "available ring" => setup.avail = addr,
                _ => setup.used = addr,
            })
        };
        let (room, over) = (end - (len as u64).next_multiple_of(16), end - (len as u64 - 1) / 16 * 16);
        assert_eq!(at(room, &[RAM]), Ok(()), "the {part} at the end of a region");
        for addr in [over, end, 0, 1 << 40, 0xffff_ffff_ffff_fff0] {
            let unmapped = Err(SetupError::Unmapped { part, addr, len });
            assert_eq!(at(addr, &[RAM]), unmapped, "the {part} at {addr:#x}");
        }
        // Memory goes on there, but in another mapping.
        let unmapped = Err(SetupError::Unmapped { part, addr: over, len });
        assert_eq!(at(over, &[RAM, end..end + 0x1000]), unmapped, "the {part} over the end of a region");
    }
}

#[test]
fn the_event_indices_are_needed_only_where_they_were_negotiated() {
    let (avail, used) = (RAM.end - 36, RAM.end - 132);
    for (at_end, part, len) in [(avail, "available ring", 38), (used, "used ring", 134)] {
        let start = |event_idx| {
            start_at(&[RAM], |setup| {
                setup.event_idx = event_idx;
                *(if part == "used ring" { &mut setup.used } else { &mut setup.avail }) = at_end;
            })
        };
        assert_eq!(start(false), Ok(()));
        assert_eq!(start(true), Err(SetupError::Unmapped { part, addr: at_end, len }));
    }
}

#[test]
fn a_ring_in_a_region_that_is_at_an_odd_address_is_refused() {
    // Aligned where the guest is, but not in a mapping, which starts at a page.
    for (shift, part, addr, align) in [
        (1, "descriptor table", DESC, 16),
        (2, "descriptor table", DESC, 16),
        (8, "descriptor table", DESC, 16),
    ] {
        let region = RAM.start - shift..RAM.end;
        assert_eq!(start_at(&[region], |_| ()), Err(SetupError::Misaligned { part, addr, align }));
    }
    for (shift, part, addr, align) in [(1, "available ring", AVAIL, 2), (2, "used ring", USED, 4)] {
        let regions = match part {
            "available ring" => [0x1000..AVAIL, AVAIL - shift + 0x10..USED, USED..RAM.end],
            _ => [0x1000..AVAIL, AVAIL..USED, USED - shift + 0x10..RAM.end],
        };
        let start = start_at(&regions, |setup| (setup.avail, setup.used) = (AVAIL + 0x40, USED + 0x40));
        assert_eq!(start, Err(SetupError::Misaligned { part, addr: addr + 0x40, align }));
    }
    let regions = [RAM.start - 16..USED, USED..RAM.end];
    assert_eq!(start_at(&regions, |_| ()), Ok(()));
}
