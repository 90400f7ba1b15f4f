//! A disk that is served, used for a moment: written, read, and what was read compared.

use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::client::{Client, Target};
use super::media::fill;
use super::statistics::Latencies;
use super::workload::{Medium, Op, Workload};

/// How long each workload is driven.
const TIME: Duration = Duration::from_millis(50);

/// Makes the file of a disk that [`drive`] can verify.
pub(crate) fn make_disk(path: &Path, bytes: u64) -> Result<()> {
    let mut file = std::fs::File::create(path).with_context(|| path.display().to_string())?;
    fill(&mut file, bytes)?;
    file.rewind()?;
    Ok(file.flush()?)
}

/// Reads and writes on the disk behind a socket, `bytes` long and made by [`make_disk`]. Returns how many requests were
/// done. `check` fails when there is no use in waiting any longer for the socket.
pub(crate) fn drive(socket: &Path, bytes: u64, mut check: impl FnMut() -> Result<()>) -> Result<u64> {
    let mut done = 0;
    for op in [Op::Read, Op::Mixed] {
        let workload = Workload::new(Medium::Cached, op, 8);
        let sockets: [PathBuf; 1] = [socket.into()];
        let mut client = Client::connect(&Target::Sockets(&sockets), &workload, bytes, &mut check)?;
        let mut latencies = Latencies::new();
        client.run(TIME, &mut latencies)?;
        if op == Op::Read {
            client.verify()?;
        }
        done += latencies.count();
    }
    Ok(done)
}
