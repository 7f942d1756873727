//! What is published, read in the snapshot of the rows that it explains.
//!
//! [`begin`] opens a transaction the only way that is safe: tables are locked *before* the snapshot is taken. A snapshot
//! that is older than a rewriting ALTER or a TRUNCATE sees an empty table. It never waits for a lock, and in the same
//! round trip it tells everything there is to know of the moment: snapshot, epoch, catalogue stamp, clock. The leader's
//! cuts and the nodes' snapshot queries both begin with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Row};

use crate::capture::session;
use crate::publication::{Catalogue, Column, FeedKey, Policy, Publication, Schema, Source};
use crate::version::{BadSnapshot, Epoch, PgSnapshot};

/// What a transaction says of itself.
#[derive(Clone, Debug)]
pub struct Moment {
    pub snapshot: PgSnapshot,
    /// `None`: no leader has planted a token since the last crash or promotion; nothing read now can be continued.
    pub epoch: Option<Epoch>,
    /// Equal stamps: [`describe`] gives the same.
    pub stamp: String,
    /// `now()`: milliseconds since 1970, database clock.
    pub now_ms: i64,
}

/// The catalogue, and what of it only the leader needs.
#[derive(Clone, Debug, Default)]
pub struct Described {
    pub catalogue: Catalogue,
    pub definitions: Definitions,
    /// By [`Publication::id`]: publications some of whose changes are not logged, because triggers are missing or disabled.
    pub not_intact: Vec<i32>,
    /// By [`Publication::id`]: row security applies to our own role, and a policy shows it every row all the same.
    pub exempt: BTreeSet<i32>,
}

impl Described {
    /// The publication that the change log calls by a number.
    pub fn by_id(&self, id: i32) -> Option<&Arc<Publication>> {
        self.catalogue.publications.values().find(|publication| publication.id == id)
    }
}

/// What rows were read by: every feed with its fingerprint. Two of them tell what happened without a trigger between.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Definitions(pub BTreeMap<FeedKey, String>);

impl Definitions {
    fn of(catalogue: &Catalogue) -> Self {
        Self(
            catalogue
                .publications
                .values()
                .map(|publication| {
                    (publication.feed.clone(), format!("{} {}", publication.schema_id, publication.fingerprint))
                })
                .collect(),
        )
    }
}

/// Why a transaction did not begin, or could not say what is published.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// Somebody holds a lock on a table; nothing is open. Try again soon.
    #[error("a table is locked")]
    Locked,
    /// A table is not there under its name; nothing is open. Read the catalogue again.
    #[error("a table is gone")]
    Gone,
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Snapshot(#[from] BadSnapshot),
    #[error("rowcast.describe() gave columns that cannot be read: {0}")]
    Columns(#[from] serde_json::Error),
}

const MOMENT: &str = "select pg_current_snapshot()::text as snapshot, rowcast.identity() as identity, \
                      rowcast.catalogue_stamp() as stamp, (extract(epoch from now()) * 1000)::int8 as now_ms";

/// Opens a REPEATABLE READ transaction with these relations ([`Publication::relation`]) locked against DDL, without
/// waiting. On an error no transaction is open.
///
/// # Errors
/// See [`CatalogueError`].
pub async fn begin(
    connection: &mut PgConnection,
    relations: impl IntoIterator<Item = &str>,
) -> Result<Moment, CatalogueError> {
    // One simple query: it cannot have parameters. Relations are quoted by the database.
    let mut sql = String::from("begin isolation level repeatable read; ");
    for relation in relations {
        sql.push_str(&format!("lock table {relation} in access share mode nowait; "));
    }
    sql.push_str(MOMENT);
    match sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut *connection).await {
        Ok(rows) => {
            let row = rows.last().ok_or(sqlx::Error::RowNotFound)?;
            Ok(Moment {
                snapshot: row.try_get::<String, _>("snapshot")?.parse()?,
                epoch: row.try_get::<Option<String>, _>("identity")?.as_deref().map(Epoch::of_identity),
                // Null where nothing is published.
                stamp: row.try_get::<Option<String>, _>("stamp")?.unwrap_or_default(),
                now_ms: row.try_get("now_ms")?,
            })
        }
        Err(error) => {
            if session::is_statement_error(&error) {
                rollback(connection).await?;
            }
            Err(match error {
                error if session::is_lock_refusal(&error) => CatalogueError::Locked,
                error if session::is_gone(&error) => CatalogueError::Gone,
                error => error.into(),
            })
        }
    }
}

