//! The store of a single node: everything in this process, nothing kept over a restart.
//!
//! It keeps every promise of the contract, the fence too: one process may well have two leaders for a moment, an old one
//! that has not noticed yet and a new one. Appending, pushing and reading are steps under one lock, in which nothing
//! waits and nothing is copied but handles.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use super::outbox::Outbox;
use super::{
    Append, AppendError, Beat, Closing, Entry, Fence, Filler, Interest, LiveIdentities, LogRead, Push, Retention,
    Store, StoreError, Subscription,
};
use crate::publication::FeedKey;
use crate::version::{Cut, Epoch, Version};

mod cache;
mod identities;

use cache::Cache;
use identities::Identities;

/// See the module.
pub struct LocalStore {
    retention: Retention,
    log: Arc<Mutex<Log>>,
    cache: Mutex<Cache>,
    identities: Mutex<Identities>,
}

impl LocalStore {
    pub fn new(retention: Retention) -> Self {
        Self { retention, log: Arc::default(), cache: Mutex::default(), identities: Mutex::default() }
    }
}

/// Everything that has a fence before it, and who listens.
#[derive(Default)]
struct Log {
    /// `None` until the first claim.
    fence: Option<Fence>,
    head: Option<Head>,
    /// The states of a version that is not closed, by feed.
    open: Option<(Version, HashMap<FeedKey, Vec<String>>)>,
    feeds: HashMap<FeedKey, FeedLog>,
    subscribers: HashMap<u64, Subscriber>,
    next_subscriber: u64,
}

struct Head {
    cut: Cut,
    /// From here on the head is continuous: the base of the append that made it.
    since: Version,
}

/// The entries of one feed. It is never without a last version: a feed that had no entry yet has no log.
struct FeedLog {
    last: Version,
    entries: VecDeque<Arc<Entry>>,
    parts: usize,
}

struct Subscriber {
    outbox: Outbox,
    feeds: HashSet<FeedKey>,
    /// Tells the future of the subscription that its queue overflowed.
    overflowed: Arc<Notify>,
}

impl Log {
    fn position(&self) -> Option<(Epoch, Version)> {
        self.head.as_ref().map(|head| (head.cut.epoch.clone(), head.cut.version))
    }

    fn check(&self, fence: Fence, follows: &Option<(Epoch, Version)>) -> Result<(), AppendError> {
        if self.fence != Some(fence) {
            return Err(AppendError::StaleFence);
        }
        if self.position() != *follows {
            return Err(AppendError::HeadMoved);
        }
        Ok(())
    }

    fn append(&mut self, append: &Append, retention: &Retention) -> Result<(), AppendError> {
        self.check(append.fence, &append.follows)?;
        let mut open = match self.open.take() {
            Some((version, parts)) if version == append.cut.version => parts,
            _ => HashMap::new(),
        };
        for part in &append.parts {
            let states = open.entry(part.feed.clone()).or_default();
            if states.len() != part.number as usize {
                return Err(AppendError::HeadMoved);
            }
            states.push(part.states.clone());
        }
        let Some(closing) = &append.closes else {
            self.open = Some((append.cut.version, open));
            return Ok(());
        };
        let whole = |feed, parts: u32| open.get(feed).is_some_and(|states| states.len() == parts as usize);
        if open.len() != closing.touched.len()
            || !closing.touched.iter().all(|touched| whole(&touched.feed, touched.parts))
        {
            return Err(AppendError::HeadMoved);
        }
        self.close(append, closing, open, retention);
        Ok(())
    }

