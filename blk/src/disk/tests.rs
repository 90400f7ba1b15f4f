//! What opening a disk finds out, and what it says when it does not work.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::bio::{BioChain, Op};
use crate::doubles::guest_ram::GuestRam;
use crate::queue::{QueueConfig, RequestQueue};
use crate::request::Status;
use crate::sector::DiskRange;

fn options(path: impl AsRef<Path>) -> DiskOptions {
    DiskOptions { engine: EngineKind::Sync, ..DiskOptions::new(path.as_ref()) }
}

/// A directory with a file of so many bytes.
fn file(bytes: u64) -> (TempDir, PathBuf) {
    let dir = TempDir::new().expect("a temporary directory");
    let path = dir.path().join("disk.img");
    File::create(&path).and_then(|file| file.set_len(bytes)).expect("a sparse file");
    (dir, path)
}

/// What is said of `options`, with `DISK` for the path.
fn refusal(options: &DiskOptions) -> String {
    let error = Disk::open(options).expect_err("it is no disk");
    let mut text = error.to_string();
    if let Some(source) = error.source() {
        text += &format!(": {source}");
    }
    text.replace(&options.medium.to_string(), "DISK")
}

#[test]
fn a_file_is_a_disk_as_large_as_it_is() {
    let (_dir, path) = file(3 << 20);
    let disk = Disk::open(&options(&path)).expect("a good file");
    assert_eq!(disk.capacity(), Sector(6144));
    assert_eq!(disk.medium(), &Medium::File(path.clone()));
    assert!(!disk.is_read_only());
    assert_eq!(disk.engine_kind(), EngineKind::Sync);
    assert!(disk.limits().are_sound());
    let read_only = DiskOptions { read_only: true, ..options(&path) };
    assert!(Disk::open(&read_only).expect("a good file").is_read_only());
}

#[test]
fn what_is_not_there_or_empty_is_told() {
    let (dir, path) = file(0);
    let missing = options(dir.path().join("missing"));
    assert_eq!(
        refusal(&missing),
        "cannot open DISK for reading and writing: No such file or directory (os error 2)"
    );
    let missing = DiskOptions { read_only: true, ..missing };
    assert_eq!(refusal(&missing), "cannot open DISK for reading: No such file or directory (os error 2)");
    assert_eq!(refusal(&options(path)), "DISK is empty: give it a size with `truncate -s 1G`");
}

#[test]
fn what_may_only_be_read_is_told_with_a_hint() {
    for (read_only, text) in [
        (true, "cannot open x for reading"),
        (false, "cannot open x for reading and writing (to serve it read-only, say so)"),
    ] {
        let source = io::ErrorKind::PermissionDenied.into();
        assert_eq!(DiskError::Open { path: "x".into(), read_only, source }.to_string(), text);
    }
}

#[test]
fn what_is_no_file_is_told_without_opening_it() {
    let dir = TempDir::new().expect("a temporary directory");
    let at = |name: &str| dir.path().join(name);
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), fifo, 0o600.into(), 0).expect("mknod(2)");
    let _socket = UnixListener::bind(at("socket")).expect("a short path");
    for (path, kind) in [
        (dir.path().to_owned(), "directory"),
        (at("pipe"), "pipe"),
        (at("socket"), "socket"),
        ("/dev/null".into(), "character device"),
    ] {
        let expected = format!("DISK is a {kind}: a disk is a regular file or a block device");
        assert_eq!(refusal(&options(path)), expected);
    }
}

#[test]
fn a_size_is_whole_blocks() {
    for (size, block, text) in [
        (
            1000,
            None,
            "DISK has 1000 bytes, which is not a multiple of the 512 bytes that it is addressed in; make it longer with `truncate -s %512`",
        ),
        (
            512,
            Some(4096),
            "DISK has 512 bytes, which is not a multiple of the 4096 bytes that it is addressed in; make it longer with `truncate -s %4096`",
        ),
    ] {
        let (_dir, path) = file(size);
        let cache = Some(Cache::Writeback);
        let options = DiskOptions { logical_block_size: block, cache, ..options(&path) };
        assert_eq!(refusal(&options), text);
        // The advice helps.
        let argument = format!("%{}", block.unwrap_or(512));
        let done = std::process::Command::new("truncate").arg("-s").arg(argument).arg(&path).status();
        assert!(done.is_ok_and(|status| status.success()));
        assert!(Disk::open(&options).is_ok());
    }
}

