//! The hub's task: waits for whatever wakes it, lets [`HubState`] decide, and sees to what has to be waited for.
//!
//! Wake-ups: the store's subscription, commands and ends of sessions, results of what was asked of Postgres and the
//! store, and a tick of 250 ms. Each turn takes what is there, up to a bound, so that one flush serves many wake-ups.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::state::{Effect, HubState};
use super::{COMMANDS, Command, HubHandle, HubSettings, Published, SessionId};
use crate::metrics;
use crate::protocol::ChannelNumber;
use crate::publication::{Catalogue, FeedKey};
use crate::query::Literal;
use crate::snapshots::{Fresh, OpenError, Snapshots};
use crate::store::{LogRead, Store, Subscription};

/// Clock of everything that happens by time: linger, heartbeats, giving up.
const TICK: Duration = Duration::from_millis(250);

/// Wake-ups of one kind taken in a turn, so that none starves the others.
const TURN_MAX: usize = 256;

/// What was waited for.
enum Done {
    Landed { channel: ChannelNumber, flight: u64, outcome: Box<Result<Fresh, OpenError>> },
    Catalogue(Option<Arc<Catalogue>>),
    Cast(Vec<(Literal, Result<Arc<str>, String>)>),
    Logs { number: u64, read: Option<Vec<(FeedKey, LogRead)>> },
    Stored,
}

/// Why the hub cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum HubFailed {
    #[error("the store's subscription has ended")]
    Subscription,
    #[error("work of the hub panicked: {0}")]
    Work(#[from] tokio::task::JoinError),
}

/// The hub before it runs.
pub struct HubTask {
    state: HubState,
    store: Arc<dyn Store>,
    snapshots: Snapshots,
    subscription: Subscription,
    commands: mpsc::Receiver<Command>,
    detached: mpsc::UnboundedReceiver<(SessionId, &'static str)>,
    published: watch::Sender<Published>,
}

impl HubTask {
    /// A hub, and the way to it. Nothing happens before [`Self::run`].
    pub fn new(
        settings: HubSettings,
        store: Arc<dyn Store>,
        snapshots: Snapshots,
        subscription: Subscription,
    ) -> (Self, HubHandle) {
        let (command_sender, commands) = mpsc::channel(COMMANDS);
        #[expect(clippy::disallowed_methods, reason = "at most one message for each session")]
        let (detached_sender, detached) = mpsc::unbounded_channel();
        let (publisher, published) = watch::channel(Published::default());
        let state = HubState::new(settings, Instant::now());
        let task = Self { state, store, snapshots, subscription, commands, detached, published: publisher };
        let handle = HubHandle {
            commands: command_sender,
            detached: detached_sender,
            published,
            sessions_begun: Arc::default(),
        };
        (task, handle)
    }

