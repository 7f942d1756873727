//! Moves the node's channels from version to version: those that live, as far as the step concerns them, and rows that are
//! still on their way; and what follows where a step cannot be taken: a channel stands still and is read again.

use std::sync::Arc;
use std::time::Instant;

use super::{Effect, HubState, Step};
use crate::entry::State;
use crate::entry::seen::Seen;
use crate::hub::channel::{Change, Channel, FeedStep, Flight, Overtaken, Phase};
use crate::hub::index::Concern;
use crate::hub::session::Standing;
use crate::metrics;
use crate::protocol::{ChannelForm, ChannelNumber, Frame, PAGE_BYTES, RowsFrame};
use crate::publication::FeedKey;
use crate::rows::{Changes, RanOut};
use crate::version::{Cut, Version};

/// What a version tells a channel of its feed.
struct Told<'a> {
    schema_id: &'a str,
    states: &'a [State],
    seen: &'a Seen,
    /// The states that may concern it.
    places: Vec<usize>,
}

impl HubState {
    /// Moves every feed to a version.
    pub(super) fn take_step(&mut self, step: Step, deliver: bool, now: Instant) {
        let Some(position) = &mut self.position else { return };
        let before = std::mem::replace(&mut position.cut, step.cut.clone());
        position.as_of = step.cut.as_of;
        position.catalogue_id = None;
        position.stale = step.stale;
        let mut moved: Vec<(ChannelNumber, Vec<Frame>)> = Vec::new();
        let feeds: Vec<FeedKey> = self.feeds.keys().cloned().collect();
        for key in feeds {
            let Some(feed) = self.feeds.get_mut(&key) else { continue };
            feed.arrived = feed.arrived.split_off(&Version(step.cut.version.0 + 1));
            let change = step.entries.get(&key).map_or(Change::Nothing, |entry| Change::of(entry));
            let feed_step = Arc::new(FeedStep { cut: step.cut.clone(), base: step.base, change });
            self.keep_for_flights(&key, &feed_step);
            self.step_live(&key, &before, &feed_step, &mut moved);
            self.step_flights(&key, &feed_step);
        }
        self.hold_stale(&before);
        if deliver {
            self.deliver(&before, moved);
        }
        self.due.append(&mut self.ahead);
        self.follow_staleness(&before, now);
    }

    /// Keeps the step while rows of the feed are in the air.
    fn keep_for_flights(&mut self, key: &FeedKey, step: &Arc<FeedStep>) {
        let Some(feed) = self.feeds.get_mut(key) else { return };
        let channels = &self.channels;
        let in_the_air = |number: &&ChannelNumber| channels.get(number).is_some_and(Channel::awaits_rows);
        if !feed.flying.iter().any(|number| in_the_air(&number)) {
            feed.forget_kept();
        } else if !feed.keep(step.clone()) {
            let again: Vec<ChannelNumber> = feed.flying.iter().filter(in_the_air).copied().collect();
            for number in again {
                self.fly_again(number, step.cut.version, None);
            }
        }
    }

    /// Moves the live channels of a feed that the step concerns; `moved`: the frames of their deltas.
    fn step_live(
        &mut self,
        key: &FeedKey,
        before: &Cut,
        step: &FeedStep,
        moved: &mut Vec<(ChannelNumber, Vec<Frame>)>,
    ) {
        let Some(feed) = self.feeds.get(key) else { return };
        match &step.change {
            Change::Nothing => {}
            Change::Marker(why) => {
                let mut live: Vec<ChannelNumber> = feed.index.channels().collect();
                live.sort_unstable();
                for number in live {
                    self.resync(number, before, step.cut.version, why);
                }
            }
            Change::States { schema_id, states, seen } => {
                let concerned = feed.index.concerned(schema_id, states);
                // A replay begins below our version, but what we hold of the versions up to ours is exact.
                let base = step.base.max(before.version);
                if step.cut.version.0 > base.0 + 1 {
                    // Whoever is on a version that was lost may have rows that we have never had.
                    for number in feed.index.channels().filter(|number| !concerned.contains_key(number)) {
                        if let Some(channel) = self.channels.get_mut(&number) {
                            channel.rows.jump(base, step.cut.version);
                        }
                    }
                }
                for (number, concern) in concerned {
                    let places: Vec<usize> = match concern {
                        Concern::All => (0..states.len()).collect(),
                        Concern::These(places) => places.into_iter().collect(),
                    };
                    let told = Told { schema_id, states, seen, places };
                    if let Some(frames) = self.step_channel(number, before, step, &told) {
                        moved.push((number, frames));
                    }
                }
            }
        }
    }

