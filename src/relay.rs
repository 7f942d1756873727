//! The leader: carries cuts from Postgres into the store, one node at a time.
//!
//! ```text
//!   office   acquire the lease; while it is kept:
//!     term     claim the store → fence, head
//!              decide where to start                             (see [`start`])
//!              wake up → poll → cut → append → delivered         (see [`term`])
//!              a refusal or an unclear failure: the next term of the same office
//!   the lease is lost, or the session: the next office
//! ```
//!
//! Every unclear moment ends a term. The next one asks the store what it has and goes on from that: cuts of tables are
//! states, so telling one again under a higher version is harmless. A version is never appended twice.

mod onlookers;
mod start;
mod term;

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::capture::doorbell::Doorbell;
use crate::capture::lease::{self, LeaseHandle};
use crate::capture::reader::Reader;
use crate::capture::views::ViewLimits;
use crate::metrics;
use crate::store::Store;

/// Between two attempts to come into office when the database cannot be reached.
const OFFICE_RETRY: Duration = Duration::from_millis(500);
/// Before the next term, when the last one ended with a failure.
const TERM_RETRY: Duration = Duration::from_millis(250);

/// The write half of one node.
pub struct Relay {
    pub database: PgConnectOptions,
    pub store: Arc<dyn Store>,
    /// The node's name, for logs.
    pub node: String,
    /// What running a view may cost.
    pub view_limits: ViewLimits,
    /// What `/readyz` and the metrics are told; see [`RelayStatus`].
    pub status: watch::Sender<RelayStatus>,
}

/// How the relay of this node is doing.
#[derive(Clone, Debug, Default)]
pub struct RelayStatus {
    /// This node leads.
    pub leader: bool,
    /// The last poll after which the store was known to be complete.
    pub polled: Option<Instant>,
    /// Why the last office or term ended; cleared by the next successful poll. A candidate that waits has none.
    pub error: Option<String>,
}

/// Runs until `stop`: a candidate most of the time, the leader when nobody else is.
pub async fn run(relay: Relay, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = relay.hold_offices() => {}
    }
    relay.is_leader(false);
}

impl Relay {
    async fn hold_offices(&self) {
        loop {
            match lease::acquire(&self.database).await {
                Ok((mut lease, handle)) => {
                    tracing::info!(node = %self.node, "this node leads");
                    self.is_leader(true);
                    // Ends with whichever ends first: the lease, or the session that reads cuts.
                    let error = tokio::select! {
                        error = lease.keep() => error.to_string(),
                        error = self.hold_terms(handle) => error,
                    };
                    self.is_leader(false);
                    lease.release().await;
                    tracing::info!(node = %self.node, "this node leads no longer");
                    self.failed(error);
                }
                Err(error) => self.failed(format!("the database cannot be reached: {error}")),
            }
            tokio::time::sleep(OFFICE_RETRY).await;
        }
    }

    /// One term after the other, until the session is lost; why it was.
    async fn hold_terms(&self, lease: LeaseHandle) -> String {
        let mut reader = match Reader::connect(&self.database).await {
            Ok(reader) => reader,
            Err(error) => return format!("the database cannot be reached: {error}"),
        };
        let mut bell = Doorbell::new(&self.database);
        loop {
            let Err(ended) = term::serve(self, &mut reader, &mut bell, &lease).await;
            if lease.confirm().await.is_err() {
                return format!("the lease is lost: {ended}");
            }
            match ended {
                term::Ended::Reclaim(why) => {
                    self.failed(why);
                    tokio::time::sleep(TERM_RETRY).await;
                }
                term::Ended::Session(error) => return error,
            }
        }
    }

    fn is_leader(&self, leader: bool) {
        metrics::leader(leader);
        self.status.send_modify(|status| status.leader = leader);
    }

    /// Says why delivery stopped; once, however often it is tried again.
    fn failed(&self, error: String) {
        if self.status.borrow().error.as_ref() != Some(&error) {
            tracing::warn!(node = %self.node, %error, "delivery stopped; trying again");
        }
        self.status.send_modify(|status| status.error = Some(error));
    }

    fn polled(&self) {
        self.status.send_modify(|status| {
            status.polled = Some(Instant::now());
            status.error = None;
        });
    }
}
