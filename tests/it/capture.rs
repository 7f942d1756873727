//! Capture, against a real Postgres: what is logged, what cuts say, and that writers do not notice.

mod definitions;
mod exact;
mod hostile;
mod leader;
mod mirror;
mod publishing;
