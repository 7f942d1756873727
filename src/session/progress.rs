//! Whether a socket moves: bytes that the kernel took, and when it last took some.
//!
//! The websocket library hides the socket, and a big message may be under way for minutes on a slow line. The socket
//! itself counts into a [`Progress`]; the session looks at it to tell a slow client, which is waited for, from one that
//! does not read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Shared by a socket (one writer of it) and whoever judges it.
#[derive(Debug)]
pub struct Progress {
    began: Instant,
    /// Microseconds from `began` to the last write that moved something.
    moved_us: AtomicU64,
    bytes: AtomicU64,
}

impl Progress {
    pub fn new() -> Self {
        Self { began: Instant::now(), moved_us: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// The kernel took so many bytes.
    pub fn moved(&self, bytes: usize) {
        if bytes > 0 {
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            self.moved_us.store(self.began.elapsed().as_micros() as u64, Ordering::Relaxed);
        }
    }

    /// When it last moved; its beginning, if it never has.
    pub fn last(&self) -> Instant {
        self.began + Duration::from_micros(self.moved_us.load(Ordering::Relaxed))
    }

    /// All bytes so far, websocket framing and the handshake included.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}