    fn close(
        &mut self,
        append: &Append,
        closing: &Closing,
        mut open: HashMap<FeedKey, Vec<String>>,
        retention: &Retention,
    ) {
        let since = self.head.as_ref().map_or(append.base, |head| head.since);
        for touched in &closing.touched {
            let states = open.remove(&touched.feed).unwrap_or_default();
            let entry = Arc::new(Entry {
                epoch: append.cut.epoch.clone(),
                version: append.cut.version,
                snapshot: append.cut.snapshot.clone(),
                as_of: append.cut.as_of,
                base: append.base,
                prev: self.feeds.get(&touched.feed).map_or(since, |feed| feed.last),
                states,
            });
            self.publish_entry(&touched.feed, &entry);
            let feed = self.feeds.entry(touched.feed.clone()).or_insert_with(|| FeedLog::after(since));
            feed.push(entry);
        }
        self.head = Some(Head { cut: append.cut.clone(), since });
        for feed in &closing.forget {
            self.feeds.remove(feed);
        }
        let age_ms = i64::try_from(retention.age.as_millis()).unwrap_or(i64::MAX);
        for feed in self.feeds.values_mut() {
            feed.trim(append.cut.as_of.saturating_sub(age_ms), retention.parts);
        }
        self.publish_beat(&append.beat(closing));
    }

    fn publish_entry(&mut self, feed: &FeedKey, entry: &Arc<Entry>) {
        for subscriber in self.subscribers.values_mut().filter(|subscriber| subscriber.feeds.contains(feed)) {
            subscriber.push(Push::Entry(feed.clone(), entry.clone()));
        }
    }

    fn publish_beat(&mut self, beat: &Beat) {
        for subscriber in self.subscribers.values_mut() {
            subscriber.push(Push::Beat(beat.clone()));
        }
    }

    fn read(&self, feed: &FeedKey, after: Version) -> LogRead {
        let Some(head) = &self.head else { return LogRead { head: None, entries: None } };
        let entries = match self.feeds.get(feed) {
            Some(log) => log.entries_above(after),
            None => (after >= head.since).then(Vec::new),
        };
        LogRead { head: Some(head.cut.clone()), entries }
    }
}

impl FeedLog {
    fn after(last: Version) -> Self {
        Self { last, entries: VecDeque::new(), parts: 0 }
    }

    fn push(&mut self, entry: Arc<Entry>) {
        self.last = entry.version;
        self.parts += entry.states.len();
        self.entries.push_back(entry);
    }

    fn trim(&mut self, as_of_min: i64, parts_max: usize) {
        while let Some(first) = self.entries.front()
            && (first.as_of < as_of_min || self.parts > parts_max)
        {
            self.parts -= first.states.len();
            self.entries.pop_front();
        }
    }

    fn entries_above(&self, after: Version) -> Option<Vec<Arc<Entry>>> {
        if self.last <= after {
            return Some(Vec::new());
        }
        let start = self.entries.partition_point(|entry| entry.version <= after);
        let reaches = self.entries.get(start).is_some_and(|first| first.prev <= after);
        reaches.then(|| self.entries.iter().skip(start).cloned().collect())
    }
}

impl Subscriber {
    fn push(&mut self, push: Push) {
        let was_lost = self.outbox.is_lost();
        self.outbox.push(push);
        if self.outbox.is_lost() && !was_lost {
            self.overflowed.notify_one();
        }
    }
}

/// Takes a subscriber off the list however its future ends.
struct Registration {
    log: Arc<Mutex<Log>>,
    number: u64,
}

impl Registration {
    fn with<T>(&self, step: impl FnOnce(&mut Subscriber) -> T) -> Option<T> {
        locked(&self.log).subscribers.get_mut(&self.number).map(step)
    }

    /// Follows what the subscription asks for, and says `Lost` once there is room again.
    async fn run(self, filler: Filler, overflowed: Arc<Notify>) {
        let Filler { pushes, mut interests } = filler;
        let mut lost = false;
        loop {
            // Wake-ups: the reader wants another feed or went away; its queue overflowed; it made room again.
            tokio::select! {
                interest = interests.recv() => match interest {
                    Some(Interest::Feed(feed)) => { self.with(|subscriber| subscriber.feeds.insert(feed)); }
                    Some(Interest::Unfeed(feed)) => { self.with(|subscriber| subscriber.feeds.remove(&feed)); }
                    None => return,
                },
                () = overflowed.notified(), if !lost => lost = true,
                room = pushes.clone().reserve_owned(), if lost => {
                    let Ok(room) = room else { return };
                    self.with(|subscriber| subscriber.outbox.recover(room));
                    lost = false;
                }
            }
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        locked(&self.log).subscribers.remove(&self.number);
    }
}

/// No step under these locks can panic half-way through a change, so a poisoned one is as good as any.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[async_trait]
impl Store for LocalStore {
    fn name(&self) -> &'static str {
        "local"
    }

