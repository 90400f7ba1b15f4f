//! A block device over a file, where whoever runs the tests may make one.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device, detached when dropped.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// A device over `file` with blocks of `block` bytes. `None`, and a word about it, where that cannot be had.
    pub(crate) fn over(file: &Path, block: u32) -> Option<Self> {
        let block = block.to_string();
        let made =
            Command::new("losetup").args(["--find", "--show", "--sector-size", &block]).arg(file).output();
        let told = match made {
            Ok(output) if output.status.success() => {
                let path = String::from_utf8(output.stdout).expect("a path in /dev");
                return Some(Self { path: PathBuf::from(path.trim()) });
            }
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        eprintln!("SKIPPED: block devices are not tested, as there is no loop device: {}", told.trim());
        None
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.path).status();
        assert!(detached.is_ok_and(|status| status.success()), "{} stays", self.path.display());
    }
}
