//! The `rowcast` program: reads the command line, sets up logs, and does what was asked for.

use std::process::ExitCode;

use rowcast::cli::{Cli, describe};
use rowcast::config::{LogConfig, LogFormat};
use tracing::Level;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

fn main() -> ExitCode {
    let cli = match Cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            error.print();
            return ExitCode::from(error.code);
        }
    };
    start_logs(&cli.log, cli.default_log_filter());
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: starting the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(cli.run()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{}", describe(&error));
            ExitCode::FAILURE
        }
    }
}

/// Logs go to standard error, so that standard output has nothing but data.
///
/// The libraries below us are heard up to `info` only, whatever was asked for: further down they write out what goes over
/// the wire, rows and tokens among it.
fn start_logs(config: &LogConfig, default_filter: &str) {
    let asked = EnvFilter::new(config.log.as_ref().map_or(default_filter, |filter| filter.as_str()));
    let discreet = filter_fn(|event| *event.level() <= Level::INFO || event.target().starts_with("rowcast"));
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match config.log_format {
        LogFormat::Text => lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry().with(lines).with(discreet).with(asked).init();
}
