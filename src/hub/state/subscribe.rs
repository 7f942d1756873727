//! Commands of sessions and routes, and what a new catalogue means for those who are subscribed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::{Effect, HubState, rows_of};
use crate::audit::{Event, Record, Served};
use crate::channel::ChannelSpec;
use crate::hub::channel::{Channel, Feed, Flight, Reader};
use crate::hub::inbox::{Delivery, Item};
use crate::hub::session::{Client, Standing, Subscription};
use crate::hub::{Command, RowsRead, SessionId, Subscribe};
use crate::identity::{self, Identity, ResolvedPolicy};
use crate::metrics;
use crate::protocol::{self, Beginning, ChannelNumber, ErrorCode, Refusal, Resume};
use crate::publication::{Catalogue, Column};
use crate::query::{self, ChannelRequest, Literal, unknown_publication};
use crate::version::Version;

/// A request that cannot be resolved yet.
pub(super) struct Parked {
    request: ChannelRequest,
    identity: Identity,
    for_whom: ForWhom,
    since: Instant,
    waits_for: WaitsFor,
}

/// What a request waits for.
enum WaitsFor {
    /// The name is not known, but may have been published a moment ago: a reading of the catalogue that begins after the
    /// request decides.
    Catalogue { reading: u64 },
    /// Literals of its filters.
    Casts,
}

/// A request, as far as it can be resolved at once.
enum Resolved {
    Spec(ChannelSpec),
    UnknownName,
    Uncast(Vec<Literal>),
}

/// Literals remembered; with more, all are forgotten, and cast again when they are asked for.
const CASTS_MAX: usize = 10_000;

/// 16 MiB of them, with what they were cast to: clients choose them, and a short one may become a long one.
const CASTS_BYTES_MAX: usize = 16 << 20;

enum ForWhom {
    Session { session: SessionId, id: u64, resume: Option<Resume> },
    Reader(oneshot::Sender<Result<RowsRead, Refusal>>),
}

