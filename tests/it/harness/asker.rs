//! Resolves channel texts and policies as a node does, and asks for their rows in memory and in Postgres.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use rowcast::capture::session;
use rowcast::config::DatabaseUrl;
use rowcast::entry::Row;
use rowcast::identity::{self, Claims, Identity, ResolvedPolicy, RlsSettings};
use rowcast::protocol::Refusal;
use rowcast::publication::Publication;
use rowcast::query::{Bound, ChannelRequest, Filter, Literal, Predicate, Query, Where, resolve};
use rowcast::snapshots::{SnapshotSettings, Snapshots};
use rowcast::store::Retention;
use rowcast::store::local::LocalStore;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Row as _};

/// One publication of a database, and its rows by their key text.
pub struct Asker {
    pub pool: PgPool,
    pub publication: Arc<Publication>,
    pub rows: Vec<(String, Row)>,
    snapshots: Snapshots,
    cast: HashMap<Literal, Result<Arc<str>, String>>,
}

impl Asker {
    pub async fn open(url: &DatabaseUrl, name: &str) -> Self {
        let options = session::options(&url.options());
        let pool = PgPoolOptions::new().max_connections(2).connect_with(options).await.expect("a pool");
        let settings = SnapshotSettings {
            rows_max: 1000,
            bytes_max: 1 << 20,
            checkpoint_ttl: Duration::from_secs(1),
            checkpoint_every: Duration::from_secs(1),
        };
        let store = Arc::new(LocalStore::new(Retention::default()));
        let snapshots = Snapshots::new(pool.clone(), store, "node".into(), settings);
        let catalogue = snapshots.load_catalogue().await.expect("a catalogue");
        let publication = catalogue.publications[name].clone();
        let Publication { key_sql, row_sql, relation, .. } = &*publication;
        let sql = format!("select {key_sql}, {row_sql} from {relation} as r");
        let read = sqlx::query(AssertSqlSafe(sql)).fetch_all(&pool).await.expect("rows");
        let rows = read.iter().map(|row| (row.get(0), Row::parse(row.get(1)).expect("a row"))).collect();
        Self { pool, publication, rows, snapshots, cast: HashMap::new() }
    }

    /// What a node makes of a channel text.
    pub async fn query(&mut self, text: &str) -> Result<Query, Refusal> {
        let request = ChannelRequest::parse(text)?;
        loop {
            match resolve(&request, &self.publication, |literal| self.cast.get(literal).cloned())? {
                Ok(query) => return Ok(query),
                Err(missing) => self.cast.extend(self.snapshots.cast(missing).await),
            }
        }
    }

    /// What a node makes of the publication's policy, for these claims.
    pub async fn policy(&mut self, claims: &serde_json::Value) -> Result<ResolvedPolicy, Refusal> {
        let all = claims.as_object().expect("claims").clone();
        let identity = Identity::Proven(Arc::new(Claims { all, ..Claims::default() }));
        loop {
            match identity::resolve(&identity, &self.publication, &RlsSettings::default(), |literal| {
                self.cast.get(literal).cloned()
            })? {
                Ok(policy) => return Ok(policy),
                Err(missing) => self.cast.extend(self.snapshots.cast(missing).await),
            }
        }
    }

    /// The keys of the rows for which a filter holds, by the SQL of snapshot queries.
    pub async fn by_filter(&self, filter: &Filter) -> BTreeSet<String> {
        let condition = Where::new([filter], &self.publication).expect("a condition");
        let Publication { key_sql, relation, .. } = &*self.publication;
        let sql = format!("select {key_sql} from {relation} as r where {}", condition.sql);
        let mut asked = sqlx::query_scalar(AssertSqlSafe(sql.clone())).persistent(false);
        for value in condition.values {
            asked = match value {
                Bound::Text(text) => asked.bind(text),
                Bound::Texts(texts) => asked.bind(texts),
            };
        }
        let keys: Vec<String> = asked.fetch_all(&self.pool).await.unwrap_or_else(|error| panic!("{error}\n{sql}"));
        keys.into_iter().collect()
    }

    /// Those of the rows in memory.
    pub fn in_memory(&self, filter: &Filter) -> BTreeSet<String> {
        let predicate = Predicate::new(filter, &self.publication.schema).expect("a predicate");
        self.rows.iter().filter(|(_, row)| predicate.holds(row)).map(|(key, _)| key.clone()).collect()
    }

    /// Keys that a query names.
    pub async fn keys(&self, sql: &str) -> BTreeSet<String> {
        let keys: Vec<String> = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_all(&self.pool)
            .await
            .unwrap_or_else(|error| panic!("{error}\n{sql}"));
        keys.into_iter().collect()
    }
}
