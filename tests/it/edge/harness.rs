//! A node's edge on port 0, over a hub that the test plays itself: what sessions ask is seen, what they get is chosen.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{SinkExt, StreamExt};
use rowcast::http::listen::{bind, serve};
use rowcast::http::{Edge, EdgeParts, EdgeSettings, router};
use rowcast::hub::{Ask, Delivery, HubHandle, Inbox, SessionId};
use rowcast::publication::FeedKey;
use rowcast::session::drain::Drain;
use rowcast::store::{Append, AppendError, Beat, Fence, LogRead, Store, StoreError, Subscription};
use rowcast::version::{Cut, Version};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// Every wait of a test ends after this, with a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Node {
    pub address: SocketAddr,
    pub hub: HubHandle,
    pub drain: Arc<Drain>,
    pub served: JoinHandle<std::io::Result<()>>,
    /// A session attached: where its deliveries go.
    pub attached: mpsc::UnboundedReceiver<mpsc::Sender<Delivery>>,
    /// Everything else that was asked.
    pub asked: mpsc::UnboundedReceiver<Ask>,
}

impl Node {
    pub async fn start(settings: EdgeSettings) -> Self {
        let (hub, mut asks, loopback) = HubHandle::new();
        let (attached_tx, attached) = mpsc::unbounded_channel();
        let (asked_tx, asked) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut next = 1;
            while let Some(ask) = asks.recv().await {
                let Ask::Attach(reply) = ask else {
                    let _ = asked_tx.send(ask);
                    continue;
                };
                let (deliveries_tx, deliveries) = mpsc::channel(64);
                let session = SessionId(next);
                next += 1;
                let _ = attached_tx.send(deliveries_tx);
                let _ = reply.send((session, Inbox { session, deliveries, asks: loopback.clone() }));
            }
        });
        let drain = Drain::new();
        let stall_max = settings.session.stall_max;
        let edge = Edge::new(EdgeParts {
            hub: hub.clone(),
            store: Arc::new(NoStore),
            // Nobody listens on the discard port of loopback: Postgres is down.
            postgres: Arc::new("postgres://nobody@127.0.0.1:9/none".parse().expect("a URL")),
            settings,
            drain: Arc::clone(&drain),
            exporter: rowcast::metrics::install().expect("a recorder"),
        });
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let served = tokio::spawn(serve(listener, router(edge), Arc::clone(&drain), stall_max));
        drain.started();
        Self { address, hub, drain, served, attached, asked }
    }

    /// A client that has been greeted, and the sender of its deliveries.
    pub async fn client(&mut self) -> (Client, mpsc::Sender<Delivery>) {
        let mut client = Client::connect(self.address, &[]).await;
        let hello = client.json().await;
        assert_eq!(hello["op"], "hello", "{hello}");
        (client, soon(self.attached.recv()).await.expect("an attached session"))
    }

    /// The next ask that is not `Drained`.
    pub async fn asked(&mut self) -> Ask {
        loop {
            match soon(self.asked.recv()).await.expect("the hub runs") {
                Ask::Drained(_) => {}
                ask => return ask,
            }
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

pub struct Client(pub WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    pub async fn connect(address: SocketAddr, headers: &[(&'static str, &str)]) -> Self {
        let mut request = format!("ws://{address}/v1/ws").into_client_request().expect("a request");
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().expect("a header"));
        }
        let (socket, _) = soon(tokio_tungstenite::connect_async(request)).await.expect("a handshake");
        Self(socket)
    }

    pub async fn say(&mut self, text: &str) {
        soon(self.0.send(Message::text(text))).await.expect("a send");
    }

    /// The next text frame.
    pub async fn json(&mut self) -> serde_json::Value {
        loop {
            match soon(self.0.next()).await {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).expect("frames are JSON"),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("expected a frame, got {other:?}"),
            }
        }
    }

    /// Reads to the end: the close frame's code and reason.
    pub async fn closed(&mut self) -> (u16, serde_json::Value) {
        loop {
            match soon(self.0.next()).await {
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

/// Waits, but not for ever.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("this should have happened long ago")
}

pub fn delivery(frames: impl IntoIterator<Item = String>) -> Delivery {
    Delivery { frames: frames.into_iter().map(Into::into).collect(), as_of: Some(1_790_000_000_000) }
}

/// The edge asks a store one thing only, whether it is there; this one is not.
struct NoStore;

fn down<T>() -> Result<T, StoreError> {
    Err(StoreError::Unavailable("it is down".into()))
}

#[async_trait]
impl Store for NoStore {
    fn name(&self) -> &'static str {
        "none"
    }
    async fn claim(&self, _: u64) -> Result<(Fence, Option<Cut>), StoreError> {
        down()
    }
    async fn head(&self) -> Result<Option<Cut>, StoreError> {
        down()
    }
    async fn append(&self, _: &Append) -> Result<(), AppendError> {
        Ok(down()?)
    }
    async fn beat(&self, _: Fence, _: &Beat) -> Result<(), AppendError> {
        Ok(down()?)
    }
    async fn read_log(&self, _: &FeedKey, _: Version) -> Result<LogRead, StoreError> {
        down()
    }
    fn subscribe(&self) -> (Subscription, BoxFuture<'static, ()>) {
        panic!("the edge does not subscribe")
    }
    async fn checkpoint(&self, _: &FeedKey, _: &str) -> Result<Option<Bytes>, StoreError> {
        down()
    }
    async fn put_checkpoint(&self, _: &FeedKey, _: &str, _: Bytes, _: Duration) -> Result<(), StoreError> {
        down()
    }
    async fn lock(&self, _: &FeedKey, _: &str, _: &str, _: Duration) -> Result<bool, StoreError> {
        down()
    }
    async fn unlock(&self, _: &FeedKey, _: &str, _: &str) -> Result<(), StoreError> {
        down()
    }
    async fn ping(&self) -> Result<(), StoreError> {
        down()
    }
}
