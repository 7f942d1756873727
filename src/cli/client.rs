//! The client's side of `rowcast.v1`, without a socket: frames go in, keyed rows and events come out.
//!
//! `rowcast watch` and the integration tests stand on it, so it is strict where a browser may be lenient: what the
//! protocol does not allow is a [`Violation`], not a shrug. It follows DESIGN §6 to the letter: pages take effect with
//! the last one, what lies between `step` and `live` takes effect together, and a position is only what was told.
//!
//! ```text
//!              subscribed (fresh)            last page of a snapshot
//!   asked ───────────────────────▶ awaiting ────────────────────────▶ complete ──▶ deltas, live
//!     ▲  subscribed (resumed): complete ▲                                │ │
//!     │                                 └──────────── reset ─────────────┘ │
//!     └───────────── connection lost (rows, tag and position stay) ────────┘
//! ```
//!
//! It does not connect, wait or retry: the caller says [`Client::connected`] and [`Client::disconnected`], sends what
//! [`Client::take_outgoing`] gives, and subscribes again when a refusal says so.

mod channel;
mod frame;
mod row;

use std::collections::{BTreeMap, HashMap};

use serde_json::json;

use crate::config::BearerToken;
use crate::entry::Key;
use crate::protocol::{OrderBy, Why};
use crate::publication::Column;
use crate::version::{Epoch, Version};

use channel::{Applied, Channel};
use frame::{Expiring, Page, Reset, ServerFrame, Step, Subscribed, Unsubscribed};

pub use frame::{Authenticated, Live, ServerError};
pub use row::Row;

/// A subscription of a [`Client`]; it stays the same across reconnects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle(u64);

/// What rows are known to contain: everything up to a version of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    pub epoch: Epoch,
    pub version: Version,
}

/// How the rows of a channel are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    pub tag: String,
    pub key: Vec<String>,
    pub order: Vec<OrderBy>,
    pub columns: Vec<Column>,
}

/// One row's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// `before` is `None` for a row that is new; `changed` names the columns that are different.
    Upsert { key: Key, before: Option<Row>, row: Row, changed: Vec<String> },
    /// `row` is what it was, where the client had it.
    Gone { key: Key, row: Option<Row>, why: Option<Why> },
}

/// What happened, after it has taken effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The server serves the subscription; with `resumed` from the position that the client had.
    Subscribed {
        handle: Handle,
        resumed: bool,
    },
    /// All rows were replaced.
    Snapshot {
        handle: Handle,
        version: Version,
    },
    /// Some rows changed.
    Changed {
        handle: Handle,
        version: Version,
        as_of: Option<i64>,
        changes: Vec<Change>,
    },
    /// Continuity is lost; a snapshot follows.
    Reset {
        handle: Handle,
        why: String,
    },
    /// Complete up to a version.
    Live(Live),
    /// The server ended the subscription. [`Client::retry`] asks again.
    Refused {
        handle: Handle,
        error: ServerError,
    },
    Unsubscribed {
        handle: Handle,
    },
    /// The server has taken our token.
    Authenticated(Authenticated),
    /// Another token is needed soon: [`Client::authenticate`].
    Expiring {
        expires_in_ms: u64,
    },
    /// Something about the connection, not about one subscription.
    Error(ServerError),
    /// A delta continued from above the position. The client has asked to be brought up to date already.
    Gap {
        handle: Handle,
    },
}

/// What the protocol does not allow. The connection is not worth keeping after it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("a frame that cannot be read ({error}): {frame}")]
    Unreadable { error: String, frame: String },
    #[error("channel {channel} went back from {from} to {to}")]
    BackInTime { channel: String, from: Version, to: Version },
    #[error("channel {channel}: {what}")]
    Form { channel: String, what: String },
}

