//! Who leads: a session advisory lock on a connection of its own, with a heartbeat.
//!
//! The lock's fate is that of the connection: a leader that is killed loses it at once. One that is frozen loses it because
//! its session sits idle for longer than `idle_session_timeout`; while it lives, [`Lease::keep`] says something every
//! second. The connection never LISTENs: a session that notifications are being sent to does not count as idle, and a
//! full socket would keep a frozen leader in office. Candidates try, they never wait in the lock's queue: a waiting
//! statement holds back vacuum.
//!
//! That the old leader has stopped *writing* is not promised here; the store's fence does that.

use std::time::Duration;

use rand::Rng;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use crate::capture::session::{self, LOCK_AWAKE, LOCK_CLASS, LOCK_LEASE};

/// A leader that says nothing for so long is not one any more.
const LEASE: &str = "3s";
/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A heartbeat that takes longer is a lost connection: the server may have given the lease away.
const ANSWER: Duration = Duration::from_secs(2);
/// Between two attempts of a candidate; up to half as much again by chance, so that candidates do not march in step.
const ATTEMPT: Duration = Duration::from_millis(500);

/// The leader's office, held while [`Lease::keep`] runs.
pub struct Lease {
    connection: PgConnection,
    requests: mpsc::Receiver<Request>,
    /// The lock that says nobody needs to ring is held. Unlocking what is not held is a warning in the server's log.
    is_awake: bool,
}

/// Asks the lease's connection for something; ends with it.
#[derive(Clone)]
pub struct LeaseHandle {
    requests: mpsc::Sender<Request>,
}

/// The lease is gone: somebody else may lead.
#[derive(Debug, thiserror::Error)]
#[error("the lease is lost")]
pub struct LeaseLost;

enum Request {
    /// Hold the lock that says: nobody needs to ring. False: a writer was just testing it, ask again.
    Wake(oneshot::Sender<bool>),
    /// Give it back. The transaction id: every writer that may have seen the lock has one below it.
    Sleep(oneshot::Sender<u64>),
    /// Only answer: the lease is still held.
    Confirm(oneshot::Sender<()>),
}

/// Becomes the leader; tries until it succeeds. Cancel-safe.
///
/// # Errors
/// The database cannot be reached.
pub async fn acquire(database: &PgConnectOptions) -> Result<(Lease, LeaseHandle), sqlx::Error> {
    let options =
        session::options(database).application_name("rowcast lease").options([("idle_session_timeout", LEASE)]);
    let mut connection = PgConnection::connect_with(&options).await?;
    loop {
        let ours: bool = sqlx::query_scalar("select pg_try_advisory_lock($1, $2)")
            .bind(LOCK_CLASS)
            .bind(LOCK_LEASE)
            .fetch_one(&mut connection)
            .await?;
        if ours {
            let (sender, requests) = mpsc::channel(4);
            return Ok((Lease { connection, requests, is_awake: false }, LeaseHandle { requests: sender }));
        }
        let pause = ATTEMPT.mul_f64(1.0 + rand::rng().random_range(0.0..0.5));
        tokio::time::sleep(pause).await;
    }
}

impl Lease {
    /// Keeps the lease until its connection is lost, and does what handles ask for. Returns what ended it.
    ///
    /// Wakes up for: a request; the next heartbeat.
    pub async fn keep(&mut self) -> sqlx::Error {
        let mut beat = Instant::now() + HEARTBEAT;
        loop {
            let request = tokio::select! {
                request = self.requests.recv() => request,
                () = tokio::time::sleep_until(beat) => None,
            };
            let answered = timeout(ANSWER, self.answer(request)).await;
            match answered {
                Ok(Ok(())) => beat = Instant::now() + HEARTBEAT,
                Ok(Err(error)) => return error,
                Err(_) => return sqlx::Error::PoolTimedOut,
            }
        }
    }

    /// Gives the office back.
    pub async fn release(self) {
        // Dropping the connection does it too, a little later.
        let _ = timeout(ANSWER, self.connection.close()).await;
    }

    async fn answer(&mut self, request: Option<Request>) -> Result<(), sqlx::Error> {
        // Whoever asked may have gone: nothing depends on the answer then.
        match request {
            Some(Request::Wake(reply)) => {
                if !self.is_awake {
                    self.is_awake = sqlx::query_scalar("select pg_try_advisory_lock($1, $2)")
                        .bind(LOCK_CLASS)
                        .bind(LOCK_AWAKE)
                        .fetch_one(&mut self.connection)
                        .await?;
                }
                let _ = reply.send(self.is_awake);
            }
            Some(Request::Sleep(reply)) => {
                if self.is_awake {
                    sqlx::query("select pg_advisory_unlock($1, $2)")
                        .bind(LOCK_CLASS)
                        .bind(LOCK_AWAKE)
                        .execute(&mut self.connection)
                        .await?;
                    self.is_awake = false;
                }
                // A statement of its own: the id must be drawn after the lock is seen to be free.
                let xid: String =
                    sqlx::query_scalar("select pg_current_xact_id()::text").fetch_one(&mut self.connection).await?;
                let _ = reply.send(xid.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?);
            }
            Some(Request::Confirm(reply)) => {
                self.connection.ping().await?;
                let _ = reply.send(());
            }
            None => self.connection.ping().await?,
        }
        Ok(())
    }
}

impl LeaseHandle {
    /// From now on writers need not ring. False where the lock was being tested just then: ask again later.
    ///
    /// # Errors
    /// The lease is lost.
    pub async fn wake(&self) -> Result<bool, LeaseLost> {
        self.ask(Request::Wake).await
    }

    /// From now on writers ring. Those that may not have done so have transaction ids below the one returned.
    ///
    /// # Errors
    /// The lease is lost.
    pub async fn sleep(&self) -> Result<u64, LeaseLost> {
        self.ask(Request::Sleep).await
    }

    /// Makes sure, in a round trip, that the lease is held.
    ///
    /// # Errors
    /// The lease is lost.
    pub async fn confirm(&self) -> Result<(), LeaseLost> {
        self.ask(Request::Confirm).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, LeaseLost> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| LeaseLost)?;
        answer.await.map_err(|_| LeaseLost)
    }
}
