//! The routes that are read with plain requests.

use std::net::{SocketAddr, UdpSocket};

use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use sqlx::Connection;

use super::wire::Wire;
use crate::harness::database::Database;
use crate::harness::node::Node;
use crate::harness::{until, within};

/// A GET with a header, or without: status, headers, body.
async fn get(node: &Node, path: &str, header: Option<(&str, &str)>) -> (u16, HeaderMap, String) {
    let mut request = reqwest::Client::new().get(node.url(path));
    if let Some((name, value)) = header {
        request = request.header(name, value);
    }
    let response = within("an answer", request.send()).await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    (status, headers, within("a body", response.text()).await.expect("a body"))
}

fn etag(headers: &HeaderMap) -> String {
    headers["etag"].to_str().expect("text").to_owned()
}

/// The notes of a document's rows, by id.
fn notes(body: &str) -> Vec<String> {
    let document: Value = serde_json::from_str(body).expect("JSON");
    let mut rows = document["rows"].as_array().expect("rows").clone();
    rows.sort_by_key(|row| row["id"].as_i64());
    rows.iter().map(|row| row["note"].as_str().expect("text").to_owned()).collect()
}

#[tokio::test]
async fn rows_are_not_modified_until_a_commit_changes_them() {
    let database = Database::with_items(2, 6).await;
    database.run("create table others (id int primary key)").await;
    database.run("select rowcast.publish('others', policy => 'public')").await;
    let node = Node::start(&database.url, None).await;
    let (status, headers, body) = get(&node, "/v1/rows/items", None).await;
    assert_eq!((status, &headers["cache-control"]), (200, &"public, no-cache".parse().expect("a header")), "{body}");
    let before = etag(&headers);
    assert_eq!(notes(&body), ["note 1", "note 2"]);
    let unchanged = async |tag: &str| {
        let (status, headers, body) = get(&node, "/v1/rows/items", Some(("if-none-match", tag))).await;
        assert_eq!((status, etag(&headers).as_str(), body.as_str()), (304, tag, ""));
    };
    unchanged(&before).await;
    // The node moves on; these rows do not.
    let mut wire = Wire::greeted(node.address).await;
    wire.subscribe(1, "others").await;
    database.run("insert into others values (1)").await;
    assert_eq!(wire.answer().await["op"], "delta");
    unchanged(&before).await;

    database.run("update items set note = 'b' where id = 2").await;
    let (headers, body) = until("the change is read", async || {
        let (status, headers, body) = get(&node, "/v1/rows/items", Some(("if-none-match", &before))).await;
        (status == 200).then_some((headers, body))
    })
    .await;
    let after = etag(&headers);
    assert_ne!(before, after);
    assert_eq!(notes(&body), ["note 1", "b"]);
    let document: Value = serde_json::from_str(&body).expect("JSON");
    let named =
        format!("W/\"{}-{}-", document["tag"].as_str().expect("text"), document["epoch"].as_str().expect("text"));
    assert!(after.starts_with(&named), "{after}");
    unchanged(&after).await;
    // A rollback is no change.
    let mut connection = database.connect().await;
    let mut transaction = connection.begin().await.expect("a transaction");
    sqlx::query("delete from items").execute(&mut *transaction).await.expect("a delete");
    transaction.rollback().await.expect("a rollback");
    database.run("insert into others values (2)").await;
    assert_eq!(wire.answer().await["op"], "delta");
    unchanged(&after).await;
}

#[tokio::test]
async fn a_client_may_go_on_from_what_was_read() {
    let database = Database::with_items(3, 6).await;
    let node = Node::start(&database.url, None).await;
    let (_, _, body) = get(&node, "/v1/rows/items", None).await;
    let document: Value = serde_json::from_str(&body).expect("JSON");
    let mut wire = Wire::greeted(node.address).await;
    database.run("delete from items where id = 2").await;
    let resume = json!({"tag":document["tag"],"epoch":document["epoch"],"version":document["version"]});
    wire.say(&json!({"op":"subscribe","id":1,"channel":"items","resume":resume}).to_string()).await;
    let subscribed = wire.answer().await;
    assert_eq!(subscribed["resumed"], true, "{subscribed}");
    let delta = wire.answer().await;
    assert_eq!(delta["op"], "delta", "{delta}");
    assert_eq!(delta["gone"][0]["key"], json!([2]), "{delta}");
}

