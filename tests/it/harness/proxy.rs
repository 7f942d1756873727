//! A TCP proxy between a node and its Redis that can be told to stall: connections stay, nothing passes.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Listens as long as it lives.
pub struct Proxy {
    pub address: SocketAddr,
    stalled: watch::Sender<bool>,
}

impl Proxy {
    /// A proxy on a free port, to a server on this machine.
    pub async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (stalled, stall) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let stall = stall.clone();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(to).await else { return };
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    // When one direction ends, both halves of both sockets are dropped, so that each side hears of it.
                    tokio::select! {
                        () = carry(near_in, far_out, stall.clone()) => {}
                        () = carry(far_in, near_out, stall) => {}
                    }
                });
            }
        });
        Self { address, stalled }
    }

    /// Holds everything back, or lets it go on.
    pub fn stall(&self, stalled: bool) {
        self.stalled.send_replace(stalled);
    }
}

/// Carries bytes one way, while it is not stalled.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut stall: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if stall.wait_for(|stalled| !stalled).await.is_err() || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
