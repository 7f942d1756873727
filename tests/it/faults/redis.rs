//! A Redis that is emptied, or restarts empty, under load.

use std::time::{Duration, Instant};

use crate::harness::cluster::{CHANNELS, Cluster, viewers};
use crate::harness::load::Load;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_redis_costs_nobody_his_connection_or_his_place() {
    let mut cluster = Cluster::start().await;
    let (leader, other) = cluster.leader_and_other().await;
    let load = Load::start(&cluster.database());
    let mut all = viewers(4, &[leader.address]).await;
    all.extend(viewers(4, &[other.address]).await);
    for _ in 0..3 {
        load.goes_on(20).await;
        cluster.redis.command(&["FLUSHALL"]);
        println!("FLUSHALL: a later commit everywhere after {:?}", cluster.heals(&all).await);
    }
    // Who comes now finds no checkpoint.
    all.extend(viewers(1, &[other.address]).await);
    load.stop().await;
    println!("equal after {:?}", cluster.converges(&all).await);
    undisturbed(&all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_restarts_empty_costs_nobody_his_connection_or_his_place() {
    let mut cluster = Cluster::start().await;
    let (leader, other) = cluster.leader_and_other().await;
    let load = Load::start(&cluster.database());
    let mut all = viewers(4, &[leader.address]).await;
    all.extend(viewers(4, &[other.address]).await);
    // Once so short that hardly anybody notices, once so long that everybody does.
    for away in [0, 80] {
        load.goes_on(20).await;
        cluster.redis.kill();
        load.goes_on(away).await;
        cluster.redis.revive();
        println!("Redis back, empty: a later commit everywhere after {:?}", cluster.heals(&all).await);
    }
    let ready = Instant::now();
    leader.ready().await;
    other.ready().await;
    assert!(ready.elapsed() < Duration::from_secs(5));
    load.stop().await;
    println!("equal after {:?}", cluster.converges(&all).await);
    undisturbed(&all);
}

/// Connections and places are kept: one subscription, one snapshot, no reset.
fn undisturbed(all: &[crate::harness::viewer::Viewer]) {
    for viewer in all {
        let seen = viewer.glance().seen;
        let told = (seen.subscribed, seen.snapshots, seen.resets, seen.gaps);
        assert_eq!(told, (CHANNELS.len(), CHANNELS.len(), 0, 0));
    }
}
