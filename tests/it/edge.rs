//! A node's edge over real sockets: what a websocket client may say, how it is ended, what the routes answer, how a node
//! leaves. Each test has a node and a database of its own.

mod drain;
mod http;
mod limits;
mod probes;
mod session;
pub mod wire;
