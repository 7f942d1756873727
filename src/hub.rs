//! The read half's heart: one task per node that owns its feeds, moves them version by version, and hands every session
//! what it has to send.
//!
//! This file is the door: what others may ask of the hub ([`HubHandle`]) and what it says of itself ([`HubStatus`]).
//! Behind it, in reading order: [`channel`] holds rows and finds its way to the node's version, [`index`] knows which
//! channels a row concerns, [`session`] is one client as the hub sees it, [`state`] decides what a wake-up means, purely,
//! and [`task`] waits and does.
//!
//! A session gets deliveries in order, and each frame of a delivery in order. A session that does not keep up is not
//! waited for: its inbox holds at most [`INBOX_DELIVERIES`]; when that is full the hub remembers only the session's
//! version and, once [`Inbox::drained`] was called, hands it what changed since, each row once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use crate::audit::{Audit, Served, Viewer};
use crate::entry::{Key, Row};
use crate::identity::{Identity, RlsSettings};
use crate::protocol::{ChannelForm, Frame, Refusal, Resume};
use crate::query::ChannelRequest;
use crate::version::{Cut, Version};

mod channel;
mod inbox;
mod index;
mod pages;
mod session;
mod state;
mod task;

pub use inbox::{Delivery, Inbox};
pub use task::{HubFailed, HubTask};

/// Deliveries that may wait for a session: some seconds of flushes for a client that is a little slow.
pub const INBOX_DELIVERIES: usize = 64;

/// Commands that may wait for the hub; sessions wait for room, so a flood of subscriptions slows its senders.
const COMMANDS: usize = 1024;

/// Limits and times of the hub.
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// Subscriptions on one connection.
    pub subscriptions_max: usize,
    /// Rows of one channel.
    pub rows_max: usize,
    /// Bytes of one channel's rows, as JSON text.
    pub bytes_max: usize,
    /// How long a channel stays after its last subscriber.
    pub linger: Duration,
    /// How long a subscription waits for its channel to open, or for the node to reach the version it resumes from.
    pub open_timeout: Duration,
    /// How long a checkpoint lives in the store.
    pub checkpoint_ttl: Duration,
    /// How often a live channel that changes writes its checkpoint anew.
    pub checkpoint_every: Duration,
    /// How identities are told to row security.
    pub rls: RlsSettings,
    /// Who was shown what.
    pub audit: Audit,
}

impl Default for HubSettings {
    fn default() -> Self {
        Self {
            subscriptions_max: 128,
            rows_max: 100_000,
            bytes_max: 64 << 20,
            linger: Duration::from_secs(30),
            open_timeout: Duration::from_secs(10),
            checkpoint_ttl: Duration::from_secs(600),
            checkpoint_every: Duration::from_secs(20),
            rls: RlsSettings::default(),
            audit: Audit::default(),
        }
    }
}

/// A session's number on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// The hub's task has ended: the node is going down.
#[derive(Debug, thiserror::Error)]
#[error("the hub has stopped")]
pub struct HubStopped;

/// What the hub says of itself.
#[derive(Clone, Debug, Default)]
pub struct HubStatus {
    /// The version at which the node's channels stand.
    pub cut: Option<Cut>,
    /// How long ago the leader's last beat arrived, when the pipeline behind this node was known to work; `None`: never.
    pub beat_age: Option<Duration>,
    pub sessions: usize,
    pub channels: usize,
}

/// What the task publishes of itself: a status, with the moment that its age is counted from.
#[derive(Clone, Debug, Default)]
struct Published {
    status: HubStatus,
    last_beat: Option<Instant>,
}

/// One read of a channel.
#[derive(Clone, Debug)]
pub struct RowsRead {
    pub form: ChannelForm,
    pub cut: Cut,
    /// The newest moment at which the rows are known to be these; milliseconds since 1970, database clock.
    pub as_of: i64,
    /// The version of the channel's last change.
    pub changed: Version,
    /// Whether the rows are the same for everybody.
    pub public: bool,
    /// The resolved channel, in canonical form, where an audit wants it, and where its rows came from.
    pub channel: Option<String>,
    pub served: Served,
    pub rows: Vec<(Key, Arc<Row>)>,
}

