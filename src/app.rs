//! A node: config → build → run → drain. Binds first and runs later, so that whoever starts it knows the port.
//!
//! ```text
//!   stop ─▶ /servez red ─ drain wait ─▶ sessions close over the spread ─▶ hub, relay and store end ─▶ exit
//! ```
//!
//! All tasks start here (sessions through the [`Drain`]'s tracker), so that shutdown knows them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::{Audit, AuditWriter};
use crate::capture::views::ViewLimits;
use crate::capture::{install, session};
use crate::config::identity::Switch;
use crate::config::{AuditMode, DatabaseUrl, IdentityConfig, ServeConfig};
use crate::http::listen::{self, Patience};
use crate::http::{self, Edge, EdgeParts, EdgeSettings, MetricsAt};
use crate::hub::{HubSettings, HubTask};
use crate::identity::jwks::JwksTask;
use crate::identity::keys::Key;
use crate::identity::revocation::RevocationTask;
use crate::identity::token::{Keys, Verifier};
use crate::metrics::{self, Exporter};
use crate::relay::{self, Relay, RelayStatus};
use crate::session::SessionSettings;
use crate::session::auth::Admission;
use crate::session::drain::Drain;
use crate::snapshots::{SnapshotSettings, Snapshots};
use crate::store::local::LocalStore;
use crate::store::redis::{DEFAULT_PREFIX, RedisStore};
use crate::store::{Retention, Store};
use crate::version::base36;

/// How long a node waits for Postgres at its start.
const FIRST_CONNECT_MAX: Duration = Duration::from_secs(10);

/// How long a channel's opening waits for a connection of the pool.
const ACQUIRE_MAX: Duration = Duration::from_secs(5);

/// How often a live channel that changes writes its checkpoint anew. The log must reach back further.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(20);

/// A node that has bound its address and does not serve yet.
pub struct App {
    listener: TcpListener,
    metrics_listener: Option<TcpListener>,
    address: SocketAddr,
    edge: Arc<Edge>,
    settings: EdgeSettings,
    drain: Arc<Drain>,
    exporter: Exporter,
    hub: HubTask,
    relay: Relay,
    pump: BoxFuture<'static, ()>,
    /// What keeps keys and revocations fresh.
    followers: Vec<BoxFuture<'static, ()>>,
    audit_writer: Option<AuditWriter>,
}

impl App {
    /// Checks that everything the node needs is there, and binds.
    ///
    /// # Errors
    /// The address cannot be bound; Postgres or Redis cannot be reached; the database has no rowcast schema.
    pub async fn bind(config: ServeConfig) -> anyhow::Result<Self> {
        config.identity.check().map_err(anyhow::Error::msg)?;
        let exporter = metrics::install()?;
        let listener = bind(config.listen, "ROWCAST_LISTEN")?;
        let metrics_listener = config.metrics_listen.map(|at| bind(at, "ROWCAST_METRICS_LISTEN")).transpose()?;
        let address = listener.local_addr().context("reading the listener's address")?;

        let database = database_options(&config);
        let pool = PgPoolOptions::new()
            .max_connections(u32::try_from(config.limits.pool_size).context("ROWCAST_POOL_SIZE")?)
            .acquire_timeout(ACQUIRE_MAX)
            .connect_lazy_with(database.clone());
        check_database(&pool).await.with_context(|| format!("DATABASE_URL {}", config.database_url))?;
        let store: Arc<dyn Store> = match &config.redis_url {
            Some(url) => {
                let store = RedisStore::new(url.expose(), DEFAULT_PREFIX, Retention::default())
                    .with_context(|| format!("REDIS_URL {url}"))?;
                store.ping().await.with_context(|| format!("REDIS_URL {url}"))?;
                Arc::new(store)
            }
            None => Arc::new(LocalStore::new(Retention::default())),
        };

        let node = base36(rand::random());
        // Batches wait for nobody's snapshot query.
        let audit_pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(database.clone());
        let snapshots = Snapshots::new(
            pool,
            Arc::clone(&store),
            node.as_str().into(),
            SnapshotSettings {
                rows_max: config.limits.channel_rows_max,
                bytes_max: config.limits.channel_bytes_max,
                checkpoint_ttl: config.limits.checkpoint_ttl,
                checkpoint_every: CHECKPOINT_EVERY,
            },
        );
        let (audit, audit_writer) = match config.audit {
            AuditMode::Off => (Audit::default(), None),
            AuditMode::Events => (Audit::events(&node), None),
            AuditMode::Table => {
                let (audit, writer) = Audit::table(&node, audit_pool);
                (audit, Some(writer))
            }
        };
        let (subscription, pump) = store.subscribe();
        let settings = HubSettings { audit: audit.clone(), ..hub_settings(&config) };
        let (hub, handle) = HubTask::new(settings, Arc::clone(&store), snapshots, subscription);
        let drain = Drain::new();
        let (admission, followers) = admission(&config.identity, &database).await?;
        let settings = edge_settings(&config, admission);
        let edge = Edge::new(EdgeParts {
            hub: handle,
            store: Arc::clone(&store),
            postgres: Arc::new(database),
            settings: settings.clone(),
            drain: Arc::clone(&drain),
            exporter: exporter.clone(),
            audit,
        });
        let (status, _) = watch::channel(RelayStatus::default());
        let view_limits = ViewLimits {
            rows_max: config.limits.channel_rows_max,
            bytes_max: config.limits.channel_bytes_max,
            ..ViewLimits::default()
        };
        let relay = Relay { database: config.database_url.options(), store, node, view_limits, status };
        Ok(Self {
            listener,
            metrics_listener,
            address,
            edge,
            settings,
            drain,
            exporter,
            hub,
            relay,
            pump,
            followers,
            audit_writer,
        })
    }

