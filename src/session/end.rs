//! How sessions end: the reasons, what the client is told, and the place in the hub that is given back.
//!
//! Every way out of a session is an [`End`]; the word it has in logs and figures is its name here.

use super::transport::{Transport, WriteError};
use crate::hub::{HubHandle, HubStopped, SessionId};
use crate::metrics;
use crate::protocol::CloseReason;

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The server closes, and says so.
    Closed(CloseReason),
    /// The client closed.
    Client,
    /// The connection broke.
    Lost,
    /// Nothing came after a ping.
    Silent,
    /// The node could not wait any longer.
    CutOff,
}

/// A session's place in the hub, given back however the session ends.
pub struct Attached {
    hub: HubHandle,
    id: SessionId,
    /// Why the session ended; as long as nobody said so, its task was dropped.
    reason: &'static str,
}

impl Attached {
    pub fn new(hub: HubHandle, id: SessionId) -> Self {
        metrics::session_began();
        Self { hub, id, reason: "abandoned" }
    }

    pub fn hub(&self) -> &HubHandle {
        &self.hub
    }

    /// Lets the hub forget the session, for a reason.
    pub fn detach(mut self, end: End) {
        self.reason = end.name();
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.hub.detach(self.id, self.reason);
        metrics::session_ended(self.reason);
    }
}

impl End {
    /// Tells the client, where it can still be told.
    pub async fn tell(self, transport: Transport) {
        match self {
            Self::Closed(reason) => transport.close(reason, retry_after_ms(reason)).await,
            Self::Client => transport.closed_by_client().await,
            Self::Silent => transport.close(CloseReason::TooSlow, None).await,
            Self::Lost | Self::CutOff => {}
        }
    }

    /// The word for logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed(reason) => reason.name(),
            Self::Client => "client",
            Self::Lost => "lost",
            Self::Silent => "silent",
            Self::CutOff => "cut_off",
        }
    }
}

impl From<WriteError> for End {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stalled => Self::Closed(CloseReason::TooSlow),
            WriteError::Lost => Self::Lost,
        }
    }
}

impl From<HubStopped> for End {
    fn from(HubStopped: HubStopped) -> Self {
        Self::Closed(CloseReason::GoingAway)
    }
}

/// Closes a connection that does not become a session. Browsers cannot read a refused handshake, so this comes after it.
pub async fn refuse(transport: Transport, reason: CloseReason) {
    metrics::session_refused(reason.name());
    tracing::debug!(reason = reason.name(), "connection refused");
    transport.close(reason, retry_after_ms(reason)).await;
}

/// When a client should come back, where that is up to us: a little apart from the others.
fn retry_after_ms(reason: CloseReason) -> Option<u64> {
    match reason {
        CloseReason::Restart | CloseReason::GoingAway => Some(rand::random_range(100..=1_000)),
        CloseReason::Overloaded => Some(rand::random_range(5_000..=15_000)),
        _ => None,
    }
}
