//! No commit waits for the safety poll: neither those of writers that did not ring because the leader was awake when they
//! wrote and asleep when they committed, nor those around that moment.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rowcast::capture::install;
use rowcast::cli::client::{Change, Event};
use rowcast::config::DatabaseUrl;
use rowcast::demo::instance::{Postgres, PostgresOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::sync::mpsc;

use crate::harness::dash::Dash;
use crate::harness::node::Node;
use crate::harness::{until, within};

/// Databases, each with a leader of its own, side by side: going to sleep takes a second.
const DATABASES: u64 = 4;
/// How often each leader goes to sleep.
const ROUNDS: u64 = 5;
/// Writers that have written when it does, and commit later.
const STRAGGLERS: u64 = 3;
/// Commits are 40 ms apart on average while the leader falls asleep: too few to keep it awake.
const TRICKLE_MS: f64 = 40.0;

/// A commit that waits for the safety poll waits half a second on average.
const ALL_WITHIN: Duration = Duration::from_millis(500);
const NINE_OF_TEN_WITHIN: Duration = Duration::from_millis(200);

const IS_AWAKE: &str = "select exists (select from pg_locks where locktype = 'advisory' and classid = 1919907683 \
                        and objid = 2 and mode = 'ExclusiveLock' and database = (select oid from pg_database \
                        where datname = current_database()))";

#[tokio::test(flavor = "multi_thread")]
async fn no_commit_waits_for_the_safety_poll_while_the_leader_falls_asleep() {
    let postgres = Postgres::launch(PostgresOptions::for_tests("doorbell_0")).await.expect("a private Postgres");
    let mut connection = connect(&postgres.url()).await;
    for number in 1..DATABASES {
        run(&mut connection, &format!("create database doorbell_{number}")).await;
    }
    let databases =
        (0..DATABASES).map(|number| fall_asleep_often(postgres.url_of(&format!("doorbell_{number}")), number));
    let mut waits = join_all(databases).await.concat();
    waits.sort();
    let (middle, most, last) = (waits[waits.len() / 2], waits[waits.len() * 9 / 10], waits[waits.len() - 1]);
    println!("{} commits: median {middle:?}, nine of ten {most:?}, longest {last:?}", waits.len());
    assert!(last < ALL_WITHIN && most < NINE_OF_TEN_WITHIN, "nine of ten within {most:?}, the longest took {last:?}");
    assert!(!postgres.log_tail().contains("WARNING"), "{}", postgres.log_tail());
}

/// The rounds of one database; from just before each COMMIT until its row was on a dashboard.
async fn fall_asleep_often(url: DatabaseUrl, seed: u64) -> Vec<Duration> {
    let url = &url;
    install::migrate(&url.options()).await.expect("migrations that apply");
    let mut writer = connect(url).await;
    run(&mut writer, "create table a (id int primary key, v int); select rowcast.publish('a', 'public')").await;
    run(&mut writer, "insert into a values (0, 0)").await;
    let node = Node::start(url, None).await;
    node.ready().await;
    let (mut dash, _) = Dash::open(node.address, &["a"]).await;
    dash.complete().await;
    let (sender, mut arrivals) = mpsc::unbounded_channel();
    let dashboard = tokio::spawn(async move {
        while let Some(events) = dash.next().await {
            let at = Instant::now();
            let changes = events.into_iter().filter_map(|event| match event {
                Event::Changed { changes, .. } => Some(changes),
                _ => None,
            });
            for change in changes.flatten() {
                if let Change::Upsert { key, .. } = change {
                    let _ = sender.send((key.as_str().to_owned(), at));
                }
            }
        }
    });

    let mut stragglers = Vec::new();
    for _ in 0..STRAGGLERS {
        stragglers.push(connect(url).await);
    }
    let mut watcher = connect(url).await;
    let mut chance = StdRng::seed_from_u64(seed);
    let mut sent: HashMap<String, Instant> = HashMap::new();
    let mut waits = Vec::new();
    let mut next_id = 1;
    for _ in 0..ROUNDS {
        let burst = "do $$ begin for i in 1..60 loop update a set v = v + 1 where id = 0; commit; end loop; end $$";
        until("an awake leader", async || {
            run(&mut writer, burst).await;
            is_awake(&mut watcher).await.then_some(())
        })
        .await;
        let first = next_id;
        for straggler in &mut stragglers {
            run(straggler, &format!("begin; insert into a values ({next_id}, 0)")).await;
            next_id += 1;
        }
        within("a sleeping leader", async {
            while is_awake(&mut watcher).await {
                pause(&mut chance).await;
                commit(&mut writer, next_id, &format!("begin; insert into a values ({next_id}, 0)"), &mut sent).await;
                next_id += 1;
            }
        })
        .await;
        // The first at once; the others at any distance from the polls.
        for (id, straggler) in (first..).zip(&mut stragglers) {
            commit(straggler, id, "select", &mut sent).await;
            pause(&mut chance).await;
            pause(&mut chance).await;
        }
        within("every commit arrives", async {
            while !sent.is_empty() {
                let (key, at) = arrivals.recv().await.expect("a dashboard");
                waits.extend(sent.remove(&key).map(|sent| at - sent));
            }
        })
        .await;
    }
    dashboard.abort();
    waits
}

/// Commits a row, and notes when.
async fn commit(connection: &mut PgConnection, id: u64, begin: &str, sent: &mut HashMap<String, Instant>) {
    run(connection, begin).await;
    sent.insert(format!("[{id}]"), Instant::now());
    run(connection, "commit").await;
}

/// Random, as times between independent commits are.
async fn pause(chance: &mut StdRng) {
    let pause_ms = -chance.random_range(0.001..1.0_f64).ln() * TRICKLE_MS;
    tokio::time::sleep(Duration::from_secs_f64(pause_ms / 1_000.0)).await;
}

async fn is_awake(connection: &mut PgConnection) -> bool {
    sqlx::query_scalar(IS_AWAKE).fetch_one(connection).await.expect("a look at the locks")
}

async fn connect(url: &DatabaseUrl) -> PgConnection {
    PgConnection::connect_with(&url.options()).await.expect("a connection")
}

async fn run(connection: &mut PgConnection, sql: &str) {
    if let Err(error) = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await {
        panic!("{error}\n{sql}");
    }
}
