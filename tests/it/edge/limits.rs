//! Limits: crossing one is a clear error or a named close, never silence. Times are shortened by the settings that an
//! operator has too.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use super::wire::Wire;
use crate::harness::database::Database;
use crate::harness::node::Node;
use crate::harness::{until, within};

/// A snapshot of several times what the kernels of both ends take.
const MUCH: (u32, u32) = (3_000, 1_000);

#[tokio::test]
async fn a_message_over_the_limit_closes_with_4429() {
    let database = Database::create().await;
    let node = Node::start(&database.url, None).await;
    let padded = |bytes: usize| format!("{{\"op\":\"ping\",\"x\":\"{}\"}}", "x".repeat(bytes - 20));
    let mut wire = Wire::greeted(node.address).await;
    wire.say(&padded(65_536)).await;
    assert_eq!(wire.answer().await, json!({"op":"pong"}));
    for bytes in [65_537, 300_000, 4 << 20] {
        let mut wire = Wire::greeted(node.address).await;
        // The server may close before the message is out.
        let _ = within("a message is sent", wire.0.send(Message::text(padded(bytes)))).await;
        assert_eq!(wire.closed().await, (4429, json!({"code":"limit_exceeded"})), "{bytes}");
    }
}

#[tokio::test]
async fn one_subscription_too_many_is_refused_and_the_others_stay() {
    let database = Database::with_items(1, 6).await;
    let node = Node::start_with(&database.url, None, &[("ROWCAST_SUBSCRIPTIONS_MAX", "1")]).await;
    let mut wire = Wire::greeted(node.address).await;
    wire.subscribe(1, "items").await;
    wire.say(r#"{"op":"subscribe","id":2,"channel":"items"}"#).await;
    let error = wire.answer().await;
    assert_eq!((&error["id"], &error["code"]), (&json!(2), &json!("too_many_subscriptions")), "{error}");
    database.run("update items set note = 'b'").await;
    assert_eq!(wire.answer().await["rows"], json!([{"id":1,"note":"b"}]));
}

#[tokio::test]
async fn a_channel_with_too_many_rows_is_refused() {
    let database = Database::with_items(11, 6).await;
    let node = Node::start_with(&database.url, None, &[("ROWCAST_CHANNEL_ROWS_MAX", "10")]).await;
    let mut wire = Wire::greeted(node.address).await;
    wire.say(r#"{"op":"subscribe","id":1,"channel":"items"}"#).await;
    let error = wire.answer().await;
    assert_eq!((&error["id"], &error["code"]), (&json!(1), &json!("too_many_rows")), "{error}");
}

#[tokio::test]
async fn a_client_that_stops_reading_is_closed_with_4409() {
    let database = Database::with_items(MUCH.0, MUCH.1).await;
    let node = Node::start_with(&database.url, None, &[("ROWCAST_STALL_MAX", "500ms")]).await;
    let mut wire = Wire::greeted_with_small_buffer(node.address).await;
    wire.say(r#"{"op":"subscribe","id":1,"channel":"items"}"#).await;
    let too_slow = r#"rowcast_session_closes_total{reason="too_slow"}"#;
    until("the session ends", async || (node.metric(too_slow).await == 1.0).then_some(())).await;
    assert_eq!(wire.closed().await, (4409, json!({"code":"too_slow"})));
    assert_eq!(node.metric("rowcast_sessions").await, 0.0);
}

#[tokio::test]
async fn a_client_that_reads_slowly_is_waited_for() {
    let database = Database::with_items(MUCH.0, MUCH.1).await;
    let node = Node::start_with(&database.url, None, &[("ROWCAST_STALL_MAX", "1s")]).await;
    let mut wire = Wire::greeted_with_small_buffer(node.address).await;
    wire.say(r#"{"op":"subscribe","id":1,"channel":"items"}"#).await;
    // Reading in spurts, with pauses shorter than the patience; the whole takes several times as long as it.
    let began = Instant::now();
    let mut pages = 0;
    loop {
        let frame = wire.answer().await;
        if frame["op"] != "snapshot" {
            continue;
        }
        pages += 1;
        if frame["more"] != true {
            break;
        }
        if pages % 4 == 0 {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
    assert!(pages > 30, "{pages}");
    assert!(began.elapsed() > Duration::from_secs(3), "{:?}", began.elapsed());
    database.run("update items set note = 'last' where id = 1").await;
    assert_eq!(wire.answer().await["rows"], json!([{"id":1,"note":"last"}]));
}

#[tokio::test]
async fn a_slow_client_skips_states_but_ends_at_the_last_one() {
    const COMMITS: u32 = 100;
    let database = Database::with_items(MUCH.0, MUCH.1).await;
    let node = Node::start(&database.url, None).await;
    let mut wire = Wire::greeted_with_small_buffer(node.address).await;
    wire.say(r#"{"op":"subscribe","id":1,"channel":"items"}"#).await;
    assert_eq!(wire.answer().await["op"], "subscribed");
    // While it reads no more, each of these is a cut of its own.
    let mut connection = database.connect().await;
    for number in 1..=COMMITS {
        let cuts = node.metric("rowcast_cuts_total").await;
        let update = sqlx::query("update items set note = 'note ' || $1 where id = 1").bind(number as i32);
        update.execute(&mut connection).await.expect("an update");
        until("a cut", async || (node.metric("rowcast_cuts_total").await > cuts).then_some(())).await;
    }
    let (mut deltas, mut note) = (0, String::new());
    while note != format!("note {COMMITS}") {
        let frame = wire.answer().await;
        if frame["op"] == "delta" {
            deltas += 1;
            note = frame["rows"][0]["note"].as_str().expect("the changed column").to_owned();
        }
    }
    assert!(deltas < COMMITS, "{deltas} deltas");
}

#[tokio::test]
async fn a_client_that_speaks_too_fast_is_read_later_and_loses_nothing() {
    let database = Database::create().await;
    let slow = [("ROWCAST_MESSAGES_BURST", "5"), ("ROWCAST_MESSAGES_PER_SECOND", "50")];
    let node = Node::start_with(&database.url, None, &slow).await;
    let mut wire = Wire::greeted(node.address).await;
    let began = Instant::now();
    for _ in 0..55 {
        wire.say(r#"{"op":"ping"}"#).await;
    }
    for _ in 0..55 {
        assert_eq!(wire.answer().await, json!({"op":"pong"}));
    }
    assert!(began.elapsed() >= Duration::from_millis(950), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_client_that_does_not_answer_pings_is_given_up() {
    let database = Database::create().await;
    let impatient = [("ROWCAST_PING_EVERY", "200ms"), ("ROWCAST_PING_DEADLINE", "800ms")];
    let node = Node::start_with(&database.url, None, &impatient).await;
    // The library answers pings while it is read from: this client reads, so it stays …
    let mut reading = Wire::greeted(node.address).await;
    // … and this one does not.
    let _silent = Wire::greeted(node.address).await;
    let mut pings = 0;
    let mut next_ping = async || {
        loop {
            match within("a ping comes", reading.0.next()).await {
                Some(Ok(Message::Ping(_))) => return,
                Some(Ok(Message::Text(_))) => {}
                other => panic!("expected a ping, got {other:?}"),
            }
        }
    };
    let silent = r#"rowcast_session_closes_total{reason="silent"}"#;
    while pings < 8 || node.metric(silent).await == 0.0 {
        next_ping().await;
        pings += 1;
        assert!(pings < 40, "the silent client is still there");
    }
    assert_eq!((node.metric(silent).await, node.metric("rowcast_sessions").await), (1.0, 1.0));
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_ended() {
    let database = Database::create().await;
    let node = Node::start_with(&database.url, None, &[("ROWCAST_HANDSHAKE_MAX", "300ms")]).await;
    let mut stream = tokio::net::TcpStream::connect(node.address).await.expect("a connection");
    stream.write_all(b"GET /v1/ws HTTP/1.1\r\nHost: x\r\n").await.expect("a send");
    let mut rest = Vec::new();
    let _ = within("the connection ends", stream.read_to_end(&mut rest)).await;
    assert!(!String::from_utf8_lossy(&rest).contains("101"), "{rest:?}");
}

#[tokio::test]
async fn a_full_node_says_so_and_takes_clients_again_when_one_leaves() {
    let database = Database::create().await;
    let node = Node::start_with(&database.url, None, &[("ROWCAST_CONNECTIONS_MAX", "1")]).await;
    let first = Wire::greeted(node.address).await;
    let mut second = Wire::open(node.address, &[]).await;
    let (code, reason) = second.closed().await;
    assert_eq!((code, &reason["code"]), (1013, &json!("overloaded")));
    assert!(reason["retry_after_ms"].is_u64());
    drop((first, second));
    until("there is room again", async || {
        let mut again = Wire::open(node.address, &[]).await;
        matches!(again.0.next().await, Some(Ok(Message::Text(_)))).then_some(())
    })
    .await;
}
