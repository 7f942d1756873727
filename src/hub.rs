//! The read half's heart: one task per node that owns its feeds, moves them version by version, and hands every session
//! what it has to send.
//!
//! This file is the door: what others may ask of the hub ([`HubHandle`]) and what a session gets from it ([`Inbox`],
//! [`Delivery`]). Behind it: [`state`] decides, purely; [`task`] waits and does.
//!
//! A session gets deliveries in order, and each frame of a delivery in order. A session that does not keep up is not
//! waited for: its inbox holds at most [`INBOX_DELIVERIES`]; when that is full the hub remembers only the session's
//! version and, once [`Inbox::drained`] was called, hands it what changed since, each row once.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::entry::{Key, Row};
use crate::identity::Identity;
use crate::protocol::{ChannelForm, Frame, Refusal, Resume};
use crate::query::ChannelRequest;
use crate::version::{Cut, Version};

/// Deliveries that may wait for a session: some seconds of flushes for a client that is a little slow.
pub const INBOX_DELIVERIES: usize = 64;

/// A session's number on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// The hub's task has ended: the node is going down.
#[derive(Debug, thiserror::Error)]
#[error("the hub has stopped")]
pub struct HubStopped;
