//! The files that are read and written: made when they are first needed, gone at the end.
//!
//! Every sector starts with a stamp of its position, so that a reader knows whether it got what it asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::fs::{Advice, fadvise, fdatasync};
use tempfile::TempDir;

use super::pattern::{Random, SECTOR, stamp};
use super::workload::Medium;

/// How much is made and read at a time.
const CHUNK: usize = 1 << 20;
/// How much is written at a time.
const PAGE: usize = 4096;

/// The places of all media, and what is there already.
pub(super) struct Media {
    // Detached before its file goes.
    loop_device: Option<LoopDevice>,
    directory: TempDir,
    tmpfs: Option<TempDir>,
    bytes: u64,
    made: BTreeMap<Medium, PathBuf>,
}

/// A block device on a file.
struct LoopDevice(PathBuf);

impl Media {
    /// Media of so many bytes below these directories; without `tmpfs` where that is not possible.
    pub(super) fn new(directory: &Path, tmpfs: &Path, bytes: u64) -> Result<Self> {
        let below = |parent: &Path| tempfile::Builder::new().prefix("sluice-bench.").tempdir_in(parent);
        let made = below(directory).with_context(|| format!("--dir={}", directory.display()))?;
        Ok(Self {
            loop_device: None,
            directory: made,
            tmpfs: below(tmpfs).ok(),
            bytes,
            made: BTreeMap::new(),
        })
    }

    /// The size of each.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A directory for what else is needed.
    pub(super) fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// The file or device of a medium, made if it is not there; none for a medium without a file.
    pub(super) fn prepare(&mut self, medium: Medium) -> Result<Option<PathBuf>> {
        if matches!(medium, Medium::Null | Medium::Ram) {
            return Ok(None);
        }
        if !self.made.contains_key(&medium) {
            let path = self.make(medium).with_context(|| format!("cannot make the medium {medium}"))?;
            self.made.insert(medium, path);
        }
        Ok(Some(self.made[&medium].clone()))
    }

    /// Makes sure that what should be in the page cache is there.
    pub(super) fn warm(&mut self) -> Result<()> {
        match self.prepare(Medium::Cached)? {
            Some(path) => read_all(&path),
            None => Ok(()),
        }
    }

    /// Waits until what was written is where it belongs, and the medium is as it was, so that the next measurement has
    /// the disk for itself.
    pub(super) fn settle(&self, medium: Medium) -> Result<()> {
        let Some(path) = self.made.get(&medium) else { return Ok(()) };
        let settle = || -> std::io::Result<()> {
            let file = File::open(path)?;
            fdatasync(&file)?;
            if medium.is_direct() {
                // Somebody may have used the page cache after all.
                fadvise(&file, 0, None, Advice::DontNeed)?;
            }
            Ok(())
        };
        settle().with_context(|| path.display().to_string())
    }

    fn make(&mut self, medium: Medium) -> Result<PathBuf> {
        let directory = match (medium, &self.tmpfs) {
            (Medium::Tmpfs, Some(tmpfs)) => tmpfs.path(),
            (Medium::Tmpfs, None) => bail!("there is no tmpfs to write to: see --tmpfs"),
            _ => self.directory.path(),
        };
        let path = directory.join(medium.to_string());
        let mut file = File::create_new(&path)?;
        fill(&mut file, self.bytes)?;
        fdatasync(&file)?;
        if medium.is_direct() {
            // Pages in the cache would be in the way of direct I/O.
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
        if medium == Medium::Disk4k {
            let device = LoopDevice::attach(&path)?;
            let path = device.0.clone();
            self.loop_device = Some(device);
            return Ok(path);
        }
        Ok(path)
    }
}

impl LoopDevice {
    fn attach(file: &Path) -> Result<Self> {
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show", "--sector-size=4096", "--direct-io=on"]).arg(file);
        let output = losetup.output().context("cannot start losetup")?;
        if !output.status.success() {
            bail!("no loop device: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(Self(String::from_utf8_lossy(&output.stdout).trim().into()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.0).status();
        if !detached.is_ok_and(|status| status.success()) {
            eprintln!("bench: {} is left behind", self.0.display());
        }
    }
}

/// Writes so many bytes: a stamp at the start of each sector, and what looks random behind it.
///
/// It is written as guests write, a page at a time. Large writes leave large folios in the page cache, in which ext4's
/// small writes take ten times as long: that would be all that is measured.
pub(super) fn fill(file: &mut File, bytes: u64) -> Result<()> {
    let mut random = Random::new(0);
    let mut chunk = vec![0; CHUNK];
    for word in chunk.chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
    let sector = usize::try_from(SECTOR)?;
    let mut position = 0;
    while position < bytes {
        for (sector, at) in chunk.chunks_exact_mut(sector).zip((position..).step_by(sector)) {
            sector[..8].copy_from_slice(&stamp(at).to_le_bytes());
        }
        let len = usize::try_from(bytes - position).unwrap_or(CHUNK).min(CHUNK);
        for page in chunk[..len].chunks(PAGE) {
            file.write_all(page)?;
        }
        position += u64::try_from(len)?;
    }
    Ok(())
}

/// Reads a file into the page cache.
fn read_all(path: &Path) -> Result<()> {
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    let mut chunk = vec![0; CHUNK];
    while file.read(&mut chunk).with_context(|| path.display().to_string())? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::pattern::belongs;
    use super::*;

    const BYTES: u64 = (1 << 20) + 4096;

    #[test]
    fn every_sector_is_stamped() {
        let place = tempfile::tempdir().unwrap();
        let mut media = Media::new(place.path(), place.path(), BYTES).unwrap();
        media.warm().unwrap();
        for medium in [Medium::Cached, Medium::Tmpfs, Medium::Disk] {
            let path = media.prepare(medium).unwrap().unwrap();
            let data = std::fs::read(path).unwrap();
            assert_eq!(data.len(), 1_052_672);
            for (index, sector) in data.chunks(512).enumerate() {
                let word = u64::from_le_bytes(sector[..8].try_into().unwrap());
                assert!(belongs(word, index as u64 * 512), "{medium}: sector {index}");
            }
            media.settle(medium).unwrap();
        }
        drop(media);
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0, "something is left behind");
    }

    #[test]
    fn a_medium_without_a_file_needs_none() {
        let place = tempfile::tempdir().unwrap();
        let mut media = Media::new(place.path(), Path::new("/no/tmpfs"), BYTES).unwrap();
        assert_eq!(media.prepare(Medium::Null).unwrap(), None);
        let error = format!("{:#}", media.prepare(Medium::Tmpfs).unwrap_err());
        assert_eq!(error, "cannot make the medium tmpfs: there is no tmpfs to write to: see --tmpfs");
    }
}
