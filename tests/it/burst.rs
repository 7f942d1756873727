//! A burst: 2,000 clients subscribe to one channel at once, and Postgres is asked for its rows once. A second node that
//! has never seen the channel asks nothing: the store has it.

use std::net::SocketAddr;
use std::time::Instant;

use futures_util::stream::{self, StreamExt};
use futures_util::{SinkExt, future};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use crate::harness::within;
use crate::harness::world::World;

const CLIENTS: usize = 2_000;
const ROWS: usize = 300;
/// Connections that open at the same time; all subscriptions are sent at once.
const OPENING: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_clients_cost_postgres_one_query() {
    let clients = allow_sockets(CLIENTS);
    let world = World::start(
        "create table item (id int primary key, v int); insert into item select i, i from generate_series(1, 300) i;
         select rowcast.publish('item', 'public')",
    )
    .await;
    let nodes = [world.node().await, world.node().await];
    for (number, node) in nodes.iter().enumerate() {
        node.ready().await;
        let mut sockets: Vec<_> = stream::iter(0..clients)
            .map(|_| connect(node.address))
            .buffer_unordered(OPENING)
            .collect::<Vec<WebSocketStream<TcpStream>>>()
            .await;
        let began = Instant::now();
        let bursts = sockets.iter_mut().map(async |socket| {
            let subscribe = r#"{"op":"subscribe","id":1,"channel":"item"}"#;
            socket.send(Message::text(subscribe)).await.expect("an open connection");
            rows(socket).await
        });
        let rows = within("every client has its rows", future::join_all(bursts)).await;
        assert!(rows.iter().all(|&rows| rows == ROWS), "{rows:?}");
        let mut queries = 0.0;
        for node in &nodes {
            queries += node.metric("rowcast_snapshot_queries_total").await;
        }
        println!("node {number}: {clients} clients in {:?}, {queries} snapshot queries so far", began.elapsed());
        assert_eq!(queries, 1.0);
        assert_eq!(node.metric("rowcast_sessions").await, clients as f64);
        assert_eq!(node.metric("rowcast_channels").await, 1.0);
    }
}

/// A websocket with small buffers, since there are many.
async fn connect(address: SocketAddr) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(address).await.expect("a connection");
    let config = WebSocketConfig::default().read_buffer_size(4_096).write_buffer_size(0);
    let url = format!("ws://{address}/v1/ws");
    tokio_tungstenite::client_async_with_config(url, stream, Some(config)).await.expect("a websocket").0
}

/// Reads up to the end of the snapshot; how many rows it had.
async fn rows(socket: &mut WebSocketStream<TcpStream>) -> usize {
    let mut rows = 0;
    loop {
        let message = socket.next().await.expect("an open connection").expect("an open connection");
        let Message::Text(text) = message else { continue };
        if !text.contains(r#""op":"snapshot""#) {
            assert!(!text.contains(r#""op":"error""#), "{text}");
            continue;
        }
        let page: Value = serde_json::from_str(&text).expect("JSON");
        rows += page["rows"].as_array().map_or(0, Vec::len);
        if page["more"] != true {
            return rows;
        }
    }
}

/// Lets this process, and the nodes that it starts, open a socket per client; fewer clients where that is not allowed.
fn allow_sockets(clients: usize) -> usize {
    const OTHERS: u64 = 300;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    // Both bursts stay open here; each node has one of them.
    let wanted = 2 * clients as u64 + OTHERS;
    let allowed = soft.max(wanted.min(hard));
    setrlimit(Resource::RLIMIT_NOFILE, allowed, hard).expect("a limit up to the hard one");
    if allowed < wanted {
        println!("only {allowed} open files are allowed here: fewer clients");
    }
    clients.min(allowed.saturating_sub(OTHERS) as usize / 2)
}
