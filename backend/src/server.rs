//! A listening socket and whoever is connected to it: one device, one front-end at a time, for as long as the daemon
//! serves it.
//!
//! The listening socket never goes away in between. A front-end that connects while another one is served is closed at
//! once. A disconnect stops the rings and waits for their I/O; then the next front-end is served.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, recv};
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{BackendReqHandler, Error};

use crate::device::Device;
use crate::event::Event;
use crate::session::Session;
use crate::workers::Workers;

/// Where front-ends come from.
#[derive(Debug)]
pub enum Socket {
    /// They connect, one after another.
    Listener(UnixListener),
    /// One is connected already; the server ends when it leaves.
    Connected(UnixStream),
}

/// A device that is being served. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    stop: Arc<Event>,
    ended: Arc<Event>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `device` on a thread of its own. `name` is what the log calls it.
    ///
    /// # Errors
    /// When the host has no thread or no event fd.
    pub fn start(name: &str, device: Arc<Device>, workers: Arc<Workers>, socket: Socket) -> io::Result<Self> {
        let (stop, ended) = (Arc::new(Event::new()?), Arc::new(Event::new()?));
        let serving = Serving { name: name.to_owned(), device, workers, stop: Arc::clone(&stop) };
        let end = Arc::clone(&ended);
        // Linux cuts names of threads at 15 bytes.
        let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
            if let Err(error) = serving.run(&socket) {
                log::error!("{}: cannot be served any more: {error}", serving.name);
            }
            end.notify();
        })?;
        Ok(Self { stop, ended, thread: Some(thread) })
    }

    /// Becomes readable when the server has ended by itself: a connected front-end has left, or the host failed.
    #[must_use]
    pub fn ended(&self) -> &Event {
        &self.ended
    }

    /// Stops serving: waits for the I/O in flight, then closes the connection.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.notify();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Why a connection is served no more.
enum End {
    /// The front-end has closed it.
    Left,
    /// It was to be closed, for a reason.
    Closed(Error),
    /// The daemon stops.
    Stopped,
}

struct Serving {
    name: String,
    device: Arc<Device>,
    workers: Arc<Workers>,
    stop: Arc<Event>,
}

impl Serving {
    /// How long a message may take from its first byte to its last, and an answer until it is taken.
    const MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

    fn run(&self, socket: &Socket) -> io::Result<()> {
        match socket {
            Socket::Connected(stream) => self.serve(stream.try_clone()?, None).map(|_| ()),
            Socket::Listener(listener) => {
                listener.set_nonblocking(true)?;
                while self.wait(&[listener.as_fd()])?.is_some() {
                    let Some(stream) = accept(listener)? else { continue };
                    if matches!(self.serve(stream, Some(listener))?, End::Stopped) {
                        break;
                    }
                }
                Ok(())
            }
        }
    }

    /// Serves one connection to its end, and refuses others meanwhile.
    fn serve(&self, stream: UnixStream, listener: Option<&UnixListener>) -> io::Result<End> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Self::MESSAGE_TIMEOUT))?;
        stream.set_write_timeout(Some(Self::MESSAGE_TIMEOUT))?;
        log::info!("{}: a front-end has connected", self.name);
        let session = Session::new(&self.name, Arc::clone(&self.device), Arc::clone(&self.workers));
        let session = Arc::new(Mutex::new(session));
        let mut handler = BackendReqHandler::from_stream(stream.try_clone()?, Arc::clone(&session));
        let end = loop {
            let mut fds = vec![stream.as_fd()];
            fds.extend(listener.map(AsFd::as_fd));
            match self.wait(&fds)? {
                None => break End::Stopped,
                Some(0) => {
                    if let Some(end) = self.handle(&mut handler, &stream) {
                        break end;
                    }
                }
                // The served one may have left just before the other one came: then the other one is next, not second.
                Some(_) if has_something(&stream)? => {}
                Some(_) => self.refuse(listener)?,
            }
        };
        // Rings are stopped while the connection is still open: a front-end that sees it closed may reuse its memory.
        drop(handler);
        drop(session);
        self.device.config().disconnect();
        match &end {
            End::Left => log::info!("{}: the front-end has left", self.name),
            End::Closed(error) => log::warn!("{}: connection closed: {error}", self.name),
            End::Stopped => log::info!("{}: stopped", self.name),
        }
        Ok(end)
    }

    /// Handles one message.
    fn handle(&self, handler: &mut BackendReqHandler<Mutex<Session>>, stream: &UnixStream) -> Option<End> {
        let Some(needs_reply) = peek_needs_reply(stream) else { return Some(End::Left) };
        match handler.handle_request() {
            Ok(()) => None,
            // The front-end has been told.
            Err(Error::ReqHandlerError(error)) if needs_reply => {
                log::warn!("{}: refused: {}", self.name, chain(&error));
                None
            }
            Err(Error::Disconnected | Error::PartialMessage | Error::SocketBroken(_)) => Some(End::Left),
            Err(error) => Some(End::Closed(error)),
        }
    }

    /// The first of `fds` that has something; `None` when the daemon stops.
    fn wait(&self, fds: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<Option<usize>> {
        let mut polled = vec![PollFd::new(&*self.stop, PollFlags::IN)];
        polled.extend(fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)));
        loop {
            match poll(&mut polled, None) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let first = polled.iter().position(|fd| !fd.revents().is_empty());
        Ok(first.and_then(|index| index.checked_sub(1)))
    }

    fn refuse(&self, listener: Option<&UnixListener>) -> io::Result<()> {
        if let Some(listener) = listener
            && accept(listener)?.is_some()
        {
            log::warn!("{}: a second front-end was refused: one is connected", self.name);
        }
        Ok(())
    }
}

/// Whether there is a message, or the end of the connection.
fn has_something(stream: &UnixStream) -> io::Result<bool> {
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut polled = [PollFd::new(stream, PollFlags::IN)];
    Ok(poll(&mut polled, Some(&now))? > 0)
}

/// The next connection, if it is still there.
fn accept(listener: &UnixListener) -> io::Result<Option<UnixStream>> {
    match listener.accept() {
        Ok((stream, _)) => Ok(Some(stream)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the next message asks for an answer, from the flags in its header; `None` at the end of the connection.
fn peek_needs_reply(stream: &UnixStream) -> Option<bool> {
    let mut header = [0_u8; 12];
    let (_, count) = recv(stream, &mut header, RecvFlags::PEEK).ok()?;
    if count == 0 {
        return None;
    }
    let flags = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
    Some(count >= 8 && flags & VhostUserHeaderFlag::NEED_REPLY.bits() != 0)
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
