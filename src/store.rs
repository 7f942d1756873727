//! The contract of the store: where the write half leaves cuts and the read half finds them.
//!
//! Two implementations ship: [`local`] for a single node without Redis, [`redis`] for many nodes on one Redis. One
//! contract suite (`tests/it/contract.rs`) runs on both. What they promise:
//!
//! - **One writer.** [`Store::append`] and [`Store::beat`] refuse every fence but the newest, and an append that does not
//!   follow the head. Checking and writing are one atomic step.
//! - **Above the head there is nothing.** A version takes effect with its last part, all publications at once. Parts of
//!   a version that was never closed are not readable and are removed by the next append.
//! - **The log tells how far back it reaches.** [`Store::read_log`] returns every entry asked for, or says that it cannot.
//! - **Pushes may be lost, never believed.** [`Subscription::next`] gives what was published in order, at most once; a
//!   reader that misses an entry which a beat names reads the log. After a lost connection comes [`Push::Lost`].
//! - Checkpoints, locks and live identities are a cache: they may vanish at any moment.
//!
//! It knows nothing of rows, filters or clients: `states` and checkpoints are text and bytes to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::publication::FeedKey;
use crate::version::{Cut, Epoch, PgSnapshot, Version};

mod assembler;
mod outbox;

pub mod local;
pub mod redis;

/// Proof of being the newest leader; a later claim has a higher one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence(pub u64);

/// What a leader hands to the store: some parts of one version, and with the last of them the version itself.
#[derive(Clone, Debug)]
pub struct Append {
    pub fence: Fence,
    /// The head this continues; `None` where the store is expected to have none.
    pub follows: Option<(Epoch, Version)>,
    /// Readers at or above this version may apply the entries; those below read the log. The version of `follows`, or
    /// where the store had no head, the version of the cut that the leader goes on from.
    pub base: Version,
    /// The cut; its version is above `base` and above that of `follows`.
    pub cut: Cut,
    /// Parts to write now, each feed's parts ascending.
    pub parts: Vec<Part>,
    /// With the last parts: the version takes effect and the beat goes out.
    pub closes: Option<Closing>,
}

impl Append {
    /// What no leader may hand in: numbers that do not ascend, parts that do not join. Both stores refuse it before they
    /// look at anything else.
    fn flaw(&self) -> Option<&'static str> {
        let head = self.follows.as_ref().map_or(Version(0), |(_, version)| *version);
        if self.cut.version <= head || self.cut.version <= self.base {
            return Some("the version of an append is not above the head and the base");
        }
        let mut next_part: HashMap<&FeedKey, u32> = HashMap::new();
        for part in &self.parts {
            let next = next_part.entry(&part.feed).or_insert(part.number);
            if part.number != *next {
                return Some("the parts of an append are not in order");
            }
            *next += 1;
        }
        let Some(closing) = &self.closes else { return None };
        let touched: HashMap<&FeedKey, u32> =
            closing.touched.iter().map(|touched| (&touched.feed, touched.parts)).collect();
        if touched.len() < closing.touched.len() || touched.values().any(|&parts| parts == 0) {
            return Some("a closing names a feed twice, or without parts");
        }
        if next_part.keys().any(|feed| !touched.contains_key(*feed)) {
            return Some("a closing leaves out a feed that has parts");
        }
        None
    }

    /// The beat that goes out when this append closes its version.
    fn beat(&self, closing: &Closing) -> Beat {
        Beat {
            base: self.base,
            cut: self.cut.clone(),
            polled_at: self.cut.as_of,
            touched: closing.touched.clone(),
            catalogue: closing.catalogue.clone(),
            stale: closing.stale.clone(),
        }
    }
}

/// What makes a version take effect.
#[derive(Clone, Debug)]
pub struct Closing {
    /// Every feed that the version touches, with the number of its parts.
    pub touched: Vec<Touched>,
    /// [`crate::publication::Catalogue::id`] as of this cut.
    pub catalogue: String,
    /// Feeds that exist no longer: their streams are removed.
    pub forget: Vec<FeedKey>,
    /// See [`Beat::stale`].
    pub stale: Vec<FeedKey>,
}

