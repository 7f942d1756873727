//! What the hub knows, and what a wake-up makes of it. Nothing here waits: what has to be waited for is an [`Effect`],
//! carried out by [`super::task`], whose result comes back as another wake-up.
//!
//! Wake-ups: a command of a session, a session's end, a push of the store, rows that landed, the catalogue, a part of the
//! log, a tick. After each batch of them comes [`HubState::finish_turn`].
//!
//! This file follows the beats and the log, and brings rows that were read to the node's version; `step` moves channels
//! from version to version; `subscribe` answers commands and follows the catalogue; `deliver` brings clients up to date.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::channel::{Change, Channel, Feed, FeedStep, Settling};
use super::session::{Client, Standing};
use super::{HubSettings, HubStatus, Published, SessionId};
use crate::channel::ChannelSpec;
use crate::checkpoint::Checkpoint;
use crate::entry::Key;
use crate::identity::Onlooker;
use crate::metrics;
use crate::protocol::{ChannelNumber, ErrorCode, Refusal};
use crate::publication::{Catalogue, FeedKey};
use crate::query::Literal;
use crate::rows::Rows;
use crate::snapshots::{Fresh, HeldLock, OpenError, OpenOrder, Place};
use crate::store::{Beat, Entry, LogRead, Push};
use crate::version::{Cut, Epoch, Version};

mod deliver;
mod fresh;
mod step;
mod subscribe;
#[cfg(test)]
mod tests;

/// Without a beat for this long the pipeline is not known to work: clients are told `late`.
const BEAT_LATE: Duration = Duration::from_secs(3);

/// While beats name another catalogue than ours, it is read again no more often than this.
const CATALOGUE_PAUSE: Duration = Duration::from_millis(200);

/// Entries of a feed that may wait for their beat, while the log cannot be read; with more they are forgotten, as the log
/// has them.
const ARRIVED_MAX: usize = 4_096;

/// A flight that failed is tried again after this.
const FLIGHT_RETRY: Duration = Duration::from_millis(200);

/// Flights of a channel whose identity entries do not tell of; then it is refused for now.
const UNTOLD_MAX: u32 = 10;

/// How often a node says which identities have live channels on it.
const REGISTER_EVERY: Duration = Duration::from_secs(5);

/// Beats that wait for a reading of the log at most: what the store's queue holds too.
const BEATS_WAITING_MAX: usize = 4096;

/// What has to be waited for.
#[derive(Debug)]
pub(super) enum Effect {
    /// Read a channel's rows; answered by [`HubState::on_landed`].
    Open {
        channel: ChannelNumber,
        flight: u64,
        order: Box<OpenOrder>,
    },
    /// Read the publications; answered by [`HubState::on_catalogue`].
    LoadCatalogue,
    /// Have Postgres cast literals of filters; answered by [`HubState::on_cast`].
    Cast(Vec<Literal>),
    /// Read the log of feeds; answered by [`HubState::on_logs`].
    ReadLogs {
        number: u64,
        after: Version,
        feeds: Vec<FeedKey>,
    },
    /// Say which identities have live channels, for the leader.
    Register(Vec<Onlooker>),
    /// Give the lock back of rows that are thrown away.
    Unlock(HeldLock),
    Feed(FeedKey),
    Unfeed(FeedKey),
    /// Write a checkpoint. `first`: right after its snapshot query, others may be waiting for it.
    Keep {
        feed: FeedKey,
        channel: String,
        checkpoint: Box<Checkpoint>,
        first: bool,
    },
}

/// The node's place in the chain of versions.
#[derive(Clone, Debug)]
pub(super) struct Position {
    pub(super) cut: Cut,
    /// The newest moment known to be contained, at least `cut.as_of`.
    pub(super) as_of: i64,
    /// The catalogue as of the version, if a beat told it.
    pub(super) catalogue_id: Option<String>,
    /// The views that are stale at the version, if a beat told it; else every view may be.
    pub(super) stale: Option<HashSet<FeedKey>>,
}