/// A connection's state, and what outlives it.
#[derive(Debug, Default)]
pub struct Client {
    subscriptions: BTreeMap<Handle, Subscription>,
    /// Rows, each with at least one subscription that uses them.
    channels: BTreeMap<ChannelId, Channel>,
    /// The server's numbers on this connection.
    by_number: HashMap<u64, ChannelId>,
    /// Handles by the ids that this connection knows them under.
    by_wire_id: HashMap<u64, Handle>,
    /// Frames since an open `step`, whose version is first.
    step: Option<(Version, Vec<ServerFrame>)>,
    outgoing: Vec<String>,
    /// Said first on every connection.
    token: Option<BearerToken>,
    is_connected: bool,
    heartbeat_ms: Option<u64>,
    last_number: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct ChannelId(u64);

#[derive(Debug)]
struct Subscription {
    channel_text: String,
    /// `None`: the server has ended it, or was asked to.
    wire_id: Option<u64>,
    channel: ChannelId,
}

impl Client {
    /// Adds a subscription and asks for it, now or once connected.
    pub fn subscribe(&mut self, channel_text: &str) -> Handle {
        let handle = Handle(self.next_number());
        let channel = ChannelId(self.next_number());
        self.channels.insert(channel, Channel::new(channel_text));
        let subscription = Subscription { channel_text: channel_text.to_owned(), wire_id: None, channel };
        self.subscriptions.insert(handle, subscription);
        self.ask(handle);
        handle
    }

    /// Ends a subscription and forgets its rows.
    pub fn unsubscribe(&mut self, handle: Handle) {
        if let Some(id) = self.subscriptions.get_mut(&handle).and_then(|subscription| subscription.wire_id.take()) {
            self.say(json!({ "op": "unsubscribe", "id": id }));
        }
        self.subscriptions.remove(&handle);
        self.forget_unused_channels();
    }

    /// From here on the client is whom this token proves, on this connection and on those to come.
    pub fn authenticate(&mut self, token: BearerToken) {
        self.token = Some(token);
        self.say_token();
    }

    /// Asks again for a subscription that was refused.
    pub fn retry(&mut self, handle: Handle) {
        if self.subscriptions.get(&handle).is_some_and(|subscription| subscription.wire_id.is_none()) {
            self.ask(handle);
        }
    }

    /// A new connection: asks for every subscription, with the positions that are known.
    pub fn connected(&mut self) {
        self.disconnected();
        self.is_connected = true;
        self.say_token();
        for handle in self.handles() {
            self.ask(handle);
        }
    }

    /// The connection is gone: unfinished pages and steps are discarded, rows and positions stay.
    pub fn disconnected(&mut self) {
        self.is_connected = false;
        self.step = None;
        self.by_number.clear();
        self.by_wire_id.clear();
        self.outgoing.clear();
        self.channels.values_mut().for_each(Channel::disconnected);
        self.subscriptions.values_mut().for_each(|subscription| subscription.wire_id = None);
    }

    /// The messages to send, in order.
    pub fn take_outgoing(&mut self) -> Vec<String> {
        std::mem::take(&mut self.outgoing)
    }

    /// Takes a frame in, and says what happened.
    ///
    /// # Errors
    /// What the protocol does not allow.
    pub fn receive(&mut self, text: &str) -> Result<Vec<Event>, Violation> {
        let frame = ServerFrame::parse(text).map_err(|error| Violation::Unreadable {
            error: error.to_string(),
            frame: text.chars().take(200).collect(),
        })?;
        let mut events = Vec::new();
        match frame {
            ServerFrame::Step(Step { version }) => {
                if let Some((_, frames)) = self.step.replace((version, Vec::new())) {
                    // A step within a step: the outer one never ended. Nothing is lost by letting it take effect.
                    self.handle_all(frames, &mut events)?;
                }
            }
            ServerFrame::Live(live) => match self.step.take() {
                Some((version, frames)) if live.version < version => self.step = Some((version, frames)),
                step => {
                    self.handle_all(step.into_iter().flat_map(|(_, frames)| frames).collect(), &mut events)?;
                    self.channels.values_mut().for_each(|channel| channel.live(&live));
                    events.push(Event::Live(live));
                }
            },
            frame => match &mut self.step {
                Some((_, frames)) => frames.push(frame),
                None => self.handle(frame, &mut events)?,
            },
        }
        Ok(events)
    }

    /// Of `hello`: a connection without a frame for three times this long is dead.
    pub fn heartbeat_ms(&self) -> Option<u64> {
        self.heartbeat_ms
    }

    pub fn handles(&self) -> Vec<Handle> {
        self.subscriptions.keys().copied().collect()
    }

    /// The channel text of a subscription.
    pub fn channel_text(&self, handle: Handle) -> Option<&str> {
        self.subscriptions.get(&handle).map(|subscription| subscription.channel_text.as_str())
    }