/// One part of what one version says of one publication. At most about 1 MiB of states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub feed: FeedKey,
    /// Ascending from 0.
    pub number: u32,
    /// JSON text, see `crate::entry::States`.
    pub states: String,
}

/// A feed touched by a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    pub feed: FeedKey,
    pub parts: u32,
}

/// What one version says of one publication, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub epoch: Epoch,
    pub version: Version,
    pub snapshot: PgSnapshot,
    pub as_of: i64,
    /// The head that the version continued: a position strictly between the two was lost, and nobody can continue it.
    pub base: Version,
    /// The version of the feed's entry before this one: between the two nothing of the publication changed.
    pub prev: Version,
    /// The states of the parts, ascending.
    pub states: Vec<String>,
}

/// Closes a version; also every second after a successful poll, then `version` is the head's and `touched` is empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    pub base: Version,
    #[serde(flatten)]
    pub cut: Cut,
    /// Milliseconds since 1970, database clock: the newest moment known to be contained in the version.
    pub polled_at: i64,
    pub touched: Vec<Touched>,
    /// [`crate::publication::Catalogue::id`].
    pub catalogue: String,
    /// Views that have not been run since something under them changed: what the log says of them is not their state at
    /// this version. Whoever follows one shows nothing before a version at which it is not named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stale: Vec<FeedKey>,
}

/// What a subscription yields.
#[derive(Clone, Debug)]
pub enum Push {
    /// All parts of a version's entry have arrived. It counts once a beat closes the version.
    Entry(FeedKey, Arc<Entry>),
    Beat(Beat),
    /// Pushes may be missing before this point.
    Lost,
}

/// A part of the log.
#[derive(Clone, Debug)]
pub struct LogRead {
    /// The head when the log was read, in the same atomic step. `None`: the store is empty.
    pub head: Option<Cut>,
    /// Every entry above `after` up to the head, ascending; or `None` where the log does not reach back to `after`.
    pub entries: Option<Vec<Arc<Entry>>>,
}

/// How much of the log is kept. What is older or more is trimmed, oldest first; readers that need it are told so.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// By `as_of`, against the `as_of` of the cut that closes.
    pub age: Duration,
    /// Parts per feed.
    pub parts: usize,
}

impl Default for Retention {
    /// Ten minutes bridge a browser that was asleep and a node that was restarted; 10,000 parts are a minute of the
    /// busiest feed.
    fn default() -> Self {
        Self { age: Duration::from_secs(600), parts: 10_000 }
    }
}

/// What nodes have registered by [`Store::register_identities`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LiveIdentities {
    /// Another one when the list is another. Never empty.
    pub stamp: String,
    /// Those whose time is not up, each once, in any order.
    pub identities: Vec<String>,
}

/// The store cannot be reached, or holds what it should not.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    #[error("the store holds what rowcast did not write: {0}")]
    Corrupt(String),
}

