//! The figures a node tells about itself: their names, their meaning, and how they are counted.
//!
//! Every name stands here once; other modules call the typed functions below and never spell a name. [`install`] sets
//! the process' recorder; before it (in most unit tests) counting is free and goes nowhere. This file opens no port:
//! the routes serve what [`Exporter::render`] gives, in Prometheus' text format.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use metrics::{
    Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::protocol::Beginning;

const SESSIONS: &str = "rowcast_sessions";
const TOKENS: &str = "rowcast_tokens_total";
const JWKS_FETCHES: &str = "rowcast_jwks_fetches_total";
const CHANNELS: &str = "rowcast_channels";
const CUTS: &str = "rowcast_cuts_total";
const CUT_SECONDS: &str = "rowcast_cut_seconds";
const VIEW_SECONDS: &str = "rowcast_view_seconds";
const MARKERS: &str = "rowcast_markers_total";
const COMMIT_TO_SEND: &str = "rowcast_commit_to_send_seconds";
const SNAPSHOT_CACHE: &str = "rowcast_snapshot_cache_total";
const SNAPSHOT_QUERIES: &str = "rowcast_snapshot_queries_total";
const LEADER: &str = "rowcast_leader";
const RESYNCS: &str = "rowcast_resyncs_total";
const WINDOW_REFILLS: &str = "rowcast_window_refills_total";
const WINDOWS_RUN_OUT: &str = "rowcast_windows_run_out_total";
const LOG_READS: &str = "rowcast_log_reads_total";
const AUDIT_DROPPED: &str = "rowcast_audit_dropped_total";
const SUBSCRIPTIONS: &str = "rowcast_subscriptions_total";
const SESSION_CLOSES: &str = "rowcast_session_closes_total";
const FRAMES_SENT: &str = "rowcast_frames_sent_total";
const BYTES_SENT: &str = "rowcast_bytes_sent_total";

/// Upper bounds of the histograms of time, in seconds: dense where a healthy node stands (1 to 20 ms), then up to what
/// only an outage reaches.
const LATENCY_BUCKETS_S: [f64; 14] =
    [0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0];

/// How often [`Exporter::upkeep`] moves samples into their buckets; between two runs samples wait in memory.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// Reads the process' figures.
#[derive(Clone)]
pub struct Exporter(PrometheusHandle);

/// Whether a channel was opened from the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheResult {
    Hit,
    Miss,
}

/// What one session counts on its hot path, looked up once: a look-up by name costs as much as the counting of a
/// whole flush.
pub struct SendFigures {
    frames: Counter,
    bytes: Counter,
    commit_to_send: Histogram,
}

impl Exporter {
    /// All figures in Prometheus' text format.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Keeps the histograms small; runs until dropped, to be spawned where the recorder was installed.
    pub async fn upkeep(self) {
        let mut every = tokio::time::interval(UPKEEP_EVERY);
        loop {
            every.tick().await;
            self.0.run_upkeep();
        }
    }
}

/// Sets the process' recorder and describes every figure. A second call gives the same exporter.
///
/// # Errors
/// Somebody else has set a recorder.
pub fn install() -> anyhow::Result<Exporter> {
    static INSTALLED: OnceLock<Result<PrometheusHandle, String>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(COMMIT_TO_SEND.to_owned()), &LATENCY_BUCKETS_S)
            .and_then(|builder| {
                builder.set_buckets_for_metric(Matcher::Full(CUT_SECONDS.to_owned()), &LATENCY_BUCKETS_S)
            })
            .and_then(|builder| {
                builder.set_buckets_for_metric(Matcher::Full(VIEW_SECONDS.to_owned()), &LATENCY_BUCKETS_S)
            })
            .map_err(|error| error.to_string())?
            .build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|error| error.to_string())?;
        describe();
        begin_at_zero();
        Ok(handle)
    });
    installed.clone().map(Exporter).map_err(|message| anyhow::anyhow!("setting the metrics recorder: {message}"))
}

