//! The reference device as a program: one disk on a socket, the stock rust-vmm way, for whoever wants to compare.
//!
//! `reference-device --socket-path=PATH --blk-file=PATH [--num-queues=N] [--queue-size=N] [--read-only]`. It serves
//! one connection after the other until it is killed. Wrong arguments, and a file or socket that does not work, end it
//! with a line that says so.

use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::Arc;

use sluice_tests::disk::DiskSpec;
use sluice_tests::reference::{Backing, Reference};
use vhost::vhost_user::Listener;
use vhost_user_backend::VhostUserDaemon;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// What the command line asks for.
struct Arguments {
    socket: String,
    file: String,
    spec: DiskSpec,
}

fn main() -> ExitCode {
    match arguments(std::env::args().skip(1)).and_then(|arguments| serve(&arguments)) {
        Ok(never) => match never {},
        Err(why) => {
            eprintln!("reference-device: {why}");
            ExitCode::FAILURE
        }
    }
}

fn arguments(words: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut spec = DiskSpec { serial: None, ..DiskSpec::default() };
    let (mut socket, mut file) = (None, None);
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((&word, "on"));
        let number = || value.parse::<u16>().map_err(|e| format!("{word}: {e}"));
        match name {
            "--socket-path" => socket = Some(value.to_owned()),
            "--blk-file" => file = Some(value.to_owned()),
            "--num-queues" => spec.queues = number()?,
            "--queue-size" => spec.queue_size = number()?,
            "--read-only" => spec.read_only = value == "on",
            _ => return Err(format!("{word}: there is no such option")),
        }
    }
    let socket = socket.ok_or("--socket-path is missing")?;
    let file = file.ok_or("--blk-file is missing")?;
    let bytes = std::fs::metadata(&file).map_err(|e| format!("{file}: {e}"))?.len();
    spec.bytes = usize::try_from(bytes).map_err(|e| format!("{file}: {e}"))?;
    Ok(Arguments { socket, file, spec })
}

/// Serves connections; returns only when that does not work.
fn serve(Arguments { socket, file, spec }: &Arguments) -> Result<Infallible, String> {
    let backing = Backing::open_at(file.as_ref(), spec).map_err(|e| format!("{file}: {e}"))?;
    let mut listener = Listener::new(socket, true).map_err(|e| format!("{socket}: {e}"))?;
    loop {
        let device = Arc::new(Reference::new(backing.clone(), spec));
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut daemon = VhostUserDaemon::new("reference".into(), device, memory)
            .map_err(|e| format!("cannot make a daemon: {e}"))?;
        daemon.start(&mut listener).map_err(|e| format!("{socket}: {e}"))?;
        // How a connection ended is the front-end's business: it sees the same from its side.
        let _ = daemon.wait();
    }
}
