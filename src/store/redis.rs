//! The store of many nodes: one Redis (7 or later, or Valkey), any number of readers, one writer.
//!
//! Whatever has to be checked and done in one step is a Lua script beside this file; the scripts say what the keys hold.
//! The scripts make up key names from the prefix, so a Redis Cluster cannot run them; one primary with replicas can.
//! Pub/sub does not know database numbers: two installations on one Redis need two prefixes.
//!
//! Commands share one connection ([`link`]); each subscription has its own ([`subscription`]).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redis::{Client, IntoConnectionInfo, Script, ScriptInvocation};

use super::{Append, AppendError, Beat, Fence, LiveIdentities, LogRead, Retention, Store, StoreError, Subscription};
use crate::publication::FeedKey;
use crate::version::{Cut, Version};

mod link;
mod subscription;
mod wire;

use link::Link;
use subscription::Listener;

/// The prefix of every key and channel, as the design names it.
pub const DEFAULT_PREFIX: &str = "rowcast:";

/// A page of a log: at most this many items, and about this many bytes, so that Redis serves others in between.
const PAGE_ITEMS: usize = 500;
const PAGE_BYTES: usize = 4 << 20;

/// Identities registered by one script, so that none runs long.
const IDENTITIES_AT_ONCE: usize = 1_000;

/// A text that does not say where a Redis is. The text itself may hold a password, so it is not repeated.
#[derive(Debug, thiserror::Error)]
#[error("not the address of a Redis (redis://[user:password@]host:port/database): {0}")]
pub struct BadAddress(String);

/// See the module.
pub struct RedisStore {
    client: Client,
    link: Link,
    prefix: Prefix,
    retention: Retention,
    scripts: Scripts,
}

struct Scripts {
    claim: Script,
    append: Script,
    beat: Script,
    read_log: Script,
    renew: Script,
    unlock: Script,
    register: Script,
    identities: Script,
}

/// What the keys and channels are called.
#[derive(Clone)]
struct Prefix(Arc<str>);

impl Prefix {
    fn head(&self) -> String {
        format!("{}head", self.0)
    }

    fn beat(&self) -> String {
        format!("{}beat", self.0)
    }

    fn live(&self, feed: &FeedKey) -> String {
        format!("{}{feed}:live", self.0)
    }

    fn feed_of_live(&self, channel: &str) -> Option<FeedKey> {
        channel.strip_prefix(&*self.0)?.strip_suffix(":live")?.parse().ok()
    }

    fn checkpoint(&self, feed: &FeedKey, channel: &str) -> String {
        format!("{}{feed}:snap:{channel}", self.0)
    }

    fn lock(&self, feed: &FeedKey, channel: &str) -> String {
        format!("{}{feed}:lock:{channel}", self.0)
    }
}

impl RedisStore {
    /// A store at an address. Connects with its first command, so that a node starts while Redis does.
    ///
    /// # Errors
    /// An address that cannot be read.
    pub fn new(address: &str, prefix: &str, retention: Retention) -> Result<Self, BadAddress> {
        let info = address.into_connection_info().map_err(|error| BadAddress(error.to_string()))?;
        // Without TCP_NODELAY a command in several segments waits for the acknowledgement of its first.
        let settings = info.tcp_settings().clone().set_nodelay(true);
        let client = Client::open(info.set_tcp_settings(settings)).map_err(|error| BadAddress(error.to_string()))?;
        Ok(Self {
            link: Link::new(client.clone()),
            client,
            prefix: Prefix(prefix.into()),
            retention,
            scripts: Scripts {
                claim: Script::new(include_str!("redis/claim.lua")),
                append: Script::new(include_str!("redis/append.lua")),
                beat: Script::new(include_str!("redis/beat.lua")),
                read_log: Script::new(include_str!("redis/read_log.lua")),
                renew: Script::new(include_str!("redis/renew.lua")),
                unlock: Script::new(include_str!("redis/unlock.lua")),
                register: Script::new(include_str!("redis/register.lua")),
                identities: Script::new(include_str!("redis/identities.lua")),
            },
        })
    }

