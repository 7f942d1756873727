//! One client as the hub sees it: what it subscribed to, how far it was brought, and the queue towards it.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use super::inbox::{Delivery, Item, Outbox};
use crate::audit::{Shown, Viewer};
use crate::identity::Identity;
use crate::protocol::{ChannelNumber, Frame, Resume};
use crate::query::ChannelRequest;
use crate::version::{Cut, Version};

/// A client's connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) viewer: Viewer,
    pub(super) outbox: Outbox,
    /// Ordered, so that a step names channels in a stable order.
    pub(super) subscriptions: BTreeMap<ChannelNumber, Subscription>,
    /// Every id in use, also those whose channel is not resolved yet.
    pub(super) ids: HashMap<u64, Option<ChannelNumber>>,
    pub(super) pace: Pace,
    /// A batch was queued and not yet reported written: at most one set of frozen rows per client.
    pub(super) awaiting: bool,
    /// Deltas of the step in hand.
    pub(super) moved: Vec<Frame>,
    /// The channels that these are of.
    pub(super) moving: Vec<ChannelNumber>,
    /// Answers that wait for room in the queue.
    pub(super) answers: Vec<Frame>,
    /// Whether the client is on the list of those to look after at the end of the turn.
    pub(super) due: bool,
}

/// How a client keeps up.
#[derive(Debug)]
pub(super) enum Pace {
    /// Everything up to the node's version is queued for it.
    Live,
    /// Nothing is queued beyond this cut; it gets what changed since, in one step, when it can.
    Behind(Cut),
}

/// A client's interest in one channel.
#[derive(Debug)]
pub(super) struct Subscription {
    /// The ids it goes by, in the order in which they were asked for; those from `announced` on have not been answered.
    pub(super) ids: Vec<u64>,
    pub(super) request: ChannelRequest,
    pub(super) identity: Identity,
    pub(super) standing: Standing,
    /// The last version told with content of this channel.
    pub(super) told: Version,
    /// From the first rows on.
    pub(super) shown: Option<Shown>,
}

impl Subscription {
    /// Ends it, for the audit.
    pub(super) fn end(&mut self, why: &'static str) {
        if let Some(shown) = self.shown.take() {
            shown.end(why);
        }
    }
}

/// What the client was told of a channel.
#[derive(Debug)]
pub(super) enum Standing {
    /// Nothing yet.
    New { resume: Option<Resume>, since: Instant },
    /// Its rows, and every change up to the client's pace.
    Complete,
    /// Rows under another form: it has to hear `subscribed` again, and a snapshot.
    Moved,
}

impl Client {
    pub(super) fn new(viewer: Viewer, outbox: Outbox) -> Self {
        Self {
            viewer,
            outbox,
            subscriptions: BTreeMap::new(),
            ids: HashMap::new(),
            pace: Pace::Live,
            awaiting: false,
            moved: Vec::new(),
            moving: Vec::new(),
            answers: Vec::new(),
            due: false,
        }
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.pace, Pace::Live)
    }

    /// From here on nothing is queued until the client can be brought up to date in one step.
    pub(super) fn hold_at(&mut self, cut: &Cut) {
        if self.is_live() {
            self.pace = Pace::Behind(cut.clone());
        }
    }

    /// Queues answers that have waited. False: some still wait.
    pub(super) fn send_answers(&mut self) -> bool {
        if self.answers.is_empty() {
            return true;
        }
        if !self.outbox.has_room() {
            return false;
        }
        let items: Vec<Item> = self.answers.drain(..).map(Item::Frame).collect();
        self.outbox.send(Delivery::new(items, None))
    }

    /// Queues the deltas of a step: one, or several between `step` and `live`. False: there was no room.
    pub(super) fn send_moved(&mut self, step: impl FnOnce() -> (Frame, Frame), as_of: i64) -> bool {
        if !self.outbox.has_room() {
            self.moved.clear();
            return false;
        }
        let single = self.moved.len() == 1;
        let frames = self.moved.drain(..).map(Item::Frame);
        if single {
            return self.outbox.send(Delivery::new(frames, Some(as_of)));
        }
        let (opening, closing) = step();
        let items = std::iter::once(Item::Frame(opening)).chain(frames).chain([Item::Frame(closing)]);
        self.outbox.send(Delivery::new(items, Some(as_of)))
    }
}
