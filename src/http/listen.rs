//! Accepts connections, sets their sockets up, and ends with the drain.
//!
//! axum's own `serve` is not used, for three reasons: it sets no time limit on a handshake, it offers no place to count
//! what a socket writes, and its graceful shutdown does not wait for upgraded connections.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::session::drain::{self, Drain};
use crate::session::progress::Progress;

/// Unsent bytes the kernel takes before a socket counts as full. Without it a client that does not read holds 4 MB of
/// stale messages in the kernel, which no later state can replace any more.
const NOTSENT_LOWAT_BYTES: u32 = 16 * 1024;

/// Added to the patience with a client that does not read, so that the session's own close comes first.
const USER_TIMEOUT_SLACK: Duration = Duration::from_secs(5);

/// hyper's buffer per connection: request heads are small, and a websocket's messages do not pass through it.
const HTTP_BUFFER_BYTES: usize = 16 * 1024;

/// Connections that may wait to be accepted, as far as `net.core.somaxconn` allows: after a restart every client of a
/// node comes within seconds, and one that finds no place waits a second for its next SYN.
const BACKLOG: u32 = 4_096;

/// After an accept that failed for want of file descriptors, trying again at once would only burn the core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection waits for its client.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A request's head, and with it a websocket's handshake, must be complete within this.
    pub handshake_max: Duration,
    /// With a client that does not read.
    pub stall_max: Duration,
}

/// Who is at the other end of a request's connection, and how its socket moves. An extractor.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    pub progress: Arc<Progress>,
}

/// Binds a listener that takes a burst of reconnecting clients.
///
/// # Errors
/// The address is in use, or not ours.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A restarted node takes its port back at once.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until the drain closes and everything that was begun here has ended (or was cut off).
///
/// # Errors
/// None while it runs: an accept that fails is tried again.
pub async fn serve(listener: TcpListener, router: Router, drain: Arc<Drain>, patience: Patience) -> io::Result<()> {
    let mut http = auto::Builder::new(TokioExecutor::new()).http1_only();
    http.http1().timer(TokioTimer::new()).header_read_timeout(patience.handshake_max).max_buf_size(HTTP_BUFFER_BYTES);
    let mut phase = drain.watch();
    loop {
        // Wake-ups: a connection; the drain, which comes first, so that nothing new is begun after it.
        let accepted = tokio::select! {
            biased;
            _ = drain::closing(&mut phase) => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                if let Err(error) = set_up(&stream, patience.stall_max) {
                    tracing::debug!(%address, %error, "setting socket options");
                }
                let connection = connection(http.clone(), stream, address, router.clone(), Arc::clone(&drain));
                drain.tasks().spawn(connection);
            }
            // The client was gone before we came to it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::error!(%error, "accepting a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    drain.ended().await;
    Ok(())
}

/// Messages leave at once, a full client is noticed early, a dead one is let go.
fn set_up(stream: &TcpStream, stall_max: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)?;
    socket.set_tcp_user_timeout(Some(stall_max + USER_TIMEOUT_SLACK))
}

/// Runs one connection until it is closed or upgraded.
async fn connection(
    http: auto::Builder<TokioExecutor>,
    stream: TcpStream,
    address: SocketAddr,
    router: Router,
    drain: Arc<Drain>,
) {
    let progress = Arc::new(Progress::new());
    let peer = Peer { address, progress: Arc::clone(&progress) };
    let service = WithPeer { inner: TowerToHyperService::new(router), peer };
    let socket = TokioIo::new(MeteredSocket { stream, progress });
    let mut served = pin!(http.serve_connection_with_upgrades(socket, service));
    let mut phase = drain.watch();
    let mut closing = false;
    loop {
        // Wake-ups: the connection has ended; the node closes (answer what was asked, then no more); it has no time
        // left.
        tokio::select! {
            result = served.as_mut() => {
                if let Err(error) = result {
                    tracing::trace!(%address, %error, "connection failed");
                }
                return;
            }
            _ = drain::closing(&mut phase), if !closing => {
                closing = true;
                served.as_mut().graceful_shutdown();
            }
            () = drain.cut_off() => return,
        }
    }
}

/// Hands every request its [`Peer`].
#[derive(Clone)]
struct WithPeer {
    inner: TowerToHyperService<Router>,
    peer: Peer,
}

impl Service<hyper::Request<Incoming>> for WithPeer {
    type Response = axum::response::Response;
    type Error = Infallible;
    type Future = <TowerToHyperService<Router> as Service<hyper::Request<Incoming>>>::Future;

    fn call(&self, mut request: hyper::Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer.clone());
        self.inner.call(request)
    }
}

impl<S: Sync> FromRequestParts<S> for Peer {
    type Rejection = super::problem::Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Self::Rejection> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            let status = axum::http::StatusCode::INTERNAL_SERVER_ERROR;
            super::problem::Problem::of(status, "these routes are served by `listen::serve` only")
        })
    }
}

/// A socket that counts what it writes.
struct MeteredSocket {
    stream: TcpStream,
    progress: Arc<Progress>,
}

impl AsyncRead for MeteredSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for MeteredSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.progress.moved(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, pieces))?;
        self.progress.moved(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_accepted_socket_is_full_early_and_sends_at_once() {
        let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let _client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("a connection");
        let (stream, _) = listener.accept().await.expect("a connection");
        set_up(&stream, Duration::from_secs(30)).expect("socket options");
        let socket = socket2::SockRef::from(&stream);
        assert!(stream.nodelay().expect("an option"));
        assert_eq!(socket.tcp_notsent_lowat().expect("an option"), NOTSENT_LOWAT_BYTES);
        assert_eq!(socket.tcp_user_timeout().expect("an option"), Some(Duration::from_secs(35)));
    }
}