#[test]
fn a_block_size_is_512_or_4096() {
    let (_dir, path) = file(1 << 20);
    for block in [512, 4096] {
        let options = DiskOptions { logical_block_size: Some(block), ..options(&path) };
        let limits = *Disk::open(&options).expect("a block size that exists").limits();
        assert_eq!(limits.logical_block_size, block);
        assert!(limits.physical_block_size >= block && limits.io_min >= block);
        assert!(limits.discard_granularity >= block);
    }
    for block in [0, 1, 256, 513, 1024, 8192] {
        let options = DiskOptions { logical_block_size: Some(block), ..options(&path) };
        let text = format!("a logical block size of {block} bytes does not exist: 512 and 4096 do");
        assert_eq!(refusal(&options), text);
    }
}

#[test]
fn a_file_that_direct_io_cannot_address_to_its_end_is_told_so_and_how_else() {
    let size = 3 * 4096 + 512;
    let (_dir, path) = file(size);
    let way_out = " by direct I/O (cache=writeback would do)";
    let error = DiskError::Size { path: path.clone(), size, block: 4096, way_out };
    let text = format!(
        "{} has 12800 bytes, which is not a multiple of the 4096 bytes that it is addressed in by direct I/O \
         (cache=writeback would do); make it longer with `truncate -s %4096`",
        path.display()
    );
    assert_eq!(error.to_string(), text);
    let buffered = DiskOptions { cache: Some(Cache::Writeback), ..options(&path) };
    assert_eq!(Disk::open(&buffered).expect("whole sectors").capacity(), Sector(25), "no byte is cut off");
}

#[test]
fn discards_are_as_the_file_has_them_or_as_was_asked_for() {
    let (_dir, path) = file(1 << 20);
    let limits = |options: &DiskOptions| *Disk::open(options).expect("a good file").limits();
    let found = limits(&options(&path));
    assert!(found.discard_granularity >= 4096, "blocks of the file system");
    assert_eq!(found.discard_alignment, found.discard_granularity);
    let asked = DiskOptions { discard_granularity: Some(65536), ..options(&path) };
    let asked_both = DiskOptions { discard_alignment: Some(4096), ..asked.clone() };
    for (options, expected) in [(asked, (65536, 65536)), (asked_both, (65536, 4096))] {
        let limits = limits(&options);
        assert_eq!((limits.discard_granularity, limits.discard_alignment), expected);
    }
    for (granularity, alignment, text) in [
        (
            Some(0),
            None,
            "a discard granularity of 0 bytes does not exist: it is a multiple of the block size, 512",
        ),
        (
            Some(700),
            None,
            "a discard granularity of 700 bytes does not exist: it is a multiple of the block size, 512",
        ),
        (
            None,
            Some(1),
            "a discard alignment of 1 bytes does not exist: it is a multiple of the block size, 512",
        ),
    ] {
        let options = DiskOptions {
            discard_granularity: granularity,
            discard_alignment: alignment,
            logical_block_size: Some(512),
            ..options(&path)
        };
        assert_eq!(refusal(&options), text);
    }
}

#[test]
fn what_a_disk_can_do_is_what_was_asked_for_where_it_can_be_written_to() {
    let (_dir, path) = file(1 << 20);
    for (write_zeroes, read_only, has) in [(true, false, true), (false, false, false), (true, true, false)] {
        let disk =
            Disk::open(&DiskOptions { write_zeroes, read_only, ..options(&path) }).expect("a good file");
        assert_eq!(disk.has_write_zeroes(), has);
        assert_eq!((disk.has_secure_erase(), disk.lifetime()), (false, None), "files do neither");
    }
    for discard in Discard::ALL {
        let disk = Disk::open(&DiskOptions { discard, ..options(&path) }).expect("a good file");
        assert_eq!(disk.discard(), discard);
    }
}

/// Whether files in a directory take direct I/O, found out by opening one.
fn takes_direct_io(path: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().read(true).custom_flags(libc::O_DIRECT).open(path).is_ok()
}