/// A version with the entries of the feeds that this node follows.
struct Step {
    cut: Cut,
    base: Version,
    entries: HashMap<FeedKey, Arc<Entry>>,
    stale: Option<HashSet<FeedKey>>,
}

/// See the module.
pub(super) struct HubState {
    settings: HubSettings,
    position: Option<Position>,
    /// The epoch before that of the position.
    epoch_left: Option<Epoch>,
    last_beat: Option<Instant>,
    /// What clients were last told of the pipeline.
    working: bool,
    catalogue: Option<Arc<Catalogue>>,
    /// The id of `catalogue` as the leader counts it.
    catalogue_id: Option<String>,
    catalogue_wanted: bool,
    catalogue_loading: bool,
    catalogue_readings: u64,
    /// When the last reading began.
    catalogue_read: Option<Instant>,
    /// Literals that Postgres has cast, or why it could not.
    casts: HashMap<Literal, Result<Arc<str>, String>>,
    /// Subscriptions and reads that wait for the catalogue or for a cast.
    parked: Vec<subscribe::Parked>,
    feeds: HashMap<FeedKey, Feed>,
    channels: HashMap<ChannelNumber, Channel>,
    by_spec: HashMap<ChannelSpec, ChannelNumber>,
    channels_begun: u64,
    flights_begun: u64,
    /// Channels whose flight waits to be started.
    grounded: Vec<ChannelNumber>,
    /// Channels that are not live.
    pending: HashSet<ChannelNumber>,
    /// Channels whose rows have landed since the last turn: their checkpoints are waited for.
    landed: Vec<ChannelNumber>,
    clients: HashMap<SessionId, Client>,
    due: Vec<SessionId>,
    /// Clients whose resume lies above the node's version.
    ahead: Vec<SessionId>,
    /// The number of the log reading in the air.
    reading_logs: Option<u64>,
    readings_begun: u64,
    /// Beats that wait for it, ascending.
    beats_waiting: VecDeque<Beat>,
    last_heartbeat: Instant,
    last_registration: Instant,
    effects: Vec<Effect>,
}

impl HubState {
    pub(super) fn new(settings: HubSettings, now: Instant) -> Self {
        Self {
            settings,
            position: None,
            epoch_left: None,
            last_beat: None,
            working: false,
            catalogue: None,
            catalogue_id: None,
            catalogue_wanted: true,
            catalogue_loading: false,
            catalogue_readings: 0,
            catalogue_read: None,
            casts: HashMap::new(),
            parked: Vec::new(),
            feeds: HashMap::new(),
            channels: HashMap::new(),
            by_spec: HashMap::new(),
            channels_begun: 0,
            flights_begun: 0,
            grounded: Vec::new(),
            pending: HashSet::new(),
            landed: Vec::new(),
            clients: HashMap::new(),
            due: Vec::new(),
            ahead: Vec::new(),
            reading_logs: None,
            readings_begun: 0,
            beats_waiting: VecDeque::new(),
            last_heartbeat: now,
            last_registration: now,
            effects: Vec::new(),
        }
    }

    pub(super) fn published(&self) -> Published {
        let status = HubStatus {
            cut: self.position.as_ref().map(|position| position.cut.clone()),
            beat_age: None,
            sessions: self.clients.len(),
            channels: self.channels.len(),
        };
        Published { status, last_beat: self.last_beat }
    }

    /// What tells whether there is news to publish.
    pub(super) fn news(&self) -> (Option<Version>, Option<Instant>) {
        (self.position.as_ref().map(|position| position.cut.version), self.last_beat)
    }

