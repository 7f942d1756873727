//! The part of the local store that may vanish at any moment: checkpoints and locks, both with an end.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::publication::FeedKey;

/// Checkpoints share this much memory; what ends first goes first. Four channels of the largest size allowed.
const CHECKPOINT_BYTES_MAX: usize = 256 << 20;

/// A channel: its feed and its hash.
type Place = (FeedKey, String);

#[derive(Default)]
pub(super) struct Cache {
    checkpoints: HashMap<Place, Checkpoint>,
    checkpoint_bytes: usize,
    locks: HashMap<Place, Lock>,
}

struct Checkpoint {
    bytes: Bytes,
    ends: Instant,
}

struct Lock {
    holder: String,
    ends: Instant,
}

impl Cache {
    pub fn checkpoint(&mut self, feed: &FeedKey, channel: &str) -> Option<Bytes> {
        let now = Instant::now();
        let place = (feed.clone(), channel.to_owned());
        self.checkpoints.get(&place).filter(|checkpoint| checkpoint.ends > now).map(|found| found.bytes.clone())
    }

    pub fn put_checkpoint(&mut self, feed: &FeedKey, channel: &str, bytes: Bytes, ttl: Duration) {
        let now = Instant::now();
        let place = (feed.clone(), channel.to_owned());
        self.remove(&place);
        self.checkpoints.retain(|_, checkpoint| {
            let stays = checkpoint.ends > now;
            self.checkpoint_bytes -= if stays { 0 } else { checkpoint.bytes.len() };
            stays
        });
        self.checkpoint_bytes += bytes.len();
        self.checkpoints.insert(place, Checkpoint { bytes, ends: now + ttl });
        while self.checkpoint_bytes > CHECKPOINT_BYTES_MAX
            && let Some(first) = self.checkpoints.iter().min_by_key(|(_, checkpoint)| checkpoint.ends)
        {
            let place = first.0.clone();
            self.remove(&place);
        }
    }

    pub fn extend_checkpoint(&mut self, feed: &FeedKey, channel: &str, ttl: Duration) -> bool {
        let now = Instant::now();
        let checkpoint = self.checkpoints.get_mut(&(feed.clone(), channel.to_owned()));
        let Some(checkpoint) = checkpoint.filter(|checkpoint| checkpoint.ends > now) else { return false };
        checkpoint.ends = now + ttl;
        true
    }

    fn remove(&mut self, place: &Place) {
        if let Some(checkpoint) = self.checkpoints.remove(place) {
            self.checkpoint_bytes -= checkpoint.bytes.len();
        }
    }

    pub fn lock(&mut self, feed: &FeedKey, channel: &str, holder: &str, ttl: Duration) -> bool {
        let now = Instant::now();
        self.locks.retain(|_, lock| lock.ends > now);
        let place = (feed.clone(), channel.to_owned());
        if self.locks.contains_key(&place) {
            return false;
        }
        self.locks.insert(place, Lock { holder: holder.to_owned(), ends: now + ttl });
        true
    }

    pub fn renew(&mut self, feed: &FeedKey, channel: &str, holder: &str, ttl: Duration) -> bool {
        let now = Instant::now();
        let lock = self.locks.get_mut(&(feed.clone(), channel.to_owned()));
        let Some(lock) = lock.filter(|lock| lock.holder == holder && lock.ends > now) else { return false };
        lock.ends = now + ttl;
        true
    }

    pub fn unlock(&mut self, feed: &FeedKey, channel: &str, holder: &str) {
        let place = (feed.clone(), channel.to_owned());
        if self.locks.get(&place).is_some_and(|lock| lock.holder == holder) {
            self.locks.remove(&place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_first_makes_room() {
        let feed = FeedKey { name: "orders".into(), generation: 1 };
        let mut cache = Cache::default();
        let third = Bytes::from(vec![0; CHECKPOINT_BYTES_MAX / 3]);
        for (channel, seconds) in [("a", 30), ("b", 10), ("c", 20), ("d", 40)] {
            cache.put_checkpoint(&feed, channel, third.clone(), Duration::from_secs(seconds));
        }
        let left: Vec<&str> =
            ["a", "b", "c", "d"].into_iter().filter(|channel| cache.checkpoint(&feed, channel).is_some()).collect();
        assert_eq!(left, ["a", "c", "d"]);
        assert_eq!(cache.checkpoint_bytes, cache.checkpoints.values().map(|found| found.bytes.len()).sum::<usize>());
    }
}
