//! Where a benchmark plays: private servers, a node, three tables of one shape, and the CPU that each process takes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;
use rowcast::capture::install;
use rowcast::demo::instance::{Postgres, PostgresOptions, Redis};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::cpu::{children, own};
use crate::harness::node::Node;

/// Rows of each table.
pub const ROWS: u32 = 50_000;

/// Of one shape, about 130 bytes a row, half-filled pages. No trigger; published; a trigger that only rings.
pub const TABLES: [&str; 3] = ["plain", "published", "notified"];

/// Everything that runs. Dropped, it ends.
pub struct Stage {
    pub node: Node,
    pub redis: Redis,
    pub postgres: Postgres,
}

/// CPU seconds (user and system) so far, by who took them.
#[derive(Clone, Debug)]
pub struct Cpu(pub BTreeMap<&'static str, f64>);

impl Stage {
    /// Starts everything and fills the tables.
    pub async fn set() -> anyhow::Result<Self> {
        let options = PostgresOptions::for_demo("bench")
            .with("max_connections", "100")
            .with("shared_buffers", "256MB")
            .with("max_wal_size", "8GB")
            .with("checkpoint_timeout", "1h")
            .with("autovacuum", "off");
        let postgres = Postgres::launch(options).await?;
        let redis = Redis::launch().await?;
        install::migrate(&postgres.url().options()).await?;
        let mut connection = PgConnection::connect_with(&postgres.url().options()).await?;
        let mut sql = String::from(
            "create function ring() returns trigger language plpgsql as \
             $$ begin perform pg_notify('bench', ''); return null; end $$;",
        );
        for table in TABLES {
            sql.push_str(&format!(
                "create table {table} (id int primary key, tenant int, status text, qty bigint, price numeric(10,2), \
                 updated timestamptz, note text) with (fillfactor = 50); \
                 insert into {table} select i, i % 100, 'open', 0, 9.90, now(), repeat('x', 60) \
                 from generate_series(1, {ROWS}) i;"
            ));
        }
        sql.push_str(
            "create trigger ring after insert or update or delete on notified for each statement \
             execute function ring(); select rowcast.publish('published', policy => 'public'); analyze;",
        );
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.context("filling the tables")?;
        let node = Node::start(&postgres.url(), Some(&redis.url())).await;
        node.ready().await;
        Ok(Self { node, redis, postgres })
    }

    pub async fn connect(&self) -> anyhow::Result<PgConnection> {
        Ok(PgConnection::connect_with(&self.postgres.url().options()).await?)
    }

    /// The machine and the versions, for the record.
    pub async fn describe(&self) -> anyhow::Result<String> {
        let mut connection = self.connect().await?;
        let postgres: String = sqlx::query_scalar("show server_version").fetch_one(&mut connection).await?;
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
        let redis = redis::Client::open(self.redis.url().expose())?;
        let info: String = redis::cmd("INFO").arg("server").query(&mut redis.get_connection()?)?;
        let redis = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or("unknown");
        let commit = std::process::Command::new("git").args(["describe", "--always", "--dirty"]).output();
        let commit = commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
        Ok(format!(
            "commit {commit}, PostgreSQL {postgres} (fsync on), Redis {redis}, {} x {}",
            std::thread::available_parallelism()?,
            cpu.trim_start_matches([':', ' ', '\t']),
        ))
    }

    /// Where `pgbench` connects: the socket in the server's directory.
    pub fn socket(&self) -> PathBuf {
        self.postgres.directory().to_owned()
    }

    /// CPU so far: of the node, of its sessions in Postgres, of Redis, of this process, and of what has ended: writers'
    /// sessions in Postgres and `pgbench`.
    pub async fn cpu(&self, connection: &mut PgConnection) -> anyhow::Result<Cpu> {
        let sessions: Vec<i32> =
            sqlx::query_scalar("select pid from pg_stat_activity where application_name like 'rowcast%'")
                .fetch_all(&mut *connection)
                .await?;
        let mut cpu = BTreeMap::new();
        cpu.insert("node", own(self.node.pid())?);
        cpu.insert("node in Postgres", sessions.iter().map(|&pid| own(pid.unsigned_abs()).unwrap_or(0.0)).sum());
        cpu.insert("Redis", own(self.redis.pid().context("Redis runs")?)?);
        cpu.insert("writers in Postgres", children(self.postgres.pid().context("Postgres runs")?)?);
        cpu.insert("pgbench", children(std::process::id())?);
        cpu.insert("dashboard", own(std::process::id())?);
        Ok(Cpu(cpu))
    }
}

impl Cpu {
    /// What was taken since an earlier look, in cores.
    pub fn cores_since(&self, before: &Self, seconds: f64) -> BTreeMap<&'static str, f64> {
        let rate = |name: &'static str, now: f64| (name, (now - before.0.get(name).unwrap_or(&0.0)) / seconds);
        self.0.iter().map(|(&name, &now)| rate(name, now)).collect()
    }
}
