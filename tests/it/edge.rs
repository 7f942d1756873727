//! What a client meets at the door: greetings, refusals, limits, closes. The hub is played by the test.

mod harness;
mod http;
mod session;
