//! What the host offers to a daemon. Told, not judged: sluice makes do with less.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use sluice_blk::disk::{Disk, DiskOptions, Medium};
use sluice_blk::engine::ring::DormantRing;

/// What there is, and how.
pub(super) fn findings() -> Vec<(&'static str, String)> {
    vec![
        ("kernel", rustix::system::uname().release().to_string_lossy().into_owned()),
        ("io_uring", io_uring()),
        ("seccomp", seccomp()),
        ("direct I/O in the current directory", direct_io()),
        ("huge pages", huge_pages()),
        ("open files", limit(Resource::Nofile)),
        ("locked memory", limit(Resource::Memlock)),
        ("KVM", if Path::new("/dev/kvm").exists() { "/dev/kvm is there" } else { "no /dev/kvm" }.to_owned()),
    ]
}

fn io_uring() -> String {
    let of_ring = match DormantRing::new(8) {
        Ok(_) => "restricted to operations".into(),
        Err(error) => format!("none ({error}): I/O will block threads"),
    };
    match read("/proc/sys/kernel/io_uring_disabled").as_deref() {
        Some("1") => format!("{of_ring}; for members of kernel.io_uring_group only"),
        Some("2") => "switched off (kernel.io_uring_disabled)".into(),
        _ => of_ring,
    }
}

fn seccomp() -> String {
    read("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_else(|| "none".into())
}

/// What the file system of this directory says of a file on it.
fn direct_io() -> String {
    let file = match tempfile::NamedTempFile::new_in(".") {
        Ok(file) => file,
        Err(error) => return format!("cannot tell: {error}"),
    };
    let disk = file
        .as_file()
        .set_len(1 << 20)
        .map_err(anyhow::Error::from)
        .and_then(|()| Ok(Disk::open(&DiskOptions::on(Medium::File(file.path().into())))?));
    match disk {
        Ok(disk) if disk.cache().is_direct() => {
            let limits = disk.limits();
            format!("memory at multiples of {}, blocks of {}", limits.dma_alignment, limits.disk_block_size)
        }
        Ok(_) => "none: the page cache is used".into(),
        Err(error) => format!("cannot tell: {error:#}"),
    }
}

fn huge_pages() -> String {
    let memory = read("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(name));
        line.map_or_else(|| "?".to_owned(), |value| value.trim().to_owned())
    };
    format!("{} of {} reserved", field("HugePages_Total:"), field("Hugepagesize:"))
}

fn limit(resource: Resource) -> String {
    let limit = getrlimit(resource);
    let words = |value: Option<u64>| value.map_or_else(|| "unlimited".to_owned(), |value| value.to_string());
    format!("{}, up to {}", words(limit.current), words(limit.maximum))
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
