//! How fast a client may speak: some messages at once, then so many per second.
//!
//! Crossing the rate is no error and nothing is dropped: the session stops reading until the bucket has a token again,
//! and the client's own TCP window tells it to wait.

use std::time::Duration;

use tokio::time::Instant;

/// A token bucket, kept as the moment at which it will be full again.
#[derive(Debug)]
pub struct Rate {
    /// One token's worth of time.
    every: Duration,
    /// All tokens' worth of time.
    depth: Duration,
    full_at: Instant,
}

impl Rate {
    /// A full bucket of `burst` tokens that refills at `per_second`; neither below 1.
    pub fn new(burst: u32, per_second: u32, now: Instant) -> Self {
        let every = Duration::from_secs(1) / per_second.max(1);
        Self { every, depth: every * burst.max(1), full_at: now }
    }

    /// When the next token is there: `now` or later.
    pub fn ready_at(&self, now: Instant) -> Instant {
        now.max(self.full_at + self.every - self.depth)
    }

    /// Takes a token; one that is not there yet is owed.
    pub fn take(&mut self, now: Instant) {
        self.full_at = self.full_at.max(now) + self.every;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_then_the_sustained_rate() {
        let start = Instant::now() + Duration::from_secs(60);
        let mut rate = Rate::new(256, 50, start);
        for _ in 0..256 {
            assert_eq!(rate.ready_at(start), start);
            rate.take(start);
        }
        let mut now = start;
        for _ in 0..50 {
            now = rate.ready_at(now);
            rate.take(now);
        }
        assert_eq!(now - start, Duration::from_secs(1));
        // Idle for long, the bucket holds no more than it did at first.
        now += Duration::from_secs(3_600);
        for _ in 0..256 {
            rate.take(now);
        }
        assert_eq!(rate.ready_at(now), now + Duration::from_millis(20));
    }
}
