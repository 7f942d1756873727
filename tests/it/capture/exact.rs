//! Capture is exact: under everything writers do at once, the mirror equals the tables after every cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::PgConnection;

use super::mirror::Mirror;
use crate::harness::postgres::{PrivatePostgres, attempt};

const CHANGES: u64 = 20_000;
const CUTS: usize = 80;
const WRITERS: u64 = 9;

const SCHEMA: &str = "
    create table account (id int primary key, amount bigint not null, note text);
    create table owner (id int primary key, name text);
    create table pet (id int primary key, owner int references owner on delete cascade on update cascade, name text);
    create table visit (id bigint not null, at date not null, what text, primary key (id, at)) partition by range (id);
    create table visit_1 partition of visit for values from (0) to (100);
    create table visit_2 partition of visit for values from (100) to (200) partition by range (at);
    create table visit_2a partition of visit_2 for values from ('2020-01-01') to ('2021-01-01');
    create table visit_2b partition of visit_2 default;
    create table dish (id uuid primary key, raw int, cooked int);
    create table bulk (id int primary key, v int);
    create table changing (id int primary key, v int);
    create function cook() returns trigger language plpgsql as $$
    begin
        update dish set cooked = new.raw * 2 where id = new.id and cooked is distinct from new.raw * 2;
        return null;
    end $$;
    create trigger aa_cook after insert or update on dish for each row execute function cook();
    insert into account select i, i, repeat('x', i) from generate_series(1, 60) i;
    insert into owner select i, 'o' || i from generate_series(1, 20) i;
    insert into pet select i, i % 20 + 1, 'p' || i from generate_series(1, 60) i;
    insert into visit select i, '2020-06-01', 'v' from generate_series(1, 199, 3) i;
    insert into dish select gen_random_uuid(), i from generate_series(1, 20) i;
    insert into bulk select i, 0 from generate_series(1, 50000) i;
    insert into changing select i, 0 from generate_series(1, 50) i;
    select rowcast.publish('account', 'public');
    select rowcast.publish('account', 'public', name => 'amounts', columns => '{amount}');
    select rowcast.publish('owner', 'public');
    select rowcast.publish('pet', 'public');
    select rowcast.publish('visit', 'public');
    select rowcast.publish('dish', 'public');
    select rowcast.publish('bulk', 'public');
    select rowcast.publish('changing', 'public', columns => '{*}');
";

#[tokio::test(flavor = "multi_thread")]
async fn after_every_cut_the_mirror_equals_the_tables() {
    let postgres = PrivatePostgres::start().await;
    postgres.run(SCHEMA).await;
    let mut mirror = Mirror::new(&postgres).await;

    let stop = Arc::new(AtomicBool::new(false));
    let changes = Arc::new(AtomicU64::new(0));
    let mut writers = Vec::new();
    for number in 0..WRITERS + 2 {
        let mut connection = postgres.connect().await;
        let (stop, changes) = (stop.clone(), changes.clone());
        writers.push(tokio::spawn(async move {
            attempt(&mut connection, "set deadlock_timeout = '5ms'; set synchronous_commit = off").await.expect("set");
            let mut chance = StdRng::seed_from_u64(number);
            while !stop.load(Ordering::Relaxed) {
                match number {
                    WRITERS => rare_statement(&mut connection, &mut chance).await,
                    10.. => definition(&mut connection, &mut chance).await,
                    _ => drop(changes.fetch_add(transaction(&mut connection, &mut chance).await, Ordering::Relaxed)),
                }
            }
        }));
    }

    // Writers take another way while a leader is awake.
    let mut connection = postgres.connect().await;
    let stopped = stop.clone();
    writers.push(tokio::spawn(async move {
        for call in ["pg_advisory_lock", "pg_advisory_unlock"].iter().cycle() {
            attempt(&mut connection, &format!("select {call}(1919907683, 2)")).await.expect("a call");
            tokio::time::sleep(Duration::from_millis(20)).await;
            if stopped.load(Ordering::Relaxed) {
                return;
            }
        }
    }));

    let started = Instant::now();
    while changes.load(Ordering::Relaxed) < CHANGES || mirror.cuts < CUTS || started.elapsed() < Duration::from_secs(12)
    {
        assert!(started.elapsed() < Duration::from_secs(150), "too slow: {} cuts", mirror.cuts);
        if !mirror.step().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("a writer that ends");
    }
    while mirror.step().await {}
    println!(
        "{} changes, {} cuts, {} states, {} comparisons, {} markers, 0 differences",
        changes.load(Ordering::Relaxed),
        mirror.cuts,
        mirror.states,
        mirror.comparisons,
        mirror.markers.len()
    );
}

/// A transaction of a few statements, in every way it can run and end; how many rows it changed.
async fn transaction(connection: &mut PgConnection, chance: &mut StdRng) -> u64 {
    let mut rows = 0;
    let worked = async {
        attempt(connection, "begin").await?;
        // An id taken early: the order of ids is not that of commits.
        if chance.random_bool(0.4) {
            attempt(connection, "select pg_current_xact_id()").await?;
        }
        for _ in 0..chance.random_range(1..5) {
            let savepoint = chance.random_bool(0.3);
            if savepoint {
                attempt(connection, "savepoint s").await?;
            }
            rows += attempt(connection, &statement(chance)).await?;
            if savepoint && chance.random_bool(0.4) {
                attempt(connection, "rollback to savepoint s").await?;
            }
            if chance.random_bool(0.03) {
                tokio::time::sleep(Duration::from_millis(chance.random_range(1..80))).await;
            }
        }
        attempt(connection, if chance.random_bool(0.1) { "rollback" } else { "commit" }).await
    }
    .await;
    if worked.is_err() {
        // A deadlock, a duplicate, a row whose parent went: all part of the load.
        attempt(connection, "rollback").await.expect("a connection that works");
        return 0;
    }
    rows
}

