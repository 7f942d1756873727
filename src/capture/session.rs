//! How our sessions in Postgres are set up: every limit on, every setting that changes the text of a value pinned.
//!
//! Used by both halves: a row read by the leader and one read by a node's snapshot query must be the same text.

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};

/// First number of our advisory locks: `rowc` in ASCII. The same stands in `migrations/0007_capture.sql`.
pub const LOCK_CLASS: i32 = 0x726f_7763;
/// Held by the leader.
pub const LOCK_LEASE: i32 = 1;
/// Held by the leader while it is awake: writers need not ring.
pub const LOCK_AWAKE: i32 = 2;

/// The options of a session of ours.
pub fn options(database: &PgConnectOptions) -> PgConnectOptions {
    // What is slow is measured (`rowcast_cut_seconds`); sqlx would warn of each statement, with its text.
    database.clone().disable_statement_logging().application_name("rowcast").options([
        // What values look like.
        ("timezone", "UTC"),
        ("datestyle", "ISO"),
        ("bytea_output", "hex"),
        ("intervalstyle", "iso_8601"),
        ("extra_float_digits", "1"),
        ("lc_monetary", "C"),
        // Rows that a policy hides from us are an error, never silently absent.
        ("row_security", "off"),
        // The SQL we are given names its schemas; nothing of the user's may stand in front.
        ("search_path", "pg_catalog"),
        // No session of ours waits, or makes others wait, without an end.
        ("statement_timeout", "60s"),
        ("lock_timeout", "1s"),
        ("idle_in_transaction_session_timeout", "15s"),
        ("tcp_user_timeout", "5000"),
        ("jit", "off"),
    ])
}

/// Opens a session.
///
/// # Errors
/// The database cannot be reached or refuses us.
pub async fn connect(database: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    PgConnection::connect_with(&options(database)).await
}

/// Whether Postgres refused because somebody else holds a lock, so that trying again makes sense.
pub fn is_lock_refusal(error: &sqlx::Error) -> bool {
    has_code(error, &["55P03"])
}

/// Whether a statement named something that is not there (any more), as after a rename.
pub fn is_gone(error: &sqlx::Error) -> bool {
    has_code(error, &["42P01", "3F000", "42703"])
}

/// Whether the session still works: the statement was refused, not the connection lost.
pub fn is_statement_error(error: &sqlx::Error) -> bool {
    match error {
        // Class 57P: the server ends the session. 57014 is a cancelled statement.
        sqlx::Error::Database(error) => !error.code().is_some_and(|code| code.starts_with("57P") || code == "25P03"),
        _ => false,
    }
}

fn has_code(error: &sqlx::Error, codes: &[&str]) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| codes.contains(&&*code))
}
