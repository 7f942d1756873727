//! `GET /v1/rows/{publication}?…`: a channel's rows as one document, from the same channel that subscriptions use.
//!
//! The rows are the texts that came from Postgres, put together without being parsed. The body is made in pieces while
//! the client takes it, so that a big channel read by many slow clients is held once.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;

use super::Edge;
use super::credentials;
use super::listen::Peer;
use super::problem::Problem;
use crate::audit::{Event, Record, Viewer};
use crate::entry::{Key, Row};
use crate::hub::RowsRead;
use crate::identity::Identity;
use crate::order::RowOrder;
use crate::protocol::PAGE_BYTES;
use crate::query::ChannelRequest;

/// What a page of an allowed origin may send and read; preflights may be remembered for ten minutes.
const CORS_PREFLIGHT: [(HeaderName, &str); 4] = [
    (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD"),
    (header::ACCESS_CONTROL_ALLOW_HEADERS, "authorization, if-none-match"),
    (header::ACCESS_CONTROL_MAX_AGE, "600"),
    (header::VARY, "Origin"),
];

pub async fn rows(
    State(edge): State<Arc<Edge>>,
    peer: Peer,
    Path(publication): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let identity = credentials::identify(&headers, &edge.settings).await;
    let answered = match identity {
        Ok(identity) => match read(&edge, peer.address.ip(), publication, query, identity.clone()).await {
            Ok(read) => Ok(answer(read, &headers, edge.settings.admission.still_proven(identity))),
            Err(problem) => Err(problem.into_response()),
        },
        Err(unauthorized) => Err(unauthorized.into_response()),
    };
    let mut response =
        answered.unwrap_or_else(|refused| ([(header::VARY, "Authorization, Cookie, Origin")], refused).into_response());
    allow_reading(&edge, &headers, &mut response);
    response
}

/// Answers a browser that asks whether a page of another origin may read.
pub async fn preflight(State(edge): State<Arc<Edge>>, headers: HeaderMap) -> Response {
    let mut response = (StatusCode::NO_CONTENT, CORS_PREFLIGHT).into_response();
    allow_reading(&edge, &headers, &mut response);
    response
}

/// Whether `If-None-Match` names the entity tag, compared weakly (RFC 9110, 13.1.2). `*` names none: a 304 is given only
/// to who is known to have the rows.
pub fn names_etag(headers: &HeaderMap, etag: &str) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|tag| opaque(tag) == opaque(etag))
}

async fn read(
    edge: &Edge,
    peer: IpAddr,
    publication: String,
    query: Option<String>,
    identity: Identity,
) -> Result<RowsRead, Problem> {
    let channel = match query {
        Some(query) => format!("{publication}?{query}"),
        None => publication,
    };
    let request = ChannelRequest::parse(&channel)?;
    let record =
        |event| Record::new(event, &Viewer { session: None, peer: Some(peer) }, &identity, &request.publication);
    let answered = edge.hub.rows(request.clone(), identity.clone()).await;
    if edge.audit.is_on() {
        edge.audit.record(match &answered {
            Ok(read) => {
                let (channel, rows) = (read.channel.clone(), Some(read.rows.len() as u64));
                Record { channel, served: Some(read.served), rows, ..record(Event::Read) }
            }
            Err(refusal) => Record { why: Some(refusal.code.name()), ..record(Event::Refused) },
        });
    }
    Ok(answered?)
}

