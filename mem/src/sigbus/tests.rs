//! Memory is taken away from under a region, and the process goes on.

use std::fs::File;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};

use super::*;
use crate::guest::{GuestMem, MemPin};
use crate::region::{Region, RegionInfo};

const LEN: u64 = 4 << 16;

fn memfd() -> File {
    let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.set_len(LEN).expect("an empty file");
    file
}

fn map(file: &File, guest_addr: u64, alarm: &Arc<Alarm>) -> Region {
    let info = RegionInfo { guest_addr, size: LEN, user_addr: guest_addr, mmap_offset: 0 };
    Region::map_watched(info, file.try_clone().expect("an fd is free"), alarm).expect("a good region")
}

fn pin(regions: Vec<Region>) -> MemPin {
    MemPin::new(Arc::new(GuestMem::new(regions).expect("disjoint")))
}

fn is_readable(alarm: &Alarm) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(alarm, PollFlags::IN)], Some(&now)).expect("poll(2)") > 0
}

#[test]
fn memory_that_was_taken_away_reads_as_zeroes_and_rings() {
    survive().expect("sigaction(2)");
    let (file, alarm) = (memfd(), Alarm::new().expect("an fd is free"));
    let pin = pin(vec![map(&file, 0, &alarm)]);
    for page in 0..4 {
        pin.slice(page << 16, 8).expect("in the region").write(0, u64::MAX);
    }
    file.set_len(1 << 16).expect("shorter");
    assert_eq!(pin.read_value::<u64>(0).expect("in the region"), u64::MAX, "what is left");
    assert!(!alarm.has_rung() && !pin.memory().is_lost() && !is_readable(&alarm));
    assert_eq!(pin.read_value::<u64>(2 << 16).expect("in the region"), 0);
    assert!(alarm.has_rung() && pin.memory().is_lost() && is_readable(&alarm));
    pin.slice(3 << 16, 8).expect("in the region").write(0, 7_u64);
    assert_eq!(pin.read_value::<u64>(3 << 16).expect("in the region"), 7, "a page of our own");
    assert_eq!(pin.read_value::<u64>(0).expect("in the region"), u64::MAX, "what is left");
    assert_eq!(file.metadata().expect("it is open").len(), 1 << 16, "nothing goes to the file");
}

#[test]
fn only_the_alarm_of_the_guest_rings() {
    survive().expect("sigaction(2)");
    let files = [memfd(), memfd(), memfd()];
    let alarms = [(); 3].map(|()| Alarm::new().expect("an fd is free"));
    let pins: Vec<MemPin> =
        files.iter().zip(&alarms).map(|(file, alarm)| pin(vec![map(file, 0, alarm)])).collect();
    files[1].set_len(0).expect("shorter");
    for pin in &pins {
        pin.slice(0, 8).expect("in the region").write(0, 1_u64);
    }
    assert_eq!(alarms.map(|alarm| alarm.has_rung()), [false, true, false]);
}

#[test]
fn all_regions_of_a_guest_ring_one_alarm() {
    survive().expect("sigaction(2)");
    let (files, alarm) = ([memfd(), memfd()], Alarm::new().expect("an fd is free"));
    let pin = pin(vec![map(&files[0], 0, &alarm), map(&files[1], LEN, &alarm)]);
    files[1].set_len(0).expect("shorter");
    let mut bytes = [1; 16];
    pin.read(LEN - 8, &mut bytes).expect("in two regions");
    assert!(pin.memory().is_lost());
}

#[test]
fn regions_come_and_go_while_others_are_taken_away() {
    survive().expect("sigaction(2)");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..200_u64 {
                    let (file, alarm) = (memfd(), Alarm::new().expect("an fd is free"));
                    let pin = pin(vec![map(&file, 0, &alarm)]);
                    let is_taken = round % 2 == 0;
                    if is_taken {
                        file.set_len(0).expect("shorter");
                    }
                    pin.slice(round << 8, 8).expect("in the region").write(0, round);
                    assert_eq!(pin.read_value::<u64>(round << 8).expect("in the region"), round);
                    assert_eq!(alarm.has_rung(), is_taken);
                }
            });
        }
    });
}

/// Run by the next test, in a process of its own.
#[test]
#[ignore = "ends the process"]
fn touches_memory_that_nobody_watches() {
    survive().expect("sigaction(2)");
    let file = memfd();
    let info = RegionInfo { guest_addr: 0, size: LEN, user_addr: 0, mmap_offset: 0 };
    let pin = pin(vec![Region::map(info, file.try_clone().expect("an fd is free")).expect("a good region")]);
    file.set_len(0).expect("shorter");
    pin.slice(0, 8).expect("in the region").write(0, 1_u64);
}

#[test]
fn a_fault_elsewhere_ends_the_process_as_ever() {
    use std::os::unix::process::ExitStatusExt;
    let tests = std::env::current_exe().expect("this program");
    let name = "sigbus::tests::touches_memory_that_nobody_watches";
    let child = std::process::Command::new(tests).args(["--ignored", "--exact", name]).output();
    let child = child.expect("it can be run");
    assert_eq!(child.status.signal(), Some(libc::SIGBUS), "{child:?}");
}
