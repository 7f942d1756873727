//! Every setting: its flag, its environment variable, its default, and what is a wrong value.
//!
//! This is the only place that reads the environment, through clap. Values are checked here, at the edge: what a
//! [`ServeConfig`] holds is valid, and nobody checks again. Addresses with passwords are types that do not print them
//! ([`secret`]); durations and sizes are written with their units ([`units`]).

pub mod identity;
pub mod secret;
pub mod units;

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Command, FromArgMatches, ValueEnum};

pub use identity::IdentityConfig;
pub use secret::{BearerToken, DatabaseUrl, JwtSecret, RedisUrl};

use crate::http::origin::AllowedOrigins;
use crate::identity::RlsSettings;
use crate::identity::rls::ClaimPath;

/// What `rowcast serve` runs on.
#[derive(Args, Clone, Debug)]
pub struct ServeConfig {
    /// The Postgres whose tables are served. Must be Postgres itself, not a transaction pooler
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: DatabaseUrl,

    /// The Redis that carries changes between nodes. Without it: one node, the store in this process
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_name = "URL")]
    pub redis_url: Option<RedisUrl>,

    /// Where browsers connect. Port 0 takes a free one
    #[arg(long, env = "ROWCAST_LISTEN", value_name = "ADDRESS", value_parser = address, default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// Where /metrics is served. Without it: on the main address, to loopback peers only
    #[arg(long, env = "ROWCAST_METRICS_LISTEN", value_name = "ADDRESS", value_parser = address)]
    pub metrics_listen: Option<SocketAddr>,

    /// Web origins that may connect, comma-separated; also the CORS list. Without it: pages of the same origin only
    #[arg(
        long,
        env = "ROWCAST_ALLOWED_ORIGINS",
        value_name = "ORIGINS",
        default_value = "",
        hide_default_value = true
    )]
    pub allowed_origins: AllowedOrigins,

    /// On SIGTERM: how long /servez is red, for load balancers to notice, before connections are closed
    #[arg(long, env = "ROWCAST_DRAIN_WAIT", value_name = "TIME", value_parser = time_or_zero, default_value = "5s")]
    pub drain_wait: Duration,

    /// On SIGTERM: over how long the closing of connections is spread, so that they do not all come back at once
    #[arg(long, env = "ROWCAST_DRAIN_SPREAD", value_name = "TIME", value_parser = time_or_zero, default_value = "10s")]
    pub drain_spread: Duration,

    /// Who was shown what: `events` in the log, `table` also in rowcast.audit
    #[arg(long, env = "ROWCAST_AUDIT", value_name = "WHERE", default_value = "events")]
    pub audit: AuditMode,

    #[command(flatten)]
    pub identity: IdentityConfig,

    #[command(flatten)]
    pub rls: RlsConfig,

    #[command(flatten)]
    pub limits: Limits,
}

impl ServeConfig {
    /// Every setting at its default, whatever the environment says: for the demo and for tests, which then set fields.
    pub fn new(database_url: DatabaseUrl) -> Self {
        Self { database_url, ..defaults(&["--database-url", "postgres://localhost"]) }
    }
}

/// What row security is told of a client, for publications with the policy `rls`.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Row security")]
pub struct RlsConfig {
    /// Database roles that a token may name, comma-separated. Without it: publications with the policy `rls` are closed
    #[arg(long, env = "ROWCAST_RLS_ROLES", value_name = "ROLES", value_delimiter = ',', value_parser = role)]
    pub rls_roles: Vec<String>,

    /// The claim that names the role
    #[arg(long, env = "ROWCAST_RLS_ROLE_CLAIM", value_name = "CLAIM", default_value = "role")]
    pub rls_role_claim: ClaimPath,

    /// The role of clients without a token. Without it: they may not open publications with the policy `rls`
    #[arg(long, env = "ROWCAST_RLS_ANON_ROLE", value_name = "ROLE", value_parser = role)]
    pub rls_anon_role: Option<String>,

    /// Claims that policies may look at, comma-separated. Clients that agree in them share what is cached; others are absent
    #[arg(long, env = "ROWCAST_RLS_CLAIMS", value_name = "CLAIMS", value_delimiter = ',', default_value = "sub,role")]
    pub rls_claims: Vec<ClaimPath>,
}

impl RlsConfig {
    pub fn settings(&self) -> RlsSettings {
        RlsSettings {
            role_claim: self.rls_role_claim.clone(),
            roles: self.rls_roles.clone(),
            anonymous_role: self.rls_anon_role.clone(),
            claims: self.rls_claims.clone(),
        }
    }
}