/// `still_proven` is asked before each piece: of a document that a slow client takes, nothing more is sent once its reader
/// may not have it.
fn answer(mut read: RowsRead, headers: &HeaderMap, still_proven: impl Fn() -> bool + Send + 'static) -> Response {
    let etag = format!("W/\"{}-{}-{}\"", read.form.tag, read.cut.epoch, read.changed);
    let (cache_control, vary) = if read.public {
        ("public, no-cache", "Origin")
    } else {
        ("private, no-cache", "Authorization, Cookie, Origin")
    };
    let headers_out = [(header::ETAG, etag.as_str()), (header::CACHE_CONTROL, cache_control), (header::VARY, vary)];
    if names_etag(headers, &etag) {
        return (StatusCode::NOT_MODIFIED, headers_out).into_response();
    }
    sort(&mut read);
    let pieces = futures_util::stream::iter(
        Document::new(read).map(move |piece| still_proven().then_some(piece).ok_or("the reader may not have the rest")),
    );
    (headers_out, [(header::CONTENT_TYPE, "application/json")], Body::from_stream(pieces)).into_response()
}

/// A document is read from top to bottom: its rows stand in the channel's order.
fn sort(read: &mut RowsRead) {
    let order = RowOrder::new(&read.form.order, &read.form.schema);
    let mut keyed: Vec<_> =
        read.rows.drain(..).map(|row| (order.key(|column| Some(row.1.value(column))), row)).collect();
    keyed.sort_by(|(a, _), (b, _)| order.compare(a, b));
    read.rows.extend(keyed.into_iter().map(|(_, row)| row));
}

fn allow_reading(edge: &Edge, headers: &HeaderMap, response: &mut Response) {
    if let Some(origin) = edge.settings.allowed_origins.readable_by(headers) {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        response
            .headers_mut()
            .insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("etag, retry-after"));
        if edge.settings.cookie.is_some() && edge.settings.allowed_origins.admits_cookie(headers) {
            let allowed = HeaderValue::from_static("true");
            response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, allowed);
        }
    }
}

/// The document, piece by piece.
struct Document {
    /// What the next piece begins with.
    text: String,
    /// `{"id":`, `,"status":`, …: what stands before each value of a row.
    names: Vec<String>,
    rows: std::vec::IntoIter<(Key, Arc<Row>)>,
    first: bool,
    /// The rows' items of `large`, as they come.
    large: String,
    done: bool,
}

impl Document {
    fn new(read: RowsRead) -> Self {
        let schema = &read.form.schema;
        let key: Vec<&str> = schema.key_names().map(|name| &**name).collect();
        let text = format!(
            r#"{{"tag":{},"epoch":{},"version":{},"as_of":{},"key":{},"order":{},"columns":{},"rows":["#,
            json(&read.form.tag),
            json(&read.cut.epoch),
            read.cut.version,
            read.as_of,
            json(&key),
            json(&read.form.order),
            json(&schema.columns),
        );
        let names = schema.columns.iter().map(|column| format!("{}:", json(&column.name))).collect();
        Self { text, names, rows: read.rows.into_iter(), first: true, large: String::new(), done: false }
    }

