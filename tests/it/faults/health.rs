//! What a node says of itself while a part of it fails, and how it goes in order.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rowcast::demo::instance::Postgres;

use crate::harness::cluster::{CHANNELS, Cluster, connect, viewers};
use crate::harness::load::Load;
use crate::harness::node::Node;
use crate::harness::until;

/// `/readyz` is red this long after a fault at the latest.
const RED_MAX: Duration = Duration::from_secs(3);

/// The parts that `/readyz` names; `None` while it is green.
async fn failed(node: &Node) -> Option<Vec<String>> {
    let (status, body) = node.get("/readyz").await.expect("an answer");
    let report: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    let failed: Vec<String> = serde_json::from_value(report["failed"].clone()).expect("names");
    assert_eq!(status == 200, failed.is_empty(), "{body}");
    (status != 200).then_some(failed)
}

/// Waits until both nodes name a part, then undoes the fault and waits until both are green.
async fn red_and_green_again(nodes: [&Node; 2], part: &str, what: &str, undo: impl AsyncFnOnce()) {
    let began = Instant::now();
    for node in nodes {
        until(&format!("{what}: red"), async || {
            failed(node).await.filter(|failed| failed.iter().any(|name| name == part))
        })
        .await;
        for path in ["/servez", "/healthz"] {
            assert_eq!(node.get(path).await.expect("an answer").0, 200, "{what}: {path}");
        }
    }
    let red = began.elapsed();
    undo().await;
    let undone = Instant::now();
    for node in nodes {
        node.ready().await;
    }
    println!("{what}: /readyz names {part} after {red:?}, green {:?} after it works again", undone.elapsed());
    assert!(red <= RED_MAX + Duration::from_millis(500), "{what}: red only after {red:?}");
}

fn freeze(pid: Option<u32>, frozen: bool) {
    let pid = Pid::from_raw(pid.expect("a running server") as i32);
    kill(pid, if frozen { Signal::SIGSTOP } else { Signal::SIGCONT }).expect("a signal");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readyz_names_what_fails_and_is_green_again_by_itself() {
    let mut cluster = Cluster::start().await;
    let (leader, other) = cluster.leader_and_other().await;
    let nodes = [&leader, &other];
    let all = viewers(1, &[other.address]).await;

    cluster.redis.kill();
    let redis = &mut cluster.redis;
    red_and_green_again(nodes, "store", "Redis is gone", async move || redis.revive()).await;

    cluster.postgres.stop().await;
    let postgres: &mut Postgres = &mut cluster.postgres;
    let start = async move || postgres.start().await.expect("a start");
    red_and_green_again(nodes, "postgres", "Postgres is gone", start).await;

    until("somebody leads again", async || (leader.leads().await || other.leads().await).then_some(())).await;
    // Nobody can lead: the lease is ours. Asking for it first keeps it from every candidate.
    let mut usurper = connect(&cluster.database()).await;
    let mut other_session = connect(&cluster.database()).await;
    let (class, lease) = (rowcast::capture::session::LOCK_CLASS, rowcast::capture::session::LOCK_LEASE);
    let take = async {
        let lock = sqlx::query("select pg_advisory_lock($1, $2)").bind(class).bind(lease);
        lock.execute(&mut usurper).await.expect("the lease");
    };
    let expel = async {
        until("the lease has an heir and its holder is gone", async || {
            let expelled: Vec<bool> = sqlx::query_scalar(
                "select pg_terminate_backend(holder.pid) from pg_locks as holder
                 where holder.locktype = 'advisory' and holder.classid = $1 and holder.objid = $2 and holder.granted
                   and exists (select from pg_locks as heir where heir.locktype = 'advisory' and not heir.granted
                                 and heir.classid = holder.classid and heir.objid = holder.objid)",
            )
            .bind(class)
            .bind(lease)
            .fetch_all(&mut other_session)
            .await
            .expect("a look at the locks");
            (!expelled.is_empty()).then_some(())
        })
        .await;
    };
    tokio::join!(take, expel);
    red_and_green_again(nodes, "relay", "nobody can lead", async move || drop(usurper)).await;

    freeze(cluster.postgres.pid(), true);
    let backends: Vec<i32> = backends(cluster.postgres.pid().expect("a running server"));
    backends.iter().for_each(|&pid| freeze(Some(pid as u32), true));
    let pid = cluster.postgres.pid();
    let thaw = async move || {
        backends.iter().for_each(|&pid| freeze(Some(pid as u32), false));
        freeze(pid, false);
    };
    red_and_green_again(nodes, "postgres", "Postgres hangs", thaw).await;

    cluster.heals(&all).await;
    cluster.converges(&all).await;
    assert_eq!(all[0].glance().seen.subscribed, CHANNELS.len(), "the connection is kept through all of it");
}

/// The processes of a server besides the first.
fn backends(postmaster: u32) -> Vec<i32> {
    let path = format!("/proc/{postmaster}/task/{postmaster}/children");
    let children = std::fs::read_to_string(path).expect("the server's processes");
    children.split_whitespace().map(|pid| pid.parse().expect("a process id")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_told_to_end_sends_its_clients_elsewhere() {
    let mut cluster = Cluster::start().await;
    let (wait, spread) = (Duration::from_millis(700), Duration::from_millis(600));
    let mut going = cluster.node_with(&[("ROWCAST_DRAIN_WAIT", "700ms"), ("ROWCAST_DRAIN_SPREAD", "600ms")]).await;
    let other = cluster.node().await;
    let load = Load::start(&cluster.database());
    let all = viewers(8, &[going.address, other.address]).await;
    load.goes_on(20).await;
    let address = going.address;
    let began = Instant::now();
    let draining = async {
        let client = reqwest::Client::new();
        until("/servez is red, and the node still serves", async || {
            let answer = client.get(format!("http://{address}/servez")).send().await.ok()?;
            (answer.status().as_u16() == 503).then_some(())
        })
        .await;
        began.elapsed()
    };
    let (status, red) = tokio::join!(going.terminate(), draining);
    let took = began.elapsed();
    assert_eq!(status.code(), Some(0));
    assert!(red < wait, "/servez is red only after {red:?}");
    assert!(took >= wait && took < wait + spread + Duration::from_secs(2), "ended after {took:?}");
    for viewer in &all {
        viewer.wait("back at the other node", |glance| glance.complete && glance.node == Some(other.address)).await;
        let seen = viewer.glance().seen;
        assert_eq!(seen.closes, [1012]);
        assert_eq!((seen.resumed, seen.resets, seen.gaps), (CHANNELS.len(), 0, 0), "everybody resumes");
    }
    cluster.heals(&all).await;
    load.stop().await;
    println!("drain: ended after {took:?}; equal {:?} after the load", cluster.converges(&all).await);
}