/// Limits and timings. Crossing a limit is a clear error or a named close, never silence.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[command(next_help_heading = "Limits and timings")]
pub struct Limits {
    /// Browser connections of this node; more are closed with 1013 and come back elsewhere or later
    #[arg(long, env = "ROWCAST_CONNECTIONS_MAX", value_name = "N", value_parser = count::<100_000_000>, default_value = "20000")]
    pub connections_max: usize,

    /// Subscriptions of one connection
    #[arg(long, env = "ROWCAST_SUBSCRIPTIONS_MAX", value_name = "N", value_parser = count::<1_000_000>, default_value = "128")]
    pub subscriptions_max: usize,

    /// The longest message a client may send
    #[arg(long, env = "ROWCAST_MESSAGE_BYTES_MAX", value_name = "SIZE", value_parser = message_size, default_value = "64KiB")]
    pub message_bytes_max: usize,

    /// Messages that a client may send at once
    #[arg(long, env = "ROWCAST_MESSAGES_BURST", value_name = "N", value_parser = rate, default_value = "256")]
    pub messages_burst: u32,

    /// Messages per second that a client may go on to send; more are read later
    #[arg(long, env = "ROWCAST_MESSAGES_PER_SECOND", value_name = "N", value_parser = rate, default_value = "50")]
    pub messages_per_second: u32,

    /// How long a connection may take over its request or websocket handshake
    #[arg(long, env = "ROWCAST_HANDSHAKE_MAX", value_name = "TIME", value_parser = time, default_value = "10s")]
    pub handshake_max: Duration,

    /// How often a client is pinged
    #[arg(long, env = "ROWCAST_PING_EVERY", value_name = "TIME", value_parser = time, default_value = "25s")]
    pub ping_every: Duration,

    /// How long a pinged client may be silent before it is closed with 4409
    #[arg(long, env = "ROWCAST_PING_DEADLINE", value_name = "TIME", value_parser = time, default_value = "10s")]
    pub ping_deadline: Duration,

    /// How long a client that does not read is waited for before it is closed with 4409
    #[arg(long, env = "ROWCAST_STALL_MAX", value_name = "TIME", value_parser = time, default_value = "30s")]
    pub stall_max: Duration,

    /// Rows of one channel; a channel with more is refused with `too_many_rows`
    #[arg(long, env = "ROWCAST_CHANNEL_ROWS_MAX", value_name = "N", value_parser = count::<1_000_000_000>, default_value = "100000")]
    pub channel_rows_max: usize,

    /// Bytes of one channel's rows; a channel with more is refused with `too_many_rows`
    #[arg(long, env = "ROWCAST_CHANNEL_BYTES_MAX", value_name = "SIZE", value_parser = units::size, default_value = "64MiB")]
    pub channel_bytes_max: usize,

    /// How long a channel stays in memory after its last subscriber has gone
    #[arg(long, env = "ROWCAST_LINGER", value_name = "TIME", value_parser = time_or_zero, default_value = "30s")]
    pub linger: Duration,

    /// How long a cached snapshot stays in the store
    #[arg(long, env = "ROWCAST_CHECKPOINT_TTL", value_name = "TIME", value_parser = time, default_value = "10m")]
    pub checkpoint_ttl: Duration,

    /// How long a query of ours may run in Postgres
    #[arg(long, env = "ROWCAST_STATEMENT_TIMEOUT", value_name = "TIME", value_parser = time, default_value = "30s")]
    pub statement_timeout: Duration,

    /// How long a query of ours may wait for a lock in Postgres
    #[arg(long, env = "ROWCAST_LOCK_TIMEOUT", value_name = "TIME", value_parser = time, default_value = "1s")]
    pub lock_timeout: Duration,

    /// Connections to Postgres for snapshot queries; the leader holds three more
    #[arg(long, env = "ROWCAST_POOL_SIZE", value_name = "N", value_parser = count::<1_000>, default_value = "8")]
    pub pool_size: usize,
}

impl Default for Limits {
    /// The documented defaults, whatever the environment says.
    fn default() -> Self {
        defaults(&[])
    }
}

/// What is logged, to standard error.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logs")]
pub struct LogConfig {
    /// How much is logged: error, warn, info, debug, trace, or by part: `warn,rowcast::hub=debug`
    #[arg(long, env = "ROWCAST_LOG", value_name = "LEVEL", global = true)]
    pub log: Option<LogFilter>,

