//! What happens around the requests: rings that stop and start, memory that changes, front-ends that come and go.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use sluice_tests::disk::DiskSpec;
use sluice_tests::frontend::Session;
use sluice_tests::guest::{Drive, Guest};
use sluice_tests::memory::{GuestMemory, Region, memory_file};
use sluice_tests::model::{Answer, IOERR};
use sluice_tests::request::{Request, SECTOR};
use sluice_tests::rng::Rng;
use sluice_tests::shape::{Place, Shape};
use sluice_tests::subject::Subject;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

sluice_tests::suite! {
    a_stopped_ring_starts_again_where_it_stopped: [],
    a_stop_waits_for_what_is_in_flight: [StopDrains],
    a_stopped_ring_does_nothing: [],
    a_disabled_ring_does_nothing_and_loses_nothing: [DisableStops],
    a_ring_starts_afresh_with_another_size: [],
    the_memory_table_changes_between_requests: [],
    the_memory_table_changes_while_requests_are_in_flight: [StopDrains],
    a_guest_address_moves_to_another_file: [],
    memory_slots_come_and_go: [MemorySlots],
    there_are_many_memory_slots: [MemorySlots],
    a_front_end_comes_back_many_times: [],
    a_second_front_end_is_turned_away: [RefusesSecond],
    front_ends_that_leave_early_change_nothing: [],
    a_front_end_leaves_in_the_middle: [],
    a_device_is_plugged_in_again_on_the_same_connection: [MemorySlots, BeginsAgain],
    reset_device_starts_over: [ResetDevice],
    a_device_is_reset_in_the_middle: [ResetDevice],
    the_flags_of_event_fds_are_left_alone: [LeavesFdFlags],
}

/// How long a device is watched that must do nothing.
const QUIET: Duration = Duration::from_millis(30);

fn a_stopped_ring_starts_again_where_it_stopped(subject: Subject) {
    let mut guest =
        Guest::boot_with(subject, &DiskSpec::default(), &Drive { base: 65_500, ..Drive::default() });
    for _ in 0..20 {
        for _ in 0..3 {
            guest.check_works();
        }
        let base = guest.stop_ring();
        assert_eq!(base, guest.ring().next_avail(), "{subject}: an idle ring stops where it is");
        guest.resume_ring(base);
    }
}

fn a_stop_waits_for_what_is_in_flight(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let mut rng = Rng::for_test(40);
    let shape = Shape::pieces(&[8192]).indirect();
    for _ in 0..20 {
        let lane = &mut guest.lanes[0];
        let count = rng.between(1, 64);
        for i in 0..count as u64 {
            let request = Request::write(i * 128, rng.bytes(64 * SECTOR));
            assert!(lane.launch(&request, &shape));
        }
        lane.ring.submit();
        std::thread::sleep(Duration::from_micros(rng.below(300) as u64));
        let base = guest.stop_ring();
        let ring = guest.ring();
        let (used, avail) = (ring.used_idx(), ring.next_avail());
        assert_eq!(used, base, "{subject}: stopped at {base}, so all before it is answered");
        let left = avail.wrapping_sub(base);
        assert!(usize::from(left) <= count, "{subject}: stopped at {base}, offered up to {avail}");
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(guest.ring().used_idx(), used, "{subject}: an answer after the stop");
        guest.resume_ring(base);
        guest.lanes[0].land_all();
    }
    guest.check_file();
}

fn offer_a_write(guest: &mut Guest, sector: u64) {
    let lane = &mut guest.lanes[0];
    assert!(lane.launch(&Request::write(sector, vec![0x42; 4096]), &Shape::default()));
    lane.ring.publish();
    lane.ring.kick();
}

fn assert_idle(guest: &mut Guest, why: &str) {
    let before = guest.ring().used_idx();
    std::thread::sleep(QUIET);
    let after = guest.ring().used_idx();
    assert_eq!(before, after, "{}: {why}", guest.subject);
}

fn a_stopped_ring_does_nothing(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    guest.check_works();
    let file = guest.disk.bytes();
    let base = guest.stop_ring();
    offer_a_write(&mut guest, 1000);
    assert_idle(&mut guest, "a stopped ring answers");
    assert!(guest.disk.bytes() == file, "{subject}: a stopped ring writes");
    guest.resume_ring(base);
    guest.lanes[0].land_all();
    guest.check_file();
}

fn a_disabled_ring_does_nothing_and_loses_nothing(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    for round in 0..5 {
        guest.check_works();
        let disabled = guest.session().enable_ring(0, false);
        guest.need(disabled, "SET_VRING_ENABLE 0");
        offer_a_write(&mut guest, 1000 + 8 * round);
        assert_idle(&mut guest, "a disabled ring answers");
        let enabled = guest.session().enable_ring(0, true);
        guest.need(enabled, "SET_VRING_ENABLE 1");
        guest.lanes[0].land_all();
    }
    guest.check_file();
}

fn a_ring_starts_afresh_with_another_size(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    for size in [16, 256, 4, 128] {
        guest.check(&Request::read(0, 4096), &Shape::default());
        guest.stop_ring();
        guest.lanes.truncate(0);
        guest.drive.ring_size = size;
        guest.start_rings();
    }
}

