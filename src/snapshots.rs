//! Where a channel's rows come from: a checkpoint of the store rolled forward by the log, else one query in Postgres.
//!
//! ```text
//!   checkpoint in the store? ── yes ─▶ roll forward with the log ─▶ stands at a version
//!        │ no, or it does not roll
//!        ▼
//!   the cluster's lock for this channel? ── held by another node ─▶ wait for its checkpoint, look again
//!        │ ours
//!        ▼
//!   one REPEATABLE READ transaction: lock the table, then the snapshot S(q), the catalogue, the rows
//!        └─▶ stands at S(q); or, if the change log has nothing of this publication outside S(m), at m
//! ```
//!
//! A view is never queried here: what has no checkpoint of its own begins with the leader's base ([`crate::base`]), which
//! is rolled forward in the same way. Where that is missing the leader writes it within a second, and the hub asks again.
//!
//! The key of every flight and entry contains the resolved permission. Nothing here decides when rows are shown: the hub
//! brings what lands to its own version first. No query of ours waits for a lock while it holds one, and a query that
//! somebody waits behind is cancelled.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Postgres, Row as _};
use tokio::time::Instant;

use crate::audit::Served;
use crate::base::{self, Base};
use crate::capture::catalogue::{self, CatalogueError, Moment};
use crate::capture::session;
use crate::channel::ChannelSpec;
use crate::checkpoint::Checkpoint;
use crate::entry::{Key, Row};
use crate::identity::{Onlooker, ResolvedPolicy, RlsIdentity};
use crate::metrics::{self, CacheResult};
use crate::protocol::{ErrorCode, Refusal};
use crate::publication::{Catalogue, FeedKey, Publication};
use crate::query::{Bound, Literal, Where, order_by};
use crate::rows::{Rows, Window};
use crate::store::Store;
use crate::version::{Cut, Epoch, PgSnapshot, Version};
use crate::view::{Verdict, View};

/// How long the cluster's lock for a query lasts if its holder dies: what others wait at most on a dead node's behalf.
const LOCK_TTL: Duration = Duration::from_secs(2);

/// How often a lock is renewed while its query runs.
const LOCK_RENEW: Duration = Duration::from_millis(500);

/// How long a node waits for the checkpoint of a lock's holder that lives before it asks Postgres itself.
const OTHERS_WAIT: Duration = Duration::from_secs(30);

/// How often it looks.
const OTHERS_POLL: Duration = Duration::from_millis(25);

/// How long one flight tries to lock its table; the hub then starts another.
const TABLE_LOCK_WAIT: Duration = Duration::from_secs(3);

/// How often a running query looks whether somebody waits behind its lock.
const WAITERS_POLL: Duration = Duration::from_millis(300);

/// How long an identity counts as live after a node has said so.
const ONLOOKER_TTL: Duration = Duration::from_secs(15);

/// An order to read a channel's rows.
#[derive(Clone, Debug)]
pub struct OpenOrder {
    pub spec: ChannelSpec,
    pub publication: Arc<Publication>,
    /// The node's cut: what lands must contain it.
    pub at: Cut,
    /// The catalogue as of `at`, if it is known.
    pub catalogue_id: Option<String>,
    /// A checkpoint below this version does not contain the marker that caused the order.
    pub at_least: Version,
    /// Spare rows are wanted: a checkpoint that is itself short of them is of no use.
    pub refill: bool,
    /// How often a window that was read for this order had too few spare rows when it landed.
    pub ran_out: u32,
}

/// Where rows stand that were read outside of a cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// At a version.
    At(Version),
    /// At a snapshot of their own, between two versions.
    Sees(PgSnapshot),
}

/// Rows that were read.
#[derive(Debug)]
pub struct Fresh {
    pub rows: Rows,
    pub place: Place,
    pub view: Arc<View>,
    pub epoch: Epoch,
    pub served: Served,
    /// Of rows from our own query.
    pub lock: Option<HeldLock>,
}

/// The cluster's lock for a channel, which others wait behind until its checkpoint is there. [`Snapshots::keep`] gives it
/// back; whoever has no use for the rows does it with [`Snapshots::unlock`], or everybody, this node included, waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldLock {
    pub feed: FeedKey,
    pub channel: String,
}

/// Why no rows were read.
#[derive(Debug)]
pub enum OpenError {
    /// Final for this channel.
    Refused(Refusal),
    /// Passes: something moved, or a part is not reachable. For logs.
    Again(String),
    /// The same: what Postgres said.
    Database(sqlx::Error),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refusal) => f.write_str(&refusal.message),
            Self::Again(why) => f.write_str(why),
            Self::Database(error) => error.fmt(f),
        }
    }
}