    /// How it is written
    #[arg(long, env = "ROWCAST_LOG_FORMAT", value_name = "FORMAT", global = true, default_value = "text")]
    pub log_format: LogFormat,
}

/// Where the audit goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AuditMode {
    /// Nowhere
    Off,
    /// Structured events in the log, under `rowcast::audit`
    Events,
    /// These, and the table `rowcast.audit`
    Table,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people
    Text,
    /// A JSON object per line
    Json,
}

/// Directives that tracing's filter takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A lone word that is not a level would be taken as the name of a part, and silence everything else.
        let is_level = |part: &str| !part.is_empty() && part.parse::<tracing::level_filters::LevelFilter>().is_ok();
        let known = text.split(',').all(|part| part.contains('=') || is_level(part));
        if !known || tracing_subscriber::EnvFilter::try_new(text).is_err() {
            return Err("expected error, warn, info, debug or trace, or parts such as `warn,rowcast::hub=debug`".into());
        }
        Ok(Self(text.to_owned()))
    }
}

/// The defaults of a set of settings: what clap makes of `flags` where the environment says nothing.
fn defaults<T: Args + FromArgMatches>(flags: &[&str]) -> T {
    let command = T::augment_args(Command::new("rowcast")).mut_args(|argument| argument.env(None::<&str>));
    let flags = std::iter::once("rowcast").chain(flags.iter().copied());
    let matches = command.try_get_matches_from(flags).expect("every other setting has a default or may be absent");
    T::from_arg_matches(&matches).expect("the defaults have been parsed already")
}

pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "expected an IP address and a port, such as 127.0.0.1:8080 or 0.0.0.0:8080".into())
}

/// Longer than any timing that makes sense here; Postgres takes its timeouts as a 32-bit number of milliseconds.
const TIME_MAX: Duration = Duration::from_secs(24 * 3600);

fn time_or_zero(text: &str) -> Result<Duration, String> {
    let time = units::duration(text)?;
    if time > TIME_MAX {
        return Err("expected at most 24h".into());
    }
    Ok(time)
}

/// Postgres reads a timeout of zero as "none", and the store an expiry of zero as an error.
fn time(text: &str) -> Result<Duration, String> {
    match time_or_zero(text)? {
        Duration::ZERO => Err("expected more than zero".into()),
        time => Ok(time),
    }
}

/// The name of a role, as Postgres has it: it is not folded to lower case here.
fn role(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("expected the name of a role".into()),
        // Postgres takes it for "no role at all".
        "none" => Err("`none` cannot be the name of a role".into()),
        name if name.len() > 63 => Err("expected a name of at most 63 bytes".into()),
        name => Ok(name.to_owned()),
    }
}

fn count<const MAX: usize>(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=MAX).contains(&count) => Ok(count),
        _ => Err(format!("expected a whole number from 1 to {MAX}")),
    }
}

/// A limit in messages: one that nobody reaches is as good as none.
fn rate(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number) if (1..=1_000_000).contains(&number) => Ok(number),
        _ => Err("expected a whole number from 1 to 1000000".into()),
    }
}