fn describe() {
    describe_gauge!(SESSIONS, Unit::Count, "Websocket sessions that are open on this node");
    describe_gauge!(CHANNELS, Unit::Count, "Channels that are live on this node");
    describe_counter!(CUTS, Unit::Count, "Cuts that this node has appended to the store as leader");
    describe_histogram!(
        CUT_SECONDS,
        Unit::Seconds,
        "From the moment that the leader begins to read a cut until the store has it"
    );
    describe_histogram!(VIEW_SECONDS, Unit::Seconds, "How long this node, as leader, took to run a view");
    describe_counter!(MARKERS, Unit::Count, "Markers that this node has appended as leader, by reason");
    describe_histogram!(
        COMMIT_TO_SEND,
        Unit::Seconds,
        "From the moment of a cut (database clock) until its changes were handed to a client's socket (node clock)"
    );
    describe_counter!(SNAPSHOT_CACHE, Unit::Count, "Channels opened, by whether the store had a checkpoint of them");
    describe_counter!(SNAPSHOT_QUERIES, Unit::Count, "Snapshot queries that this node has sent to Postgres");
    describe_gauge!(LEADER, Unit::Count, "1 where this node is the leader");
    describe_counter!(RESYNCS, Unit::Count, "Channels that were compared with Postgres again because of a marker");
    describe_counter!(WINDOW_REFILLS, Unit::Count, "Windows whose spare rows were read again before they ran out");
    describe_counter!(WINDOWS_RUN_OUT, Unit::Count, "Windows that stood still because they had run out of spare rows");
    describe_counter!(LOG_READS, Unit::Count, "Times that this node went on by the log because a push was missing");
    describe_counter!(AUDIT_DROPPED, Unit::Count, "Records that the audit table did not get, because too many waited");
    describe_counter!(
        SUBSCRIPTIONS,
        Unit::Count,
        "Subscriptions answered, by whether a snapshot or only the changes were sent"
    );
    describe_counter!(SESSION_CLOSES, Unit::Count, "Sessions that ended, by reason");
    describe_counter!(FRAMES_SENT, Unit::Count, "Frames written to websocket clients");
    describe_counter!(BYTES_SENT, Unit::Bytes, "Payload bytes of the frames written to websocket clients");
    describe_counter!(TOKENS, Unit::Count, "Tokens that clients came with, by what became of them");
    describe_counter!(JWKS_FETCHES, Unit::Count, "Readings of the issuer's keys after the first, by result");
}

/// A figure that never moved is 0, not absent: a rate over an absent series is no answer.
fn begin_at_zero() {
    for name in [
        CUTS,
        SNAPSHOT_QUERIES,
        RESYNCS,
        WINDOW_REFILLS,
        WINDOWS_RUN_OUT,
        LOG_READS,
        AUDIT_DROPPED,
        FRAMES_SENT,
        BYTES_SENT,
    ] {
        counter!(name).increment(0);
    }
    for name in [SESSIONS, CHANNELS, LEADER] {
        gauge!(name).set(0.0);
    }
    for result in [CacheResult::Hit, CacheResult::Miss] {
        counter!(SNAPSHOT_CACHE, "result" => result.name()).increment(0);
    }
}

impl CacheResult {
    fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
        }
    }
}

impl SendFigures {
    /// Looked up in the recorder that is set now.
    pub fn new() -> Self {
        Self { frames: counter!(FRAMES_SENT), bytes: counter!(BYTES_SENT), commit_to_send: histogram!(COMMIT_TO_SEND) }
    }

    /// A flush went out.
    pub fn flushed(&self, frames: u64, bytes: u64) {
        self.frames.increment(frames);
        self.bytes.increment(bytes);
    }

    /// Live changes of the cut of `as_of_ms` (milliseconds since 1970, database clock) went out just now. Two clocks
    /// that disagree can make the time negative; then it counts as 0.
    pub fn sent(&self, as_of_ms: i64) {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1_000.0;
        self.commit_to_send.record(((now_ms - as_of_ms as f64) / 1_000.0).max(0.0));
    }
}

impl Default for SendFigures {
    fn default() -> Self {
        Self::new()
    }
}

/// A session began.
pub fn session_began() {
    gauge!(SESSIONS).increment(1.0);
}

