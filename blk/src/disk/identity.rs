//! Who a disk is when nobody says: a serial number from its path.
//!
//! The same file gets the same number after a restart, an upgrade and on another host with the same path; different
//! paths get different ones (a hash of 52 bits). Peers give all disks the same serial, and udev's links by id then
//! point to any of them.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The serial number of the disk at `path`, which should be canonical: 20 bytes of ASCII. Of a disk without a file it can
/// be that of its socket.
#[must_use]
pub fn serial_of(path: &Path) -> String {
    // FNV-1a: stable for ever, unlike std's hasher.
    let hash = path.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("sluice-{:013x}", hash >> 12)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_has_twenty_bytes_and_depends_on_the_path() {
        let (a, b) = (serial_of(Path::new("/srv/a.img")), serial_of(Path::new("/srv/b.img")));
        assert_eq!(a.len(), 20);
        assert_ne!(a, b);
        assert_eq!(a, serial_of(Path::new("/srv/a.img")));
    }
}
