//! The config space against the layout of other people's headers, and the rules of what is cached.

use std::mem::{offset_of, size_of};
use std::ops::Range;

use proptest::prelude::*;
use sluice_blk::disk::Cache;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_SECURE_ERASE, VIRTIO_BLK_F_ZONED, virtio_blk_config,
};

use super::*;
use crate::doubles::disk::TestDisk;

const SECTORS: u64 = 0x0012_3450;

/// The config of a disk of 512-byte blocks with 3 queues of 128.
fn config() -> DiskConfig {
    DiskConfig::new(&TestDisk::new(SECTORS).open(), 3, 128)
}

fn config_with_cache(cache: Cache) -> DiskConfig {
    DiskConfig::new(&TestDisk::new(64).with(|options| options.cache = Some(cache)).open(), 1, 128)
}

fn read_only() -> DiskConfig {
    DiskConfig::new(&TestDisk::new(64).with(|options| options.read_only = true).open(), 1, 128)
}

/// A field by its place, as a number.
fn field(config: &DiskConfig, at: Range<usize>) -> u64 {
    let size = u32::try_from(at.len()).unwrap();
    let mut bytes = config.read(u32::try_from(at.start).unwrap(), size).expect("a field is inside");
    bytes.resize(8, 0);
    u64::from_le_bytes(bytes.try_into().unwrap())
}

/// The place of a field in the struct that the kernel's headers have.
macro_rules! at {
    ($($field:tt).+, $size:literal) => {
        offset_of!(virtio_blk_config, $($field).+)..offset_of!(virtio_blk_config, $($field).+) + $size
    };
}

fn bits(bits: &[u32]) -> u64 {
    bits.iter().map(|bit| 1 << bit).sum()
}

const WCE: u64 = 1 << VIRTIO_BLK_F_CONFIG_WCE;
const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;
const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;

#[test]
fn each_field_is_where_the_headers_of_the_kernel_have_it() {
    let config = config();
    let limits = *TestDisk::new(SECTORS).open().limits();
    let block = limits.logical_block_size;
    for (name, at, value) in [
        ("capacity", at!(capacity, 8), SECTORS),
        ("size_max", at!(size_max, 4), u64::from(DiskConfig::SIZE_MAX)),
        ("seg_max", at!(seg_max, 4), 1024),
        ("geometry", at!(geometry, 4), 0),
        ("blk_size", at!(blk_size, 4), 512),
        (
            "physical_block_exp",
            at!(physical_block_exp, 1),
            (limits.physical_block_size / block).ilog2().into(),
        ),
        ("alignment_offset", at!(alignment_offset, 1), 0),
        ("min_io_size", at!(min_io_size, 2), (limits.io_min / block).into()),
        ("opt_io_size", at!(opt_io_size, 4), (limits.io_opt / block).into()),
        ("writeback", at!(wce, 1), 1),
        ("unused", at!(unused, 1), 0),
        ("num_queues", at!(num_queues, 2), 3),
        ("max_discard_sectors", at!(max_discard_sectors, 4), DiskConfig::DISCARD_SECTORS_MAX.into()),
        ("max_discard_seg", at!(max_discard_seg, 4), DiskConfig::RANGES_MAX.into()),
        (
            "discard_sector_alignment",
            at!(discard_sector_alignment, 4),
            (limits.discard_granularity / 512).into(),
        ),
        (
            "max_write_zeroes_sectors",
            at!(max_write_zeroes_sectors, 4),
            DiskConfig::WRITE_ZEROES_SECTORS_MAX.into(),
        ),
        ("max_write_zeroes_seg", at!(max_write_zeroes_seg, 4), DiskConfig::RANGES_MAX.into()),
        ("write_zeroes_may_unmap", at!(write_zeroes_may_unmap, 1), 1),
        ("unused1", at!(unused1, 3), 0),
        ("max_secure_erase_sectors", at!(max_secure_erase_sectors, 4), 0),
        ("zoned", at!(zoned.model, 1), 0),
    ] {
        assert_eq!(field(&config, at), value, "{name}");
    }
    assert!(size_of::<virtio_blk_config>() <= DiskConfig::BYTES as usize);
    // Where this file's comment has them, in case the headers' layout is not the specification's.
    assert_eq!(
        (at!(blk_size, 4).start, at!(wce, 1).start, at!(write_zeroes_may_unmap, 1).start),
        (20, 32, 56)
    );
}

