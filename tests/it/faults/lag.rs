//! A viewer that knows more than the node it comes to.

use std::time::Instant;

use crate::harness::cluster::{CHANNELS, Cluster};
use crate::harness::load::Load;
use crate::harness::node::Node;
use crate::harness::proxy::Proxy;
use crate::harness::until;
use crate::harness::viewer::Viewer;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_ahead_of_a_node_waits_there_and_does_not_go_back() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.node().await;
    let redis = cluster.redis.address();
    let redis = redis.trim_start_matches("redis://").trim_end_matches('/').parse().expect("an address");
    let proxy = Proxy::start(redis).await;
    let through = format!("redis://{}/", proxy.address).parse().expect("an address");
    let lagging = Node::start(&cluster.database(), Some(&through)).await;
    lagging.ready().await;
    // On the lagging node one channel is open already, the others are not.
    let stays = Viewer::open(&[lagging.address], &CHANNELS[..1]).await;
    let moves = Viewer::open(&[leader.address], &CHANNELS).await;

    proxy.stall(true);
    cluster.run("insert into items values (900, nextval('ticks'), 'while it lags')").await;
    let transfer = "update accounts set balance = balance - 5 where id = 1;
                    update vaults set balance = balance + 5 where id = 1";
    cluster.run(transfer).await;
    moves.sees("[900]", true).await;
    let truth = cluster.truth().await;
    until("the viewer is ahead", async || (moves.tables().await == truth).then_some(())).await;
    let known = moves.glance().version;
    assert!(stays.glance().version < known, "the node lags");
    moves.go(&[lagging.address]);
    moves.wait("it is connected to the lagging node", |glance| glance.node == Some(lagging.address)).await;
    // It has the answer to what was asked after it, and none itself.
    let late = Viewer::open(&[lagging.address], &CHANNELS[..1]).await;
    assert!(late.glance().version < known && !moves.glance().complete, "{:?}", moves.glance());
    assert_eq!(moves.glance().seen.subscribed, CHANNELS.len(), "nothing is said to who waits");

    proxy.stall(false);
    let caught_up = Instant::now();
    moves.wait("it is served", |glance| glance.complete).await;
    println!("resume ahead of a lagging node: served {:?} after it can", caught_up.elapsed());
    let seen = moves.glance().seen;
    assert!(seen.refused.is_empty() && seen.resumed >= 1, "{seen:?}");
    let all = [moves];
    cluster.heals(&all).await;
    cluster.converges(&all).await;
    let truth = cluster.truth().await;
    until("who stayed follows", async || (stays.tables().await[0] == truth[0]).then_some(())).await;
}

/// Rows that a snapshot query read between two cuts: a row is inserted before it and deleted after it, both before the
/// next cut. A client that is told the version before that cut keeps the row for ever on any other node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_opened_between_two_cuts_is_resumed_elsewhere() {
    let mut cluster = Cluster::start().await;
    let leader = cluster.node().await;
    let mut all = vec![Viewer::open(&[leader.address], &CHANNELS).await];
    // The node that opened it dies before the next cut, or right after it.
    for (round, before_the_cut) in [(0, true), (1, false)] {
        let (came, stays) = (900 + round, 950 + round);
        let mut opens = cluster.node().await;
        forget_checkpoints(&cluster);
        leader.freeze(true);
        cluster.run(&format!("insert into items values ({came}, nextval('ticks'), 'came')")).await;
        let viewer = Viewer::begin(&[opens.address, leader.address], &CHANNELS);
        until("the node has asked Postgres", async || {
            (opens.metric("rowcast_snapshot_queries_total").await >= 3.0).then_some(())
        })
        .await;
        // In the other tables nothing happened: they stand at the version at once.
        viewer.wait("the quiet tables are there", |glance| glance.seen.snapshots >= 2).await;
        let delete = format!("delete from items where id = {came}");
        let insert = format!("insert into items values ({stays}, nextval('ticks'), 'stays')");
        cluster.run(&delete).await;
        cluster.run(&insert).await;
        if before_the_cut {
            opens.kill().await;
            leader.freeze(false);
        } else {
            leader.freeze(false);
            viewer.wait("the viewer has its rows", |glance| glance.complete).await;
            opens.kill().await;
        }
        viewer.wait("it is back", |glance| glance.complete && glance.node == Some(leader.address)).await;
        assert!(viewer.glance().seen.resumed >= 2, "{:?}", viewer.glance());
        all.push(viewer);
        cluster.converges(&all).await;
    }

    // The same at random moments.
    let load = Load::start(&cluster.database());
    let mut opens = cluster.node().await;
    for _ in 0..6 {
        load.goes_on(3).await;
        forget_checkpoints(&cluster);
        all.push(Viewer::open(&[opens.address, leader.address], &CHANNELS).await);
    }
    opens.kill().await;
    for viewer in &all {
        viewer.wait("it is back", |glance| glance.complete && glance.node == Some(leader.address)).await;
    }
    cluster.heals(&all).await;
    load.stop().await;
    cluster.converges(&all).await;
}

/// Whoever opens a channel after this has to ask Postgres, at once: a node that was killed has left its locks behind.
fn forget_checkpoints(cluster: &Cluster) {
    let delete = "for _, key in ipairs(redis.call('KEYS', ARGV[1])) do redis.call('DEL', key) end";
    for keys in ["rowcast:*:snap:*", "rowcast:*:lock:*"] {
        cluster.redis.command(&["EVAL", delete, "0", keys]);
    }
}
