//! How worn a disk is, as far as it knows: eMMC devices do, and Linux shows it in sysfs.
//!
//! ```text
//! /sys/dev/block/MAJOR:MINOR/device/life_time      0x01 0x02    estimates for the two kinds of cells
//! /sys/dev/block/MAJOR:MINOR/device/pre_eol_info   0x01         how many spare blocks are used up
//! ```
//!
//! virtio took its GET_LIFETIME from there (virtio 1.3, 5.2.6: `struct virtio_blk_lifetime`), numbers and all.

use std::path::Path;

/// The answer to GET_LIFETIME for the disk that sysfs shows in `device`; `None` when it does not know.
pub(super) fn lifetime(device: &Path) -> Option<[u8; 6]> {
    let numbers = |name: &str| {
        let text = std::fs::read_to_string(device.join("device").join(name)).ok()?;
        let parse = |word: &str| u16::from_str_radix(word.trim_start_matches("0x"), 16).ok();
        text.split_whitespace().map(parse).collect::<Option<Vec<u16>>>()
    };
    let [spare] = numbers("pre_eol_info")?[..] else { return None };
    let [cells_a, cells_b] = numbers("life_time")?[..] else { return None };
    let [[a, b], [c, d], [e, f]] = [spare, cells_a, cells_b].map(u16::to_le_bytes);
    Some([a, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(files: &[(&str, &str)]) -> tempfile::TempDir {
        let device = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(device.path().join("device")).expect("it is empty");
        for (name, text) in files {
            std::fs::write(device.path().join("device").join(name), text).expect("room");
        }
        device
    }

    #[test]
    fn what_sysfs_shows_is_what_virtio_answers() {
        let mmc = device(&[("life_time", "0x01 0x0b\n"), ("pre_eol_info", "0x02\n")]);
        assert_eq!(lifetime(mmc.path()), Some([2, 0, 1, 0, 11, 0]));
    }

    #[test]
    fn a_disk_that_does_not_know_says_nothing() {
        for files in [&[][..], &[("life_time", "0x01 0x02")], &[("life_time", "?"), ("pre_eol_info", "0x01")]]
        {
            assert_eq!(lifetime(device(files).path()), None, "{files:?}");
        }
    }
}
