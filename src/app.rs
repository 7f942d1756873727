//! A node: binds first, then runs until it is told to stop.

use std::net::SocketAddr;

use anyhow::Context;
use sqlx::{Connection, PgConnection};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::{DatabaseUrl, ServeConfig};

/// A node that has bound its address and does not serve yet.
pub struct App {
    listener: TcpListener,
    addr: SocketAddr,
}

impl App {
    pub async fn bind(config: ServeConfig) -> anyhow::Result<App> {
        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {} (ROWCAST_LISTEN)", config.listen))?;
        let addr = listener.local_addr()?;
        Ok(Self { listener, addr })
    }

    /// Where it listens: the real port, also where port 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        stop.cancelled().await;
        drop(self.listener);
        Ok(())
    }
}

/// Brings the `rowcast` schema of a database up to date.
///
/// # Errors
/// The database cannot be reached, or the role may not create the schema.
pub async fn migrate(database_url: &DatabaseUrl) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect_with(&database_url.options()).await?;
    let mut migrator = sqlx::migrate!("./migrations");
    migrator.dangerous_set_table_name("rowcast.migrations");
    migrator.create_schema("rowcast");
    migrator.run_direct(None, &mut connection, false).await?;
    Ok(connection.close().await?)
}