#[test]
fn the_cache_mode_is_none_where_the_file_takes_direct_io() {
    let places = [std::env::temp_dir(), PathBuf::from("/dev/shm")];
    for place in places.iter().filter(|place| place.is_dir()) {
        let file = tempfile::Builder::new().tempfile_in(place).expect("a temporary file");
        file.as_file().set_len(1 << 20).expect("a sparse file");
        let disk = Disk::open(&options(file.path())).expect("a good file");
        let direct = takes_direct_io(file.path());
        assert_eq!(disk.cache(), if direct { Cache::None } else { Cache::Writeback });
        assert_eq!(disk.limits().dma_alignment > 1, direct, "in {}", place.display());
    }
}

#[test]
fn sectors_are_served_where_the_file_system_does_not_tell_of_its_alignment() {
    let Ok(file) = tempfile::Builder::new().tempfile_in("/dev/shm") else {
        return eprintln!("SKIPPED: there is no tmpfs at /dev/shm");
    };
    file.as_file().set_len(512).expect("a sparse file");
    let disk = Disk::open(&options(file.path())).expect("a file of one sector");
    assert_eq!((disk.limits().logical_block_size, disk.capacity()), (512, Sector(1)));
}

#[test]
fn alignments_that_cannot_be_told_to_a_guest_are_not_used() {
    for (memory, offset, usable) in
        [(4, 512, true), (4096, 512, true), (512, 4096, true), (3, 512, false), (512, 65536, false)]
    {
        let align = topology::DioAlign { memory, offset };
        assert_eq!(align.is_usable(), usable, "{align:?}");
    }
}

#[test]
fn a_cache_mode_that_was_asked_for_is_the_one() {
    let (_dir, path) = file(1 << 20);
    for cache in Cache::ALL {
        if cache.is_direct() && !takes_direct_io(&path) {
            continue;
        }
        let disk = Disk::open(&DiskOptions { cache: Some(cache), ..options(&path) }).expect("a good file");
        assert_eq!(disk.cache(), cache);
        assert_eq!(disk.limits().dma_alignment > 1, cache.is_direct());
    }
}

#[test]
fn a_file_without_direct_io_is_told_when_it_was_asked_for() {
    // Files of procfs are regular files that take none.
    for cache in [Cache::None, Cache::Directsync] {
        let options = DiskOptions { cache: Some(cache), read_only: true, ..options("/proc/version") };
        let expected = format!(
            "DISK does not take direct I/O, which cache={cache} needs: use cache=writeback or cache=writethrough"
        );
        assert_eq!(refusal(&options), expected);
    }
    let options = DiskOptions { read_only: true, ..options("/proc/version") };
    // Otherwise the page cache is used; such a file has no end that could be sought.
    assert_eq!(refusal(&options), "cannot find out about DISK: Invalid argument (os error 22)");
}

#[test]
fn serials_differ_as_files_do() {
    let (dir, path) = file(512);
    let (other, link) = (dir.path().join("other.img"), dir.path().join("link.img"));
    File::create(&other).and_then(|file| file.set_len(512)).expect("a sparse file");
    symlink(&path, &link).expect("a symbolic link");
    let cache = Some(Cache::Writeback);
    let open = |path| Disk::open(&DiskOptions { cache, ..options(path) }).expect("a good file");
    let serial = |path| open(path).serial().to_owned();
    assert_ne!(serial(&path), serial(&other));
    assert_eq!(serial(&path), serial(&link), "a link is the same file");
    assert!(serial(&path).len() <= 20 && serial(&path).is_ascii());
}

