//! What the store's tests are written in: a bench with a store on it, and short ways to say an append.

use std::sync::Arc;
use std::time::Duration;

use rowcast::publication::FeedKey;
use rowcast::store::local::LocalStore;
use rowcast::store::redis::{DEFAULT_PREFIX, RedisStore};
use rowcast::store::{
    Append, AppendError, Beat, Closing, Entry, Fence, Part, Push, Retention, Store, Subscription, Touched,
};
use rowcast::version::{Cut, Epoch, Version};

use crate::harness::redis::PrivateRedis;
use crate::harness::within;

/// A store, and what it stands on. Logs keep five parts and a minute.
pub struct Bench {
    pub store: Arc<dyn Store>,
    pub redis: Option<PrivateRedis>,
}

pub const RETENTION: Retention = Retention { age: Duration::from_secs(60), parts: 5 };

impl Bench {
    pub fn local() -> Self {
        Self { store: Arc::new(LocalStore::new(RETENTION)), redis: None }
    }

    pub fn redis() -> Self {
        let redis = PrivateRedis::start();
        Self { store: redis_store(&redis, RETENTION), redis: Some(redis) }
    }

    /// Another node's view of the same store.
    pub fn second(&self) -> Arc<dyn Store> {
        match &self.redis {
            Some(redis) => redis_store(redis, RETENTION),
            None => self.store.clone(),
        }
    }

    pub async fn claim(&self) -> Fence {
        self.store.claim(0).await.expect("a claim").0
    }

    /// A new leader's append of one version with one part of one feed.
    pub async fn write(&self, follows: u64, version: u64, feed: &FeedKey) {
        let fence = self.claim().await;
        self.store.append(&whole(fence, follows, version, &[feed])).await.expect("an append");
    }

    /// The versions above `after` in a feed's log.
    pub async fn log(&self, feed: &FeedKey, after: u64) -> Option<Vec<u64>> {
        let read = self.store.read_log(feed, Version(after)).await.expect("a log");
        read.entries.map(|entries| entries.iter().map(|entry| entry.version.0).collect())
    }

    pub async fn head(&self) -> Option<u64> {
        self.store.head().await.expect("a head").map(|cut| cut.version.0)
    }

    /// A subscription to some feeds, known to be in effect.
    pub async fn subscribed(&self, feeds: &[&FeedKey]) -> Subscription {
        let (mut subscription, filler) = self.store.subscribe();
        tokio::spawn(filler);
        for feed in feeds {
            subscription.feed(feed);
        }
        // Nobody else writes to the probe, so it stays: to unsubscribe would be one more thing to wait for.
        let probe = FeedKey { name: "probe".into(), generation: 1 };
        subscription.feed(&probe);
        // A version of the probe that is pushed shows that all that was asked before is in effect too.
        let fence = self.claim().await;
        within("a subscription in effect", async {
            loop {
                let head = self.store.head().await.expect("a head");
                let (follows, version) = head.map_or((0, 1), |cut| (cut.version.0, cut.version.0 + 1));
                self.store.append(&whole(fence, follows, version, &[&probe])).await.expect("an append");
                let mut seen = false;
                while let Ok(Some(push)) = tokio::time::timeout(Duration::from_millis(50), subscription.next()).await {
                    seen |= matches!(push, Push::Entry(..));
                }
                if seen {
                    return;
                }
            }
        })
        .await;
        subscription
    }
}

pub fn redis_store(redis: &PrivateRedis, retention: Retention) -> Arc<dyn Store> {
    Arc::new(RedisStore::new(&redis.address(), DEFAULT_PREFIX, retention).expect("an address"))
}

pub fn feed(name: &str) -> FeedKey {
    FeedKey { name: name.into(), generation: 17 }
}

pub fn cut(version: u64) -> Cut {
    Cut {
        epoch: Epoch::new("e1"),
        version: Version(version),
        snapshot: format!("{version}:{}:{version}", version + 3).parse().expect("a snapshot"),
        as_of: 1_790_000_000_000 + 1000 * version as i64,
    }
}

pub fn states(feed: &FeedKey, version: u64, part: u32) -> String {
    format!("{{\"marker\":\"{feed} ü {version}-{part}\"}}")
}

/// Parts of a version, without closing it. `follows` 0 is an empty store.
pub fn parts(fence: Fence, follows: u64, version: u64, parts: &[(&FeedKey, u32)]) -> Append {
    Append {
        fence,
        follows: (follows > 0).then(|| (Epoch::new("e1"), Version(follows))),
        base: Version(follows),
        cut: cut(version),
        parts: parts
            .iter()
            .map(|&(feed, number)| Part { feed: feed.clone(), number, states: states(feed, version, number) })
            .collect(),
        closes: None,
    }
}

/// Lets an append close its version.
pub fn closing(append: Append, touched: &[(&FeedKey, u32)]) -> Append {
    let touched = touched.iter().map(|&(feed, parts)| Touched { feed: feed.clone(), parts }).collect();
    Append {
        closes: Some(Closing { touched, catalogue: "c1".to_owned(), forget: Vec::new(), stale: Vec::new() }),
        ..append
    }
}

/// A version with one part for each feed.
pub fn whole(fence: Fence, follows: u64, version: u64, feeds: &[&FeedKey]) -> Append {
    let first: Vec<(&FeedKey, u32)> = feeds.iter().map(|&feed| (feed, 0)).collect();
    let touched: Vec<(&FeedKey, u32)> = feeds.iter().map(|&feed| (feed, 1)).collect();
    closing(parts(fence, follows, version, &first), &touched)
}

/// The beat of an idle second at a version.
pub fn idle_beat(version: u64) -> Beat {
    let cut = cut(version);
    Beat {
        base: Version(version),
        polled_at: cut.as_of + 777,
        cut,
        touched: Vec::new(),
        catalogue: "c1".to_owned(),
        stale: Vec::new(),
    }
}

/// The entry that a store makes of a version.
pub fn entry(feed: &FeedKey, base: u64, prev: u64, version: u64, parts: u32) -> Entry {
    let cut = cut(version);
    Entry {
        epoch: cut.epoch,
        version: cut.version,
        snapshot: cut.snapshot,
        as_of: cut.as_of,
        base: Version(base),
        prev: Version(prev),
        states: (0..parts).map(|part| states(feed, version, part)).collect(),
    }
}

/// The next push, in few words: `e5 orders.17`, `b5`, `lost`.
pub async fn next(subscription: &mut Subscription) -> String {
    match within("a push", subscription.next()).await.expect("a store that is up") {
        Push::Entry(feed, entry) => format!("e{} {feed}", entry.version),
        Push::Beat(beat) => format!("b{}", beat.cut.version),
        Push::Lost => "lost".to_owned(),
    }
}

#[track_caller]
pub fn assert_stale(result: Result<(), AppendError>) {
    assert!(matches!(result, Err(AppendError::StaleFence)), "{result:?}");
}

#[track_caller]
pub fn assert_moved(result: Result<(), AppendError>) {
    assert!(matches!(result, Err(AppendError::HeadMoved)), "{result:?}");
}