/// A message must have room for a token and a channel; more than 16 MiB would only help to fill the memory.
fn message_size(text: &str) -> Result<usize, String> {
    match units::size(text)? {
        size if (1 << 10..=16 << 20).contains(&size) => Ok(size),
        _ => Err("expected from 1KiB to 16MiB".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        serve: ServeConfig,
    }

    fn parse(flags: &[&str]) -> Result<ServeConfig, clap::Error> {
        let all = ["rowcast", "--database-url", "postgres://u:geheim@db/shop"].iter().chain(flags);
        Only::try_parse_from(all).map(|only| only.serve)
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let config = ServeConfig::new("postgres://db/shop".parse().expect("a URL"));
        assert_eq!(config.listen.to_string(), "127.0.0.1:8080");
        assert_eq!((config.drain_wait, config.drain_spread), (Duration::from_secs(5), Duration::from_secs(10)));
        assert!(
            config.redis_url.is_none()
                && config.metrics_listen.is_none()
                && config.allowed_origins == AllowedOrigins::Same
        );
        let limits = Limits::default();
        assert_eq!(config.limits, limits);
        assert_eq!((limits.subscriptions_max, limits.message_bytes_max), (128, 64 << 10));
        assert_eq!((limits.messages_burst, limits.messages_per_second), (256, 50));
        assert_eq!(limits.handshake_max, Duration::from_secs(10));
        assert_eq!((limits.ping_every, limits.ping_deadline), (Duration::from_secs(25), Duration::from_secs(10)));
        assert_eq!(limits.stall_max, Duration::from_secs(30));
        assert_eq!((limits.channel_rows_max, limits.channel_bytes_max), (100_000, 64 << 20));
        assert_eq!((limits.linger, limits.checkpoint_ttl), (Duration::from_secs(30), Duration::from_secs(600)));
    }

    #[test]
    fn row_security_is_told_what_is_declared() {
        let config = parse(&["--rls-roles", "app, staff", "--rls-claims", "sub,app_metadata.tenant"]).expect("fine");
        let settings = config.rls.settings();
        assert_eq!(settings.roles, ["app", "staff"]);
        assert_eq!((settings.claims.len(), settings.anonymous_role), (2, None));
        assert_eq!(
            ServeConfig::new("postgres://db/shop".parse().expect("a URL")).rls.settings(),
            RlsSettings::default()
        );
    }

    #[test]
    fn every_setting_has_a_variable() {
        let command = LogConfig::augment_args(ServeConfig::augment_args(Command::new("rowcast")));
        for argument in command.get_arguments() {
            let variable = argument.get_env().map(|name| name.to_string_lossy().into_owned());
            let own = argument.get_id().as_str().to_uppercase();
            let is_common = ["DATABASE_URL", "REDIS_URL"].contains(&own.as_str());
            let expected = if is_common { own } else { format!("ROWCAST_{own}") };
            assert_eq!(variable, Some(expected));
        }
    }

    #[test]
    fn every_setting_is_documented_with_its_default() {
        let document = include_str!("../docs/operations.md");
        let command = LogConfig::augment_args(ServeConfig::augment_args(Command::new("rowcast")));
        for argument in command.get_arguments() {
            let variable = argument.get_env().expect("tested above").to_string_lossy();
            let flag = argument.get_long().expect("every setting has a flag");
            let default = argument.get_default_values().first().map(|value| value.to_string_lossy());
            // Those without a default say in words what their absence means.
            let default =
                default.filter(|value| !value.is_empty()).map(|value| format!("`{value}` |")).unwrap_or_default();
            let row = format!("| `{variable}` | `--{flag}` | {default}");
            assert!(document.contains(&row), "docs/operations.md lacks {row}");
        }
    }

    #[test]
    fn wrong_values_are_refused() {
        for flags in [
            ["--listen", "8080"],
            ["--listen", "localhost:8080"],
            ["--metrics-listen", "x"],
            ["--redis-url", "http://redis"],
            ["--redis-url", ""],
            ["--allowed-origins", "app.example.com"],
            ["--allowed-origins", "https://a.example/path"],
            ["--drain-wait", "5"],
            ["--drain-wait", "25h"],
            ["--statement-timeout", "0s"],
            ["--subscriptions-max", "0"],
            ["--messages-per-second", "0"],
            ["--messages-burst", "1000001"],
            ["--stall-max", "0s"],
            ["--ping-every", "25"],
            ["--pool-size", "1001"],
            ["--message-bytes-max", "10"],
            ["--message-bytes-max", "1GiB"],
            ["--channel-bytes-max", "64 parsecs"],
            ["--jwt-secret", "short"],
            ["--jwt-public-key", "no/such/file.pem"],
            ["--jwks-url", "ftp://issuer.example/keys"],
            ["--jwks-url", "no/such/file.json"],
            ["--jwt-issuer", ""],
            ["--cookie", "a b"],
            ["--anonymous", "maybe"],
            ["--auth-timeout", "0s"],
            ["--rls-roles", "app,,staff"],
            ["--rls-roles", "none"],
            ["--rls-claims", "sub,.x"],
            ["--rls-role-claim", ""],
        ] {
            assert!(parse(&flags).is_err(), "{flags:?}");
        }
    }

    #[test]
    fn a_log_filter_is_a_level_or_names_parts() {
        for text in ["info", "warn,rowcast::hub=debug", "rowcast=trace", "off"] {
            assert!(text.parse::<LogFilter>().is_ok(), "{text}");
        }
        for text in ["", "loud", "rowcast=loud"] {
            assert!(text.parse::<LogFilter>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_printed_config_has_no_password() {
        let config = parse(&["--redis-url", "redis://:hidden@cache:6379"]).expect("fine");
        let text = format!("{config:?}");
        assert!(!text.contains("geheim") && !text.contains("hidden"), "{text}");
    }
}