    /// The rows of a subscription by key.
    pub fn rows(&self, handle: Handle) -> Option<&HashMap<Key, Row>> {
        self.channel(handle).map(|channel| &channel.rows)
    }

    /// The rows in the channel's order.
    pub fn sorted(&self, handle: Handle) -> Vec<(&Key, &Row)> {
        let Some(channel) = self.channel(handle) else { return Vec::new() };
        let mut rows: Vec<(&Key, &Row)> = channel.rows.iter().collect();
        if let Some(form) = &channel.form {
            row::sort(&mut rows, &form.order, &form.columns);
        }
        rows
    }

    /// How the rows of a subscription are made; `None` before the first ones.
    pub fn form(&self, handle: Handle) -> Option<&Form> {
        self.channel(handle).and_then(|channel| channel.form.as_ref())
    }

    /// What the rows are known to contain; `None` while a snapshot is awaited.
    pub fn position(&self, handle: Handle) -> Option<&Position> {
        self.channel(handle).and_then(|channel| channel.position.as_ref())
    }

    /// Whether the server serves the subscription and its rows are all there.
    pub fn is_complete(&self, handle: Handle) -> bool {
        self.channel(handle).is_some_and(Channel::is_complete)
    }

    fn channel(&self, handle: Handle) -> Option<&Channel> {
        self.subscriptions.get(&handle).and_then(|subscription| self.channels.get(&subscription.channel))
    }

    fn handle_all(&mut self, frames: Vec<ServerFrame>, events: &mut Vec<Event>) -> Result<(), Violation> {
        frames.into_iter().try_for_each(|frame| self.handle(frame, events))
    }

    fn handle(&mut self, frame: ServerFrame, events: &mut Vec<Event>) -> Result<(), Violation> {
        match frame {
            ServerFrame::Hello(hello) => self.heartbeat_ms = Some(hello.heartbeat_ms),
            ServerFrame::Authenticated(who) => events.push(Event::Authenticated(who)),
            ServerFrame::Expiring(Expiring { expires_in_ms }) => events.push(Event::Expiring { expires_in_ms }),
            ServerFrame::Subscribed(subscribed) => self.subscribed(subscribed, events)?,
            ServerFrame::Snapshot(page) => self.page(page, true, events)?,
            ServerFrame::Delta(page) => self.page(page, false, events)?,
            ServerFrame::Reset(Reset { ch, why }) => {
                if let Some(&id) = self.by_number.get(&ch) {
                    self.channel_mut(id).reset();
                    let users = self.users(id);
                    events.extend(users.into_iter().map(|handle| Event::Reset { handle, why: why.clone() }));
                }
            }
            ServerFrame::Unsubscribed(Unsubscribed { id }) => {
                if let Some(handle) = self.by_wire_id.remove(&id) {
                    events.push(Event::Unsubscribed { handle });
                }
            }
            ServerFrame::Error(error) => match error.id.map(|id| self.by_wire_id.remove(&id)) {
                Some(Some(handle)) => {
                    if let Some(subscription) = self.subscriptions.get_mut(&handle) {
                        subscription.wire_id = None;
                        let channel = subscription.channel;
                        self.give_up_if_unserved(channel);
                        events.push(Event::Refused { handle, error });
                    }
                }
                Some(None) => {}
                None => events.push(Event::Error(error)),
            },
            ServerFrame::Step(_) | ServerFrame::Live(_) | ServerFrame::Other => {}
        }
        Ok(())
    }

    fn subscribed(&mut self, said: Subscribed, events: &mut Vec<Event>) -> Result<(), Violation> {
        let Some(&handle) = self.by_wire_id.get(&said.id) else { return Ok(()) };
        // The answer to an id that was given up meanwhile (unsubscribe is under way) concerns nobody.
        let Some(subscription) = self.subscriptions.get(&handle).filter(|known| known.wire_id == Some(said.id)) else {
            return Ok(());
        };
        let own = subscription.channel;
        let known = self.by_number.get(&said.ch).copied();
        let violation = |what: &str| Violation::Form { channel: subscription.channel_text.clone(), what: what.into() };
        let target = match known {
            Some(known) => known,
            None if said.shared => return Err(violation("`shared` with a number that this connection does not have")),
            // Others still use the rows under the old number: they move when their own `subscribed` comes.
            None if self.users(own).len() > 1 && self.by_number.values().any(|&id| id == own) => {
                let id = ChannelId(self.next_number());
                let copy = self.channel_mut(own).clone();
                self.channels.insert(id, copy);
                id
            }
            None => own,
        };
        self.by_number.retain(|&number, id| *id != target || number == said.ch);
        self.by_number.insert(said.ch, target);
        if let Some(subscription) = self.subscriptions.get_mut(&handle) {
            subscription.channel = target;
        }
        if !said.shared {
            self.channel_mut(target).subscribed(&said)?;
        }
        self.forget_unused_channels();
        events.push(Event::Subscribed { handle, resumed: said.resumed });
        // Shared rows that are complete already: nothing follows that would say so.
        let channel = self.channel_mut(target);
        if said.shared && channel.is_complete() {
            let version = channel.position.as_ref().map(|position| position.version).unwrap_or_default();
            events.push(Event::Snapshot { handle, version });
        }
        Ok(())
    }

