//! Three questions about a node, each for another asker.
//!
//! `/healthz` (a supervisor: restart me?) is green while the process answers. `/servez` (a load balancer: send me
//! clients?) is red only before the start-up is done and while draining: a node whose Postgres is down still holds its
//! clients and their rows, and sending them elsewhere helps nobody. `/readyz` (an alarm: does delivery work?) asks
//! Postgres, the store and the pipeline's beat, and names what does not answer.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Edge;
use crate::hub::HubHandle;
use crate::session::drain::Phase;
use crate::store::Store;

/// The leader beats every second; two may be missed.
const BEAT_AGE_MAX: Duration = Duration::from_secs(3);

/// A part that takes longer counts as failed: together with the beat's 3 s and a second between probes, red comes in time.
const PROBE_MAX: Duration = Duration::from_secs(1);

/// Probes that come closer than this share one look, so that whoever asks often does not load what he asks about.
const REPORT_HOLDS: Duration = Duration::from_millis(200);

/// Knows the parts that delivery needs.
pub struct Health {
    hub: HubHandle,
    store: Arc<dyn Store>,
    postgres: Arc<PgConnectOptions>,
    /// Held while a look is made, so that one look serves all who wait.
    looks: Mutex<Looks>,
}

#[derive(Default)]
struct Looks {
    last: Option<(Instant, Report)>,
    /// A connection of its own: a busy pool is not a failed Postgres, and a connection that hung is not asked again.
    postgres: Option<PgConnection>,
}

/// What `/readyz` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    ready: bool,
    /// The parts that failed, by their names below.
    failed: Vec<&'static str>,
    postgres: Part,
    store: Part,
    relay: Part,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Part {
    ok: bool,
    /// What was found, in words that may be shown to anybody: causes are in the log.
    detail: String,
}

pub async fn healthz() -> Response {
    ([(header::CACHE_CONTROL, "no-store")], "ok\n").into_response()
}

pub async fn servez(State(edge): State<Arc<Edge>>) -> Response {
    let (status, word) = match edge.drain.phase() {
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        Phase::Serving => (StatusCode::OK, "serving\n"),
        Phase::Draining | Phase::Closing { .. } => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    };
    (status, [(header::CACHE_CONTROL, "no-store")], word).into_response()
}

pub async fn readyz(State(edge): State<Arc<Edge>>) -> Response {
    let report = edge.health.report().await;
    let status = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CACHE_CONTROL, "no-store")], Json(report)).into_response()
}

impl Health {
    pub fn new(hub: HubHandle, store: Arc<dyn Store>, postgres: Arc<PgConnectOptions>) -> Self {
        Self { hub, store, postgres, looks: Mutex::default() }
    }

    /// Looks at every part, or gives the last look if that was just now.
    pub async fn report(&self) -> Report {
        let mut looks = self.looks.lock().await;
        if let Some((made_at, report)) = &looks.last
            && made_at.elapsed() < REPORT_HOLDS
        {
            return report.clone();
        }
        let report = self.look(&mut looks.postgres).await;
        let failed_before = looks.last.take().map(|(_, report)| report.failed).unwrap_or_default();
        if report.failed != failed_before {
            if report.ready {
                tracing::info!("delivery works again");
            } else {
                tracing::warn!(failed = ?report.failed, "delivery does not work");
            }
        }
        looks.last = Some((Instant::now(), report.clone()));
        report
    }

    async fn look(&self, connection: &mut Option<PgConnection>) -> Report {
        let ask_postgres = probe("postgres", self.ask_postgres(connection));
        let (postgres, store) = tokio::join!(ask_postgres, probe(self.store.name(), self.store.ping()));
        let relay = relay(self.hub.status().beat_age);
        let parts = [("postgres", &postgres), ("store", &store), ("relay", &relay)];
        let failed: Vec<&str> = parts.iter().filter(|(_, part)| !part.ok).map(|(name, _)| *name).collect();
        Report { ready: failed.is_empty(), failed, postgres, store, relay }
    }

    /// Keeps the connection only if it answered; one that broke since the last look is replaced at once.
    async fn ask_postgres(&self, kept: &mut Option<PgConnection>) -> Result<(), sqlx::Error> {
        if let Some(mut connection) = kept.take()
            && sqlx::raw_sql("select 1").execute(&mut connection).await.is_ok()
        {
            *kept = Some(connection);
            return Ok(());
        }
        let mut connection = PgConnection::connect_with(&self.postgres).await?;
        sqlx::raw_sql("select 1").execute(&mut connection).await?;
        *kept = Some(connection);
        Ok(())
    }
}

async fn probe<T, E: std::fmt::Display>(name: &str, ask: impl Future<Output = Result<T, E>>) -> Part {
    match tokio::time::timeout(PROBE_MAX, ask).await {
        Ok(Ok(_)) => Part { ok: true, detail: format!("{name} answers") },
        Ok(Err(error)) => {
            tracing::debug!(name, %error, "a readiness probe failed");
            Part { ok: false, detail: format!("{name} answers with an error") }
        }
        Err(_) => Part { ok: false, detail: format!("{name} does not answer within {} ms", PROBE_MAX.as_millis()) },
    }
}

fn relay(beat_age: Option<Duration>) -> Part {
    match beat_age {
        Some(age) => Part { ok: age <= BEAT_AGE_MAX, detail: format!("the last beat is {} ms old", age.as_millis()) },
        None => Part { ok: false, detail: "no beat has come yet".into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relay_works_while_its_beat_is_new() {
        assert!(relay(Some(Duration::from_secs(3))).ok);
        assert!(!relay(Some(Duration::from_millis(3_001))).ok);
        assert!(!relay(None).ok);
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_that_hangs_fails_after_a_second() {
        let began = Instant::now();
        let part = probe("redis", std::future::pending::<Result<(), &str>>()).await;
        assert_eq!(part.detail, "redis does not answer within 1000 ms");
        assert_eq!((part.ok, began.elapsed()), (false, PROBE_MAX));
        let part = probe("redis", async { Err::<(), _>("password=secret") }).await;
        assert!(!part.ok && !part.detail.contains("secret"));
    }
}
