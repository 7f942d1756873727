//! The wire protocol `rowcast.v1`: what clients may say, and every frame the server says.
//!
//! Frames are JSON texts. What is the same for many clients (deltas, snapshot pages, `step`, `live`) is encoded once and
//! shared: a [`Frame`] is a reference-counted text. This file knows the form of messages and nothing of their order.

use std::time::Duration;

use axum::extract::ws::Utf8Bytes;
use serde::{Deserialize, Serialize};

use crate::entry::{Key, Row};
use crate::publication::{Column, Schema};
use crate::version::{Cut, Epoch, Version};

/// One text message, encoded. Cloning shares it.
pub type Frame = Utf8Bytes;

/// The websocket subprotocol.
pub const SUBPROTOCOL: &str = "rowcast.v1";

/// A page of a snapshot or of a catch-up ends at the first row past this many bytes.
pub const PAGE_BYTES: usize = 64 * 1024;

/// A client takes a connection for dead when no frame came for three times this, in milliseconds.
pub const HEARTBEAT_MS: u64 = 5_000;

/// The number of a channel on a node; never given to another channel of the same node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ChannelNumber(pub u64);

/// What a client says. Unknown fields are ignored.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum ClientMessage {
    Auth {
        token: String,
    },
    Subscribe {
        id: u64,
        channel: String,
        #[serde(default)]
        resume: Option<Resume>,
    },
    Unsubscribe {
        id: u64,
    },
    Ping,
}

/// A position from which a client wants to go on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Resume {
    pub tag: String,
    pub epoch: Epoch,
    pub version: Version,
}

/// Why a message of a client could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadMessage {
    /// Not JSON: closes the connection with 4500.
    #[error("not JSON: {0}")]
    NotJson(String),
    /// An `op` that v1 does not have.
    #[error("unknown op `{0}`")]
    UnknownOp(String),
    /// JSON, but not of the op's form. The id, where one could be read.
    #[error("{message}")]
    Form { id: Option<u64>, message: String },
}

impl ClientMessage {
    /// Reads a message.
    ///
    /// # Errors
    /// See [`BadMessage`].
    pub fn parse(text: &str) -> Result<Self, BadMessage> {
        #[derive(Deserialize)]
        struct Op {
            op: String,
        }
        if let Ok(message) = serde_json::from_str(text) {
            return Ok(message);
        }
        let value: serde_json::Value =
            serde_json::from_str(text).map_err(|error| BadMessage::NotJson(error.to_string()))?;
        let id = value.get("id").and_then(serde_json::Value::as_u64);
        let op = Op::deserialize(&value)
            .map_err(|_| BadMessage::Form { id, message: "a message is an object with a text `op`".into() })?;
        match serde_json::from_value::<Self>(value) {
            Ok(message) => Ok(message),
            Err(_) if !["auth", "subscribe", "unsubscribe", "ping"].contains(&op.op.as_str()) => {
                Err(BadMessage::UnknownOp(shortened(op.op)))
            }
            Err(error) => Err(BadMessage::Form { id, message: shortened(format!("`{}`: {error}", op.op)) }),
        }
    }
}

/// At most 200 characters of a text that repeats what a client sent, which may be long.
fn shortened(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(200) {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Codes of `error` frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    UnknownPublication,
    Forbidden,
    BadQuery,
    TooManyRows,
    TooManySubscriptions,
    DuplicateId,
    Unavailable,
    UnknownOp,
    UnknownId,
    BadToken,
    BadMessage,
}

impl ErrorCode {
    /// The word for frames, logs and the audit.
    pub fn name(self) -> &'static str {
        match self {
            Self::UnknownPublication => "unknown_publication",
            Self::Forbidden => "forbidden",
            Self::BadQuery => "bad_query",
            Self::TooManyRows => "too_many_rows",
            Self::TooManySubscriptions => "too_many_subscriptions",
            Self::DuplicateId => "duplicate_id",
            Self::Unavailable => "unavailable",
            Self::UnknownOp => "unknown_op",
            Self::UnknownId => "unknown_id",
            Self::BadToken => "bad_token",
            Self::BadMessage => "bad_message",
        }
    }
}