    fn push(&mut self, key: &Key, row: &Row) {
        if !std::mem::take(&mut self.first) {
            self.text.push(',');
        }
        let mut before = '{';
        for (index, name) in self.names.iter().enumerate() {
            self.text.push(before);
            before = ',';
            self.text.push_str(name);
            self.text.push_str(row.value(index));
        }
        self.text.push('}');
        if row.len() > self.names.len() {
            let comma = if self.large.is_empty() { "" } else { "," };
            let sizes = row.value(self.names.len());
            self.large.push_str(&format!(r#"{comma}{{"key":{},"columns":{sizes}}}"#, key.as_str()));
        }
    }
}

impl Iterator for Document {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        while self.text.len() < PAGE_BYTES {
            let Some((key, row)) = self.rows.next() else {
                self.done = true;
                self.text.push(']');
                if !self.large.is_empty() {
                    self.text.push_str(&format!(r#","large":[{}]"#, self.large));
                }
                self.text.push('}');
                break;
            };
            self.push(&key, &row);
        }
        Some(std::mem::take(&mut self.text).into())
    }
}

fn json(value: &(impl Serialize + ?Sized)) -> String {
    serde_json::to_string(value).expect("texts, numbers and lists are always JSON")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::audit::Served;
    use crate::protocol::{ChannelForm, ChannelNumber, Direction, Nulls, OrderBy};
    use crate::publication::{Column, Schema};
    use crate::version::{Cut, Epoch, Version};

    fn read(rows: Vec<(Key, Arc<Row>)>) -> RowsRead {
        let column = |name: &str, type_name: &str| Column::new(name, type_name);
        let schema = Schema { columns: vec![column("id", "int4"), column("no\"te", "text")], key: vec![0] };
        RowsRead {
            channel: None,
            served: Served::Memory,
            form: ChannelForm {
                number: ChannelNumber(7),
                tag: "a91c".into(),
                schema: Arc::new(schema),
                order: vec![OrderBy { column: "id".into(), dir: Direction::Asc, nulls: Nulls::Last }],
            },
            cut: Cut {
                epoch: Epoch::new("k3f9"),
                version: Version(44),
                snapshot: "1:1:".parse().expect("a snapshot"),
                as_of: 1_790_000_000_000,
            },
            as_of: 1_790_000_000_123,
            changed: Version(41),
            public: true,
            rows,
        }
    }

    fn row(id: u32, text: &str) -> (Key, Arc<Row>) {
        (Key::new(format!("[{id}]")), Arc::new(Row::parse(text).expect("a row")))
    }

    async fn body(response: Response) -> serde_json::Value {
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 24).await.expect("a body");
        serde_json::from_slice(&bytes).expect("JSON")
    }

    #[tokio::test]
    async fn the_document_says_what_a_subscription_would() {
        let rows = vec![row(2, r#"[2,null,{"no\"te":1834021}]"#), row(1, r#"[1,"a"]"#)];
        let response = answer(read(rows), &HeaderMap::new(), || true);
        assert_eq!(response.headers()["etag"], "W/\"a91c-k3f9-41\"");
        assert_eq!(response.headers()["cache-control"], "public, no-cache");
        assert_eq!(response.headers()["vary"], "Origin");
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(
            body(response).await,
            json!({"tag":"a91c","epoch":"k3f9","version":44,"as_of":1_790_000_000_123_i64,"key":["id"],
                "order":[{"column":"id","dir":"asc","nulls":"last"}],
                "columns":[{"name":"id","type":"int4"},{"name":"no\"te","type":"text"}],
                "rows":[{"id":1,"no\"te":"a"},{"id":2,"no\"te":null}],
                "large":[{"key":[2],"columns":{"no\"te":1_834_021}}]})
        );
        assert_eq!(body(answer(read(vec![]), &HeaderMap::new(), || true)).await["rows"], json!([]));
    }

    #[tokio::test]
    async fn a_big_channel_leaves_in_pieces() {
        let filler = "x".repeat(1_000);
        let rows = (0..1_000).map(|id| row(id, &format!(r#"[{id},"{filler}"]"#))).collect();
        let pieces: Vec<Bytes> = Document::new(read(rows)).collect();
        assert!(pieces.len() > 10 && pieces.iter().all(|piece| piece.len() < PAGE_BYTES + 2_000));
        let whole: serde_json::Value = serde_json::from_slice(&pieces.concat()).expect("JSON");
        assert_eq!(whole["rows"].as_array().map(Vec::len), Some(1_000));
    }

    #[test]
    fn not_modified_only_for_the_same_tag_epoch_and_change() {
        let status = |tags: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, tags.parse().expect("a header"));
            answer(read(vec![]), &headers, || true).status()
        };
        for tags in ["W/\"a91c-k3f9-41\"", "\"a91c-k3f9-41\"", "\"x\", W/\"a91c-k3f9-41\""] {
            assert_eq!(status(tags), StatusCode::NOT_MODIFIED, "{tags}");
        }
        for tags in ["W/\"a91c-k3f9-44\"", "W/\"a91d-k3f9-41\"", "W/\"a91c-k3f8-41\"", "*", "a91c-k3f9-41"] {
            assert_eq!(status(tags), StatusCode::OK, "{tags}");
        }
    }
}
