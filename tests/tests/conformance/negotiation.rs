//! What the device says of itself, and what it lets the driver choose: features, configuration space, acknowledgements.

use std::os::fd::AsFd;

use sluice_tests::disk::{Disk, DiskSpec};
use sluice_tests::frontend::{LOG_ALL, PROTOCOL_FEATURES, Session, ring_addresses};
use sluice_tests::guest::{Drive, EVENT_IDX, Guest, VERSION_1};
use sluice_tests::page_cache::unwritten_pages;
use sluice_tests::request::{Request, SECTOR};
use sluice_tests::shape::Shape;
use sluice_tests::subject::{Ability, Subject};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

use crate::config_space::{at, bits, config, field};

sluice_tests::suite! {
    the_offered_features_follow_the_options: [ProductFeatures],
    any_subset_of_the_features_works: [Transitional],
    features_that_were_not_offered_are_refused: [RefusesFeatures],
    the_protocol_features_are_there: [ProductFeatures],
    the_number_of_queues_is_told: [],
    messages_are_acknowledged_only_on_request: [],
    a_front_end_without_protocol_features_is_served: [],
    the_configuration_describes_the_disk: [ProductFeatures],
    the_configuration_is_read_at_any_offset: [ConfigOffset],
    the_configuration_is_read_at_the_mmio_offset_too: [ConfigAtMmioOffset],
    the_write_cache_is_switched_and_read_back: [WriteCacheSwitch],
    the_write_cache_is_switched_by_rust_front_ends: [ConfigFlags],
    a_flush_leaves_nothing_unwritten: [],
    write_through_leaves_nothing_unwritten: [WriteCacheSwitch],
    the_cache_option_decides_the_first_mode: [CacheOption],
}

/// A guest that has only asked what there is.
fn offered(subject: Subject, spec: &DiskSpec) -> u64 {
    let disk = Disk::new(spec);
    let served = subject.serve(&disk);
    let mut session = Session::connect(served.socket());
    session.negotiate(0).unwrap_or_else(|e| panic!("{subject}: {e}"));
    session.offered
}

fn the_offered_features_follow_the_options(subject: Subject) {
    let log = if subject.lacks(Ability::DirtyLog).is_none() { LOG_ALL } else { 0 };
    let always = VERSION_1
        | EVENT_IDX
        | PROTOCOL_FEATURES
        | log
        | bits(&[
            VIRTIO_RING_F_INDIRECT_DESC,
            blk::VIRTIO_BLK_F_SIZE_MAX,
            blk::VIRTIO_BLK_F_SEG_MAX,
            blk::VIRTIO_BLK_F_BLK_SIZE,
            blk::VIRTIO_BLK_F_TOPOLOGY,
            blk::VIRTIO_BLK_F_FLUSH,
            blk::VIRTIO_BLK_F_CONFIG_WCE,
        ]);
    let writes = bits(&[blk::VIRTIO_BLK_F_DISCARD, blk::VIRTIO_BLK_F_WRITE_ZEROES]);
    let (ro, mq) = (bits(&[blk::VIRTIO_BLK_F_RO]), bits(&[blk::VIRTIO_BLK_F_MQ]));
    for read_only in [false, true] {
        for queues in [1, 4] {
            let got = offered(subject, &DiskSpec { read_only, queues, ..DiskSpec::default() });
            let mut expected = always | if read_only { ro } else { writes };
            // With one queue MQ says nothing: num_queues may be there to be read as 1 or not.
            expected |= if queues > 1 { mq } else { got & mq };
            let differ = got ^ expected;
            assert_eq!(differ, 0, "{subject}: read-only {read_only}, {queues} queues: offers {got:#x}");
        }
    }
}

fn any_subset_of_the_features_works(subject: Subject) {
    let choices = [
        ("none at all", 0),
        ("VERSION_1 alone", VERSION_1),
        ("no event_idx", !EVENT_IDX),
        ("no indirect descriptors", !bits(&[VIRTIO_RING_F_INDIRECT_DESC])),
        (
            "what Firecracker takes",
            VERSION_1 | EVENT_IDX | bits(&[blk::VIRTIO_BLK_F_RO, blk::VIRTIO_BLK_F_FLUSH]),
        ),
        ("all but VERSION_1, as old firmware does", !VERSION_1),
    ];
    for (name, features) in choices {
        eprintln!("{name}");
        let mut guest =
            Guest::boot_with(subject, &DiskSpec::default(), &Drive { features, ..Drive::default() });
        assert_eq!(guest.features & !features & !PROTOCOL_FEATURES, 0);
        guest.check_works();
        guest.check(&Request::flush(), &Shape::default());
    }
}

fn features_that_were_not_offered_are_refused(subject: Subject) {
    let spec = DiskSpec { read_only: true, bytes: 1 << 20, ..DiskSpec::default() };
    let mut guest = Guest::boot(subject, &spec);
    let offered = guest.session().offered;
    for bit in (0..64).filter(|bit| offered & (1 << bit) == 0) {
        let features = guest.features | 1 << bit;
        let answer = guest.session().set_features(features);
        assert!(answer.is_err(), "{subject}: feature {bit} was not offered, but accepted");
        guest.reconnect();
        guest.check_works();
    }
}