    /// What the store pushed.
    pub(super) fn on_push(&mut self, push: Push, now: Instant) {
        match push {
            Push::Entry(feed, entry) => {
                let above = self.position.as_ref().is_none_or(|position| entry.version > position.cut.version);
                if let Some(feed) = self.feeds.get_mut(&feed)
                    && above
                {
                    if feed.arrived.len() >= ARRIVED_MAX {
                        feed.arrived.clear();
                    }
                    feed.arrived.insert(entry.version, entry);
                }
            }
            Push::Beat(beat) => self.on_beat(beat, now),
            Push::Lost => self.read_logs(),
        }
    }

    fn on_beat(&mut self, beat: Beat, now: Instant) {
        let Some(position) = &mut self.position else {
            self.last_beat = Some(now);
            self.begin_at(&beat);
            return;
        };
        let was_ours = beat.cut.epoch == position.cut.epoch || self.epoch_left.as_ref() == Some(&beat.cut.epoch);
        if was_ours && beat.cut.version < position.cut.version {
            // The store was rolled back; the leader will go on above our version, and only that is news. Or the log told
            // of a new epoch, and this beat has waited since before.
            return;
        }
        self.last_beat = Some(now);
        let read_lately = self.catalogue_read.is_some_and(|at| now.duration_since(at) < CATALOGUE_PAUSE);
        if self.catalogue_id.as_deref() != Some(&beat.catalogue) && !read_lately {
            self.catalogue_wanted = true;
        }
        if beat.cut.epoch != position.cut.epoch {
            self.change_epoch(&beat.cut, Some(&beat));
            self.follow_staleness(&beat.cut, now);
            return;
        }
        if beat.cut.version == position.cut.version {
            position.as_of = position.as_of.max(beat.polled_at);
            position.catalogue_id = Some(beat.catalogue);
            position.stale = Some(beat.stale.into_iter().collect());
            self.follow_staleness(&beat.cut, now);
            self.fly_again_between_cuts();
            return;
        }
        if self.reading_logs.is_some() {
            // Without the oldest the others do not join what was read; then a beat after them has the log read again.
            if self.beats_waiting.len() >= BEATS_WAITING_MAX {
                self.beats_waiting.pop_front();
            }
            self.beats_waiting.push_back(beat);
            return;
        }
        match self.step_of(&beat) {
            Some(step) => {
                self.take_step(step, true, now);
                if let Some(position) = &mut self.position {
                    position.as_of = position.as_of.max(beat.polled_at);
                    position.catalogue_id = Some(beat.catalogue);
                }
            }
            None => {
                self.beats_waiting.push_back(beat);
                self.read_logs();
            }
        }
    }

    /// The first version that this node hears of.
    fn begin_at(&mut self, beat: &Beat) {
        self.position = Some(Position {
            cut: beat.cut.clone(),
            as_of: beat.polled_at,
            catalogue_id: Some(beat.catalogue.clone()),
            stale: Some(beat.stale.iter().cloned().collect()),
        });
        for (key, feed) in &mut self.feeds {
            feed.arrived.retain(|&version, _| version > beat.cut.version);
            feed.stale = feed.is_view && beat.stale.contains(key);
        }
    }

    /// The step to a beat's version, if everything that it needs has been pushed.
    fn step_of(&mut self, beat: &Beat) -> Option<Step> {
        let position = self.position.as_ref()?;
        // Where nothing is held nothing can be missing, and there is no log that would tell.
        if beat.base > position.cut.version && !self.feeds.is_empty() {
            return None;
        }
        let mut entries = HashMap::new();
        for touched in &beat.touched {
            let Some(feed) = self.feeds.get(&touched.feed) else { continue };
            let entry = feed.arrived.get(&beat.cut.version)?;
            if entry.epoch != beat.cut.epoch {
                return None;
            }
            entries.insert(touched.feed.clone(), entry.clone());
        }
        Some(Step {
            cut: beat.cut.clone(),
            base: beat.base,
            entries,
            stale: Some(beat.stale.iter().cloned().collect()),
        })
    }

