//! When to look into the change log: at once when somebody rings, often while much is written, and now and then anyway.
//!
//! ```text
//!              >= 150 rings/s                      few polls find anything
//!   Asleep ───────────────────▶ Awake ──────────────────────────────────┐
//!     ▲  rung, or 1 s            every 5 to 20 ms, nobody rings         │ lock released, id x drawn
//!     │                                                                 ▼
//!     └───────────────────────────────────────────────────────────── Settling
//!          every transaction below x that was running has ended        2 ms … 100 ms, or rung
//! ```
//!
//! NOTIFY serialises the commits of the whole cluster, so writers ring only while the leader sleeps. A writer that tested
//! the lock just before it was released does not ring; it has a transaction id by then, below x. x has ended, so such a
//! writer is in the running list of every snapshot taken after: [`Pace::polled`] looks for it there. A new leader begins
//! in Settling for the same reason.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::time::{Instant, sleep, timeout};

use crate::capture::lease::{LeaseHandle, LeaseLost};
use crate::capture::session;
use crate::version::PgSnapshot;

/// Between two polls while awake: the longer, the more keys the last one told of. A cut costs about as much as telling of
/// some dozens of keys, so that above some 3,000 keys a second fewer, larger cuts leave more of the machine to the writers
/// (and merge rows that change often).
const AWAKE_POLL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(20));
const KEYS_PER_AWAKE_POLL: usize = 16;
/// The safety poll: no notification is relied on to arrive.
pub const SAFETY_POLL: Duration = Duration::from_secs(1);
/// While settling: the first pause, doubled up to the second.
const SETTLING_POLL: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));
/// Rings are counted over this time; so many in it wake the leader up (150 a second).
const RING_WINDOW: Duration = Duration::from_millis(200);
const RINGS_TO_WAKE: u32 = 30;
/// Polls are counted over this time; fewer than this share of them with changes, and the leader goes to sleep (at 5 ms
/// between polls, about 60 commits a second).
const AWAKE_WINDOW: Duration = Duration::from_secs(1);
const SHARE_TO_STAY: f64 = 0.25;
/// Between two attempts to listen again.
const RELISTEN: Duration = Duration::from_secs(1);

/// The bell itself: a session that LISTENs.
pub struct Doorbell {
    pool: sqlx::PgPool,
    /// `None`: lost, or not there yet.
    listener: Option<PgListener>,
    listen_next: Instant,
}

/// Why [`Doorbell::wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rung {
    /// So many writers rang.
    Rang(u32),
    /// Nobody did for as long as it was asked to wait.
    Silent,
    /// The bell was out of order and hangs again: look now, rings may have been lost.
    Restored,
}

impl Doorbell {
    /// A bell on this database; it hangs from the first [`Self::wait`] on.
    pub fn new(database: &PgConnectOptions) -> Self {
        let options = session::options(database).application_name("rowcast doorbell");
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(2))
            .test_before_acquire(false)
            .connect_lazy_with(options);
        Self { pool, listener: None, listen_next: Instant::now() }
    }

    /// Hangs the bell up: after this, whoever rings is heard. Does nothing where it hangs.
    pub async fn listen(&mut self) {
        if self.listener.is_some() || Instant::now() < self.listen_next {
            return;
        }
        self.listen_next = Instant::now() + RELISTEN;
        match timeout(Duration::from_secs(2), self.connect()).await {
            Ok(Ok(listener)) => self.listener = Some(listener),
            Ok(Err(error)) => tracing::warn!(%error, "the doorbell cannot be hung; polling every second"),
            Err(_) => tracing::warn!("the doorbell cannot be hung in time; polling every second"),
        }
    }

    async fn connect(&self) -> Result<PgListener, sqlx::Error> {
        let mut listener = PgListener::connect_with(&self.pool).await?;
        listener.eager_reconnect(false);
        listener.listen("rowcast").await?;
        Ok(listener)
    }

    /// Waits for a ring, for at most `limit`. Cancel-safe: a ring that is lost by cancelling is found by the next poll.
    pub async fn wait(&mut self, limit: Duration) -> Rung {
        if self.listener.is_none() {
            self.listen().await;
            if self.listener.is_some() {
                return Rung::Restored;
            }
        }
        let Some(listener) = &mut self.listener else {
            sleep(limit).await;
            return Rung::Silent;
        };
        match timeout(limit, listener.try_recv()).await {
            Err(_) => Rung::Silent,
            Ok(Ok(Some(_))) => {
                let mut rings = 1;
                while listener.next_buffered().is_some() {
                    rings += 1;
                }
                Rung::Rang(rings)
            }
            // `None` is a lost connection, and so is every error: not all kinds of loss come as `None`.
            Ok(lost) => {
                if let Err(error) = lost {
                    tracing::debug!(%error, "the doorbell was lost");
                }
                self.listener = None;
                Rung::Silent
            }
        }
    }
}

