//! Reading cuts: what changed from one snapshot of the database to the next, and the rows as they are at the second.
//!
//! ```text
//!   poll     which publications changed since S(n-1)?                              one statement
//!   open     begin; lock their tables, not waiting; S(n), epoch, stamp, clock      one round trip
//!            stamp differs: the catalogue again, in this snapshot
//!            keys changed between S(n-1) and S(n)    (one of a table not locked: from the start, with it locked)
//!            rows by key, per publication
//!   close    a version from the sequence; commit
//! ```
//!
//! New is what S(n) sees and S(n-1) did not: `xid >= xmax(S(n-1)) or xid = any (xip(S(n-1)))`. A long transaction delays
//! nobody, and every cut is a state that the database really was in.
//!
//! What cannot be said key by key is a *marker*: more than `bulk_rows` keys, a statement that was not told apart, a
//! definition that changed without a trigger, a table that stays locked. A marker is always right, only dearer.
//!
//! A view has no keys in the log: what is logged for it says that it has to be run again. That happens in a cut's
//! transaction too, if the cut's [`Wanted`] asks for it; its tables are locked with the others.
//!
//! The reader keeps no position: it is given the snapshot to continue from, because the store decides which that is.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use tokio::time::Instant;

use crate::base::Trouble;
use crate::capture::catalogue::{self, CatalogueError, Definitions, Described, Moment};
use crate::capture::session;
use crate::capture::sight::{Onlookers, Placed, Sighting};
use crate::capture::views::{Outcome, Prior, ViewLimits, ViewRun};
use crate::entry::{Key, PartsWriter, Row as RowText, State, States};
use crate::metrics;
use crate::publication::{FeedKey, Policy, Publication, Source};
use crate::version::{BadSnapshot, Cut, Epoch, PgSnapshot, Version};

/// A table that cannot be locked for so long gets a marker, so that the others go on.
const LOCK_PATIENCE: Duration = Duration::from_millis(100);
/// Between two attempts to lock.
const LOCK_RETRY: Duration = Duration::from_millis(5);
/// How long the policies of one table may keep a cut, and for how long they are not asked after that.
const SIGHT_TIMEOUT: &str = "3s";
const SLOW_PAUSE: Duration = Duration::from_secs(30);
/// Keys in one query for rows.
const KEYS_AT_ONCE: usize = 5_000;

/// Reads cuts over one session.
pub struct Reader {
    connection: PgConnection,
    /// The catalogue of the last transaction that looked, and its stamp.
    known: Option<Known>,
    /// The definitions that were delivered: what the next cut is compared with. Moves by [`Self::delivered`] only, so that
    /// a cut which is not accepted is told again. `None`: unknown; then the next cut marks everything.
    defined: Option<Definitions>,
    /// Publications whose table could not be locked, since when.
    blocked: HashMap<i32, Instant>,
    sighting: Sighting,
    /// Publications whose policies took longer than a statement may: until when they are not asked.
    slow: HashMap<i32, Instant>,
}

struct Known {
    stamp: String,
    described: Arc<Described>,
}

/// What a look into the log found.
#[derive(Clone, Debug)]
pub struct Poll {
    pub snapshot: PgSnapshot,
    /// The database's clock when the look began: everything committed before is contained. Milliseconds since 1970.
    pub polled_at: i64,
    /// Publications with changes, by id.
    pub changed: BTreeSet<i32>,
}

/// What a cut is to contain besides what the log says.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Publications known to have changed: their tables are locked from the first attempt on.
    pub changed: BTreeSet<i32>,
    /// Publications to be marked, and why.
    pub markers: BTreeMap<i32, &'static str>,
    /// Views to be run.
    pub views: BTreeMap<i32, Prior>,
    /// Views that are known to be stale: that they changed once more is no news.
    pub stale: BTreeSet<i32>,
    pub view_limits: ViewLimits,
    /// Mark every publication: why. The log is not read then.
    pub all: Option<&'static str>,
    /// A cut even if nothing changed.
    pub even_if_quiet: bool,
    /// Identities that entries have to tell of, where row security decides.
    pub onlookers: Arc<Onlookers>,
}