#[test]
fn words_are_read_as_they_are_written() {
    for cache in Cache::ALL {
        assert_eq!(cache.to_string().parse(), Ok(cache));
    }
    for kind in EngineKind::ALL {
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    for discard in Discard::ALL {
        assert_eq!(discard.to_string().parse(), Ok(discard));
    }
    let error = "on".parse::<Discard>().expect_err("no such word");
    assert_eq!(error.to_string(), "\"on\" is none of unmap, ignore");
    let error = "fast".parse::<Cache>().expect_err("no such mode");
    assert_eq!(error.to_string(), "\"fast\" is none of none, writeback, writethrough, directsync, unsafe");
    let error = "Uring".parse::<EngineKind>().expect_err("no such engine");
    assert_eq!(error.to_string(), "\"Uring\" is none of uring, sync");
}

#[test]
fn what_the_words_mean_is_what_qemu_means() {
    let direct = Cache::ALL.map(Cache::is_direct);
    assert_eq!(direct, [true, false, false, true, false]);
    let writethrough = Cache::ALL.map(Cache::is_writethrough);
    assert_eq!(writethrough, [false, false, true, true, false]);
}

#[test]
fn a_disk_on_io_uring_needs_a_ring() {
    let (_dir, path) = file(1 << 20);
    let disk = Disk::open(&DiskOptions { engine: EngineKind::Uring, ..options(&path) }).expect("a good file");
    let error = disk.engine(32, None).err().expect("there is no ring");
    assert_eq!(error.to_string(), "io_uring is not available on this host");
    let ring = Ring::new(8).expect("tests need io_uring");
    assert!(disk.engine(32, Some(&ring)).is_ok());
    let disk = Disk::open(&options(&path)).expect("a good file");
    assert!(disk.engine(32, None).is_ok());
}

/// Every disk without a file, of so many bytes.
fn fileless(bytes: u64) -> [DiskOptions; 2] {
    [Medium::Ram { bytes }, Medium::Null { bytes }].map(DiskOptions::on)
}

#[test]
fn a_disk_without_a_file_is_as_large_as_somebody_says() {
    for options in fileless(3 << 20) {
        let disk = Disk::open(&options).expect("a good size");
        assert_eq!((disk.capacity(), disk.limits().logical_block_size), (Sector(6144), 512));
        assert_eq!((disk.cache(), disk.medium()), (Cache::Writeback, &options.medium));
        assert!(disk.limits().are_sound() && !disk.limits().has_partial_blocks() && !disk.has_secure_erase());
        assert_eq!(disk.serial().len(), 20);
        let large = DiskOptions { logical_block_size: Some(4096), ..options.clone() };
        let disk = Disk::open(&large).expect("a good size");
        assert!(disk.limits().are_sound());
        assert_eq!(disk.limits().logical_block_size, 4096);
        let granularity = DiskOptions { discard_granularity: Some(65536), read_only: true, ..options };
        let disk = Disk::open(&granularity).expect("a good size");
        assert_eq!((disk.limits().discard_granularity, disk.is_read_only()), (65536, true));
    }
}

#[test]
fn a_size_that_is_not_whole_blocks_is_refused() {
    for bytes in [0, 511, 4097] {
        for options in fileless(bytes) {
            let words = format!(
                "a disk of {bytes} bytes: it must be a multiple of the block size, 512, and not empty"
            );
            assert_eq!(refusal(&options), words);
        }
    }
    for options in fileless(4096 + 512) {
        let large = DiskOptions { logical_block_size: Some(4096), ..options.clone() };
        assert!(refusal(&large).contains("a multiple of the block size, 4096"));
        let odd = DiskOptions { logical_block_size: Some(1024), ..options };
        assert_eq!(refusal(&odd), "a logical block size of 1024 bytes does not exist: 512 and 4096 do");
    }
    let [memory, null] = fileless(1 << 60);
    let words = refusal(&memory);
    assert!(words.starts_with("there is no DISK for a disk of 1152921504606846976 bytes: "), "{words}");
    assert!(Disk::open(&null).is_ok(), "nothing is always there");
}

#[test]
fn all_queues_of_a_disk_in_memory_share_it() {
    let disk = Disk::open(&DiskOptions::on(Medium::Ram { bytes: 1 << 20 })).expect("a good size");
    let ram = GuestRam::new(1, 2);
    ram.write(0, &[7; 4096]);
    for (op, at) in [(Op::Write { fua: false }, 0), (Op::Read, 4096)] {
        let engine = disk.engine(RequestQueue::tags(2), None).expect("it needs no ring");
        let mut queue = RequestQueue::new(QueueConfig::new(2, *disk.limits()), engine).expect("some memory");
        let range = DiskRange::new(Sector(9), 4096, disk.capacity(), 512).expect("inside");
        let mut chain = BioChain::new();
        let bio = chain.push(queue.bios().try_take(op, range).expect("the queue is idle"));
        bio.sg = ram.list([(at, 4096)]);
        queue.submit(chain, 0).expect("the queue is idle");
        queue.dispatch();
        queue.reap(|chain| assert_eq!(chain.status, Status::Ok));
        assert!(queue.is_idle(), "at once");
    }
    assert_eq!(ram.read(4096, 4096), [7; 4096]);
}
