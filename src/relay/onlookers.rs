//! Who has to be told of in entries: the identities with live channels, as nodes register them in the store.
//!
//! Asked for beside every poll of the database, so that it costs a cut no time; the store answers only if the list is
//! another. An identity that registered a moment too late is missing in an entry, and its channels are read again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::capture::sight::{self, Onlookers};
use crate::identity::Onlooker;
use crate::publication::Policy;
use crate::store::Store;

/// The whole list is read so often, to be rid of those that have lapsed.
const WHOLE_EVERY: Duration = Duration::from_secs(10);
/// A store that answers later than this is not waited for: the list that is known is used.
const ANSWER_MAX: Duration = Duration::from_millis(250);

/// The list, as far as it is known.
#[derive(Debug)]
pub(super) struct Register {
    stamp: String,
    whole_next: Instant,
    feeds: Arc<Onlookers>,
}

impl Register {
    pub(super) fn new(now: Instant) -> Self {
        Self { stamp: String::new(), whole_next: now, feeds: Arc::default() }
    }

    pub(super) fn feeds(&self) -> Arc<Onlookers> {
        self.feeds.clone()
    }

    /// Learns what is new. Never fails: what is not known is missing in entries, and that is right.
    pub(super) async fn refresh(&mut self, store: &dyn Store) {
        let now = Instant::now();
        if now >= self.whole_next {
            self.stamp.clear();
        }
        match timeout(ANSWER_MAX, store.live_identities(&self.stamp)).await {
            Ok(Ok(Some(live))) => {
                let read = live.identities.iter().filter_map(|text| match Onlooker::parse(text) {
                    Ok(onlooker) => Some(onlooker),
                    Err(error) => {
                        tracing::warn!(%error, "the store names an identity that cannot be read");
                        None
                    }
                });
                self.feeds = Arc::new(sight::by_feed(read));
                self.stamp = live.stamp;
                self.whole_next = now + WHOLE_EVERY;
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the live identities cannot be read"),
            Err(_) => tracing::debug!("the store is slow to name the live identities"),
        }
    }
}

/// Whether anything is published that row security decides about.
pub(super) fn are_needed(catalogue: &crate::publication::Catalogue) -> bool {
    catalogue.publications.values().any(|publication| publication.policy == Policy::Rls)
}
