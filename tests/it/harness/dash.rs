//! A dashboard: a websocket client of a node that keeps rows by the protocol, and is strict about it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rowcast::cli::client::{Client, Event, Handle};
use rowcast::version::Version;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::within;

/// What a dashboard saw since it was asked last.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub subscribed: usize,
    pub resumed: usize,
    pub snapshots: usize,
    pub changes: usize,
    pub resets: usize,
    pub gaps: usize,
    pub refused: Vec<String>,
    /// Codes of the closes that the server said.
    pub closes: Vec<u16>,
    /// How often the server has taken a token.
    pub authenticated: usize,
    pub expiring: usize,
    /// Codes of errors that concern the connection.
    pub errors: Vec<String>,
}

/// See the module.
#[derive(Default)]
pub struct Dash {
    pub client: Client,
    socket: Option<WebSocketStream<MaybeTlsStream<TcpStream>>>,
    pub seen: Seen,
}

/// Rows by key, each as one JSON text with its columns in alphabetical order.
pub type Table = BTreeMap<String, String>;

impl Dash {
    /// Connects and subscribes.
    pub async fn open(address: SocketAddr, channels: &[&str]) -> (Self, Vec<Handle>) {
        let mut dash = Self::default();
        let handles = channels.iter().map(|channel| dash.client.subscribe(channel)).collect();
        dash.connect(address).await;
        (dash, handles)
    }

    /// The same as somebody: the token is the first message.
    pub async fn open_as(address: SocketAddr, token: &str, channels: &[&str]) -> (Self, Vec<Handle>) {
        let mut dash = Self::default();
        dash.client.authenticate(token.parse().expect("a token"));
        let handles = channels.iter().map(|channel| dash.client.subscribe(channel)).collect();
        dash.connect(address).await;
        (dash, handles)
    }

    /// Says another token.
    pub async fn authenticate(&mut self, token: &str) {
        self.client.authenticate(token.parse().expect("a token"));
        self.send_outgoing().await;
    }

    /// Takes frames in until the server closes; the code.
    pub async fn closed(&mut self) -> u16 {
        within("the server closes", async { while self.next().await.is_some() {} }).await;
        self.seen.closes.pop().expect("a close that the server said")
    }

    /// Connects, again if need be, and resumes what it has.
    pub async fn connect(&mut self, address: SocketAddr) {
        // Spelled out, since the future of `until` with a closure that waits is not `Send`.
        let socket = within("a websocket opens", async {
            loop {
                match connect(address).await {
                    Some(socket) => break socket,
                    None => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        });
        self.socket = Some(socket.await);
        self.client.connected();
        self.send_outgoing().await;
    }

    /// Connects with a receive buffer that does not grow: what this client does not read soon waits at the server.
    pub async fn connect_narrowly(&mut self, address: SocketAddr) {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(64 << 10).expect("a small buffer");
        let stream = socket.connect(address).await.expect("a connection");
        let opened = tokio_tungstenite::client_async(request(address), MaybeTlsStream::Plain(stream)).await;
        self.disconnect();
        self.socket = Some(opened.expect("a websocket").0);
        self.client.connected();
        self.send_outgoing().await;
    }

    /// One attempt of the same; whether it led to a connection.
    pub async fn try_connect(&mut self, address: SocketAddr) -> bool {
        self.socket = connect(address).await;
        if self.socket.is_some() {
            self.client.connected();
            self.send_outgoing().await;
        }
        self.is_connected()
    }

    /// Drops the connection without a word.
    pub fn disconnect(&mut self) {
        self.socket = None;
        self.client.disconnected();
    }

    pub fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// Sends what the client has to say; a connection that is gone is noticed by the next read.
    pub async fn send_outgoing(&mut self) {
        let Some(socket) = &mut self.socket else { return };
        for text in self.client.take_outgoing() {
            if socket.send(Message::text(text)).await.is_err() {
                return;
            }
        }
    }

    /// Takes the next text frame in; `None`: the connection has ended.
    pub async fn next(&mut self) -> Option<Vec<Event>> {
        let socket = self.socket.as_mut()?;
        loop {
            match socket.next().await {
                Some(Ok(Message::Text(text))) => {
                    let events = self.client.receive(&text).unwrap_or_else(|violation| panic!("{violation}\n{text}"));
                    for event in &events {
                        match event {
                            Event::Subscribed { resumed, .. } => {
                                self.seen.subscribed += 1;
                                self.seen.resumed += usize::from(*resumed);
                            }
                            Event::Snapshot { .. } => self.seen.snapshots += 1,
                            Event::Changed { .. } => self.seen.changes += 1,
                            Event::Reset { .. } => self.seen.resets += 1,
                            Event::Gap { .. } => self.seen.gaps += 1,
                            Event::Refused { error, .. } => self.seen.refused.push(error.code.clone()),
                            Event::Authenticated(_) => self.seen.authenticated += 1,
                            Event::Expiring { .. } => self.seen.expiring += 1,
                            Event::Error(error) => self.seen.errors.push(error.code.clone()),
                            _ => {}
                        }
                    }
                    self.send_outgoing().await;
                    return Some(events);
                }
                end @ (Some(Ok(Message::Close(_)) | Err(_)) | None) => {
                    if let Some(Ok(Message::Close(Some(close)))) = end {
                        self.seen.closes.push(close.code.into());
                    }
                    self.disconnect();
                    return None;
                }
                Some(Ok(_)) => {}
            }
        }
    }

    /// Takes frames in until a condition holds.
    pub async fn until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        within(what, async {
            while !condition(self) {
                assert!(self.next().await.is_some(), "the connection ended while waiting: {what}");
            }
        })
        .await;
    }

    /// Waits until every subscription has its rows.
    pub async fn complete(&mut self) {
        self.until("every subscription is complete", |dash| {
            dash.client.handles().iter().all(|&handle| dash.client.is_complete(handle))
        })
        .await;
    }

    /// The version at which a subscription stands.
    pub fn version(&self, handle: Handle) -> Option<Version> {
        self.client.position(handle).map(|position| position.version)
    }

    /// A subscription's rows.
    pub fn table(&self, handle: Handle) -> Table {
        let rows = self.client.rows(handle).into_iter().flatten();
        rows.map(|(key, row)| (key.as_str().to_owned(), row.to_value().to_string())).collect()
    }
}

/// One attempt to open a websocket.
pub async fn connect(address: SocketAddr) -> Option<WebSocketStream<MaybeTlsStream<TcpStream>>> {
    tokio_tungstenite::connect_async(request(address)).await.ok().map(|(socket, _)| socket)
}

fn request(address: SocketAddr) -> Request {
    let mut request = format!("ws://{address}/v1/ws").into_client_request().expect("a URL");
    request.headers_mut().insert("sec-websocket-protocol", "rowcast.v1".parse().expect("a header"));
    request
}