/// The layout of memory without the region that starts at `addr`.
fn without(memory: &GuestMemory, addr: u64) -> Vec<Region> {
    memory.regions().iter().filter(|region| region.guest_addr != addr).cloned().collect()
}

fn at(addr: u64) -> Shape {
    Shape { place: Place::At(addr), ..Shape::default() }
}

/// Data in this region, and header and status elsewhere: without the region, the request fails and says so.
fn check_region(guest: &mut Guest, region: &Region, present: bool) {
    let request = Request::read(16, 4096);
    if present {
        guest.check(&request, &at(region.guest_addr + region.size / 2));
        return;
    }
    // All of its buffers at hand but the data.
    let placed = Shape::default().place(&request, &guest.memory);
    let mut chain = placed.chain.clone();
    chain.direct[1].addr = region.guest_addr + region.size / 2;
    let ring = guest.ring();
    ring.offer(&chain);
    ring.submit();
    let used = ring.wait();
    let status = guest.memory.read(placed.status_addr(), 1)[0];
    assert_eq!((status, used.len), (IOERR, 1), "{}: data in a region that is gone", guest.subject);
    placed.finish().unwrap_or_else(|at| panic!("{}: wrote to {at:#x}", guest.subject));
}

fn the_memory_table_changes_between_requests(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let all = guest.memory.regions().to_vec();
    let high = all[2].clone();
    for _ in 0..5 {
        check_region(&mut guest, &high, true);
        guest.check_works();
        let fewer = without(&guest.memory, high.guest_addr);
        guest.announce(&fewer);
        guest.check_works();
        if !matches!(subject, Subject::Qemu) {
            check_region(&mut guest, &high, false);
        }
        guest.announce(&all);
    }
}

/// A guest is given memory, and loses it again, in the middle of its writes: none is lost and none is done twice.
fn the_memory_table_changes_while_requests_are_in_flight(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let mut rng = Rng::for_test(41);
    let all = guest.memory.regions().to_vec();
    let fewer = without(&guest.memory, all[2].guest_addr);
    for round in 0..20 {
        let lane = &mut guest.lanes[0];
        for i in 0..64 {
            assert!(lane.launch(
                &Request::write(i * 128, rng.bytes(64 * SECTOR)),
                &Shape::pieces(&[8192]).indirect()
            ));
        }
        lane.ring.submit();
        std::thread::sleep(Duration::from_micros(rng.below(300) as u64));
        guest.announce(if round % 2 == 0 { &fewer } else { &all });
        guest.lanes[0].land_all();
    }
    guest.check_file();
}

/// The same guest address, backed by another file: what was mapped before must not be used any more.
fn a_guest_address_moves_to_another_file(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let mut regions = guest.memory.regions().to_vec();
    let high = regions[2].clone();
    for round in 0..5 {
        let request = Request::read(8 * round, 4096);
        let target = high.guest_addr + 4096;
        guest.check(&request, &at(target));
        let old = guest.memory.read(target, 8192);
        let file = memory_file(high.size);
        regions[2] = Region::new(high.guest_addr, high.size, &file, 0);
        let memory = GuestMemory::with_regions(vec![regions[2].clone()]);
        guest.announce(&regions);
        let before = std::mem::replace(&mut guest.lanes[0].memory, memory);
        guest.check(&Request::read(8 * round + 100, 4096), &at(target));
        assert!(before.read(target, 8192) == old, "{subject}: the file that was replaced was written to");
        // The harness sees the high region by its first mapping again, and so must the device.
        guest.lanes[0].memory = before;
        regions[2] = high.clone();
        guest.announce(&regions);
    }
}

fn memory_slots_come_and_go(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let high = guest.memory.regions()[2].clone();
    for _ in 0..20 {
        check_region(&mut guest, &high, true);
        let removed = guest.session().remove_region(&high);
        guest.need(removed, "REM_MEM_REG");
        guest.check_works();
        if !matches!(subject, Subject::Qemu) {
            check_region(&mut guest, &high, false);
        }
        let added = guest.session().add_region(&high);
        guest.need(added, "ADD_MEM_REG");
    }
}

fn there_are_many_memory_slots(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let slots = guest.session().frontend().get_max_mem_slots();
    let slots = guest.need(slots, "GET_MAX_MEM_SLOTS");
    assert!(slots >= 32, "{subject}: {slots} memory slots");
    let file = memory_file(32 << 16);
    let page = |i: u64| Region::new((8 << 30) + (i << 17), 1 << 16, &file, i << 16);
    let taken = guest.memory.regions().len() as u64;
    for i in 0..32 - taken {
        let added = guest.session().add_region(&page(i));
        guest.need(added, "ADD_MEM_REG");
    }
    guest.check_works();
    for i in (0..32 - taken).rev() {
        let removed = guest.session().remove_region(&page(i));
        guest.need(removed, "REM_MEM_REG");
    }
    guest.check_works();
}

