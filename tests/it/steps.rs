//! One step across tables: amounts move between the rows of two published tables, and a client of both sees the same sum
//! after every step: while it keeps up, after it came back, while it catches up, and across a resync of one of the two.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rowcast::cli::client::{Event, Handle};
use sqlx::PgConnection;

use crate::harness::DEADLINE;
use crate::harness::content::Content;
use crate::harness::dash::Dash;
use crate::harness::world::{World, attempt, run};

/// `give` is resynced by a statement over all its rows; `take` gets the same statement row by row.
const SCHEMA: &str = "
    create table give (id int primary key, amount int not null, note text);
    create table take (id int primary key, amount int not null, note text);
    insert into give select i, 100, '' from generate_series(1, 300) i;
    insert into take select i, -100, '' from generate_series(1, 300) i;
    select rowcast.publish('give', 'public', bulk_rows => 100), rowcast.publish('take', 'public');
";

/// What clients saw.
#[derive(Clone, Copy, Debug, Default)]
struct Saw {
    sums: usize,
    resumed: usize,
    /// The longest way from one version told to the next.
    longest_jump: u64,
}

/// What the parts of the test tell each other.
#[derive(Default)]
struct Signals {
    /// Writers are to end.
    stop: AtomicBool,
    /// They have: the tables stay as they are.
    stopped: AtomicBool,
    /// How often a client has not read until it was far behind.
    dawdled: AtomicUsize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    KeepsUp,
    /// Drops its connection every now and then, and comes back to any node.
    ComesBack,
    /// Does not read for a while, behind a narrow window.
    Dawdles,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_two_tables_sees_the_same_sum_after_every_step() {
    let world = World::start(SCHEMA).await;
    let nodes = [world.node().await, world.node().await];
    let addresses = [nodes[0].address, nodes[1].address];
    let signals = Arc::new(Signals::default());
    let mut writers = Vec::new();
    for number in 0..4 {
        writers.push(tokio::spawn(write(world.connect().await, number, signals.clone())));
    }
    let mut clients = Vec::new();
    for (number, habit) in (0..).zip([Habit::KeepsUp, Habit::ComesBack, Habit::Dawdles].repeat(2)) {
        let database = world.connect().await;
        clients.push((habit, tokio::spawn(watch(number, habit, addresses, database, signals.clone()))));
    }
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(8) || signals.dawdled.load(Ordering::Relaxed) < 2 {
        assert!(started.elapsed() < Duration::from_secs(60), "{:?}", signals.dawdled);
        assert!(!clients.iter().any(|(_, client)| client.is_finished()), "a client has ended: see its panic");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    signals.stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.expect("a writer that ends");
    }
    signals.stopped.store(true, Ordering::Relaxed);
    let (mut resyncs, mut cuts) = (0.0, 0.0);
    for node in &nodes {
        cuts += node.metric("rowcast_cuts_total").await;
        resyncs += node.metric("rowcast_resyncs_total").await;
    }
    println!("{cuts} cuts, {resyncs} resyncs");
    assert!(resyncs >= 4.0, "{resyncs}");
    for (habit, client) in clients {
        let saw = client.await.expect("a client without complaints");
        println!("{habit:?}: {saw:?}");
        match habit {
            // It hardly ever stands still: the resyncs of one table take moments.
            Habit::KeepsUp => assert!(saw.sums as f64 > cuts / 4.0, "{saw:?} of {cuts} cuts"),
            Habit::ComesBack => assert!(saw.sums > 10 && saw.resumed > 4, "{saw:?}"),
            // More than the hub queues for a client: it was brought up to date by one difference.
            Habit::Dawdles => assert!(saw.longest_jump > 64, "{saw:?}"),
        }
    }
}

/// Moves amounts until told to stop.
async fn write(mut connection: PgConnection, number: u64, signals: Arc<Signals>) {
    let connection = &mut connection;
    run(connection, "set deadlock_timeout = '10ms'; set synchronous_commit = off").await;
    let mut chance = StdRng::seed_from_u64(number);
    while !signals.stop.load(Ordering::Relaxed) {
        let (from, to) = (chance.random_range(1..=296), chance.random_range(1..=296));
        let (amount, letter) = (chance.random_range(1..50), chance.random_range(97..122));
        let sql = if number == 0 {
            tokio::time::sleep(Duration::from_millis(chance.random_range(600..1_500))).await;
            "update give set amount = amount + 1; update take set amount = amount - 1".to_owned()
        } else {
            tokio::time::sleep(Duration::from_millis(chance.random_range(1..10))).await;
            format!(
                "update give set amount = amount - {amount}, note = repeat(chr({letter}), 1000) where id between {from} and {};
                 update take set amount = amount + {amount}, note = repeat(chr({letter}), 1000) where id between {to} and {}",
                from + 4,
                to + 4
            )
        };
        // Statements in one message are one transaction; a deadlock rolls all of it back.
        let _ = attempt(connection, &sql).await;
    }
}

/// Checks the sum after every frame, and at the end that both tables have arrived.
async fn watch(
    number: u64,
    habit: Habit,
    addresses: [SocketAddr; 2],
    mut database: PgConnection,
    signals: Arc<Signals>,
) -> Saw {
    let mut chance = StdRng::seed_from_u64(100 + number);
    let mut saw = Saw::default();
    let (mut dash, handles) = Dash::open(addresses[0], &["give", "take"]).await;
    if habit == Habit::Dawdles {
        dash.connect_narrowly(addresses[1]).await;
    }
    while !signals.stopped.load(Ordering::Relaxed) {
        let until = tokio::time::Instant::now() + Duration::from_millis(chance.random_range(200..1_200));
        while let Ok(()) = tokio::time::timeout_at(until, next(&mut dash, &handles, &mut saw)).await {}
        match habit {
            Habit::KeepsUp => {}
            Habit::ComesBack => {
                dash.disconnect();
                tokio::time::sleep(Duration::from_millis(chance.random_range(0..400))).await;
                dash.connect(addresses[chance.random_range(0..2)]).await;
            }
            Habit::Dawdles => {
                far_behind(&mut database, &signals).await;
                signals.dawdled.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
    let expected =
        [Content::of_publication(&mut database, "give").await, Content::of_publication(&mut database, "take").await];
    let contents = |dash: &Dash| [0, 1].map(|index| Content::of_client(&dash.client, handles[index]));
    let arrival = tokio::time::timeout(DEADLINE, async {
        while contents(&dash) != expected {
            next(&mut dash, &handles, &mut saw).await;
        }
    });
    if arrival.await.is_err() {
        let versions = [0, 1].map(|index| dash.version(handles[index]));
        panic!("{habit:?} at {versions:?} has {:?} instead of {expected:?}; {:?}", contents(&dash), dash.seen);
    }
    assert_eq!(dash.seen.gaps, 0);
    saw.resumed = dash.seen.resumed;
    saw
}

/// Waits until the tables have moved on by more versions than are queued for a client that does not read.
async fn far_behind(database: &mut PgConnection, signals: &Signals) {
    let drawn = "select last_value from rowcast.version";
    let begin: i64 = sqlx::query_scalar(drawn).fetch_one(&mut *database).await.expect("a version");
    while !signals.stopped.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now: i64 = sqlx::query_scalar(drawn).fetch_one(&mut *database).await.expect("a version");
        if now - begin > 160 {
            return;
        }
    }
}

/// Takes a frame in; where rows have moved, the sum is as ever.
async fn next(dash: &mut Dash, handles: &[Handle], saw: &mut Saw) {
    let before = dash.version(handles[0]);
    let events = dash.next().await.expect("nodes do not close connections");
    let moved = events.iter().any(|event| matches!(event, Event::Snapshot { .. } | Event::Changed { .. }));
    if !moved || !handles.iter().all(|&handle| dash.client.is_complete(handle)) {
        return;
    }
    let sum = |handle: Handle| -> i64 {
        let rows = dash.client.rows(handle).into_iter().flatten();
        rows.map(|(_, row)| row.value("amount").expect("an amount").parse::<i64>().expect("a number")).sum()
    };
    assert_eq!(sum(handles[0]) + sum(handles[1]), 0, "at {:?}: {events:?}", dash.version(handles[0]));
    saw.sums += 1;
    if let (Some(before), Some(now)) = (before, dash.version(handles[0])) {
        saw.longest_jump = saw.longest_jump.max(now.0 - before.0);
    }
}
