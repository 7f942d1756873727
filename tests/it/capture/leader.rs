//! The leader: what reaches the store, how soon, and what happens when it, the store or the database goes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rowcast::capture::views::ViewLimits;
use rowcast::capture::{catalogue, reader, slices};
use rowcast::entry::States;
use rowcast::publication::FeedKey;
use rowcast::relay::{Relay, RelayStatus, run};
use rowcast::store::local::LocalStore;
use rowcast::store::{Beat, Push, Retention, Store, Subscription};
use rowcast::version::{Cut, Version};
use sqlx::postgres::PgConnectOptions;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::harness::postgres::{PrivatePostgres, run as run_sql};
use crate::harness::{until, within};

const TABLE: &str = "create table a (id int primary key, v int); select rowcast.publish('a', 'public')";

/// A node's relay, running.
struct Running {
    stop: CancellationToken,
    task: JoinHandle<()>,
    status: watch::Receiver<RelayStatus>,
}

impl Running {
    fn start(database: PgConnectOptions, store: &Arc<dyn Store>) -> Self {
        let (sender, status) = watch::channel(RelayStatus::default());
        let relay = Relay {
            database,
            store: store.clone(),
            node: "test".into(),
            view_limits: ViewLimits::default(),
            status: sender,
        };
        let stop = CancellationToken::new();
        Self { task: tokio::spawn(run(relay, stop.clone())), stop, status }
    }

    async fn leads(&mut self) {
        within(
            "a leader",
            self.status.wait_for(|status| status.leader && status.polled.is_some() && status.error.is_none()),
        )
        .await
        .expect("a status");
    }

    async fn stop(self) {
        self.stop.cancel();
        within("the relay ends", self.task).await.expect("a relay that ends in order");
    }

    /// As if killed: nothing is given back in order.
    async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// What a node hears of the store.
struct Listener {
    store: Arc<dyn Store>,
    subscription: Subscription,
    filler: JoinHandle<()>,
}

impl Listener {
    fn new(store: &Arc<dyn Store>) -> Self {
        let (subscription, fill) = store.subscribe();
        Self { store: store.clone(), subscription, filler: tokio::spawn(fill) }
    }

    async fn beat(&mut self, what: &str, wanted: impl Fn(&Beat) -> bool) -> Beat {
        within(what, async {
            loop {
                match self.subscription.next().await.expect("a store") {
                    Push::Beat(beat) if wanted(&beat) => return beat,
                    _ => {}
                }
            }
        })
        .await
    }

    /// The next version that touches a publication, and what it says of it.
    async fn entry(&mut self, name: &str) -> (Cut, FeedKey, States) {
        let beat = self.beat(name, |beat| beat.touched.iter().any(|touched| &*touched.feed.name == name)).await;
        let feed = beat.touched.iter().find(|touched| &*touched.feed.name == name).expect("touched").feed.clone();
        let log = self.store.read_log(&feed, Version(0)).await.expect("a log");
        let entries = match log.entries {
            Some(entries) => entries,
            None => self.store.read_log(&feed, beat.base).await.expect("a log").entries.expect("entries"),
        };
        let entry = entries.iter().find(|entry| entry.version == beat.cut.version).expect("the entry");
        (beat.cut, feed, States::parse(&entry.states).expect("states"))
    }

    /// The next entry with rows that has this key; markers before it are passed over.
    async fn key(&mut self, name: &str, key: &str) -> Cut {
        loop {
            let (cut, _, states) = self.entry(name).await;
            if let States::Rows { states, .. } = states
                && states.iter().any(|state| state.key.as_str() == key)
            {
                return cut;
            }
        }
    }

