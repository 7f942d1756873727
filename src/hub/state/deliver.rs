//! Brings clients up to date: the deltas of a step to those who keep up, and to everybody else one batch at a time with
//! all that they miss.
//!
//! All channels of a client move together. What moves more than one of them stands between `step` and `live`.

use std::time::{Duration, Instant};

use super::{BEAT_LATE, HubState, Position};
use crate::audit::{Event, Record, Served, Shown};
use crate::hub::SessionId;
use crate::hub::channel::Channel;
use crate::hub::inbox::{Delivery, Item};
use crate::hub::session::{Client, Pace, Standing, Subscription};
use crate::metrics;
use crate::protocol::{self, Beginning, ChannelForm, ChannelNumber, Frame, Refusal, Resume};
use crate::version::{Cut, Version};

/// What a client's batch is made of.
#[derive(Default)]
struct Batch {
    items: Vec<Item>,
    /// Channels that it moves.
    moved: usize,
    /// Whether rows are frozen for it.
    frozen: bool,
}

impl Batch {
    fn say(&mut self, frame: Frame) {
        self.items.push(Item::Frame(frame));
    }

    fn move_by(&mut self, pages: std::sync::Arc<crate::hub::pages::Pages>) {
        self.items.push(Item::pages(pages));
        self.moved += 1;
        self.frozen = true;
    }
}

/// How a new subscription can begin.
enum Answer {
    Now,
    /// The node has not reached the client's version.
    Later,
    Refuse(Refusal),
}

impl HubState {
    /// Queues the deltas of one step to those who stand at the version before it.
    pub(super) fn deliver(&mut self, before: &Cut, moved: Vec<(ChannelNumber, Vec<Frame>)>) {
        let Some(Position { cut, .. }) = self.position.clone() else { return };
        let mut dirty: Vec<SessionId> = Vec::new();
        for (number, frames) in &moved {
            let Some(channel) = self.channels.get(number) else { continue };
            for session in &channel.subscribers {
                let Some(client) = self.clients.get_mut(session) else { continue };
                let complete = client
                    .subscriptions
                    .get(number)
                    .is_some_and(|subscription| matches!(subscription.standing, Standing::Complete));
                if client.is_live() && complete {
                    if client.moved.is_empty() {
                        dirty.push(*session);
                    }
                    client.moved.extend(frames.iter().cloned());
                    client.moving.push(*number);
                }
            }
        }
        let mut brackets: Option<(Frame, Frame)> = None;
        for session in dirty {
            let Some(client) = self.clients.get_mut(&session) else { continue };
            let working = self.working;
            let step = || {
                brackets
                    .get_or_insert_with(|| (protocol::step(cut.version), protocol::live(&cut, cut.as_of, working)))
                    .clone()
            };
            let moving = std::mem::take(&mut client.moving);
            if client.send_moved(step, cut.as_of) {
                for number in moving {
                    if let Some(subscription) = client.subscriptions.get_mut(&number) {
                        subscription.told = cut.version;
                    }
                }
            } else {
                client.hold_at(before);
            }
        }
    }

    /// Stops telling every client of each step; they get the difference when all steps are taken.
    pub(super) fn hold_all(&mut self, at: &Cut) {
        for (&session, client) in &mut self.clients {
            if !client.subscriptions.is_empty() {
                client.hold_at(at);
                if !client.due {
                    client.due = true;
                    self.due.push(session);
                }
            }
        }
    }

    pub(super) fn look_after_due(&mut self, now: Instant) {
        // Looking after one client may find another due: a refusal is an answer.
        while let Some(session) = self.due.pop() {
            if let Some(client) = self.clients.get_mut(&session) {
                client.due = false;
                self.look_after(session, now);
            }
        }
    }