    /// Moves one live channel; the frames of its delta, if clients have to hear of it.
    fn step_channel(
        &mut self,
        number: ChannelNumber,
        before: &Cut,
        step: &FeedStep,
        told: &Told<'_>,
    ) -> Option<Vec<Frame>> {
        let channel = self.channels.get_mut(&number)?;
        let Some(view) = channel.view.clone().filter(|view| **view.feed_schema_id() == *told.schema_id) else {
            self.resync(number, before, step.cut.version, "its columns changed");
            return None;
        };
        let Some(visible) = view.sight().of(told.seen) else {
            self.resync(number, before, step.cut.version, "the version does not tell what its identity sees");
            return None;
        };
        let states = || told.places.iter().map(|&place| (&told.states[place], visible.has(place)));
        let prev = channel.rows.changed();
        let base = step.base.max(before.version);
        let applied = channel.rows.apply(base, step.cut.version, states(), &view);
        if let Some(feed) = self.feeds.get_mut(channel.feed()) {
            let trimmed = applied.as_ref().map(|changes| changes.trimmed.as_slice()).unwrap_or_default();
            let keys = states().map(|(state, _)| &state.key).chain(trimmed);
            feed.index.note(number, keys, |key| channel.rows.knows(key));
        }
        let changes = match applied {
            Ok(changes) => changes,
            Err(RanOut) => {
                self.run_out(number, before, step.cut.version);
                return None;
            }
        };
        let runs_low = channel.rows.runs_low();
        if channel.rows.len() > self.settings.rows_max || channel.rows.bytes() > self.settings.bytes_max {
            let refusal = self.too_many_rows();
            self.close_channel(number, &refusal);
            return None;
        }
        let form = channel.form.as_ref()?;
        let frames = (!changes.is_empty()).then(|| encode_delta(form, prev, &step.cut, &changes));
        if runs_low {
            self.refill(number);
        }
        frames
    }

    /// Brings rows that have landed, of channels that are not live and of windows that run low, a step further.
    fn step_flights(&mut self, key: &FeedKey, step: &FeedStep) {
        let flying: Vec<ChannelNumber> =
            self.feeds.get(key).into_iter().flat_map(|feed| feed.flying.iter().copied()).collect();
        for number in flying {
            let settling = self.channels.get_mut(&number).and_then(Channel::flight);
            match settling.and_then(|flight| flight.settling.as_mut()).map(|settling| settling.step(step)) {
                None => {}
                Some(Ok(())) => self.land_if_there(number),
                Some(Err(why)) => self.overtaken(number, step.cut.version, &why),
            }
        }
    }

    /// A step of this version went past rows that were on their way: they are read again.
    pub(super) fn overtaken(&mut self, number: ChannelNumber, version: Version, why: &Overtaken) {
        if let Some(channel) = self.channels.get_mut(&number) {
            tracing::debug!(channel = %channel.feed(), %why, "rows were overtaken");
            if let Some(flight) = channel.flight().filter(|_| matches!(why, Overtaken::RanOut(_))) {
                flight.ran_out += 1;
            }
        }
        match why {
            Overtaken::Untold => self.fly_untold(number, version),
            Overtaken::Resync(_) | Overtaken::RanOut(_) => self.fly_again(number, version, None),
        }
    }

