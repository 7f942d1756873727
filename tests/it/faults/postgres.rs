//! A Postgres that crashes, restarts as planned, or is restored from a copy: another epoch each time.

use std::time::{Duration, Instant};

use crate::harness::cluster::{CHANNELS, Cluster, viewers};
use crate::harness::load::Load;
use crate::harness::until;
use crate::harness::viewer::Viewer;

/// What a subscription stands in, from a node's own mouth.
async fn epoch(node: &crate::harness::node::Node) -> String {
    let (status, body) = node.get("/v1/rows/accounts").await.expect("an answer");
    assert_eq!(status, 200, "{body}");
    let answer: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    answer["epoch"].as_str().expect("an epoch").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_and_after_a_planned_restart_viewers_get_the_difference() {
    let mut cluster = Cluster::start().await;
    let (leader, other) = cluster.leader_and_other().await;
    let load = Load::start(&cluster.database());
    let mut all = viewers(3, &[leader.address]).await;
    all.extend(viewers(3, &[other.address]).await);
    let mut epochs = vec![epoch(&other).await];
    for immediate in [true, false] {
        load.goes_on(20).await;
        if immediate {
            cluster.postgres.restart_immediate().await.expect("a restart");
        } else {
            cluster.postgres.stop().await;
            cluster.postgres.start().await.expect("a start");
        }
        let healed = cluster.heals(&all).await;
        println!("Postgres restarted (immediate: {immediate}): a later commit everywhere after {healed:?}");
        epochs.push(epoch(&other).await);
    }
    assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2], "{epochs:?}");
    load.goes_on(20).await;
    load.stop().await;
    println!("equal after {:?}", cluster.converges(&all).await);
    for viewer in &all {
        let seen = viewer.glance().seen;
        assert_eq!((seen.subscribed, seen.snapshots, seen.resets), (CHANNELS.len(), CHANNELS.len(), 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_cold_copy_begins_a_new_epoch() {
    let mut cluster = Cluster::start().await;
    let node = cluster.node().await;
    let load = Load::start(&cluster.database());
    // These do not watch the ticks of `items`: a restored copy has lower ones, and that is right.
    let all = [Viewer::open(&[node.address], &["accounts", "vaults"]).await];
    load.goes_on(20).await;
    load.stop().await;
    let before = epoch(&node).await;

    let data = cluster.postgres.directory().join("data");
    let copy = cluster.postgres.directory().join("copy");
    cluster.postgres.stop().await;
    copy_directory(&data, &copy);
    cluster.postgres.start().await.expect("a start");
    let load = Load::start(&cluster.database());
    load.goes_on(60).await;
    load.stop().await;
    let truth = cluster.truth().await;
    until("the viewer follows", async || (all[0].tables().await == truth[1..]).then_some(())).await;
    let between = epoch(&node).await;
    let version = all[0].glance().version;

    cluster.postgres.stop().await;
    std::fs::remove_dir_all(&data).expect("the data can be removed");
    std::fs::rename(&copy, &data).expect("the copy can take its place");
    cluster.postgres.start().await.expect("a start");
    let restored = Instant::now();
    let load = Load::start(&cluster.database());
    load.goes_on(20).await;
    load.stop().await;
    let truth = cluster.truth().await;
    until("the viewer has the rows of the copy", async || (all[0].tables().await == truth[1..]).then_some(())).await;
    assert!(restored.elapsed() < Duration::from_secs(10));
    println!("restored copy: equal after {:?}, load included", restored.elapsed());
    let after = epoch(&node).await;
    assert!(before != between && between != after && before != after, "{before} {between} {after}");
    assert!(all[0].glance().version > version, "versions ascend across epochs");
    assert_eq!(all[0].glance().seen.subscribed, 2, "the connection is kept");
}

/// As `cp -a` does it.
fn copy_directory(from: &std::path::Path, to: &std::path::Path) {
    let done = std::process::Command::new("cp").arg("-a").args([from, to]).status().expect("cp");
    assert!(done.success());
}