    /// The arguments of `append.lua`, in its order.
    fn append_invocation(&self, append: &Append) -> ScriptInvocation<'_> {
        let (epoch, version) = match &append.follows {
            Some((epoch, version)) => (epoch.as_str(), version.0),
            None => ("", 0),
        };
        let mut call = self.scripts.append.prepare_invoke();
        call.arg(&*self.prefix.0).arg(append.fence.0).arg(epoch).arg(version).arg(version + 1).arg(append.base.0);
        call.arg(append.cut.epoch.as_str()).arg(append.cut.version.0);
        call.arg(append.cut.snapshot.to_string()).arg(append.cut.as_of).arg(wire::common_members(append));
        call.arg(append.parts.len());
        for part in &append.parts {
            call.arg(part.feed.to_string()).arg(part.number).arg(part.states.as_str());
        }
        let Some(closing) = &append.closes else {
            call.arg(0);
            return call;
        };
        let age_ms = i64::try_from(self.retention.age.as_millis()).unwrap_or(i64::MAX);
        call.arg(1).arg(closing.catalogue.as_str()).arg(json(&append.beat(closing)));
        call.arg(age_ms).arg(append.cut.as_of.saturating_sub(age_ms)).arg(self.retention.parts);
        call.arg(closing.touched.len());
        for touched in &closing.touched {
            call.arg(touched.feed.to_string()).arg(touched.parts);
        }
        call.arg(closing.forget.len());
        for feed in &closing.forget {
            call.arg(feed.to_string());
        }
        call
    }
}

fn json(beat: &Beat) -> String {
    serde_json::to_string(beat).expect("a beat is plain JSON")
}

/// The verdict of a script that writes.
fn verdict(answer: &str) -> Result<(), AppendError> {
    match answer {
        "ok" => Ok(()),
        "stale" => Err(AppendError::StaleFence),
        "moved" => Err(AppendError::HeadMoved),
        other => Err(StoreError::Corrupt(other.to_owned()).into()),
    }
}

