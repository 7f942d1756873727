//! What a websocket client may say, and what it hears.

use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use super::wire::Wire;
use crate::harness::database::Database;
use crate::harness::node::Node;
use crate::harness::{until, within};

#[tokio::test]
async fn a_session_says_hello_first_answers_a_ping_and_is_forgotten_when_it_ends() {
    let database = Database::create().await;
    let node = Node::start(&database.url, None).await;
    let mut wire = Wire::open(node.address, &[("sec-websocket-protocol", "rowcast.v1")]).await;
    let hello = wire.frame().await;
    assert_eq!((&hello["op"], &hello["protocol"]), (&json!("hello"), &json!(1)));
    assert_eq!(hello["limits"], json!({"message":65_536,"subscriptions":128}));
    wire.say(r#"{"op":"ping"}"#).await;
    assert_eq!(wire.answer().await, json!({"op":"pong"}));
    assert_eq!(node.metric("rowcast_sessions").await, 1.0);
    let _ = within("the close goes out", wire.0.close(None)).await;
    until("the session is gone", async || (node.metric("rowcast_sessions").await == 0.0).then_some(())).await;
    assert_eq!(node.metric(r#"rowcast_session_closes_total{reason="client"}"#).await, 1.0);
}

#[tokio::test]
async fn a_token_offered_as_a_subprotocol_is_never_echoed() {
    let database = Database::create().await;
    let node = Node::start(&database.url, None).await;
    for (offer, selected) in
        [("", None), ("bearer.abc", None), ("bearer.abc, rowcast.v1", Some("rowcast.v1")), ("other", None)]
    {
        let offer = if offer.is_empty() { String::new() } else { format!("Sec-WebSocket-Protocol: {offer}\r\n") };
        let mut stream = TcpStream::connect(node.address).await.expect("a connection");
        let request = format!(
            "GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{offer}\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.expect("a request");
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            head.push(within("a response", stream.read_u8()).await.expect("a response"));
        }
        let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101"), "{head}");
        assert_eq!(head.contains("sec-websocket-protocol"), selected.is_some(), "{head}");
        assert!(selected.is_none_or(|selected| head.contains(&format!("sec-websocket-protocol: {selected}\r\n"))));
        assert!(!head.contains("bearer"), "{head}");
    }
}

#[tokio::test]
async fn what_is_not_json_or_not_text_closes_with_4500() {
    let database = Database::create().await;
    let node = Node::start(&database.url, None).await;
    let not_utf8 = Message::Frame(Frame::message(vec![0xff, 0xfe], OpCode::Data(Data::Text), true));
    for message in [Message::text("{"), Message::text(""), Message::binary(b"{}".to_vec()), not_utf8] {
        let mut wire = Wire::greeted(node.address).await;
        within("a message is sent", wire.0.send(message.clone())).await.expect("a connection");
        assert_eq!(wire.closed().await, (4500, json!({"code":"protocol_error"})), "{message:?}");
    }
    let closed = async || node.metric(r#"rowcast_session_closes_total{reason="protocol_error"}"#).await;
    assert_eq!(closed().await, 4.0);
}

#[tokio::test]
async fn what_cannot_be_understood_is_an_error_without_an_id_and_the_session_goes_on() {
    let database = Database::with_items(2, 8).await;
    let node = Node::start(&database.url, None).await;
    let mut wire = Wire::greeted(node.address).await;
    wire.subscribe(1, "items").await;
    for (text, code) in [
        (r#"{"op":"jump","id":1}"#, "unknown_op"),
        (r#"{"op":"subscribe","id":1}"#, "bad_message"),
        (r#"{"op":"subscribe","id":-1,"channel":"items"}"#, "bad_message"),
        (r#"{"op":"subscribe","id":1,"channel":"items","resume":7}"#, "bad_message"),
        ("[]", "bad_message"),
        ("7", "bad_message"),
        (r#"{"op":"auth","token":"abc"}"#, "bad_token"),
    ] {
        wire.say(text).await;
        let error = wire.answer().await;
        assert_eq!((&error["op"], &error["code"]), (&json!("error"), &json!(code)), "{text}: {error}");
        assert_eq!(error.get("id"), None, "{text}: {error}");
    }
    // Nothing of it has touched the subscription.
    database.run("update items set note = 'b' where id = 2").await;
    let delta = wire.answer().await;
    assert_eq!((&delta["op"], &delta["rows"]), (&json!("delta"), &json!([{"id":2,"note":"b"}])), "{delta}");
}

#[tokio::test]
async fn a_subscription_is_answered_refused_and_ended_by_its_id() {
    let database = Database::with_items(2, 6).await;
    database.run("create table secrets (id int primary key)").await;
    database.run("select rowcast.publish('secrets', policy => 'authenticated')").await;
    let node = Node::start(&database.url, None).await;
    let mut wire = Wire::greeted(node.address).await;
    wire.say(r#"{"op":"subscribe","id":1,"channel":"items","resume":{"tag":"a","epoch":"e","version":4}}"#).await;
    let subscribed = wire.answer().await;
    assert_eq!((&subscribed["id"], &subscribed["key"]), (&json!(1), &json!(["id"])), "{subscribed}");
    assert_ne!(subscribed["resumed"], true, "nobody can go on from a foreign position: {subscribed}");
    assert_eq!(wire.answer().await["rows"].as_array().map(Vec::len), Some(2));
    for (id, channel, code, at) in [
        (2, "items?note=near.a", "bad_query", Some(11)),
        (2, "nothing", "unknown_publication", None),
        (2, "secrets", "forbidden", None),
        (1, "items", "duplicate_id", None),
    ] {
        wire.say(&format!(r#"{{"op":"subscribe","id":{id},"channel":"{channel}"}}"#)).await;
        let error = wire.answer().await;
        assert_eq!((&error["op"], &error["id"]), (&json!("error"), &json!(id)), "{channel}: {error}");
        assert_eq!(error["code"], code, "{channel}: {error}");
        assert_eq!(error["at"].as_u64(), at, "{channel}: {error}");
    }
}

#[tokio::test]
async fn an_unsubscribed_id_hears_no_more_and_may_be_used_again() {
    let database = Database::with_items(2, 6).await;
    let node = Node::start(&database.url, None).await;
    let mut wire = Wire::greeted(node.address).await;
    wire.subscribe(1, "items").await;
    wire.say(r#"{"op":"unsubscribe","id":1}"#).await;
    assert_eq!(wire.answer().await, json!({"op":"unsubscribed","id":1}));
    wire.say(r#"{"op":"unsubscribe","id":1}"#).await;
    assert_eq!(wire.answer().await["code"], "unknown_id");
    database.run("update items set note = 'b' where id = 2").await;
    let (_, rows) = wire.subscribe(1, "items").await;
    assert_eq!(rows.len(), 2, "nothing came in between");
}

#[tokio::test]
async fn every_row_comes_once_in_pages_and_then_every_commit_in_its_turn() {
    const COMMITS: i64 = 30;
    let database = Database::with_items(1_000, 1_000).await;
    let node = Node::start(&database.url, None).await;
    let mut wire = Wire::greeted(node.address).await;
    let (subscribed, rows) = wire.subscribe(1, "items").await;
    let mut ids: Vec<i64> = rows.iter().filter_map(|row| row["id"].as_i64()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=1_000).collect::<Vec<i64>>());
    for number in 1..=COMMITS {
        database.run(&format!("update items set note = '{number}' where id = 7")).await;
    }
    let (mut version, mut noted) = (subscribed["version"].as_u64(), 0);
    while noted < COMMITS {
        let delta = wire.answer().await;
        assert_eq!((&delta["op"], &delta["ch"]), (&json!("delta"), &subscribed["ch"]), "{delta}");
        assert!(delta["prev"].as_u64() <= version && delta["version"].as_u64() > version, "{version:?}: {delta}");
        version = delta["version"].as_u64();
        let note: i64 = delta["rows"][0]["note"].as_str().and_then(|note| note.parse().ok()).expect("a note of ours");
        assert!(note > noted, "{note} after {noted}");
        noted = note;
    }
}

#[tokio::test]
async fn pages_of_other_origins_are_refused_after_the_handshake() {
    let database = Database::create().await;
    let node = Node::start(&database.url, None).await;
    let mut stranger = Wire::open(node.address, &[("origin", "https://evil.example")]).await;
    assert_eq!(stranger.closed().await, (4503, json!({"code":"origin_refused"})));
    let own = format!("http://{}", node.address);
    let mut own = Wire::open(node.address, &[("origin", &own)]).await;
    assert_eq!(own.frame().await["op"], "hello");
    assert_eq!(node.metric("rowcast_sessions").await, 1.0);
    let listing = [("ROWCAST_ALLOWED_ORIGINS", "https://a.example")];
    let node = Node::start_with(&database.url, None, &listing).await;
    let mut listed = Wire::open(node.address, &[("origin", "https://A.example:443")]).await;
    assert_eq!(listed.frame().await["op"], Value::from("hello"));
}