/// What a cut says of one feed: its parts, as the store keeps them.
#[derive(Clone, Debug)]
pub struct FeedStates {
    pub feed: FeedKey,
    pub parts: Vec<String>,
    /// How many keys it tells of; none if it is a marker.
    pub keys: usize,
    /// Why it is a marker, if it is one.
    pub marker: Option<&'static str>,
}

/// A cut, complete.
#[derive(Clone, Debug)]
pub struct CutRead {
    pub cut: Cut,
    /// By publication; each feed once.
    pub states: Vec<FeedStates>,
    /// [`crate::publication::Catalogue::id`] at the cut.
    pub catalogue: String,
    /// Feeds that were delivered before and exist no longer.
    pub forget: Vec<FeedKey>,
    /// What the rows were read by.
    pub definitions: Definitions,
    /// The views that were run.
    pub runs: Vec<ViewRun>,
    /// Views under which something changed; those that were run contain it.
    pub views_changed: BTreeSet<i32>,
}

/// Why a cut could not be read. No transaction is open.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The database is not the one that the position belongs to.
    #[error("the epoch is another one")]
    OtherEpoch,
    /// S(n-1) ⊄ S(n): this database has lost what it showed before.
    #[error("the database no longer contains what it showed before")]
    NotContinuous,
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    #[error(transparent)]
    Snapshot(#[from] BadSnapshot),
}

/// A cut whose transaction is still open: a test may look at the tables in the same snapshot.
pub struct OpenCut<'a> {
    reader: &'a mut Reader,
    epoch: Epoch,
    moment: Moment,
    described: Arc<Described>,
    said: Said,
}

/// What a cut says.
#[derive(Default)]
struct Said {
    states: Vec<FeedStates>,
    forget: Vec<FeedKey>,
    runs: Vec<ViewRun>,
    views_changed: BTreeSet<i32>,
}

impl Reader {
    /// Opens the session.
    ///
    /// # Errors
    /// The database cannot be reached.
    pub async fn connect(database: &PgConnectOptions) -> Result<Self, sqlx::Error> {
        // It holds locks while it reads, so it hardly waits for any.
        let options = session::options(database).options([("lock_timeout", "100ms")]);
        let connection = PgConnection::connect_with(&options).await?;
        Ok(Self {
            connection,
            known: None,
            defined: None,
            blocked: HashMap::new(),
            sighting: Sighting::default(),
            slow: HashMap::new(),
        })
    }

    /// The session, between cuts.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// What was published when the reader last looked.
    pub fn described(&self) -> Option<&Arc<Described>> {
        self.known.as_ref().map(|known| &known.described)
    }

    /// Tells the reader what was delivered: with a cut that the store accepted, or at a start.
    pub fn delivered(&mut self, definitions: Option<Definitions>) {
        self.defined = definitions;
    }

    /// Whether these are other definitions than those delivered.
    pub fn is_new(&self, definitions: &Definitions) -> bool {
        self.defined.as_ref() != Some(definitions)
    }

