//! cli
pub mod client;