    /// Where it listens: the real port, also where port 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until it is told to stop, then drains.
    ///
    /// # Errors
    /// A part of the node has ended for good. What fails for a while, as a server that is away, is tried again instead.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let tasks = TaskTracker::new();
        let end = CancellationToken::new();
        let until_end = |task: BoxFuture<'static, ()>| {
            let end = end.clone();
            async move {
                tokio::select! {
                    () = task => {}
                    () = end.cancelled() => {}
                }
            }
        };
        tasks.spawn(until_end(self.pump));
        tasks.spawn(until_end(Box::pin(self.exporter.upkeep())));
        for follower in self.followers {
            tasks.spawn(until_end(follower));
        }
        if let Some(writer) = self.audit_writer {
            tasks.spawn(writer.run(end.clone()));
        }
        let mut hub = tasks.spawn(self.hub.run(end.clone()));
        let mut relay = tasks.spawn(relay::run(self.relay, end.clone()));

        let patience =
            Patience { handshake_max: self.settings.handshake_max, stall_max: self.settings.session.stall_max };
        let main = listen::serve(self.listener, http::router(self.edge.clone()), self.drain.clone(), patience);
        let figures = async {
            match self.metrics_listener {
                Some(listener) => {
                    listen::serve(listener, http::metrics_router(self.edge), self.drain.clone(), patience).await
                }
                None => Ok(()),
            }
        };
        self.drain.started();
        let drained = async {
            // A node without its hub or its relay would look alive and deliver nothing: whoever supervises it restarts it.
            let failed = tokio::select! {
                () = stop.cancelled() => None,
                ended = &mut hub => Some(match ended {
                    Ok(Err(failed)) => anyhow::Error::new(failed),
                    Ok(Ok(())) => anyhow::anyhow!("the hub has ended"),
                    Err(panic) => anyhow::Error::new(panic).context("the hub"),
                }),
                ended = &mut relay => Some(match ended {
                    Ok(()) => anyhow::anyhow!("the relay has ended"),
                    Err(panic) => anyhow::Error::new(panic).context("the relay"),
                }),
            };
            tracing::info!("draining");
            let wait = if failed.is_some() { Duration::ZERO } else { self.settings.drain_wait };
            self.drain.run(wait, self.settings.drain_spread).await;
            failed
        };
        let (main, figures, failed) = tokio::join!(main, figures, drained);
        end.cancel();
        tasks.close();
        tasks.wait().await;
        main.context("the web listener")?;
        figures.context("the metrics listener")?;
        failed.map_or(Ok(()), Err)
    }
}