    fn read_logs(&mut self) {
        let Some(position) = &self.position else { return };
        if self.reading_logs.is_some() {
            return;
        }
        self.readings_begun += 1;
        self.reading_logs = Some(self.readings_begun);
        metrics::log_read();
        self.effects.push(Effect::ReadLogs {
            number: self.readings_begun,
            after: position.cut.version,
            feeds: self.feeds.keys().cloned().collect(),
        });
    }

    /// A part of the log, as asked for by [`Effect::ReadLogs`]; `None`: the store did not answer.
    pub(super) fn on_logs(&mut self, number: u64, read: Option<Vec<(FeedKey, LogRead)>>, now: Instant) {
        if self.reading_logs != Some(number) {
            return;
        }
        self.reading_logs = None;
        let waiting = std::mem::take(&mut self.beats_waiting);
        let Some(read) = read else { return };
        self.take_logs(read, now);
        for beat in waiting {
            let Some(position) = &self.position else { return };
            // A beat above what the log has is of a store that was rolled back since: the next beat tells.
            if beat.cut.version <= position.cut.version || self.step_of(&beat).is_some() {
                self.on_beat(beat, now);
            }
        }
    }

    /// Goes on by the log: to the lowest head that all feeds were read at.
    fn take_logs(&mut self, read: Vec<(FeedKey, LogRead)>, now: Instant) {
        let Some(position) = &self.position else { return };
        let here = position.cut.clone();
        // A node without feeds has nothing to read; it follows the beats alone.
        let Some(head) = read.iter().filter_map(|(_, read)| read.head.as_ref()).min_by_key(|head| head.version) else {
            return;
        };
        let head = head.clone();
        if head.epoch != here.epoch {
            if head.version > here.version {
                self.change_epoch(&head, None);
            }
            return;
        }
        if head.version <= here.version {
            return;
        }
        let mut steps: BTreeMap<Version, Step> = BTreeMap::new();
        let mut whole: Vec<FeedKey> = Vec::new();
        for (feed, read) in read {
            let Some(entries) = read.entries else { continue };
            for entry in entries {
                if entry.version <= here.version || entry.version > head.version || entry.epoch != head.epoch {
                    continue;
                }
                let step = steps.entry(entry.version).or_insert_with(|| Step {
                    cut: Cut {
                        epoch: entry.epoch.clone(),
                        version: entry.version,
                        snapshot: entry.snapshot.clone(),
                        as_of: entry.as_of,
                    },
                    base: entry.base,
                    entries: HashMap::new(),
                    stale: None,
                });
                step.entries.insert(feed.clone(), entry);
            }
            whole.push(feed);
        }
        let last = head.version;
        steps.entry(last).or_insert_with(|| Step { base: last, cut: head, entries: HashMap::new(), stale: None });
        let lost: Vec<FeedKey> = self.feeds.keys().filter(|feed| !whole.contains(feed)).cloned().collect();
        for feed in lost {
            for channel in self.feeds.get(&feed).map(|feed| feed.channels.clone()).unwrap_or_default() {
                self.resync(channel, &here, last, "the log does not reach back");
            }
        }
        // More than one step is taken without telling every client of each: they get the difference at the end.
        let several = steps.len() > 1;
        if several {
            self.hold_all(&here);
        }
        for step in steps.into_values() {
            self.take_step(step, !several, now);
        }
    }

    pub(super) fn too_many_rows(&self) -> Refusal {
        Refusal::new(
            ErrorCode::TooManyRows,
            format!(
                "the channel has more than {} rows or {} MiB",
                self.settings.rows_max,
                self.settings.bytes_max >> 20
            ),
        )
    }