#[tokio::test]
async fn refusals_are_problems_with_the_protocols_codes() {
    let database = Database::with_items(1, 6).await;
    database.run("create table secrets (id int primary key)").await;
    database.run("select rowcast.publish('secrets', policy => 'authenticated')").await;
    let node = Node::start(&database.url, None).await;
    for (path, status, code) in [
        ("/v1/rows/nothing", 404, json!("unknown_publication")),
        ("/v1/rows/secrets", 403, json!("forbidden")),
        ("/v1/rows/items?a=eq.1", 400, json!("bad_query")),
        ("/v1/rows/It%20ems", 404, json!("unknown_publication")),
        ("/v1/rows/", 404, json!(null)),
        ("/../Cargo.toml", 404, json!(null)),
        ("/..%2fCargo.toml", 404, json!(null)),
        ("/v1/ws", 400, json!(null)),
    ] {
        let (got, headers, body) = get(&node, path, None).await;
        assert_eq!(got, status, "{path}: {body}");
        assert_eq!(headers["content-type"], "application/problem+json", "{path}");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!((&body["status"], &body["code"]), (&json!(status), &code), "{path}");
    }
    let posted = reqwest::Client::new().post(node.url("/v1/rows/items")).send();
    let posted = within("an answer", posted).await.expect("an answer");
    assert_eq!(posted.status(), 405);
    assert_eq!(posted.headers()["allow"], "GET,HEAD,OPTIONS");
}

#[tokio::test]
async fn a_listed_origin_may_read_and_no_other() {
    let database = Database::with_items(1, 6).await;
    let listing = [("ROWCAST_ALLOWED_ORIGINS", "https://a.example")];
    let node = Node::start_with(&database.url, None, &listing).await;
    for (origin, allowed) in [("https://a.example", Some("https://a.example")), ("https://b.example", None)] {
        for method in [reqwest::Method::GET, reqwest::Method::OPTIONS] {
            let request = reqwest::Client::new().request(method, node.url("/v1/rows/items")).header("origin", origin);
            let response = within("an answer", request.send()).await.expect("an answer");
            assert!(response.status().is_success());
            let named = response.headers().get("access-control-allow-origin");
            assert_eq!(named.map(|value| value.to_str().expect("text")), allowed, "{origin}");
            assert_eq!(response.headers()["vary"], "Origin");
        }
    }
}

#[tokio::test]
async fn figures_are_for_this_machine_only() {
    let database = Database::create().await;
    let anywhere = [("ROWCAST_LISTEN", "0.0.0.0:0")];
    let node = Node::start_with(&database.url, None, &anywhere).await;
    let port = node.address.port();
    let (status, _, body) = get(&node, "/metrics", None).await;
    assert!(status == 200 && body.contains("\nrowcast_sessions 0"), "{body}");
    let (status, ..) = get(&node, "/metrics", Some(("x-forwarded-for", "192.0.2.1"))).await;
    assert_eq!(status, 404, "passed on by a proxy");
    // A machine without a network has no other address to come from.
    if let Some(own) = own_address() {
        let other = |path: &str| reqwest::get(format!("http://{}{path}", SocketAddr::new(own, port)));
        assert_eq!(within("an answer", other("/healthz")).await.expect("an answer").status(), 200);
        assert_eq!(within("an answer", other("/metrics")).await.expect("an answer").status(), 404);
    }
}

#[tokio::test]
async fn a_listener_of_their_own_takes_the_figures_off_the_main_one() {
    let database = Database::create().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
    let own = free.to_string();
    let node = Node::start_with(&database.url, None, &[("ROWCAST_METRICS_LISTEN", &own)]).await;
    assert_eq!(get(&node, "/metrics", None).await.0, 404);
    let figures = reqwest::get(format!("http://{own}/metrics"));
    let figures = within("an answer", figures).await.expect("an answer").text().await.expect("a body");
    assert!(figures.contains("\nrowcast_sessions 0"), "{figures}");
    let rows = reqwest::get(format!("http://{own}/v1/rows/items"));
    assert_eq!(within("an answer", rows).await.expect("an answer").status(), 404);
}

/// The address of this machine that packets to the world leave from. Nothing is sent.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}
