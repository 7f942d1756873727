//! The command line: what can be asked for, and who does it.
//!
//! Flags and addresses are checked here, before anything starts: a wrong one is an error that names it, and exit code 2.
//! What fails later ends with exit code 1. Data goes to standard output, everything else to standard error.

pub mod client;
mod publications;
mod report;
mod serve;
mod table;
mod token;
mod usage;
mod watch;
mod watch_output;
mod wire;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::{DatabaseUrl, LogConfig, ServeConfig};

pub use publications::{Publish, Unpublish};
pub use report::describe;
pub use token::Token;
pub use usage::UsageError;
pub use watch::Watch;

/// Your Postgres tables, live in every browser
///
/// Rowcast keeps web pages in step with Postgres: a page subscribes to a table, gets its rows at once, and then every
/// change as it commits. `rowcast demo` shows it on a database of its own.
#[derive(Parser, Debug)]
#[command(name = "rowcast", version, max_term_width = 110, propagate_version = false)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    #[command(flatten)]
    pub log: LogConfig,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Serve the published tables of a database
    Serve(Box<ServeConfig>),
    /// Show it: a small shop on a private database, with a page; nothing is left of it afterwards
    Demo(Demo),
    /// Install Rowcast's schema in a database, or bring it up to date
    Migrate(Database),
    /// Make a table available to clients
    Publish(Publish),
    /// Take a publication back; its subscriptions end
    Unpublish(Unpublish),
    /// List what is published
    Publications(Publications),
    /// Follow a channel in the terminal: its rows, then every change
    Watch(Watch),
    /// Mint a token for development, signed with ROWCAST_JWT_SECRET
    Token(Token),
}

#[derive(clap::Args, Debug)]
pub struct Demo {
    /// Where the page is. Without it: 127.0.0.1:8080, or any free port if that is taken
    #[arg(long, env = "ROWCAST_LISTEN", value_name = "ADDRESS", value_parser = crate::config::address)]
    listen: Option<SocketAddr>,

    /// Writes per second; `update shop.settings set rate = …` changes it later
    #[arg(long, value_name = "N", value_parser = rate, default_value = "20")]
    rate: f64,

    /// Keep the data when the demo ends, and say how to start it again
    #[arg(long)]
    keep: bool,
}

/// Which database a command works on.
#[derive(clap::Args, Clone, Debug)]
pub struct Database {
    /// The Postgres whose tables are served
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: DatabaseUrl,
}

#[derive(clap::Args, Debug)]
pub struct Publications {
    #[command(flatten)]
    database: Database,

    /// One JSON object per line, with every setting
    #[arg(long)]
    json: bool,
}

impl Cli {
    /// Reads a command line and the environment.
    ///
    /// # Errors
    /// What to print, and the exit code; `--help` and `--version` are among them.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, UsageError> {
        let command = Self::command();
        command
            .clone()
            .try_get_matches_from(arguments)
            .and_then(|matches| Self::from_arg_matches(&matches))
            .map_err(|error| UsageError::new(&error, &command))
    }

    /// What is logged where `--log` says nothing: a server reports its work, a tool only what goes wrong.
    pub fn default_log_filter(&self) -> &'static str {
        match self.command {
            Command::Serve(_) => "info,sqlx=warn",
            // That Postgres went away is said by whoever needed it; sqlx would say it again, and at every end of the demo.
            _ => "warn,sqlx=error",
        }
    }

    /// Does what was asked for.
    ///
    /// # Errors
    /// What went wrong, for [`describe`].
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Serve(config) => serve::serve(*config).await?,
            Command::Demo(demo) => serve::demo(demo.listen, demo.rate, demo.keep).await?,
            Command::Migrate(database) => publications::migrate(&database.database_url).await?,
            Command::Publish(publish) => publications::publish(&publish).await?,
            Command::Unpublish(unpublish) => publications::unpublish(&unpublish).await?,
            Command::Publications(list) => publications::list(&list.database.database_url, list.json).await?,
            Command::Watch(watch) => return watch::run(watch).await,
            Command::Token(token) => token::mint(&token)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.0..=10_000.0).contains(&rate) => Ok(rate),
        _ => Err("expected a number of writes per second from 0 to 10000".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_rate_is_a_number_of_writes() {
        assert_eq!((rate("0"), rate("0.5"), rate("10000")), (Ok(0.0), Ok(0.5), Ok(10_000.0)));
        for text in ["", "-1", "NaN", "inf", "10001", "fast"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