/// Ends the transaction that [`begin`] opened.
///
/// # Errors
/// The connection is lost.
pub async fn commit(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("commit").execute(connection).await.map(drop)
}

/// Ends the transaction that [`begin`] opened, whatever state it is in.
///
/// # Errors
/// The connection is lost.
pub async fn rollback(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("rollback").execute(connection).await.map(drop)
}

/// The epoch; `None` while no token is planted.
///
/// # Errors
/// The database refuses, as a standby does.
pub async fn identity(connection: &mut PgConnection) -> Result<Option<Epoch>, sqlx::Error> {
    let identity: Option<String> = sqlx::query_scalar("select rowcast.identity()").fetch_one(connection).await?;
    Ok(identity.as_deref().map(Epoch::of_identity))
}

/// Everything that is published, at the transaction's snapshot.
///
/// # Errors
/// See [`CatalogueError`].
pub async fn describe(connection: &mut PgConnection) -> Result<Described, CatalogueError> {
    let rows: Vec<DescribeRow> =
        sqlx::query_as("select *, columns::text as columns_text from rowcast.describe()").fetch_all(connection).await?;
    let mut publications = HashMap::with_capacity(rows.len());
    let mut not_intact = Vec::new();
    let mut exempt = BTreeSet::new();
    for row in rows {
        if row.is_exempt {
            exempt.insert(row.id);
        }
        if !row.is_intact {
            not_intact.push(row.id);
        }
        let publication = row.read()?;
        publications.insert(publication.feed.name.clone(), Arc::new(publication));
    }
    let catalogue = Catalogue { publications };
    Ok(Described { definitions: Definitions::of(&catalogue), catalogue, not_intact, exempt })
}

/// One publication, at the transaction's snapshot; `None` where the name is not published.
///
/// # Errors
/// See [`CatalogueError`].
pub async fn describe_one(connection: &mut PgConnection, name: &str) -> Result<Option<Publication>, CatalogueError> {
    let row: Option<DescribeRow> = sqlx::query_as("select *, columns::text as columns_text from rowcast.describe($1)")
        .bind(name)
        .fetch_optional(connection)
        .await?;
    row.map(DescribeRow::read).transpose().map_err(CatalogueError::from)
}

/// A row of `rowcast.describe()`.
#[derive(FromRow)]
struct DescribeRow {
    name: String,
    generation: i64,
    id: i32,
    relation: String,
    source: String,
    policy: String,
    columns_text: String,
    key: Vec<i32>,
    casts: Vec<String>,
    bulk_rows: i32,
    refresh_ms: i32,
    key_sql: String,
    row_sql: String,
    by_key_sql: String,
    fingerprint: String,
    is_intact: bool,
    is_exempt: bool,
}

impl DescribeRow {
    fn read(self) -> Result<Publication, serde_json::Error> {
        let columns: Vec<Column> = serde_json::from_str(&self.columns_text)?;
        let schema = Schema { columns, key: self.key.iter().map(|&index| index.unsigned_abs() as usize).collect() };
        Ok(Publication {
            feed: FeedKey { name: self.name.into(), generation: self.generation.unsigned_abs() },
            id: self.id,
            relation: self.relation,
            source: Source::parse(&self.source),
            policy: Policy::parse(&self.policy),
            schema_id: schema.id().into(),
            schema: Arc::new(schema),
            casts: self.casts.into_iter().map(Arc::from).collect(),
            bulk_rows: u64::from(self.bulk_rows.unsigned_abs()),
            refresh: Duration::from_millis(self.refresh_ms.unsigned_abs().into()),
            key_sql: self.key_sql,
            row_sql: self.row_sql,
            by_key_sql: self.by_key_sql,
            fingerprint: self.fingerprint,
        })
    }
}
