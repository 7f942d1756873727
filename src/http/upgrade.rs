//! `GET /v1/ws`: makes a session of a request, or refuses it after the handshake, where a browser can read why.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::State;
use axum::extract::ws::{WebSocketUpgrade, rejection::WebSocketUpgradeRejection};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use super::Edge;
use super::credentials;
use super::listen::Peer;
use super::problem::Problem;
use crate::protocol::{CloseReason, SUBPROTOCOL};
use crate::session::drain::Phase;
use crate::session::transport::{self, Transport};
use crate::session::{self, SessionContext};
use crate::version::base36;

/// One open connection, counted until it is gone.
struct Connection(Arc<AtomicUsize>);

pub async fn upgrade(
    State(edge): State<Arc<Edge>>,
    peer: Peer,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let upgrade = match upgrade {
        Ok(upgrade) => upgrade,
        Err(rejection) => return Problem::of(rejection.status(), rejection.body_text()).into_response(),
    };
    let connection = Connection(Arc::clone(&edge.connections));
    let open = connection.0.fetch_add(1, Ordering::Relaxed) + 1;
    let refused = if !edge.settings.allowed_origins.admits(&headers) {
        Some(CloseReason::OriginRefused)
    } else if matches!(edge.drain.phase(), Phase::Closing { .. }) {
        Some(CloseReason::Restart)
    } else if open > edge.settings.sessions_max {
        Some(CloseReason::Overloaded)
    } else {
        None
    };
    let offer = credentials::offer(&headers, &edge.settings);
    // Counted from here on, so that a drain does not end between the handshake and the session.
    let counted = edge.drain.tasks().token();
    let limits = &edge.session_settings;
    // Only our own protocol is ever selected: other offers (a `bearer.…` with a token in it) must not be echoed.
    transport::configure(upgrade.protocols([SUBPROTOCOL]), limits.message_bytes_max)
        .on_failed_upgrade(|error| tracing::debug!(%error, "websocket handshake failed"))
        .on_upgrade(move |socket| async move {
            let _counted = (counted, connection);
            let limits = Arc::clone(&edge.session_settings);
            let transport = Transport::new(socket, peer.progress, limits.stall_max, limits.message_bytes_max);
            if let Some(reason) = refused {
                return session::refuse(transport, reason).await;
            }
            let context = SessionContext {
                hub: edge.hub.clone(),
                settings: limits,
                drain: Arc::clone(&edge.drain),
                name: format!("{}-{}", edge.node, base36(rand::random())),
                peer: peer.address.ip(),
                admission: edge.settings.admission.clone(),
                offer,
            };
            drop(edge);
            session::run(transport, context).await;
        })
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