    /// Another epoch: nothing is known of any row until it was read again.
    fn change_epoch(&mut self, to: &Cut, beat: Option<&Beat>) {
        let Some(position) = &mut self.position else { return };
        let before = std::mem::replace(&mut position.cut, to.clone());
        position.as_of = to.as_of;
        position.catalogue_id = beat.map(|beat| beat.catalogue.clone());
        position.stale = beat.map(|beat| beat.stale.iter().cloned().collect());
        self.epoch_left = Some(before.epoch.clone());
        tracing::info!(from = %before.epoch, to = %to.epoch, version = %to.version, "a new epoch begins");
        self.reading_logs = None;
        self.beats_waiting.clear();
        for feed in self.feeds.values_mut() {
            feed.arrived = feed.arrived.split_off(&Version(to.version.0 + 1));
            feed.forget_kept();
        }
        let began_below = to.version <= before.version;
        let numbers: Vec<ChannelNumber> = self.channels.keys().copied().collect();
        for number in numbers {
            // Versions that began again below, as after a backup was restored and the store emptied, do not say what
            // changed since: the rows that land are others altogether.
            if let Some(channel) = self.channels.get_mut(&number).filter(|_| began_below) {
                channel.view = None;
            }
            self.resync(number, &before, to.version, "a new epoch");
        }
        self.due.append(&mut self.ahead);
    }

    /// Starts a channel's flight anew: what is in the air for it lands out of date.
    fn fly_again(&mut self, number: ChannelNumber, at_least: Version, not_before: Option<Instant>) {
        self.flights_begun += 1;
        let flight_number = self.flights_begun;
        if let Some(flight) = self.channels.get_mut(&number).and_then(Channel::flight) {
            flight.number = flight_number;
            flight.asked_at = None;
            flight.not_before = not_before;
            flight.at_least = flight.at_least.max(at_least);
            let thrown_away = flight.settling.take();
            self.effects.extend(thrown_away.and_then(|settling| settling.lock).map(Effect::Unlock));
            self.grounded.push(number);
        }
    }

    /// Rows that met an entry which does not tell what their identity sees: the leader has not heard of the identity yet, or
    /// cannot ask for it. Not for ever: the clients of the channel stand still.
    fn fly_untold(&mut self, number: ChannelNumber, at_least: Version) {
        let retry = self.last_beat.map(|at| at + FLIGHT_RETRY);
        let Some(flight) = self.channels.get_mut(&number).and_then(Channel::flight) else { return };
        flight.untold += 1;
        if flight.untold > UNTOLD_MAX {
            let refusal = Refusal::unavailable("row security cannot be followed for you");
            self.close_channel(number, &refusal);
        } else {
            self.fly_again(number, at_least, retry);
        }
    }

    /// Rows that stand between two cuts wait for the next; but the leader has just said that there is none. Read again,
    /// with the catalogue that it named, they are those of the node's version at once.
    fn fly_again_between_cuts(&mut self) {
        let flying: Vec<ChannelNumber> = self.feeds.values().flat_map(|feed| feed.flying.iter().copied()).collect();
        for number in flying {
            let flight = self.channels.get_mut(&number).and_then(Channel::flight);
            let between = flight.filter(|flight| {
                flight.settling.as_ref().is_some_and(|settling| matches!(settling.place, Place::Sees(_)))
            });
            if let Some(at_least) = between.map(|flight| flight.at_least) {
                self.fly_again(number, at_least, None);
            }
        }
    }

    /// Starts the flights that can start.
    fn start_flights(&mut self, now: Instant) {
        if self.grounded.is_empty() {
            return;
        }
        let (Some(position), Some(catalogue)) = (&self.position, &self.catalogue) else { return };
        let mut grounded = std::mem::take(&mut self.grounded);
        grounded.sort_unstable();
        grounded.dedup();
        for number in grounded {
            let Some(channel) = self.channels.get_mut(&number) else { continue };
            let (spec, refill) = (channel.spec.clone(), channel.is_live());
            let Some(flight) = channel.flight() else { continue };
            if flight.asked_at.is_some() {
                continue;
            }
            let waits = flight.not_before.is_some_and(|moment| moment > now);
            let publication =
                catalogue.publications.get(&spec.feed.name).filter(|publication| publication.feed == spec.feed);
            let (false, Some(publication)) = (waits, publication) else {
                self.grounded.push(number);
                continue;
            };
            flight.asked_at = Some(position.cut.clone());
            self.effects.push(Effect::Open {
                channel: number,
                flight: flight.number,
                order: Box::new(OpenOrder {
                    spec,
                    publication: publication.clone(),
                    at: position.cut.clone(),
                    catalogue_id: position.catalogue_id.clone(),
                    at_least: flight.at_least,
                    refill,
                    ran_out: flight.ran_out,
                }),
            });
        }
    }