impl HubState {
    pub(in crate::hub) fn on_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Attach { session, viewer, outbox } => {
                let client = Client::new(viewer, outbox);
                // A client need not wait for the next heartbeat to know how things stand.
                if let Some(position) = &self.position {
                    let frame = protocol::live(&position.cut, position.as_of, self.working);
                    client.outbox.send(Delivery::new([Item::Frame(frame)], None));
                }
                self.clients.insert(session, client);
            }
            Command::Subscribe(subscribe) => self.on_subscribe(*subscribe, now),
            Command::Unsubscribe { session, id } => self.on_unsubscribe(session, id, now),
            Command::Reidentify { session, identity, told } => {
                self.answer(session, told);
                self.on_reidentify(session, &identity, now);
            }
            Command::Drained(session) => {
                if let Some(client) = self.clients.get_mut(&session) {
                    client.awaiting = false;
                    self.make_due(session);
                }
            }
            Command::Rows { request, identity, reply } => {
                self.begin_request(request, identity, ForWhom::Reader(reply), now);
            }
        }
    }

    pub(in crate::hub) fn on_detach(&mut self, session: SessionId, why: &'static str, now: Instant) {
        // What it asked for and was not resolved yet must not join a channel on nobody's behalf.
        self.parked
            .retain(|parked| !matches!(parked.for_whom, ForWhom::Session { session: whose, .. } if whose == session));
        if let Some(client) = self.clients.remove(&session) {
            for (number, mut subscription) in client.subscriptions {
                subscription.end(why);
                self.leave(number, session, now);
            }
        }
    }

    pub(super) fn make_due(&mut self, session: SessionId) {
        if let Some(client) = self.clients.get_mut(&session)
            && !client.due
        {
            client.due = true;
            self.due.push(session);
        }
    }

    /// Says something to a client, after what is queued for it.
    fn answer(&mut self, session: SessionId, frame: protocol::Frame) {
        if let Some(client) = self.clients.get_mut(&session) {
            client.answers.push(frame);
            self.make_due(session);
        }
    }

    fn on_subscribe(&mut self, mut subscribe: Subscribe, now: Instant) {
        let (session, id) = (subscribe.session, subscribe.id);
        let Some(client) = self.clients.get_mut(&session) else { return };
        let refusal = if client.ids.contains_key(&id) {
            Some(Refusal::new(ErrorCode::DuplicateId, format!("the id {id} is in use")))
        } else if client.ids.len() >= self.settings.subscriptions_max {
            let message = format!("a connection has at most {} subscriptions", self.settings.subscriptions_max);
            Some(Refusal::new(ErrorCode::TooManySubscriptions, message))
        } else {
            None
        };
        // An id in use stays in use; the refusal names it all the same, as clients know which message they sent.
        if let Some(refusal) = refusal {
            self.answer(session, protocol::error(Some(id), &refusal));
            return;
        }
        let request = match &subscribe.request {
            Ok(request) => request.clone(),
            Err(refusal) => {
                let frame = protocol::error(Some(id), refusal);
                self.answer(session, frame);
                return;
            }
        };
        client_of(&mut self.clients, session, |client| client.ids.insert(id, None));
        let identity = std::mem::take(&mut subscribe.identity);
        self.begin_request(request, identity, ForWhom::Session { session, id, resume: subscribe.resume.take() }, now);
    }

    /// Resolves a request and begins what it asks for, or parks it until it can be resolved.
    fn begin_request(&mut self, request: ChannelRequest, identity: Identity, for_whom: ForWhom, now: Instant) {
        match self.resolve(&request, &identity) {
            Ok(Resolved::Spec(spec)) => self.serve(spec, request, identity, for_whom, now),
            Ok(Resolved::UnknownName) => {
                let waits_for = WaitsFor::Catalogue { reading: self.catalogue_readings + 1 };
                self.catalogue_wanted = true;
                self.parked.push(Parked { request, identity, for_whom, since: now, waits_for });
            }
            Ok(Resolved::Uncast(literals)) => {
                self.effects.push(Effect::Cast(literals));
                self.parked.push(Parked { request, identity, for_whom, since: now, waits_for: WaitsFor::Casts });
            }
            Err(refusal) => {
                self.note_refusal(&for_whom, &request, &identity, &refusal);
                self.refuse(for_whom, refusal);
            }
        }
    }

    /// Tells the audit of a session that was refused a channel; routes do it themselves for reads.
    fn note_refusal(&self, for_whom: &ForWhom, request: &ChannelRequest, identity: &Identity, refusal: &Refusal) {
        let ForWhom::Session { session, .. } = for_whom else { return };
        let Some(client) = self.clients.get(session).filter(|_| self.settings.audit.is_on()) else { return };
        let record = Record::new(Event::Refused, &client.viewer, identity, &request.publication);
        self.settings.audit.record(Record { why: Some(refusal.code.name()), ..record });
    }

    /// The channel that a request means.
    fn resolve(&self, request: &ChannelRequest, identity: &Identity) -> Result<Resolved, Refusal> {
        let known = self.catalogue.as_ref().and_then(|catalogue| catalogue.publications.get(&request.publication));
        let Some(publication) = known else { return Ok(Resolved::UnknownName) };
        let known = |literal: &Literal| self.casts.get(literal).cloned();
        let policy = identity::resolve(identity, publication, &self.settings.rls, known)?;
        let query = query::resolve(request, publication, known);
        match (policy, query) {
            (Ok(policy), Ok(Ok(query))) => {
                Ok(Resolved::Spec(ChannelSpec { feed: publication.feed.clone(), policy, query }))
            }
            (Ok(_), Ok(Err(literals))) => Ok(Resolved::Uncast(literals)),
            (Ok(_), Err(refusal)) => Err(refusal),
            // What is wrong with the query is said to those only who may know of the publication.
            (Err(literals), query) => {
                let of_query = query.ok().and_then(Result::err).unwrap_or_default();
                Ok(Resolved::Uncast(literals.into_iter().chain(of_query).collect()))
            }
        }
    }

    fn serve(
        &mut self,
        spec: ChannelSpec,
        request: ChannelRequest,
        identity: Identity,
        for_whom: ForWhom,
        now: Instant,
    ) {
        match for_whom {
            ForWhom::Reader(reply) => self.read(spec, reply, now),
            ForWhom::Session { session, id, resume } => {
                let standing = Standing::New { resume, since: now };
                self.join(session, id, spec, request, identity, standing, now);
            }
        }
    }

    fn refuse(&mut self, for_whom: ForWhom, refusal: Refusal) {
        match for_whom {
            ForWhom::Session { session, id, .. } => self.refuse_id(session, id, &refusal),
            // A reader that has gone needs no answer.
            ForWhom::Reader(reply) => drop(reply.send(Err(refusal))),
        }
    }

    /// Literals that Postgres has cast, or has not.
    pub(in crate::hub) fn on_cast(&mut self, cast: Vec<(Literal, Result<Arc<str>, String>)>, now: Instant) {
        let bytes: usize = cast.iter().map(bytes_of).sum();
        let forgotten =
            self.casts.len() + cast.len() > CASTS_MAX || self.casts_bytes.saturating_add(bytes) > CASTS_BYTES_MAX;
        if forgotten {
            self.casts.clear();
            self.casts_bytes = 0;
        }
        self.casts_bytes = self.casts_bytes.saturating_add(bytes);
        self.casts.extend(cast);
        self.retry_parked(now, |parked| matches!(parked.waits_for, WaitsFor::Casts), forgotten);
    }

    /// Resolves parked requests again. `recast`: literals that they waited for may have been forgotten meanwhile.
    fn retry_parked(&mut self, now: Instant, which: impl Fn(&Parked) -> bool, recast: bool) {
        let (again, stay) = std::mem::take(&mut self.parked).into_iter().partition(which);
        self.parked = stay;
        for Parked { request, identity, for_whom, since, waits_for } in again {
            match self.resolve(&request, &identity) {
                Ok(Resolved::Spec(spec)) => self.serve(spec, request, identity, for_whom, now),
                Ok(Resolved::UnknownName) => {
                    let refusal = unknown_publication(&request.publication);
                    self.note_refusal(&for_whom, &request, &identity, &refusal);
                    self.refuse(for_whom, refusal);
                }
                Ok(Resolved::Uncast(literals)) => {
                    // Those of another request may have landed, or those of a name that has just become known.
                    if recast || matches!(waits_for, WaitsFor::Catalogue { .. }) {
                        self.effects.push(Effect::Cast(literals));
                    }
                    self.parked.push(Parked { request, identity, for_whom, since, waits_for: WaitsFor::Casts });
                }
                Err(refusal) => {
                    self.note_refusal(&for_whom, &request, &identity, &refusal);
                    self.refuse(for_whom, refusal);
                }
            }
        }
    }

    /// A session's id joins a channel, which is opened if need be.
    #[expect(clippy::too_many_arguments, reason = "the parts of one subscription, taken apart by its two callers")]
    fn join(
        &mut self,
        session: SessionId,
        id: u64,
        spec: ChannelSpec,
        request: ChannelRequest,
        identity: Identity,
        standing: Standing,
        now: Instant,
    ) {
        let number = self.open(spec, now);
        let Some(channel) = self.channels.get_mut(&number) else { return };
        channel.subscribers.insert(session);
        channel.idle_since = None;
        let form = channel.form.clone();
        let Some(client) = self.clients.get_mut(&session) else { return };
        client.ids.insert(id, Some(number));
        let live = client.is_live();
        let frame = match client.subscriptions.get_mut(&number) {
            Some(subscription) => {
                subscription.ids.push(id);
                // The client has the channel: it is told so at once. If it has not, that follows the first id's answer.
                match (&subscription.standing, form, &self.position) {
                    (Standing::Complete, Some(form), Some(position)) if live => Some(protocol::subscribed(
                        id,
                        &form,
                        &position.cut.epoch,
                        position.cut.version,
                        Beginning::Shared,
                    )),
                    (Standing::Complete, Some(form), Some(position)) => {
                        Some(protocol::subscribed(id, &form, &position.cut.epoch, subscription.told, Beginning::Shared))
                    }
                    _ => None,
                }
            }
            None => {
                let subscription =
                    Subscription { ids: vec![id], request, identity, standing, told: Version(0), shown: None };
                client.subscriptions.insert(number, subscription);
                None
            }
        };
        match frame {
            Some(frame) => {
                metrics::subscribed(Beginning::Shared);
                self.answer(session, frame);
            }
            None => self.make_due(session),
        }
    }

    /// The channel of a spec, opened if it is not.
    fn open(&mut self, spec: ChannelSpec, now: Instant) -> ChannelNumber {
        if let Some(&number) = self.by_spec.get(&spec) {
            return number;
        }
        self.channels_begun += 1;
        self.flights_begun += 1;
        let number = ChannelNumber(self.channels_begun);
        let flight = Flight::new(self.flights_begun, Version(0));
        if !self.feeds.contains_key(&spec.feed) {
            self.effects.push(Effect::Feed(spec.feed.clone()));
        }
        let is_view = self.is_view(&spec.feed);
        let stale = is_view && self.is_stale(&spec.feed);
        let feed: &mut Feed = self.feeds.entry(spec.feed.clone()).or_insert_with(|| Feed::new(is_view, stale));
        feed.channels.insert(number);
        feed.flying.insert(number);
        self.by_spec.insert(spec.clone(), number);
        self.channels.insert(number, Channel::new(spec, number, flight, now));
        self.pending.insert(number);
        self.grounded.push(number);
        number
    }

    fn on_unsubscribe(&mut self, session: SessionId, id: u64, now: Instant) {
        let Some(client) = self.clients.get_mut(&session) else { return };
        let frame = match client.ids.remove(&id) {
            None => {
                let refusal = Refusal::new(ErrorCode::UnknownId, format!("the id {id} is not subscribed"));
                protocol::error(None, &refusal)
            }
            Some(None) => {
                self.parked.retain(|parked| !matches!(&parked.for_whom, ForWhom::Session { session: whose, id: which, .. } if (*whose, *which) == (session, id)));
                protocol::unsubscribed(id)
            }
            Some(Some(number)) => {
                if let Some(subscription) = client.subscriptions.get_mut(&number) {
                    subscription.ids.retain(|&other| other != id);
                    if subscription.ids.is_empty() {
                        subscription.end("unsubscribed");
                        client.subscriptions.remove(&number);
                        self.leave(number, session, now);
                    }
                }
                protocol::unsubscribed(id)
            }
        };
        self.answer(session, frame);
    }

    /// Subscriptions that another identity resolves to another channel move there, or are refused; what is parked is
    /// resolved for it. From here on nothing of a channel that was left is queued.
    fn on_reidentify(&mut self, session: SessionId, identity: &Identity, now: Instant) {
        let is_ours = |parked: &mut Parked| matches!(parked.for_whom, ForWhom::Session { session: whose, .. } if whose == session);
        let parked: Vec<Parked> = self.parked.extract_if(.., is_ours).collect();
        for parked in parked {
            match parked.waits_for {
                WaitsFor::Catalogue { .. } => self.parked.push(Parked { identity: identity.clone(), ..parked }),
                // Its own claims may have to be cast.
                WaitsFor::Casts => self.begin_request(parked.request, identity.clone(), parked.for_whom, now),
            }
        }
        let Some(client) = self.clients.get_mut(&session) else { return };
        let mut asked = Vec::with_capacity(client.subscriptions.len());
        for (&number, subscription) in &mut client.subscriptions {
            subscription.identity = identity.clone();
            asked.push((number, subscription.request.clone()));
        }
        let left: Vec<ChannelNumber> = asked
            .into_iter()
            .filter(|(number, request)| {
                let spec = self.channels.get(number).map(|channel| &channel.spec);
                !matches!(self.resolve(request, identity), Ok(Resolved::Spec(now_meant)) if Some(&now_meant) == spec)
            })
            .map(|(number, _)| number)
            .collect();
        // All leave before the first moves, which might otherwise join one that is still to leave.
        let mut moved = Vec::with_capacity(left.len());
        for number in left {
            moved
                .extend(client_of(&mut self.clients, session, |client| client.subscriptions.remove(&number)).flatten());
            self.leave(number, session, now);
        }
        for mut subscription in moved {
            subscription.end("another_identity");
            self.move_subscription(session, subscription, now);
        }
    }

    fn leave(&mut self, number: ChannelNumber, session: SessionId, now: Instant) {
        if let Some(channel) = self.channels.get_mut(&number) {
            channel.subscribers.remove(&session);
            if channel.subscribers.is_empty() {
                channel.idle_since = Some(now);
            }
        }
    }

    fn read(&mut self, spec: ChannelSpec, reply: oneshot::Sender<Result<RowsRead, Refusal>>, now: Instant) {
        let number = self.open(spec, now);
        let Some(channel) = self.channels.get_mut(&number) else { return };
        channel.readers.push((now, reply));
        if channel.idle_since.is_some() {
            // A read keeps the channel as a subscriber does that left at once.
            channel.idle_since = Some(now);
        }
        if channel.is_live() {
            self.answer_readers(number);
        }
    }

    /// Answers those who wait to read a channel that is live.
    pub(super) fn answer_readers(&mut self, number: ChannelNumber) {
        let Some(position) = &self.position else { return };
        let Some(channel) = self.channels.get_mut(&number) else { return };
        // Those of a stale view wait until it is fresh.
        if self.feeds.get(channel.feed()).is_some_and(|feed| feed.stale) {
            return;
        }
        let Some(form) = channel.form.clone() else { return };
        for (asked, reply) in std::mem::take(&mut channel.readers) {
            let public = matches!(channel.spec.policy, ResolvedPolicy::Public);
            let _ = reply.send(Ok(RowsRead {
                form: form.clone(),
                cut: position.cut.clone(),
                as_of: position.as_of,
                changed: channel.rows.changed(),
                public,
                channel: self.settings.audit.is_on().then(|| channel.spec.canonical()),
                served: if asked <= channel.opened { channel.served } else { Served::Memory },
                rows: rows_of(&channel.rows),
            }));
        }
    }

    /// Ends a channel for all its subscribers.
    pub(super) fn close_channel(&mut self, number: ChannelNumber, refusal: &Refusal) {
        let Some(channel) = self.drop_channel(number) else { return };
        for (_, reply) in channel.readers {
            let _ = reply.send(Err(refusal.clone()));
        }
        for session in channel.subscribers {
            let audit = &self.settings.audit;
            let ids = client_of(&mut self.clients, session, |client| {
                let mut subscription = client.subscriptions.remove(&number)?;
                match subscription.shown {
                    Some(_) => subscription.end(refusal.code.name()),
                    None if audit.is_on() => {
                        let publication = &channel.spec.feed.name;
                        let record = Record::new(Event::Refused, &client.viewer, &subscription.identity, publication);
                        let resolved = Some(channel.spec.canonical());
                        audit.record(Record { channel: resolved, why: Some(refusal.code.name()), ..record });
                    }
                    None => {}
                }
                for id in &subscription.ids {
                    client.ids.remove(id);
                }
                Some(subscription.ids)
            })
            .flatten();
            for id in ids.unwrap_or_default() {
                self.answer(session, protocol::error(Some(id), refusal));
            }
        }
    }

    /// What waits too long is refused for now.
    pub(super) fn give_up_waiting(&mut self, now: Instant) {
        let timeout = self.settings.open_timeout;
        let refusal = Refusal::unavailable("the channel could not be opened in time");
        let late: Vec<ChannelNumber> = self
            .channels
            .values()
            .filter(|channel| {
                channel.form.is_none()
                    && now.duration_since(channel.opened) >= timeout
                    && !(channel.subscribers.is_empty() && channel.readers.is_empty())
            })
            .map(|channel| channel.number)
            .collect();
        for number in late {
            self.close_channel(number, &refusal);
        }
        for channel in self.channels.values_mut() {
            let (late, waiting): (Vec<Reader>, Vec<Reader>) = std::mem::take(&mut channel.readers)
                .into_iter()
                .partition(|(since, reply)| reply.is_closed() || now.duration_since(*since) >= timeout);
            channel.readers = waiting;
            for (_, reply) in late {
                let _ = reply.send(Err(refusal.clone()));
            }
        }
        self.give_up_behind_resyncs(now);
        self.give_up_on_stale(now);
        for parked in std::mem::take(&mut self.parked) {
            if now.duration_since(parked.since) < timeout {
                self.parked.push(parked);
                continue;
            }
            self.refuse(parked.for_whom, refusal.clone());
        }
    }

    /// A client with a channel under resync stands still, and what it asks for meanwhile waits for that one: not for ever.
    fn give_up_behind_resyncs(&mut self, now: Instant) {
        let refusal = Refusal::unavailable("another channel of this connection is being read again");
        let mut late: Vec<(SessionId, ChannelNumber)> = Vec::new();
        for (&session, client) in self.clients.iter().filter(|(_, client)| !client.is_live()) {
            let held_up = client.subscriptions.iter().any(|(number, subscription)| {
                !matches!(subscription.standing, Standing::New { .. }) && self.pending.contains(number)
            });
            if held_up {
                late.extend(client.subscriptions.iter().filter_map(|(&number, subscription)| {
                    let Standing::New { since, .. } = &subscription.standing else { return None };
                    (now.duration_since(*since) >= self.settings.open_timeout).then_some((session, number))
                }));
            }
        }
        for (session, number) in late {
            self.refuse_subscription(session, number, &refusal, now);
        }
    }

    /// A subscription that waits no longer; its ids are told why.
    pub(super) fn refuse_subscription(
        &mut self,
        session: SessionId,
        number: ChannelNumber,
        refusal: &Refusal,
        now: Instant,
    ) {
        let removed = client_of(&mut self.clients, session, |client| client.subscriptions.remove(&number)).flatten();
        self.leave(number, session, now);
        for id in removed.map(|subscription| subscription.ids).unwrap_or_default() {
            self.refuse_id(session, id, refusal);
        }
    }

    /// An id that joined no channel is told so, and is free again.
    fn refuse_id(&mut self, session: SessionId, id: u64, refusal: &Refusal) {
        client_of(&mut self.clients, session, |client| client.ids.remove(&id));
        self.answer(session, protocol::error(Some(id), refusal));
    }

    /// The publications as they are now; `None`: they could not be read.
    pub(in crate::hub) fn on_catalogue(&mut self, loaded: Option<Arc<Catalogue>>, now: Instant) {
        self.catalogue_loading = false;
        let Some(catalogue) = loaded else {
            self.catalogue_wanted = self.catalogue.is_none() || !self.parked.is_empty();
            return;
        };
        self.catalogue_id = Some(catalogue.id());
        let before = self.catalogue.replace(catalogue.clone());
        self.follow_catalogue(before.as_deref(), &catalogue, now);
        let read = self.catalogue_readings;
        self.retry_parked(
            now,
            |parked| match parked.waits_for {
                WaitsFor::Catalogue { reading } => reading <= read,
                WaitsFor::Casts => false,
            },
            false,
        );
        if self.parked.iter().any(|parked| matches!(parked.waits_for, WaitsFor::Catalogue { .. })) {
            self.catalogue_wanted = true;
        }
    }

    /// Channels of generations that are gone, those that compare a column which changed, since their values were cast to the
    /// old one, and those that lack a column: their subscribers move to the channel that the same request means now, or are
    /// refused.
    fn follow_catalogue(&mut self, before: Option<&Catalogue>, catalogue: &Catalogue, now: Instant) {
        let gone: Vec<ChannelNumber> = self
            .channels
            .values()
            .filter(|channel| {
                catalogue
                    .publications
                    .get(&channel.feed().name)
                    .is_none_or(|publication| publication.feed != *channel.feed())
                    || before.is_some_and(|before| {
                        let columns = |of: &Catalogue| {
                            of.publications.get(&channel.feed().name).map(|known| known.schema_id.clone())
                        };
                        columns(before) != columns(catalogue)
                            && named_columns(&channel.spec, before) != named_columns(&channel.spec, catalogue)
                    })
            })
            .map(|channel| channel.number)
            .collect();
        for number in gone {
            let Some(channel) = self.drop_channel(number) else { continue };
            tracing::info!(channel = %channel.feed(), "the publication changed or ended");
            for (_, reply) in channel.readers {
                let _ = reply.send(Err(Refusal::unavailable("the publication changed while it was read")));
            }
            for session in channel.subscribers {
                let moved =
                    client_of(&mut self.clients, session, |client| client.subscriptions.remove(&number)).flatten();
                if let Some(mut subscription) = moved {
                    subscription.end("publication_changed");
                    self.move_subscription(session, subscription, now);
                }
            }
        }
    }

    fn move_subscription(&mut self, session: SessionId, subscription: Subscription, now: Instant) {
        for id in subscription.ids {
            let (request, identity) = (subscription.request.clone(), subscription.identity.clone());
            client_of(&mut self.clients, session, |client| client.ids.insert(id, None));
            match self.resolve(&request, &identity) {
                // The catalogue is the newest: what it does not name is not published.
                Ok(Resolved::UnknownName) => {
                    self.refuse_id(session, id, &unknown_publication(&request.publication));
                }
                _ => self.begin_request(request, identity, ForWhom::Session { session, id, resume: None }, now),
            }
        }
    }
}

/// The columns that a channel filters by and is ordered by, and of those asked for only whether they are there.
fn named_columns<'a>(spec: &ChannelSpec, catalogue: &'a Catalogue) -> (Vec<Option<&'a Column>>, Vec<bool>) {
    let publication = catalogue.publications.get(&spec.feed.name);
    let columns = publication.map(|publication| publication.schema.columns.as_slice()).unwrap_or_default();
    let find = |name: &str| columns.iter().find(|column| &*column.name == name);
    let filter = spec.filter();
    let compared = filter.columns().into_iter().chain(spec.query.order.iter().map(|by| &by.column));
    let selected = spec.query.select.iter().flatten();
    (compared.map(|name| find(name)).collect(), selected.map(|name| find(name).is_some()).collect())
}

/// What a literal takes with its value.
fn bytes_of((literal, value): &(Literal, Result<Arc<str>, String>)) -> usize {
    literal.1.len() + value.as_ref().map_or_else(String::len, |json| json.len())
}

/// Does something with a client, if it is still there.
fn client_of<T>(
    clients: &mut HashMap<SessionId, Client>,
    session: SessionId,
    what: impl FnOnce(&mut Client) -> T,
) -> Option<T> {
    clients.get_mut(&session).map(what)
}
