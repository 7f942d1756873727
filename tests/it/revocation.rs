//! What is taken back is taken back on every node, within a second, whatever becomes of Redis.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::cluster::Cluster;
use crate::harness::dash::Dash;
use crate::harness::database::connect;
use crate::harness::node::Node;
use crate::harness::tokens::{SECRET, Signer, WITH_SECRET, token};
use crate::harness::until;
use crate::harness::world::{attempt, run};

/// From a commit until every connection is closed.
const REVOKED_MAX: Duration = Duration::from_secs(1);

async fn cluster() -> (Cluster, Node, Node) {
    let cluster = Cluster::start().await;
    cluster.run("select rowcast.publish('vaults', policy => 'authenticated')").await;
    let (one, other) = (cluster.node_with(&[WITH_SECRET]).await, cluster.node_with(&[WITH_SECRET]).await);
    (cluster, one, other)
}

async fn open(node: &Node, token: &str) -> Dash {
    let (mut dash, _) = Dash::open_as(node.address, token, &["vaults"]).await;
    dash.complete().await;
    dash
}

/// The code with which a node answers a first token.
async fn refused(node: &Node, token: &str) -> u16 {
    let (mut dash, _) = Dash::open_as(node.address, token, &["vaults"]).await;
    let code = dash.closed().await;
    assert_eq!((dash.seen.authenticated, dash.seen.snapshots), (0, 0));
    code
}

/// The status with which a node answers a read.
async fn read(node: &Node, token: &str) -> u16 {
    let request = reqwest::Client::new().get(node.url("/v1/rows/vaults")).bearer_auth(token);
    request.send().await.expect("an answer").status().as_u16()
}

