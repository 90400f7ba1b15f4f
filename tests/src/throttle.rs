//! A block device that is slow for some processes: a control group with a limit to its writes. What such a process has
//! submitted waits in the kernel, also when the process is dead.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where systems have the controller that limits I/O (cgroups version 1).
const BLKIO: &str = "/sys/fs/cgroup/blkio";

/// A control group, until this is dropped; its processes must be gone by then.
#[derive(Debug)]
pub struct Throttle(PathBuf);

impl Throttle {
    /// At most `iops` writes a second to the block device at `path`.
    ///
    /// # Errors
    /// Why there is no such thing here.
    pub fn new(path: &Path, iops: u32) -> Result<Self, String> {
        let device = std::fs::metadata(path).map_err(|e| e.to_string())?.rdev();
        let group = Path::new(BLKIO).join(format!("sluice-test-{}-{device}", std::process::id()));
        std::fs::create_dir(&group).map_err(|e| format!("{}: {e}", group.display()))?;
        let throttle = Self(group);
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        throttle.set("blkio.throttle.write_iops_device", &format!("{major}:{minor} {iops}"))?;
        Ok(throttle)
    }

    /// The process is one of these from now on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add(&self, pid: u32) -> Result<(), String> {
        self.set("cgroup.procs", &pid.to_string())
    }

    fn set(&self, name: &str, value: &str) -> Result<(), String> {
        std::fs::write(self.0.join(name), value).map_err(|e| format!("{name}: {e}"))
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // A process is in its group until the last of it is gone, which takes a moment.
        for _ in 0..1000 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        eprintln!("{} stays", self.0.display());
    }
}