impl From<CatalogueError> for OpenError {
    fn from(error: CatalogueError) -> Self {
        Self::Again(error.to_string())
    }
}

impl From<sqlx::Error> for OpenError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

/// Limits of what is read.
#[derive(Clone, Debug)]
pub struct SnapshotSettings {
    pub rows_max: usize,
    /// Bytes of rows as JSON text.
    pub bytes_max: usize,
    pub checkpoint_ttl: Duration,
    pub checkpoint_every: Duration,
}

/// Reads and keeps channels.
#[derive(Clone)]
pub struct Snapshots {
    database: PgPool,
    store: Arc<dyn Store>,
    /// Unique to this process: who holds a lock.
    node: Arc<str>,
    settings: SnapshotSettings,
}

impl Snapshots {
    pub fn new(database: PgPool, store: Arc<dyn Store>, node: Arc<str>, settings: SnapshotSettings) -> Self {
        Self { database, store, node, settings }
    }

    /// The publications as Postgres has them now.
    ///
    /// # Errors
    /// Postgres cannot be reached, or has no rowcast schema.
    pub async fn load_catalogue(&self) -> Result<Catalogue, CatalogueError> {
        let mut connection = self.database.acquire().await?;
        Ok(catalogue::describe(&mut connection).await?.catalogue)
    }

    /// Has Postgres cast literals of filters: the value as rows have it, as JSON text, or Postgres' message. One statement
    /// casts all of a type; where that fails, halves of them, until it is known which cannot be cast.
    pub async fn cast(&self, literals: Vec<Literal>) -> Vec<(Literal, Result<Arc<str>, String>)> {
        let mut by_type: BTreeMap<Arc<str>, Vec<Literal>> = BTreeMap::new();
        for literal in literals {
            by_type.entry(literal.0.clone()).or_default().push(literal);
        }
        let mut answers = Vec::new();
        let mut batches: Vec<Vec<Literal>> = by_type.into_values().collect();
        while let Some(mut batch) = batches.pop() {
            match self.cast_batch(&batch).await {
                Ok(values) => {
                    answers.extend(batch.into_iter().zip(values).map(|(literal, value)| (literal, Ok(value.into()))));
                }
                Err(sqlx::Error::Database(error)) if error.code().is_some_and(|code| is_about_a_literal(&code)) => {
                    if batch.len() == 1 {
                        answers.extend(batch.pop().map(|literal| (literal, Err(error.message().to_owned()))));
                    } else {
                        batches.push(batch.split_off(batch.len() / 2));
                        batches.push(batch);
                    }
                }
                // Whoever waits for it is told `unavailable` in time.
                Err(error) => tracing::warn!(%error, "literals could not be cast"),
            }
        }
        answers
    }

    /// Casts literals of one type.
    async fn cast_batch(&self, batch: &[Literal]) -> Result<Vec<String>, sqlx::Error> {
        let Some((type_name, _)) = batch.first() else { return Ok(Vec::new()) };
        // The name comes from `rowcast.describe()`, quoted.
        let written = if matches!(&**type_name, "pg_catalog.int8" | "pg_catalog.numeric") { "::text" } else { "" };
        let sql = format!(
            "select to_json(literal::{type_name}{written})::text
             from unnest($1::text[]) with ordinality as literals (literal, place) order by place"
        );
        let texts: Vec<&str> = batch.iter().map(|(_, text)| &**text).collect();
        sqlx::query_scalar(AssertSqlSafe(sql)).bind(texts).fetch_all(&self.database).await
    }

