//! Commands of sessions and routes, and what a new catalogue means for those who are subscribed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::{Effect, HubState, rows_of};
use crate::hub::channel::{Channel, Feed, Flight};
use crate::hub::inbox::{Delivery, Item};
use crate::hub::session::{Client, Standing, Subscription};
use crate::hub::{Command, RowsRead, SessionId, Subscribe};
use crate::identity::{self, Identity, ResolvedPolicy};
use crate::protocol::{self, Beginning, ChannelNumber, ErrorCode, Refusal};
use crate::publication::Catalogue;
use crate::query::{ChannelRequest, ChannelSpec, unknown_publication};
use crate::version::Version;

/// A request for a name that the catalogue does not know, which may have been published a moment ago.
pub(super) struct Parked {
    request: ChannelRequest,
    identity: Identity,
    for_whom: ForWhom,
    since: Instant,
    /// The reading of the catalogue that decides: one that begins after the request.
    decided_by: u64,
}

enum ForWhom {
    Session { subscribe: Box<Subscribe> },
    Reader(oneshot::Sender<Result<RowsRead, Refusal>>),
}

impl HubState {
    pub(in crate::hub) fn on_command(&mut self, command: Command, now: Instant) {
        match command {
            Command::Attach { session, outbox } => {
                let client = Client::new(outbox);
                // A client need not wait for the next heartbeat to know how things stand.
                if let Some(position) = &self.position {
                    let frame = protocol::live(&position.cut, position.as_of, self.working);
                    client.outbox.send(Delivery::new([Item::Frame(frame)], None));
                }
                self.clients.insert(session, client);
            }
            Command::Subscribe(subscribe) => self.on_subscribe(subscribe, now),
            Command::Unsubscribe { session, id } => self.on_unsubscribe(session, id, now),
            Command::Drained(session) => {
                if let Some(client) = self.clients.get_mut(&session) {
                    client.awaiting = false;
                    self.make_due(session);
                }
            }
            Command::Rows { request, identity, reply } => match self.resolve(&request, &identity) {
                Ok(Some(spec)) => self.read(spec, reply, now),
                Ok(None) => self.park(request, identity, ForWhom::Reader(reply), now),
                Err(refusal) => {
                    let _ = reply.send(Err(refusal));
                }
            },
        }
    }

    pub(in crate::hub) fn on_detach(&mut self, session: SessionId, now: Instant) {
        if let Some(client) = self.clients.remove(&session) {
            for number in client.subscriptions.keys() {
                self.leave(*number, session, now);
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

    fn on_subscribe(&mut self, mut subscribe: Box<Subscribe>, now: Instant) {
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
        match self.resolve(&request, &subscribe.identity) {
            Ok(Some(spec)) => {
                let identity = std::mem::take(&mut subscribe.identity);
                let standing = Standing::New { resume: subscribe.resume, since: now };
                self.join(session, id, spec, request, identity, standing, now);
            }
            Ok(None) => {
                client_of(&mut self.clients, session, |client| client.ids.insert(id, None));
                let identity = subscribe.identity.clone();
                self.park(request, identity, ForWhom::Session { subscribe }, now);
            }
            Err(refusal) => self.answer(session, protocol::error(Some(id), &refusal)),
        }
    }

    /// The channel that a request means; `None`: the catalogue has to be read first.
    fn resolve(&self, request: &ChannelRequest, identity: &Identity) -> Result<Option<ChannelSpec>, Refusal> {
        let known = self.catalogue.as_ref().and_then(|catalogue| catalogue.publications.get(&request.publication));
        let Some(publication) = known else { return Ok(None) };
        let policy = identity::resolve(identity, publication)?;
        Ok(Some(ChannelSpec { feed: publication.feed.clone(), policy, query: request.query.clone() }))
    }

    fn park(&mut self, request: ChannelRequest, identity: Identity, for_whom: ForWhom, now: Instant) {
        let decided_by = self.catalogue_readings + 1;
        self.parked.push(Parked { request, identity, for_whom, since: now, decided_by });
        self.catalogue_wanted = true;
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
                let subscription = Subscription { ids: vec![id], request, identity, standing, told: Version(0) };
                client.subscriptions.insert(number, subscription);
                None
            }
        };
        match frame {
            Some(frame) => self.answer(session, frame),
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
        let flight = Flight {
            number: self.flights_begun,
            asked_at: None,
            not_before: None,
            at_least: Version(0),
            settling: None,
        };
        if !self.feeds.contains_key(&spec.feed) {
            self.effects.push(Effect::Feed(spec.feed.clone()));
        }
        let feed: &mut Feed = self.feeds.entry(spec.feed.clone()).or_default();
        feed.channels.push(number);
        self.by_spec.insert(spec.clone(), number);
        self.channels.insert(number, Channel::new(spec, number, flight, now));
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
                self.parked.retain(|parked| !matches!(&parked.for_whom, ForWhom::Session { subscribe } if subscribe.session == session && subscribe.id == id));
                protocol::unsubscribed(id)
            }
            Some(Some(number)) => {
                if let Some(subscription) = client.subscriptions.get_mut(&number) {
                    subscription.ids.retain(|&other| other != id);
                    if subscription.ids.is_empty() {
                        client.subscriptions.remove(&number);
                        self.leave(number, session, now);
                    }
                }
                protocol::unsubscribed(id)
            }
        };
        self.answer(session, frame);
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
        channel.readers.push(reply);
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
        let Some(form) = channel.form.clone() else { return };
        for reply in std::mem::take(&mut channel.readers) {
            let public = matches!(channel.spec.policy, ResolvedPolicy::Public);
            let _ = reply.send(Ok(RowsRead {
                form: form.clone(),
                cut: position.cut.clone(),
                as_of: position.as_of,
                changed: channel.rows.changed(),
                public,
                rows: rows_of(&channel.rows),
            }));
        }
    }

