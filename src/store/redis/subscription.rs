//! The pub/sub connection of one subscription, and the task that keeps it alive.
//!
//! ```text
//!   connect ──▶ subscribe to everything wanted ──▶ (Lost, unless first) ──▶ messages ── gone, or silent ──┐
//!      ▲                                                                                                   │
//!      └───────────────────────────── wait: 50 ms, doubling up to 500 ms, jittered ◀───────────────────────┘
//! ```
//!
//! `Lost` is said after subscribing again, not when the connection breaks: whoever reads the log then misses nothing.
//! A connection is silent when a ping has no answer within two seconds; beats would not do, they stop with the leader.

use std::collections::HashSet;
use std::time::Duration;

use futures_util::StreamExt;
use rand::Rng;
use redis::aio::{PubSubSink, PubSubStream};
use redis::{Client, Msg, RedisResult};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::link::{CONNECT_TIMEOUT, RESPONSE_TIMEOUT};
use super::{Prefix, wire};
use crate::publication::FeedKey;
use crate::store::assembler::Assembler;
use crate::store::outbox::Outbox;
use crate::store::{Beat, Filler, Interest, Push};

const PING_EVERY: Duration = Duration::from_secs(1);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Interests are taken in batches of at most this size, one command each way.
const INTERESTS_AT_ONCE: usize = 256;

/// Why a connection ended.
enum End {
    /// The subscription was dropped: nobody listens any more.
    Dropped,
    Lost(String),
}

/// A subscription's state over its connections.
pub(super) struct Listener {
    client: Client,
    prefix: Prefix,
    wanted: HashSet<FeedKey>,
    interests: mpsc::UnboundedReceiver<Interest>,
    assembler: Assembler,
    outbox: Outbox,
    /// Whether the last attempt led to a connection: its end is worth a line in the log, each failure to replace it is not.
    was_connected: bool,
}

impl Listener {
    pub fn new(client: Client, prefix: Prefix, filler: Filler) -> Self {
        Self {
            client,
            prefix,
            wanted: HashSet::new(),
            interests: filler.interests,
            assembler: Assembler::default(),
            outbox: Outbox::new(filler.pushes),
            was_connected: true,
        }
    }

    pub async fn run(mut self) {
        let mut backoff = BACKOFF_MIN;
        loop {
            let started = Instant::now();
            let End::Lost(why) = self.listen().await else { return };
            if std::mem::take(&mut self.was_connected) {
                tracing::warn!(%why, "the store's pub/sub connection was lost");
            }
            self.assembler.clear();
            self.outbox.lose();
            backoff = if started.elapsed() > BACKOFF_MAX * 4 { BACKOFF_MIN } else { (backoff * 2).min(BACKOFF_MAX) };
            let jittered = backoff.mul_f64(rand::rng().random_range(0.5..1.0));
            if let Err(End::Dropped) = self.wait(Instant::now() + jittered).await {
                return;
            }
        }
    }

    /// Lets time pass between two connections; interests are remembered for the next.
    async fn wait(&mut self, until: Instant) -> Result<(), End> {
        loop {
            // Wake-ups: the time is up; the reader wants another feed or went away.
            tokio::select! {
                () = sleep_until(until) => return Ok(()),
                interest = self.interests.recv() => match interest {
                    Some(Interest::Feed(feed)) => { self.wanted.insert(feed); }
                    Some(Interest::Unfeed(feed)) => { self.wanted.remove(&feed); }
                    None => return Err(End::Dropped),
                },
            }
        }
    }

    /// One connection, from its making to its end.
    async fn listen(&mut self) -> End {
        let connected = timeout(CONNECT_TIMEOUT, self.client.get_async_pubsub()).await;
        let (sink, messages) = match connected {
            Ok(Ok(pubsub)) => pubsub.split(),
            Ok(Err(error)) => return End::Lost(error.to_string()),
            Err(_) => return End::Lost("no connection within a second".to_owned()),
        };
        let mut channels: Vec<String> = self.wanted.iter().map(|feed| self.prefix.live(feed)).collect();
        channels.push(self.prefix.beat());
        if let Err(lost) = answered(sink.clone().subscribe(&channels)).await {
            return lost;
        }
        self.was_connected = true;
        match self.follow(sink, messages).await {
            Ok(()) => End::Dropped,
            Err(end) => end,
        }
    }