    /// Queues what a client waits for, if it can take it now and none of its channels holds it up.
    fn look_after(&mut self, session: SessionId, now: Instant) {
        let Some(client) = self.clients.get_mut(&session) else { return };
        if !client.send_answers() || client.awaiting || !client.outbox.has_room() {
            // The client tells when it has written what is queued.
            client.outbox.ask();
            return;
        }
        let Some(position) = &self.position else { return };
        let hears_beats = self.last_beat.is_some_and(|at| now.duration_since(at) < BEAT_LATE);
        let waits_for_resync = client.subscriptions.iter().any(|(number, subscription)| {
            !matches!(subscription.standing, Standing::New { .. })
                && self.channels.get(number).is_some_and(|channel| !channel.is_live())
        });
        if waits_for_resync || self.follows_stale(session) {
            return;
        }
        let Some(client) = self.clients.get_mut(&session) else { return };
        let audit = &self.settings.audit;
        let mut batch = Batch::default();
        let mut refused: Vec<(u64, Refusal)> = Vec::new();
        let mut ahead = false;
        let pace = std::mem::replace(&mut client.pace, Pace::Live);
        let numbers: Vec<ChannelNumber> = client.subscriptions.keys().copied().collect();
        for number in numbers {
            let Some(channel) = self.channels.get_mut(&number).filter(|channel| channel.is_live()) else { continue };
            let Some(form) = channel.form.clone() else { continue };
            let Some(subscription) = client.subscriptions.get_mut(&number) else { continue };
            // What is new begins at a version at which it is fresh; the others go on meanwhile.
            if self.feeds.get(channel.feed()).is_some_and(|feed| feed.stale) {
                continue;
            }
            let asked = match &subscription.standing {
                Standing::New { since, .. } => Some(*since),
                Standing::Complete | Standing::Moved => None,
            };
            match (&subscription.standing, &pace) {
                (Standing::New { resume, since }, _) => {
                    let waited = now.duration_since(*since);
                    // By then a node that hears beats would have heard of an epoch that is newer than its own: the
                    // client's is one that ended, of a database that was replaced or set back, and nobody reaches it.
                    let ended = hears_beats && waited >= BEAT_LATE;
                    let resume = resume.as_ref().filter(|resume| !ended || resume.epoch == position.cut.epoch);
                    match can_begin(resume, position, waited, self.settings.open_timeout) {
                        Answer::Now => begin(&mut batch, channel, &form, subscription, position),
                        Answer::Later => ahead = true,
                        Answer::Refuse(refusal) => {
                            refused.extend(subscription.ids.iter().map(|&id| (id, refusal.clone())));
                            client.subscriptions.remove(&number);
                            channel.subscribers.remove(&session);
                            if channel.subscribers.is_empty() {
                                channel.idle_since = Some(now);
                            }
                            continue;
                        }
                    }
                }
                (Standing::Moved, _) => {
                    begin_fresh(&mut batch, channel, &form, subscription, position);
                }
                (Standing::Complete, Pace::Behind(cursor)) => {
                    catch_up(&mut batch, channel, &form, subscription, cursor, position);
                }
                (Standing::Complete, Pace::Live) => {}
            }
            if audit.is_on() && subscription.shown.is_none() && matches!(subscription.standing, Standing::Complete) {
                let publication = &channel.feed().name;
                let record = Record::new(Event::Subscribed, &client.viewer, &subscription.identity, publication);
                let rows = Some(channel.rows.len() as u64);
                let served = Some(if asked.is_some_and(|since| since <= channel.opened) {
                    channel.served
                } else {
                    Served::Memory
                });
                let record = Record { channel: Some(channel.spec.canonical()), served, rows, ..record };
                subscription.shown = Some(Shown::begin(audit, record));
            }
        }
        for (id, refusal) in refused {
            client.ids.remove(&id);
            batch.say(protocol::error(Some(id), &refusal));
        }
        let was_behind = matches!(pace, Pace::Behind(_));
        if ahead {
            self.ahead.push(session);
        }
        send_batch(client, batch, position, was_behind, self.working);
    }

    /// Tells clients that the line is alive, how far everything is complete, and whether the pipeline works.
    pub(super) fn beat_clients(&mut self, now: Instant) {
        let working = self.last_beat.is_some_and(|at| now.duration_since(at) < BEAT_LATE);
        let changed = working != self.working;
        let due = now.duration_since(self.last_heartbeat) >= Duration::from_millis(protocol::HEARTBEAT_MS);
        if !changed && !due {
            return;
        }
        if changed && self.position.is_some() {
            tracing::info!(working, "the pipeline behind this node");
        }
        self.working = working;
        self.last_heartbeat = now;
        let shared = match &self.position {
            Some(position) => protocol::live(&position.cut, position.as_of, working),
            // Nothing can be said of versions, but the line is alive.
            None => protocol::pong(),
        };
        for client in self.clients.values_mut() {
            // A client that still has frames to take hears from us by them.
            if !client.outbox.has_room() {
                continue;
            }
            match &client.pace {
                Pace::Live => {
                    client.outbox.send(Delivery::new([Item::Frame(shared.clone())], None));
                }
                // It is complete up to its own version, and that is what it is told. One that waits for a view is no later
                // than that is old.
                Pace::Behind(cursor) if !client.awaiting => {
                    let late_ms = i64::try_from(BEAT_LATE.as_millis()).unwrap_or(i64::MAX);
                    let recent = self.position.as_ref().is_some_and(|position| {
                        position.cut.epoch == cursor.epoch && position.as_of < cursor.as_of.saturating_add(late_ms)
                    });
                    let frame = protocol::live(cursor, cursor.as_of, working && recent);
                    client.outbox.send(Delivery::new([Item::Frame(frame)], None));
                }
                Pace::Behind(_) => {}
            }
        }
    }
}