    /// Rows that were asked for by [`Effect::Open`].
    pub(super) fn on_landed(
        &mut self,
        number: ChannelNumber,
        flight_number: u64,
        mut outcome: Result<Fresh, OpenError>,
        now: Instant,
    ) {
        let lock = outcome.as_mut().ok().and_then(|fresh| fresh.lock.take());
        let awaited = self
            .channels
            .get_mut(&number)
            .and_then(Channel::flight)
            .is_some_and(|flight| flight.number == flight_number);
        if awaited {
            if let (Ok(fresh), Some(channel)) = (&outcome, self.channels.get_mut(&number)) {
                channel.served = fresh.served;
            }
            self.settle(number, outcome, now);
        }
        let channel = self.channels.get_mut(&number).filter(|_| awaited);
        match channel {
            Some(channel) => {
                // Its checkpoint is about to be kept, and the lock given back with it.
                let has_landed = channel.is_live() && channel.checkpoint.is_none();
                match channel.flight().and_then(|flight| flight.settling.as_mut()) {
                    Some(settling) => settling.lock = lock,
                    None if has_landed => {}
                    None => self.effects.extend(lock.map(Effect::Unlock)),
                }
            }
            None => self.effects.extend(lock.map(Effect::Unlock)),
        }
    }

    /// Brings rows that were waited for to the node's version, or has them read again.
    fn settle(&mut self, number: ChannelNumber, outcome: Result<Fresh, OpenError>, now: Instant) {
        let Some(position) = self.position.clone() else { return };
        let Some(channel) = self.channels.get_mut(&number) else { return };
        let feed_key = channel.feed().clone();
        let Some(flight) = channel.flight() else { return };
        let Some(asked_at) = flight.asked_at.clone() else { return };
        let at_least = flight.at_least;
        let fresh = match outcome {
            Ok(fresh) => fresh,
            Err(OpenError::Refused(refusal)) => {
                self.close_channel(number, &refusal);
                return;
            }
            Err(error @ (OpenError::Again(_) | OpenError::Database(_))) => {
                tracing::debug!(channel = %feed_key, %error, "rows have to be read again");
                // The publication may be another by now.
                self.catalogue_wanted = true;
                self.fly_again(number, at_least, Some(now + FLIGHT_RETRY));
                return;
            }
        };
        let contains_asked = match &fresh.place {
            Place::At(version) => *version >= asked_at.version && *version >= at_least,
            Place::Sees(seen) => asked_at.snapshot.is_within(seen),
        };
        if fresh.epoch != position.cut.epoch || !contains_asked {
            self.fly_again(number, at_least, Some(now + FLIGHT_RETRY));
            return;
        }
        let mut settling = Settling { view: fresh.view, rows: fresh.rows, place: fresh.place, lock: None };
        let kept = self.feeds.get(&feed_key).map(Feed::kept).unwrap_or_default();
        let here = FeedStep { cut: position.cut.clone(), base: position.cut.version, change: Change::Nothing };
        for step in kept.iter().map(Arc::as_ref).chain([&here]) {
            if let Err(why) = settling.step(step) {
                self.overtaken(number, step.cut.version, &why);
                return;
            }
        }
        if let Some(flight) = self.channels.get_mut(&number).and_then(Channel::flight) {
            flight.settling = Some(settling);
        }
        self.land_if_there(number);
    }

