//! A node inside the test's own process, and clients that sit at its hub with any identity, without a token or a socket.

use std::sync::Arc;
use std::time::Duration;

use rowcast::capture::session;
use rowcast::capture::views::ViewLimits;
use rowcast::cli::client::{Client, Event, Handle};
use rowcast::config::DatabaseUrl;
use rowcast::hub::{HubHandle, HubSettings, HubTask, Inbox, SessionId};
use rowcast::identity::{Claims, Identity, RlsSettings};
use rowcast::protocol::ClientMessage;
use rowcast::query::ChannelRequest;
use rowcast::relay::{self, Relay, RelayStatus};
use rowcast::snapshots::{SnapshotSettings, Snapshots};
use rowcast::store::Store;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::dash::{Seen, Table};
use super::within;

/// A hub, and a relay if it may lead. Ends when dropped.
pub struct Inside {
    pub hub: HubHandle,
    pub status: watch::Receiver<RelayStatus>,
    relay: Option<JoinHandle<()>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Inside {
    /// A node that leads if nobody else does.
    pub fn start(database: &DatabaseUrl, store: Arc<dyn Store>, rls: RlsSettings) -> Self {
        let mut inside = Self::follow(database, store.clone(), rls, HubSettings::default());
        let (sender, status) = watch::channel(RelayStatus::default());
        let node = format!("node {}", rand::random::<u32>());
        let relay =
            Relay { database: database.options(), store, node, view_limits: ViewLimits::default(), status: sender };
        inside.status = status;
        inside.relay = Some(tokio::spawn(relay::run(relay, CancellationToken::new())));
        inside
    }

    /// A node that never leads.
    pub fn follow(database: &DatabaseUrl, store: Arc<dyn Store>, rls: RlsSettings, settings: HubSettings) -> Self {
        let pool = PgPoolOptions::new().max_connections(8).connect_lazy_with(session::options(&database.options()));
        let limits = SnapshotSettings {
            rows_max: 100_000,
            bytes_max: 64 << 20,
            checkpoint_ttl: settings.checkpoint_ttl,
            checkpoint_every: settings.checkpoint_every,
        };
        let node = format!("{}", rand::random::<u64>());
        let snapshots = Snapshots::new(pool, store.clone(), node.as_str().into(), limits);
        let (subscription, filling) = store.subscribe();
        let (task, hub) = HubTask::new(HubSettings { rls, ..settings }, store, snapshots, subscription);
        // It fails where the store's filling ends before it, as at the end of a test; seats notice if it does otherwise.
        let running = async move { drop(task.run(CancellationToken::new()).await) };
        let tasks = vec![tokio::spawn(filling), tokio::spawn(running)];
        let (_, status) = watch::channel(RelayStatus::default());
        Self { hub, status, relay: None, tasks }
    }

    pub async fn leads(&mut self) {
        let leads = |status: &RelayStatus| status.leader && status.polled.is_some() && status.error.is_none();
        within("a leader", self.status.wait_for(leads)).await.expect("a status");
    }

    pub fn is_leader(&self) -> bool {
        self.status.borrow().leader
    }

    /// The relay ends as if it were killed; its sessions in Postgres end with it.
    pub async fn kill_relay(&mut self) {
        if let Some(relay) = self.relay.take() {
            relay.abort();
            let _ = relay.await;
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.relay.iter().chain(&self.tasks).for_each(JoinHandle::abort);
    }
}

/// An identity with these claims, as if a token had proved it.
pub fn proven(claims: serde_json::Value) -> Identity {
    let serde_json::Value::Object(all) = claims else { panic!("claims are an object") };
    Identity::Proven(Arc::new(Claims { all, expires: None }))
}

/// A client at a hub. It is as strict about the protocol as the one behind a socket.
pub struct Seat {
    pub client: Client,
    pub seen: Seen,
    /// Every frame that it was sent.
    pub frames: Vec<String>,
    identity: Identity,
    at: Option<(HubHandle, SessionId, Inbox)>,
}

impl Seat {
    /// Sits down and subscribes.
    pub async fn take(node: &Inside, identity: Identity, channels: &[&str]) -> (Self, Vec<Handle>) {
        let mut seat =
            Self { client: Client::default(), seen: Seen::default(), frames: Vec::new(), identity, at: None };
        let handles = channels.iter().map(|channel| seat.client.subscribe(channel)).collect();
        seat.sit_down(node).await;
        (seat, handles)
    }

    /// Sits down, again if need be, and resumes what it has.
    pub async fn sit_down(&mut self, node: &Inside) {
        let (session, inbox) = node.hub.attach(rowcast::audit::Viewer::default()).await.expect("a hub");
        self.at = Some((node.hub.clone(), session, inbox));
        self.client.connected();
        self.say().await;
    }

    pub fn stand_up(&mut self) {
        if let Some((hub, session, _)) = self.at.take() {
            hub.detach(session, "left");
        }
        self.client.disconnected();
    }

    async fn say(&mut self) {
        let Some((hub, session, _)) = &self.at else { return };
        for text in self.client.take_outgoing() {
            match ClientMessage::parse(&text).expect("a message") {
                ClientMessage::Subscribe { id, channel, resume } => {
                    let request = ChannelRequest::parse(&channel);
                    hub.subscribe(*session, id, request, self.identity.clone(), resume).await.expect("a hub");
                }
                ClientMessage::Unsubscribe { id } => hub.unsubscribe(*session, id).await.expect("a hub"),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Takes what the hub has next. Cancel-safe: it waits in one place.
    pub async fn next(&mut self) -> Vec<Event> {
        let (_, _, inbox) = self.at.as_mut().expect("a seat that is taken");
        let mut delivery = Some(inbox.next().await.expect("a hub"));
        let mut all = Vec::new();
        while let Some(mut current) = delivery {
            while let Some(frame) = current.next_frame() {
                let events = self.client.receive(&frame).unwrap_or_else(|violation| panic!("{violation}\n{frame}"));
                self.frames.push(frame.to_string());
                for event in &events {
                    match event {
                        Event::Subscribed { resumed, .. } => {
                            self.seen.subscribed += 1;
                            self.seen.resumed += usize::from(*resumed);
                        }
                        Event::Snapshot { .. } => self.seen.snapshots += 1,
                        Event::Changed { .. } => self.seen.changes += 1,
                        Event::Reset { .. } => self.seen.resets += 1,
                        Event::Gap { .. } => self.seen.gaps += 1,
                        Event::Refused { error, .. } => self.seen.refused.push(error.code.clone()),
                        _ => {}
                    }
                }
                all.extend(events);
            }
            delivery = inbox.try_next();
        }
        inbox.drained().await;
        self.say().await;
        all
    }

    /// Takes things in until a condition holds.
    pub async fn until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        within(what, async {
            while !condition(self) {
                self.next().await;
            }
        })
        .await;
    }

    /// Takes in what comes for a while.
    pub async fn listen(&mut self, time: Duration) {
        let until = tokio::time::Instant::now() + time;
        while tokio::time::timeout_at(until, self.next()).await.is_ok() {}
    }

    pub async fn complete(&mut self) {
        self.until("every subscription is complete", |seat| {
            seat.client.handles().iter().all(|&handle| seat.client.is_complete(handle))
        })
        .await;
    }

    /// A subscription's rows.
    pub fn table(&self, handle: Handle) -> Table {
        let rows = self.client.rows(handle).into_iter().flatten();
        rows.map(|(key, row)| (key.as_str().to_owned(), row.to_value().to_string())).collect()
    }

    /// The keys of a subscription's rows.
    pub fn keys(&self, handle: Handle) -> Vec<String> {
        self.table(handle).into_keys().collect()
    }

    /// Why keys left, in order, as frames said it.
    pub fn gone(&self) -> Vec<(String, String)> {
        let frames = self.frames.iter().map(|frame| serde_json::from_str::<serde_json::Value>(frame).expect("JSON"));
        let gone = frames.flat_map(|frame| frame["gone"].as_array().cloned().unwrap_or_default());
        gone.map(|gone| (gone["key"].to_string(), gone["why"].as_str().unwrap_or_default().to_owned())).collect()
    }
}
