//! The socket under a session: frames in, frames out, and the close.
//!
//! This is the seam behind which the way of writing can change without a session noticing. It stands on axum's
//! websocket: frames are fed into its buffer and leave in as few writes as they fit, at the latest at
//! [`Transport::flush`]. It knows neither the hub nor the meaning of a frame.
//!
//! A write that does not move for `stall_max` gives [`WriteError::Stalled`]; one that moves slowly goes on.

use std::error::Error as _;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use futures_util::SinkExt;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite;

use super::progress::Progress;
use crate::protocol::{CloseReason, Frame};

/// The read buffer, which is zeroed at every poll and held per connection: 4 KiB costs 6 KB a connection where the
/// default of 128 KiB costs 137 KB and 8 µs per message.
const READ_BUFFER_BYTES: usize = 4096;

/// Up to here frames wait in user space for the flush. The buffer keeps its size once grown, so that this plus a page
/// is also what a connection that had a big snapshot goes on to hold.
const WRITE_BUFFER_BYTES: usize = 32 * 1024;

/// The most that may ever wait: the buffer and the largest message of the protocol (1 MiB + 64 KiB), with its header.
const WRITE_BUFFER_BYTES_MAX: usize = WRITE_BUFFER_BYTES + (1 << 20) + 65 * 1024;

/// A message up to so many times the limit is still read, so that the refusal can be told properly: with input left
/// unread the kernel resets the connection, and the close frame may be lost.
const READABLE_TIMES_LIMIT: usize = 4;

/// How long a close waits for the client's answer.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// The same where a token was revoked: what is queued before the close may be rows, and a second after the revocation the
/// last of them has to be gone.
const REVOKED_WAIT: Duration = Duration::from_millis(400);

/// A websocket, and what is needed to judge whether it moves.
pub struct Transport {
    socket: WebSocket,
    progress: Arc<Progress>,
    stall_max: Duration,
    message_bytes_max: usize,
    /// Reading has failed, nothing more will come.
    deaf: bool,
}

/// What came from the client.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Text(Utf8Bytes),
    /// A ping or a pong of the websocket itself: the client is there.
    Alive,
    Binary,
    /// A message over the limit.
    TooLong,
    /// Not a websocket frame, or a text that is not UTF-8.
    Malformed,
    /// The client closed.
    Closed,
    /// The connection broke.
    Lost,
}

/// Why a write did not happen.
#[derive(Debug, PartialEq, Eq)]
pub enum WriteError {
    /// Nothing moved for the whole of `stall_max`.
    Stalled,
    /// The connection broke.
    Lost,
}

/// Sets the sizes of an upgrade's buffers and messages.
pub fn configure(upgrade: WebSocketUpgrade, message_bytes_max: usize) -> WebSocketUpgrade {
    let readable = message_bytes_max * READABLE_TIMES_LIMIT;
    upgrade
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
        .max_message_size(readable)
        .max_frame_size(readable)
}

impl Transport {
    /// `progress` is what the socket below counts into.
    pub fn new(socket: WebSocket, progress: Arc<Progress>, stall_max: Duration, message_bytes_max: usize) -> Self {
        Self { socket, progress, stall_max, message_bytes_max, deaf: false }
    }

    /// Queues a frame; writes only when the buffer is full.
    pub async fn feed(&mut self, frame: Frame) -> Result<(), WriteError> {
        while_it_moves(&self.progress, self.stall_max, self.socket.feed(Message::Text(frame))).await
    }

    /// Writes everything queued.
    pub async fn flush(&mut self) -> Result<(), WriteError> {
        while_it_moves(&self.progress, self.stall_max, self.socket.flush()).await
    }

    /// Sends a websocket ping.
    pub async fn ping(&mut self) -> Result<(), WriteError> {
        while_it_moves(&self.progress, self.stall_max, self.socket.send(Message::Ping(bytes::Bytes::new()))).await
    }

