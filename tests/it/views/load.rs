//! Views under load: exact at every step that a client sees, also when the leader dies or Redis loses everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sqlx::PgConnection;
use tokio::task::JoinHandle;

use super::{SHOP, SUMS, truth, watch};
use crate::harness::dash::{Dash, Table};
use crate::harness::node::Node;
use crate::harness::world::{World, attempt, run};
use crate::harness::{until, within};

/// Writers on `orders`, until they are told to stop.
struct Writers {
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl Writers {
    /// `pause`: between two transactions of one writer.
    async fn start(world: &World, count: u64, pause: Duration, transaction: Transaction) -> Self {
        let (stop, commits) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut tasks = Vec::new();
        for seed in 0..count {
            let connection = world.connect().await;
            tasks.push(tokio::spawn(write(connection, seed, pause, transaction, stop.clone(), commits.clone())));
        }
        Self { stop, commits, tasks }
    }

    fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            within("a writer ends", task).await.expect("a writer that nothing disturbs");
        }
        self.commits.load(Ordering::Relaxed)
    }
}

async fn write(
    mut connection: PgConnection,
    seed: u64,
    pause: Duration,
    transaction: Transaction,
    stop: Arc<AtomicBool>,
    commits: Arc<AtomicU64>,
) {
    let mut chance = StdRng::seed_from_u64(seed);
    let mut ticks = tokio::time::interval(pause);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let sql = transaction(&mut chance);
        if let Err(error) = attempt(&mut connection, &sql).await {
            panic!("a writer failed: {error}\n{sql}");
        }
        commits.fetch_add(1, Ordering::Relaxed);
    }
}

/// The text of a writer's next transaction.
type Transaction = fn(&mut StdRng) -> String;

const REGIONS: [&str; 4] = ["north", "south", "west", "east"];

/// Any change of one of few orders.
fn any_change(chance: &mut StdRng) -> String {
    let (id, amount) = (chance.random_range(1..=60), chance.random_range(1..100));
    let region = REGIONS[chance.random_range(0..4)];
    match chance.random_range(0..10) {
        0..6 => format!("update orders set total = total + {amount} where id = {id}"),
        6 => format!("update orders set region = '{region}' where id = {id}"),
        7 | 8 => format!("insert into orders values ({id}, '{region}', {amount}) on conflict do nothing"),
        _ => format!("delete from orders where id = {id}"),
    }
}

/// Orders of the large table.
const ORDERS: i32 = 100_000;

