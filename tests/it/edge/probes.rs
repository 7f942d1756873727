//! `/readyz` tells the truth: red within seconds when a part of the pipeline stops, naming it, and green again by itself.

use std::time::{Duration, Instant};

use rowcast::demo::instance::{Postgres, PostgresOptions, Redis};
use serde_json::Value;

use super::wire::Wire;
use crate::harness::database::create_items;
use crate::harness::node::Node;
use crate::harness::until;

/// Red in time: three seconds, and what a busy machine adds.
const RED_WITHIN: Duration = Duration::from_secs(5);

/// Waits until `/readyz` names exactly these parts.
async fn failed(node: &Node, parts: &[&str]) {
    let began = Instant::now();
    until(&format!("{parts:?} failed"), async || {
        let (status, body) = node.get("/readyz").await.ok()?;
        let report: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(status == 200, report["failed"] == Value::Array(vec![]), "{body}");
        let named: Vec<&str> = report["failed"].as_array()?.iter().filter_map(Value::as_str).collect();
        (named == parts).then_some(())
    })
    .await;
    assert!(parts.is_empty() || began.elapsed() < RED_WITHIN, "{parts:?} after {:?}", began.elapsed());
}

#[tokio::test]
async fn readiness_names_what_failed_and_comes_back_by_itself() {
    let mut postgres = Postgres::launch(PostgresOptions::for_tests("shop")).await.expect("a Postgres");
    let mut redis = Redis::launch().await.expect("a Redis");
    rowcast::app::migrate(&postgres.url()).await.expect("migrations that apply");
    create_items(&postgres.url(), 1, 6).await;
    let node = Node::start(&postgres.url(), Some(&redis.url())).await;
    node.ready().await;
    let mut wire = Wire::greeted(node.address).await;
    wire.subscribe(1, "items").await;

    redis.kill().await;
    failed(&node, &["store", "relay"]).await;
    // Balancers go on sending clients: their rows are here, and elsewhere it is no better.
    assert_eq!(node.get("/servez").await.expect("an answer").0, 200);
    redis.start().await.expect("a Redis again");
    failed(&node, &[]).await;

    postgres.stop().await;
    failed(&node, &["postgres", "relay"]).await;
    postgres.start().await.expect("a Postgres again");
    failed(&node, &[]).await;

    // The client was never sent away, and hears of both.
    let mut states = Vec::new();
    while states.iter().filter(|state| *state == "late").count() < 2
        || states.last().is_none_or(|state| state != "live")
    {
        let frame = wire.frame().await;
        if let Some(state) = frame["state"].as_str().filter(|state| states.last().is_none_or(|last| last != state)) {
            states.push(state.to_owned());
        }
    }
}
