//! Writers that do everything at once: overlapping and long transactions, key changes, deletes and inserts again, bulk
//! statements, TRUNCATE, ALTER TABLE. What fails (a deadlock, a duplicate, a lock) is rolled back: part of the load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::PgConnection;

use crate::harness::world::{attempt, run};

/// Writes until told to stop. Writers numbered below `ordinary` run transactions; the two others do what is rare.
pub async fn run_until_stopped(mut connection: PgConnection, number: u64, ordinary: u64, stop: Arc<AtomicBool>) {
    let connection = &mut connection;
    run(connection, "set deadlock_timeout = '10ms'; set lock_timeout = '300ms'; set synchronous_commit = off").await;
    let mut chance = StdRng::seed_from_u64(number);
    while !stop.load(Ordering::Relaxed) {
        let worked = match number {
            number if number < ordinary => transaction(connection, &mut chance).await,
            number if number == ordinary => rare(connection, &mut chance).await,
            _ => definition(connection, &mut chance).await,
        };
        if worked.is_err() {
            run(connection, "rollback").await;
        }
    }
}

async fn transaction(connection: &mut PgConnection, chance: &mut StdRng) -> Result<(), sqlx::Error> {
    attempt(connection, "begin").await?;
    // An id taken early: the order of ids is not that of commits.
    if chance.random_bool(0.4) {
        attempt(connection, "select pg_current_xact_id()").await?;
    }
    for _ in 0..chance.random_range(1..4) {
        attempt(connection, &statement(chance)).await?;
        if chance.random_bool(0.1) {
            pause(chance, 1..40).await;
        }
    }
    if chance.random_bool(0.04) {
        pause(chance, 100..400).await;
    }
    attempt(connection, if chance.random_bool(0.1) { "rollback" } else { "commit" }).await?;
    pause(chance, 1..15).await;
    Ok(())
}

fn statement(chance: &mut StdRng) -> String {
    let (id, other) = (chance.random_range(1..=200), chance.random_range(1..=200));
    match chance.random_range(0..12) {
        0..4 => format!("update item set v = v + 1 where id = {id}"),
        4 => format!("update item set note = note || 'y' where id between {id} and {}", id + 5),
        5 => format!("delete from item where id = {id}"),
        6 => format!("delete from item where id = {id}; insert into item values ({id}, {other}, 'again')"),
        7 => format!("update item set id = {id} where id = {other}"),
        8 => format!(
            "insert into item select i, {other}, 'new' from generate_series({id}, {}) i on conflict (id) do update set v = 0",
            id + 3
        ),
        9 => format!("savepoint s; update item set v = -1 where id = {id}; rollback to savepoint s"),
        10 => format!("update changing set v = v + 1 where id % 20 = {}", id % 20),
        _ => format!("insert into changing (id) values ({}) on conflict (id) do update set v = 7", id % 110),
    }
}

/// What happens seldom and moves much.
async fn rare(connection: &mut PgConnection, chance: &mut StdRng) -> Result<(), sqlx::Error> {
    let sql = match chance.random_range(0..6) {
        0 => "update item set v = v + 1",
        1 => "update changing set v = v + 1",
        2 => "begin; truncate item; insert into item select i, i, 'refilled' from generate_series(1, 200) i; commit",
        3 => "begin; truncate changing; insert into changing (id) select generate_series(1, 100); commit",
        4 => "update changing set v = v + 1; update item set v = v + 1",
        _ => "begin; truncate item; rollback",
    };
    attempt(connection, sql).await?;
    pause(chance, 100..400).await;
    Ok(())
}

/// Definitions that change while everything is live.
async fn definition(connection: &mut PgConnection, chance: &mut StdRng) -> Result<(), sqlx::Error> {
    let sql = match chance.random_range(0..5) {
        0 => "alter table changing add column if not exists extra int default 5",
        1 => "alter table changing drop column if exists extra",
        2 => "alter table changing alter column v type bigint",
        3 => "alter table changing alter column v type int",
        _ => "alter table item alter column note set default 'z'",
    };
    attempt(connection, sql).await?;
    pause(chance, 200..800).await;
    Ok(())
}

async fn pause(chance: &mut StdRng, ms: std::ops::Range<u64>) {
    tokio::time::sleep(Duration::from_millis(chance.random_range(ms))).await;
}