/// Brings the `rowcast` schema of a database up to date.
///
/// # Errors
/// See [`install::migrate`].
pub async fn migrate(database_url: &DatabaseUrl) -> anyhow::Result<()> {
    Ok(install::migrate(&database_url.options()).await?)
}

fn bind(address: SocketAddr, variable: &str) -> anyhow::Result<TcpListener> {
    listen::bind(address).with_context(|| format!("cannot listen on {address} ({variable})"))
}

/// What every connection of the node to Postgres is made with.
fn database_options(config: &ServeConfig) -> PgConnectOptions {
    let milliseconds = |time: Duration| time.as_millis().to_string();
    session::options(&config.database_url.options()).options([
        ("statement_timeout", milliseconds(config.limits.statement_timeout)),
        ("lock_timeout", milliseconds(config.limits.lock_timeout)),
    ])
}

/// A node without its schema would look healthy and serve nothing.
async fn check_database(pool: &PgPool) -> anyhow::Result<()> {
    let asked = async {
        let mut connection = pool.acquire().await.context("Postgres cannot be reached")?;
        install::check(&mut connection).await
    };
    tokio::time::timeout(FIRST_CONNECT_MAX, asked).await.context("Postgres does not answer")?
}

fn hub_settings(config: &ServeConfig) -> HubSettings {
    let limits = &config.limits;
    HubSettings {
        subscriptions_max: limits.subscriptions_max,
        rows_max: limits.channel_rows_max,
        bytes_max: limits.channel_bytes_max,
        linger: limits.linger,
        checkpoint_ttl: limits.checkpoint_ttl,
        checkpoint_every: CHECKPOINT_EVERY,
        rls: config.rls.settings(),
        ..HubSettings::default()
    }
}

/// Who is let in, and what keeps that up to date. Everything that was revoked is known when this returns.
async fn admission(
    config: &IdentityConfig,
    database: &PgConnectOptions,
) -> anyhow::Result<(Admission, Vec<BoxFuture<'static, ()>>)> {
    let mut followers: Vec<BoxFuture<'static, ()>> = Vec::new();
    let keys = match config {
        IdentityConfig { jwt_secret: Some(secret), .. } => {
            Some(Keys::Fixed(Arc::new(Key::secret(secret.expose()).context("ROWCAST_JWT_SECRET")?)))
        }
        IdentityConfig { jwt_public_key: Some(key), .. } => Some(Keys::Fixed(Arc::new(key.clone()))),
        IdentityConfig { jwks_url: Some(source), .. } => {
            let begun = JwksTask::begin(source.clone()).await;
            let (task, keys) = begun.with_context(|| format!("ROWCAST_JWKS_URL {source}"))?;
            followers.push(Box::pin(task.run()));
            Some(Keys::Set(keys))
        }
        _ => None,
    };
    let verifier = match keys {
        Some(keys) => {
            let (task, revocations) =
                RevocationTask::begin(database.clone()).await.context("reading what was revoked")?;
            followers.push(Box::pin(task.run()));
            let (issuer, audience) = (config.jwt_issuer.clone(), config.jwt_audience.clone());
            Some(Arc::new(Verifier::new(keys, issuer, audience, revocations)))
        }
        None => None,
    };
    let admission = Admission { verifier, anonymous: config.anonymous == Switch::On, auth_max: config.auth_timeout };
    Ok((admission, followers))
}

fn edge_settings(config: &ServeConfig, admission: Admission) -> EdgeSettings {
    let limits = &config.limits;
    EdgeSettings {
        session: SessionSettings {
            message_bytes_max: limits.message_bytes_max,
            subscriptions_max: limits.subscriptions_max,
            messages_burst: limits.messages_burst,
            messages_per_second: limits.messages_per_second,
            ping_every: limits.ping_every,
            ping_deadline: limits.ping_deadline,
            stall_max: limits.stall_max,
        },
        admission,
        cookie: config.identity.cookie.clone(),
        allowed_origins: config.allowed_origins.clone(),
        sessions_max: limits.connections_max,
        handshake_max: limits.handshake_max,
        metrics: if config.metrics_listen.is_some() { MetricsAt::Own } else { MetricsAt::Main },
        drain_wait: config.drain_wait,
        drain_spread: config.drain_spread,
    }
}