fn a_front_end_comes_back_many_times(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let socket = |guest: &Guest| std::fs::metadata(guest.served.socket()).unwrap().ino();
    let inode = socket(&guest);
    for round in 0..30 {
        guest
            .check(&Request::write(round * 40, vec![round.to_le_bytes()[0]; 24 * SECTOR]), &Shape::default());
        guest.check(&Request::read(0, 1300 * SECTOR), &Shape::default());
        guest.reconnect();
        assert_eq!(socket(&guest), inode, "{subject}: the listening socket was replaced");
    }
    guest.check_file();
}

/// At once, and the first does not notice. When the first has left, the next is served.
fn a_second_front_end_is_turned_away(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    for _ in 0..10 {
        let mut second = Session::connect(guest.served.socket());
        assert!(
            second.closed_within(Duration::from_secs(5)),
            "{subject}: a second front-end is kept waiting"
        );
        guest.check_works();
    }
    guest.reconnect();
    guest.check_works();
}

fn front_ends_that_leave_early_change_nothing(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    guest.check_works();
    for round in 0..12 {
        guest.redial();
        if round % 3 > 0 {
            let negotiated = guest.session().negotiate(u64::MAX);
            guest.need(negotiated, "negotiation");
        }
        if round % 3 > 1 {
            let regions = guest.memory.regions().to_vec();
            guest.announce(&regions);
        }
    }
    let stream = UnixStream::connect(guest.served.socket());
    drop(stream);
    guest.reconnect();
    guest.check_works();
}

/// Does `interrupt` while 64 reads are under way, sooner or later, gives up the reads, and goes on with what `restart` makes.
fn interrupt_reads(subject: Subject, interrupt: fn(&mut Guest), restart: fn(&mut Guest)) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let shape = Shape::pieces(&[4096]).indirect();
    for round in 0..15 {
        let lane = &mut guest.lanes[0];
        for i in 0..64 {
            assert!(lane.launch(&Request::read(i * 64, 128 * SECTOR), &shape));
        }
        lane.ring.submit();
        std::thread::sleep(Duration::from_micros(50 * (round % 5)));
        interrupt(&mut guest);
        guest.lanes[0].abandon();
        restart(&mut guest);
        guest.check_works();
    }
}

/// The connection ends with requests in flight. Whether they are done is open, but the device goes on.
fn a_front_end_leaves_in_the_middle(subject: Subject) {
    interrupt_reads(subject, Guest::redial, Guest::set_up);
}

/// As QEMU does it after `device_del` and `device_add`: another front-end begins, and the first has taken nothing back.
fn a_device_is_plugged_in_again_on_the_same_connection(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let memory = std::sync::Arc::clone(&guest.memory);
    for _ in 0..3 {
        guest.check_works();
        guest.stop_ring();
        let features = guest.drive.features;
        let negotiated = guest.session().negotiate(features);
        guest.need(negotiated, "negotiation on a connection that has had one");
        for region in memory.regions() {
            let added = guest.session().add_region(region);
            guest.need(added, "the memory that the one before had");
        }
        guest.start_rings();
    }
    guest.check_works();
}

fn reset_device(guest: &mut Guest) {
    let reset = guest.session().frontend().reset_device();
    guest.need(reset, "RESET_DEVICE");
}

/// All that was in flight is over when the reset is answered: the driver has its memory back.
fn a_device_is_reset_in_the_middle(subject: Subject) {
    interrupt_reads(subject, reset_device, |guest| {
        guest.renegotiate();
        guest.start_rings();
    });
}

fn reset_device_starts_over(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let has = guest.session().has(VhostUserProtocolFeatures::RESET_DEVICE);
    assert!(has, "{subject}: RESET_DEVICE is not offered");
    for _ in 0..5 {
        guest.check_works();
        reset_device(&mut guest);
        offer_a_write(&mut guest, 2000);
        assert_idle(&mut guest, "a device that was reset answers");
        guest.lanes[0].abandon();
        guest.lanes[0].model = guest.disk.model();
        guest.stop_ring();
        guest.renegotiate();
        guest.start_rings();
        guest.check(&Request::write(24, vec![0x5a; 8 * SECTOR]), &Shape::default());
    }
    guest.expect(&Request::read(1 << 40, SECTOR), &Shape::default(), &Answer::status(IOERR));
}

/// An event fd is shared with the front-end, and so are its file status flags: who sets O_NONBLOCK hangs a VMM.
fn the_flags_of_event_fds_are_left_alone(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let blocking = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let flags = |fd: &std::os::fd::OwnedFd| rustix::fs::fcntl_getfl(fd).unwrap();
    let before = flags(&blocking);
    for (request, name) in [(13, "CALL"), (14, "ERR"), (12, "KICK")] {
        let answer = guest.session().acked(request, &0u64.to_le_bytes(), &[blocking.as_fd()]);
        assert!(matches!(answer, Ok(0)), "{subject}: SET_VRING_{name}: {answer:?}");
    }
    rustix::io::write(&blocking, &1u64.to_ne_bytes()).unwrap();
    std::thread::sleep(QUIET);
    assert_eq!(flags(&blocking), before, "{subject}: the flags of an event fd changed");
}
