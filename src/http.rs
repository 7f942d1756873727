//! The routes of a node: the websocket, reads, health, figures, and the embedded pages.
//!
//! An [`Edge`] is everything the routes need; [`router`] makes them of it, and [`listen::serve`] runs them until the node
//! has drained. Nothing here decides about rows: reads and subscriptions go to the hub.

mod assets;
mod credentials;
pub mod health;
pub mod listen;
pub mod origin;
mod problem;
mod rows;
mod upgrade;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sqlx::postgres::PgConnectOptions;

use self::health::Health;
use self::origin::AllowedOrigins;
use self::problem::Problem;
use crate::audit::Audit;
use crate::hub::HubHandle;
use crate::metrics::Exporter;
use crate::session::SessionSettings;
use crate::session::auth::Admission;
use crate::session::drain::Drain;
use crate::store::Store;
use crate::version::base36;

/// What an operator can set about the edge.
#[derive(Clone, Debug)]
pub struct EdgeSettings {
    pub session: SessionSettings,
    /// Who is let in.
    pub admission: Admission,
    /// `ROWCAST_COOKIE`: where a page's token may be.
    pub cookie: Option<String>,
    /// `ROWCAST_ALLOWED_ORIGINS`; also the CORS list.
    pub allowed_origins: AllowedOrigins,
    /// More websocket sessions than this on the node are closed with 1013.
    pub sessions_max: usize,
    /// A request's head, and with it a websocket's handshake, must be complete within this.
    pub handshake_max: Duration,
    /// Where the figures are served.
    pub metrics: MetricsAt,
    /// `ROWCAST_DRAIN_WAIT`: from the red `/servez` to the first close, for load balancers to notice.
    pub drain_wait: Duration,
    /// `ROWCAST_DRAIN_SPREAD`: the closes are spread over this.
    pub drain_spread: Duration,
}

/// Where `/metrics` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsAt {
    /// On the main listener, for loopback peers only.
    Main,
    /// On a listener of its own ([`metrics_router`]), for whoever reaches it.
    Own,
}

impl Default for EdgeSettings {
    fn default() -> Self {
        Self {
            session: SessionSettings::default(),
            admission: Admission::default(),
            cookie: None,
            allowed_origins: AllowedOrigins::default(),
            sessions_max: 20_000,
            handshake_max: Duration::from_secs(10),
            metrics: MetricsAt::Main,
            drain_wait: Duration::from_secs(5),
            drain_spread: Duration::from_secs(10),
        }
    }
}

/// Everything the routes need.
pub struct Edge {
    hub: HubHandle,
    health: Health,
    settings: EdgeSettings,
    session_settings: Arc<SessionSettings>,
    drain: Arc<Drain>,
    exporter: Exporter,
    audit: Audit,
    /// Websocket connections that are open, refused ones included while they close.
    connections: Arc<AtomicUsize>,
    /// Begins the names of this node's sessions.
    node: String,
}

/// The parts of an [`Edge`].
pub struct EdgeParts {
    pub hub: HubHandle,
    pub store: Arc<dyn Store>,
    /// For `/readyz`, which keeps one connection of its own.
    pub postgres: Arc<PgConnectOptions>,
    pub settings: EdgeSettings,
    pub drain: Arc<Drain>,
    pub exporter: Exporter,
    pub audit: Audit,
}

impl Edge {
    pub fn new(parts: EdgeParts) -> Arc<Self> {
        Arc::new(Self {
            health: Health::new(parts.hub.clone(), parts.store, parts.postgres),
            hub: parts.hub,
            session_settings: Arc::new(parts.settings.session.clone()),
            settings: parts.settings,
            drain: parts.drain,
            exporter: parts.exporter,
            audit: parts.audit,
            connections: Arc::default(),
            node: base36(rand::random()),
        })
    }
}

/// The routes of the main listener.
pub fn router(edge: Arc<Edge>) -> Router {
    let mut router = Router::new()
        .route("/v1/ws", get(upgrade::upgrade))
        .route("/v1/rows/{publication}", get(rows::rows).options(rows::preflight))
        .route("/healthz", get(health::healthz))
        .route("/servez", get(health::servez))
        .route("/readyz", get(health::readyz));
    if edge.settings.metrics == MetricsAt::Main {
        router = router.route("/metrics", get(figures_for_loopback));
    }
    router
        .method_not_allowed_fallback(|| async { Problem::of(StatusCode::METHOD_NOT_ALLOWED, "not with this method") })
        .fallback(assets::asset)
        .with_state(edge)
}

/// The routes of `ROWCAST_METRICS_LISTEN`.
pub fn metrics_router(edge: Arc<Edge>) -> Router {
    Router::new()
        .route("/metrics", get(figures))
        .route("/healthz", get(health::healthz))
        .fallback(|| async { Problem::of(StatusCode::NOT_FOUND, "only /metrics is here") })
        .with_state(edge)
}

async fn figures(State(edge): State<Arc<Edge>>) -> Response {
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], edge.exporter.render()).into_response()
}

/// To everybody else the route does not exist. A request that a proxy on this machine passed on comes from loopback too;
/// it is told by its headers.
async fn figures_for_loopback(edge: State<Arc<Edge>>, peer: listen::Peer, headers: axum::http::HeaderMap) -> Response {
    let forwarded = ["forwarded", "x-forwarded-for", "x-real-ip", "via"].iter().any(|name| headers.contains_key(*name));
    if !peer.address.ip().to_canonical().is_loopback() || forwarded {
        return Problem::of(StatusCode::NOT_FOUND, "there is nothing here").into_response();
    }
    figures(edge).await
}
