//! Engines on a block device.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::io::Errno;
use tempfile::NamedTempFile;

use crate::disk::{Cache, Disk, DiskOptions, EngineKind};
use crate::doubles::dice::Dice;
use crate::doubles::loop_device::LoopDevice;
use crate::engine::Backing;
use crate::engine::ring::Ring;
use crate::engine::uring::UringEngine;
use crate::request::Command;
use crate::sector::Sector;

use super::rig::{FILE_BYTES, Kind, Rig};

/// Calls `test` with each engine, and each way through the caches, on a loop device over the rig's file.
fn with_each_device(test: impl Fn(&mut Rig, &Disk)) {
    for (engine, cache) in [EngineKind::Sync, EngineKind::Uring]
        .into_iter()
        .flat_map(|engine| [Cache::None, Cache::Writeback].map(|cache| (engine, cache)))
    {
        let mut rig =
            Rig::new(Kind::Cached, Some(Ring::new(8).expect("tests need io_uring"))).expect("not direct");
        let Some(device) = LoopDevice::over(rig.file().path(), 512) else { return };
        let options =
            DiskOptions { read_only: false, cache: Some(cache), engine, ..DiskOptions::new(device.path()) };
        let disk = Disk::open(&options).expect("a loop device is a disk");
        eprintln!("{engine}, cache={cache}");
        rig.engine = disk.engine(64, rig.ring.as_ref()).expect("a free slot");
        if engine == EngineKind::Sync {
            rig.ring = None;
        }
        test(&mut rig, &disk);
    }
}

#[test]
fn a_block_device_is_a_disk() {
    with_each_device(|rig, disk| {
        assert_eq!(disk.capacity(), Sector(FILE_BYTES / 512));
        assert_eq!(disk.limits().logical_block_size, 512);
        let data = Dice::new(1).bytes(8192);
        rig.ram.write(0, &data);
        let write = Command::Write { dsync: false };
        assert_eq!(rig.run(write, 512, 8192, &[(0, 4096), (4096, 4096)]), Ok(8192));
        assert_eq!(rig.run(Command::Sync, 0, 0, &[]), Ok(0));
        assert!(rig.in_file(512, 8192) == data);
        assert_eq!(rig.run(Command::Read, 512, 8192, &[(16384, 8192)]), Ok(8192));
        assert!(rig.ram.read(16384, 8192) == data);
        assert_eq!(rig.run(Command::Read, FILE_BYTES, 512, &[(0, 512)]), Ok(0), "past its end");
    });
}

#[test]
fn a_kernel_that_has_no_command_for_discards_gives_space_back_all_the_same() {
    let ring = Ring::new(8).expect("tests need io_uring");
    let mut rig = Rig::new(Kind::Cached, Some(ring.clone())).expect("not direct");
    rig.fill(0, &vec![5; 1 << 20]);
    let Some(device) = LoopDevice::over(rig.file().path(), 512) else { return };
    let file = File::options().read(true).write(true).open(device.path()).expect("a loop device");
    let mut engine = UringEngine::new(Arc::new(Backing::new(file, true)), 64, &ring);
    let allocated = |rig: &Rig| rig.allocated().expect("a file");
    let full = allocated(&rig);
    let request = rig.request(Command::Discard, 0, 1 << 19, &[]);
    // What the ring of Linux before 6.12 says.
    assert_eq!(engine.result_of(&request, Err(Errno::OPNOTSUPP)), Ok(0));
    assert!(allocated(&rig) + (1 << 19) <= full, "{} of {full}", allocated(&rig));
    rig.put(request);
    rig.engine = Box::new(engine);
    assert_eq!(rig.run(Command::Discard, 1 << 19, 1 << 19, &[]), Ok(0), "not asked again");
    assert!(allocated(&rig) + (1 << 20) <= full, "{} of {full}", allocated(&rig));
}

#[test]
fn a_block_device_gives_space_back_and_zeroes() {
    with_each_device(|rig, _| {
        let commands = [Command::Discard, Command::Zero { unmap: true }, Command::Zero { unmap: false }];
        for command in commands {
            let write = Command::Write { dsync: false };
            rig.ram.write(0, &vec![5; 1 << 20]);
            assert_eq!(rig.run(write, 0, 1 << 20, &[(0, 1 << 20)]), Ok(1 << 20));
            assert_eq!(rig.run(Command::Sync, 0, 0, &[]), Ok(0));
            let allocated = |rig: &Rig| rig.allocated().expect("a file");
            let before = allocated(rig);
            assert_eq!(rig.run(command, 4096, 1 << 19, &[]), Ok(0), "{command:?}");
            assert_eq!(rig.run(Command::Sync, 0, 0, &[]), Ok(0));
            let keeps = command == Command::Zero { unmap: false };
            let after = allocated(rig);
            assert_eq!(after + (1 << 19) <= before, !keeps, "{command:?}: {after} of {before}");
            assert_eq!(rig.run(Command::Read, 0, 1 << 20, &[(0, 1 << 20)]), Ok(1 << 20));
            let mut expected = vec![5; 1 << 20];
            expected[4096..4096 + (1 << 19)].fill(0);
            assert!(rig.ram.read(0, 1 << 20) == expected, "{command:?}");
        }
    });
}

#[test]
fn large_blocks_of_a_device_are_those_of_the_disk_unless_the_guest_shall_see_smaller_ones() {
    let file = NamedTempFile::new().expect("a temporary file");
    file.as_file().write_all_at(&[1; 512], FILE_BYTES - 512).expect("a sparse file");
    let Some(device) = LoopDevice::over(file.path(), 4096) else { return };
    for cache in [Cache::None, Cache::Writeback] {
        let options = |logical_block_size| DiskOptions {
            cache: Some(cache),
            engine: EngineKind::Sync,
            logical_block_size,
            ..DiskOptions::new(device.path())
        };
        let limits = |logical| *Disk::open(&options(logical)).expect("a loop device is a disk").limits();
        assert_eq!(limits(None), limits(Some(4096)));
        assert_eq!(limits(None).logical_block_size, 4096);
        let small = limits(Some(512));
        assert_eq!((small.logical_block_size, small.physical_block_size), (512, 4096), "512e");
        assert_eq!(small.has_partial_blocks(), cache == Cache::None, "the page cache does that itself");
    }
}
