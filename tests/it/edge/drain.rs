//! How a node leaves: told to stop, it turns balancers away, lets its clients go one by one, and ends.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::TcpStream;

use super::wire::Wire;
use crate::harness::database::Database;
use crate::harness::node::Node;
use crate::harness::until;

#[tokio::test]
async fn a_drain_is_seen_by_balancers_first_and_closes_every_session_with_1012_within_the_spread() {
    let wait = Duration::from_millis(700);
    let database = Database::with_items(1, 6).await;
    let timing = [("ROWCAST_DRAIN_WAIT", "700ms"), ("ROWCAST_DRAIN_SPREAD", "700ms")];
    let mut node = Node::start_with(&database.url, None, &timing).await;
    let mut wires = Vec::new();
    for _ in 0..20 {
        wires.push(Wire::greeted(node.address).await);
    }
    wires[0].subscribe(1, "items").await;
    let began = Instant::now();
    node.signal_to_terminate();
    until("/servez is red", async || node.get("/servez").await.ok().filter(|answer| answer.0 == 503)).await;
    assert_eq!(node.get("/healthz").await.expect("an answer").0, 200);
    // It goes on serving while balancers look elsewhere.
    database.run("update items set note = 'last'").await;
    assert_eq!(wires[0].answer().await["rows"], json!([{"id":1,"note":"last"}]));
    for wire in &mut wires {
        let (code, reason) = wire.closed().await;
        assert_eq!((code, &reason["code"]), (1012, &json!("restart")));
        assert!(reason["retry_after_ms"].is_u64());
        assert!(began.elapsed() >= wait);
    }
    assert!(node.ended().await.success());
    assert!(TcpStream::connect(node.address).await.is_err(), "still listening");
}
