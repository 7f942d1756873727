//! A websocket client that knows frames and no protocol: it says what it is told to and shows what it got.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::harness::within;

pub struct Wire(pub WebSocketStream<TcpStream>);

impl Wire {
    /// With the headers given; nothing has been read yet.
    pub async fn open(address: SocketAddr, headers: &[(&'static str, &str)]) -> Self {
        let stream = TcpStream::connect(address).await.expect("a connection");
        Self::over(stream, headers).await
    }

    /// A client that has been greeted.
    pub async fn greeted(address: SocketAddr) -> Self {
        let mut wire = Self::open(address, &[]).await;
        let hello = wire.frame().await;
        assert_eq!(hello["op"], "hello", "{hello}");
        wire
    }

    /// The same, of a client whose kernel takes little that is not read.
    pub async fn greeted_with_small_buffer(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(32 * 1024).expect("a small buffer");
        let mut wire = Self::over(socket.connect(address).await.expect("a connection"), &[]).await;
        let hello = wire.frame().await;
        assert_eq!(hello["op"], "hello", "{hello}");
        wire
    }

    async fn over(stream: TcpStream, headers: &[(&'static str, &str)]) -> Self {
        let address = stream.peer_addr().expect("a connected stream");
        let mut request = format!("ws://{address}/v1/ws").into_client_request().expect("a request");
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().expect("a header"));
        }
        let opened = within("a websocket opens", tokio_tungstenite::client_async(request, stream)).await;
        Self(opened.expect("a handshake").0)
    }

    pub async fn say(&mut self, text: &str) {
        within("a message is sent", self.0.send(Message::text(text))).await.expect("a connection");
    }

    /// The next frame, whatever it is.
    pub async fn frame(&mut self) -> Value {
        loop {
            match within("a frame comes", self.0.next()).await {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).expect("frames are JSON"),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("expected a frame, got {other:?}"),
            }
        }
    }

    /// The next frame that is not a `live`, which may stand anywhere.
    pub async fn answer(&mut self) -> Value {
        within("a frame that is not a live", async {
            loop {
                let frame = self.frame().await;
                if frame["op"] != "live" {
                    return frame;
                }
            }
        })
        .await
    }

    /// Subscribes and reads the rows: `subscribed`, and the rows of all pages.
    pub async fn subscribe(&mut self, id: u64, channel: &str) -> (Value, Vec<Value>) {
        self.say(&format!(r#"{{"op":"subscribe","id":{id},"channel":"{channel}"}}"#)).await;
        let subscribed = self.answer().await;
        assert_eq!((&subscribed["op"], &subscribed["id"]), (&"subscribed".into(), &id.into()), "{subscribed}");
        let mut rows = Vec::new();
        loop {
            let page = self.answer().await;
            assert_eq!((&page["op"], &page["ch"]), (&"snapshot".into(), &subscribed["ch"]), "{page}");
            rows.extend(page["rows"].as_array().into_iter().flatten().cloned());
            if page["more"] != true {
                return (subscribed, rows);
            }
        }
    }

    /// Reads to the end: the close frame's code and reason.
    pub async fn closed(&mut self) -> (u16, Value) {
        loop {
            match within("the connection is closed", self.0.next()).await {
                Some(Ok(Message::Close(Some(frame)))) => {
                    return (frame.code.into(), serde_json::from_str(&frame.reason).expect("reasons are JSON"));
                }
                Some(Ok(Message::Close(None))) | None => panic!("closed without a reason"),
                Some(Ok(_)) => {}
                Some(Err(error @ tungstenite::Error::Io(_))) => panic!("lost before the close frame: {error}"),
                Some(Err(error)) => panic!("{error}"),
            }
        }
    }
}
