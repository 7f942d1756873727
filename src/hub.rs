//! The read half's heart: one task per node that owns its feeds, moves them version by version, and hands every session
//! what it has to send.
//!
//! This file is the door: what others may ask of the hub ([`HubHandle`]) and what a session gets from it ([`Inbox`],
//! [`Delivery`]). Behind it: [`state`] decides, purely; [`task`] waits and does.
//!
//! A session gets deliveries in order, and each frame of a delivery in order. A session that does not keep up is not
//! waited for: its inbox holds at most [`INBOX_DELIVERIES`]; when that is full the hub remembers only the session's
//! version and, once [`Inbox::drained`] was called, hands it what changed since, each row once.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::entry::{Key, Row};
use crate::identity::Identity;
use crate::protocol::{ChannelForm, Frame, Refusal, Resume};
use crate::query::ChannelRequest;
use crate::version::{Cut, Version};

/// Deliveries that may wait for a session: some seconds of flushes for a client that is a little slow.
pub const INBOX_DELIVERIES: usize = 64;

/// A session's number on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// The hub's task has ended: the node is going down.
#[derive(Debug, thiserror::Error)]
#[error("the hub has stopped")]
pub struct HubStopped;

/// What the handle asks of whoever answers.
pub enum Ask {
    Attach(oneshot::Sender<(SessionId, Inbox)>),
    Subscribe {
        session: SessionId,
        id: u64,
        request: Result<ChannelRequest, Refusal>,
        identity: Identity,
        resume: Option<Resume>,
    },
    Unsubscribe {
        session: SessionId,
        id: u64,
    },
    Detach(SessionId),
    Rows(ChannelRequest, oneshot::Sender<Result<RowsRead, Refusal>>),
    Drained(SessionId),
}

#[derive(Clone)]
pub struct HubHandle {
    asks: mpsc::UnboundedSender<Ask>,
    status: Arc<std::sync::Mutex<HubStatus>>,
}

#[derive(Clone, Debug, Default)]
pub struct HubStatus {
    pub cut: Option<Cut>,
    pub beat_age: Option<std::time::Duration>,
    pub sessions: usize,
    pub channels: usize,
}

pub struct RowsRead {
    pub form: ChannelForm,
    pub cut: Cut,
    pub as_of: i64,
    pub changed: Version,
    pub public: bool,
    pub rows: Vec<(Key, Arc<Row>)>,
}

pub struct Inbox {
    pub session: SessionId,
    pub deliveries: mpsc::Receiver<Delivery>,
    pub asks: mpsc::UnboundedSender<Ask>,
}

pub struct Delivery {
    pub frames: std::collections::VecDeque<Frame>,
    pub as_of: Option<i64>,
}

impl Delivery {
    pub fn next_frame(&mut self) -> Option<Frame> {
        self.frames.pop_front()
    }
    pub fn as_of(&self) -> Option<i64> {
        self.as_of
    }
}

impl Inbox {
    pub async fn next(&mut self) -> Option<Delivery> {
        self.deliveries.recv().await
    }
    pub fn try_next(&mut self) -> Option<Delivery> {
        self.deliveries.try_recv().ok()
    }
    pub async fn drained(&mut self) {
        let _ = self.asks.send(Ask::Drained(self.session));
    }
}

impl HubHandle {
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Ask>, mpsc::UnboundedSender<Ask>) {
        let (asks, asked) = mpsc::unbounded_channel();
        (Self { asks: asks.clone(), status: Arc::default() }, asked, asks)
    }
    pub fn set_status(&self, status: HubStatus) {
        *self.status.lock().expect("not poisoned") = status;
    }
    pub async fn attach(&self) -> Result<(SessionId, Inbox), HubStopped> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Attach(reply)).map_err(|_| HubStopped)?;
        answer.await.map_err(|_| HubStopped)
    }
    pub async fn subscribe(
        &self,
        session: SessionId,
        id: u64,
        request: Result<ChannelRequest, Refusal>,
        identity: Identity,
        resume: Option<Resume>,
    ) -> Result<(), HubStopped> {
        self.asks.send(Ask::Subscribe { session, id, request, identity, resume }).map_err(|_| HubStopped)
    }
    pub async fn unsubscribe(&self, session: SessionId, id: u64) -> Result<(), HubStopped> {
        self.asks.send(Ask::Unsubscribe { session, id }).map_err(|_| HubStopped)
    }
    pub fn detach(&self, session: SessionId) {
        let _ = self.asks.send(Ask::Detach(session));
    }
    pub async fn rows(&self, request: ChannelRequest, _identity: Identity) -> Result<RowsRead, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Rows(request, reply)).map_err(|_| Refusal::unavailable("the hub has stopped"))?;
        answer.await.map_err(|_| Refusal::unavailable("the hub has stopped"))?
    }
    pub fn status(&self) -> HubStatus {
        self.status.lock().expect("not poisoned").clone()
    }
}