    /// Runs until it is stopped.
    ///
    /// # Errors
    /// The store's subscription has ended, or work that was waited for panicked: a hub that goes on after that would wait
    /// for ever for what never comes.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), HubFailed> {
        let mut work: JoinSet<Done> = JoinSet::new();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut commands = Vec::with_capacity(TURN_MAX);
        let mut detached = Vec::with_capacity(TURN_MAX);
        // What was published last; the tick publishes counts too.
        let mut told = None;
        loop {
            // Wake-ups: stop; a push of the store; commands; ends of sessions; something done; the tick.
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                push = self.subscription.next() => {
                    let Some(push) = push else { return Err(HubFailed::Subscription) };
                    self.state.on_push(push, Instant::now());
                    for _ in 1..TURN_MAX {
                        let Some(push) = self.subscription.try_next() else { break };
                        self.state.on_push(push, Instant::now());
                    }
                }
                taken = self.commands.recv_many(&mut commands, TURN_MAX) => {
                    if taken == 0 {
                        return Ok(());
                    }
                    for command in commands.drain(..) {
                        self.state.on_command(command, Instant::now());
                    }
                }
                _ = self.detached.recv_many(&mut detached, TURN_MAX) => {
                    // Whoever has ended had attached before: that command may still wait in its own queue, and a client
                    // that attaches after its end would stay for ever.
                    while let Ok(command) = self.commands.try_recv() {
                        self.state.on_command(command, Instant::now());
                    }
                    for (session, why) in detached.drain(..) {
                        self.state.on_detach(session, why, Instant::now());
                    }
                }
                Some(done) = work.join_next() => self.take_done(done?),
                _ = ticks.tick() => {
                    self.state.on_tick(Instant::now());
                    told = None;
                }
            }
            for effect in self.state.finish_turn(Instant::now()) {
                self.see_to(effect, &mut work);
            }
            let news = self.state.news();
            if told.as_ref() != Some(&news) {
                told = Some(news);
                let published = self.state.published();
                metrics::channels(published.status.channels);
                self.published.send_replace(published);
            }
        }
    }

    fn take_done(&mut self, done: Done) {
        let now = Instant::now();
        match done {
            Done::Landed { channel, flight, outcome } => self.state.on_landed(channel, flight, *outcome, now),
            Done::Catalogue(catalogue) => self.state.on_catalogue(catalogue, now),
            Done::Cast(cast) => self.state.on_cast(cast, now),
            Done::Logs { number, read } => self.state.on_logs(number, read, now),
            Done::Stored => {}
        }
    }

    fn see_to(&mut self, effect: Effect, work: &mut JoinSet<Done>) {
        match effect {
            Effect::Feed(feed) => self.subscription.feed(&feed),
            Effect::Unfeed(feed) => self.subscription.unfeed(&feed),
            Effect::Open { channel, flight, order } => {
                let snapshots = self.snapshots.clone();
                work.spawn(async move {
                    let outcome = Box::new(snapshots.open(&order).await);
                    Done::Landed { channel, flight, outcome }
                });
            }
            Effect::LoadCatalogue => {
                let snapshots = self.snapshots.clone();
                work.spawn(async move {
                    let loaded = snapshots.load_catalogue().await;
                    if let Err(error) = &loaded {
                        tracing::warn!(%error, "the publications cannot be read");
                        // A failure is tried again; not at once.
                        tokio::time::sleep(Duration::from_millis(500)).await;
                    }
                    Done::Catalogue(loaded.ok().map(Arc::new))
                });
            }
            Effect::Cast(literals) => {
                let snapshots = self.snapshots.clone();
                work.spawn(async move { Done::Cast(snapshots.cast(literals).await) });
            }
            Effect::ReadLogs { number, after, feeds } => {
                let store = self.store.clone();
                work.spawn(async move {
                    let mut read = Vec::with_capacity(feeds.len());
                    for feed in feeds {
                        match store.read_log(&feed, after).await {
                            Ok(log) => read.push((feed, log)),
                            Err(error) => {
                                tracing::warn!(%error, %feed, "the log cannot be read");
                                return Done::Logs { number, read: None };
                            }
                        }
                    }
                    Done::Logs { number, read: Some(read) }
                });
            }
            Effect::Register(onlookers) => {
                let snapshots = self.snapshots.clone();
                work.spawn(async move {
                    snapshots.register(&onlookers).await;
                    Done::Stored
                });
            }
            Effect::Unlock(lock) => {
                let snapshots = self.snapshots.clone();
                work.spawn(async move {
                    snapshots.unlock(lock).await;
                    Done::Stored
                });
            }
            Effect::Keep { feed, channel, checkpoint, first } => {
                let snapshots = self.snapshots.clone();
                work.spawn(async move {
                    snapshots.keep(&feed, &channel, *checkpoint, first).await;
                    Done::Stored
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    use super::*;
    use crate::audit::Viewer;
    use crate::snapshots::SnapshotSettings;
    use crate::store::Retention;
    use crate::store::local::LocalStore;

    /// A hub whose database cannot be reached, which does not matter here.
    fn hub() -> (HubTask, HubHandle, impl Sized) {
        let store: Arc<dyn Store> = Arc::new(LocalStore::new(Retention::default()));
        let (subscription, filling) = store.subscribe();
        let nowhere = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(1);
        let settings = SnapshotSettings {
            rows_max: 1,
            bytes_max: 1,
            checkpoint_ttl: Duration::from_secs(1),
            checkpoint_every: Duration::from_secs(1),
        };
        let pool = PgPoolOptions::new().connect_lazy_with(nowhere);
        let snapshots = Snapshots::new(pool, Arc::clone(&store), "node".into(), settings);
        let (task, handle) = HubTask::new(HubSettings::default(), store, snapshots, subscription);
        (task, handle, filling)
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_ends_before_the_hub_heard_of_it_is_forgotten() {
        // Which queue the hub looks into first is chance.
        for _ in 0..10 {
            let (task, handle, _filling) = hub();
            for _ in 0..3 {
                let (session, _inbox) = handle.attach(Viewer::default()).await.expect("a hub");
                handle.detach(session, "test");
            }
            let mut published = handle.published.clone();
            let several_ticks = async {
                for _ in 0..3 {
                    published.changed().await.expect("a hub");
                }
            };
            tokio::select! {
                _ = task.run(CancellationToken::new()) => panic!("the hub has stopped"),
                () = several_ticks => assert_eq!(handle.status().sessions, 0),
            }
        }
    }
}
