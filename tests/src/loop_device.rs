//! A block device made of a file, for what block devices answer differently from files.
//!
//! Loop devices need root and a kernel that has them; where there are none, the tests that want one say so and pass.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A loop device, detached when dropped.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    /// Makes a block device of a file, with blocks of so many bytes.
    ///
    /// # Errors
    /// What losetup says.
    pub fn attach(file: &Path, block: u32) -> Result<Self, String> {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show", "--sector-size", &block.to_string()]).arg(file);
        let output = losetup.output().map_err(|e| format!("losetup does not start: {e}"))?;
        let says = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            Ok(LoopDevice { path: says(&output.stdout).into() })
        } else {
            Err(says(&output.stderr))
        }
    }

    /// The device node.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.path).status();
        if !detached.is_ok_and(|status| status.success()) {
            eprintln!("{} is left behind", self.path.display());
        }
    }
}