/// What sessions and routes ask of the hub.
#[derive(Debug)]
enum Command {
    Attach { session: SessionId, viewer: Viewer, outbox: inbox::Outbox },
    Subscribe(Box<Subscribe>),
    Unsubscribe { session: SessionId, id: u64 },
    Reidentify { session: SessionId, identity: Identity, told: Frame },
    Drained(SessionId),
    Rows { request: ChannelRequest, identity: Identity, reply: oneshot::Sender<Result<RowsRead, Refusal>> },
}

/// A subscription as a session asks for it; a channel text that could not be read is refused in its turn.
#[derive(Debug)]
struct Subscribe {
    session: SessionId,
    id: u64,
    request: Result<ChannelRequest, Refusal>,
    identity: Identity,
    resume: Option<Resume>,
}

/// The way to the hub.
#[derive(Clone, Debug)]
pub struct HubHandle {
    commands: mpsc::Sender<Command>,
    /// At most one message per session, so that ending never waits.
    detached: mpsc::UnboundedSender<(SessionId, &'static str)>,
    published: watch::Receiver<Published>,
    sessions_begun: Arc<AtomicU64>,
}

impl HubHandle {
    /// Registers a session, and who is behind it.
    ///
    /// # Errors
    /// The hub has stopped; so for all calls that answer [`HubStopped`].
    pub async fn attach(&self, viewer: Viewer) -> Result<(SessionId, Inbox), HubStopped> {
        let session = SessionId(self.sessions_begun.fetch_add(1, Ordering::Relaxed) + 1);
        let (outbox, inbox) = inbox::inbox(session, self.commands.clone());
        self.send(Command::Attach { session, viewer, outbox }).await?;
        Ok((session, inbox))
    }

    /// Asks for a channel. Every answer comes through the inbox.
    pub async fn subscribe(
        &self,
        session: SessionId,
        id: u64,
        request: Result<ChannelRequest, Refusal>,
        identity: Identity,
        resume: Option<Resume>,
    ) -> Result<(), HubStopped> {
        self.send(Command::Subscribe(Box::new(Subscribe { session, id, request, identity, resume }))).await
    }

    /// Ends a subscription; `unsubscribed` or an error comes through the inbox.
    pub async fn unsubscribe(&self, session: SessionId, id: u64) -> Result<(), HubStopped> {
        self.send(Command::Unsubscribe { session, id }).await
    }

    /// A session's client has proved another identity: what it has subscribed to is resolved again. Where that is the same
    /// channel nothing happens; other subscriptions move, or end with an error. All of that comes through the inbox, after
    /// `told`, and whatever comes after `told` is permitted to the new identity.
    pub async fn reidentify(&self, session: SessionId, identity: Identity, told: Frame) -> Result<(), HubStopped> {
        self.send(Command::Reidentify { session, identity, told }).await
    }

    /// Forgets a session, which ended for this reason. Never waits.
    pub fn detach(&self, session: SessionId, why: &'static str) {
        // A stopped hub has forgotten it already.
        let _ = self.detached.send((session, why));
    }

    /// Reads a channel once, opening it as a subscription would.
    ///
    /// # Errors
    /// What a subscription would be refused with.
    pub async fn rows(&self, request: ChannelRequest, identity: Identity) -> Result<RowsRead, Refusal> {
        let stopped = || Refusal::unavailable("the server is going down");
        let (reply, answer) = oneshot::channel();
        self.send(Command::Rows { request, identity, reply }).await.map_err(|_| stopped())?;
        answer.await.unwrap_or_else(|_| Err(stopped()))
    }

    pub fn status(&self) -> HubStatus {
        let published = self.published.borrow();
        HubStatus { beat_age: published.last_beat.map(|at| at.elapsed()), ..published.status.clone() }
    }

    async fn send(&self, command: Command) -> Result<(), HubStopped> {
        self.commands.send(command).await.map_err(|_| HubStopped)
    }
}