    /// A channel whose rows have reached the node's version becomes live.
    fn land_if_there(&mut self, number: ChannelNumber) {
        let Some(position) = &self.position else { return };
        let version = position.cut.version;
        let Some(channel) = self.channels.get_mut(&number) else { return };
        let there = channel
            .flight()
            .and_then(|flight| flight.settling.as_ref())
            .is_some_and(|settling| settling.is_at(version));
        if !there {
            return;
        }
        self.landed.push(number);
        channel.checkpoint = None;
        let feed = self.feeds.get_mut(&channel.spec.feed);
        if channel.is_live() {
            let before: Vec<Key> = channel.rows.known_keys().cloned().collect();
            if !channel.land_refill() {
                tracing::error!(channel = %channel.feed(), "rows read anew for a window are not those that it shows");
            }
            if let Some(feed) = feed {
                feed.flying.remove(&number);
                feed.index.note(number, before.iter().chain(channel.rows.known_keys()), |key| channel.rows.knows(key));
            }
            return;
        }
        let moved = channel.land(version);
        self.pending.remove(&number);
        if let (Some(feed), Some(view)) = (feed, &channel.view) {
            feed.flying.remove(&number);
            feed.index.join(number, view, channel.rows.known_keys());
        }
        if channel.rows.len() > self.settings.rows_max || channel.rows.bytes() > self.settings.bytes_max {
            let refusal = self.too_many_rows();
            self.close_channel(number, &refusal);
            return;
        }
        for &session in &channel.subscribers {
            if let Some(client) = self.clients.get_mut(&session) {
                if moved
                    && let Some(subscription) = client.subscriptions.get_mut(&number)
                    && matches!(subscription.standing, Standing::Complete)
                {
                    subscription.standing = Standing::Moved;
                }
                if !client.due {
                    client.due = true;
                    self.due.push(session);
                }
            }
        }
        let runs_low = channel.rows.runs_low();
        self.answer_readers(number);
        if runs_low {
            self.refill(number);
        }
    }

    /// Things that happen by the clock.
    pub(super) fn on_tick(&mut self, now: Instant) {
        self.give_up_waiting(now);
        let numbers: Vec<ChannelNumber> = self.channels.keys().copied().collect();
        for number in numbers {
            self.keep_checkpoint(number, now);
        }
        self.let_idle_channels_go(now);
        self.register_onlookers(now);
        // Without a leader none of them starts, and those that were given up would pile up.
        let channels = &self.channels;
        self.grounded.retain(|number| channels.contains_key(number));
        self.beat_clients(now);
        let late: Vec<SessionId> = std::mem::take(&mut self.ahead);
        self.due.extend(late);
        if cfg!(debug_assertions) {
            self.check_invariants();
        }
    }

    /// Writes the checkpoint of a live channel if it is new or has changed for a while.
    fn keep_checkpoint(&mut self, number: ChannelNumber, now: Instant) {
        let Some(position) = &self.position else { return };
        let Some(channel) = self.channels.get_mut(&number).filter(|channel| channel.is_live()) else { return };
        let first = channel.checkpoint.is_none();
        let due = match channel.checkpoint {
            None => true,
            Some((version, at)) => {
                let age = now.duration_since(at);
                (version < channel.rows.changed() && age >= self.settings.checkpoint_every)
                    || age >= self.settings.checkpoint_ttl / 2
            }
        };
        let Some(view) = channel.view.as_ref().filter(|_| due) else { return };
        channel.checkpoint = Some((position.cut.version, now));
        self.effects.push(Effect::Keep {
            feed: channel.spec.feed.clone(),
            channel: channel.spec.hash(),
            checkpoint: Box::new(Checkpoint {
                cut: position.cut.clone(),
                view: view.clone(),
                rows: channel.rows.clone(),
            }),
            first,
        });
    }

