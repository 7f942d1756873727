//! Bad input: whatever a client sends or a command line says, the answer is a clear error, nothing is lost, and nobody
//! else is disturbed. A bystander on the same node converges all the while.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rowcast::cli::client::Handle;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::harness::content::Content;
use crate::harness::dash::{self, Dash};
use crate::harness::node::Node;
use crate::harness::within;
use crate::harness::world::World;

const SCHEMA: &str = "
    create table item (id int primary key, v int); insert into item select i, i from generate_series(1, 20) i;
    create table secret (id int primary key, token text); insert into secret values (1, 'geheim');
    select rowcast.publish('item', 'public'), rowcast.publish('secret', 'token=eq.{token}')";

/// One who does nothing wrong.
struct Bystander {
    dash: Dash,
    handle: Handle,
    round: u32,
}

impl Bystander {
    async fn open(node: &Node) -> Self {
        let (mut dash, handles) = Dash::open(node.address, &["item"]).await;
        dash.complete().await;
        Self { dash, handle: handles[0], round: 0 }
    }

    /// A change still arrives, on the same connection.
    async fn converges(&mut self, world: &World) {
        self.round += 1;
        world.run(&format!("update item set v = v + 1; insert into item values ({}, 0)", 100 + self.round)).await;
        let expected = Content::of_publication(&mut world.connect().await, "item").await;
        let handle = self.handle;
        self.dash.until("the bystander converges", |dash| Content::of_client(&dash.client, handle) == expected).await;
        assert_eq!((self.dash.seen.snapshots, self.dash.seen.resets), (1, 0));
    }
}