    async fn follow(&mut self, sink: PubSubSink, mut messages: PubSubStream) -> Result<(), End> {
        let mut watch = std::pin::pin!(watch(sink.clone()));
        let sender = self.outbox.sender();
        let mut interests = Vec::new();
        loop {
            // Wake-ups, the rare ones first: the queue has room for the `Lost` that is due; a ping has no answer; the
            // reader wants other feeds or went away; a message, or the connection's end.
            tokio::select! {
                biased;
                room = sender.clone().reserve_owned(), if self.outbox.is_lost() => match room {
                    Ok(room) => self.outbox.recover(room),
                    Err(_) => return Ok(()),
                },
                lost = &mut watch => return Err(lost),
                count = self.interests.recv_many(&mut interests, INTERESTS_AT_ONCE) => {
                    if count == 0 {
                        return Ok(());
                    }
                    self.change(sink.clone(), interests.drain(..)).await?;
                }
                message = messages.next() => match message {
                    Some(message) => self.handle(&message),
                    None => return Err(End::Lost("the connection was closed".to_owned())),
                },
            }
        }
    }

    /// Subscribes and unsubscribes what a batch of interests comes down to. Messages wait meanwhile.
    async fn change(&mut self, mut sink: PubSubSink, interests: impl Iterator<Item = Interest>) -> Result<(), End> {
        let before = self.wanted.clone();
        for interest in interests {
            match interest {
                Interest::Feed(feed) => self.wanted.insert(feed),
                Interest::Unfeed(feed) => self.wanted.remove(&feed),
            };
        }
        let added: Vec<String> = self.wanted.difference(&before).map(|feed| self.prefix.live(feed)).collect();
        if !added.is_empty() {
            answered(sink.subscribe(&added)).await?;
        }
        let removed: Vec<String> = before.difference(&self.wanted).map(|feed| self.prefix.live(feed)).collect();
        if !removed.is_empty() {
            answered(sink.unsubscribe(&removed)).await?;
        }
        for feed in before.difference(&self.wanted) {
            self.assembler.forget(feed);
        }
        Ok(())
    }

    /// What is not ours, or not readable, is passed over: a beat names every entry, so a lost one is read from the log.
    fn handle(&mut self, message: &Msg) {
        let channel = message.get_channel_name();
        let read = if channel == self.prefix.beat() {
            serde_json::from_slice::<Beat>(message.get_payload_bytes()).map(|beat| self.close(beat))
        } else {
            match self.prefix.feed_of_live(channel).filter(|feed| self.wanted.contains(feed)) {
                Some(feed) => wire::pushed_fragment(message.get_payload_bytes())
                    .map(|fragment| self.assembler.part(feed, fragment)),
                None => Ok(()),
            }
        };
        if let Err(error) = read {
            tracing::warn!(channel, %error, "a message on the store's channel is not one of ours");
        }
    }

    fn close(&mut self, beat: Beat) {
        for (feed, entry) in self.assembler.close(&beat) {
            self.outbox.push(Push::Entry(feed, entry));
        }
        self.outbox.push(Push::Beat(beat));
    }
}

/// Waits for the server's answer, but not for ever.
async fn answered(command: impl Future<Output = RedisResult<()>>) -> Result<(), End> {
    match timeout(RESPONSE_TIMEOUT, command).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(End::Lost(error.to_string())),
        Err(_) => Err(End::Lost("no answer within two seconds".to_owned())),
    }
}

/// Ends when the other side is silent.
async fn watch(mut sink: PubSubSink) -> End {
    loop {
        sleep(PING_EVERY).await;
        if let Err(lost) = answered(sink.ping()).await {
            return lost;
        }
    }
}