    /// A channel registers its identity before its first flight; here that is renewed.
    fn register_onlookers(&mut self, now: Instant) {
        if now.duration_since(self.last_registration) < REGISTER_EVERY {
            return;
        }
        self.last_registration = now;
        let onlookers: Vec<Onlooker> = self.channels.values().filter_map(|channel| channel.spec.onlooker()).collect();
        if !onlookers.is_empty() {
            self.effects.push(Effect::Register(onlookers));
        }
    }

    fn let_idle_channels_go(&mut self, now: Instant) {
        let linger = self.settings.linger;
        let idle: Vec<ChannelNumber> = self
            .channels
            .values()
            .filter(|channel| {
                channel.readers.is_empty()
                    && channel.idle_since.is_some_and(|since| now.duration_since(since) >= linger)
            })
            .map(|channel| channel.number)
            .collect();
        for number in idle {
            self.drop_channel(number);
        }
    }

    /// Forgets a channel that nobody holds.
    fn drop_channel(&mut self, number: ChannelNumber) -> Option<Channel> {
        let mut channel = self.channels.remove(&number)?;
        let thrown_away = channel.flight().and_then(|flight| flight.settling.take());
        self.effects.extend(thrown_away.and_then(|settling| settling.lock).map(Effect::Unlock));
        self.pending.remove(&number);
        self.by_spec.remove(&channel.spec);
        if let Some(feed) = self.feeds.get_mut(channel.feed()) {
            feed.index.leave(number, channel.rows.known_keys());
            feed.flying.remove(&number);
            feed.channels.remove(&number);
            if feed.channels.is_empty() {
                self.feeds.remove(channel.feed());
                self.effects.push(Effect::Unfeed(channel.feed().clone()));
            }
        }
        Some(channel)
    }

    /// Ends a turn: starts what can start, and hands out what has to be waited for.
    pub(super) fn finish_turn(&mut self, now: Instant) -> Vec<Effect> {
        if self.catalogue_wanted && !self.catalogue_loading {
            self.catalogue_wanted = false;
            self.catalogue_loading = true;
            self.catalogue_readings += 1;
            self.catalogue_read = Some(now);
            self.effects.push(Effect::LoadCatalogue);
        }
        self.start_flights(now);
        self.look_after_due(now);
        // A channel that has just opened is what other nodes and the next visitor wait for.
        for number in std::mem::take(&mut self.landed) {
            self.keep_checkpoint(number, now);
        }
        if cfg!(test) && self.channels.len() < 1_000 {
            self.check_invariants();
        }
        std::mem::take(&mut self.effects)
    }

    fn check_invariants(&self) {
        for (number, channel) in &self.channels {
            assert_eq!(self.by_spec.get(&channel.spec), Some(number));
            let feed = self.feeds.get(channel.feed()).expect("a channel has a feed");
            assert!(feed.channels.contains(number));
            assert_eq!(channel.is_live(), feed.index.contains(*number));
            assert_eq!(channel.has_flight(), feed.flying.contains(number));
            #[cfg(test)]
            if channel.is_live() && self.channels.len() < 100 {
                assert!(feed.index.holds_exactly(*number, &channel.rows.known_keys().collect()));
            }
            assert_eq!(channel.subscribers.is_empty(), channel.idle_since.is_some());
            assert_eq!(channel.is_live(), !self.pending.contains(number));
            for session in &channel.subscribers {
                assert!(self.clients.get(session).is_some_and(|client| client.subscriptions.contains_key(number)));
            }
        }
        for client in self.clients.values() {
            for (number, subscription) in &client.subscriptions {
                assert!(self.channels.contains_key(number));
                assert!(subscription.ids.iter().all(|id| client.ids.get(id) == Some(&Some(*number))));
            }
            assert!(client.moved.is_empty());
        }
    }
}

/// The rows of a channel by key, for reads.
fn rows_of(rows: &Rows) -> Vec<(Key, Arc<crate::entry::Row>)> {
    rows.iter().map(|(key, held)| (key.clone(), held.row.clone())).collect()
}