impl Serialize for ErrorCode {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Why a subscription (or a read over HTTP) is not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub code: ErrorCode,
    pub message: String,
    /// The byte of the channel text where reading stopped.
    pub at: Option<usize>,
    /// With `unavailable`: when to try again, in milliseconds.
    pub retry_after_ms: Option<u64>,
}

impl Refusal {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), at: None, retry_after_ms: None }
    }

    /// The one refusal that passes by itself.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { retry_after_ms: Some(1_000), ..Self::new(ErrorCode::Unavailable, message) }
    }
}

/// Why the server closes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// 1001: the process ends now.
    GoingAway,
    /// 1012: the node restarts.
    Restart,
    /// 1013
    Overloaded,
    /// 4401
    TokenExpired,
    /// 4401 too: a fresh token may do.
    TokenRevoked,
    /// 4408
    NoAuthInTime,
    /// 4409: 30 s without progress.
    TooSlow,
    /// 4429
    LimitExceeded,
    /// 4500: not JSON, or not text.
    ProtocolError,
    /// 4501
    TokenRefused,
    /// 4503
    OriginRefused,
}

impl CloseReason {
    pub fn code(self) -> u16 {
        match self {
            Self::GoingAway => 1001,
            Self::Restart => 1012,
            Self::Overloaded => 1013,
            Self::TokenExpired | Self::TokenRevoked => 4401,
            Self::NoAuthInTime => 4408,
            Self::TooSlow => 4409,
            Self::LimitExceeded => 4429,
            Self::ProtocolError => 4500,
            Self::TokenRefused => 4501,
            Self::OriginRefused => 4503,
        }
    }

    /// The word for logs, metrics and the close frame.
    pub fn name(self) -> &'static str {
        match self {
            Self::GoingAway => "going_away",
            Self::Restart => "restart",
            Self::Overloaded => "overloaded",
            Self::TokenExpired => "token_expired",
            Self::TokenRevoked => "token_revoked",
            Self::NoAuthInTime => "no_auth_in_time",
            Self::TooSlow => "too_slow",
            Self::LimitExceeded => "limit_exceeded",
            Self::ProtocolError => "protocol_error",
            Self::TokenRefused => "token_refused",
            Self::OriginRefused => "origin_refused",
        }
    }

    /// The reason of the close frame: JSON of at most 123 bytes.
    pub fn reason(self, retry_after_ms: Option<u64>) -> String {
        match retry_after_ms {
            Some(delay_ms) => format!(r#"{{"code":"{}","retry_after_ms":{delay_ms}}}"#, self.name()),
            None => format!(r#"{{"code":"{}"}}"#, self.name()),
        }
    }
}

/// Why a row left a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    Deleted,
    Filter,
    Permission,
    Window,
}

impl Why {
    fn name(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Filter => "filter",
            Self::Permission => "permission",
            Self::Window => "window",
        }
    }
}

/// A column of a channel's order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OrderBy {
    pub column: std::sync::Arc<str>,
    pub dir: Direction,
    pub nulls: Nulls,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    Asc,
    Desc,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Nulls {
    First,
    Last,
}

fn encode(frame: &impl Serialize) -> Frame {
    serde_json::to_string(frame).expect("frames have text keys only").into()
}

/// The first frame of a connection.
pub fn hello(session: &str, message_bytes_max: usize, subscriptions_max: usize) -> Frame {
    encode(&serde_json::json!({
        "op": "hello", "protocol": 1, "server": concat!("rowcast/", env!("CARGO_PKG_VERSION")), "session": session,
        "heartbeat_ms": HEARTBEAT_MS, "features": [],
        "limits": { "message": message_bytes_max, "subscriptions": subscriptions_max },
    }))
}

