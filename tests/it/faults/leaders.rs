//! Leaders that die, freeze, or stop in the middle of a version.

use std::time::{Duration, Instant};

use rowcast::entry::PartsWriter;
use rowcast::publication::FeedKey;
use rowcast::store::redis::{DEFAULT_PREFIX, RedisStore};
use rowcast::store::{Append, AppendError, Closing, Part, Retention, Store, Touched};
use rowcast::version::{Cut, Version};

use crate::harness::cluster::{CHANNELS, Cluster, connect, viewers};
use crate::harness::load::Load;
use crate::harness::until;

/// How long nobody may lead.
const TAKEOVER_MAX: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_leader_is_killed_the_other_leads_and_nobody_loses_anything() {
    let mut cluster = Cluster::start().await;
    let (mut leader, other) = cluster.leader_and_other().await;
    let load = Load::start(&cluster.database());
    let mut all = viewers(10, &[leader.address, other.address]).await;
    let stayed: Vec<_> = viewers(5, &[other.address]).await;
    load.goes_on(30).await;

    leader.kill().await;
    let killed = Instant::now();
    until("the other leads", async || other.leads().await.then_some(())).await;
    let takeover = killed.elapsed();
    assert!(takeover <= TAKEOVER_MAX, "the other leads only after {takeover:?}");
    for viewer in &all {
        viewer.wait("back at the other node", |glance| glance.complete && glance.node == Some(other.address)).await;
    }
    let back = killed.elapsed();
    cluster.heals(&all).await;
    let healed = killed.elapsed();
    load.goes_on(30).await;
    let commits = load.stop().await;

    let (mut asked, mut resumed) = (0, 0);
    for viewer in &all {
        let seen = viewer.glance().seen;
        asked += seen.subscribed - CHANNELS.len();
        resumed += seen.resumed;
        assert_eq!((seen.resets, seen.gaps), (0, 0));
    }
    assert!(asked >= all.len() * CHANNELS.len());
    assert!(resumed * 10 >= asked * 9, "{resumed} of {asked} subscriptions resumed");
    for viewer in &stayed {
        let seen = viewer.glance().seen;
        let told = (seen.subscribed, seen.snapshots, seen.resets, seen.gaps);
        assert_eq!(told, (CHANNELS.len(), CHANNELS.len(), 0, 0), "who stays is not disturbed");
    }
    all.extend(stayed);
    let converged = cluster.converges(&all).await;
    println!(
        "leader killed: other leads after {takeover:?}; clients back after {back:?}; a later commit everywhere after \
         {healed:?}; {resumed} of {asked} resumed; equal {converged:?} after {commits} commits"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_leader_is_replaced_and_does_no_harm_when_it_thaws() {
    let mut cluster = Cluster::start().await;
    let (leader, other) = cluster.leader_and_other().await;
    let load = Load::start(&cluster.database());
    let mut all = viewers(3, &[leader.address]).await;
    all.extend(viewers(3, &[other.address]).await);
    load.goes_on(30).await;

    leader.freeze(true);
    let frozen = Instant::now();
    until("the other leads", async || other.leads().await.then_some(())).await;
    let takeover = frozen.elapsed();
    cluster.heals(&all[3..]).await;
    load.goes_on(30).await;
    leader.freeze(false);
    until("the thawed node knows that it leads no longer", async || (!leader.leads().await).then_some(())).await;
    let thawed = cluster.heals(&all).await;
    assert!(other.leads().await);
    load.goes_on(30).await;
    load.stop().await;
    cluster.converges(&all).await;
    for viewer in &all {
        let seen = viewer.glance().seen;
        assert_eq!((seen.subscribed, seen.resets, seen.gaps), (CHANNELS.len(), 0, 0));
    }
    println!("leader frozen: other leads after {takeover:?}; its clients up to date {thawed:?} after it thawed");
    assert!(takeover <= TAKEOVER_MAX + Duration::from_secs(1), "the other leads only after {takeover:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_whose_leader_dies_between_its_parts_never_happened() {
    let mut cluster = Cluster::start().await;
    let (leader, other) = cluster.leader_and_other().await;
    let load = Load::start(&cluster.database());
    let mut all = viewers(3, &[leader.address]).await;
    all.extend(viewers(3, &[other.address]).await);
    load.goes_on(10).await;

    let store = RedisStore::new(&cluster.redis.address(), DEFAULT_PREFIX, Retention::default()).expect("an address");
    for number in 0..3 {
        let fence_and_append = interrupted_version(&cluster, &store).await;
        if number == 0 {
            // Its last part comes late, when the next leader has gone on: it is refused.
            until("the next leader goes on", async || {
                let head = store.head().await.ok()??;
                (head.version > fence_and_append.cut.version).then_some(())
            })
            .await;
            let touched = vec![Touched { feed: fence_and_append.parts[0].feed.clone(), parts: 2 }];
            let late = Append {
                parts: vec![Part { number: 1, ..fence_and_append.parts[0].clone() }],
                closes: Some(Closing { touched, catalogue: String::new(), forget: Vec::new(), stale: Vec::new() }),
                ..fence_and_append
            };
            let refused = store.append(&late).await;
            assert!(matches!(refused, Err(AppendError::StaleFence | AppendError::HeadMoved)), "{refused:?}");
        }
        let healed = cluster.heals(&all).await;
        println!("leader gone between two parts: a later commit everywhere after {healed:?}");
    }
    load.stop().await;
    // A node that begins now reads the log from the store.
    let third = cluster.node().await;
    all.extend(viewers(1, &[third.address]).await);
    cluster.converges(&all).await;
}

/// What a leader does that dies between the parts of a version: claims, draws a version, appends the first of two parts.
/// The row in it is in no table.
async fn interrupted_version(cluster: &Cluster, store: &RedisStore) -> Append {
    let mut connection = connect(&cluster.database()).await;
    let described = "select name || '.' || generation, columns::text, key from rowcast.describe('items')";
    let (feed, columns, key): (String, String, Vec<i32>) =
        sqlx::query_as(described).fetch_one(&mut connection).await.expect("a publication");
    let feed: FeedKey = feed.parse().expect("the name of a feed");
    let schema = rowcast::publication::Schema {
        columns: serde_json::from_str(&columns).expect("columns"),
        key: key.into_iter().map(|index| index as usize).collect(),
    };
    loop {
        let version: i64 = sqlx::query_scalar("select nextval('rowcast.version')")
            .fetch_one(&mut connection)
            .await
            .expect("a version");
        let version = Version(version as u64);
        let (fence, head) = store.claim(version.0).await.expect("a claim");
        let head = head.expect("a head");
        let mut states = PartsWriter::new(&schema.id());
        states.push("[5000000]", Some("[5000000,\"1\",\"in no table\"]"));
        states.push("[1]", None);
        let append = Append {
            fence,
            follows: Some((head.epoch.clone(), head.version)),
            base: head.version,
            cut: Cut { version, ..head },
            parts: vec![Part { feed: feed.clone(), number: 0, states: states.finish().remove(0) }],
            closes: None,
        };
        // The real leader may have drawn a higher version, or claimed, in between.
        match store.append(&append).await {
            Ok(()) => return append,
            Err(error) => println!("once more: {error}"),
        }
    }
}
