//! Subjects that live in the test's own process: devices in the daemon of the crate `vhost-user-backend`.
//!
//! That daemon serves one connection in its life. A device that outlives its connections is had by making a new
//! daemon for each, on one listener that never closes.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use sluice_backend::adapter::{self, Adapter};
use sluice_backend::device::{Device, DeviceOptions};
use sluice_backend::workers::Workers;
use sluice_blk::disk::{Discard, DiskOptions};
use vhost::vhost_user::Listener;
use vhost_user_backend::{ShutdownHandle, VhostUserBackend, VhostUserDaemon, VringT};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

use super::Backend;
use crate::disk::Disk;
use crate::reference::{Backing, Reference};

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// A thread that serves one connection after the other.
pub(super) struct Daemon {
    socket: PathBuf,
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Control {
    stop: AtomicBool,
    connection: Mutex<Option<ShutdownHandle>>,
}

impl Daemon {
    /// Serves a disk with the reference device.
    pub(super) fn reference(disk: &Disk, socket: &Path) -> Self {
        let backing = Backing::open(disk);
        let spec = disk.spec.clone();
        Self::start(socket, move || {
            let device = Arc::new(Reference::new(backing.clone(), &spec));
            VhostUserDaemon::new("reference".into(), device, Memory::new(GuestMemoryMmap::new()))
                .expect("a daemon can be made")
        })
    }

    /// Serves a disk with the product's device, which may refuse it.
    pub(super) fn adapter(disk: &Disk, socket: &Path) -> Result<Self, String> {
        let device = Arc::new(product(disk)?);
        let workers = Workers::start(2).expect("threads can be started");
        Ok(Self::start(socket, move || -> VhostUserDaemon<Arc<Adapter>> {
            adapter::daemon("adapter", Arc::clone(&device), Arc::clone(&workers))
                .expect("a daemon can be made")
        }))
    }

    fn start<T>(socket: &Path, daemon: impl Fn() -> VhostUserDaemon<T> + Send + 'static) -> Self
    where
        T: VhostUserBackend<Bitmap = (), Vring: VringT<Memory> + Clone + Send + Sync> + Clone + 'static,
    {
        let mut listener = Listener::new(socket, true).expect("a socket can be bound in a new directory");
        let control = Arc::new(Control::default());
        let shared = Arc::clone(&control);
        let thread = std::thread::spawn(move || {
            while !shared.stop.load(Ordering::Acquire) {
                serve_one(&mut listener, daemon(), &shared);
            }
        });
        Daemon { socket: socket.to_path_buf(), control, thread: Some(thread) }
    }
}

/// Waits for a connection and serves it to its end.
fn serve_one<T>(listener: &mut Listener, mut daemon: VhostUserDaemon<T>, control: &Control)
where
    T: VhostUserBackend<Bitmap = (), Vring: VringT<Memory> + Clone + Send + Sync> + Clone + 'static,
{
    daemon.start(listener).expect("a connection can be accepted");
    *control.connection.lock().unwrap_or_else(PoisonError::into_inner) = daemon.shutdown_handle();
    // How a connection ended is the front-end's business: it sees the same from its side.
    let _ = daemon.wait();
}

/// The product's device on a disk.
fn product(disk: &Disk) -> Result<Device, String> {
    let spec = &disk.spec;
    let (cache, clears) = (spec.cache.unwrap_or("writeback"), &spec.clears);
    let options = DiskOptions {
        read_only: spec.read_only,
        cache: Some(cache.parse().expect("a test knows the cache modes")),
        logical_block_size: spec.logical_block,
        discard: clears.discard.map_or(Discard::Unmap, |word| word.parse().expect("a test knows the words")),
        discard_granularity: clears.discard_granularity,
        discard_alignment: clears.discard_alignment,
        write_zeroes: clears.write_zeroes.unwrap_or(true),
        ..DiskOptions::new(disk.path())
    };
    let disk = sluice_blk::disk::Disk::open(&options).map_err(|e| e.to_string())?;
    let (num_queues, queue_size, serial) = (spec.queues, spec.queue_size, spec.serial.clone());
    let options = DeviceOptions { num_queues, queue_size, serial, memory_budget: None, in_order: false };
    Ok(Device::new(disk, &options).expect("a test's options are possible"))
}

impl Backend for Daemon {
    fn ask_to_end(&mut self) {
        panic!("a device in this process ends when it is dropped");
    }

    fn kill(&mut self) {
        panic!("a device in this process cannot be killed");
    }

    fn fault(&mut self) -> Option<String> {
        let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
        ended.then(|| "the thread of the device has ended".to_owned())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.control.stop.store(true, Ordering::Release);
        if let Some(handle) = self.control.connection.lock().unwrap_or_else(PoisonError::into_inner).take() {
            handle.shutdown();
        }
        // The thread may be waiting for a connection: give it one.
        let wake = UnixStream::connect(&self.socket);
        drop(wake);
        let ended = self.thread.take().map(JoinHandle::join);
        if let Some(Err(_)) = ended
            && !std::thread::panicking()
        {
            panic!("the device panicked");
        }
    }
}