/// Moves amounts and orders from one region to another: neither all amounts nor all orders become more or fewer, unless a
/// transaction is seen in part.
fn transfer(chance: &mut StdRng) -> String {
    let (one, other, amount) =
        (chance.random_range(1..=ORDERS), chance.random_range(1..=ORDERS), chance.random_range(1..100));
    if chance.random_range(0..3) == 0 {
        return format!("update orders set region = '{}' where id = {one}", REGIONS[chance.random_range(0..4)]);
    }
    // In the order of the ids, so that no two wait for each other.
    let (low, high) = (one.min(other), one.max(other));
    format!(
        "begin; update orders set total = total - {amount} where id = {low};
         update orders set total = total + {amount} where id = {high}; commit"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_tables_and_views_sees_consistent_states_through_every_fault() {
    let world = World::start(SHOP).await;
    let mut nodes = [world.node().await, world.node().await];
    let leader = until("a leader", async || {
        for (number, node) in nodes.iter().enumerate() {
            if node.leads().await {
                return Some(number);
            }
        }
        None
    })
    .await;
    let other = 1 - leader;
    let (mut dash, handles) = Dash::open(nodes[other].address, &["sums", "orders", "bosses"]).await;
    let pair = [handles[0], handles[1]];
    dash.complete().await;
    let writers = Writers::start(&world, 3, Duration::from_millis(10), any_change).await;
    let mut steps = watch(&mut dash, pair, |_| writers.commits() > 200).await;

    // It comes back, here and on the other node, to the view too.
    for node in [leader, other] {
        dash.disconnect();
        let before = writers.commits();
        until("the load goes on", async || (writers.commits() > before + 20).then_some(())).await;
        dash.connect(nodes[node].address).await;
        dash.complete().await;
        let before = writers.commits();
        steps += watch(&mut dash, pair, |_| writers.commits() > before + 50).await;
    }
    assert!(dash.seen.resumed >= 3, "{:?}", dash.seen);

    nodes[leader].kill().await;
    let before = dash.version(pair[0]);
    steps += watch(&mut dash, pair, |dash| nodes_moved(dash, pair, before)).await;
    let mut redis = redis_of(&world);
    redis::cmd("FLUSHALL").exec(&mut redis).expect("an empty Redis");
    let before = dash.version(pair[0]);
    steps += watch(&mut dash, pair, |dash| nodes_moved(dash, pair, before)).await;

    let commits = writers.stop().await;
    let mut connection = world.connect().await;
    let sums = truth(&mut connection, SUMS, "region").await;
    let orders = truth(&mut connection, "select * from orders", "id").await;
    steps += watch(&mut dash, pair, |dash| dash.table(pair[0]) == sums && dash.table(pair[1]) == orders).await;
    println!("{commits} commits, {steps} steps of the view, {:?}", dash.seen);
    assert_eq!(dash.seen.gaps, 0);
}

/// The view has moved on well past a version.
fn nodes_moved(
    dash: &Dash,
    pair: [rowcast::cli::client::Handle; 2],
    before: Option<rowcast::version::Version>,
) -> bool {
    pair.iter().all(|&handle| dash.version(handle).zip(before).is_some_and(|(now, before)| now.0 > before.0 + 30))
}

fn redis_of(world: &World) -> redis::Connection {
    redis::Client::open(world.redis.url().expose()).and_then(|client| client.get_connection()).expect("a connection")
}

/// The figure: 100,000 orders, 500 commits a second.
#[tokio::test(flavor = "multi_thread")]
async fn a_view_of_a_hundred_thousand_orders_stays_exact_under_five_hundred_commits_a_second() {
    let world = World::start(&format!(
        "create table orders (id int primary key, region text not null, total int not null);
         insert into orders select i, (array['north', 'south', 'west', 'east'])[1 + i % 4], i % 1000
         from generate_series(1, {ORDERS}) i;
         create view sums as select region, count(*) as orders, sum(total) as total from orders group by region;
         select rowcast.publish('sums', 'public', key => '{{region}}')"
    ))
    .await;
    let mut connection = world.connect().await;
    // A statement to begin with, so that tables are analysed.
    run(&mut connection, "analyze orders").await;
    let node = world.node().await;
    let (mut dash, handles) = Dash::open(node.address, &["sums"]).await;
    dash.complete().await;
    let (cuts, runs) = (node.metric("rowcast_cuts_total").await, view_runs(&node).await);
    let began = Instant::now();
    let writers = Writers::start(&world, 6, Duration::from_millis(11), transfer).await;
    let mut moved = 0;
    let mut last = dash.table(handles[0]);
    let whole = whole_of(&last);
    while began.elapsed() < Duration::from_secs(8) {
        within("a frame", dash.next()).await.expect("a connection");
        let now = dash.table(handles[0]);
        moved += usize::from(now != last);
        assert_eq!(whole_of(&now), whole, "no transaction is seen in part: {now:?}");
        last = now;
    }
    let seconds = began.elapsed().as_secs_f64();
    let (cuts, runs) = (node.metric("rowcast_cuts_total").await - cuts, view_runs(&node).await - runs);
    let commits = writers.stop().await;
    let expected = truth(&mut connection, SUMS, "region").await;
    dash.until("exact at the end", |dash| dash.table(handles[0]) == expected).await;
    println!(
        "{:.0} commits/s, {:.1} cuts/s, {:.1} runs/s, {:.1} steps/s",
        commits as f64 / seconds,
        cuts / seconds,
        runs / seconds,
        moved as f64 / seconds
    );
    assert!(moved as f64 / seconds > 1.0, "the client moves on while it is written");
    assert_eq!((dash.seen.resets, dash.seen.gaps), (0, 0));
}

/// All orders and all amounts of what a client sees.
fn whole_of(sums: &Table) -> (i64, i64) {
    let number = |row: &serde_json::Value, name: &str| -> i64 {
        row[name].as_str().expect("an int8").parse().expect("a number")
    };
    sums.values().fold((0, 0), |(orders, total), row| {
        let row: serde_json::Value = serde_json::from_str(row).expect("JSON");
        (orders + number(&row, "orders"), total + number(&row, "total"))
    })
}

async fn view_runs(node: &Node) -> f64 {
    node.metric("rowcast_view_seconds_count").await
}