fn the_protocol_features_are_there(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let needed = VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::RESET_DEVICE;
    let there = guest.session().protocol;
    assert!(there.contains(needed), "{subject}: only {there:?}");
}

fn the_number_of_queues_is_told(subject: Subject) {
    for queues in [1, 3, 8] {
        let mut guest = Guest::boot(subject, &DiskSpec { queues, ..DiskSpec::default() });
        let told = guest.session().frontend().get_queue_num();
        assert_eq!(guest.need(told, "GET_QUEUE_NUM"), u64::from(queues), "{subject}");
    }
}

fn messages_are_acknowledged_only_on_request(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let kick = guest.ring().kick.try_clone().unwrap();
    drop(kick);
    let body = [0u32.to_le_bytes(), 1u32.to_le_bytes()].concat();
    let (enable, get_features) = (18, 1);
    // Bit 3 of the flags is NEED_REPLY.
    guest.session().raw(enable, 1, &body, &[]).unwrap();
    guest.session().raw(get_features, 1, &[], &[]).unwrap();
    let reply = guest.session().reply().unwrap();
    assert_eq!((reply.code, reply.flags), (get_features, 5), "{subject}: the first reply is to GET_FEATURES");
    assert_eq!(reply.body.len(), 8, "{subject}");
    let acked = guest.session().acked(enable, &body, &[]);
    assert_eq!(acked.unwrap(), 0, "{subject}");
    // A reply that was due anyway is not doubled by the flag.
    guest.session().raw(get_features, 9, &[], &[]).unwrap();
    assert_eq!(guest.session().reply().unwrap().code, get_features, "{subject}");
    let err = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let acked = guest.session().acked(14, &0u64.to_le_bytes(), &[err.as_fd()]);
    assert_eq!(acked.unwrap(), 0, "{subject}");
    guest.check_works();
}

/// Without VHOST_USER_F_PROTOCOL_FEATURES rings are enabled from the start, and nothing is acknowledged.
fn a_front_end_without_protocol_features_is_served(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    guest.redial();
    let front = guest.session().frontend();
    front.set_owner().unwrap();
    let features = front.get_features().unwrap() & !PROTOCOL_FEATURES & !EVENT_IDX;
    front.set_features(features).unwrap();
    let regions = guest.memory.regions().to_vec();
    guest.announce(&regions);
    let ring = sluice_tests::driver::Ring::new(&guest.memory, 64, 0, false);
    let addresses = ring_addresses(&ring);
    let front = guest.session().frontend();
    front.set_vring_num(0, 64).unwrap();
    front.set_vring_base(0, 0).unwrap();
    front.set_vring_addr(0, &addresses).unwrap();
    front.set_vring_call(0, ring.call.fd()).unwrap();
    front.set_vring_kick(0, &ring.kick).unwrap();
    guest.lanes[0].ring = ring;
    guest.check_works();
}

fn the_configuration_describes_the_disk(subject: Subject) {
    let cases = [(2051 * SECTOR, 512, 1, false), (8 << 20, 4096, 4, false), (1 << 20, 512, 2, true)];
    for (bytes, block, queues, read_only) in cases {
        let logical_block = Some(u32::try_from(block).unwrap());
        let mut guest = Guest::boot(
            subject,
            &DiskSpec { bytes, logical_block, queues, read_only, ..DiskSpec::default() },
        );
        let config = config(&mut guest);
        let get = |at, len| field(&config, at, len);
        let name =
            format!("{subject}: {bytes} bytes, blocks of {block}, {queues} queues, read-only {read_only}");
        assert_eq!(get(at::CAPACITY, 8), (bytes / SECTOR) as u64, "{name}: capacity");
        assert_eq!(get(at::BLK_SIZE, 4), block, "{name}: blk_size");
        assert_eq!(get(at::NUM_QUEUES, 2), u64::from(queues), "{name}: num_queues");
        assert!(get(at::SEG_MAX, 4) >= 256, "{name}: seg_max {}", get(at::SEG_MAX, 4));
        assert!(get(at::SIZE_MAX, 4) >= 1 << 20, "{name}: size_max {}", get(at::SIZE_MAX, 4));
        assert!(get(at::WRITEBACK, 1) <= 1, "{name}: writeback");
        check_topology(&config, block, &name);
        if !read_only {
            check_clear_limits(&config, &name);
        }
    }
}

fn check_topology(config: &[u8], block: u64, name: &str) {
    let get = |at, len| field(config, at, len);
    let physical = block << get(at::PHYSICAL_BLOCK_EXP, 1);
    assert!((512..=1 << 20).contains(&physical), "{name}: physical block of {physical}");
    assert!(get(at::ALIGNMENT_OFFSET, 1) * block < physical, "{name}: alignment_offset");
    let (min, opt) = (get(at::MIN_IO_SIZE, 2), get(at::OPT_IO_SIZE, 4));
    assert!(opt == 0 || min == 0 || opt % min == 0, "{name}: min_io_size {min}, opt_io_size {opt}");
}

