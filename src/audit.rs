//! Who was shown what: every subscription's beginning, refusal and end, and every read over HTTP.
//!
//! ```text
//!   hub, routes ── record ──▶ structured event (target `rowcast::audit`)
//!                       └──▶ a bounded queue ──▶ one task ── batches ──▶ table rowcast.audit, if that is switched on
//! ```
//!
//! Recording never waits. While Postgres does not take the batches the queue fills; what does not fit is dropped and
//! counted (`rowcast_audit_dropped_total`), and the structured event has been written anyway. A record names the resolved
//! channel, with the claims and literals that it was resolved by; the event, which goes where logs go, has its hash, as the
//! store's keys do. Neither holds a token or a value of a row.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};
use sqlx::postgres::PgPool;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::identity::Identity;
use crate::metrics;
use crate::version::digest;

/// Records that may wait for Postgres: some seconds of a node on which every client reconnects.
const WAITING_MAX: usize = 20_000;

/// Records written by one statement.
const BATCH_MAX: usize = 1_000;

/// How long the first record of a batch waits for others.
const BATCH_WAIT: Duration = Duration::from_millis(200);

/// Between two attempts to write a batch that Postgres did not take.
const RETRY: Duration = Duration::from_secs(1);

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Rows began to flow.
    Subscribed,
    /// None did.
    Refused,
    /// No more do.
    Ended,
    /// Once, over HTTP.
    Read,
}

/// Where rows came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// The channel was live on this node.
    Memory,
    /// A checkpoint of the store, rolled forward.
    Store,
    /// A snapshot query.
    Postgres,
}

/// To whom: a connection, or the client of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Viewer {
    /// The session's name, as `hello` told it.
    pub session: Option<Arc<str>>,
    pub peer: Option<IpAddr>,
}

/// One record; what is not known is `None`.
#[derive(Clone, Debug)]
pub struct Record {
    pub event: Event,
    pub viewer: Viewer,
    pub subject: Option<String>,
    /// [`token_hash`] of the token's `jti`.
    pub token: Option<String>,
    pub publication: Arc<str>,
    /// The resolved channel, in canonical form.
    pub channel: Option<String>,
    pub served: Option<Served>,
    pub rows: Option<u64>,
    pub why: Option<&'static str>,
    pub duration: Option<Duration>,
}

impl Record {
    /// A record of an event, with everything else still to be said.
    pub fn new(event: Event, viewer: &Viewer, identity: &Identity, publication: &Arc<str>) -> Self {
        let claims = match identity {
            Identity::Anonymous => None,
            Identity::Proven(claims) => Some(claims),
        };
        Self {
            event,
            viewer: viewer.clone(),
            subject: claims.and_then(|claims| claims.subject()).map(str::to_owned),
            token: claims.and_then(|claims| claims.token_id()).map(token_hash),
            publication: publication.clone(),
            channel: None,
            served: None,
            rows: None,
            why: None,
            duration: None,
        }
    }
}

/// Takes records. Cheap to clone; the default one takes none.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    node: Arc<str>,
    writes_events: bool,
    queue: Option<mpsc::Sender<(SystemTime, Record)>>,
}

/// Rows that somebody is being shown: the end is recorded when this is dropped.
#[derive(Debug)]
pub struct Shown {
    audit: Audit,
    record: Record,
    since: Instant,
}

impl Shown {
    /// Records the beginning.
    pub fn begin(audit: &Audit, record: Record) -> Self {
        audit.record(record.clone());
        Self { audit: audit.clone(), record, since: Instant::now() }
    }

    /// Records the end, and why.
    pub fn end(mut self, why: &'static str) {
        self.record.why = Some(why);
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let (served, rows) = (None, None);
        let duration = Some(self.since.elapsed());
        self.audit.record(Record { event: Event::Ended, served, rows, duration, ..self.record.clone() });
    }
}

/// Writes what was recorded to the table.
pub struct AuditWriter {
    node: Arc<str>,
    database: PgPool,
    queue: mpsc::Receiver<(SystemTime, Record)>,
}

impl Audit {
    /// Structured events only.
    pub fn events(node: &str) -> Self {
        Self { node: node.into(), writes_events: true, queue: None }
    }

    /// Structured events and the table `rowcast.audit`; the writer has to be run.
    pub fn table(node: &str, database: PgPool) -> (Self, AuditWriter) {
        let (sender, queue) = mpsc::channel(WAITING_MAX);
        let writer = AuditWriter { node: node.into(), database, queue };
        (Self { queue: Some(sender), ..Self::events(node) }, writer)
    }

    /// Whether records go anywhere: a record costs some texts.
    pub fn is_on(&self) -> bool {
        self.writes_events
    }