/// The form of a channel, as `subscribed` and `/v1/rows` give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelForm {
    pub number: ChannelNumber,
    pub tag: String,
    pub schema: std::sync::Arc<Schema>,
    pub order: Vec<OrderBy>,
}

/// How a subscription begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// A snapshot follows.
    Fresh,
    /// The changes since the client's own position follow.
    Resumed,
    /// The connection has this channel already: nothing follows.
    Shared,
}

/// `subscribed`: the position from which the following frames continue.
pub fn subscribed(id: u64, form: &ChannelForm, epoch: &Epoch, version: Version, beginning: Beginning) -> Frame {
    #[derive(Serialize)]
    struct Subscribed<'a> {
        op: &'a str,
        id: u64,
        ch: ChannelNumber,
        tag: &'a str,
        epoch: &'a Epoch,
        version: Version,
        key: Vec<&'a str>,
        resumed: bool,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        shared: bool,
        order: &'a [OrderBy],
        columns: &'a [Column],
    }
    encode(&Subscribed {
        op: "subscribed",
        id,
        ch: form.number,
        tag: &form.tag,
        epoch,
        version,
        key: form.schema.key_names().map(|name| &**name).collect(),
        resumed: beginning == Beginning::Resumed,
        shared: beginning == Beginning::Shared,
        order: &form.order,
        columns: &form.schema.columns,
    })
}

/// `authenticated`: who the client is from here on, and for how long.
pub fn authenticated(subject: Option<&str>, expires_in: Option<Duration>) -> Frame {
    #[derive(Serialize)]
    struct Authenticated<'a> {
        op: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        sub: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_in_ms: Option<u64>,
    }
    encode(&Authenticated { op: "authenticated", sub: subject, expires_in_ms: expires_in.map(milliseconds) })
}

/// `expiring`: another token is needed soon.
pub fn expiring(expires_in: Duration) -> Frame {
    encode(&serde_json::json!({ "op": "expiring", "expires_in_ms": milliseconds(expires_in) }))
}

/// As clients may read it: below 2^53.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).min((1 << 53) - 1)
}

pub fn unsubscribed(id: u64) -> Frame {
    encode(&serde_json::json!({ "op": "unsubscribed", "id": id }))
}

pub fn pong() -> Frame {
    Frame::from_static(r#"{"op":"pong"}"#)
}

/// `error`; with an id it ends that subscription.
pub fn error(id: Option<u64>, refusal: &Refusal) -> Frame {
    #[derive(Serialize)]
    struct Error<'a> {
        op: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        code: ErrorCode,
        message: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        at: Option<usize>,
        retry: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    }
    encode(&Error {
        op: "error",
        id,
        code: refusal.code,
        message: &refusal.message,
        at: refusal.at,
        retry: refusal.retry_after_ms.is_some(),
        retry_after_ms: refusal.retry_after_ms,
    })
}

/// `reset`: the client has no position on the channel until a snapshot's last page.
pub fn reset(channel: ChannelNumber, why: &str) -> Frame {
    encode(&serde_json::json!({ "op": "reset", "ch": channel, "why": why }))
}