    async fn claim(&self, at_least: u64) -> Result<(Fence, Option<Cut>), StoreError> {
        let mut log = locked(&self.log);
        let fence = Fence(log.fence.map_or(1, |fence| fence.0 + 1).max(at_least));
        log.fence = Some(fence);
        Ok((fence, log.head.as_ref().map(|head| head.cut.clone())))
    }

    async fn head(&self) -> Result<Option<Cut>, StoreError> {
        Ok(locked(&self.log).head.as_ref().map(|head| head.cut.clone()))
    }

    async fn append(&self, append: &Append) -> Result<(), AppendError> {
        if let Some(flaw) = append.flaw() {
            return Err(StoreError::Corrupt(flaw.to_owned()).into());
        }
        locked(&self.log).append(append, &self.retention)
    }

    async fn beat(&self, fence: Fence, beat: &Beat) -> Result<(), AppendError> {
        let mut log = locked(&self.log);
        log.check(fence, &Some((beat.cut.epoch.clone(), beat.cut.version)))?;
        log.publish_beat(beat);
        Ok(())
    }

    async fn read_log(&self, feed: &FeedKey, after: Version) -> Result<LogRead, StoreError> {
        Ok(locked(&self.log).read(feed, after))
    }

    fn subscribe(&self) -> (Subscription, BoxFuture<'static, ()>) {
        let (subscription, filler) = Subscription::new();
        let overflowed = Arc::new(Notify::new());
        let subscriber = Subscriber {
            outbox: Outbox::new(filler.pushes.clone()),
            feeds: HashSet::new(),
            overflowed: overflowed.clone(),
        };
        let mut log = locked(&self.log);
        let number = log.next_subscriber;
        log.next_subscriber += 1;
        log.subscribers.insert(number, subscriber);
        let registration = Registration { log: self.log.clone(), number };
        (subscription, registration.run(filler, overflowed).boxed())
    }

    async fn checkpoint(&self, feed: &FeedKey, channel: &str) -> Result<Option<Bytes>, StoreError> {
        Ok(locked(&self.cache).checkpoint(feed, channel))
    }

    async fn put_checkpoint(
        &self,
        feed: &FeedKey,
        channel: &str,
        bytes: Bytes,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        locked(&self.cache).put_checkpoint(feed, channel, bytes, ttl);
        Ok(())
    }

    async fn extend_checkpoint(&self, feed: &FeedKey, channel: &str, ttl: Duration) -> Result<bool, StoreError> {
        Ok(locked(&self.cache).extend_checkpoint(feed, channel, ttl))
    }

    async fn lock(&self, feed: &FeedKey, channel: &str, holder: &str, ttl: Duration) -> Result<bool, StoreError> {
        Ok(locked(&self.cache).lock(feed, channel, holder, ttl))
    }

    async fn renew(&self, feed: &FeedKey, channel: &str, holder: &str, ttl: Duration) -> Result<bool, StoreError> {
        Ok(locked(&self.cache).renew(feed, channel, holder, ttl))
    }

    async fn unlock(&self, feed: &FeedKey, channel: &str, holder: &str) -> Result<(), StoreError> {
        locked(&self.cache).unlock(feed, channel, holder);
        Ok(())
    }

    async fn register_identities(&self, identities: &[String], ttl: Duration) -> Result<(), StoreError> {
        locked(&self.identities).register(identities, ttl);
        Ok(())
    }

    async fn live_identities(&self, known: &str) -> Result<Option<LiveIdentities>, StoreError> {
        Ok(locked(&self.identities).read(known))
    }

    async fn ping(&self) -> Result<(), StoreError> {
        Ok(())
    }
}
