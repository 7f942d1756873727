//! Views and their versions: the leader runs a view less often than something under it changes, so there are versions at
//! which what the log says of it is not its state. Beats name them.
//!
//! A client that follows a view moves, on all its channels, only at versions at which it is fresh, as if the versions between
//! did not exist:
//!
//! ```text
//!   versions      41 ── 42 ── 43 ── 44 ── 45
//!   the view    fresh  stale stale fresh stale
//!   its clients   41 ──────────────▶ 44          one step
//! ```
//!
//! Where no beat has told, as after a reading of the log, every view counts as stale until the next beat.

use std::time::Instant;

use super::HubState;
use crate::hub::SessionId;
use crate::hub::session::Standing;
use crate::protocol::{ChannelNumber, Refusal};
use crate::publication::FeedKey;
use crate::version::Cut;

impl HubState {
    /// Whether a feed is a view's, by the catalogue.
    pub(super) fn is_view(&self, feed: &FeedKey) -> bool {
        self.catalogue
            .as_ref()
            .and_then(|catalogue| catalogue.publications.get(&feed.name))
            .is_some_and(|publication| publication.feed == *feed && publication.source.is_view())
    }

    /// Whether a view may be stale at the node's version.
    pub(super) fn is_stale(&self, feed: &FeedKey) -> bool {
        let stale = self.position.as_ref().and_then(|position| position.stale.as_ref());
        stale.is_none_or(|stale| stale.contains(feed))
    }

    /// Clients of views that are stale from now on stand still; `before` is the last version that they have.
    pub(super) fn hold_stale(&mut self, before: &Cut) {
        for key in self.views_that_become(true) {
            let Some(feed) = self.feeds.get_mut(&key) else { continue };
            feed.stale = true;
            for number in &feed.channels {
                let Some(channel) = self.channels.get(number) else { continue };
                for session in &channel.subscribers {
                    if let Some(client) = self.clients.get_mut(session)
                        && client
                            .subscriptions
                            .get(number)
                            .is_some_and(|subscription| !matches!(subscription.standing, Standing::New { .. }))
                    {
                        client.hold_at(before);
                    }
                }
            }
        }
    }

    /// Follows what a beat said: holds clients of views that are stale now, and brings those forward whose views are fresh.
    /// At once, as the next version may find them stale again.
    pub(super) fn follow_staleness(&mut self, before: &Cut, now: Instant) {
        self.hold_stale(before);
        let fresh = self.views_that_become(false);
        if fresh.is_empty() {
            return;
        }
        for key in fresh {
            let Some(feed) = self.feeds.get_mut(&key) else { continue };
            feed.stale = false;
            for number in feed.channels.clone() {
                let subscribers: Vec<SessionId> = self
                    .channels
                    .get(&number)
                    .map(|channel| channel.subscribers.iter().copied().collect())
                    .unwrap_or_default();
                for session in subscribers {
                    self.make_due(session);
                }
                if self.channels.get(&number).is_some_and(|channel| channel.is_live()) {
                    self.answer_readers(number);
                }
            }
        }
        self.look_after_due(now);
    }

    /// Views of this node whose staleness is to become this.
    fn views_that_become(&self, stale: bool) -> Vec<FeedKey> {
        let becomes = |key: &FeedKey| self.is_stale(key) == stale;
        let views = self.feeds.iter().filter(|(_, feed)| feed.is_view && feed.stale != stale);
        views.filter(|(key, _)| becomes(key)).map(|(key, _)| key.clone()).collect()
    }

    /// Whether a client has to stand still, because a view that it has rows of is stale.
    pub(super) fn follows_stale(&self, session: SessionId) -> bool {
        let Some(client) = self.clients.get(&session) else { return false };
        client.subscriptions.iter().any(|(number, subscription)| {
            !matches!(subscription.standing, Standing::New { .. })
                && self
                    .channels
                    .get(number)
                    .is_some_and(|channel| self.feeds.get(channel.feed()).is_some_and(|feed| feed.stale))
        })
    }

    /// What cannot begin because its view stays stale is refused for now.
    pub(super) fn give_up_on_stale(&mut self, now: Instant) {
        let refusal = Refusal::unavailable("the view could not be run in time");
        let mut late: Vec<(SessionId, ChannelNumber)> = Vec::new();
        for feed in self.feeds.values().filter(|feed| feed.stale) {
            for number in &feed.channels {
                let Some(channel) = self.channels.get(number) else { continue };
                late.extend(channel.subscribers.iter().filter_map(|&session| {
                    let subscription = self.clients.get(&session)?.subscriptions.get(number)?;
                    let Standing::New { since, .. } = &subscription.standing else { return None };
                    (now.duration_since(*since) >= self.settings.open_timeout).then_some((session, *number))
                }));
            }
        }
        for (session, number) in late {
            self.refuse_subscription(session, number, &refusal, now);
        }
    }
}
