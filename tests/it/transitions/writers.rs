//! Writers that move rows between the channels of the test: in and out of filters, up and down in windows, and away in
//! sweeps that leave windows with too few rows. What fails (a deadlock, a duplicate) is rolled back: part of the load.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::PgConnection;
use tokio::sync::Semaphore;

use crate::harness::world::{attempt, run};

/// Ids are from 1 to this.
const IDS: u32 = 320;

/// Writes a transaction for each permit, until there are no more.
pub async fn write_while_allowed(mut connection: PgConnection, number: u64, allowed: Arc<Semaphore>) {
    let connection = &mut connection;
    prepare(connection).await;
    let mut chance = StdRng::seed_from_u64(number);
    while let Ok(permit) = allowed.acquire().await {
        permit.forget();
        if transaction(connection, &mut chance).await.is_err() {
            run(connection, "rollback").await;
        }
    }
}

/// Takes many rows away at once for each permit, or brings them back.
pub async fn sweep_while_allowed(mut connection: PgConnection, allowed: Arc<Semaphore>) {
    let connection = &mut connection;
    prepare(connection).await;
    let mut chance = StdRng::seed_from_u64(100);
    while let Ok(permit) = allowed.acquire().await {
        permit.forget();
        // What fails is tried again when it is allowed again.
        let _ = attempt(connection, &sweep(&mut chance)).await;
    }
}

async fn prepare(connection: &mut PgConnection) {
    run(connection, "set deadlock_timeout = '10ms'; set lock_timeout = '300ms'; set synchronous_commit = off").await;
}

async fn transaction(connection: &mut PgConnection, chance: &mut StdRng) -> Result<(), sqlx::Error> {
    attempt(connection, "begin").await?;
    for _ in 0..chance.random_range(1..4) {
        attempt(connection, &statement(chance)).await?;
        if chance.random_bool(0.1) {
            pause(chance, 1..40).await;
        }
    }
    attempt(connection, if chance.random_bool(0.1) { "rollback" } else { "commit" }).await?;
    Ok(())
}

fn statement(chance: &mut StdRng) -> String {
    let (id, other) = (chance.random_range(1..=IDS), chance.random_range(1..=IDS));
    let (v, tenant) = (chance.random_range(0..90), chance.random_range(0..8));
    let status = if chance.random_bool(0.5) { "open" } else { "paid" };
    match chance.random_range(0..14) {
        0..3 => format!("update item set v = {v} where id = {id}"),
        3 => format!("update item set v = null where id = {id}"),
        4 => format!("update item set v = 90 + {v} where id between {id} and {}", id + 3),
        5..7 => format!("update item set status = '{status}' where id = {id}"),
        7 => format!("update item set tenant = {tenant} where id between {id} and {}", id + 2),
        8 => format!("update item set note = 'm' || {v} where id = {id}"),
        9 => format!("delete from item where id = {id}"),
        10 => format!("update item set id = {id} where id = {other}"),
        11 => format!("update item set v = {v}, status = '{status}', tenant = {tenant} where tenant = 3 and id < 60"),
        _ => format!(
            "insert into item values ({id}, {tenant}, '{status}', {v}, 'new') on conflict (id) do update set v = item.v + 1"
        ),
    }
}

/// Windows run low, and then out.
fn sweep(chance: &mut StdRng) -> String {
    let (rows, v) = (chance.random_range(30..110), chance.random_range(0..90));
    match chance.random_range(0..8) {
        0 => format!("delete from item where id in (select id from item order by v desc nulls first limit {rows})"),
        1 => format!("delete from item where id in (select id from item order by id limit {rows})"),
        2 => "update item set status = 'paid' where status = 'open'".to_owned(),
        3 => "update item set tenant = 4 where tenant = 3".to_owned(),
        4 => format!("update item set v = {v} where v > {v}"),
        _ => format!(
            "insert into item select i, i % 8, case i % 2 when 0 then 'open' else 'paid' end, (i * 7 + {v}) % 90, 'n' || i % 40
             from generate_series(1, {IDS}) i on conflict (id) do nothing"
        ),
    }
}

async fn pause(chance: &mut StdRng, ms: std::ops::Range<u64>) {
    tokio::time::sleep(Duration::from_millis(chance.random_range(ms))).await;
}
