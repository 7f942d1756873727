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

/// Checks that the database has the schema of this release.
///
/// # Errors
/// It has none, an older one, or one of a later release; the message says what to do.
pub async fn check(connection: &mut PgConnection) -> anyhow::Result<()> {
    let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default();
    let table: bool =
        sqlx::query_scalar("select to_regclass('rowcast.migrations') is not null").fetch_one(&mut *connection).await?;
    anyhow::ensure!(table, "the database has no rowcast schema; `rowcast migrate` creates it");
    let applied: Option<i64> = sqlx::query_scalar("select max(version) from rowcast.migrations where success")
        .fetch_one(&mut *connection)
        .await?;
    match applied.unwrap_or_default() {
        applied if applied < known => {
            anyhow::bail!("the rowcast schema is older than this release; `rowcast migrate` brings it up to date")
        }
        applied if applied > known => anyhow::bail!("the rowcast schema was made by a later release of rowcast"),
        _ => Ok(()),
    }
}