    fn page(&mut self, page: Page, is_snapshot: bool, events: &mut Vec<Event>) -> Result<(), Violation> {
        let Some(&id) = self.by_number.get(&page.ch) else { return Ok(()) };
        let (version, as_of) = (page.version, page.as_of);
        let channel = self.channel_mut(id);
        let applied = if is_snapshot { channel.snapshot_page(page)? } else { channel.delta_page(page)? };
        let users = self.users(id);
        match applied {
            Applied::NotYet => {}
            Applied::Snapshot => events.extend(users.into_iter().map(|handle| Event::Snapshot { handle, version })),
            Applied::Delta(changes) => events.extend(users.into_iter().map(|handle| Event::Changed {
                handle,
                version,
                as_of,
                changes: changes.clone(),
            })),
            Applied::Gap => {
                // All ids of the channel are given up first, else the new ones would share what has the gap.
                for &handle in &users {
                    let old = self.subscriptions.get_mut(&handle).and_then(|known| known.wire_id.take());
                    if let Some(old) = old {
                        self.by_wire_id.remove(&old);
                        self.say(json!({ "op": "unsubscribe", "id": old }));
                    }
                }
                self.give_up_if_unserved(id);
                for handle in users {
                    self.ask(handle);
                    events.push(Event::Gap { handle });
                }
            }
        }
        Ok(())
    }

    /// Sends `subscribe` under a new id, with the position if there is one.
    fn ask(&mut self, handle: Handle) {
        if !self.is_connected {
            return;
        }
        let id = self.next_number();
        let Some(subscription) = self.subscriptions.get_mut(&handle) else { return };
        subscription.wire_id = Some(id);
        self.by_wire_id.insert(id, handle);
        let mut message = json!({ "op": "subscribe", "id": id, "channel": subscription.channel_text });
        let channel = subscription.channel;
        if let Some((tag, position)) = self.channel_mut(channel).asked() {
            message["resume"] = json!({ "tag": tag, "epoch": position.epoch, "version": position.version });
        }
        self.say(message);
    }

    fn say_token(&mut self) {
        if let Some(token) = &self.token {
            let message = json!({ "op": "auth", "token": token.expose() });
            self.say(message);
        }
    }

    fn say(&mut self, message: serde_json::Value) {
        if self.is_connected {
            self.outgoing.push(message.to_string());
        }
    }

    /// Where the server serves none of a channel's subscriptions, its number means nothing any more.
    fn give_up_if_unserved(&mut self, channel: ChannelId) {
        let served = |subscription: &Subscription| subscription.channel == channel && subscription.wire_id.is_some();
        if !self.subscriptions.values().any(served) {
            self.by_number.retain(|_, id| *id != channel);
            self.channel_mut(channel).disconnected();
        }
    }

    fn users(&self, channel: ChannelId) -> Vec<Handle> {
        let users = self.subscriptions.iter().filter(|(_, subscription)| subscription.channel == channel);
        users.map(|(&handle, _)| handle).collect()
    }

    fn channel_mut(&mut self, id: ChannelId) -> &mut Channel {
        self.channels.get_mut(&id).expect("a channel lives as long as a subscription uses it")
    }

    fn forget_unused_channels(&mut self) {
        let subscriptions = &self.subscriptions;
        self.channels.retain(|id, _| subscriptions.values().any(|subscription| subscription.channel == *id));
        let channels = &self.channels;
        self.by_number.retain(|_, id| channels.contains_key(id));
    }

    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }
}

#[cfg(test)]
mod tests;
