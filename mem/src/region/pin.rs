//! Whether the kernel can hold on to (pin) the pages of a mapping.
//!
//! Direct I/O on memory that cannot be pinned fails with EFAULT. Whether it can is a property of the mapping, so it is
//! found out once: vmsplice(2) makes the kernel hold on to a page in just the way direct I/O does, and moves no data.
#![expect(unsafe_code, reason = "gives the address of a page to vmsplice")]

use std::os::fd::AsRawFd;

/// Whether the page at `page`, the first of a mapping, can be pinned. If that cannot be found out, it is taken for one
/// that cannot: then it is bounced, which always works.
pub(super) fn is_pinnable(page: *mut u8) -> bool {
    let Ok((_reader, writer)) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC) else {
        return false;
    };
    let piece = libc::iovec { iov_base: page.cast(), iov_len: 1 };
    // SAFETY: `piece` is one iovec, of a byte that is mapped. The pipe refers to the page until it is closed at the end
    // of this function; the byte is never read from it.
    let spliced = unsafe { libc::vmsplice(writer.as_raw_fd(), &raw const piece, 1, libc::SPLICE_F_NONBLOCK) };
    spliced == 1
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::FromRawFd;

    use crate::region::{Region, RegionInfo};

    fn map(file: File) -> Region {
        file.set_len(8192).expect("an empty file");
        Region::map(RegionInfo { guest_addr: 0, size: 8192, user_addr: 0, mmap_offset: 0 }, file)
            .expect("a region")
    }

    #[test]
    fn files_in_memory_and_on_disk_can_be_pinned() {
        let memory = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd");
        assert!(map(File::from(memory)).is_pinnable());
        assert!(map(tempfile::tempfile().expect("a file")).is_pinnable());
    }

    #[test]
    fn secret_memory_cannot_be_pinned() {
        // SAFETY: the system call takes a number and returns an fd or an error.
        let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
        if fd < 0 {
            eprintln!("skipped: no secret memory on this kernel ({})", std::io::Error::last_os_error());
            return;
        }
        // SAFETY: an fd that was just made and that nobody else has.
        let file = unsafe { File::from_raw_fd(i32::try_from(fd).expect("an fd is small")) };
        assert!(!map(file).is_pinnable());
    }
}