    /// Ends a channel for all its subscribers.
    pub(super) fn close_channel(&mut self, number: ChannelNumber, refusal: &Refusal) {
        let Some(channel) = self.drop_channel(number) else { return };
        for reply in channel.readers {
            let _ = reply.send(Err(refusal.clone()));
        }
        for session in channel.subscribers {
            let ids = client_of(&mut self.clients, session, |client| {
                let ids = client.subscriptions.remove(&number).map(|subscription| subscription.ids).unwrap_or_default();
                for id in &ids {
                    client.ids.remove(id);
                }
                ids
            });
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
            channel.readers.retain(|reply| !reply.is_closed());
        }
        for parked in std::mem::take(&mut self.parked) {
            if now.duration_since(parked.since) < timeout {
                self.parked.push(parked);
                continue;
            }
            match parked.for_whom {
                ForWhom::Session { subscribe } => self.refuse_id(subscribe.session, subscribe.id, &refusal),
                ForWhom::Reader(reply) => {
                    let _ = reply.send(Err(refusal.clone()));
                }
            }
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
        self.catalogue = Some(catalogue.clone());
        self.follow_catalogue(&catalogue, now);
        for parked in std::mem::take(&mut self.parked) {
            if parked.decided_by > self.catalogue_readings {
                self.parked.push(parked);
                self.catalogue_wanted = true;
                continue;
            }
            let spec = self
                .resolve(&parked.request, &parked.identity)
                .and_then(|spec| spec.ok_or_else(|| unknown_publication(&parked.request.publication)));
            match (parked.for_whom, spec) {
                (ForWhom::Reader(reply), Ok(spec)) => self.read(spec, reply, now),
                (ForWhom::Reader(reply), Err(refusal)) => {
                    let _ = reply.send(Err(refusal));
                }
                (ForWhom::Session { subscribe }, Ok(spec)) => {
                    let standing = Standing::New { resume: subscribe.resume, since: now };
                    if self.clients.contains_key(&subscribe.session) {
                        let (session, id) = (subscribe.session, subscribe.id);
                        self.join(session, id, spec, parked.request, parked.identity, standing, now);
                    }
                }
                (ForWhom::Session { subscribe }, Err(refusal)) => {
                    self.refuse_id(subscribe.session, subscribe.id, &refusal);
                }
            }
        }
    }

    /// Channels of generations that are gone: their subscribers move to the channel that the same request means now, or
    /// are refused.
    fn follow_catalogue(&mut self, catalogue: &Catalogue, now: Instant) {
        let gone: Vec<ChannelNumber> = self
            .channels
            .values()
            .filter(|channel| {
                catalogue
                    .publications
                    .get(&channel.feed().name)
                    .is_none_or(|publication| publication.feed != *channel.feed())
            })
            .map(|channel| channel.number)
            .collect();
        for number in gone {
            let Some(channel) = self.drop_channel(number) else { continue };
            tracing::info!(channel = %channel.feed(), "the publication changed or ended");
            for reply in channel.readers {
                let _ = reply.send(Err(Refusal::unavailable("the publication changed while it was read")));
            }
            for session in channel.subscribers {
                let moved =
                    client_of(&mut self.clients, session, |client| client.subscriptions.remove(&number)).flatten();
                if let Some(subscription) = moved {
                    self.move_subscription(session, subscription, now);
                }
            }
        }
    }

    fn move_subscription(&mut self, session: SessionId, subscription: Subscription, now: Instant) {
        let resolved = self
            .resolve(&subscription.request, &subscription.identity)
            .and_then(|spec| spec.ok_or_else(|| unknown_publication(&subscription.request.publication)));
        match resolved {
            Ok(spec) => {
                for id in subscription.ids {
                    let standing = Standing::New { resume: None, since: now };
                    let (request, identity) = (subscription.request.clone(), subscription.identity.clone());
                    self.join(session, id, spec.clone(), request, identity, standing, now);
                }
            }
            Err(refusal) => {
                for id in subscription.ids {
                    self.refuse_id(session, id, &refusal);
                }
            }
        }
    }
}

/// Does something with a client, if it is still there.
fn client_of<T>(
    clients: &mut HashMap<SessionId, Client>,
    session: SessionId,
    what: impl FnOnce(&mut Client) -> T,
) -> Option<T> {
    clients.get_mut(&session).map(what)
}