fn check_clear_limits(config: &[u8], name: &str) {
    for (at, what) in [
        (at::MAX_DISCARD_SECTORS, "max_discard_sectors"),
        (at::MAX_DISCARD_SEG, "max_discard_seg"),
        (at::DISCARD_SECTOR_ALIGNMENT, "discard_sector_alignment"),
        (at::MAX_WRITE_ZEROES_SECTORS, "max_write_zeroes_sectors"),
        (at::MAX_WRITE_ZEROES_SEG, "max_write_zeroes_seg"),
    ] {
        assert_ne!(field(config, at, 4), 0, "{name}: {what}");
    }
    assert!(field(config, at::MAX_DISCARD_SEG, 4) >= 16, "{name}: max_discard_seg");
    assert!(field(config, at::MAX_WRITE_ZEROES_SEG, 4) >= 16, "{name}: max_write_zeroes_seg");
    assert_eq!(field(config, at::WRITE_ZEROES_MAY_UNMAP, 1), 1, "{name}: write_zeroes_may_unmap");
}

fn check_config_reads(subject: Subject, shift: u32) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    let whole = config(&mut guest);
    for offset in 0..at::END {
        for len in (1..=8).chain([16, 24, 36, 60]).filter(|len| offset + len <= at::END) {
            let at = u32::try_from(offset).unwrap() + shift;
            let part = guest.session().config(at, u32::try_from(len).unwrap());
            let part = guest.need(part, "GET_CONFIG");
            assert_eq!(part, whole[offset..offset + len], "{subject}: {len} bytes at {at:#x}");
        }
    }
}

fn the_configuration_is_read_at_any_offset(subject: Subject) {
    check_config_reads(subject, 0);
}

/// Some front-ends give the offset in virtio-mmio's registers, where the configuration space starts at 0x100.
fn the_configuration_is_read_at_the_mmio_offset_too(subject: Subject) {
    check_config_reads(subject, 0x100);
}

fn set_write_cache(guest: &mut Guest, on: u8) {
    let at = u32::try_from(at::WRITEBACK).unwrap();
    let set = guest.session().set_config(at, &[on]);
    guest.need(set, "SET_CONFIG of writeback");
}

fn the_write_cache_is_switched_and_read_back(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    for on in [0, 0, 1, 1, 0] {
        set_write_cache(&mut guest, on);
        assert_eq!(config(&mut guest)[at::WRITEBACK], on, "{subject}: writeback");
        guest.check_works();
    }
}

fn the_write_cache_is_switched_by_rust_front_ends(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    for on in [0, 1] {
        let set = guest.session().set_config_flagged(u32::try_from(at::WRITEBACK).unwrap(), &[on]);
        guest.need(set, "SET_CONFIG of writeback");
        assert_eq!(config(&mut guest)[at::WRITEBACK], on, "{subject}: writeback");
    }
}

/// The pages that wait to be written, if anybody can tell. A write before makes sure that they can be seen to wait.
fn unwritten(guest: &mut Guest, sector: u64) -> Option<u64> {
    guest.check(&Request::write(sector, vec![7; 64 * SECTOR]), &Shape::default());
    unwritten_pages(&guest.disk.path())
}

fn a_flush_leaves_nothing_unwritten(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    guest.check(&Request::flush(), &Shape::default());
    for round in 0..4 {
        unwritten(&mut guest, 64 * round);
        guest.check(&Request::flush(), &Shape::default());
        let left = unwritten_pages(&guest.disk.path()).unwrap_or(0);
        assert_eq!(left, 0, "{subject}: pages that a flush left unwritten");
    }
}

fn write_through_leaves_nothing_unwritten(subject: Subject) {
    let mut guest = Guest::boot(subject, &DiskSpec::default());
    guest.check(&Request::flush(), &Shape::default());
    set_write_cache(&mut guest, 0);
    for round in 0..4 {
        let left = unwritten(&mut guest, 64 * round).unwrap_or(0);
        assert_eq!(left, 0, "{subject}: pages that a write left unwritten");
    }
    set_write_cache(&mut guest, 1);
    guest.check_works();
}

fn the_cache_option_decides_the_first_mode(subject: Subject) {
    for (cache, on) in [("none", 1), ("writeback", 1), ("unsafe", 1), ("writethrough", 0), ("directsync", 0)]
    {
        let mut guest = Guest::boot(subject, &DiskSpec { cache: Some(cache), ..DiskSpec::default() });
        assert_eq!(config(&mut guest)[at::WRITEBACK], on, "{subject}: writeback with --cache={cache}");
        guest.check(&Request::flush(), &Shape::default());
        let left = unwritten(&mut guest, 0);
        if on == 0 && left.is_some() {
            assert_eq!(left, Some(0), "{subject}: pages that a write left unwritten with --cache={cache}");
        }
    }
}
