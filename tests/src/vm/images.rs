//! Where the guests' images are, and who builds them.

use std::path::{Path, PathBuf};

/// The directory in which the guests' build scripts leave their images.
#[derive(Clone, Debug)]
pub(super) struct Images(PathBuf);

impl Images {
    /// The project's own.
    pub(super) fn of_the_project() -> Self {
        Images(root().join("guests/.cache"))
    }

    /// Those of a directory.
    #[cfg(test)]
    pub(super) fn in_dir(dir: &Path) -> Self {
        Images(dir.to_path_buf())
    }

    /// The bare-metal guest.
    pub(super) fn bare(&self) -> PathBuf {
        self.built("bare/bare.elf", "guests/bare/build.sh")
    }

    /// The Linux guest's kernel.
    pub(super) fn vmlinux(&self) -> PathBuf {
        self.built("linux/vmlinux", "guests/linux/build.sh")
    }

    /// The Linux guest's initramfs.
    pub(super) fn initramfs(&self) -> PathBuf {
        self.built("linux/initramfs.cpio.zst", "guests/linux/build.sh")
    }

    fn built(&self, path: &str, script: &str) -> PathBuf {
        let path = self.0.join(path);
        assert!(path.exists(), "{} is missing: build it with `{script}`", path.display());
        path
    }
}

/// The kernel command line that Linux needs on every board.
pub(super) fn linux_cmdline() -> String {
    let path = root().join("guests/linux/cmdline");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().to_owned()
}

fn root() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("this crate is in the project's folder")
}
