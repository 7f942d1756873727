//! A database of one's own, on a Postgres that the tests of this process share: for tests that neither stop the server
//! nor depend on its settings. The server goes when the process does, by its watchdog.

use std::sync::atomic::{AtomicU32, Ordering};

use rowcast::config::DatabaseUrl;
use rowcast::demo::instance::{Postgres, PostgresOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::OnceCell;

static SERVER: OnceCell<Postgres> = OnceCell::const_new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// A fresh database with the `rowcast` schema.
pub struct Database {
    pub url: DatabaseUrl,
}

impl Database {
    pub async fn create() -> Self {
        let launch = async || Postgres::launch(PostgresOptions::for_tests("postgres")).await.expect("a Postgres");
        let server = SERVER.get_or_init(launch).await;
        let name = format!("test{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        run(&server.url(), &format!("create database {name}")).await;
        let database = Self { url: server.url_of(&name) };
        rowcast::app::migrate(&database.url).await.expect("migrations that apply");
        database
    }

    /// With a published table `items`, in it rows 1 to `rows`, each with a note of so many characters.
    pub async fn with_items(rows: u32, note_length: u32) -> Self {
        let database = Self::create().await;
        create_items(&database.url, rows, note_length).await;
        database
    }

    /// Runs statements that have to work.
    pub async fn run(&self, sql: &str) {
        run(&self.url, sql).await;
    }

    pub async fn connect(&self) -> PgConnection {
        connect(&self.url).await
    }
}

/// See [`Database::with_items`]; in any database with the `rowcast` schema.
pub async fn create_items(url: &DatabaseUrl, rows: u32, note_length: u32) {
    let create = format!(
        "create table items (id int primary key, note text not null);
         insert into items select id, rpad('note ' || id, {note_length}, '.') from generate_series(1, {rows}) id"
    );
    run(url, &create).await;
    run(url, "select rowcast.publish('items', policy => 'public')").await;
}

/// Runs statements that have to work, in one transaction.
pub async fn run(url: &DatabaseUrl, sql: &str) {
    let mut connection = connect(url).await;
    if let Err(error) = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await {
        panic!("{error}\n{sql}");
    }
    connection.close().await.expect("a connection that closes");
}

pub async fn connect(url: &DatabaseUrl) -> PgConnection {
    PgConnection::connect_with(&url.options()).await.expect("a connection to Postgres")
}
