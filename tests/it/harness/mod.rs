//! What the tests stand on: private servers, and the patience to wait for a condition instead of a time.

#![allow(dead_code, reason = "what a node, a server and a dashboard can do, whether or not a test needs it today")]

pub mod asker;
pub mod browser;
pub mod cluster;
pub mod content;
pub mod dash;
pub mod database;
pub mod load;
pub mod node;
pub mod postgres;
pub mod proxy;
pub mod redis;
pub mod seat;
pub mod tokens;
pub mod viewer;
pub mod world;

use std::time::Duration;

/// Nothing that is waited for takes this long, even on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// Waits for something that has to happen.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

/// Asks again until there is an answer.
pub async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    within(what, async {
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}
