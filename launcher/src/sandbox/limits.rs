//! Limits of the process (setrlimit(2)): as many open files as it needs, and no core file.

use rustix::io;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Less is never set: it would protect nobody.
const FILES_MIN: u64 = 2048;

/// Lets the process have `needed` files open at a time, and not many more. Says so where the host does not let it: then
/// front-ends with an uncommon number of memory regions may be refused.
pub(crate) fn set_files(needed: usize) -> io::Result<()> {
    let hard = getrlimit(Resource::Nofile).maximum;
    let needed = u64::try_from(needed).unwrap_or(u64::MAX);
    let limit = hard.unwrap_or(u64::MAX).min(needed.max(FILES_MIN));
    if limit < needed {
        log::warn!(
            "{needed} files may have to be open at a time, {limit} can be: raise the limit (LimitNOFILE=)"
        );
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) })
}

/// A core file would have the guests' memory in it, and be written with the rights of the process.
pub(super) fn forbid_core() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
}
