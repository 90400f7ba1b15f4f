//! Huge pages for a test, taken from the host and given back.
//!
//! How many there are is one number of the host's, which tests in many processes change at the same time: each adds what
//! it needs and takes away as much, under a lock on that very number. What is still in use then is given back by the kernel
//! when it is free.
//!
//! A test that is killed cannot give anything back: then the number stays as it is until somebody writes another one.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// The number of huge pages of the default size. Asking for another size is not worth it.
const COUNT: &str = "/proc/sys/vm/nr_hugepages";
/// The size that the tests are written for.
pub const BYTES: u64 = 2 << 20;

/// Pages that the host has set aside, until dropped.
#[derive(Debug)]
pub struct HugePages {
    count: u64,
}

impl HugePages {
    /// Sets so many pages of 2 MiB aside.
    ///
    /// # Errors
    /// Why this host has none: no permission, another size, or too little memory in one piece.
    pub fn set_aside(count: u64) -> Result<Self, String> {
        let sizes = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB");
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let is_default =
            meminfo.lines().any(|line| line.starts_with("Hugepagesize:") && line.contains(" 2048 kB"));
        if !sizes.exists() || !is_default {
            return Err("huge pages of 2 MiB are not the default here".into());
        }
        let mut got = 0;
        change(|before| before + count, |before, after| got = after.saturating_sub(before))?;
        let pages = HugePages { count: got };
        if got < count { Err(format!("only {got} of {count} huge pages are to be had")) } else { Ok(pages) }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Err(why) = change(|before| before.saturating_sub(self.count), |_, _| {}) {
            eprintln!("{} huge pages are left behind: {why}", self.count);
        }
    }
}

/// Changes the number, while nobody else does, and tells what it was and what it is.
fn change(to: impl Fn(u64) -> u64, tell: impl FnOnce(u64, u64)) -> Result<(), String> {
    let says = |e: std::io::Error| format!("{COUNT}: {e}");
    let mut file = File::options().read(true).write(true).open(COUNT).map_err(says)?;
    flock(&file, FlockOperation::LockExclusive).map_err(|e| says(e.into()))?;
    let before = number(&mut file).map_err(says)?;
    file.rewind().map_err(says)?;
    file.write_all(to(before).to_string().as_bytes()).map_err(says)?;
    tell(before, number(&mut file).map_err(says)?);
    Ok(())
}

fn number(file: &mut File) -> std::io::Result<u64> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    text.trim().parse().map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_take_pages_at_the_same_time_give_all_of_them_back() {
        let Ok(held) = HugePages::set_aside(1) else { return eprintln!("skipped: no huge pages here") };
        let take = || drop(HugePages::set_aside(1).unwrap());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10).for_each(|_| take()));
            }
        });
        let now = number(&mut File::open(COUNT).unwrap()).unwrap();
        assert!(now >= held.count, "{now}: what one gives back is not what another holds");
    }
}
