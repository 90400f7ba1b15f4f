//! What a file or block device can take: block sizes, direct I/O alignment, preferred transfer sizes.
//!
//! Direct I/O alignment comes from statx(2) (`STATX_DIOALIGN`, Linux 6.1), and where a file system does not say, from
//! trying to read a sector. The rest comes from `BLKSSZGET`, `BLKPBSZGET` and sysfs for block devices, and from `st_blksize`
//! for files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, Statx, StatxFlags, ioctl_blkpbszget, ioctl_blksszget, statx};

use crate::limits::QueueLimits;

/// What direct I/O on a file asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DioAlign {
    /// What addresses in memory must be multiples of.
    pub(super) memory: u32,
    /// What offsets on the disk must be multiples of, and the length of each piece of memory.
    pub(super) offset: u32,
}

impl DioAlign {
    /// Whether it can be told to a guest, which knows no blocks of more than 4096 bytes.
    pub(super) fn is_usable(self) -> bool {
        [self.memory, self.offset].iter().all(|align| align.is_power_of_two() && *align <= 4096)
    }
}

/// Block sizes as the host knows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Topology {
    pub(super) logical: u32,
    pub(super) physical: u32,
    pub(super) io_min: u32,
    pub(super) io_opt: u32,
    pub(super) discard_granularity: u32,
    pub(super) alignment_offset: u32,
}

/// What direct I/O on `file` asks for; `None` when it takes none.
pub(super) fn dio_align(file: &File, is_block: bool) -> io::Result<Option<DioAlign>> {
    let stat = stat(file)?;
    if stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 {
        let align = DioAlign { memory: stat.stx_dio_mem_align, offset: stat.stx_dio_offset_align };
        return Ok((align.memory != 0 && align.offset != 0).then_some(align));
    }
    // An older kernel, or a file system that does not say.
    let block = match is_block {
        true => ioctl_blksszget(file)?,
        false if reads_sectors(file) => 512,
        false => 4096,
    };
    Ok(Some(DioAlign { memory: block, offset: block }))
}

/// Whether direct I/O takes a sector that is no larger block's start, into memory that is no page's start.
fn reads_sectors(file: &File) -> bool {
    let mut memory = [0; 2 * 4096];
    let page = memory.as_ptr().align_offset(4096);
    file.read_at(&mut memory[page + 512..page + 1024], 512).is_ok()
}

/// The block sizes of `file`.
pub(super) fn topology(file: &File, is_block: bool) -> io::Result<Topology> {
    let stat = stat(file)?;
    if !is_block {
        let block = stat.stx_blksize.clamp(512, 65536).next_power_of_two();
        return Ok(Topology {
            logical: 512,
            physical: block.min(4096),
            io_min: block,
            io_opt: 0,
            discard_granularity: block,
            alignment_offset: 0,
        });
    }
    let (logical, physical) = (ioctl_blksszget(file)?, ioctl_blkpbszget(file)?);
    let queue = |name| sysfs(&stat, name);
    Ok(Topology {
        logical,
        physical: physical.max(logical),
        io_min: queue("minimum_io_size").unwrap_or(logical),
        io_opt: queue("optimal_io_size").unwrap_or(0),
        discard_granularity: queue("discard_granularity").filter(|n| *n != 0).unwrap_or(logical),
        alignment_offset: attribute(&stat, "alignment_offset").unwrap_or(0),
    })
}

/// What a disk can take that is opened for direct I/O as `direct` says, or through the page cache, and of which the guest
/// sees blocks of `logical` bytes.
pub(super) fn limits(topology: Topology, logical: u32, direct: Option<DioAlign>) -> QueueLimits {
    // Memory that must be aligned more than blocks are: whole blocks of that, so that any block may come next.
    let memory = direct.map_or(1, |align| align.memory);
    let disk_block = disk_block(topology, direct).max(memory);
    QueueLimits {
        logical_block_size: logical,
        disk_block_size: disk_block,
        physical_block_size: topology.physical.max(logical).max(disk_block),
        alignment_offset: topology.alignment_offset,
        io_min: topology.io_min.max(logical),
        io_opt: topology.io_opt,
        dma_alignment: memory,
        length_alignment: direct.map_or(1, |align| align.offset.max(memory)),
        needs_pinning: direct.is_some(),
        discard_granularity: topology.discard_granularity.max(logical),
        discard_alignment: topology.discard_granularity.max(logical),
        ..QueueLimits::default()
    }
}