    /// Looks what changed since a snapshot.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn poll(&mut self, after: &PgSnapshot) -> Result<Poll, ReadError> {
        let (snapshot, polled_at, changed): (String, i64, Option<Vec<i32>>) = sqlx::query_as(
            "select pg_current_snapshot()::text, (extract(epoch from statement_timestamp()) * 1000)::int8, \
             rowcast.changed_publications($1::xid8, $2::xid8[])",
        )
        .bind(after.xmax().to_string())
        .bind(xip_texts(after))
        .fetch_one(&mut self.connection)
        .await?;
        Ok(Poll { snapshot: snapshot.parse()?, polled_at, changed: changed.unwrap_or_default().into_iter().collect() })
    }

    /// Whether definitions may differ from those delivered.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn catalogue_changed(&mut self) -> Result<bool, ReadError> {
        let stamp: Option<String> =
            sqlx::query_scalar("select rowcast.catalogue_stamp()").fetch_one(&mut self.connection).await?;
        Ok(match &self.known {
            Some(known) if known.stamp == stamp.unwrap_or_default() => {
                self.defined.as_ref() != Some(&known.described.definitions)
            }
            _ => true,
        })
    }

    /// Reads the next cut and leaves its transaction open; `None` where there is nothing to say.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub async fn open(
        &mut self,
        epoch: &Epoch,
        after: &PgSnapshot,
        wanted: &Wanted,
    ) -> Result<Option<OpenCut<'_>>, ReadError> {
        let mut attempt = Attempt {
            wanted,
            changed: wanted.changed.clone(),
            markers: wanted.markers.clone(),
            views: wanted.views.clone(),
        };
        loop {
            match self.try_open(epoch, after, &mut attempt).await {
                Ok(Tried::Open(moment, described, said)) => {
                    return Ok(Some(OpenCut { reader: self, epoch: epoch.clone(), moment, described, said }));
                }
                Ok(Tried::Quiet) => {
                    catalogue::rollback(&mut self.connection).await?;
                    return Ok(None);
                }
                Ok(Tried::Again) => catalogue::rollback(&mut self.connection).await?,
                Ok(Tried::Locked) => self.find_blocked(&mut attempt).await?,
                Ok(Tried::Gone) => self.known = None,
                Err(error) => {
                    // The session may be lost, then so is the transaction.
                    let _ = catalogue::rollback(&mut self.connection).await;
                    return Err(error);
                }
            }
        }
    }

    async fn try_open(
        &mut self,
        epoch: &Epoch,
        after: &PgSnapshot,
        attempt: &mut Attempt<'_>,
    ) -> Result<Tried, ReadError> {
        let before = self.known.as_ref().map(|known| known.described.clone());
        let to_lock: BTreeMap<i32, Arc<Publication>> = before
            .iter()
            .flat_map(|described| described.catalogue.publications.values())
            .filter(|publication| match publication.source {
                Source::Table => {
                    attempt.changed.contains(&publication.id)
                        && attempt.wanted.all.is_none()
                        && !attempt.markers.contains_key(&publication.id)
                }
                Source::View | Source::MaterializedView => attempt.views.contains_key(&publication.id),
            })
            .map(|publication| (publication.id, publication.clone()))
            .collect();
        // A view is locked with all that is under it; a materialised view cannot be, see `run_view`.
        let lockable = to_lock.values().filter(|publication| publication.source != Source::MaterializedView);
        let relations: BTreeSet<&str> = lockable.map(|publication| publication.relation.as_str()).collect();
        let moment = match catalogue::begin(&mut self.connection, relations.iter().copied()).await {
            Ok(moment) => moment,
            Err(CatalogueError::Locked) => return Ok(Tried::Locked),
            Err(CatalogueError::Gone) => return Ok(Tried::Gone),
            Err(CatalogueError::Database(error)) if session::is_statement_error(&error) && !to_lock.is_empty() => {
                return Ok(Tried::Locked);
            }
            Err(error) => return Err(error.into()),
        };
        self.blocked.retain(|id, _| !to_lock.contains_key(id));
        if moment.epoch.as_ref() != Some(epoch) {
            return Err(ReadError::OtherEpoch);
        }
        if !after.is_within(&moment.snapshot) {
            return Err(ReadError::NotContinuous);
        }
        let described = match &self.known {
            Some(known) if known.stamp == moment.stamp => known.described.clone(),
            _ => Arc::new(catalogue::describe(&mut self.connection).await?),
        };
        let compared = Compared::new(self.defined.as_ref(), &described);
        // Markers that the definitions ask for; what is new or gone needs no entry.
        let mut markers: BTreeMap<i32, &'static str> = BTreeMap::new();
        let mut readable: BTreeMap<i32, &Arc<Publication>> = BTreeMap::new();
        let mut said = Said { forget: compared.forget, ..Said::default() };
        for publication in described.catalogue.publications.values() {
            let id = publication.id;
            if publication.source.is_view() {
                let redefined = compared.new.contains(&id) || compared.redefined.contains(&id);
                if redefined || attempt.wanted.all.is_some() || attempt.markers.contains_key(&id) {
                    said.views_changed.insert(id);
                }
                if attempt.wanted.all.is_none() {
                    readable.insert(id, publication);
                }
                continue;
            }
            if compared.new.contains(&id) && attempt.wanted.all.is_none() {
                continue;
            }
            let marker = attempt.wanted.all.or_else(|| attempt.markers.get(&id).copied());
            match marker.or_else(|| compared.redefined.contains(&id).then_some("definition")) {
                Some(why) => drop(markers.insert(id, why)),
                None => drop(readable.insert(id, publication)),
            }
        }
        let keys = if readable.is_empty() {
            HashMap::new()
        } else {
            match self.changed_keys(after, &readable).await {
                Err(error) if session::is_statement_error(&error) => {
                    tracing::warn!(%error, "the change log cannot be read; marking every publication");
                    attempt.markers.extend(readable.keys().map(|&id| (id, "log")));
                    return Ok(Tried::Again);
                }
                keys => keys?,
            }
        };
        for (&id, keys) in &keys {
            if readable[&id].source.is_view() {
                said.views_changed.insert(id);
                continue;
            }
            let locked = to_lock.get(&id).is_some_and(|locked| locked.relation == readable[&id].relation);
            if !locked && matches!(keys, Keys::Known(_)) {
                attempt.changed.insert(id);
                self.known = Some(Known { stamp: moment.stamp, described });
                return Ok(Tried::Again);
            }
        }
        for (id, keys) in keys {
            let publication = readable[&id];
            if publication.source.is_view() {
                continue;
            }
            match keys {
                Keys::Unknown(why) => drop(markers.insert(id, why)),
                Keys::Known(keys) => {
                    match self.read_states(publication, &described, &keys, &attempt.wanted.onlookers).await {
                        Ok(Read::Unseen(why)) => drop(markers.insert(id, why)),
                        Ok(Read::Parts(parts)) => {
                            let feed = publication.feed.clone();
                            said.states.push(FeedStates { feed, parts, keys: keys.len(), marker: None });
                        }
                        Err(error) if session::is_statement_error(&error) => {
                            tracing::warn!(publication = %publication.feed, %error, "rows cannot be read; marking");
                            attempt.markers.insert(id, "unreadable");
                            return Ok(Tried::Again);
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
        for (id, why) in markers {
            if let Some(publication) = described.by_id(id) {
                let parts = vec![States::marker_part(why)];
                said.states.push(FeedStates { feed: publication.feed.clone(), parts, keys: 0, marker: Some(why) });
            }
        }
        for (&id, prior) in &attempt.views {
            // One that is another relation by now was not locked.
            let locked = to_lock.get(&id).map(|locked| &locked.relation);
            let Some(publication) = described.by_id(id).filter(|view| locked == Some(&view.relation)) else { continue };
            if let Some(run) = self.run_view(publication, prior, &attempt.wanted.view_limits).await? {
                said.states.extend(states_of(publication, prior, &run.outcome));
                said.runs.push(run);
            }
        }
        let quiet = said.states.is_empty()
            && said.runs.is_empty()
            && said.views_changed.is_subset(&attempt.wanted.stale)
            && !compared.feeds_differ
            && !attempt.wanted.even_if_quiet;
        self.known = Some(Known { stamp: moment.stamp.clone(), described: described.clone() });
        if quiet { Ok(Tried::Quiet) } else { Ok(Tried::Open(moment, described, said)) }
    }

    /// Finds out which tables are locked; waits a little for them, then marks them.
    async fn find_blocked(&mut self, attempt: &mut Attempt<'_>) -> Result<(), ReadError> {
        let Some(described) = self.described().cloned() else { return Ok(()) };
        let mut waiting = false;
        for &id in &attempt.changed {
            let Some(publication) = described
                .by_id(id)
                .filter(|publication| !attempt.markers.contains_key(&id) && !publication.source.is_view())
            else {
                continue;
            };
            match catalogue::begin(&mut self.connection, [publication.relation.as_str()]).await {
                Ok(_) => {
                    catalogue::rollback(&mut self.connection).await?;
                    self.blocked.remove(&id);
                }
                Err(CatalogueError::Locked) => {
                    let since = *self.blocked.entry(id).or_insert_with(Instant::now);
                    if since.elapsed() >= LOCK_PATIENCE {
                        attempt.markers.insert(id, "locked");
                    } else {
                        waiting = true;
                    }
                }
                Err(CatalogueError::Gone) => self.known = None,
                Err(CatalogueError::Database(error)) if session::is_statement_error(&error) => {
                    tracing::warn!(publication = %publication.feed, %error, "the table cannot be locked; marking");
                    attempt.markers.insert(id, "unreadable");
                }
                Err(error) => return Err(error.into()),
            }
        }
        // Nobody waits for the tables under a view: it stays stale, and is tried again with a later cut.
        for id in attempt.views.keys().copied().collect::<Vec<i32>>() {
            let view = described.by_id(id).filter(|view| view.source == Source::View);
            let Some(view) = view else { continue };
            match catalogue::begin(&mut self.connection, [view.relation.as_str()]).await {
                Ok(_) => catalogue::rollback(&mut self.connection).await?,
                Err(CatalogueError::Gone) => self.known = None,
                Err(CatalogueError::Locked) => drop(attempt.views.remove(&id)),
                Err(CatalogueError::Database(error)) if session::is_statement_error(&error) => {
                    tracing::warn!(view = %view.feed, %error, "the view cannot be locked");
                    attempt.views.remove(&id);
                }
                Err(error) => return Err(error.into()),
            }
        }
        if waiting {
            tokio::time::sleep(LOCK_RETRY).await;
        }
        Ok(())
    }

    /// Runs a view in the open transaction. `None`: not now, as something under it is in use.
    async fn run_view(
        &mut self,
        view: &Publication,
        prior: &Prior,
        limits: &ViewLimits,
    ) -> Result<Option<ViewRun>, sqlx::Error> {
        let began = Instant::now();
        let time_max_ms = limits.time_max.as_millis();
        let guard = format!("savepoint rowcast_view; set local statement_timeout = {time_max_ms}");
        sqlx::raw_sql(AssertSqlSafe(guard)).execute(&mut self.connection).await?;
        let read = self.read_view(view, prior, limits).await;
        let outcome = match read {
            Ok(outcome) => outcome,
            Err(error) if session::is_statement_error(&error) => {
                sqlx::raw_sql("rollback to savepoint rowcast_view").execute(&mut self.connection).await?;
                let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default().into_owned();
                match code.as_str() {
                    // Somebody refreshes a materialised view under it.
                    "55P03" => None,
                    "57014" => Some(Outcome::Trouble(Trouble::TooSlow)),
                    // The message may hold values of rows.
                    _ => {
                        tracing::debug!(view = %view.feed, code, "a view's query fails");
                        Some(Outcome::Trouble(Trouble::Fails))
                    }
                }
            }
            Err(error) => return Err(error),
        };
        sqlx::raw_sql("release savepoint rowcast_view").execute(&mut self.connection).await?;
        let Some(outcome) = outcome else { return Ok(None) };
        if let Outcome::Trouble(trouble) = outcome
            && prior.trouble != Some(trouble)
        {
            tracing::error!(view = %view.feed, relation = view.relation, why = trouble.reason(), "a view is broken");
        }
        let took = began.elapsed();
        metrics::view_run(took);
        Ok(Some(ViewRun { feed: view.feed.clone(), schema: view.schema.clone(), outcome, took }))
    }

    /// A view's rows, compared with those before. `None`: what was read is not of the transaction's snapshot.
    async fn read_view(
        &mut self,
        view: &Publication,
        prior: &Prior,
        limits: &ViewLimits,
    ) -> Result<Option<Outcome>, sqlx::Error> {
        let no_key: Vec<String> = view.schema.key_names().map(|name| format!("r.{} is null", quoted(name))).collect();
        // All of it comes from `rowcast.describe()`, with identifiers quoted.
        let sql = format!(
            "select {}, {}, {} from {} as r limit {}",
            view.key_sql,
            view.row_sql,
            no_key.join(" or "),
            view.relation,
            limits.rows_max.saturating_add(1),
        );
        let before = prior.rows.as_ref().filter(|_| *prior.schema_id == *view.schema_id);
        let mut seen: HashSet<Key> = HashSet::with_capacity(before.map_or(0, |rows| rows.len()));
        let mut differing: Vec<(Key, Arc<RowText>)> = Vec::new();
        let mut trouble = None;
        let mut bytes = 0;
        {
            let mut rows = sqlx::query(AssertSqlSafe(sql)).persistent(false).fetch(&mut self.connection);
            while let Some(row) = rows.try_next().await? {
                let (key, text): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
                let key = Key::new(key);
                bytes += text.len();
                let found = if row.try_get::<bool, _>(2)? {
                    Some(Trouble::NullKey)
                } else if seen.len() >= limits.rows_max || bytes > limits.bytes_max {
                    Some(Trouble::TooManyRows)
                } else if before.and_then(|rows| rows.row(&key)).is_none_or(|held| held.text() != text) {
                    let parsed = RowText::parse(text).map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
                    differing.push((key.clone(), Arc::new(parsed)));
                    None
                } else {
                    None
                };
                trouble = trouble.or(found);
                if !seen.insert(key) {
                    trouble = trouble.or(Some(Trouble::DuplicateKey));
                }
                // The rest is read all the same, as the session is not free before; it is not kept.
                if trouble.is_some() {
                    differing.clear();
                    seen.clear();
                    break;
                }
            }
        }
        if !self.is_of_snapshot(view).await? {
            return Ok(None);
        }
        Ok(Some(match (trouble, before) {
            (Some(trouble), _) => Outcome::Trouble(trouble),
            (None, None) => Outcome::Whole(differing),
            (None, Some(before)) => {
                let mut states: Vec<State> =
                    differing.into_iter().map(|(key, row)| State { key, row: Some(row) }).collect();
                let gone = before.iter().map(|(key, _)| key).filter(|key| !seen.contains(*key));
                states.extend(gone.map(|key| State { key: key.clone(), row: None }));
                Outcome::Difference(states)
            }
        }))
    }

    /// A materialised view cannot be locked before the snapshot is taken, and REFRESH leaves rows that every snapshot sees.
    /// Reading has locked it: if its storage is not the one of the snapshot now, it was refreshed in between.
    async fn is_of_snapshot(&mut self, view: &Publication) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar(
            "select not exists (select from pg_class as c where c.relkind = 'm' \
             and c.oid in (select s.object from rowcast.sources as s where s.publication = $1 and not s.is_function) \
             and pg_relation_filenode(c.oid) is distinct from c.relfilenode)",
        )
        .bind(view.id)
        .fetch_one(&mut self.connection)
        .await
    }

    /// The keys that changed since a snapshot, by publication.
    async fn changed_keys(
        &mut self,
        after: &PgSnapshot,
        readable: &BTreeMap<i32, &Arc<Publication>>,
    ) -> Result<HashMap<i32, Keys>, sqlx::Error> {
        let ids: Vec<i32> = readable.keys().copied().collect();
        // Why not, where they are not known.
        let mut changed: HashMap<i32, Result<HashSet<String>, &'static str>> = HashMap::new();
        let mut rows = sqlx::query_as::<_, (i32, Option<String>)>(
            "select publication, keys from rowcast.changed_keys($1::xid8, $2::xid8[], $3)",
        )
        .bind(after.xmax().to_string())
        .bind(xip_texts(after))
        .bind(ids)
        .fetch(&mut self.connection);
        while let Some((id, lines)) = rows.try_next().await? {
            let known = changed.entry(id).or_insert_with(|| Ok(HashSet::new()));
            match (&mut *known, lines) {
                (Err(_), _) => {}
                (_, None) => *known = Err("bulk statement"),
                (Ok(keys), Some(lines)) => {
                    for key in lines.split('\n') {
                        if !keys.contains(key) {
                            keys.insert(key.to_owned());
                        }
                    }
                    if keys.len() as u64 > readable[&id].bulk_rows {
                        *known = Err("bulk cut");
                    }
                }
            }
        }
        let keys = |known: Result<HashSet<String>, _>| match known {
            Ok(keys) => Keys::Known(keys.into_iter().collect()),
            Err(why) => Keys::Unknown(why),
        };
        Ok(changed.into_iter().map(|(id, known)| (id, keys(known))).collect())
    }

    /// The rows of keys, as parts; keys without a row are gone. Where row security decides, with who sees which.
    async fn read_states(
        &mut self,
        publication: &Publication,
        described: &Described,
        keys: &[String],
        onlookers: &Onlookers,
    ) -> Result<Read, sqlx::Error> {
        let exempt = described.exempt.contains(&publication.id);
        if exempt {
            sqlx::raw_sql("set local row_security = on").execute(&mut self.connection).await?;
        }
        let mut writer = PartsWriter::new(&publication.schema_id);
        let viewers = match publication.policy {
            Policy::Rls => onlookers.get(&publication.feed).map(Vec::as_slice).unwrap_or_default(),
            Policy::Public | Policy::Authenticated | Policy::Filter(_) => &[],
        };
        let (placed, states) = self.read_rows(publication, keys, !viewers.is_empty(), &mut writer).await?;
        if exempt {
            sqlx::raw_sql("set local row_security = off").execute(&mut self.connection).await?;
        }
        if Sighting::is_too_much(viewers, placed.len()) {
            return Ok(Read::Unseen("many identities"));
        }
        if viewers.is_empty() {
            return Ok(Read::Parts(writer.finish()));
        }
        if self.slow.get(&publication.id).is_some_and(|until| Instant::now() < *until) {
            return Ok(Read::Unseen("slow policies"));
        }
        let definition = described.definitions.0.get(&publication.feed).map(String::as_str).unwrap_or_default();
        // Policies run here: they get less time than our own statements.
        sqlx::raw_sql(AssertSqlSafe(format!("set local statement_timeout = '{SIGHT_TIMEOUT}'")))
            .execute(&mut self.connection)
            .await?;
        let seen = self.sighting.see(&mut self.connection, publication, definition, viewers, &placed, states).await;
        if seen.is_err() {
            self.slow.insert(publication.id, Instant::now() + SLOW_PAUSE);
        }
        let seen = seen?;
        Ok(Read::Parts(writer.finish_seen(&seen)))
    }

    /// Writes the rows of keys; how many states that makes, and, if asked for, where the rows are.
    async fn read_rows(
        &mut self,
        publication: &Publication,
        keys: &[String],
        with_places: bool,
        writer: &mut PartsWriter,
    ) -> Result<(Vec<Placed>, usize), sqlx::Error> {
        let places = if with_places { ", r.tableoid::text as part, r.ctid::text as place" } else { "" };
        let sql = format!(
            "select {} as key, {} as row{places} from {} as r where {}",
            publication.key_sql, publication.row_sql, publication.relation, publication.by_key_sql
        );
        let mut placed = Vec::new();
        let mut states = 0;
        for keys in keys.chunks(KEYS_AT_ONCE) {
            let mut gone: BTreeSet<&str> = keys.iter().map(String::as_str).collect();
            let mut rows = sqlx::query(AssertSqlSafe(sql.clone())).bind(keys).fetch(&mut self.connection);
            while let Some(row) = rows.try_next().await? {
                let key: &str = row.try_get("key")?;
                gone.remove(key);
                writer.push(key, Some(row.try_get("row")?));
                if with_places {
                    let (part, place) = (row.try_get("part")?, row.try_get("place")?);
                    placed.push(Placed { index: states, key: key.to_owned(), part, place });
                }
                states += 1;
            }
            for key in gone {
                writer.push(key, None);
                states += 1;
            }
        }
        Ok((placed, states as usize))
    }
}

/// What was read of a publication.
enum Read {
    Parts(Vec<String>),
    /// Who sees the rows was not worked out: why.
    Unseen(&'static str),
}

impl OpenCut<'_> {
    /// The session, inside the cut's transaction.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.reader.connection
    }

    /// What is published at the cut.
    pub fn described(&self) -> &Arc<Described> {
        &self.described
    }

    /// What the cut will say.
    pub fn states(&self) -> &[FeedStates] {
        &self.said.states
    }

    /// S(n).
    pub fn snapshot(&self) -> &PgSnapshot {
        &self.moment.snapshot
    }

    /// Draws the version and commits. Whoever appends the cut knows that the number is drawn for good.
    ///
    /// # Errors
    /// The database refuses.
    pub async fn close(self) -> Result<CutRead, ReadError> {
        let version = draw_version_and_commit(&mut self.reader.connection).await?;
        Ok(CutRead {
            cut: Cut { epoch: self.epoch, version, snapshot: self.moment.snapshot, as_of: self.moment.now_ms },
            states: self.said.states,
            catalogue: self.described.catalogue.id(),
            forget: self.said.forget,
            definitions: self.described.definitions.clone(),
            runs: self.said.runs,
            views_changed: self.said.views_changed,
        })
    }
}

/// The next version.
///
/// # Errors
/// The database refuses.
pub async fn draw_version(connection: &mut PgConnection) -> Result<Version, sqlx::Error> {
    let version: i64 = sqlx::query_scalar("select nextval('rowcast.version')").fetch_one(connection).await?;
    Ok(Version(version.unsigned_abs()))
}

/// The next version, and the end of the transaction, in one round trip.
async fn draw_version_and_commit(connection: &mut PgConnection) -> Result<Version, sqlx::Error> {
    let rows = sqlx::raw_sql("select nextval('rowcast.version'); commit").fetch_all(connection).await?;
    let version: i64 = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
    Ok(Version(version.unsigned_abs()))
}

/// One attempt after another at one cut: what was learnt stays.
struct Attempt<'a> {
    wanted: &'a Wanted,
    changed: BTreeSet<i32>,
    markers: BTreeMap<i32, &'static str>,
    views: BTreeMap<i32, Prior>,
}

enum Tried {
    /// Complete; the transaction is open.
    Open(Moment, Arc<Described>, Said),
    /// Nothing to say; the transaction is open.
    Quiet,
    /// More is known than before; the transaction is open.
    Again,
    /// A table is locked; no transaction is open.
    Locked,
    /// A table is not there under its name; no transaction is open.
    Gone,
}

/// The changed keys of a publication, or why they are not known.
enum Keys {
    Known(Vec<String>),
    Unknown(&'static str),
}

/// What is published, compared with what was delivered.
#[derive(Default)]
struct Compared {
    /// Feeds that were not there before, by publication.
    new: BTreeSet<i32>,
    /// The same feed by another definition: rows may have changed without a trigger.
    redefined: BTreeSet<i32>,
    forget: Vec<FeedKey>,
    /// Something was published or unpublished.
    feeds_differ: bool,
}

impl Compared {
    fn new(delivered: Option<&Definitions>, now: &Described) -> Self {
        let mut compared = Self::default();
        for publication in now.catalogue.publications.values() {
            let fingerprint = now.definitions.0.get(&publication.feed);
            match delivered.map(|delivered| delivered.0.get(&publication.feed)) {
                Some(None) => compared.new.insert(publication.id),
                Some(earlier) if earlier == fingerprint => false,
                // Another one, or nothing is known of what was delivered.
                Some(_) | None => compared.redefined.insert(publication.id),
            };
        }
        if let Some(delivered) = delivered {
            compared.forget =
                delivered.0.keys().filter(|feed| !now.definitions.0.contains_key(feed)).cloned().collect();
        }
        compared.feeds_differ = delivered.is_none() || !compared.new.is_empty() || !compared.forget.is_empty();
        compared
    }
}

/// What a run says to nodes: its difference; or a marker, where they have to begin with the base again.
fn states_of(view: &Publication, prior: &Prior, outcome: &Outcome) -> Option<FeedStates> {
    let feed = view.feed.clone();
    let marker =
        |why| FeedStates { feed: feed.clone(), parts: vec![States::marker_part(why)], keys: 0, marker: Some(why) };
    match outcome {
        Outcome::Difference(states) if states.is_empty() => None,
        Outcome::Difference(states) => {
            let mut writer = PartsWriter::new(&view.schema_id);
            for state in states {
                writer.push(state.key.as_str(), state.row.as_ref().map(|row| row.text()));
            }
            Some(FeedStates { feed, parts: writer.finish(), keys: states.len(), marker: None })
        }
        Outcome::Whole(_) => Some(marker("view")),
        Outcome::Trouble(trouble) if prior.trouble == Some(*trouble) => None,
        Outcome::Trouble(_) => Some(marker("broken view")),
    }
}

fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

fn xip_texts(snapshot: &PgSnapshot) -> Vec<String> {
    snapshot.xip().iter().map(u64::to_string).collect()
}
