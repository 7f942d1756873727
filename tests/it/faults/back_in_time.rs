//! A Redis that comes back with an older state, and is appended to: versions that somebody has seen are lost.

use crate::harness::cluster::{CHANNELS, Cluster, viewers};
use crate::harness::load::Load;
use crate::harness::until;
use crate::harness::viewer::Viewer;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_rolled_back_under_load_misleads_nobody() {
    let mut cluster = Cluster::start().await;
    let (leader, other) = cluster.leader_and_other().await;
    let load = Load::start(&cluster.database());
    let mut all = viewers(3, &[leader.address]).await;
    all.extend(viewers(3, &[other.address]).await);
    let stayed = all.len();
    load.goes_on(20).await;
    cluster.redis.save();
    load.goes_on(40).await;
    // They go with positions that are about to be lost, not all the same.
    for viewer in viewers(3, &[leader.address]).await {
        viewer.leave();
        load.goes_on(10).await;
        all.push(viewer);
    }
    cluster.redis.kill();
    cluster.redis.revive();
    let healed = cluster.heals(&all[..stayed]).await;
    println!("Redis rolled back: a later commit everywhere after {healed:?}");
    let third = cluster.node().await;
    let nodes = [leader.address, other.address, third.address];
    for (viewer, node) in all[stayed..].iter().zip(nodes) {
        viewer.go(&[node]);
    }
    load.goes_on(40).await;
    load.stop().await;
    println!("equal after {:?}", cluster.converges(&all).await);
    for viewer in &all[..stayed] {
        let seen = viewer.glance().seen;
        let told = (seen.subscribed, seen.snapshots, seen.resets, seen.gaps);
        assert_eq!(told, (CHANNELS.len(), CHANNELS.len(), 0, 0), "who stays keeps his place");
    }
}

/// The row came and went in versions that were lost: the store's log has its end, and whoever reads only that has never
/// heard of its beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_that_was_lost_is_not_continued() {
    let mut cluster = Cluster::start().await;
    let (node, _other) = cluster.leader_and_other().await;
    let stays = Viewer::open(&[node.address], &CHANNELS).await;
    // The checkpoint of the channel, older than all that follows.
    let keys = format!("{:?}", cluster.redis.command(&["KEYS", "rowcast:items.*:snap:*"]));
    assert!(keys.contains("snap"), "{keys}");
    cluster.redis.save();
    let returns = [Viewer::open(&[node.address], &CHANNELS).await, Viewer::open(&[node.address], &CHANNELS).await];
    cluster.run("insert into items values (900, nextval('ticks'), 'came')").await;
    cluster.run("delete from items where id = 7").await;
    for viewer in &returns {
        viewer.sees("[900]", true).await;
        viewer.sees("[7]", false).await;
        viewer.leave();
    }
    cluster.run("delete from items where id = 900").await;
    cluster.run("insert into items values (7, nextval('ticks'), 'came back')").await;
    stays.sees("[900]", false).await;
    stays.sees("[7]", true).await;
    let lost = stays.glance().version;

    cluster.redis.kill();
    cluster.redis.revive();
    // One comes back at once, to a node that has yet to hear how the store goes on; one later.
    let third = crate::harness::node::Node::start(&cluster.database(), Some(&cluster.redis_url())).await;
    returns[0].go(&[third.address]);
    until("the store goes on above what was lost", async || {
        let (_, body) = node.get("/v1/rows/items").await.ok()?;
        let answer: serde_json::Value = serde_json::from_str(&body).ok()?;
        (answer["version"].as_u64()? > lost.0).then_some(())
    })
    .await;
    returns[1].go(&[third.address]);
    let all: Vec<Viewer> = returns.into_iter().chain([stays]).collect();
    cluster.converges(&all).await;
    cluster.heals(&all).await;
    cluster.converges(&all).await;
}