/// The unit in which the file is addressed: through the page cache any, and sectors will do.
pub(super) fn disk_block(topology: Topology, direct: Option<DioAlign>) -> u32 {
    direct.map_or(512, |align| align.offset.max(topology.logical)).max(512)
}

/// Where sysfs shows a block device.
pub(super) fn sysfs_device(file: &File) -> io::Result<std::path::PathBuf> {
    let stat = stat(file)?;
    Ok(format!("/sys/dev/block/{}:{}", stat.stx_rdev_major, stat.stx_rdev_minor).into())
}

fn stat(file: &File) -> io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH;
    let want = StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN;
    Ok(statx(file, "", flags, want)?)
}

/// A number that the kernel shows of a block device's queue; a partition shows its disk's.
fn sysfs(stat: &Statx, name: &str) -> Option<u32> {
    attribute(stat, &format!("queue/{name}")).or_else(|| attribute(stat, &format!("../queue/{name}")))
}

/// A number that the kernel shows of a block device.
fn attribute(stat: &Statx, name: &str) -> Option<u32> {
    let path = format!("/sys/dev/block/{}:{}/{name}", stat.stx_rdev_major, stat.stx_rdev_minor);
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [u32; 4] = [512, 1024, 2048, 4096];

    fn disk(logical: u32, physical: u32) -> Topology {
        Topology {
            logical,
            physical,
            io_min: physical,
            io_opt: 1 << 20,
            discard_granularity: 65536,
            alignment_offset: 0,
        }
    }

    #[test]
    fn whatever_direct_io_asks_for_within_a_page_makes_sound_limits() {
        for memory in [1, 4, 512, 4096] {
            for offset in [1, 512, 4096] {
                let direct = DioAlign { memory, offset };
                assert!(direct.is_usable());
                for topology in [disk(512, 512), disk(512, 4096), disk(4096, 4096)] {
                    for logical in [512, 4096] {
                        let limits = limits(topology, logical, Some(direct));
                        assert!(limits.are_sound(), "{direct:?} makes {limits:?}");
                        assert!(limits.physical_block_size >= limits.disk_block_size);
                    }
                }
            }
        }
        for (memory, offset) in [(8192, 512), (512, 8192), (3, 512), (512, 0)] {
            assert!(!DioAlign { memory, offset }.is_usable());
        }
    }

    #[test]
    fn the_page_cache_takes_sectors_of_any_device() {
        for logical in SIZES.into_iter().chain([16384, 65536]) {
            for seen in [512, 4096] {
                let limits = limits(disk(logical, logical), seen, None);
                assert!(limits.are_sound() && !limits.has_partial_blocks(), "{limits:?}");
                assert_eq!(
                    (limits.dma_alignment, limits.length_alignment, limits.needs_pinning),
                    (1, 1, false)
                );
                assert_eq!(limits.physical_block_size, logical.max(seen), "the guest is told the truth");
            }
        }
    }

    #[test]
    fn direct_io_on_large_blocks_has_partial_blocks_where_the_guest_sees_smaller_ones() {
        let direct = Some(DioAlign { memory: 512, offset: 4096 });
        let small = limits(disk(4096, 4096), 512, direct);
        assert_eq!((small.logical_block_size, small.disk_block_size), (512, 4096));
        assert_eq!((small.physical_block_size, small.io_min, small.io_opt), (4096, 4096, 1 << 20));
        assert!(small.has_partial_blocks() && small.needs_pinning);
        assert!(!limits(disk(4096, 4096), 4096, direct).has_partial_blocks());
        let large = limits(disk(512, 512), 4096, Some(DioAlign { memory: 512, offset: 512 }));
        assert_eq!((large.logical_block_size, large.unit()), (4096, 4096), "4096 on a disk of 512");
        assert!(!large.has_partial_blocks());
    }
}
