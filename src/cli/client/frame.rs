//! What the server says, as a client reads it. Unknown fields are ignored, and so are unknown ops.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::protocol::{OrderBy, Why};
use crate::publication::Column;
use crate::version::{Epoch, Version};

/// A frame of the server.
#[derive(Debug)]
pub(super) enum ServerFrame {
    Hello(Hello),
    Authenticated(Authenticated),
    Expiring(Expiring),
    Subscribed(Subscribed),
    Snapshot(Page),
    Delta(Page),
    Reset(Reset),
    Step(Step),
    Live(Live),
    Unsubscribed(Unsubscribed),
    Error(ServerError),
    /// An op that this client does not need, or that a later protocol has.
    Other,
}

impl ServerFrame {
    /// Reads a frame: first its op, then the rest. In one go serde would take raw values apart.
    pub(super) fn parse(text: &str) -> Result<Self, serde_json::Error> {
        #[derive(Deserialize)]
        struct Op {
            op: String,
        }
        let Op { op } = serde_json::from_str(text)?;
        Ok(match op.as_str() {
            "hello" => Self::Hello(serde_json::from_str(text)?),
            "authenticated" => Self::Authenticated(serde_json::from_str(text)?),
            "expiring" => Self::Expiring(serde_json::from_str(text)?),
            "subscribed" => Self::Subscribed(serde_json::from_str(text)?),
            "snapshot" => Self::Snapshot(serde_json::from_str(text)?),
            "delta" => Self::Delta(serde_json::from_str(text)?),
            "reset" => Self::Reset(serde_json::from_str(text)?),
            "step" => Self::Step(serde_json::from_str(text)?),
            "live" => Self::Live(serde_json::from_str(text)?),
            "unsubscribed" => Self::Unsubscribed(serde_json::from_str(text)?),
            "error" => Self::Error(serde_json::from_str(text)?),
            _ => Self::Other,
        })
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Hello {
    pub heartbeat_ms: u64,
}

/// Who the server takes us for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Authenticated {
    #[serde(default)]
    pub sub: Option<String>,
    #[serde(default)]
    pub expires_in_ms: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Expiring {
    pub expires_in_ms: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Reset {
    pub ch: u64,
    pub why: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Step {
    pub version: Version,
}

#[derive(Debug, Deserialize)]
pub(super) struct Unsubscribed {
    pub id: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Subscribed {
    pub id: u64,
    pub ch: u64,
    pub tag: String,
    pub epoch: Epoch,
    pub version: Version,
    pub key: Vec<String>,
    pub resumed: bool,
    #[serde(default)]
    pub shared: bool,
    pub order: Vec<OrderBy>,
    pub columns: Vec<Column>,
}

/// A page of a snapshot or of a delta.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    pub ch: u64,
    /// Of a delta: the version it continues from.
    #[serde(default)]
    pub prev: Option<Version>,
    pub version: Version,
    #[serde(default)]
    pub as_of: Option<i64>,
    #[serde(default)]
    pub epoch: Option<Epoch>,
    #[serde(default)]
    pub rows: Vec<BTreeMap<String, Box<RawValue>>>,
    #[serde(default)]
    pub gone: Vec<GoneKey>,
    #[serde(default)]
    pub large: Vec<LargeColumns>,
    #[serde(default)]
    pub more: bool,
}

#[derive(Debug, Deserialize)]
pub(super) struct GoneKey {
    pub key: Vec<Box<RawValue>>,
    #[serde(default)]
    pub why: Option<Why>,
}

/// The columns of a row that are null because they are too large, with their sizes in bytes.
#[derive(Debug, Deserialize)]
pub(super) struct LargeColumns {
    pub key: Vec<Box<RawValue>>,
    pub columns: BTreeMap<String, u64>,
}

/// How far everything is complete, and how the pipeline behind the server is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Live {
    pub epoch: Epoch,
    pub version: Version,
    /// Milliseconds since 1970, database clock.
    pub as_of: i64,
    /// `live`, or `late`.
    pub state: String,
}

/// An `error` frame. With an id it ended that subscription.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ServerError {
    #[serde(default)]
    pub(super) id: Option<u64>,
    pub code: String,
    pub message: String,
    /// The byte of the channel text where reading stopped.
    #[serde(default)]
    pub at: Option<usize>,
    /// Whether to try again, after `retry_after_ms`.
    #[serde(default)]
    pub retry: bool,
    #[serde(default)]
    pub retry_after_ms: Option<u64>,
}