#[test]
fn a_disk_that_is_only_read_is_not_discarded() {
    let config = read_only();
    assert!(config.is_read_only() && !config.has_write_zeroes());
    assert_eq!(config.read(36, 24), Some(vec![0; 24]), "no limits of what cannot be done");
    let changes = bits(&[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
    assert_eq!(config.features() & (changes | 1 << VIRTIO_BLK_F_RO), 1 << VIRTIO_BLK_F_RO);
}

#[test]
fn the_features_are_those_that_are_served() {
    let always = [
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_CONFIG_WCE,
    ];
    let changes = [VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES];
    assert_eq!(config().features(), bits(&always) | bits(&changes) | 1 << VIRTIO_BLK_F_MQ);
    let one_queue = config_with_cache(Cache::Writeback).features();
    assert_eq!(one_queue, bits(&always) | bits(&changes));
    assert_eq!(read_only().features(), bits(&always) | 1 << VIRTIO_BLK_F_RO);
    assert_eq!(one_queue & bits(&[VIRTIO_BLK_F_SECURE_ERASE, VIRTIO_BLK_F_ZONED]), 0);
}

proptest! {
    #[test]
    fn a_part_of_the_space_is_read_where_it_is_all_inside_at_both_of_its_places(
        offset in prop_oneof![0..0x240_u32, any::<u32>()],
        size in prop_oneof![0..0x120_u32, any::<u32>()],
    ) {
        let config = config();
        let whole = config.read(0, DiskConfig::BYTES).expect("all of it");
        // The second place of the space begins where the first one ends.
        let start = if offset >= 256 { u64::from(offset) - 256 } else { u64::from(offset) };
        let end = start + u64::from(size);
        let expected = (end <= 256).then(|| {
            whole.iter().copied().skip(usize::try_from(start).unwrap()).take(usize::try_from(size).unwrap()).collect::<Vec<_>>()
        });
        prop_assert_eq!(config.read(offset, size), expected);
    }

    #[test]
    fn only_the_write_cache_can_be_written(
        offset in prop_oneof![Just(32_u32), Just(0x120), 0..64_u32, any::<u32>()],
        data in prop_oneof![prop::collection::vec(0..3_u8, 0..4), prop::collection::vec(any::<u8>(), 0..70)],
    ) {
        let config = config();
        let before = config.read(0, DiskConfig::BYTES);
        let written = config.write(offset, &data);
        let good = matches!(offset, 32 | 0x120) && matches!(data[..], [0 | 1]);
        prop_assert_eq!(written.is_ok(), good);
        let mut expected = before.expect("all of it");
        if good {
            expected[32] = data[0];
        }
        prop_assert_eq!(config.read(0, DiskConfig::BYTES), Some(expected));
    }
}

#[test]
fn a_write_that_is_refused_says_what_was_wrong() {
    let config = config();
    assert_eq!(config.write(32, &[2]), Err(WriteError::Writeback { value: 2 }));
    assert_eq!(config.write(0x120, &[255]), Err(WriteError::Writeback { value: 255 }));
    assert_eq!(config.write(32, &[]), Err(WriteError::ReadOnly { offset: 32, len: 0 }));
    assert_eq!(config.write(32, &[0, 0]), Err(WriteError::ReadOnly { offset: 32, len: 2 }));
    assert_eq!(config.write(31, &[0, 1]), Err(WriteError::ReadOnly { offset: 31, len: 2 }));
}

/// virtio 1.3, 5.2.6.2: when a write has to be stable once it completes. The write cache as the driver sees it, and
/// which of CONFIG_WCE and FLUSH it has.
#[test]
fn a_write_is_durable_when_the_driver_may_rely_on_it() {
    for cache in [Cache::Writeback, Cache::Writethrough] {
        let is_on_at_first = !cache.is_writethrough();
        for (features, switched) in
            [0, FLUSH, WCE, WCE | FLUSH].into_iter().flat_map(|f| [None, Some(0), Some(1)].map(|s| (f, s)))
        {
            let config = config_with_cache(cache);
            config.accept(features);
            if let Some(value) = switched {
                config.write(32, &[value]).expect("0 or 1");
            }
            let shown = config.read(32, 1).expect("a field")[0] == 1;
            // 5.2.5.2: with CONFIG_WCE and without FLUSH the field starts at 0.
            let starts_on = is_on_at_first && features != WCE;
            assert_eq!(
                shown,
                switched.map_or(starts_on, |value| value == 1),
                "{cache} {features:#x} {switched:?}"
            );
            let may_cache = shown && features & FLUSH != 0;
            assert_eq!(config.is_writethrough(), !may_cache, "{cache} {features:#x} {switched:?}");
        }
    }
}

#[test]
fn a_reset_forgets_the_driver() {
    for (cache, first) in [(Cache::Writeback, 1), (Cache::Writethrough, 0)] {
        for value in [0, 1] {
            let config = config_with_cache(cache);
            config.accept(WCE);
            config.write(32, &[value]).expect("0 or 1");
            config.reset();
            assert_eq!(config.read(32, 1), Some(vec![first]));
            assert_eq!(config.is_writethrough(), first == 0, "and FLUSH may be negotiated again");
            assert_eq!(config.read(12, 4), Some(1024_u32.to_le_bytes().to_vec()));
        }
    }
}

#[test]
fn a_front_end_that_comes_back_finds_writes_as_durable_as_it_left_them() {
    for (cache, value, after) in [
        (Cache::Writeback, 0, 0),
        (Cache::Writeback, 1, 1),
        (Cache::Writethrough, 0, 0),
        (Cache::Writethrough, 1, 0),
    ] {
        let config = config_with_cache(cache);
        config.accept(WCE | FLUSH);
        config.write(32, &[value]).expect("0 or 1");
        config.disconnect();
        assert_eq!(config.read(32, 1), Some(vec![after]), "{cache} {value}");
    }
}

#[test]
fn without_indirect_descriptors_a_request_fits_a_ring() {
    for (queue_size, most) in [(2, 1), (4, 2), (128, 126), (256, 254), (1024, 1022)] {
        let config = DiskConfig::new(&TestDisk::new(64).open(), 1, queue_size);
        let seg_max = || field(&config, 12..16);
        assert_eq!(seg_max(), 1024, "before anything was negotiated");
        config.accept(FLUSH);
        assert_eq!(seg_max(), most, "with header and status in a ring of {queue_size}");
        config.accept(INDIRECT);
        assert_eq!(seg_max(), 1024);
    }
}

#[test]
fn a_driver_that_does_not_know_the_block_size_uses_sectors() {
    let disk = TestDisk::new(64).with(|options| options.logical_block_size = Some(4096)).open();
    let config = DiskConfig::new(&disk, 1, 128);
    let block = || config.limits().logical_block_size;
    assert_eq!(block(), 4096);
    config.accept(INDIRECT);
    assert_eq!(block(), 512, "BLK_SIZE was not accepted");
    config.accept(1 << VIRTIO_BLK_F_BLK_SIZE);
    assert_eq!(block(), 4096);
    config.accept(0);
    config.disconnect();
    assert_eq!(block(), 4096, "the next driver has not said");
}
