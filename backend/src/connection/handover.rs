//! A connection that goes on in another process.

use std::io;

use vhost::vhost_user::message::FrontendReq;

use super::Connection;
use crate::handover::{ConnectionState, DeviceState, Fds, HandoverError};
use crate::inbox::Header;
use crate::rings::Standstill;

impl Connection<'_> {
    /// Stops all rings and waits for their I/O.
    pub(crate) fn stand_still(&self) -> Standstill {
        self.session().stand_still()
    }

    /// Whether the front-end copies the guest's memory to another host.
    pub(crate) fn is_migrating(&self) -> bool {
        self.session().is_migrating()
    }

    /// Goes on where it has stopped.
    pub(crate) fn go_on(&self, standstill: Standstill) {
        self.session().go_on(standstill);
    }

    /// What a successor has to know. The rings stand still, and what has come of a message that is not all there waits in the socket.
    pub(crate) fn state(&self, standstill: &Standstill, fds: &mut Fds) -> io::Result<ConnectionState> {
        Ok(ConnectionState {
            stream: fds.put(&self.stream)?,
            has_spoken: self.has_spoken,
            session: self.session().state(standstill, fds)?,
        })
    }

    /// Becomes the connection that somebody else had.
    ///
    /// # Errors
    /// [`HandoverError`] when the front-end or its guest would notice.
    pub(crate) fn restore(
        &mut self,
        state: ConnectionState,
        device: &DeviceState,
        fds: &mut Fds,
    ) -> Result<Standstill, HandoverError> {
        let ConnectionState { has_spoken, session, .. } = state;
        self.has_spoken = has_spoken;
        if session.has_offered {
            self.repeat(FrontendReq::GET_FEATURES, None)?;
            self.repeat(FrontendReq::GET_PROTOCOL_FEATURES, None)?;
        }
        if let Some(protocol) = session.acked_protocol {
            self.repeat(FrontendReq::SET_PROTOCOL_FEATURES, Some(protocol))?;
        }
        if let Some(features) = session.acked_features {
            self.repeat(FrontendReq::SET_FEATURES, Some(features))?;
        }
        self.session().restore(session, device, fds)
    }

    /// Tells the crate what the front-end has told it before: it knows by itself which messages that makes legal. What was
    /// refused then is refused again.
    fn repeat(&mut self, request: FrontendReq, value: Option<u64>) -> io::Result<()> {
        let body = value.map(u64::to_ne_bytes).into_iter().flatten().collect::<Vec<_>>();
        self.relay.say(&Header::message(request, &body))?;
        if let Err(error) = self.handler.handle_request() {
            log::debug!("{request:?} again: {error}");
        }
        self.relay.forget()
    }
}
