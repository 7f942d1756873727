//! A private Postgres and a private Redis, from the machine's own binaries, in temporary directories.
//!
//! The demo and the integration tests run on real servers that nobody had to set up and of which nothing is left. Each
//! listens on loopback on a free port, keeps its files in a directory of its own, runs as an unprivileged user when we
//! are root, and is stopped and removed when its value is dropped. Should this process end without dropping anything
//! (killed, aborted, `exit`), a [`watchdog`](process) that is waiting for exactly that does it instead.
//!
//! These are not servers for production: nothing is tuned, and tests run with `fsync = off`.

mod postgres;
mod process;
mod redis;

pub use self::postgres::{Postgres, PostgresOptions, PostgresPrograms};
pub use self::redis::{Redis, redis_program};
