//! How a node stops taking sessions and lets go of those it has.
//!
//! ```text
//! Starting ──started()──▶ Serving ──run()──▶ Draining ──wait──▶ Closing ──────────────▶ cut off
//! /servez red             green              red: balancers     each session closes     what is still there
//!                                            look elsewhere     at a random moment      ends without a word
//!                                                               of the spread
//! ```
//!
//! axum's graceful shutdown does not wait for upgraded connections; therefore every connection and every session is
//! counted in one [`TaskTracker`] here. A [`Drain`] knows nothing of what the tasks do.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tokio_util::task::TaskTracker;

/// Where the node stands between its start and its end. It only moves downwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not yet to be sent clients.
    Starting,
    Serving,
    /// Serves, but asks not to be sent new clients.
    Draining,
    /// Every session picks a moment within `spread` and closes; nothing new is accepted.
    Closing {
        spread: Duration,
    },
}

/// The one handle of a node's phases; shared by the routes and every session.
pub struct Drain {
    phase: watch::Sender<Phase>,
    tasks: TaskTracker,
    cut_off: CancellationToken,
}

impl Drain {
    /// Sessions that have not closed this long after the spread are cut off: they had their second for the close.
    const GRACE: Duration = Duration::from_secs(3);

    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            phase: watch::Sender::new(Phase::Starting),
            tasks: TaskTracker::new(),
            cut_off: CancellationToken::new(),
        })
    }

    /// The start-up is done.
    pub fn started(&self) {
        self.phase.send_if_modified(|phase| {
            let begins = *phase == Phase::Starting;
            if begins {
                *phase = Phase::Serving;
            }
            begins
        });
    }

    /// Drains: red at once, after `wait` the sessions close over `spread`. Returns when they have been told;
    /// [`Drain::ended`] waits for them.
    pub async fn run(&self, wait: Duration, spread: Duration) {
        self.phase.send_replace(Phase::Draining);
        tokio::time::sleep(wait).await;
        self.phase.send_replace(Phase::Closing { spread });
    }

    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// For [`closing`].
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Counts everything that has to end before the node does.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// From here on nothing waits for anybody.
    pub fn cut_off(&self) -> WaitForCancellationFuture<'_> {
        self.cut_off.cancelled()
    }

    /// Waits until every task has ended; cuts off what is left after the spread and [`Self::GRACE`]. To be awaited
    /// once the phase is `Closing`.
    pub async fn ended(&self) {
        self.tasks.close();
        let patience = match self.phase() {
            Phase::Closing { spread } => spread + Self::GRACE,
            _ => Self::GRACE,
        };
        if tokio::time::timeout(patience, self.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.tasks.len(), "cutting off connections that did not close in time");
            self.cut_off.cancel();
            self.tasks.wait().await;
        }
    }
}

/// Waits for `Closing` and gives its spread. Cancel-safe. Without a [`Drain`] left, the end is now.
pub async fn closing(phase: &mut watch::Receiver<Phase>) -> Duration {
    match phase.wait_for(|phase| matches!(phase, Phase::Closing { .. })).await.as_deref() {
        Ok(Phase::Closing { spread }) => *spread,
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_does_not_close_in_time_is_cut_off() {
        let drain = Drain::new();
        drain.started();
        let deaf = Arc::clone(&drain);
        drain.tasks().spawn(async move { deaf.cut_off().await });
        let began = tokio::time::Instant::now();
        drain.run(Duration::from_secs(5), Duration::from_secs(10)).await;
        assert_eq!(closing(&mut drain.watch()).await, Duration::from_secs(10));
        drain.ended().await;
        assert_eq!(began.elapsed(), Duration::from_secs(15) + Drain::GRACE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_that_ends_late_does_not_undo_a_drain() {
        let drain = Drain::new();
        assert_eq!(drain.phase(), Phase::Starting);
        drain.run(Duration::ZERO, Duration::ZERO).await;
        drain.started();
        assert_eq!(drain.phase(), Phase::Closing { spread: Duration::ZERO });
    }
}
