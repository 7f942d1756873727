//! What was taken back: tokens that are good no more, though their time is not over.
//!
//! Every node reads the table `rowcast.revocations` itself, so that neither Redis nor another node stands between a
//! revocation and its effect. A reading asks for what its own snapshot sees and the one before did not, as the leader
//! asks the change log; by the numbers of rows it would miss a transaction that commits late. Snapshots before and after
//! a crash do not compare, so each new connection reads everything.
//!
//! While Postgres cannot be reached nothing is revoked anew, what was revoked stays so.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::sync::watch;

use super::{Claims, Identity};

/// A revocation has its effect within a second on every node: this, a reading, and the close.
const POLL_EVERY: Duration = Duration::from_millis(250);

/// A reading that takes longer has lost its connection.
const READING_MAX: Duration = Duration::from_secs(5);

/// `$1` is the snapshot of the reading before. One row more than there are revocations, with nothing but the snapshot.
const NEWS: &str = "
    select pg_current_snapshot()::text, null, null, null
    union all
    select null, r.claim, r.value, extract(epoch from r.revoked_at)::float8 from rowcast.revocations as r
    where r.xid >= pg_snapshot_xmax($1::pg_snapshot) or r.xid = any (array(select pg_snapshot_xip($1::pg_snapshot)))";

/// The snapshot that has seen nothing.
const NOTHING_SEEN: &str = "1:1:";

type NewsRow = (Option<String>, Option<String>, Option<String>, Option<f64>);

/// Everything that was taken back.
#[derive(Clone, Debug, Default)]
pub struct Revocations {
    /// By `sub`: when, in seconds since 1970, database clock.
    subjects: HashMap<Box<str>, f64>,
    /// By `jti`.
    tokens: HashSet<Box<str>>,
}

impl Revocations {
    /// Whether a token with these claims was taken back: by its id; or with all of its subject's, if it was issued no
    /// later, or does not say when.
    pub fn revokes(&self, claims: &Claims) -> bool {
        let by_id = claims.token_id().is_some_and(|id| self.tokens.contains(id));
        let by_subject = claims
            .subject()
            .and_then(|subject| self.subjects.get(subject))
            .is_some_and(|revoked| claims.issued().is_none_or(|issued| issued <= *revoked));
        by_id || by_subject
    }

    /// The same of whoever it is.
    pub fn revokes_identity(&self, identity: &Identity) -> bool {
        match identity {
            Identity::Anonymous => false,
            Identity::Proven(claims) => self.revokes(claims),
        }
    }

    fn take(&mut self, claim: &str, value: String, revoked: f64) {
        if claim == "jti" {
            self.tokens.insert(value.into());
        } else {
            let at = self.subjects.entry(value.into()).or_insert(revoked);
            *at = at.max(revoked);
        }
    }
}

/// What follows the table.
pub struct RevocationTask {
    database: PgConnectOptions,
    /// A connection and the snapshot of its last reading; `None` from a failure to the next attempt.
    reader: Option<(PgConnection, String)>,
    known: watch::Sender<Revocations>,
}

impl RevocationTask {
    /// Reads everything that was revoked, before anybody is let in.
    ///
    /// # Errors
    /// The table cannot be read.
    pub async fn begin(database: PgConnectOptions) -> Result<(Self, watch::Receiver<Revocations>), sqlx::Error> {
        let (known, receiver) = watch::channel(Revocations::default());
        let mut task = Self { database, reader: None, known };
        task.read().await?;
        Ok((task, receiver))
    }

    /// Follows the table for ever.
    pub async fn run(mut self) {
        let mut works = true;
        loop {
            tokio::time::sleep(POLL_EVERY).await;
            let read = match tokio::time::timeout(READING_MAX, self.read()).await {
                Ok(read) => read,
                Err(_) => Err(sqlx::Error::PoolTimedOut),
            };
            if let Err(error) = &read {
                self.reader = None;
                if works {
                    tracing::warn!(%error, "revocations cannot be read; those known stay");
                }
            }
            works = read.is_ok();
        }
    }

    /// Takes what is new; over a new connection, everything.
    async fn read(&mut self) -> Result<(), sqlx::Error> {
        let is_new = self.reader.is_none();
        let (mut connection, seen) = match self.reader.take() {
            Some(reader) => reader,
            None => (PgConnection::connect_with(&self.database).await?, NOTHING_SEEN.to_owned()),
        };
        let rows: Vec<NewsRow> = sqlx::query_as(NEWS).bind(&seen).fetch_all(&mut connection).await?;
        let mut now_seen = seen;
        let mut news = Vec::new();
        for row in rows {
            match row {
                (Some(snapshot), ..) => now_seen = snapshot,
                (None, Some(claim), Some(value), Some(at)) => news.push((claim, value, at)),
                _ => {}
            }
        }
        self.reader = Some((connection, now_seen));
        if is_new || !news.is_empty() {
            self.known.send_modify(|known| {
                if is_new {
                    *known = Revocations::default();
                }
                for (claim, value, at) in news {
                    known.take(&claim, value, at);
                }
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claims(all: serde_json::Value) -> Claims {
        Claims { all: all.as_object().expect("an object").clone(), expires: None }
    }

    #[test]
    fn a_subjects_tokens_are_revoked_up_to_a_moment_and_a_session_for_good() {
        let mut revoked = Revocations::default();
        revoked.take("sub", "u1".into(), 1_000.5);
        revoked.take("sub", "u1".into(), 900.0);
        revoked.take("jti", "t1".into(), 1_000.5);
        for gone in [
            json!({"sub":"u1","iat":1_000}),
            json!({"sub":"u1","iat":1_000.5}),
            json!({"sub":"u1"}),
            json!({"sub":"u2","jti":"t1","iat":2_000}),
        ] {
            assert!(revoked.revokes(&claims(gone.clone())), "{gone}");
        }
        for good in [json!({"sub":"u1","iat":1_001}), json!({"sub":"u2","iat":1}), json!({"jti":"u1"}), json!({})] {
            assert!(!revoked.revokes(&claims(good.clone())), "{good}");
        }
    }
}