/// Why an append or a beat did not happen.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Another leader has claimed, or the store was emptied. Claim again.
    #[error("the fence is stale")]
    StaleFence,
    /// The head is not the one the append follows. Read it again.
    #[error("the head moved")]
    HeadMoved,
    /// Unclear whether it happened. Read the head again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// See the module's promises.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// For logs and `/readyz`: `local` or `redis`.
    fn name(&self) -> &'static str;

    /// Becomes the one writer: a fence above every earlier one and not below `at_least` (a version just drawn, so that
    /// an emptied store cannot repeat a fence), and the head as it then is.
    async fn claim(&self, at_least: u64) -> Result<(Fence, Option<Cut>), StoreError>;

    async fn head(&self) -> Result<Option<Cut>, StoreError>;

    async fn append(&self, append: &Append) -> Result<(), AppendError>;

    /// Says that the pipeline works: pushed to subscribers, not kept. The beat's version must be the head's.
    async fn beat(&self, fence: Fence, beat: &Beat) -> Result<(), AppendError>;

    async fn read_log(&self, feed: &FeedKey, after: Version) -> Result<LogRead, StoreError>;

    /// A subscription to beats and, from [`Subscription::feed`] on, to entries; and the future that fills it, to be
    /// spawned by the caller. The future ends when the subscription is dropped.
    fn subscribe(&self) -> (Subscription, BoxFuture<'static, ()>);

    async fn checkpoint(&self, feed: &FeedKey, channel: &str) -> Result<Option<Bytes>, StoreError>;

    async fn put_checkpoint(
        &self,
        feed: &FeedKey,
        channel: &str,
        bytes: Bytes,
        ttl: Duration,
    ) -> Result<(), StoreError>;

    /// Makes a checkpoint last `ttl` from now on; false where there is none.
    async fn extend_checkpoint(&self, feed: &FeedKey, channel: &str, ttl: Duration) -> Result<bool, StoreError>;

    /// Takes the cluster's single flight for a channel's snapshot query; false where another holds it. `holder` is
    /// unique to the caller. It lapses by itself after `ttl`.
    async fn lock(&self, feed: &FeedKey, channel: &str, holder: &str, ttl: Duration) -> Result<bool, StoreError>;

    /// Makes a lock last `ttl` from now on; false where `holder` has it no longer.
    async fn renew(&self, feed: &FeedKey, channel: &str, holder: &str, ttl: Duration) -> Result<bool, StoreError>;

    /// Gives a lock back, if `holder` still has it.
    async fn unlock(&self, feed: &FeedKey, channel: &str, holder: &str) -> Result<(), StoreError>;

    /// Says that these are live on some node, for `ttl` from now on: texts that name a feed and an identity whose sight of
    /// it the leader has to work out.
    async fn register_identities(&self, identities: &[String], ttl: Duration) -> Result<(), StoreError>;

    /// Who is live, on any node; `None` where nothing was added to the list that has the stamp `known`. An identity may stay on
    /// it for longer than it is live.
    async fn live_identities(&self, known: &str) -> Result<Option<LiveIdentities>, StoreError>;

    /// One round trip.
    async fn ping(&self) -> Result<(), StoreError>;
}

/// Pushes that may wait for a reader: some seconds of a busy node.
const QUEUE_PUSHES: usize = 4_096;

/// The receiving end of [`Store::subscribe`]. When its queue (4,096 pushes) is full, pushes are dropped and
/// [`Push::Lost`] follows as soon as there is room.
pub struct Subscription {
    pub(crate) pushes: mpsc::Receiver<Push>,
    pub(crate) interests: mpsc::UnboundedSender<Interest>,
}

/// The far end of a subscription: what fills its queue, and what it asks for.
struct Filler {
    pushes: mpsc::Sender<Push>,
    interests: mpsc::UnboundedReceiver<Interest>,
}

/// A change of what a subscription wants. At most two per feed that a node opens and closes.
#[derive(Clone, Debug)]
pub(crate) enum Interest {
    Feed(FeedKey),
    Unfeed(FeedKey),
}

impl Subscription {
    fn new() -> (Self, Filler) {
        let (push_sender, pushes) = mpsc::channel(QUEUE_PUSHES);
        #[expect(clippy::disallowed_methods, reason = "at most two messages for each feed that a node opens")]
        let (interests, interest_receiver) = mpsc::unbounded_channel();
        (Self { pushes, interests }, Filler { pushes: push_sender, interests: interest_receiver })
    }

    /// The next push; `None` when the store is shut down. Cancel-safe.
    pub async fn next(&mut self) -> Option<Push> {
        self.pushes.recv().await
    }

    /// The next push, if one has arrived.
    pub fn try_next(&mut self) -> Option<Push> {
        self.pushes.try_recv().ok()
    }

    /// Asks for a feed's entries. Entries appended before the subscription took effect are not pushed: beats name them.
    pub fn feed(&self, feed: &FeedKey) {
        let _ = self.interests.send(Interest::Feed(feed.clone()));
    }

    pub fn unfeed(&self, feed: &FeedKey) {
        let _ = self.interests.send(Interest::Unfeed(feed.clone()));
    }
}