fn statement(chance: &mut StdRng) -> String {
    let (id, other) = (chance.random_range(1..80), chance.random_range(1..80));
    let leaf = chance.random_range(0..100);
    match chance.random_range(0..21) {
        0..3 => format!("update account set amount = amount + 1 where id = {id}"),
        3 => format!("update account set note = note || 'y' where id between {id} and {}", id + 9),
        4 => format!("delete from account where id = {id}"),
        5 => format!("delete from account where id = {id}; insert into account values ({id}, {other}, 'again')"),
        6 => format!(
            "insert into account values ({id}, 1, null), ({other}, 2, null) on conflict (id) do update set amount = 7"
        ),
        7 => format!("update account set id = {id} where id = {other}"),
        8 => format!(
            "merge into account a using (values ({id}, 5), ({other}, 6)) v (id, amount) on a.id = v.id \
             when matched and a.amount > 50 then delete when matched then update set amount = v.amount \
             when not matched then insert values (v.id, v.amount, 'merged')"
        ),
        9 => format!(
            "with gone as (delete from account where id = {id} returning *) \
                      insert into account select id + 100, amount, note from gone on conflict do nothing"
        ),
        10 => format!("update owner set id = {} where id = {}", id % 25, other % 25),
        11 => format!("delete from owner where id = {}; insert into owner values ({0}, 'new')", id % 25),
        12 => format!("insert into pet values ({id}, (select id from owner limit 1), 'p') on conflict (id) do nothing"),
        13 => format!(
            "insert into visit values ({}, date '2020-06-01' + {other} * 9, 'w') on conflict do nothing",
            id * 2
        ),
        14 => format!("update visit set id = {}, what = 'moved' where id = {leaf}", other * 2),
        15 => {
            format!("insert into visit_1 values ({leaf}, '2020-01-{:02}', 'leaf') on conflict do nothing", id % 28 + 1)
        }
        16 => format!("delete from visit_2b where id = {}", 100 + leaf),
        17 => "insert into dish values (gen_random_uuid(), 3)".into(),
        18 => format!("update dish set raw = {id} where raw % 7 = {}", other % 7),
        19 => "delete from dish where id = (select id from dish limit 1)".into(),
        _ => format!(
            "update changing set v = v + 1 where id = {}; insert into changing (id) values ({other}) \
                      on conflict do nothing",
            id % 50
        ),
    }
}

/// What happens seldom and moves much.
async fn rare_statement(connection: &mut PgConnection, chance: &mut StdRng) {
    let sql = match chance.random_range(0..8) {
        0 => "update bulk set v = v + 1".into(),
        1 => "begin; truncate bulk; insert into bulk select i, 1 from generate_series(1, 50000) i; commit".into(),
        2 => "begin; truncate changing; insert into changing (id) select generate_series(1, 50); commit".into(),
        3 => "begin; truncate visit_1; rollback".into(),
        4 => "truncate visit_1".into(),
        5 => format!("update bulk set v = 3 where id <= {}", chance.random_range(1..9_000)),
        6 => format!(
            "begin; update bulk set v = 4 where id = {}; select pg_sleep(0.3); commit",
            chance.random_range(1..50)
        ),
        _ => {
            let mut copy = connection.copy_in_raw("copy account from stdin").await.expect("copy");
            let first = chance.random_range(200..100_000);
            let lines: String = (first..first + 5).map(|id| format!("{id}\t1\tcopied\n")).collect();
            copy.send(lines.into_bytes()).await.expect("copy");
            let _ = copy.finish().await;
            "delete from account where id > 200".into()
        }
    };
    if attempt(connection, &sql).await.is_err() {
        attempt(connection, "rollback").await.expect("a connection that works");
    }
    tokio::time::sleep(Duration::from_millis(chance.random_range(50..400))).await;
}

/// Definitions that change while everything is live; two tables in one transaction among them.
async fn definition(connection: &mut PgConnection, chance: &mut StdRng) {
    let number: u32 = chance.random_range(0..1_000_000);
    let sql = match chance.random_range(0..8) {
        0 => format!("alter table changing add column c{number} int default 5"),
        1 => format!("alter table changing add column c{number} float default random()"),
        2 => "alter table changing alter v type bigint".into(),
        3 => "alter table changing alter v type int".into(),
        4 => "begin; alter table account alter note set statistics 10; alter table pet alter name set statistics 10; commit"
            .into(),
        5 => "begin; alter table pet alter name type varchar; alter table account alter note type varchar; commit".into(),
        6 => "vacuum full account".into(),
        _ => "begin; lock table changing; select pg_sleep(0.2); commit".into(),
    };
    if attempt(connection, &format!("set lock_timeout = '2s'; {sql}")).await.is_err() {
        let _ = attempt(connection, "rollback").await;
        let _ = attempt(connection, &sql).await;
        attempt(connection, "rollback").await.expect("a connection that works");
    }
    tokio::time::sleep(Duration::from_millis(chance.random_range(100..500))).await;
}
