//! The promises of the store's contract, each a test, each run on both stores.
//!
//! Versions are small numbers here, a cut's `as_of` is its version in seconds, and the states of a part say where it
//! belongs, so that an entry can be told by its text.

mod cache;
mod identities;
mod leaders;
mod log;
mod pushes;
pub mod words;

/// Runs every test named on both stores, each on a store of its own.
#[macro_export]
macro_rules! on_both_stores {
    ($($test:ident),* $(,)?) => {
        mod in_process {
            $(#[tokio::test] async fn $test() { super::$test($crate::contract::words::Bench::local()).await; })*
        }
        mod in_redis {
            $(#[tokio::test] async fn $test() { super::$test($crate::contract::words::Bench::redis()).await; })*
        }
    };
}