/// A client that says anything.
struct Rude(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Rude {
    async fn connect(address: SocketAddr) -> Self {
        Self(dash::connect(address).await.expect("a websocket"))
    }

    async fn say(&mut self, text: impl Into<String>) {
        self.0.send(Message::text(text.into())).await.expect("an open connection");
    }

    /// The next frame with one of these ops.
    async fn hears(&mut self, ops: &[&str]) -> Value {
        within("an answer", async {
            loop {
                match self.0.next().await.expect("an open connection").expect("an open connection") {
                    Message::Text(text) => {
                        let frame: Value = serde_json::from_str(&text).expect("JSON");
                        if ops.iter().any(|op| frame["op"] == *op) {
                            return frame;
                        }
                    }
                    Message::Close(frame) => panic!("closed: {frame:?}"),
                    _ => {}
                }
            }
        })
        .await
    }

    async fn closes(&mut self) -> (u16, Value) {
        within("the close", async {
            loop {
                match self.0.next().await.expect("a close frame").expect("a close frame") {
                    Message::Close(Some(frame)) => {
                        let reason = serde_json::from_str(&frame.reason).expect("a reason in JSON");
                        return (CloseCode::into(frame.code), reason);
                    }
                    Message::Close(None) => panic!("a close without a reason"),
                    _ => {}
                }
            }
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_wrong_are_answered_and_disturb_nobody() {
    let world = World::start(SCHEMA).await;
    let node = world.node().await;
    node.ready().await;
    let mut bystander = Bystander::open(&node).await;
    let mut rude = Rude::connect(node.address).await;
    rude.say(r#"{"op":"subscribe","id":1,"channel":"item"}"#).await;
    rude.hears(&["snapshot"]).await;

    // What concerns the connection: an error without an id; the connection and its subscription live on.
    let long = "x".repeat(60_000);
    for (message, code) in [
        (r#"{"op":"jump"}"#.to_owned(), "unknown_op"),
        (r#"{"op":""}"#.to_owned(), "unknown_op"),
        (format!(r#"{{"op":"{long}"}}"#), "unknown_op"),
        (r#"{"no":"op"}"#.to_owned(), "bad_message"),
        ("[1,2]".to_owned(), "bad_message"),
        ("null".to_owned(), "bad_message"),
        (r#""subscribe""#.to_owned(), "bad_message"),
        (r#"{"op":7}"#.to_owned(), "bad_message"),
        (r#"{"op":"subscribe"}"#.to_owned(), "bad_message"),
        (r#"{"op":"subscribe","id":2}"#.to_owned(), "bad_message"),
        (r#"{"op":"subscribe","id":-1,"channel":"item"}"#.to_owned(), "bad_message"),
        (r#"{"op":"subscribe","id":1.5,"channel":"item"}"#.to_owned(), "bad_message"),
        (r#"{"op":"subscribe","id":"1","channel":"item"}"#.to_owned(), "bad_message"),
        (r#"{"op":"subscribe","id":99999999999999999999,"channel":"item"}"#.to_owned(), "bad_message"),
        (r#"{"op":"subscribe","id":2,"channel":["item"]}"#.to_owned(), "bad_message"),
        (r#"{"op":"subscribe","id":2,"channel":"item","resume":{"tag":"x"}}"#.to_owned(), "bad_message"),
        (
            r#"{"op":"subscribe","id":2,"channel":"item","resume":{"tag":"x","epoch":"e","version":-4}}"#.to_owned(),
            "bad_message",
        ),
        (r#"{"op":"unsubscribe","id":77}"#.to_owned(), "unknown_id"),
        (r#"{"op":"auth","token":"no.such.token"}"#.to_owned(), "bad_token"),
    ] {
        rude.say(message.clone()).await;
        let error = rude.hears(&["error"]).await;
        let short = message.chars().take(80).collect::<String>();
        assert_eq!((&error["code"], &error["id"]), (&json!(code), &Value::Null), "{short}: {error}");
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty() && text.len() < 400), "{short}: {error}");
    }

    // What concerns one subscription: an error that names it.
    let deep = format!("item?{}", "v=eq.1&".repeat(9_000));
    let refused = [
        ("nothing", "unknown_publication", None),
        ("", "unknown_publication", None),
        ("Item", "unknown_publication", None),
        ("item; drop table item", "unknown_publication", None),
        ("itém", "unknown_publication", None),
        ("item\u{0}", "unknown_publication", None),
        (long.as_str(), "unknown_publication", None),
        ("secret", "forbidden", None),
        ("secret?token=eq.geheim", "forbidden", None),
        ("item?v", "bad_query", Some(5)),
        ("item?v=near.5", "bad_query", Some(7)),
        ("item?id=eq.1&limit=none", "bad_query", Some(19)),
        ("item?v=eq.%ff", "bad_query", Some(10)),
        ("item?nothing=eq.1", "bad_query", Some(5)),
        ("item?v=eq.many", "bad_query", Some(10)),
        ("item?id=eq.1' or '1'='1", "bad_query", Some(11)),
    ];
    for (number, (channel, code, at)) in (100..).zip(refused) {
        rude.say(json!({"op": "subscribe", "id": number, "channel": channel}).to_string()).await;
        let error = rude.hears(&["error", "subscribed"]).await;
        let short = channel.chars().take(80).collect::<String>();
        assert_eq!((&error["code"], &error["id"]), (&json!(code), &json!(number)), "{short}: {error}");
        assert_eq!(error["at"].as_u64(), at, "{short}: {error}");
        let message = error["message"].as_str().unwrap_or_default();
        assert!(!message.is_empty() && message.len() < 400 && !message.contains("token"), "{short}: {error}");
    }
    rude.say(json!({"op": "subscribe", "id": 200, "channel": deep}).to_string()).await;
    rude.hears(&["error", "snapshot"]).await;
    rude.say(r#"{"op":"subscribe","id":1,"channel":"item"}"#).await;
    assert_eq!(rude.hears(&["error"]).await["code"], "duplicate_id");
    bystander.converges(&world).await;

    // None of this has ended the first subscription.
    world.run("update item set v = 4711 where id = 1").await;
    while !rude.hears(&["delta"]).await.to_string().contains("4711") {}
    rude.say(r#"{"op":"ping"}"#).await;
    rude.hears(&["pong"]).await;

    // What is not JSON, not text, or too long ends the connection, by name, and no other.
    for (message, code, name) in [
        (Message::text("{"), 4500, "protocol_error"),
        (Message::text(""), 4500, "protocol_error"),
        (Message::binary(&b"\x00\x01"[..]), 4500, "protocol_error"),
        (Message::text(format!("\"{}\"", "x".repeat(70_000))), 4429, "limit_exceeded"),
        (Message::text("[".repeat(50_000)), 4500, "protocol_error"),
    ] {
        let mut rude = Rude::connect(node.address).await;
        rude.0.send(message).await.expect("an open connection");
        let (closed, reason) = rude.closes().await;
        assert_eq!((closed, &reason["code"]), (code, &json!(name)));
    }
    bystander.converges(&world).await;
    assert_eq!(node.metric("rowcast_sessions").await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_urls_and_methods_are_problems_in_json() {
    let world = World::start(SCHEMA).await;
    let node = world.node().await;
    node.ready().await;
    let mut bystander = Bystander::open(&node).await;
    let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().expect("a client");
    for (method, path, status, code) in [
        ("GET", "/v1/nothing", 404, None),
        ("GET", "/v1/rows", 404, None),
        ("GET", "/v2/ws", 404, None),
        ("GET", "/../../etc/passwd", 404, None),
        ("GET", "/%2e%2e/Cargo.toml", 404, None),
        ("GET", "/v1/ws", 400, None),
        ("POST", "/v1/ws", 405, None),
        ("POST", "/v1/rows/item", 405, None),
        ("DELETE", "/v1/rows/item", 405, None),
        ("POST", "/healthz", 405, None),
        ("GET", "/v1/rows/nothing", 404, Some("unknown_publication")),
        ("GET", "/v1/rows/It%20em", 404, Some("unknown_publication")),
        ("GET", "/v1/rows/secret", 403, Some("forbidden")),
        ("GET", "/v1/rows/item?v=near.5", 400, Some("bad_query")),
        ("GET", "/v1/rows/item?limit=none", 400, Some("bad_query")),
        ("GET", "/v1/rows/item?%ff=eq.1", 400, Some("bad_query")),
    ] {
        let method: reqwest::Method = method.parse().expect("a method");
        let answer = client.request(method.clone(), node.url(path)).send().await.expect("an answer");
        let kind = answer.headers().get("content-type").map(|kind| kind.to_str().unwrap_or_default().to_owned());
        let got = answer.status().as_u16();
        let body = answer.text().await.expect("a body");
        assert_eq!((got, kind.as_deref()), (status, Some("application/problem+json")), "{method} {path}: {body}");
        let problem: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!((problem["status"].as_u64(), problem["code"].as_str()), (Some(u64::from(status)), code), "{body}");
        assert!(
            problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()) && !body.contains("token"),
            "{body}"
        );
    }
    bystander.converges(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_line_that_is_wrong_ends_with_2_and_names_the_flag() {
    let database = "postgres://ann:geheim@127.0.0.1:1/shop";
    let serve = |flag: &'static str, value: &'static str| vec!["serve", "--database-url", database, flag, value];
    for (arguments, named) in [
        (vec![], "Usage"),
        (vec!["fly"], "fly"),
        (vec!["serve"], "DATABASE_URL"),
        (vec!["serve", "--database-url", "mysql://ann:geheim@db/shop"], "--database-url"),
        (vec!["serve", "--database-url", database, "--no-such-flag"], "--no-such-flag"),
        (serve("--redis-url", "http://:geheim@cache"), "--redis-url"),
        (serve("--listen", "8080"), "--listen"),
        (serve("--metrics-listen", "here"), "--metrics-listen"),
        (serve("--allowed-origins", "app.example"), "--allowed-origins"),
        (serve("--drain-wait", "5"), "--drain-wait"),
        (serve("--channel-rows-max", "many"), "--channel-rows-max"),
        (vec!["serve", "--database-url", database, "--linger=-1s"], "--linger"),
        (serve("--log", "loud"), "--log"),
        (vec!["demo", "--rate=-4"], "--rate"),
        (vec!["demo", "--rate", "fast"], "--rate"),
        (vec!["publish", "item"], "--policy"),
        (vec!["publish", "item", "--policy", "public", "--bulk-rows=-1", "--database-url", database], "--bulk-rows"),
        (vec!["publish", "", "--policy", "public", "--database-url", database], "<RELATION>"),
        (vec!["unpublish", "--database-url", database], "<NAME>"),
        (vec!["watch"], "<CHANNEL>"),
        (vec!["watch", "item", "--url", "ftp://host"], "--url"),
        (vec!["watch", "item", "--url", "localhost:8080"], "--url"),
        (vec!["watch", "item", "--rows", "all"], "--rows"),
    ] {
        let (code, said) = rowcast(&arguments, &[]).await;
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        assert!(
            said.contains(named) && !said.contains("geheim") && !said.contains("panicked"),
            "{arguments:?}: {said}"
        );
    }
    // The variable is named too, for those who have set it.
    let (code, said) = rowcast(&["serve"], &[("DATABASE_URL", database), ("ROWCAST_LISTEN", "everywhere")]).await;
    assert!(code == Some(2) && said.contains("ROWCAST_LISTEN"), "{said}");

    // What only shows when it is tried ends with 1, and says what, without the password.
    for (arguments, named) in [
        (vec!["serve", "--database-url", database, "--listen", "127.0.0.1:0"], "127.0.0.1:1"),
        (vec!["publications", "--database-url", database], "127.0.0.1:1"),
    ] {
        let (code, said) = rowcast(&arguments, &[]).await;
        assert_eq!(code, Some(1), "{arguments:?}: {said}");
        assert!(
            said.contains(named) && !said.contains("geheim") && !said.contains("panicked"),
            "{arguments:?}: {said}"
        );
    }
}

/// Runs the program with nothing but these variables; its exit code and what it printed.
async fn rowcast(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_rowcast"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .kill_on_drop(true)
        .output();
    let output = within("the program ends by itself", output).await.expect("the program starts");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}
