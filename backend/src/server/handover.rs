//! A server that stands still so that another process can take its place, and one that takes another's place.
//!
//! ```text
//!  old: Server::suspend ─> rings stop, state and fds ──────────────────────────> let go, or go on as before
//!  new:                                        Server::adopt ─> all of it checked ─> go ─> rings start
//! ```
//!
//! Everything that can fail is done before the old one lets go. Both halves go on as if nothing had happened when whoever has
//! asked is gone: the old one serves, the new one does not.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use log::Level;
use sluice_blk::disk::Medium;

use super::{Credentials, Server, Serving};
use crate::connection::Connection;
use crate::event::Event;
use crate::handover::{DeviceState, Fds, HandoverError, ServerState};
use crate::rings::Standstill;

/// What a server that stands still says.
type Said = Result<(ServerState, Fds), HandoverError>;

/// The wish that a server stands still.
#[derive(Debug)]
pub(super) struct Order {
    said: Sender<Said>,
    /// A word on it: somebody else serves. Nobody there to say it: go on.
    let_go: Receiver<()>,
}

/// Where such a wish is left.
#[derive(Debug)]
pub(super) struct Orders {
    pub(super) event: Event,
    order: Mutex<Option<Order>>,
}

impl Orders {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { event: Event::new()?, order: Mutex::new(None) })
    }

    fn leave(&self, order: Order) {
        *self.order.lock().unwrap_or_else(PoisonError::into_inner) = Some(order);
        self.event.notify();
    }

    fn take(&self) -> Option<Order> {
        self.event.clear();
        self.order.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A server that stands still, or soon will. Dropping it lets the server go on, which it has to before it is stopped.
#[derive(Debug)]
pub struct Suspending {
    said: Receiver<Said>,
    let_go: Sender<()>,
}

impl Suspending {
    /// Waits until nothing is in flight, and tells what a successor has to know.
    ///
    /// # Errors
    /// [`HandoverError`] when the disk takes longer, or the server cannot be handed over.
    pub fn wait(&self, until: Instant) -> Said {
        self.said
            .recv_timeout(until.saturating_duration_since(Instant::now()))
            .unwrap_or(Err(HandoverError::Late))
    }

    /// The successor serves now: this server ends, and leaves the connection as it is.
    pub fn let_go(self) {
        // Nobody there: it has ended by itself.
        let _ = self.let_go.send(());
    }
}

/// A server that is to go on where another one has stopped. Dropping it ends that, which has to be before it is stopped.
#[derive(Debug)]
pub struct Adopting {
    ready: Receiver<Result<(), HandoverError>>,
    go: Sender<()>,
}

/// What such a server is told.
#[derive(Debug)]
pub(super) struct Adoption {
    state: ServerState,
    fds: Fds,
    ready: Sender<Result<(), HandoverError>>,
    go: Receiver<()>,
}

impl Adopting {
    /// Waits until everything is taken over that can fail.
    ///
    /// # Errors
    /// [`HandoverError`]: the old server has to go on.
    pub fn wait(&self, until: Instant) -> Result<(), HandoverError> {
        self.ready
            .recv_timeout(until.saturating_duration_since(Instant::now()))
            .unwrap_or(Err(HandoverError::Late))
    }

    /// The old server has let go: serves.
    pub fn go(self) {
        let _ = self.go.send(());
    }
}

impl Server {
    /// Asks the server to stand still, and does not wait: many stand still in the time of the slowest.
    #[must_use]
    pub fn suspend(&self) -> Suspending {
        let ((said, answer), (let_go, verdict)) = (channel(), channel());
        self.orders.leave(Order { said, let_go: verdict });
        Suspending { said: answer, let_go }
    }

    /// Begins where another server has stopped, instead of [`Server::open`].
    #[must_use]
    pub fn adopt(&mut self, state: ServerState, fds: Fds) -> Adopting {
        let ((ready, answer), (go, told)) = (channel(), channel());
        self.begin(super::Start::Adopt(Box::new(Adoption { state, fds, ready, go: told })));
        Adopting { ready: answer, go }
    }
}

/// What a server takes another one's place with.
struct Restored<'a> {
    listener: Option<Arc<UnixListener>>,
    connection: Option<(Connection<'a>, Standstill)>,
}

impl Serving {
    /// Stands still until it is said how to go on. Returns whether somebody else serves now.
    pub(super) fn stand_still(
        &self,
        connection: Option<&Connection<'_>>,
        listener: Option<&UnixListener>,
    ) -> bool {
        let Some(Order { said, let_go }) = self.orders.take() else { return false };
        let standstill = connection.map(Connection::stand_still).unwrap_or_default();
        let state = self.state(connection, listener, &standstill);
        let is_said = state.is_ok();
        let is_let_go = said.send(state).is_ok() && is_said && let_go.recv().is_ok();
        match connection {
            Some(connection) if !is_let_go => connection.go_on(standstill),
            _ => drop(standstill),
        }
        is_let_go
    }

    fn state(
        &self,
        connection: Option<&Connection<'_>>,
        listener: Option<&UnixListener>,
        standstill: &Standstill,
    ) -> Said {
        if matches!(self.device.disk().medium(), Medium::Ram { .. }) {
            return Err(HandoverError::InMemory);
        }
        if connection.is_some_and(Connection::is_migrating) {
            return Err(HandoverError::Migrating);
        }
        let mut fds = Fds::default();
        let state = ServerState {
            listener: fds.put_some(listener)?,
            device: DeviceState::of(&self.device),
            connection: connection.map(|connection| connection.state(standstill, &mut fds)).transpose()?,
        };
        self.device.disk().lock().offer()?;
        Ok((state, fds))
    }

    /// Takes another server's place, and serves.
    pub(super) fn adopt(self: &Arc<Self>, adoption: Adoption) -> io::Result<()> {
        let Adoption { state, mut fds, ready, go } = adoption;
        let Restored { listener, connection } = match self.restore(state, &mut fds) {
            Ok(restored) => restored,
            Err(error) => {
                let _ = ready.send(Err(error));
                return Ok(());
            }
        };
        let is_told = ready.send(Ok(())).is_ok() && go.recv().is_ok();
        if !is_told {
            return Ok(());
        }
        if let Some(listener) = &listener
            // So that who connects is told this process (unix(7), SO_PEERCRED).
            && let Err(error) = rustix::net::listen(listener, Server::BACKLOG)
        {
            self.log(
                Level::Warn,
                format_args!("front-ends take another process for the one that serves: {error}"),
            );
        }
        if let Some((connection, standstill)) = connection {
            connection.go_on(standstill);
            let who = Credentials::of(connection.stream());
            self.log(Level::Info, format_args!("goes on with a front-end: {who}"));
            if self.is_over(self.serve(connection, listener.as_ref())) {
                return Ok(());
            }
        }
        self.serve_next(listener.as_ref())
    }

    fn restore(self: &Arc<Self>, state: ServerState, fds: &mut Fds) -> Result<Restored<'_>, HandoverError> {
        let listener: Option<UnixListener> = fds.take_some(state.listener)?;
        let listener = listener.map(Arc::new);
        self.device.config().set_writeback(state.device.writeback);
        let Some(connection) = state.connection else { return Ok(Restored { listener, connection: None }) };
        let stream: UnixStream = fds.take(connection.stream)?;
        let mut restored = self.connect(stream, listener.as_ref())?;
        let standstill = restored.restore(connection, &state.device, fds)?;
        Ok(Restored { listener, connection: Some((restored, standstill)) })
    }
}