    /// The channel's rows are read again; its clients stand still until the fresh ones have passed `marker`.
    pub(super) fn resync(&mut self, number: ChannelNumber, before: &Cut, marker: Version, why: &str) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        if channel.is_live() {
            tracing::info!(channel = %channel.feed(), why, version = %marker, "resync");
            metrics::resync();
            let refill = channel.flight().and_then(|flight| flight.settling.take());
            self.effects.extend(refill.and_then(|settling| settling.lock).map(Effect::Unlock));
            self.flights_begun += 1;
            let flight = Flight::new(self.flights_begun, marker);
            self.freeze(number, before, flight);
            self.grounded.push(number);
        } else {
            self.fly_again(number, marker, None);
        }
    }

    /// A window has too few rows to show. The spare rows that are on their way, if they are, serve.
    fn run_out(&mut self, number: ChannelNumber, before: &Cut, version: Version) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        tracing::debug!(channel = %channel.feed(), %version, "a window has run out");
        metrics::window_ran_out();
        let refill = match &mut channel.phase {
            Phase::Live { refill } => refill.take(),
            Phase::Opening(_) | Phase::Resync { .. } => None,
        };
        let flight = refill.unwrap_or_else(|| {
            self.flights_begun += 1;
            self.grounded.push(number);
            Flight::new(self.flights_begun, version)
        });
        self.freeze(number, before, flight);
    }

    /// A live channel and its clients stand still until a flight has landed.
    fn freeze(&mut self, number: ChannelNumber, before: &Cut, flight: Flight) {
        let Some(channel) = self.channels.get_mut(&number) else { return };
        for session in &channel.subscribers {
            if let Some(client) = self.clients.get_mut(session)
                && client
                    .subscriptions
                    .get(&number)
                    .is_some_and(|subscription| matches!(subscription.standing, Standing::Complete))
            {
                client.hold_at(before);
            }
        }
        channel.phase = Phase::Resync { frozen_at: before.version, flight };
        self.pending.insert(number);
        if let Some(feed) = self.feeds.get_mut(channel.feed()) {
            feed.index.leave(number, channel.rows.known_keys());
            feed.flying.insert(number);
        }
    }

    /// Asks for spare rows, while the channel goes on.
    pub(super) fn refill(&mut self, number: ChannelNumber) {
        let Some(channel) = self.channels.get_mut(&number).filter(|channel| !channel.has_flight()) else { return };
        tracing::debug!(channel = %channel.feed(), "a window runs low");
        metrics::window_refill();
        self.flights_begun += 1;
        channel.phase = Phase::Live { refill: Some(Flight::new(self.flights_begun, Version(0))) };
        if let Some(feed) = self.feeds.get_mut(channel.feed()) {
            feed.flying.insert(number);
        }
        self.grounded.push(number);
    }
}

/// A step of a channel as frames: changed columns of rows that were held, whole rows that entered, and what is gone.
fn encode_delta(form: &ChannelForm, prev: Version, cut: &Cut, changes: &Changes) -> Vec<Frame> {
    let mut frames = Vec::new();
    let open = || RowsFrame::delta(form.number, prev, cut, false);
    let mut frame = open();
    for changed in &changes.rows {
        if frame.len() > PAGE_BYTES {
            frames.push(std::mem::replace(&mut frame, open()).finish(true));
        }
        let always = |index: usize| {
            form.schema.key.contains(&index)
                || form.order.iter().any(|order| order.column == form.schema.columns[index].name)
        };
        let differs =
            |index: usize| changed.before.as_ref().is_none_or(|before| before.value(index) != changed.row.value(index));
        let columns = (0..form.schema.columns.len()).filter(|&index| differs(index) || always(index));
        frame.row(&form.schema, &changed.key, &changed.row, columns);
    }
    for (key, why) in &changes.gone {
        if frame.len() > PAGE_BYTES {
            frames.push(std::mem::replace(&mut frame, open()).finish(true));
        }
        frame.gone(key, *why);
    }
    frames.push(frame.finish(false));
    frames
}
