//! Websocket sessions over a real socket.

use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use rowcast::http::EdgeSettings;
use rowcast::hub::Ask;
use rowcast::protocol::ErrorCode;
use rowcast::session::SessionSettings;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use super::harness::{Client, Node, delivery, soon};

fn with_session(session: SessionSettings) -> EdgeSettings {
    EdgeSettings { session, ..EdgeSettings::default() }
}

#[tokio::test]
async fn a_session_says_hello_first_and_answers_a_ping() {
    let mut node = Node::start(EdgeSettings::default()).await;
    let mut client = Client::connect(node.address, &[("sec-websocket-protocol", "rowcast.v1")]).await;
    let hello = client.json().await;
    assert_eq!((&hello["op"], &hello["protocol"]), (&json!("hello"), &json!(1)));
    assert_eq!(hello["limits"], json!({"message":65_536,"subscriptions":128}));
    client.say(r#"{"op":"ping"}"#).await;
    assert_eq!(client.json().await, json!({"op":"pong"}));
    let _ = soon(client.0.close(None)).await;
    assert!(matches!(node.asked().await, Ask::Detach(_)));
}

#[tokio::test]
async fn a_token_offered_as_a_subprotocol_is_never_echoed() {
    let node = Node::start(EdgeSettings::default()).await;
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
            head.push(soon(stream.read_u8()).await.expect("a response"));
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
    let mut node = Node::start(EdgeSettings::default()).await;
    let not_utf8 = Message::Frame(Frame::message(vec![0xff, 0xfe], OpCode::Data(Data::Text), true));
    for message in [Message::text("{"), Message::text(""), Message::binary(b"{}".to_vec()), not_utf8] {
        let (mut client, _deliveries) = node.client().await;
        soon(client.0.send(message.clone())).await.expect("a send");
        assert_eq!(client.closed().await, (4500, json!({"code":"protocol_error"})), "{message:?}");
        assert!(matches!(node.asked().await, Ask::Detach(_)));
    }
}

#[tokio::test]
async fn what_cannot_be_understood_is_an_error_without_an_id_and_the_session_goes_on() {
    let mut node = Node::start(EdgeSettings::default()).await;
    let (mut client, _deliveries) = node.client().await;
    for (text, code) in [
        (r#"{"op":"jump","id":1}"#, "unknown_op"),
        (r#"{"op":"subscribe","id":1}"#, "bad_message"),
        (r#"{"op":"subscribe","id":-1,"channel":"orders"}"#, "bad_message"),
        ("[]", "bad_message"),
        ("7", "bad_message"),
        (r#"{"op":"auth","token":"abc"}"#, "bad_token"),
    ] {
        client.say(text).await;
        let error = client.json().await;
        assert_eq!((&error["op"], &error["code"]), (&json!("error"), &json!(code)), "{text}: {error}");
        assert_eq!(error.get("id"), None, "{text}: {error}");
    }
    client.say(r#"{"op":"ping"}"#).await;
    assert_eq!(client.json().await, json!({"op":"pong"}));
}

#[tokio::test]
async fn a_message_over_the_limit_closes_with_4429() {
    let mut node = Node::start(EdgeSettings::default()).await;
    let (mut client, _deliveries) = node.client().await;
    let padded = |bytes: usize| format!("{{\"op\":\"ping\",\"x\":\"{}\"}}", "x".repeat(bytes - 20));
    client.say(&padded(65_536)).await;
    assert_eq!(client.json().await, json!({"op":"pong"}));
    for bytes in [65_537, 300_000, 4 << 20] {
        let (mut client, _deliveries) = node.client().await;
        // The server may close before the message is out.
        let _ = soon(client.0.send(Message::text(padded(bytes)))).await;
        assert_eq!(client.closed().await, (4429, json!({"code":"limit_exceeded"})), "{bytes}");
    }
}

#[tokio::test]
async fn subscriptions_reach_the_hub_as_they_were_said() {
    let mut node = Node::start(EdgeSettings::default()).await;
    let (mut client, _deliveries) = node.client().await;
    client.say(r#"{"op":"subscribe","id":1,"channel":"orders","resume":{"tag":"a","epoch":"e","version":4}}"#).await;
    let Ask::Subscribe { id: 1, request: Ok(request), resume: Some(resume), .. } = node.asked().await else {
        panic!("not the subscription")
    };
    assert_eq!((&*request.publication, resume.tag.as_str()), ("orders", "a"));
    client.say(r#"{"op":"subscribe","id":2,"channel":"orders?status=eq.open"}"#).await;
    let Ask::Subscribe { id: 2, request: Err(refusal), .. } = node.asked().await else { panic!("not the refusal") };
    assert_eq!((refusal.code, refusal.at), (ErrorCode::BadQuery, Some(7)));
    client.say(r#"{"op":"unsubscribe","id":1}"#).await;
    assert!(matches!(node.asked().await, Ask::Unsubscribe { id: 1, .. }));
    drop(client);
    assert!(matches!(node.asked().await, Ask::Detach(_)));
}

#[tokio::test]
async fn deliveries_arrive_in_order_and_then_the_hub_hears_that_all_are_out() {
    let mut node = Node::start(EdgeSettings::default()).await;
    let (mut client, deliveries) = node.client().await;
    let mut next = 0..;
    for size in [1, 3, 0, 20] {
        let frames: Vec<String> =
            next.by_ref().take(size).map(|n| format!("{{\"n\":{n},\"x\":\"{}\"}}", "x".repeat(40_000))).collect();
        deliveries.send(delivery(frames)).await.expect("a place");
    }
    for n in 0..24 {
        assert_eq!(client.json().await["n"], n);
    }
    assert!(matches!(soon(node.asked.recv()).await, Some(Ask::Drained(_))));
}

#[tokio::test]
async fn a_client_that_stops_reading_is_closed_with_4409_and_the_hub_hears_it_first() {
    let stall_max = Duration::from_millis(500);
    let mut node = Node::start(with_session(SessionSettings { stall_max, ..SessionSettings::default() })).await;
    let (mut client, deliveries) = node.client().await;
    let frame = format!("{{\"x\":\"{}\"}}", "x".repeat(60_000));
    // More than the kernel's buffers of both ends take.
    let many = (0..400).map(move |_| frame.clone());
    deliveries.send(delivery(many)).await.expect("a place");
    assert!(matches!(node.asked().await, Ask::Detach(_)));
    assert_eq!(client.closed().await, (4409, json!({"code":"too_slow"})));
    let figures = reqwest::get(node.url("/metrics")).await.expect("an answer").text().await.expect("a body");
    assert!(figures.contains(r#"rowcast_session_closes_total{reason="too_slow"}"#), "{figures}");
}

#[tokio::test]
async fn a_client_that_reads_slowly_is_waited_for() {
    let stall_max = Duration::from_millis(600);
    let mut node = Node::start(with_session(SessionSettings { stall_max, ..SessionSettings::default() })).await;
    let (mut client, deliveries) = node.client().await;
    let frame = format!("{{\"x\":\"{}\"}}", "x".repeat(60_000));
    deliveries.send(delivery((0..400).map(|_| frame.clone()))).await.expect("a place");
    let began = Instant::now();
    let mut read = 0;
    while read < 400 {
        // Reading in spurts, with pauses shorter than the patience; the whole takes several times as long as it.
        for _ in 0..40 {
            client.json().await;
            read += 1;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert!(began.elapsed() > 3 * stall_max);
    client.say(r#"{"op":"ping"}"#).await;
    assert_eq!(client.json().await, json!({"op":"pong"}));
}

#[tokio::test]
async fn a_client_that_speaks_too_fast_is_read_later_and_loses_nothing() {
    let settings = SessionSettings { messages_burst: 5, messages_per_second: 50, ..SessionSettings::default() };
    let mut node = Node::start(with_session(settings)).await;
    let (mut client, _deliveries) = node.client().await;
    let began = Instant::now();
    for _ in 0..55 {
        client.say(r#"{"op":"ping"}"#).await;
    }
    for _ in 0..55 {
        assert_eq!(client.json().await, json!({"op":"pong"}));
    }
    assert!(began.elapsed() >= Duration::from_millis(950), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_client_that_does_not_answer_pings_is_given_up() {
    let settings = SessionSettings {
        ping_every: Duration::from_millis(200),
        ping_deadline: Duration::from_millis(200),
        ..SessionSettings::default()
    };
    let mut node = Node::start(with_session(settings)).await;
    // The library answers pings while it is read from: this client reads, so it stays …
    let (mut reading, _reading_deliveries) = node.client().await;
    // … and this one does not.
    let (_silent, _silent_deliveries) = node.client().await;
    let reader = tokio::spawn(async move {
        let mut pings = 0;
        while pings < 6 {
            match soon(reading.0.next()).await {
                Some(Ok(Message::Ping(_))) => pings += 1,
                other => panic!("expected a ping, got {other:?}"),
            }
        }
    });
    assert!(matches!(node.asked().await, Ask::Detach(session) if session.0 == 2));
    soon(reader).await.expect("the reading client stays");
}

#[tokio::test]
async fn pages_of_other_origins_are_refused_after_the_handshake() {
    let mut node = Node::start(EdgeSettings::default()).await;
    let mut stranger = Client::connect(node.address, &[("origin", "https://evil.example")]).await;
    assert_eq!(stranger.closed().await, (4503, json!({"code":"origin_refused"})));
    let own = format!("http://{}", node.address);
    let mut own = Client::connect(node.address, &[("origin", &own)]).await;
    assert_eq!(own.json().await["op"], "hello");
    assert!(node.attached.try_recv().is_ok() && node.attached.try_recv().is_err());
}

#[tokio::test]
async fn a_full_node_says_so_and_takes_clients_again_when_one_leaves() {
    let mut node = Node::start(EdgeSettings { sessions_max: 1, ..EdgeSettings::default() }).await;
    let (client, _deliveries) = node.client().await;
    let mut second = Client::connect(node.address, &[]).await;
    let (code, reason) = second.closed().await;
    assert_eq!((code, &reason["code"]), (1013, &json!("overloaded")));
    assert!(reason["retry_after_ms"].is_u64());
    drop((client, second));
    soon(async {
        loop {
            let mut again = Client::connect(node.address, &[]).await;
            if let Some(Ok(Message::Text(_))) = again.0.next().await {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_drain_closes_every_session_with_1012_within_the_spread_and_then_ends() {
    let mut node = Node::start(EdgeSettings::default()).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(node.client().await);
    }
    // What the hub has handed over before the end still goes out.
    clients[0].1.send(delivery(["{\"op\":\"last\"}".to_owned()])).await.expect("a place");
    let began = Instant::now();
    let wait = Duration::from_millis(300);
    node.drain.run(wait, Duration::from_millis(700)).await;
    assert_eq!(clients[0].0.json().await["op"], "last");
    for (client, _deliveries) in &mut clients {
        let (code, reason) = client.closed().await;
        assert_eq!((code, &reason["code"]), (1012, &json!("restart")));
        assert!(reason["retry_after_ms"].is_u64());
    }
    assert!(began.elapsed() >= wait);
    soon(node.served).await.expect("no panic").expect("served");
    assert!(node.drain.tasks().is_empty());
    assert!(TcpStream::connect(node.address).await.is_err(), "still listening");
}

#[tokio::test]
async fn sessions_end_when_the_hub_does() {
    let mut node = Node::start(EdgeSettings::default()).await;
    let (mut client, deliveries) = node.client().await;
    drop(deliveries);
    let (code, reason) = client.closed().await;
    assert_eq!((code, &reason["code"]), (1001, &json!("going_away")));
}