    async fn marker(&mut self, name: &str) -> (Cut, String) {
        loop {
            if let (cut, _, States::Marker(why)) = self.entry(name).await {
                return (cut, why);
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.filler.abort();
    }
}

fn local() -> Arc<dyn Store> {
    Arc::new(LocalStore::new(Retention::default()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_in_the_store_at_once_and_so_is_a_new_publication() {
    let postgres = PrivatePostgres::start().await;
    postgres.run(TABLE).await;
    let store = local();
    let mut listener = Listener::new(&store);
    let mut relay = Running::start(postgres.options(), &store);
    assert_eq!(listener.marker("a").await.1, "new epoch");
    relay.leads().await;
    let mut writer = postgres.connect().await;
    let mut latencies = Vec::new();
    for number in 0..30 {
        run_sql(&mut writer, &format!("insert into a values ({number}, 1)")).await;
        let committed = Instant::now();
        listener.key("a", &format!("[{number}]")).await;
        latencies.push(committed.elapsed());
        // Not in step with the leader's own times.
        tokio::time::sleep(Duration::from_millis(7 * number % 60)).await;
    }
    latencies.sort();
    println!("commit to store: median {:?}, longest {:?}", latencies[15], latencies[29]);
    assert!(latencies[29] < Duration::from_millis(700), "a commit waited for the safety poll: {latencies:?}");

    run_sql(
        &mut writer,
        "create table b (id int primary key); insert into b values (1); \
                          select rowcast.publish('b', 'public')",
    )
    .await;
    let before = Instant::now();
    let beat = listener.beat("the new catalogue", |beat| beat.touched.is_empty() && beat.base < beat.cut.version).await;
    assert!(before.elapsed() < Duration::from_millis(700));
    run_sql(&mut writer, "insert into b values (2)").await;
    assert!(listener.key("b", "[2]").await.version > beat.cut.version);
    run_sql(&mut writer, "select rowcast.unpublish('b')").await;
    listener.beat("the catalogue without b", |later| later.catalogue != beat.catalogue).await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beats_come_every_second_and_versions_stand_still_when_nothing_happens() {
    let postgres = PrivatePostgres::start().await;
    postgres.run(TABLE).await;
    let store = local();
    let mut listener = Listener::new(&store);
    let relay = Running::start(postgres.options(), &store);
    let first = listener.beat("a beat", |beat| beat.base == beat.cut.version).await;
    let second = listener.beat("a second beat", |beat| beat.base == beat.cut.version).await;
    assert_eq!((first.cut.version, &first.catalogue), (second.cut.version, &second.catalogue));
    let apart = second.polled_at - first.polled_at;
    assert!((500..3_000).contains(&apart), "{apart} ms");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_straggler_that_did_not_ring_never_waits_for_the_safety_poll() {
    let postgres = PrivatePostgres::start().await;
    postgres.run(TABLE).await;
    let store = local();
    let mut listener = Listener::new(&store);
    let mut relay = Running::start(postgres.options(), &store);
    relay.leads().await;
    postgres.run("insert into a values (0, 0)").await;
    let mut writer = postgres.connect().await;
    let mut straggler = postgres.connect().await;
    let mut watcher = postgres.connect().await;
    let awake = "select exists (select from pg_locks where locktype = 'advisory' and classid = 1919907683 and objid = 2 \
                 and mode = 'ExclusiveLock')";
    for round in 0..4 {
        // Many commits wake the leader up; then one writer stays behind while it goes to sleep.
        let burst = "do $$ begin for i in 1..60 loop update a set v = v + 1 where id = 0; commit; end loop; end $$";
        until("an awake leader", async || {
            run_sql(&mut writer, burst).await;
            let is_awake: bool = sqlx::query_scalar(awake).fetch_one(&mut watcher).await.expect("locks");
            is_awake.then_some(())
        })
        .await;
        let id = -1 - round;
        run_sql(&mut straggler, &format!("begin; insert into a values ({id}, 0)")).await;
        until("a sleeping leader", async || {
            let is_awake: bool = sqlx::query_scalar(awake).fetch_one(&mut watcher).await.expect("locks");
            (!is_awake).then_some(())
        })
        .await;
        // At different distances from the safety poll.
        tokio::time::sleep(Duration::from_millis(130 * round as u64)).await;
        run_sql(&mut straggler, "commit").await;
        let committed = Instant::now();
        listener.key("a", &format!("[{id}]")).await;
        assert!(committed.elapsed() < Duration::from_millis(400), "round {round}: {:?}", committed.elapsed());
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_leader_goes_on_in_the_same_epoch_without_a_marker() {
    let postgres = PrivatePostgres::start().await;
    postgres.run(TABLE).await;
    let store = local();
    let mut listener = Listener::new(&store);
    let mut first = Running::start(postgres.options(), &store);
    first.leads().await;
    postgres.run("insert into a values (1)").await;
    let before = listener.key("a", "[1]").await;
    let mut second = Running::start(postgres.options(), &store);
    first.kill().await;
    postgres.run("insert into a values (2)").await;
    let (after, _, states) = listener.entry("a").await;
    assert!(matches!(states, States::Rows { states, .. } if states.len() == 1));
    assert_eq!(after.epoch, before.epoch);
    second.leads().await;

    // An ALTER while nobody led is told by the next leader.
    second.stop().await;
    postgres.run("alter table a add column t float default random(); insert into a values (3)").await;
    let third = Running::start(postgres.options(), &store);
    assert_eq!(listener.marker("a").await.1, "definition");
    third.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_store_is_filled_from_the_acknowledged_cut() {
    let postgres = PrivatePostgres::start().await;
    postgres.run(TABLE).await;
    let store = local();
    let mut listener = Listener::new(&store);
    let mut relay = Running::start(postgres.options(), &store);
    relay.leads().await;
    postgres.run("insert into a values (1)").await;
    let cut = listener.key("a", "[1]").await;
    let mut connection = postgres.connect().await;
    until("an acknowledgement", async || {
        let delivered = slices::delivered(&mut connection).await.expect("a state");
        delivered.acknowledged.filter(|acknowledged| acknowledged.version >= cut.version)
    })
    .await;
    relay.stop().await;
    postgres.run("insert into a values (2)").await;
    let empty = local();
    let mut listener = Listener::new(&empty);
    let relay = Running::start(postgres.options(), &empty);
    let (later, _, states) = listener.entry("a").await;
    assert!(later.epoch == cut.epoch && later.version > cut.version);
    assert!(matches!(states, States::Rows { .. }), "{states:?}");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_and_a_restored_copy_begin_new_epochs_above_the_old_versions() {
    let mut postgres = PrivatePostgres::start().await;
    postgres.run(TABLE).await;
    let store = local();
    let mut listener = Listener::new(&store);
    let mut relay = Running::start(postgres.options(), &store);
    relay.leads().await;
    let (first, _) = listener.marker("a").await;
    postgres.crash();
    postgres.revive().await;
    let (second, why) = listener.marker("a").await;
    assert_eq!(why, "new epoch");
    assert!(second.epoch != first.epoch && second.version > first.version);

    // A copy taken cold, put back after the original ran on.
    postgres.stop();
    let copy = postgres.data().with_extension("copy");
    copy_tree(&postgres.data(), &copy);
    postgres.revive().await;
    let (third, _) = listener.marker("a").await;
    for number in 0..100 {
        postgres.run(&format!("insert into a values ({number})")).await;
    }
    let last = listener.key("a", "[99]").await;
    assert!(last.epoch == third.epoch);
    postgres.stop();
    std::fs::remove_dir_all(postgres.data()).expect("removed");
    std::fs::rename(&copy, postgres.data()).expect("put back");
    postgres.revive().await;
    let (restored, why) = listener.marker("a").await;
    assert_eq!(why, "new epoch");
    assert!(restored.epoch != last.epoch && restored.version > last.version, "{last:?} {restored:?}");
    postgres.run("insert into a values (1000)").await;
    listener.key("a", "[1000]").await;
    relay.leads().await;
    relay.stop().await;
}

fn copy_tree(from: &std::path::Path, to: &std::path::Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.expect("cp").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_long_absence_old_transactions_are_awaited_and_everything_is_marked() {
    let postgres = PrivatePostgres::start().await;
    postgres.run(TABLE).await;
    let store = local();
    let mut listener = Listener::new(&store);
    let mut relay = Running::start(postgres.options(), &store);
    relay.leads().await;
    let (first, _) = listener.marker("a").await;
    relay.stop().await;
    postgres.run("update rowcast.pulse set at = now() - interval '25 hours'").await;
    let mut old = postgres.connect().await;
    run_sql(&mut old, "begin isolation level repeatable read; select count(*) from rowcast.pulse").await;
    let relay = Running::start(postgres.options(), &store);
    let mut connection = postgres.connect().await;
    until("a sign of life", async || {
        (!slices::delivered(&mut connection).await.expect("a state").lapsed).then_some(())
    })
    .await;
    // Its snapshot still shows the old pulse: this is not logged.
    run_sql(&mut old, "insert into a values (1); commit").await;
    let (marked, why) = listener.marker("a").await;
    assert_eq!(why, "log lapsed");
    assert_eq!(marked.epoch, first.epoch);
    let xid: String =
        sqlx::query_scalar("select xmin::text from a where id = 1").fetch_one(&mut connection).await.expect("a row");
    assert!(marked.snapshot.sees(xid.parse().expect("a number")), "the marker is behind the old transaction");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_type_is_taken_up_by_the_triggers() {
    let postgres = PrivatePostgres::start().await;
    postgres.run(TABLE).await;
    let store = local();
    let mut listener = Listener::new(&store);
    let mut relay = Running::start(postgres.options(), &store);
    relay.leads().await;
    postgres.run("alter table a alter id type bigint; insert into a values (1, 1)").await;
    let mut reader = reader::Reader::connect(&postgres.options()).await.expect("a session");
    until("renewed triggers", async || {
        let described = catalogue::describe(reader.connection()).await.expect("a catalogue");
        described.not_intact.is_empty().then_some(())
    })
    .await;
    // The marker that follows the renewal tells of what is written at that moment, instead of its keys.
    let mut id = 1;
    until("a key by the new function", async || {
        id += 1;
        postgres.run(&format!("insert into a values ({id}, 1)")).await;
        let key = format!("[\"{id}\"]");
        tokio::time::timeout(Duration::from_secs(2), listener.key("a", &key)).await.ok()
    })
    .await;
    postgres.run(&format!("delete from a where id = {id}")).await;
    listener.key("a", &format!("[\"{id}\"]")).await;
    relay.stop().await;
}

#[tokio::test]
async fn emptying_slices_never_loses_what_was_not_acknowledged() {
    let postgres = PrivatePostgres::start().await;
    let mut connection = postgres.connect().await;
    let mut writer = postgres.connect().await;
    postgres.run("insert into rowcast.epoch default values").await;
    let old: i32 =
        sqlx::query_scalar("select (rowcast.slice() + 2) % 4").fetch_one(&mut connection).await.expect("a slice");
    let insert = format!("insert into rowcast.changes_{old} (publication, keys) values (1, '[1]')");
    let count = format!("select count(*) from rowcast.changes_{old}");
    let now = async |connection: &mut sqlx::PgConnection| {
        let moment = catalogue::begin(connection, []).await.expect("a moment");
        catalogue::rollback(connection).await.expect("an end");
        let epoch = moment.epoch.expect("an epoch");
        Cut { epoch, version: Version(1), snapshot: moment.snapshot, as_of: moment.now_ms }
    };
    let rows = async |connection: &mut sqlx::PgConnection| -> i64 {
        sqlx::query_scalar(sqlx::AssertSqlSafe(count.clone())).fetch_one(connection).await.expect("a count")
    };

    run_sql(&mut connection, &insert).await;
    run_sql(&mut writer, "begin; select pg_current_xact_id()").await;
    let before = now(&mut connection).await;
    run_sql(&mut writer, &insert).await;
    // An open writer holds the slice: nobody waits, nothing goes.
    assert_eq!(slices::empty(&mut connection, &before).await.expect("looked"), 0);
    run_sql(&mut writer, "commit").await;
    assert_eq!(slices::empty(&mut connection, &before).await.expect("looked"), 0, "the cut does not see it");
    assert_eq!(rows(&mut connection).await, 2);
    let after = now(&mut connection).await;
    run_sql(&mut connection, &insert).await;
    assert_eq!(slices::empty(&mut connection, &after).await.expect("looked"), 0, "one row is newer");
    let after = now(&mut connection).await;
    assert_eq!(slices::empty(&mut connection, &after).await.expect("looked"), 1);
    assert_eq!(rows(&mut connection).await, 0);
    let delivered = slices::delivered(&mut connection).await.expect("a state");
    assert_eq!(delivered.truncated, Some((after.epoch.clone(), after.snapshot.clone())));
    // Slices that are written, and their neighbours, stay.
    run_sql(&mut connection, "select rowcast.log_marker(1)").await;
    let after = now(&mut connection).await;
    assert_eq!(slices::empty(&mut connection, &after).await.expect("looked"), 0);
}