    /// Reads a channel's rows from wherever they are cheapest.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(&self, order: &OpenOrder) -> Result<Fresh, OpenError> {
        let feed = &order.spec.feed;
        let hash = order.spec.hash();
        if order.publication.source.is_view() {
            return self.open_view(order, &hash).await;
        }
        // First of all: from the next cut on, entries tell what the identity sees.
        self.register(order.spec.onlooker().as_slice()).await;
        let deadline = Instant::now() + OTHERS_WAIT;
        let locked = loop {
            if let Some(fresh) = self.rolled_forward(order, &hash).await {
                metrics::snapshot_cache(CacheResult::Hit);
                return Ok(fresh);
            }
            // Without the store every node asks Postgres, which is right, if not cheap.
            let ours = self.store.lock(feed, &hash, &self.node, LOCK_TTL).await.unwrap_or(true);
            if ours || Instant::now() >= deadline {
                break ours;
            }
            tokio::time::sleep(OTHERS_POLL).await;
        };
        // The holder before us may have kept its checkpoint between our look and our lock.
        if let Some(fresh) = self.rolled_forward(order, &hash).await {
            metrics::snapshot_cache(CacheResult::Hit);
            self.give_back(feed, &hash).await;
            return Ok(fresh);
        }
        metrics::snapshot_cache(CacheResult::Miss);
        let outcome = {
            let query = self.query(order);
            tokio::pin!(query);
            loop {
                tokio::select! {
                    outcome = &mut query => break outcome,
                    () = tokio::time::sleep(LOCK_RENEW), if locked => {
                        // A lock that was lost costs Postgres a second query, nothing more.
                        let _ = self.store.renew(feed, &hash, &self.node, LOCK_TTL).await;
                    }
                }
            }
        };
        match outcome {
            Ok(fresh) if locked => {
                Ok(Fresh { lock: Some(HeldLock { feed: feed.clone(), channel: hash.clone() }), ..fresh })
            }
            Ok(fresh) => Ok(fresh),
            Err(error) => {
                self.give_back(feed, &hash).await;
                Err(error)
            }
        }
    }

    /// Says which identities have live channels here, so that the leader works out what they see.
    pub async fn register(&self, onlookers: &[Onlooker]) {
        let mut texts: Vec<String> = onlookers.iter().map(Onlooker::text).collect();
        texts.sort_unstable();
        texts.dedup();
        if texts.is_empty() {
            return;
        }
        // Without it entries do not tell, and the channels are read again: that is dearer, and right.
        if let Err(error) = self.store.register_identities(&texts, ONLOOKER_TTL).await {
            tracing::debug!(%error, "live identities were not registered");
        }
    }

    /// Writes a checkpoint. `first`: after our own query, so that the lock can be given back; else at most one node of
    /// the cluster writes in each interval.
    pub async fn keep(&self, feed: &FeedKey, channel: &str, checkpoint: Checkpoint, first: bool) {
        if !first {
            let refresh = format!("{channel}.refresh");
            let interval = self.settings.checkpoint_every;
            match self.store.lock(feed, &refresh, &self.node, interval).await {
                Ok(true) => {}
                Ok(false) | Err(_) => return,
            }
        }
        let encoded = tokio::task::spawn_blocking(move || checkpoint.encode()).await;
        match encoded {
            Ok(Ok(bytes)) => {
                if let Err(error) = self.store.put_checkpoint(feed, channel, bytes, self.settings.checkpoint_ttl).await
                {
                    tracing::debug!(%error, %feed, "a checkpoint was not kept");
                }
            }
            Ok(Err(error)) => tracing::error!(%error, %feed, "a checkpoint could not be encoded"),
            Err(error) => tracing::error!(%error, %feed, "encoding a checkpoint failed"),
        }
        if first {
            self.give_back(feed, channel).await;
        }
    }

    /// Gives the lock of rows back that are of no use.
    pub async fn unlock(&self, lock: HeldLock) {
        self.give_back(&lock.feed, &lock.channel).await;
    }

    async fn give_back(&self, feed: &FeedKey, channel: &str) {
        if let Err(error) = self.store.unlock(feed, channel, &self.node).await {
            tracing::debug!(%error, %feed, "a lock was not given back; it lapses by itself");
        }
    }

    /// A channel on a view: from its own checkpoint, which knows most of earlier versions, else from the base.
    async fn open_view(&self, order: &OpenOrder, hash: &str) -> Result<Fresh, OpenError> {
        let feed = &order.spec.feed;
        if let Some(fresh) = self.rolled_forward(order, hash).await {
            metrics::snapshot_cache(CacheResult::Hit);
            return Ok(fresh);
        }
        let missing = || OpenError::Again("the view's rows are not in the store yet".to_owned());
        let bytes = self.bytes(feed, base::CHANNEL).await.ok_or_else(missing)?;
        let decoded = tokio::task::spawn_blocking(move || Base::decode(&bytes)).await;
        let decoded = decoded.map_err(|_| missing())?;
        let checkpoint =
            match decoded.map_err(|error| OpenError::Again(format!("a base that cannot be read: {error}")))? {
                Base::Broken { epoch, trouble } if epoch == order.at.epoch => {
                    return Err(OpenError::Refused(trouble.refusal()));
                }
                Base::Broken { .. } => return Err(missing()),
                Base::Rows(checkpoint) => checkpoint,
            };
        let checkpoint = base::channel_of(*checkpoint, &order.spec)
            .ok_or_else(|| OpenError::Again("the columns have changed".to_owned()))?;
        // It may be older than a marker that the order is about: then the log has that marker, and it does not roll.
        let fresh = self.roll(order, checkpoint).await.filter(|fresh| match fresh.place {
            Place::At(version) => version >= order.at_least,
            Place::Sees(_) => false,
        });
        let fresh = fresh.ok_or_else(missing)?;
        metrics::snapshot_cache(CacheResult::Hit);
        Ok(fresh)
    }

    /// What the store has under a name; that it cannot be reached is as good as nothing.
    async fn bytes(&self, feed: &FeedKey, channel: &str) -> Option<Bytes> {
        match self.store.checkpoint(feed, channel).await {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::debug!(%error, %feed, "no checkpoint could be read");
                None
            }
        }
    }

    /// The store's checkpoint, rolled forward; `None` where that does not lead to the node's version.
    async fn rolled_forward(&self, order: &OpenOrder, hash: &str) -> Option<Fresh> {
        let feed = &order.spec.feed;
        let bytes = self.bytes(feed, hash).await?;
        let (spec, known) = (order.spec.clone(), order.publication.schema.clone());
        let decoded = tokio::task::spawn_blocking(move || Checkpoint::decode(&bytes, &spec, &known)).await;
        let checkpoint = match decoded {
            Ok(Ok(checkpoint)) => checkpoint,
            Ok(Err(error)) => {
                tracing::warn!(%error, %feed, "a checkpoint that cannot be read");
                return None;
            }
            Err(_) => return None,
        };
        if checkpoint.cut.version < order.at_least {
            return None;
        }
        self.roll(order, checkpoint).await
    }

    /// A checkpoint of a channel, rolled forward.
    async fn roll(&self, order: &OpenOrder, checkpoint: Checkpoint) -> Option<Fresh> {
        let feed = &order.spec.feed;
        if checkpoint.cut.epoch != order.at.epoch {
            return None;
        }
        let log = self.store.read_log(feed, checkpoint.cut.version).await.ok()?;
        let (head, entries) = (log.head?, log.entries?);
        let rolled = match checkpoint.roll_forward(&entries, &head) {
            Ok(rolled) => rolled,
            Err(why) => {
                tracing::debug!(%why, %feed, "a checkpoint that does not roll forward");
                return None;
            }
        };
        let is_short = order.refill && rolled.rows.runs_low();
        (rolled.cut.version >= order.at.version && !is_short).then_some(Fresh {
            served: Served::Store,
            rows: rolled.rows,
            place: Place::At(rolled.cut.version),
            view: rolled.view,
            epoch: rolled.cut.epoch,
            lock: None,
        })
    }

    /// One query in Postgres.
    async fn query(&self, order: &OpenOrder) -> Result<Fresh, OpenError> {
        metrics::snapshot_query();
        let mut connection = self.database.acquire().await?;
        let fresh = self.query_on(&mut connection, order).await;
        match &fresh {
            Ok(_) => {
                catalogue::commit(&mut connection).await?;
            }
            // What state the connection is in is not worth finding out.
            Err(_) => connection.close_on_drop(),
        }
        match (fresh, &order.spec.policy) {
            (Err(OpenError::Database(error)), ResolvedPolicy::Rls(identity)) => {
                Err(rls_failure(error, &order.spec.feed, identity))
            }
            (fresh, _) => fresh,
        }
    }

    async fn query_on(&self, connection: &mut PoolConnection<Postgres>, order: &OpenOrder) -> Result<Fresh, OpenError> {
        let relation = &order.publication.relation;
        let moment = begin(connection, relation).await?;
        let Some(epoch) = moment.epoch else {
            return Err(OpenError::Again("no leader has begun an epoch yet".to_owned()));
        };
        let backend: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut **connection).await?;
        let described = catalogue::describe(connection).await?;
        let publication = described
            .catalogue
            .publications
            .get(&order.spec.feed.name)
            .filter(|publication| publication.feed == order.spec.feed && publication.relation == *relation)
            .ok_or_else(|| OpenError::Again("the publication has changed".to_owned()))?;
        // The filters' values were cast to the columns that the hub knew; it looks again before this is asked again.
        if publication.schema_id != order.publication.schema_id && !order.spec.names_no_column() {
            return Err(OpenError::Again("the columns have changed".to_owned()));
        }
        // Ten thousand channels of a publication share its columns.
        let is_known = publication.schema_id == order.publication.schema_id;
        let schema = if is_known { &order.publication.schema } else { &publication.schema };
        let Some(view) = View::new(&order.spec, schema).map(Arc::new) else {
            let message = "the publication no longer has a column of the query";
            return Err(OpenError::Refused(Refusal::new(ErrorCode::BadQuery, message)));
        };
        let at_version = order.at.epoch == epoch
            && order.catalogue_id.as_deref() == Some(&*described.catalogue.id())
            && self.stands_at(connection, publication, &order.at.snapshot).await?;

        match &order.spec.policy {
            ResolvedPolicy::Rls(identity) => become_identity(connection, publication, identity).await?,
            _ if described.exempt.contains(&publication.id) => {
                sqlx::raw_sql("set local row_security = on").execute(&mut **connection).await?;
            }
            _ => {}
        }
        let reading = read_rows(connection, publication, order, &view, &self.settings);
        tokio::pin!(reading);
        let mut looks = tokio::time::interval(WAITERS_POLL);
        looks.tick().await;
        let (members, all) = loop {
            tokio::select! {
                read = &mut reading => break read?,
                _ = looks.tick() => self.make_way(backend).await,
            }
        };
        let version = order.at.version;
        Ok(Fresh {
            served: Served::Postgres,
            rows: Rows::read(&view, version, members, all),
            place: if at_version { Place::At(version) } else { Place::Sees(moment.snapshot) },
            view: view.clone(),
            epoch,
            lock: None,
        })
    }

    /// Whether nothing of the publication has changed between the node's cut and this transaction's snapshot.
    async fn stands_at(
        &self,
        connection: &mut PoolConnection<Postgres>,
        publication: &Publication,
        cut: &PgSnapshot,
    ) -> Result<bool, OpenError> {
        let running: Vec<String> = cut.xip().iter().map(u64::to_string).collect();
        let row = sqlx::query(
            "select not coalesce($3 = any(rowcast.changed_publications($1::text::xid8, $2::text[]::xid8[])), false)",
        )
        .bind(cut.xmax().to_string())
        .bind(running)
        .bind(publication.id)
        .fetch_one(&mut **connection)
        .await?;
        Ok(row.try_get(0)?)
    }

    /// Cancels our own query if somebody waits for a lock that it holds.
    async fn make_way(&self, backend: i32) {
        let cancelled = sqlx::query(
            "select pg_cancel_backend($1) where exists (
                 select from pg_locks as waiter where not waiter.granted and $1 = any(pg_blocking_pids(waiter.pid)))",
        )
        .bind(backend)
        .fetch_optional(&self.database)
        .await;
        match cancelled {
            Ok(Some(_)) => tracing::info!("a snapshot query makes way for somebody who waits for its table"),
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "cannot look for waiters"),
        }
    }
}