    /// The next thing from the client. Cancel-safe.
    pub async fn recv(&mut self) -> Received {
        match self.socket.recv().await {
            Some(Ok(Message::Text(text))) if text.len() > self.message_bytes_max => Received::TooLong,
            Some(Ok(Message::Text(text))) => Received::Text(text),
            Some(Ok(Message::Binary(_))) => Received::Binary,
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Received::Alive,
            Some(Ok(Message::Close(_))) | None => Received::Closed,
            Some(Err(error)) => {
                self.deaf = true;
                match error.source().and_then(|source| source.downcast_ref::<tungstenite::Error>()) {
                    Some(tungstenite::Error::Capacity(_)) => Received::TooLong,
                    Some(tungstenite::Error::Utf8(_)) => Received::Malformed,
                    Some(tungstenite::Error::Protocol(
                        tungstenite::error::ProtocolError::ResetWithoutClosingHandshake,
                    )) => Received::Lost,
                    Some(tungstenite::Error::Protocol(_)) => Received::Malformed,
                    _ => Received::Lost,
                }
            }
        }
    }

    /// Says why, and waits a moment for the client to have read it. What was queued goes out first, if it can.
    pub async fn close(mut self, reason: CloseReason, retry_after_ms: Option<u64>) {
        let frame = CloseFrame { code: reason.code(), reason: reason.reason(retry_after_ms).into() };
        let wait = if reason == CloseReason::TokenRevoked { REVOKED_WAIT } else { CLOSE_WAIT };
        let wait_until = Instant::now() + wait;
        let handshake = async {
            if self.socket.send(Message::Close(Some(frame))).await.is_err() {
                return;
            }
            // Reading on empties the kernel's queue, so that closing does not reset what was just sent.
            if self.deaf {
                tokio::time::sleep_until(wait_until).await;
            } else {
                while matches!(self.socket.recv().await, Some(Ok(_))) {}
            }
        };
        // A client that neither reads nor answers has had its moment.
        let _ = tokio::time::timeout_at(wait_until, handshake).await;
    }

    /// Answers the client's close.
    pub async fn closed_by_client(mut self) {
        let answer = async { while matches!(self.socket.recv().await, Some(Ok(_))) {} };
        let _ = tokio::time::timeout(CLOSE_WAIT, answer).await;
    }
}

/// Runs a write for as long as the socket takes something every `stall_max`.
async fn while_it_moves<E>(
    progress: &Progress,
    stall_max: Duration,
    write: impl Future<Output = Result<(), E>>,
) -> Result<(), WriteError> {
    let began = Instant::now();
    let mut write = pin!(write);
    loop {
        let stalled_at = began.max(progress.last()) + stall_max;
        // Wake-ups: the write is done; or it may have stalled. The write is polled first, so that one which does not
        // have to wait never touches the timer.
        tokio::select! {
            biased;
            written = &mut write => return written.map_err(|_| WriteError::Lost),
            () = tokio::time::sleep_until(stalled_at) => {
                if began.max(progress.last()) + stall_max <= Instant::now() {
                    return Err(WriteError::Stalled);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_that_moves_slowly_is_waited_for() {
        let progress = Arc::new(Progress::new());
        let moving = Arc::clone(&progress);
        let write = async move {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_secs(29)).await;
                moving.moved(1);
            }
            Ok::<(), ()>(())
        };
        assert_eq!(while_it_moves(&progress, Duration::from_secs(30), write).await, Ok(()));
        assert_eq!(progress.bytes(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_stops_moving_ends_after_the_limit() {
        let progress = Arc::new(Progress::new());
        let moving = Arc::clone(&progress);
        let began = Instant::now();
        let write = async move {
            tokio::time::sleep(Duration::from_secs(20)).await;
            moving.moved(1);
            std::future::pending::<Result<(), ()>>().await
        };
        assert_eq!(while_it_moves(&progress, Duration::from_secs(30), write).await, Err(WriteError::Stalled));
        assert_eq!(began.elapsed(), Duration::from_secs(50));
    }
}