/// A session ended, for a named reason.
pub fn session_ended(reason: &'static str) {
    gauge!(SESSIONS).decrement(1.0);
    session_refused(reason);
}

/// A connection was closed for a named reason before it became a session.
pub fn session_refused(reason: &'static str) {
    counter!(SESSION_CLOSES, "reason" => reason).increment(1);
}

/// The channels that are live now.
pub fn channels(count: usize) {
    gauge!(CHANNELS).set(count as f64);
}

/// The leader's append of a cut was accepted, so long after its reading began.
pub fn cut(took: Duration) {
    counter!(CUTS).increment(1);
    histogram!(CUT_SECONDS).record(took.as_secs_f64());
}

/// A view was run.
pub fn view_run(took: Duration) {
    histogram!(VIEW_SECONDS).record(took.as_secs_f64());
}

/// A marker was appended: rows changed, and not which.
pub fn marker(why: &'static str) {
    counter!(MARKERS, "reason" => why).increment(1);
}

/// A channel was opened: did the store have it?
pub fn snapshot_cache(result: CacheResult) {
    counter!(SNAPSHOT_CACHE, "result" => result.name()).increment(1);
}

/// A snapshot query went to Postgres.
pub fn snapshot_query() {
    counter!(SNAPSHOT_QUERIES).increment(1);
}

/// Whether this node leads.
pub fn leader(leads: bool) {
    gauge!(LEADER).set(if leads { 1.0 } else { 0.0 });
}

/// The hub went on by the log.
pub fn log_read() {
    counter!(LOG_READS).increment(1);
}

/// A record for the audit table was dropped.
pub fn audit_dropped() {
    counter!(AUDIT_DROPPED).increment(1);
}

/// A subscription was answered, with a snapshot or with what it missed.
pub fn subscribed(beginning: Beginning) {
    let name = match beginning {
        Beginning::Fresh => "snapshot",
        Beginning::Resumed => "resumed",
        Beginning::Shared => "shared",
    };
    counter!(SUBSCRIPTIONS, "beginning" => name).increment(1);
}

/// A client came with a token.
pub fn token(result: &'static str) {
    counter!(TOKENS, "result" => result).increment(1);
}

/// The issuer's keys were read again, or could not be.
pub fn jwks_fetched(is_ok: bool) {
    counter!(JWKS_FETCHES, "result" => if is_ok { "ok" } else { "failed" }).increment(1);
}

/// A channel was resynced.
pub fn resync() {
    counter!(RESYNCS).increment(1);
}

/// A window asked for spare rows while it went on.
pub fn window_refill() {
    counter!(WINDOW_REFILLS).increment(1);
}

/// A window stands still until it was read again.
pub fn window_ran_out() {
    counter!(WINDOWS_RUN_OUT).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_there_from_the_start_with_its_meaning() {
        let exporter = install().expect("a recorder");
        snapshot_cache(CacheResult::Hit);
        session_refused("origin_refused");
        let figures = SendFigures::new();
        figures.flushed(2, 300);
        figures.sent(i64::MAX);
        cut(Duration::from_millis(3));
        marker("truncate");
        let text = exporter.render();
        for name in [SESSIONS, CHANNELS, CUTS, SNAPSHOT_QUERIES, LEADER, RESYNCS, FRAMES_SENT, BYTES_SENT] {
            assert!(text.lines().any(|line| line.starts_with(&format!("{name} "))), "{name} in\n{text}");
            assert!(text.contains(&format!("# HELP {name} ")), "{name} in\n{text}");
        }
        assert!(text.contains(r#"rowcast_snapshot_cache_total{result="hit"}"#), "{text}");
        assert!(text.contains(r#"rowcast_session_closes_total{reason="origin_refused"}"#), "{text}");
        assert!(text.contains(r#"rowcast_commit_to_send_seconds_bucket{le="0.0005"}"#), "{text}");
        assert!(text.contains(r#"rowcast_cut_seconds_bucket{le="0.003"}"#), "{text}");
        assert!(text.contains(r#"rowcast_markers_total{reason="truncate"} 1"#), "{text}");
    }
}