/// `step`: what lies between this and the next `live` takes effect together.
pub fn step(version: Version) -> Frame {
    format!(r#"{{"op":"step","version":{version}}}"#).into()
}

/// `live`: everything complete up to the cut. `working` is whether the pipeline behind this server is known to work.
pub fn live(cut: &Cut, as_of: i64, working: bool) -> Frame {
    let state = if working { "live" } else { "late" };
    format!(r#"{{"op":"live","epoch":"{}","version":{},"as_of":{as_of},"state":"{state}"}}"#, cut.epoch, cut.version)
        .into()
}

/// Builds `snapshot` and `delta` frames row by row. `finish` gives the text; whoever pages looks at [`RowsFrame::len`].
pub struct RowsFrame {
    text: String,
    rows: usize,
    gone: usize,
    large: String,
}

impl RowsFrame {
    /// A page of a snapshot at a version.
    pub fn snapshot(channel: ChannelNumber, version: Version) -> Self {
        Self::open(format!(r#"{{"op":"snapshot","ch":{},"version":{version}"#, channel.0))
    }

    /// A page of a delta. `epoch`: when the delta is the first of its epoch.
    pub fn delta(channel: ChannelNumber, prev: Version, cut: &Cut, names_epoch: bool) -> Self {
        let mut text = format!(
            r#"{{"op":"delta","ch":{},"prev":{prev},"version":{},"as_of":{}"#,
            channel.0, cut.version, cut.as_of
        );
        if names_epoch {
            text.push_str(&format!(r#","epoch":"{}""#, cut.epoch));
        }
        Self::open(text)
    }

    fn open(text: String) -> Self {
        Self { text, rows: 0, gone: 0, large: String::new() }
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.text.len() + self.large.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows == 0 && self.gone == 0
    }

    /// Adds a row; all rows come before all gone keys. `columns`: which values to include, ascending; key columns always
    /// among them.
    pub fn row(&mut self, schema: &Schema, key: &Key, row: &Row, columns: impl Iterator<Item = usize>) {
        debug_assert_eq!(self.gone, 0, "rows come before gone keys");
        self.text.push_str(if self.rows == 0 { r#","rows":["# } else { "," });
        self.rows += 1;
        let mut opening = '{';
        for index in columns {
            self.text.push(opening);
            opening = ',';
            push_json_text(&mut self.text, &schema.columns[index].name);
            self.text.push(':');
            self.text.push_str(row.value(index));
        }
        self.text.push('}');
        if row.len() > schema.columns.len() {
            self.large.push_str(if self.large.is_empty() { r#","large":["# } else { "," });
            self.large.push_str(&format!(
                r#"{{"key":{},"columns":{}}}"#,
                key.as_str(),
                row.value(schema.columns.len())
            ));
        }
    }

    /// Adds a key that is gone; `None`: it is not known why.
    pub fn gone(&mut self, key: &Key, why: Option<Why>) {
        self.close_rows();
        self.text.push_str(if self.gone == 0 { r#","gone":["# } else { "," });
        self.gone += 1;
        match why {
            Some(why) => self.text.push_str(&format!(r#"{{"key":{},"why":"{}"}}"#, key.as_str(), why.name())),
            None => self.text.push_str(&format!(r#"{{"key":{}}}"#, key.as_str())),
        }
    }

    fn close_rows(&mut self) {
        if self.gone == 0 && self.rows > 0 {
            self.text.push(']');
        }
    }

    /// The frame; `more`: another page follows.
    pub fn finish(mut self, more: bool) -> Frame {
        self.close_rows();
        if self.gone > 0 {
            self.text.push(']');
        }
        if !self.large.is_empty() {
            self.text.push_str(&self.large);
            self.text.push(']');
        }
        self.text.push_str(if more { r#","more":true}"# } else { "}" });
        self.text.into()
    }
}

/// Appends a text as a JSON string.
fn push_json_text(to: &mut String, text: &str) {
    if text.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'"' && byte != b'\\') {
        to.push('"');
        to.push_str(text);
        to.push('"');
    } else {
        to.push_str(&serde_json::to_string(text).expect("a text is always JSON"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cut(version: u64) -> Cut {
        Cut {
            epoch: Epoch::new("k3f9"),
            version: Version(version),
            snapshot: "1:1:".parse().expect("a snapshot"),
            as_of: 1_790_000_000_123,
        }
    }

    fn schema() -> Schema {
        let column = |name: &str, type_name: &str| Column::new(name, type_name);
        Schema { columns: vec![column("id", "int4"), column("sta\"tus", "text")], key: vec![0] }
    }

    fn read(frame: &Frame) -> serde_json::Value {
        serde_json::from_str(frame.as_str()).expect("frames are JSON")
    }

    #[test]
    fn a_delta_has_rows_gone_keys_and_large_columns() {
        let mut frame = RowsFrame::delta(ChannelNumber(7), Version(41), &cut(44), true);
        let row = Row::parse(r#"[1,null,{"sta\"tus":1834021}]"#).expect("a row");
        frame.row(&schema(), &Key::new("[1]"), &row, 0..2);
        frame.gone(&Key::new("[9]"), Some(Why::Deleted));
        frame.gone(&Key::new("[8]"), None);
        assert_eq!(
            read(&frame.finish(true)),
            json!({"op":"delta","ch":7,"prev":41,"version":44,"as_of":1_790_000_000_123_i64,"epoch":"k3f9",
                "rows":[{"id":1,"sta\"tus":null}],
                "gone":[{"key":[9],"why":"deleted"},{"key":[8]}],
                "large":[{"key":[1],"columns":{"sta\"tus":1_834_021}}],"more":true})
        );
    }

    #[test]
    fn frames_without_rows_or_gone_keys_leave_them_out() {
        let mut frame = RowsFrame::delta(ChannelNumber(7), Version(41), &cut(44), false);
        frame.gone(&Key::new("[9]"), Some(Why::Window));
        assert_eq!(
            read(&frame.finish(false)),
            json!({"op":"delta","ch":7,"prev":41,"version":44,"as_of":1_790_000_000_123_i64,
                "gone":[{"key":[9],"why":"window"}]})
        );
        let frame = RowsFrame::snapshot(ChannelNumber(1), Version(3)).finish(false);
        assert_eq!(read(&frame), json!({"op":"snapshot","ch":1,"version":3}));
        let mut frame = RowsFrame::snapshot(ChannelNumber(1), Version(3));
        frame.row(&schema(), &Key::new("[1]"), &Row::parse(r#"[1,"a"]"#).expect("a row"), 0..2);
        assert_eq!(
            read(&frame.finish(true)),
            json!({"op":"snapshot","ch":1,"version":3,"rows":[{"id":1,"sta\"tus":"a"}],"more":true})
        );
    }

    #[test]
    fn messages_are_read_or_refused_by_name() {
        let message = ClientMessage::parse(
            r#"{"op":"subscribe","id":1,"channel":"orders","resume":{"tag":"a","epoch":"e","version":4},"new":1}"#,
        );
        assert!(matches!(message, Ok(ClientMessage::Subscribe { id: 1, resume: Some(_), .. })));
        assert!(matches!(ClientMessage::parse(r#"{"op":"ping"}"#), Ok(ClientMessage::Ping)));
        assert!(matches!(ClientMessage::parse("{"), Err(BadMessage::NotJson(_))));
        assert_eq!(ClientMessage::parse(r#"{"op":"jump"}"#).unwrap_err(), BadMessage::UnknownOp("jump".into()));
        assert!(matches!(
            ClientMessage::parse(r#"{"op":"subscribe","id":3}"#),
            Err(BadMessage::Form { id: Some(3), .. })
        ));
        assert!(matches!(ClientMessage::parse("[1]"), Err(BadMessage::Form { id: None, .. })));
    }

    #[test]
    fn a_refusal_does_not_repeat_a_long_message() {
        let long = "ä".repeat(5_000);
        for text in [format!(r#"{{"op":"{long}"}}"#), format!(r#"{{"op":"subscribe","id":"{long}","channel":"a"}}"#)] {
            let refusal = ClientMessage::parse(&text).expect_err("a bad message").to_string();
            assert!(refusal.len() < 500 && refusal.contains("ää"), "{refusal}");
        }
    }

    #[test]
    fn close_reasons_fit_a_close_frame() {
        let text = CloseReason::NoAuthInTime.reason(Some(u64::MAX));
        assert!(text.len() <= 123, "{text}");
    }
}
