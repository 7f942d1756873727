//! The `rowcast` program: reads the command line, sets up logs, and does what was asked for.

use std::process::ExitCode;

use rowcast::cli::{Cli, describe};
use rowcast::config::{LogConfig, LogFormat};
use tracing_subscriber::EnvFilter;

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
fn start_logs(config: &LogConfig, default_filter: &str) {
    let filter = EnvFilter::new(config.log.as_ref().map_or(default_filter, |filter| filter.as_str()));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => logs.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => logs.json().init(),
    }
}
