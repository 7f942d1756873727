//! Installing the `rowcast` schema, and bringing it up to date.
//!
//! The migrations are embedded in the binary. Everything, the record of what was applied included, stands in the schema
//! `rowcast`: `drop schema rowcast cascade` removes it all, triggers on published tables too.

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Applies what is missing. Any number of processes may do so at once: they take turns.
///
/// # Errors
/// The database cannot be reached, the role may not create the schema, or the schema was made by another release.
pub async fn migrate(database: &PgConnectOptions) -> Result<(), MigrateError> {
    // Not a session with our limits: a migration of a large log may take its time. Waiting for each other is done in
    // short statements by sqlx's advisory lock.
    let mut connection = PgConnection::connect_with(&database.clone().application_name("rowcast migrate")).await?;
    let mut migrator = Migrator { migrations: MIGRATIONS.migrations.clone(), ..Migrator::with_migrations(Vec::new()) };
    migrator.dangerous_set_table_name("rowcast.migrations");
    migrator.create_schema("rowcast");
    migrator.run_direct(None, &mut connection, false).await?;
    connection.close().await?;
    Ok(())
}