/// Whether the node has reached the version that a client comes with. It never goes back in time, so a node that lags
/// makes it wait.
fn can_begin(resume: Option<&Resume>, position: &Position, waited: Duration, timeout: Duration) -> Answer {
    match resume {
        Some(resume) if resume.version > position.cut.version && waited >= timeout => {
            Answer::Refuse(Refusal::unavailable("this node has not reached the version that you resume from"))
        }
        Some(resume) if resume.version > position.cut.version => Answer::Later,
        _ => Answer::Now,
    }
}

/// Answers a new subscription: by what the client missed where that is known, else by a snapshot.
fn begin(
    batch: &mut Batch,
    channel: &mut Channel,
    form: &ChannelForm,
    subscription: &mut Subscription,
    position: &Position,
) {
    let Standing::New { resume, .. } = &subscription.standing else { return };
    let resumed = resume
        .as_ref()
        .filter(|resume| resume.tag == form.tag && resume.epoch == position.cut.epoch)
        .map(|resume| resume.version);
    let epoch = &position.cut.epoch;
    let known = resumed.and_then(|since| Some((since, channel.difference(form, since, since, &position.cut, false)?)));
    let Some((since, difference)) = known else {
        begin_fresh(batch, channel, form, subscription, position);
        return;
    };
    let first = subscription.ids.first().copied().unwrap_or_default();
    // The client's own version, also where nothing is missing: the next `live` tells how far that holds.
    batch.say(protocol::subscribed(first, form, epoch, since, Beginning::Resumed));
    let told = match difference {
        None => since,
        Some(pages) => {
            batch.move_by(pages);
            position.cut.version
        }
    };
    metrics::subscribed(Beginning::Resumed);
    complete(batch, form, subscription, position, told);
}

/// Says `subscribed` and sends a snapshot.
fn begin_fresh(
    batch: &mut Batch,
    channel: &mut Channel,
    form: &ChannelForm,
    subscription: &mut Subscription,
    position: &Position,
) {
    let first = subscription.ids.first().copied().unwrap_or_default();
    let known = match &subscription.standing {
        Standing::New { resume: Some(resume), .. } => resume.version,
        _ => subscription.told,
    };
    // What is higher than the node's version is of another line of versions.
    let (version, pages) = channel.snapshot(form, position.cut.version, known.min(position.cut.version));
    batch.say(protocol::subscribed(first, form, &position.cut.epoch, version, Beginning::Fresh));
    batch.move_by(pages);
    metrics::subscribed(Beginning::Fresh);
    complete(batch, form, subscription, position, version);
}

/// The further ids of a subscription hear that they share it.
fn complete(
    batch: &mut Batch,
    form: &ChannelForm,
    subscription: &mut Subscription,
    position: &Position,
    version: Version,
) {
    for &id in subscription.ids.iter().skip(1) {
        batch.say(protocol::subscribed(id, form, &position.cut.epoch, version, Beginning::Shared));
    }
    subscription.standing = Standing::Complete;
    subscription.told = version;
}

/// What a client misses that has everything up to `cursor`.
fn catch_up(
    batch: &mut Batch,
    channel: &mut Channel,
    form: &ChannelForm,
    subscription: &mut Subscription,
    cursor: &Cut,
    position: &Position,
) {
    let names_epoch = cursor.epoch != position.cut.epoch;
    match channel.difference(form, cursor.version, subscription.told, &position.cut, names_epoch) {
        Some(None) => {}
        Some(Some(pages)) => {
            batch.move_by(pages);
            subscription.told = position.cut.version;
        }
        None => {
            batch.say(protocol::reset(form.number, "too_far_behind"));
            let (version, pages) = channel.snapshot(form, position.cut.version, cursor.version);
            batch.move_by(pages);
            subscription.told = version;
        }
    }
}

/// Queues a batch, as one step if it moves several channels.
fn send_batch(client: &mut Client, batch: Batch, position: &Position, was_behind: bool, working: bool) {
    let stepped = batch.moved > 1;
    let mut items = batch.items;
    if items.is_empty() && !was_behind {
        return;
    }
    if stepped {
        items.insert(0, Item::Frame(protocol::step(position.cut.version)));
    }
    if stepped || was_behind {
        items.push(Item::Frame(protocol::live(&position.cut, position.as_of, working)));
    }
    if batch.frozen {
        client.awaiting = true;
        client.outbox.ask();
    }
    // There is room, and only the hub fills it; a client that has ended meanwhile is about to be detached.
    client.outbox.send(Delivery::new(items, None));
}