    /// Takes a record. Never waits.
    pub fn record(&self, record: Record) {
        if !self.writes_events {
            return;
        }
        tracing::info!(
            target: "rowcast::audit",
            node = %self.node,
            event = record.event.name(),
            session = record.viewer.session.as_deref(),
            peer = record.viewer.peer.map(tracing::field::display),
            subject = record.subject,
            token = record.token,
            publication = %record.publication,
            channel = record.channel.as_deref().map(digest),
            served = record.served.map(Served::name),
            rows = record.rows,
            why = record.why,
            duration_ms = record.duration.map(milliseconds),
        );
        if let Some(queue) = &self.queue
            && queue.try_send((SystemTime::now(), record)).is_err()
        {
            metrics::audit_dropped();
        }
    }
}

impl AuditWriter {
    /// Writes batches until it is told to end; then once more what waits, if Postgres takes it at once.
    pub async fn run(mut self, end: CancellationToken) {
        // Wake-ups: a record; the end.
        while let Some(Some(first)) = end.run_until_cancelled(self.queue.recv()).await {
            let mut batch = vec![first];
            end.run_until_cancelled(tokio::time::sleep(BATCH_WAIT)).await;
            self.take(&mut batch);
            let mut told = false;
            while let Err(error) = self.write(&batch).await {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%error, "the audit table cannot be written; records wait, and are dropped when too many do");
                }
                if end.run_until_cancelled(tokio::time::sleep(RETRY)).await.is_none() {
                    return;
                }
            }
        }
        loop {
            let mut batch = Vec::new();
            self.take(&mut batch);
            if batch.is_empty() {
                return;
            }
            if let Err(error) = self.write(&batch).await {
                tracing::warn!(%error, records = batch.len(), "the last records did not get into the audit table");
                return;
            }
        }
    }

    /// What waits, up to a batch.
    fn take(&mut self, batch: &mut Vec<(SystemTime, Record)>) {
        while batch.len() < BATCH_MAX
            && let Ok(next) = self.queue.try_recv()
        {
            batch.push(next);
        }
    }

    async fn write(&self, batch: &[(SystemTime, Record)]) -> Result<(), sqlx::Error> {
        fn column<T>(batch: &[(SystemTime, Record)], value: impl Fn(&Record) -> T) -> Vec<T> {
            batch.iter().map(|(_, record)| value(record)).collect()
        }
        let at: Vec<f64> = batch.iter().map(|(at, _)| seconds(*at)).collect();
        sqlx::query(
            "insert into rowcast.audit (at, event, node, session, peer, subject, token, publication, channel, served, rows, why, duration_ms)
             select to_timestamp(r.at), r.event, $2, r.session, r.peer::inet, r.subject, r.token, r.publication, r.channel,
                    r.served, r.rows, r.why, r.duration_ms
             from unnest($1::float8[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
                         $10::text[], $11::int8[], $12::text[], $13::int8[])
               as r (at, event, session, peer, subject, token, publication, channel, served, rows, why, duration_ms)",
        )
        .bind(at)
        .bind(&*self.node)
        .bind(column(batch, |record| record.event.name()))
        .bind(column(batch, |record| record.viewer.session.as_deref().map(str::to_owned)))
        .bind(column(batch, |record| record.viewer.peer.map(|peer| peer.to_string())))
        .bind(column(batch, |record| record.subject.as_deref().map(storable)))
        .bind(column(batch, |record| record.token.clone()))
        .bind(column(batch, |record| storable(&record.publication)))
        .bind(column(batch, |record| record.channel.as_deref().map(storable)))
        .bind(column(batch, |record| record.served.map(Served::name)))
        .bind(column(batch, |record| record.rows.map(|rows| i64::try_from(rows).unwrap_or(i64::MAX))))
        .bind(column(batch, |record| record.why))
        .bind(column(batch, |record| record.duration.map(|duration| milliseconds(duration) as i64)))
        .execute(&self.database)
        .await
        .map(drop)
    }
}

impl Event {
    pub fn name(self) -> &'static str {
        match self {
            Self::Subscribed => "subscribed",
            Self::Refused => "refused",
            Self::Ended => "ended",
            Self::Read => "read",
        }
    }
}

impl Served {
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Store => "store",
            Self::Postgres => "postgres",
        }
    }
}

/// What stands for a token in records: the first 128 bits of the SHA-256 of its `jti`, as hexadecimal digits.
pub fn token_hash(jti: &str) -> String {
    Sha256::digest(jti.as_bytes())[..16].iter().fold(String::new(), |mut text, byte| {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A text that Postgres takes: it has no zero byte, which a claim may have.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

fn seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Claims;

    #[test]
    fn a_record_names_the_token_by_a_hash_only() {
        let claims = serde_json::json!({"sub": "u1", "jti": "a very private id"});
        let all = claims.as_object().expect("an object").clone();
        let identity = Identity::Proven(Arc::new(Claims { all, expires: None }));
        let record = Record::new(Event::Subscribed, &Viewer::default(), &identity, &"orders".into());
        assert_eq!(record.subject.as_deref(), Some("u1"));
        let token = record.token.clone().expect("a hash");
        assert_eq!(token.len(), 32);
        assert!(!format!("{record:?}").contains("private"));
        assert_ne!(token, token_hash("another"));
    }
}
