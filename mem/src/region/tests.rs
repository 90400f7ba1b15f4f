//! What is mapped, and what a front-end is told of what is not.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::event::{EventfdFlags, eventfd};
use tempfile::NamedTempFile;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::guest::{GuestMem, MemPin};

const INFO: RegionInfo = RegionInfo { guest_addr: 0x1000, size: 0x2000, user_addr: 0x7000, mmap_offset: 0 };

/// A file of three pages, each full of its number.
fn pages() -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a temporary file");
    (0..3).for_each(|page| file.write_all(&[page; 4096]).expect("room"));
    file
}

fn refusal(info: RegionInfo, file: impl Into<OwnedFd>) -> String {
    let error = Region::map(info, File::from(file.into())).expect_err("it cannot be mapped");
    let source = error.source().map(|source| format!(": {source}"));
    error.to_string() + &source.unwrap_or_default()
}

fn mapped(file: &NamedTempFile, info: RegionInfo) -> MemPin {
    let region = Region::map(info, file.reopen().expect("it exists")).expect("a good region");
    MemPin::new(Arc::new(GuestMem::new(vec![region]).expect("one region")))
}

#[test]
fn a_region_is_the_part_of_the_file_from_its_offset_on() {
    let file = pages();
    let pin = mapped(&file, RegionInfo { mmap_offset: 0x1000, ..INFO });
    let region = &pin.memory().regions()[0];
    assert_eq!((region.guest_addr(), region.user_addr(), region.size()), (0x1000, 0x7000, 0x2000));
    let mut bytes = [0; 0x2000];
    pin.read(0x1000, &mut bytes).expect("the whole region");
    assert_eq!(bytes, std::array::from_fn(|i| 1 + u8::from(i >= 0x1000)));
}

#[test]
fn a_region_is_shared_with_the_front_end() {
    let file = pages();
    let pin = mapped(&file, INFO);
    file.as_file().write_all_at(&[77], 0x1234).expect("room");
    let slice = pin.slice(0x2234, 2).expect("mapped");
    assert_eq!(slice.read::<u8>(0), 77);
    slice.write(1, 78_u8);
    let mut byte = [0];
    file.as_file().read_exact_at(&mut byte, 0x1235).expect("inside");
    assert_eq!(byte, [78]);
}

#[test]
fn a_region_is_unmapped_with_its_last_user() {
    let file = pages();
    let name = file.path().to_str().expect("a path in UTF-8").to_owned();
    let is_mapped = || std::fs::read_to_string("/proc/self/maps").expect("procfs").contains(&name);
    let pin = mapped(&file, INFO);
    let slice = pin.slice(0x1000, 1).expect("mapped");
    drop(pin);
    assert!(is_mapped());
    assert_eq!(slice.read::<u8>(0), 0);
    drop(slice);
    assert!(!is_mapped());
}

#[test]
fn numbers_that_make_no_sense_are_told() {
    let file = || pages().reopen().expect("it exists");
    let empty = RegionInfo { size: 0, ..INFO };
    assert_eq!(refusal(empty, file()), "the region at guest address 0x1000 has size 0");
    let (top, misaligned) = (u64::MAX - 0x1fff, RegionInfo { mmap_offset: 0x800, ..INFO });
    for wrapping in [
        RegionInfo { guest_addr: top, ..INFO },
        RegionInfo { user_addr: top, ..INFO },
        RegionInfo { mmap_offset: top, ..INFO },
        RegionInfo { size: u64::MAX, ..INFO },
    ] {
        let text = format!("the region {wrapping:x?} ends past the end of the address space");
        assert_eq!(refusal(wrapping, file()), text);
    }
    assert_eq!(refusal(misaligned, file()), "offset 0x800 into the file is not on a page boundary");
    assert!(Region::map(RegionInfo { guest_addr: top - 1, ..INFO }, file()).is_ok(), "the last that fits");
}

#[test]
fn a_region_longer_than_its_file_is_told() {
    let file = || pages().reopen().expect("it exists");
    let long = RegionInfo { size: 0x3001, ..INFO };
    assert_eq!(refusal(long, file()), "the region ends at 0x3001 in a file of 0x3000 bytes");
    let late = RegionInfo { mmap_offset: 0x2000, ..INFO };
    assert_eq!(refusal(late, file()), "the region ends at 0x4000 in a file of 0x3000 bytes");
    assert!(Region::map(RegionInfo { size: 0x3000, ..INFO }, file()).is_ok());
    assert!(Region::map(RegionInfo { size: 0x2fff, ..INFO }, file()).is_ok());
}

#[test]
fn an_fd_that_is_no_file_is_told() {
    let event = || eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd(2)");
    let (pipe, _writer) = std::io::pipe().expect("pipe(2)");
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().expect("socketpair(2)");
    let open = |path| File::open(path).expect("it exists");
    for (fd, kind) in [
        (OwnedFd::from(pipe), "pipe"),
        (socket.into(), "socket"),
        (open("/dev/null").into(), "character device"),
        (open("/tmp").into(), "directory"),
        (event(), "event fd or the like"),
    ] {
        assert_eq!(refusal(INFO, fd), format!("the fd is a {kind}, not a file in memory or on disk"));
    }
}

#[test]
fn what_the_kernel_refuses_is_told_with_its_reason() {
    let file = pages();
    let read_only = OpenOptions::new().read(true).open(file.path()).expect("it exists");
    let text = refusal(INFO, read_only);
    assert!(text.starts_with("cannot map the region at guest address 0x1000: "), "{text}");
    assert!(text.contains("Permission denied"), "{text}");
}

#[test]
fn what_vm_memory_has_mapped_is_taken_over() {
    let ranges = [(GuestAddress(0x1000), 0x1000), (GuestAddress(0x10_0000), 0x3000)];
    let theirs = GuestMemoryMmap::<()>::from_ranges(&ranges).expect("memory");
    let pin = MemPin::new(Arc::new(GuestMem::from_vm_memory(&theirs)));
    drop(theirs);
    let regions = pin.memory().regions().iter();
    let numbers: Vec<_> =
        regions.map(|region| (region.guest_addr(), region.user_addr(), region.size())).collect();
    assert_eq!(numbers, [(0x1000, 0x1000, 0x1000), (0x10_0000, 0x10_0000, 0x3000)]);
    let slice = pin.slice(0x10_2ffe, 2).expect("the last two bytes");
    slice.write(0, 0x1234_u16);
    assert_eq!(slice.read::<u16>(0), 0x1234);
}
