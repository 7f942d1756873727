//! The connection that commands go over: shared by all of them, made anew after every failure.
//!
//! The redis crate's own connection manager does not fit. It keeps a connection on which commands time out, so that a
//! peer which vanished without a word is noticed only by TCP, minutes later; and it holds commands back during its
//! retries, where our callers want to hear at once that the store is away. Here a failed connection is dropped, and the
//! next command makes the next one.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ScriptInvocation,
    ServerErrorKind,
};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::store::StoreError;

/// A connection is there in milliseconds or, behind a firewall that swallows packets, never.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Long enough for the largest append behind a busy Redis, short enough for a restart to be over within a few beats.
pub(super) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) struct Link {
    client: Client,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    connection: Option<MultiplexedConnection>,
    /// Counts connections, so that a late failure of an old one does not cost us the new one.
    serial: u64,
    /// When the last attempt to connect ended in vain, and why: whoever waited for it shares the answer.
    failure: Option<(Instant, RedisError)>,
}

impl Link {
    pub fn new(client: Client) -> Self {
        Self { client, current: Mutex::default() }
    }

    /// Runs a command once. After a failure it is unknown whether it was carried out.
    pub async fn once<T: FromRedisValue>(&self, command: impl Into<Command<'_>>) -> Result<T, StoreError> {
        self.attempt(&command.into()).await.map_err(|error| store_error(&error))
    }

    /// Runs a command that does no harm twice; again on a new connection if the one at hand turned out to be dead.
    pub async fn repeatable<T: FromRedisValue>(&self, command: impl Into<Command<'_>>) -> Result<T, StoreError> {
        let command = command.into();
        let result = match self.attempt(&command).await {
            Err(error) if error.is_connection_dropped() => self.attempt(&command).await,
            result => result,
        };
        result.map_err(|error| store_error(&error))
    }

    async fn attempt<T: FromRedisValue>(&self, command: &Command<'_>) -> RedisResult<T> {
        let (serial, mut connection) = self.connection().await?;
        let result = match command {
            Command::Plain(command) => command.query_async(&mut connection).await,
            Command::Script(call) => call.invoke_async(&mut connection).await,
        };
        if let Err(error) = &result
            && is_fatal(error)
        {
            let mut current = self.current.lock().await;
            if current.serial == serial {
                current.connection = None;
            }
        }
        result
    }

    async fn connection(&self) -> RedisResult<(u64, MultiplexedConnection)> {
        let asked = Instant::now();
        let mut current = self.current.lock().await;
        if let Some(connection) = &current.connection {
            return Ok((current.serial, connection.clone()));
        }
        if let Some((ended, error)) = &current.failure
            && *ended >= asked
        {
            return Err(error.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT));
        match self.client.get_multiplexed_async_connection_with_config(&config).await {
            Ok(connection) => {
                current.serial += 1;
                current.connection = Some(connection.clone());
                current.failure = None;
                Ok((current.serial, connection))
            }
            Err(error) => {
                current.failure = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}

/// What a link can run.
pub(super) enum Command<'a> {
    Plain(Cmd),
    Script(ScriptInvocation<'a>),
}

impl From<Cmd> for Command<'_> {
    fn from(command: Cmd) -> Self {
        Self::Plain(command)
    }
}

impl<'a> From<ScriptInvocation<'a>> for Command<'a> {
    fn from(call: ScriptInvocation<'a>) -> Self {
        Self::Script(call)
    }
}

/// Whether a connection is of no more use after this: gone, silent, out of step, or leading to a server that was
/// demoted, so that its address has to be looked up again.
fn is_fatal(error: &RedisError) -> bool {
    let demoted = matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown));
    demoted || error.is_io_error() || error.is_unrecoverable_error()
}

/// What an error says of the store: that a key is not ours, or that the store is away.
pub(super) fn store_error(error: &RedisError) -> StoreError {
    let foreign = error.kind() == ErrorKind::UnexpectedReturnType
        || error.code() == Some("WRONGTYPE")
        || error.detail().is_some_and(|detail| detail.contains("WRONGTYPE"));
    if foreign { StoreError::Corrupt(error.to_string()) } else { StoreError::Unavailable(error.to_string()) }
}
