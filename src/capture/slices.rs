//! How far changes were delivered, as Postgres keeps it, and throwing away what nobody needs.
//!
//! The change log stands in four slices, written in turn for five minutes each. A slice that is not being written, and in
//! which the acknowledged cut sees everything, is emptied by TRUNCATE; the cut that this relied on is noted in the same
//! transaction, so that a leader which starts from an older head knows that the log does not reach it.

use std::time::Duration;

use sqlx::{FromRow, PgConnection};

use crate::capture::catalogue::Definitions;
use crate::version::{BadSnapshot, Cut, Epoch, PgSnapshot, Version};

/// What `rowcast.state` says.
#[derive(Clone, Debug, Default)]
pub struct Delivered {
    /// The last cut known to be in the store. Written lazily: the store may be further.
    pub acknowledged: Option<Cut>,
    /// What the log does not reach back to may be needed by a start that does not contain this.
    pub truncated: Option<(Epoch, PgSnapshot)>,
    /// The definitions that were delivered, and the cut with which they were: a start that does not contain it cannot
    /// know what its rows were read by.
    pub defined: Option<(Epoch, PgSnapshot, Definitions)>,
    /// Triggers may have stopped logging since.
    pub lapsed: bool,
    /// How long triggers go on logging without a sign of life.
    pub log_keep: Duration,
}

/// Why [`delivered`] failed.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Snapshot(#[from] BadSnapshot),
    #[error("rowcast.state holds definitions that cannot be read: {0}")]
    Definitions(#[from] serde_json::Error),
}

#[derive(FromRow)]
struct StateRow {
    acknowledged_snapshot: Option<String>,
    acknowledged_version: Option<i64>,
    acknowledged_epoch: Option<String>,
    acknowledged_ms: Option<i64>,
    truncated_snapshot: Option<String>,
    truncated_epoch: Option<String>,
    defined: Option<String>,
    defined_snapshot: Option<String>,
    defined_epoch: Option<String>,
    lapsed: bool,
    log_keep_seconds: f64,
}

/// Reads how far delivery came.
///
/// # Errors
/// The database refuses, or holds what is not a snapshot.
pub async fn delivered(connection: &mut PgConnection) -> Result<Delivered, StateError> {
    let row: StateRow = sqlx::query_as(
        "select acknowledged_snapshot, acknowledged_version, acknowledged_epoch, \
         (extract(epoch from acknowledged_at) * 1000)::int8 as acknowledged_ms, truncated_snapshot, truncated_epoch, \
         defined::text as defined, defined_snapshot, defined_epoch, \
         rowcast.is_lapsed() as lapsed, \
         (select extract(epoch from log_keep)::float8 from rowcast.pulse) as log_keep_seconds from rowcast.state",
    )
    .fetch_one(connection)
    .await?;
    let acknowledged =
        match (row.acknowledged_snapshot, row.acknowledged_version, row.acknowledged_epoch, row.acknowledged_ms) {
            (Some(snapshot), Some(version), Some(epoch), Some(as_of)) => Some(Cut {
                epoch: Epoch::new(epoch),
                version: Version(version.unsigned_abs()),
                snapshot: snapshot.parse()?,
                as_of,
            }),
            _ => None,
        };
    let truncated = match (row.truncated_epoch, row.truncated_snapshot) {
        (Some(epoch), Some(snapshot)) => Some((Epoch::new(epoch), snapshot.parse()?)),
        _ => None,
    };
    let defined = match (row.defined_epoch, row.defined_snapshot, row.defined) {
        (Some(epoch), Some(snapshot), Some(defined)) => {
            Some((Epoch::new(epoch), snapshot.parse()?, serde_json::from_str(&defined)?))
        }
        _ => None,
    };
    Ok(Delivered {
        acknowledged,
        truncated,
        defined,
        lapsed: row.lapsed,
        log_keep: Duration::from_secs_f64(row.log_keep_seconds.max(1.0)),
    })
}

/// Notes the definitions that were delivered with a cut.
///
/// # Errors
/// The database refuses.
pub async fn remember(connection: &mut PgConnection, defined: &Definitions, cut: &Cut) -> Result<(), sqlx::Error> {
    let text = serde_json::to_string(defined).map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
    sqlx::query("update rowcast.state set defined = $1::jsonb, defined_snapshot = $2, defined_epoch = $3")
        .bind(text)
        .bind(cut.snapshot.to_string())
        .bind(cut.epoch.as_str())
        .execute(connection)
        .await
        .map(drop)
}

/// Notes that everything a cut sees is in the store. Not flushed: a crash begins a new epoch anyway.
///
/// # Errors
/// The database refuses.
pub async fn acknowledge(connection: &mut PgConnection, cut: &Cut) -> Result<(), sqlx::Error> {
    sqlx::query("select rowcast.acknowledge($1, $2, $3, to_timestamp($4::float8 / 1000))")
        .bind(cut.snapshot.to_string())
        .bind(i64::try_from(cut.version.0).unwrap_or(i64::MAX))
        .bind(cut.epoch.as_str())
        .bind(cut.as_of as f64)
        .execute(connection)
        .await
        .map(drop)
}

/// Says that a leader delivers, unless triggers may have stopped logging already: then nothing is said, and false
/// returned, because what was not logged has to be made good first.
///
/// # Errors
/// The database refuses.
pub async fn show_life(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let lapsed: bool = sqlx::query_scalar("select rowcast.is_lapsed()").fetch_one(&mut *connection).await?;
    if !lapsed {
        begin_logging(connection).await?;
    }
    Ok(!lapsed)
}

/// Lets triggers log from now on. Transactions that run now may still not do so.
///
/// # Errors
/// The database refuses.
pub async fn begin_logging(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("select rowcast.show_life()").execute(connection).await.map(drop)
}

/// The transactions of this database that have not ended, by name.
///
/// # Errors
/// The database refuses.
pub async fn running_transactions(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar("select rowcast.running_transactions()").fetch_one(connection).await
}

/// Empties the slices that an acknowledged cut has seen through, without waiting for anybody; how many it emptied.
///
/// # Errors
/// The database refuses.
pub async fn empty(connection: &mut PgConnection, acknowledged: &Cut) -> Result<i32, sqlx::Error> {
    sqlx::query_scalar("select rowcast.empty_slices($1, $2)")
        .bind(acknowledged.snapshot.to_string())
        .bind(acknowledged.epoch.as_str())
        .fetch_one(connection)
        .await
}
