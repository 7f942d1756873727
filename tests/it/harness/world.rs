//! A private Postgres with the `rowcast` schema and a private Redis: what nodes stand on. Both end with it.

use rowcast::demo::instance::{Postgres, PostgresOptions, Redis};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::node::Node;

pub struct World {
    pub postgres: Postgres,
    pub redis: Redis,
}

impl World {
    /// Starts both, installs the schema, and runs what the test begins with.
    pub async fn start(sql: &str) -> Self {
        let postgres = Postgres::launch(PostgresOptions::for_tests("shop")).await.expect("a private Postgres");
        let redis = Redis::launch().await.expect("a private Redis");
        rowcast::capture::install::migrate(&postgres.url().options()).await.expect("migrations that apply");
        let world = Self { postgres, redis };
        world.run(sql).await;
        world
    }

    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect_with(&self.postgres.url().options()).await.expect("a connection")
    }

    /// Runs statements that have to work.
    pub async fn run(&self, sql: &str) {
        let mut connection = self.connect().await;
        run(&mut connection, sql).await;
    }

    /// A node on both.
    pub async fn node(&self) -> Node {
        Node::start(&self.postgres.url(), Some(&self.redis.url())).await
    }

    /// The same, with further environment variables.
    pub async fn node_with(&self, environment: &[(&str, &str)]) -> Node {
        Node::start_with(&self.postgres.url(), Some(&self.redis.url()), environment).await
    }
}

/// Runs statements that have to work.
pub async fn run(connection: &mut PgConnection, sql: &str) {
    if let Err(error) = attempt(connection, sql).await {
        panic!("{error}\n{sql}");
    }
}

/// Runs statements that may fail.
pub async fn attempt(connection: &mut PgConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.map(drop)
}