#[async_trait]
impl Store for RedisStore {
    fn name(&self) -> &'static str {
        "redis"
    }

    async fn claim(&self, at_least: u64) -> Result<(Fence, Option<Cut>), StoreError> {
        let mut call = self.scripts.claim.prepare_invoke();
        call.arg(&*self.prefix.0).arg(at_least);
        // Claiming twice only leaves out a number.
        let (fence, head): (u64, Vec<wire::Field>) = self.link.repeatable(call).await?;
        Ok((Fence(fence), wire::head(&head)?))
    }

    async fn head(&self) -> Result<Option<Cut>, StoreError> {
        let key = self.prefix.head();
        let mut get = redis::cmd("HMGET");
        get.arg(key).arg(&["epoch", "version", "cut", "as_of"]);
        let fields: Vec<wire::Field> = self.link.repeatable(get).await?;
        wire::head(&fields)
    }

    async fn append(&self, append: &Append) -> Result<(), AppendError> {
        if let Some(flaw) = append.flaw() {
            return Err(StoreError::Corrupt(flaw.to_owned()).into());
        }
        let call = self.append_invocation(append);
        let answer: String = self.link.once(call).await?;
        verdict(&answer)
    }

    async fn beat(&self, fence: Fence, beat: &Beat) -> Result<(), AppendError> {
        let mut call = self.scripts.beat.prepare_invoke();
        call.arg(&*self.prefix.0).arg(fence.0).arg(beat.cut.epoch.as_str()).arg(beat.cut.version.0).arg(json(beat));
        let answer: String = self.link.repeatable(call).await?;
        verdict(&answer)
    }

    /// Reads page by page. Each page comes with the head of its moment, and the last page's counts: if entries came,
    /// went or were rolled back in between, the chain from that head tells.
    async fn read_log(&self, feed: &FeedKey, after: Version) -> Result<LogRead, StoreError> {
        let mut fragments = Vec::new();
        let mut from = format!("{}-0", after.0 + 1);
        loop {
            let mut call = self.scripts.read_log.prepare_invoke();
            call.arg(&*self.prefix.0).arg(feed.to_string()).arg(after.0).arg(&from).arg(PAGE_ITEMS).arg(PAGE_BYTES);
            let (fields, items, more): (Vec<wire::Field>, Vec<wire::Item>, u8) = self.link.repeatable(call).await?;
            let Some(head) = wire::head(&fields)? else { return Ok(LogRead { head: None, entries: None }) };
            let [.., since, last] = fields.as_slice() else {
                return Err(StoreError::Corrupt("the head is not complete".to_owned()));
            };
            let reach = wire::reach(since, last)?;
            if let Some(item) = items.last() {
                from = format!("({}", item.id);
            }
            for item in items {
                fragments.push(item.into_fragment()?);
            }
            // A log that begins too late is not read to its end.
            let begins_late = fragments.first().is_some_and(|first| first.part > 0 || first.prev > after);
            if begins_late || more == 0 {
                let entries = if begins_late { None } else { reach.entries(after, fragments) };
                return Ok(LogRead { head: Some(head), entries });
            }
        }
    }

    fn subscribe(&self) -> (Subscription, BoxFuture<'static, ()>) {
        let (subscription, filler) = Subscription::new();
        let listener = Listener::new(self.client.clone(), self.prefix.clone(), filler);
        (subscription, listener.run().boxed())
    }

    async fn checkpoint(&self, feed: &FeedKey, channel: &str) -> Result<Option<Bytes>, StoreError> {
        let key = self.prefix.checkpoint(feed, channel);
        let mut get = redis::cmd("GET");
        get.arg(key);
        self.link.repeatable(get).await
    }

    async fn put_checkpoint(
        &self,
        feed: &FeedKey,
        channel: &str,
        bytes: Bytes,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        let key = self.prefix.checkpoint(feed, channel);
        let mut set = redis::cmd("SET");
        set.arg(key).arg(&*bytes).arg("PX").arg(milliseconds(ttl));
        self.link.repeatable(set).await
    }

    async fn extend_checkpoint(&self, feed: &FeedKey, channel: &str, ttl: Duration) -> Result<bool, StoreError> {
        let mut expire = redis::cmd("PEXPIRE");
        expire.arg(self.prefix.checkpoint(feed, channel)).arg(milliseconds(ttl));
        self.link.repeatable(expire).await
    }

    async fn lock(&self, feed: &FeedKey, channel: &str, holder: &str, ttl: Duration) -> Result<bool, StoreError> {
        let key = self.prefix.lock(feed, channel);
        let mut set = redis::cmd("SET");
        set.arg(key).arg(holder).arg("NX").arg("PX").arg(milliseconds(ttl));
        // Not repeated: the second time we would find our own lock. It lapses by itself.
        let answer: Option<String> = self.link.once(set).await?;
        Ok(answer.is_some())
    }

    async fn renew(&self, feed: &FeedKey, channel: &str, holder: &str, ttl: Duration) -> Result<bool, StoreError> {
        let mut call = self.scripts.renew.prepare_invoke();
        call.arg(self.prefix.lock(feed, channel)).arg(holder).arg(milliseconds(ttl));
        self.link.repeatable(call).await
    }

    async fn unlock(&self, feed: &FeedKey, channel: &str, holder: &str) -> Result<(), StoreError> {
        let mut call = self.scripts.unlock.prepare_invoke();
        call.arg(self.prefix.lock(feed, channel)).arg(holder);
        self.link.repeatable(call).await
    }

    async fn register_identities(&self, identities: &[String], ttl: Duration) -> Result<(), StoreError> {
        for identities in identities.chunks(IDENTITIES_AT_ONCE) {
            let mut call = self.scripts.register.prepare_invoke();
            call.arg(&*self.prefix.0).arg(milliseconds(ttl));
            for identity in identities {
                call.arg(identity.as_str());
            }
            let _: String = self.link.repeatable(call).await?;
        }
        Ok(())
    }

    async fn live_identities(&self, known: &str) -> Result<Option<LiveIdentities>, StoreError> {
        let mut call = self.scripts.identities.prepare_invoke();
        call.arg(&*self.prefix.0).arg(known);
        let answer: Option<(String, Vec<String>)> = self.link.repeatable(call).await?;
        Ok(answer.map(|(stamp, identities)| LiveIdentities { stamp, identities }))
    }

    async fn ping(&self) -> Result<(), StoreError> {
        self.link.repeatable(redis::cmd("PING")).await.map(|_: String| ())
    }
}

/// Redis counts in milliseconds, from one on.
fn milliseconds(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)
}