/// How fast to poll, see the drawing above.
pub struct Pace {
    state: State,
    lease: LeaseHandle,
    /// False where nobody rings, because prepared transactions forbid NOTIFY: then the leader never sleeps.
    bell_works: bool,
    ring_window: (Instant, u32),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Asleep,
    Settling { below: u64, pause: Duration },
    Awake { since: Instant, polls: u32, found: u32, pause: Duration },
}

impl Pace {
    /// For a new leader. The bell hangs already, so that whoever does not ring is a straggler.
    ///
    /// # Errors
    /// The lease is lost.
    pub async fn begin(lease: LeaseHandle, bell_works: bool) -> Result<Self, LeaseLost> {
        let below = lease.sleep().await?;
        let mut pace = Self {
            state: State::Settling { below, pause: SETTLING_POLL.0 },
            lease,
            bell_works,
            ring_window: (Instant::now(), 0),
        };
        if !bell_works {
            pace.wake().await?;
        }
        Ok(pace)
    }

    /// How long to wait before the next poll, if nobody rings.
    pub fn pause(&self) -> Duration {
        match self.state {
            State::Asleep => SAFETY_POLL,
            State::Settling { pause, .. } => pause,
            State::Awake { pause, .. } => pause,
        }
    }

    pub fn is_awake(&self) -> bool {
        matches!(self.state, State::Awake { .. })
    }

    pub fn is_asleep(&self) -> bool {
        self.state == State::Asleep
    }

    /// Counts rings; many wake the leader up.
    ///
    /// # Errors
    /// The lease is lost.
    pub async fn rung(&mut self, rings: u32) -> Result<(), LeaseLost> {
        if self.ring_window.0.elapsed() > RING_WINDOW {
            self.ring_window = (Instant::now(), 0);
        }
        self.ring_window.1 += rings;
        if self.ring_window.1 >= RINGS_TO_WAKE && !self.is_awake() {
            self.wake().await?;
        }
        Ok(())
    }

    /// Tells of a poll: its snapshot, whether it found changes, and how many keys the cut told of.
    ///
    /// # Errors
    /// The lease is lost.
    pub async fn polled(&mut self, snapshot: &PgSnapshot, found_changes: bool, keys: usize) -> Result<(), LeaseLost> {
        match &mut self.state {
            State::Asleep => {}
            State::Settling { below, pause } => {
                if !snapshot.xip().iter().any(|running| running < below) && snapshot.xmax() >= *below {
                    self.state = State::Asleep;
                } else if found_changes {
                    *pause = SETTLING_POLL.0;
                } else {
                    *pause = (*pause * 2).min(SETTLING_POLL.1);
                }
            }
            State::Awake { since, polls, found, pause } => {
                *polls += 1;
                *found += u32::from(found_changes);
                *pause = awake_pause(keys);
                if since.elapsed() >= AWAKE_WINDOW {
                    let quiet = f64::from(*found) < f64::from(*polls) * SHARE_TO_STAY;
                    if quiet && self.bell_works {
                        let below = self.lease.sleep().await?;
                        self.state = State::Settling { below, pause: SETTLING_POLL.0 };
                    } else {
                        (*since, *polls, *found) = (Instant::now(), 0, 0);
                    }
                }
            }
        }
        Ok(())
    }

    async fn wake(&mut self) -> Result<(), LeaseLost> {
        // A refusal is a writer testing the lock at this moment: the next ring asks again. Without the lock polling at
        // the faster pace is still right, so a leader without a bell does it anyway.
        if self.lease.wake().await? || !self.bell_works {
            self.state = State::Awake { since: Instant::now(), polls: 0, found: 0, pause: AWAKE_POLL.0 };
        }
        Ok(())
    }
}

/// Between a poll that told of so many keys and the next.
fn awake_pause(keys: usize) -> Duration {
    let times = u32::try_from(keys / KEYS_PER_AWAKE_POLL).unwrap_or(u32::MAX);
    AWAKE_POLL.0.saturating_mul(times).clamp(AWAKE_POLL.0, AWAKE_POLL.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_keys_lengthen_the_step_within_its_bounds() {
        let milliseconds = |keys| awake_pause(keys).as_millis();
        assert_eq!([0, 1, 31, 32, 48, 64, 1_000_000].map(milliseconds), [5, 5, 5, 10, 15, 20, 20]);
    }
}
