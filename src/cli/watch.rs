//! `rowcast watch`: follows a channel in the terminal, across restarts of the server.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use url::Url;

use super::client::{Client, Event, Handle};
use super::watch_output::Output;
use super::wire::{Wire, WireError, parse_url};
use crate::config::BearerToken;

/// The first wait before connecting again is drawn from zero to this; it doubles with every failure.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);

/// No wait is longer.
const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// Until `hello` says otherwise: for how long a connection may be silent.
const SILENCE_MAX: Duration = Duration::from_secs(15);

/// Follow a channel in the terminal.
#[derive(clap::Args, Clone, Debug)]
pub struct Watch {
    /// What to follow: a publication's name, also with filters: `orders?status=eq.open`
    #[arg(value_name = "CHANNEL", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    channel: String,

    /// The server
    #[arg(long, value_name = "URL", value_parser = parse_url, default_value = "ws://127.0.0.1:8080/v1/ws")]
    url: Url,

    /// Who to be: a token, such as `rowcast token` mints
    #[arg(long, env = "ROWCAST_TOKEN", hide_env_values = true, value_name = "JWT")]
    token: Option<BearerToken>,

    /// One JSON object per line: snapshot, upsert, gone, live, reset, offline
    #[arg(long)]
    json: bool,

    /// Rows of the snapshot to show on a terminal; elsewhere all are written
    #[arg(long, value_name = "N", default_value = "40")]
    rows: usize,
}

/// Why watching ends.
enum End {
    /// The server refuses the channel or us.
    Refused(String),
    /// Nobody reads our output any more.
    Unread(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Unread(error)
    }
}

pub(super) async fn run(watch: Watch) -> anyhow::Result<ExitCode> {
    let mut output = Output::new(&watch.channel, watch.json, watch.rows);
    match follow(&watch, &mut output).await {
        End::Refused(message) => {
            output.note(&format!("error: {message}"));
            Ok(ExitCode::FAILURE)
        }
        // `rowcast watch orders | head` is not a failure.
        End::Unread(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        End::Unread(error) => Err(error.into()),
    }
}

async fn follow(watch: &Watch, output: &mut Output) -> End {
    let mut client = Client::default();
    if let Some(token) = &watch.token {
        client.authenticate(token.clone());
    }
    let handle = client.subscribe(&watch.channel);
    let mut failures = 0u32;
    loop {
        let error = match Wire::open(&watch.url).await {
            Ok(wire) => {
                let connected_at = Instant::now();
                client.connected();
                let mut session = Session { wire, client: &mut client, handle, output, retry_at: None };
                let ended = session.run().await;
                // A connection that held shows that the server is fine again.
                if connected_at.elapsed() > BACKOFF_MAX || client.is_complete(handle) {
                    failures = 0;
                }
                client.disconnected();
                match ended {
                    Ok(error) => error,
                    Err(end) => return end,
                }
            }
            Err(error) => error,
        };
        let wait = match &error {
            WireError::Final(message) => return End::Refused(message.clone()),
            WireError::Passing { retry_after, .. } => backoff(failures, *retry_after),
        };
        failures += 1;
        if let Err(error) = output.offline(&error.to_string(), wait) {
            return End::Unread(error);
        }
        sleep(wait).await;
    }
}

/// One connection.
struct Session<'a> {
    wire: Wire,
    client: &'a mut Client,
    handle: Handle,
    output: &'a mut Output,
    /// When a subscription that was refused for now is asked for again.
    retry_at: Option<Instant>,
}

impl Session<'_> {
    /// Until the connection ends, or watching does.
    async fn run(&mut self) -> Result<WireError, End> {
        loop {
            for message in self.client.take_outgoing() {
                if let Err(error) = self.wire.send(message).await {
                    return Ok(error);
                }
            }
            let silence_max = self.client.heartbeat_ms().map_or(SILENCE_MAX, |ms| Duration::from_millis(3 * ms));
            let retry_at = self.retry_at.unwrap_or_else(|| Instant::now() + silence_max * 2);
            // Wake-ups: a frame, or too long none; the moment to ask again.
            tokio::select! {
                received = timeout(silence_max, self.wire.receive()) => match received {
                    Ok(Ok(frame)) => match self.client.receive(&frame) {
                        Ok(events) => self.show(events)?,
                        Err(violation) => {
                            return Ok(WireError::Passing { message: violation.to_string(), retry_after: None });
                        }
                    },
                    Ok(Err(error)) => return Ok(error),
                    Err(_) => {
                        let message = format!("nothing came for {silence_max:?}");
                        return Ok(WireError::Passing { message, retry_after: None });
                    }
                },
                () = tokio::time::sleep_until(retry_at), if self.retry_at.is_some() => {
                    self.retry_at = None;
                    self.client.retry(self.handle);
                }
            }
        }
    }

    fn show(&mut self, events: Vec<Event>) -> Result<(), End> {
        for event in events {
            if let Event::Refused { error, .. } = &event {
                if !error.retry {
                    let at = error.at.map(|at| format!(" (at byte {at})")).unwrap_or_default();
                    return Err(End::Refused(format!("{}: {}{at}", error.code, error.message)));
                }
                let wait = Duration::from_millis(error.retry_after_ms.unwrap_or(1_000));
                self.retry_at = Some(Instant::now() + jittered(wait));
            }
            self.output.event(self.client, &event)?;
        }
        Ok(self.output.flush()?)
    }
}

/// Full jitter: anything from nothing to the doubled time, so that clients of a restarted server do not come all at
/// once. A time that the server names is the least.
fn backoff(failures: u32, retry_after: Option<Duration>) -> Duration {
    let most = BACKOFF_FIRST.saturating_mul(1 << failures.min(10)).min(BACKOFF_MAX);
    retry_after.unwrap_or_default() + most.mul_f64(rand::random())
}

/// A time the server names, and up to half of it more.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(1.0 + rand::random::<f64>() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_a_limit_and_respect_the_server() {
        for failures in 0..40 {
            assert!(backoff(failures, None) <= BACKOFF_MAX);
        }
        assert!((0..100).all(|_| backoff(0, None) <= BACKOFF_FIRST));
        assert!(backoff(0, Some(Duration::from_secs(3))) >= Duration::from_secs(3));
    }
}
