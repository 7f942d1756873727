//! The routes over a real socket.

use std::sync::Arc;
use std::time::Duration;

use rowcast::entry::{Key, Row};
use rowcast::http::{EdgeSettings, MetricsAt};
use rowcast::hub::{Ask, HubStatus, RowsRead};
use rowcast::protocol::{ChannelForm, ChannelNumber, Refusal};
use rowcast::publication::{Column, Schema};
use rowcast::query::unknown_publication;
use rowcast::version::{Cut, Epoch, Version};
use serde_json::json;

use super::harness::{Node, soon};

fn read() -> RowsRead {
    let schema = Schema { columns: vec![Column { name: "id".into(), type_name: "int4".into() }], key: vec![0] };
    RowsRead {
        form: ChannelForm { number: ChannelNumber(1), tag: "a91c".into(), schema: Arc::new(schema), order: vec![] },
        cut: Cut {
            epoch: Epoch::new("k3f9"),
            version: Version(44),
            snapshot: "1:1:".parse().expect("a snapshot"),
            as_of: 1,
        },
        as_of: 1_790_000_000_123,
        changed: Version(41),
        public: true,
        rows: vec![(Key::new("[1]"), Arc::new(Row::parse("[1]").expect("a row")))],
    }
}

/// Answers reads of `orders`; knows no other publication.
fn answer_reads(mut node: Node) -> String {
    let url = node.url("");
    tokio::spawn(async move {
        while let Some(ask) = node.asked.recv().await {
            if let Ask::Rows(request, reply) = ask {
                let _ = reply.send(match &*request.publication {
                    "orders" => Ok(read()),
                    "later" => Err(Refusal::unavailable("not yet")),
                    other => Err(unknown_publication(other)),
                });
            }
        }
    });
    url
}

#[tokio::test]
async fn rows_are_read_once_and_then_not_modified() {
    let url = answer_reads(Node::start(EdgeSettings::default()).await);
    let client = reqwest::Client::new();
    let response = soon(client.get(format!("{url}/v1/rows/orders")).send()).await.expect("an answer");
    assert_eq!(response.status(), 200);
    let etag = response.headers()["etag"].clone();
    assert_eq!(etag, "W/\"a91c-k3f9-41\"");
    let body: serde_json::Value = response.json().await.expect("JSON");
    assert_eq!((&body["version"], &body["rows"]), (&json!(44), &json!([{"id":1}])));
    let again = client.get(format!("{url}/v1/rows/orders")).header("if-none-match", etag.clone()).send();
    let again = soon(again).await.expect("an answer");
    assert_eq!((again.status().as_u16(), &again.headers()["etag"]), (304, &etag));
    assert_eq!(again.text().await.expect("a body"), "");
}

#[tokio::test]
async fn refusals_are_problems_with_the_protocols_codes() {
    let url = answer_reads(Node::start(EdgeSettings::default()).await);
    for (path, status, code) in [
        ("/v1/rows/nothing", 404, json!("unknown_publication")),
        ("/v1/rows/orders?a=eq.1", 400, json!("bad_query")),
        ("/v1/rows/Or%20ders", 404, json!("unknown_publication")),
        ("/v1/rows/later", 503, json!("unavailable")),
        ("/v1/rows/", 404, json!(null)),
        ("/v1/events/orders", 404, json!(null)),
        ("/../Cargo.toml", 404, json!(null)),
        ("/..%2fCargo.toml", 404, json!(null)),
        ("/v1/ws", 400, json!(null)),
    ] {
        let response = soon(reqwest::get(format!("{url}{path}"))).await.expect("an answer");
        assert_eq!(response.status(), status, "{path}");
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{path}");
        assert_eq!(response.headers().contains_key("retry-after"), status == 503, "{path}");
        let body: serde_json::Value = response.json().await.expect("JSON");
        assert_eq!((&body["status"], &body["code"]), (&json!(status), &code), "{path}");
    }
    let response = soon(reqwest::Client::new().post(format!("{url}/v1/rows/orders")).send()).await.expect("an answer");
    assert_eq!(response.status(), 405);
    assert_eq!(response.headers()["allow"], "GET,HEAD,OPTIONS");
}

#[tokio::test]
async fn a_listed_origin_may_read_and_no_other() {
    let allowed_origins = "https://a.example".parse().expect("origins");
    let url = answer_reads(Node::start(EdgeSettings { allowed_origins, ..EdgeSettings::default() }).await);
    let client = reqwest::Client::new();
    for (origin, allowed) in [("https://a.example", Some("https://a.example")), ("https://b.example", None)] {
        for method in [reqwest::Method::GET, reqwest::Method::OPTIONS] {
            let request = client.request(method, format!("{url}/v1/rows/orders")).header("origin", origin);
            let response = soon(request.send()).await.expect("an answer");
            let header =
                response.headers().get("access-control-allow-origin").map(|value| value.to_str().expect("text"));
            assert_eq!(header, allowed, "{origin}");
            assert_eq!(response.headers()["vary"], "Origin");
        }
    }
}

#[tokio::test]
async fn readiness_names_what_failed() {
    let node = Node::start(EdgeSettings::default()).await;
    node.hub.set_status(HubStatus { beat_age: Some(Duration::from_millis(900)), ..HubStatus::default() });
    let response = soon(reqwest::get(node.url("/readyz"))).await.expect("an answer");
    assert_eq!(response.status(), 503);
    let body: serde_json::Value = response.json().await.expect("JSON");
    assert_eq!(body["failed"], json!(["postgres", "store"]), "{body}");
    assert_eq!(body["relay"], json!({"ok":true,"detail":"the last beat is 900 ms old"}));
}

#[tokio::test]
async fn balancers_see_a_drain_before_any_client_does() {
    let node = Node::start(EdgeSettings::default()).await;
    let url = node.url("/servez");
    let status = || async { soon(reqwest::get(&url)).await.expect("an answer").status().as_u16() };
    assert_eq!(status().await, 200);
    let drain = Arc::clone(&node.drain);
    let draining = tokio::spawn(async move { drain.run(Duration::from_secs(60), Duration::ZERO).await });
    soon(async {
        while status().await != 503 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(soon(reqwest::get(node.url("/healthz"))).await.expect("an answer").status(), 200);
    draining.abort();
}

#[tokio::test]
async fn figures_are_for_this_machine_only() {
    let node = Node::start(EdgeSettings::default()).await;
    let response = soon(reqwest::get(node.url("/metrics"))).await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert!(response.text().await.expect("a body").contains("rowcast_sessions"));
    let passed_on = reqwest::Client::new().get(node.url("/metrics")).header("x-forwarded-for", "192.0.2.1").send();
    assert_eq!(soon(passed_on).await.expect("an answer").status(), 404);
    let elsewhere = Node::start(EdgeSettings { metrics: MetricsAt::Own, ..EdgeSettings::default() }).await;
    assert_eq!(soon(reqwest::get(elsewhere.url("/metrics"))).await.expect("an answer").status(), 404);
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_ended() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let node = Node::start(EdgeSettings::default()).await;
    let mut stream = tokio::net::TcpStream::connect(node.address).await.expect("a connection");
    stream.write_all(b"GET /v1/ws HTTP/1.1\r\nHost: x\r\n").await.expect("a send");
    let mut rest = Vec::new();
    let _ = soon(stream.read_to_end(&mut rest)).await;
}