/// Runs statements; all these dashboards are closed within a second of their commit.
async fn closes(cluster: &Cluster, sql: &str, dashes: &mut [&mut Dash]) {
    let mut connection = connect(&cluster.database()).await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.expect("statements that work");
    let committed = Instant::now();
    let closed = futures_util::future::join_all(dashes.iter_mut().map(|dash| dash.closed())).await;
    let took = committed.elapsed();
    assert!(closed.iter().all(|code| *code == 4401), "{closed:?}");
    assert!(took <= REVOKED_MAX, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_subject_is_closed_on_all_nodes_and_comes_back_only_with_a_later_token() {
    let (cluster, one, other) = cluster().await;
    let ann = token("ann", 600, &json!({}));
    let timeless = Signer::secret(SECRET).sign(&json!({"sub":"ann"}));
    let (mut first, mut second, mut third) =
        (open(&one, &ann).await, open(&other, &ann).await, open(&other, &timeless).await);
    let mut bystander = open(&one, &token("bob", 600, &json!({}))).await;
    closes(&cluster, "select rowcast.revoke('ann')", &mut [&mut first, &mut second, &mut third]).await;
    for node in [&one, &other] {
        assert_eq!((refused(node, &ann).await, read(node, &ann).await), (4401, 401));
        assert_eq!((refused(node, &timeless).await, read(node, &timeless).await), (4401, 401));
    }
    // One that was issued later is another matter; so is one that says so of a time to come.
    let later = until("a later second", async || {
        let fresh = token("ann", 600, &json!({}));
        (read(&one, &fresh).await == 200).then_some(fresh)
    })
    .await;
    let (mut back, mut there) = (open(&one, &later).await, open(&other, &later).await);
    // And it can be revoked again.
    closes(&cluster, "select rowcast.revoke('ann')", &mut [&mut back, &mut there]).await;
    assert_eq!(refused(&one, &later).await, 4401);

    // A node that starts afterwards knows before it lets anybody in.
    let late = cluster.node_with(&[WITH_SECRET]).await;
    assert_eq!((refused(&late, &ann).await, read(&late, &later).await), (4401, 401));
    cluster.run("update vaults set balance = balance where id = 1; insert into vaults values (777, 0)").await;
    bystander.until("the bystander goes on", |dash| dash.seen.changes > 0).await;
    assert_eq!(bystander.seen.errors, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_session_ends_alone_and_cannot_be_refreshed_into() {
    let (cluster, one, other) = cluster().await;
    let with = |jti: &str| token("ann", 600, &json!({"jti":jti}));
    let (mut here, mut there) = (open(&one, &with("t1")).await, open(&other, &with("t1")).await);
    let mut kept = open(&other, &with("t2")).await;
    closes(&cluster, "select rowcast.revoke_session('t1')", &mut [&mut here, &mut there]).await;
    assert_eq!((refused(&other, &with("t1")).await, read(&other, &with("t1")).await), (4401, 401));
    kept.authenticate(&with("t1")).await;
    kept.until("the refresh is refused", |dash| dash.seen.errors == ["bad_token"]).await;
    assert_eq!(read(&one, &with("t2")).await, 200);
    let wrong = "select rowcast.revoke(''); select rowcast.revoke(null)";
    let mut connection = connect(&cluster.database()).await;
    for statement in wrong.split(';') {
        assert!(attempt(&mut connection, statement).await.is_err(), "{statement}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_that_commits_late_and_one_while_redis_is_away_have_their_effect() {
    let (mut cluster, one, other) = cluster().await;
    let tokens: Vec<String> = ["ann", "bob", "cleo"].iter().map(|sub| token(sub, 600, &json!({}))).collect();
    let (mut ann, mut bob) = (open(&one, &tokens[0]).await, open(&other, &tokens[1]).await);
    // Bob's revocation is written first and committed last: Ann's, which the nodes see before, must not hide it.
    let mut slow = connect(&cluster.database()).await;
    run(&mut slow, "begin; select rowcast.revoke('bob')").await;
    closes(&cluster, "select rowcast.revoke('ann')", &mut [&mut ann]).await;
    assert_eq!(read(&other, &tokens[1]).await, 200);
    run(&mut slow, "commit").await;
    closes(&cluster, "select", &mut [&mut bob]).await;

    let mut cleo = [open(&one, &tokens[2]).await, open(&other, &tokens[2]).await];
    cluster.redis.kill();
    let [first, second] = &mut cleo;
    closes(&cluster, "select rowcast.revoke('cleo')", &mut [first, second]).await;
    cluster.redis.revive();
    for token in &tokens {
        assert_eq!((read(&one, token).await, refused(&other, token).await), (401, 4401));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_stands_still_is_not_waited_for() {
    let (cluster, one, _other) = cluster().await;
    cluster.run("insert into vaults select id, id from generate_series(100000, 130000) id").await;
    let mut dash = open(&one, &token("ann", 600, &json!({}))).await;
    // Its rows again, which it does not read.
    dash.client.unsubscribe(dash.client.handles()[0]);
    dash.client.subscribe("vaults");
    dash.connect_narrowly(one.address).await;
    let answered = async || (one.metric("rowcast_subscriptions_total").await >= 2.0).then_some(());
    until("the rows are on their way", answered).await;
    until("one session is left", async || (one.metric("rowcast_sessions").await == 1.0).then_some(())).await;
    cluster.run("select rowcast.revoke('ann')").await;
    let committed = Instant::now();
    until("the session is gone", async || (one.metric("rowcast_sessions").await == 0.0).then_some(())).await;
    assert!(committed.elapsed() <= REVOKED_MAX, "{:?}", committed.elapsed());
    assert_eq!(one.metric(r#"rowcast_session_closes_total{reason="token_revoked"}"#).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_find_revocations_again_when_postgres_comes_back() {
    let (cluster, one, _other) = cluster().await;
    let (ann, bob) = (token("ann", 600, &json!({})), token("bob", 600, &json!({})));
    let mut follows = open(&one, &bob).await;
    let drop_connections = "select pg_terminate_backend(pid) from pg_stat_activity
        where application_name = 'rowcast' and query like '%rowcast.revocations%' and pid <> pg_backend_pid()";
    cluster.run(&format!("select rowcast.revoke('ann'); {drop_connections}")).await;
    until("the first is known", async || (read(&one, &ann).await == 401).then_some(())).await;
    cluster.run(drop_connections).await;
    cluster.run("select rowcast.revoke('bob')").await;
    assert_eq!(follows.closed().await, 4401);
    assert_eq!((read(&one, &ann).await, read(&one, &bob).await), (401, 401));
    // Forgotten rows are forgotten with the next connection.
    cluster.run(&format!("delete from rowcast.revocations where value = 'ann'; {drop_connections}")).await;
    until("the row is forgotten", async || (read(&one, &ann).await == 200).then_some(())).await;
    assert_eq!(read(&one, &bob).await, 401);
}