/// Begins the transaction and locks the table before any snapshot is taken: with the snapshot first, a rewriting ALTER or
/// a TRUNCATE would leave the reader an empty table. Never waits in Postgres.
async fn begin(connection: &mut PoolConnection<Postgres>, relation: &str) -> Result<Moment, OpenError> {
    let deadline = Instant::now() + TABLE_LOCK_WAIT;
    loop {
        match catalogue::begin(connection, [relation]).await {
            Ok(moment) => return Ok(moment),
            Err(CatalogueError::Locked) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// From here to the end of the transaction, Postgres sees the identity.
async fn become_identity(
    connection: &mut PoolConnection<Postgres>,
    publication: &Publication,
    identity: &RlsIdentity,
) -> Result<(), OpenError> {
    let became = sqlx::query("select rowcast.become($1, $2)")
        .bind(&identity.role)
        .bind(&identity.claims)
        .execute(&mut **connection)
        .await;
    if let Err(error) = became {
        if !session::is_statement_error(&error) {
            return Err(error.into());
        }
        tracing::error!(role = identity.role, %error, "the server may not become a role: grant it to the server's own");
        return Err(OpenError::Refused(Refusal::unavailable("row security cannot be followed for you")));
    }
    // False for a superuser, a role with BYPASSRLS, the table's owner, and where row security was switched off.
    let relation = publication.relation.trim_start_matches("only ");
    let active: bool = sqlx::query_scalar("select pg_catalog.row_security_active($1::pg_catalog.text)")
        .bind(relation)
        .persistent(false)
        .fetch_one(&mut **connection)
        .await?;
    if !active {
        tracing::error!(publication = %publication.feed, role = identity.role, "row security does not apply to a role");
        return Err(OpenError::Refused(Refusal::new(ErrorCode::Forbidden, "this publication is not open to you")));
    }
    Ok(())
}

/// What it means that Postgres refused to read rows as an identity. Its message may quote a claim or a row: it is not logged.
fn rls_failure(error: sqlx::Error, feed: &FeedKey, identity: &RlsIdentity) -> OpenError {
    let code = error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned());
    match code {
        Some(code) if code == "42501" => {
            tracing::warn!(publication = %feed, role = identity.role, "a role may not read what is published");
            OpenError::Refused(Refusal::new(ErrorCode::Forbidden, "this publication is not open to you"))
        }
        // Policies fail by data, by names, by themselves, or in their own functions.
        Some(code) if ["22", "42", "P0", "2F", "38", "39", "21", "54"].contains(&&code[..2]) => {
            tracing::warn!(publication = %feed, role = identity.role, sqlstate = code, "a policy failed");
            OpenError::Refused(Refusal::unavailable("row security failed for you"))
        }
        _ => OpenError::Again(format!("rows could not be read as {}: {}", identity.role, code.unwrap_or_default())),
    }
}

/// The members of a view, and whether they are all there are: of a window the first are read, and spare ones.
async fn read_rows(
    connection: &mut PoolConnection<Postgres>,
    publication: &Publication,
    order: &OpenOrder,
    view: &View,
    settings: &SnapshotSettings,
) -> Result<(Vec<(Key, Arc<Row>)>, bool), OpenError> {
    let Publication { key_sql, row_sql, relation, .. } = publication;
    let spec = &order.spec;
    let filter = spec.filter();
    let Some(condition) = Where::new([&filter], publication) else {
        return Err(OpenError::Again("a column of the query has changed".to_owned()));
    };
    let rows_max = view.limit().map(|limit| Window::reading(limit, order.ran_out));
    // All three come from `rowcast.describe()`, with identifiers quoted.
    let mut sql = format!("select {key_sql}, {row_sql} from {relation} as r where {}", condition.sql);
    if let Some(rows_max) = rows_max {
        let Some(order) = order_by(&spec.order(&publication.schema), publication) else {
            return Err(OpenError::Again("a column of the order has changed".to_owned()));
        };
        sql.push_str(&format!(" order by {order} limit {rows_max}"));
    }
    let mut reading = sqlx::query(AssertSqlSafe(sql)).persistent(false);
    for value in condition.values {
        reading = match value {
            Bound::Text(text) => reading.bind(text),
            Bound::Texts(texts) => reading.bind(texts),
        };
    }
    let mut reading = reading.fetch(&mut **connection);
    let mut members = Vec::new();
    let (mut read, mut bytes, mut spare_bytes) = (0, 0, 0);
    while let Some(row) = reading.try_next().await? {
        read += 1;
        let parsed = Row::parse(row.try_get(1)?)
            .map_err(|error| OpenError::Again(format!("a row that is not JSON: {error}")))?;
        // Postgres has filtered by the same conditions; should it ever disagree, nobody sees what the view refuses.
        let Verdict::Member(member) = view.judge(Some(&Arc::new(parsed))) else {
            tracing::error!(feed = %spec.feed, "Postgres holds a row for a member that is none");
            continue;
        };
        let is_spare = view.limit().is_some_and(|limit| members.len() >= limit);
        *(if is_spare { &mut spare_bytes } else { &mut bytes }) += member.text().len();
        if !is_spare && (members.len() >= settings.rows_max || bytes > settings.bytes_max) {
            return Err(OpenError::Refused(Refusal::new(
                ErrorCode::TooManyRows,
                format!("the channel has more than {} rows or {} MiB", settings.rows_max, settings.bytes_max >> 20),
            )));
        }
        members.push((Key::new(row.try_get::<&str, _>(0)?), member));
        if Window::is_ample(spare_bytes) {
            return Ok((members, false));
        }
    }
    let all = rows_max.is_none_or(|rows_max| read < rows_max);
    if members.is_empty() && !all && view.limit() != Some(0) {
        return Err(OpenError::Again("none of the rows that were read is a member".to_owned()));
    }
    Ok((members, all))
}

/// Whether an error says that a literal is wrong: of class 22 (data), 54 (too complex), or not supported.
fn is_about_a_literal(code: &str) -> bool {
    code.starts_with("22") || code.starts_with("54") || code == "0A000"
}
