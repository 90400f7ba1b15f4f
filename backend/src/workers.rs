//! The workers of a daemon: a fixed number of threads that share the rings of all disks.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use crate::reactor::Reactor;
use crate::service::{ServiceSetup, StartError};
use crate::worker::{Command, Mailbox, RingId, Stopped, Worker};

/// A daemon's worker threads. They end when this is dropped, which must not be before all rings are stopped.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<Thread>,
    /// Which worker gets the next ring.
    next: AtomicUsize,
}

#[derive(Debug)]
struct Thread {
    mailbox: Arc<Mailbox>,
    handle: Option<JoinHandle<()>>,
}

impl Workers {
    /// Starts `count` threads, at least one.
    ///
    /// # Errors
    /// When the host has no thread or no io_uring and no epoll for one.
    pub fn start(count: usize) -> io::Result<Arc<Self>> {
        Self::start_on(count, Reactor::new)
    }

    /// Starts `count` threads, at least one, each on a reactor of its own.
    ///
    /// # Errors
    /// When the host has no thread or no reactor for one.
    pub fn start_on(count: usize, reactor: fn() -> io::Result<Reactor>) -> io::Result<Arc<Self>> {
        let mut workers = Self { threads: Vec::new(), next: AtomicUsize::new(0) };
        for index in 0..count.max(1) {
            workers.threads.push(Thread::start(index, reactor)?);
        }
        Ok(Arc::new(workers))
    }

    /// Serves a ring, on the thread whose turn it is. Waits until it is served.
    ///
    /// # Errors
    /// What [`crate::service::Service::start`] says.
    pub fn serve(&self, setup: ServiceSetup) -> Result<ServedRing, StartError> {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.threads.len();
        let mailbox = Arc::clone(&self.threads[index].mailbox);
        let (reply, answer) = channel();
        mailbox.send(Command::Start(Box::new(setup), reply));
        let gone = |_| StartError::Host(io::Error::other("the worker thread is gone"));
        let id = answer.recv().map_err(gone)??;
        Ok(ServedRing { mailbox, id })
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for thread in &mut self.threads {
            thread.mailbox.send(Command::Exit);
            if let Some(handle) = thread.handle.take() {
                let _ = handle.join();
            }
        }
    }
}

impl Thread {
    fn start(index: usize, reactor: fn() -> io::Result<Reactor>) -> io::Result<Self> {
        let mailbox = Mailbox::new()?;
        let (reply, answer) = channel();
        let own = Arc::clone(&mailbox);
        let handle = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            // The ring has to be made by the thread that uses it.
            let worker = match reactor().and_then(|reactor| Worker::new(own, reactor)) {
                Ok(worker) => worker,
                Err(error) => return drop(reply.send(Err(error))),
            };
            let _ = reply.send(Ok(()));
            if let Err(error) = worker.run() {
                // Guests' I/O may be in flight in a ring that cannot be asked any more.
                log::error!("a worker cannot go on: {error}");
                std::process::abort();
            }
        })?;
        answer.recv().map_err(|_| io::Error::other("a worker thread ended at once"))??;
        Ok(Self { mailbox, handle: Some(handle) })
    }
}

/// A ring that a worker serves. Stop it before it is dropped.
#[derive(Debug)]
pub struct ServedRing {
    mailbox: Arc<Mailbox>,
    id: RingId,
}

impl ServedRing {
    /// Serves the ring no more. Waits until nothing of it is in flight; then neither memory nor fds of the guest are
    /// touched any more.
    #[must_use]
    pub fn stop(self) -> Stopped {
        let (reply, answer) = channel();
        self.mailbox.send(Command::Stop(self.id, reply));
        // Workers live as long as there are rings.
        answer.recv().unwrap_or_default()
    }

    /// Calls the driver by `call` from now on, and once at once. Waits until the old fd is not used any more.
    pub fn set_call(&self, call: Option<Arc<File>>) {
        let (reply, answer) = channel();
        self.mailbox.send(Command::SetCall(self.id, call, reply));
        let _ = answer.recv();
    }
}

#[cfg(test)]
mod tests;
