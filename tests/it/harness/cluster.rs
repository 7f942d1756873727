//! A Postgres and a Redis of one's own with three published tables, for nodes that are to be hurt; and the truth to
//! compare viewers with.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rowcast::config::{DatabaseUrl, RedisUrl};
use rowcast::demo::instance::{Postgres, PostgresOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use super::dash::Table;
use super::load::{ACCOUNTS, BALANCE, ITEMS};
use super::node::Node;
use super::redis::PrivateRedis;
use super::viewer::Viewer;
use super::{until, within};

/// What viewers subscribe to, `items` first.
pub const CHANNELS: [&str; 3] = ["items", "accounts", "vaults"];

/// Invariant 1: when writes and faults stop, everybody is up to date within this.
pub const CONVERGENCE_MAX: Duration = Duration::from_secs(5);

/// See the module.
pub struct Cluster {
    pub postgres: Postgres,
    pub redis: PrivateRedis,
    /// Rows written by [`Cluster::heals`].
    marks: i32,
}

impl Cluster {
    pub async fn start() -> Self {
        let postgres = Postgres::launch(PostgresOptions::for_tests("postgres")).await.expect("a Postgres");
        rowcast::app::migrate(&postgres.url()).await.expect("migrations that apply");
        let redis = tokio::task::spawn_blocking(PrivateRedis::start).await.expect("a Redis");
        let cluster = Self { postgres, redis, marks: 0 };
        cluster
            .run(&format!(
                "create sequence ticks;
                 create table items (id int primary key, n bigint not null, note text not null);
                 create table accounts (id int primary key, balance bigint not null);
                 create table vaults (id int primary key, balance bigint not null);
                 insert into items select id, nextval('ticks'), 'first' from generate_series(0, {ITEMS} - 1) id;
                 insert into accounts select id, {BALANCE} from generate_series(0, {ACCOUNTS} - 1) id;
                 insert into vaults select * from accounts;
                 select rowcast.publish(name::regclass, policy => 'public')
                 from unnest('{{items,accounts,vaults}}'::text[]) name"
            ))
            .await;
        cluster
    }

    pub fn database(&self) -> DatabaseUrl {
        self.postgres.url()
    }

    pub fn redis_url(&self) -> RedisUrl {
        self.redis.address().parse().expect("the address of a private Redis")
    }

    /// A node that is ready.
    pub async fn node(&self) -> Node {
        self.node_with(&[]).await
    }

    /// The same, with further environment variables.
    pub async fn node_with(&self, environment: &[(&str, &str)]) -> Node {
        let node = Node::start_with(&self.database(), Some(&self.redis_url()), environment).await;
        node.ready().await;
        node
    }

    /// Two nodes: the one that leads, and the other.
    pub async fn leader_and_other(&self) -> (Node, Node) {
        let leader = self.node().await;
        until("the first node leads", async || leader.leads().await.then_some(())).await;
        (leader, self.node().await)
    }

    /// Runs statements that have to work, in one transaction.
    pub async fn run(&self, sql: &str) {
        run(&self.database(), sql).await;
    }

    /// The rows of the published tables in one snapshot, as viewers have them.
    pub async fn truth(&self) -> Vec<Table> {
        let mut connection = connect(&self.database()).await;
        let mut transaction = connection.begin().await.expect("a transaction");
        run_in(&mut transaction, "set transaction isolation level repeatable read; set time zone 'UTC'").await;
        let mut tables = Vec::new();
        for name in CHANNELS {
            let described = sqlx::query("select relation, columns::text, key_sql, row_sql from rowcast.describe($1)")
                .bind(name)
                .fetch_one(&mut *transaction)
                .await
                .expect("a publication");
            let [relation, columns, key_sql, row_sql] = std::array::from_fn(|index| described.get::<String, _>(index));
            let columns: Vec<serde_json::Value> = serde_json::from_str(&columns).expect("columns");
            let sql = format!("select {key_sql}, {row_sql} from {relation} as r");
            let rows: Vec<(String, String)> =
                sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut *transaction).await.expect("rows");
            tables.push(rows.into_iter().map(|(key, row)| (key, object(&columns, &row))).collect());
        }
        tables
    }

    /// Waits until viewers have what was committed after a fault; how long it took.
    pub async fn heals(&mut self, viewers: &[Viewer]) -> Duration {
        let began = Instant::now();
        self.marks += 1;
        let id = 1_000_000 + self.marks;
        self.run(&format!("insert into items values ({id}, nextval('ticks'), 'after the fault')")).await;
        for viewer in viewers {
            viewer.sees(&format!("[{id}]"), true).await;
        }
        let took = began.elapsed();
        assert!(took <= CONVERGENCE_MAX, "what was committed after the fault took {took:?}");
        took
    }

    /// Waits until every viewer has exactly the rows of the tables, which nobody changes any more; how long it took.
    pub async fn converges(&self, viewers: &[Viewer]) -> Duration {
        let began = Instant::now();
        let truth = self.truth().await;
        for (number, viewer) in viewers.iter().enumerate() {
            loop {
                let glance = viewer.glance();
                let tables = viewer.tables().await;
                if glance.complete && tables == truth {
                    break;
                }
                if began.elapsed() > CONVERGENCE_MAX {
                    panic!("viewer {number} has not converged\n{glance:?}\n{}", difference(&truth, &tables));
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        began.elapsed()
    }
}

/// Opens viewers of every table, and waits until they have their rows.
pub async fn viewers(count: usize, nodes: &[SocketAddr]) -> Vec<Viewer> {
    let viewers: Vec<Viewer> = (0..count).map(|_| Viewer::begin(nodes, &CHANNELS)).collect();
    for viewer in &viewers {
        viewer.wait("a viewer has its rows", |glance| glance.complete).await;
    }
    viewers
}

/// Runs statements that have to work, in one transaction.
pub async fn run(database: &DatabaseUrl, sql: &str) {
    let mut connection = connect(database).await;
    run_in(&mut connection, sql).await;
    connection.close().await.expect("a connection that closes");
}

pub async fn connect(database: &DatabaseUrl) -> PgConnection {
    let options = database.options();
    within("Postgres takes a connection", PgConnection::connect_with(&options)).await.expect("a connection to Postgres")
}

async fn run_in(connection: &mut PgConnection, sql: &str) {
    if let Err(error) = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await {
        panic!("{error}\n{sql}");
    }
}

/// A row's values, which the database gives as an array, as [`super::dash::Dash::table`] shows them.
fn object(columns: &[serde_json::Value], row: &str) -> String {
    let values: Vec<serde_json::Value> = serde_json::from_str(row).expect("a row is an array");
    let name = |column: &serde_json::Value| column["name"].as_str().expect("a column has a name").to_owned();
    serde_json::Value::Object(columns.iter().map(name).zip(values).collect()).to_string()
}

fn difference(truth: &[Table], tables: &[Table]) -> String {
    let mut text = String::new();
    for ((name, truth), table) in CHANNELS.iter().zip(truth).zip(tables) {
        for key in truth.keys().chain(table.keys()).collect::<std::collections::BTreeSet<_>>() {
            if truth.get(key) != table.get(key) {
                text += &format!("{name} {key}: is {:?}, the viewer has {:?}\n", truth.get(key), table.get(key));
            }
        }
    }
    text
}
