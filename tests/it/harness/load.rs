//! A steady write load: upserts, deletes and transfers between two tables, by a few writers at once.
//!
//! Each writer has keys of its own in `items`, so that `n`, which comes from a sequence, only ever ascends for a key: a
//! dashboard that shows a lower one has gone back in time. Transfers leave the sum over both tables as it is. A writer
//! that cannot write tries again; what it was told is committed, it counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rand::Rng;
use rowcast::config::DatabaseUrl;
use sqlx::{Connection, PgConnection};
use tokio::task::JoinHandle;

/// Keys of `items` are below it.
pub const ITEMS: i32 = 200;
/// Keys of each of the tables of transfers are below it.
pub const ACCOUNTS: i32 = 20;
/// What each account begins with.
pub const BALANCE: i64 = 1_000;

const WRITERS: i32 = 3;

/// Between two transactions of a writer: at most 300 commits a second leave a busy machine time for the rest.
const PAUSE: Duration = Duration::from_millis(10);

/// Writers at work, until [`Load::stop`].
pub struct Load {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    writers: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(database: &DatabaseUrl) -> Self {
        let (stop, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writers = (0..WRITERS)
            .map(|writer| tokio::spawn(write(writer, database.clone(), stop.clone(), commits.clone())))
            .collect();
        Self { stop, commits, writers }
    }

    /// Transactions known to be committed.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Waits until so many more transactions are committed.
    pub async fn goes_on(&self, more: u64) {
        let goal = self.commits() + more;
        super::until("the load goes on", async || (self.commits() >= goal).then_some(())).await;
    }

    /// Ends the load; how many transactions it committed.
    pub async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            super::within("a writer stops", writer).await.expect("a writer that does not panic");
        }
        self.commits.load(Ordering::Relaxed)
    }
}

async fn write(writer: i32, database: DatabaseUrl, stop: Arc<AtomicBool>, commits: Arc<AtomicU64>) {
    let mut connection: Option<PgConnection> = None;
    while !stop.load(Ordering::Relaxed) {
        let patience = Duration::from_secs(5);
        let turn = tokio::time::timeout(patience, async {
            let mut open = match connection.take() {
                Some(open) => open,
                None => PgConnection::connect_with(&database.options()).await.ok()?,
            };
            transaction(&mut open, writer).await.ok()?;
            Some(open)
        });
        connection = turn.await.ok().flatten();
        if connection.is_some() {
            commits.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn transaction(connection: &mut PgConnection, writer: i32) -> Result<(), sqlx::Error> {
    let (kind, key, from, to, amount) = {
        let mut random = rand::rng();
        let key = random.random_range(0..ITEMS / WRITERS) * WRITERS + writer;
        let account = || rand::rng().random_range(0..ACCOUNTS);
        (random.random_range(0..10), key, account(), account(), random.random_range(1..50i64))
    };
    match kind {
        0..5 => {
            let upsert = "insert into items values ($1, nextval('ticks'), repeat('x', $1 % 40)) \
                          on conflict (id) do update set n = nextval('ticks')";
            sqlx::query(upsert).bind(key).execute(connection).await?;
        }
        5 => {
            sqlx::query("delete from items where id = $1").bind(key).execute(connection).await?;
        }
        // Now one way, now the other: a transaction is seen whole or not at all.
        _ => {
            let amount = if kind % 2 == 0 { amount } else { -amount };
            let mut transaction = connection.begin().await?;
            for (table, id, change) in [("accounts", from, -amount), ("vaults", to, amount)] {
                let update = format!("update {table} set balance = balance + $2 where id = $1");
                sqlx::query(sqlx::AssertSqlSafe(update)).bind(id).bind(change).execute(&mut *transaction).await?;
            }
            transaction.commit().await?;
        }
    }
    Ok(())
}
