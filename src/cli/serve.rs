//! `rowcast serve` and `rowcast demo`: running until a signal says otherwise.

use std::io::{self, Write};
use std::net::SocketAddr;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::config::ServeConfig;
use crate::demo::{self, DemoOptions};

/// What a shell reports for a process that ended by Ctrl-C.
const EXIT_INTERRUPTED: i32 = 130;

pub(super) async fn serve(config: ServeConfig) -> anyhow::Result<()> {
    let signals = Signals::listen()?;
    let drain = config.drain_wait + config.drain_spread;
    let store = config.redis_url.as_ref().map_or("in this process".to_owned(), ToString::to_string);
    let database = config.database_url.to_string();
    let stop = CancellationToken::new();
    // Wake-ups: it has ended by itself; a signal. The second arm never returns.
    tokio::select! {
        ended = async {
            let app = App::bind(config).await?;
            let _ = writeln!(
                io::stdout(),
                "Rowcast serves http://{} (database {database}, store {store}); Ctrl-C stops it",
                app.addr()
            );
            app.run(stop.clone()).await
        } => ended,
        never = signals.stop_then_exit(&stop, format!("Stopping: connections close within {drain:?}.")) => match never {},
    }
}

pub(super) async fn demo(listen: Option<SocketAddr>, rate: f64, keep: bool) -> anyhow::Result<()> {
    let signals = Signals::listen()?;
    let stop = CancellationToken::new();
    let program = std::env::args().next().unwrap_or_else(|| "rowcast".to_owned());
    tokio::select! {
        ended = demo::run(DemoOptions { listen, rate, keep, program }, stop.clone()) => ended,
        // Exiting at once leaves nothing behind either: the servers have a watchdog.
        never = signals.stop_then_exit(&stop, "Stopping.".to_owned()) => match never {},
    }
}

/// SIGINT and SIGTERM, from now on.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
        let terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        Ok(Self { interrupt, terminate })
    }

    /// The first signal cancels `stop`; the second Ctrl-C ends the process.
    async fn stop_then_exit(mut self, stop: &CancellationToken, message: String) -> std::convert::Infallible {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        let _ = writeln!(io::stderr(), "\n{message} Ctrl-C again ends it at once.");
        stop.cancel();
        self.interrupt.recv().await;
        std::process::exit(EXIT_INTERRUPTED)
    }
}
