//! A private Postgres: finding its programs, `initdb`, starting, stopping, crashing, removing.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

use super::process::{Server, free_port, output_of, random_password};
use crate::config::DatabaseUrl;

/// The oldest Postgres that Rowcast works with.
const VERSION_MIN: u32 = 14;

/// How long a start may take; recovery after a crash included.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Variables that would change what our server or its tools do.
const FOREIGN_VARIABLES: [&str; 10] = [
    "PGDATA",
    "PGPORT",
    "PGHOST",
    "PGHOSTADDR",
    "PGUSER",
    "PGDATABASE",
    "PGPASSWORD",
    "PGOPTIONS",
    "PGSERVICE",
    "PGTZ",
];

/// A private Postgres, running or stopped. Dropping it stops it and removes its directory.
pub struct Postgres {
    programs: PostgresPrograms,
    server: Server,
    options: PostgresOptions,
    port: u16,
    /// Of the user `postgres`. Only tests go without.
    password: Option<String>,
}

/// How a private Postgres is set up.
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    /// The database that is created and that [`Postgres::url`] names.
    pub database: String,
    /// Without: `fsync = off` and trust for every user on loopback, for tests.
    pub durable: bool,
    /// Settings for `postgresql.conf`.
    pub settings: Vec<(String, String)>,
    /// Whether the directory stays.
    pub keep: bool,
}

impl PostgresOptions {
    /// Files that survive a crash of the machine, and a password, since others may use this machine too.
    pub fn for_demo(database: &str) -> Self {
        Self { database: database.into(), durable: true, settings: Vec::new(), keep: false }
    }

    /// Fast, with any user let in, and with connections to spare.
    pub fn for_tests(database: &str) -> Self {
        Self { durable: false, ..Self::for_demo(database) }.with("max_connections", "200")
    }

    /// Adds a setting; the last one of a name counts.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }
}

impl Postgres {
    /// Creates a database cluster and starts it.
    ///
    /// # Errors
    /// No PostgreSQL programs on this machine, or what `initdb` or the server said.
    pub async fn launch(options: PostgresOptions) -> anyhow::Result<Self> {
        let programs = PostgresPrograms::find()?;
        // What is going to be removed need not be written out first.
        let stop_signal = if options.keep { Signal::SIGINT } else { Signal::SIGQUIT };
        let server = Server::prepare("postgres", stop_signal, options.keep)?;
        let password = options.durable.then(random_password);
        let mut postgres = Self { programs, server, options, port: 0, password };
        postgres.init().await?;
        // Between finding a free port and listening on it, another program may take it.
        let mut tries = 0;
        loop {
            postgres.choose_port()?;
            match postgres.start().await {
                Ok(()) => break,
                Err(_) if tries < 3 && postgres.server.log_tail().contains("Address already in use") => tries += 1,
                Err(error) => return Err(error),
            }
        }
        postgres.create_database().await?;
        Ok(postgres)
    }

    /// The address of the database, as the user `postgres`.
    pub fn url(&self) -> DatabaseUrl {
        self.url_of(&self.options.database)
    }

    /// The address of another database on this server.
    pub fn url_of(&self, database: &str) -> DatabaseUrl {
        let password = self.password.as_ref().map(|password| format!(":{password}")).unwrap_or_default();
        format!("postgres://postgres{password}@127.0.0.1:{}/{database}", self.port)
            .parse()
            .expect("the parts need no escaping: names of databases are ours")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The major version of the server.
    pub fn version(&self) -> u32 {
        self.programs.version
    }

    /// The process id of the server, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// Where a program of the same installation is: `psql`, `pgbench`, `pg_ctl`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.program(name)
    }

    /// The directory of this instance; the cluster is in `data` in it.
    pub fn directory(&self) -> &Path {
        self.server.directory()
    }

    /// The user it runs as, where it is not our own.
    pub fn runs_as(&self) -> Option<&str> {
        self.server.account().map(|account| account.name.as_str())
    }

    /// The end of the server's log.
    pub fn log_tail(&self) -> String {
        self.server.log_tail()
    }

    /// Starts a stopped server, on the same port, and returns when it takes connections.
    ///
    /// # Errors
    /// What the server said.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        let mut command = self.server.command(&self.programs.program("postgres"));
        for variable in FOREIGN_VARIABLES {
            command.env_remove(variable);
        }
        self.server.start(command.arg("-D").arg(self.data_directory()))?;
        let deadline = Instant::now() + START_PATIENCE;
        let options = self.url_of("postgres").options().disable_statement_logging();
        loop {
            let error = match connect(&options).await {
                Ok(connection) => {
                    let _ = connection.close().await;
                    return Ok(());
                }
                Err(error) => error,
            };
            anyhow::ensure!(self.server.is_running(), "PostgreSQL ended at once:\n{}", self.server.log_tail());
            anyhow::ensure!(
                Instant::now() < deadline,
                "PostgreSQL takes no connections ({error}):\n{}",
                self.server.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops the server: connections are closed, nothing committed is lost (`fast`).
    pub async fn stop(&mut self) {
        self.server.stop(Signal::SIGINT).await;
    }

    /// Crashes the server without a checkpoint (`immediate`), and starts it again: unlogged tables are empty after it.
    ///
    /// # Errors
    /// What the server said.
    pub async fn restart_immediate(&mut self) -> anyhow::Result<()> {
        self.server.stop(Signal::SIGQUIT).await;
        self.start().await
    }

    fn data_directory(&self) -> PathBuf {
        self.server.directory().join("data")
    }

    async fn init(&mut self) -> anyhow::Result<()> {
        // C.UTF-8 sorts by code point and knows letters beyond ASCII; some systems do not have it.
        for locale in ["C.UTF-8", "C"] {
            let mut command = self.server.command(&self.programs.program("initdb"));
            command.args(["-U", "postgres", "-E", "UTF8", "--no-sync", "--auth-local=trust"]);
            command.arg(format!("--locale={locale}")).arg("-D").arg(self.data_directory());
            match &self.password {
                Some(password) => {
                    let path = self.server.write("password", &format!("{password}\n"))?;
                    command.arg("--auth-host=scram-sha-256").arg("--pwfile").arg(path);
                }
                None => drop(command.arg("--auth-host=trust")),
            }
            for variable in FOREIGN_VARIABLES {
                command.env_remove(variable);
            }
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let child = tokio::process::Command::from(command).kill_on_drop(true).spawn().context("starting initdb")?;
            if let Some(pid) = child.id() {
                self.server.tell_watchdog(&format!("running {pid}"));
            }
            let output = child.wait_with_output().await.context("running initdb")?;
            self.server.tell_watchdog("stopped");
            if output.status.success() {
                let _ = std::fs::remove_file(self.server.directory().join("password"));
                return Ok(());
            }
            let said = String::from_utf8_lossy(&output.stderr);
            anyhow::ensure!(said.contains("locale") && locale != "C", "initdb failed:\n{}", said.trim());
            let _ = std::fs::remove_dir_all(self.data_directory());
        }
        anyhow::bail!("initdb knows neither the locale C.UTF-8 nor C")
    }

    fn choose_port(&mut self) -> anyhow::Result<()> {
        self.port = free_port()?;
        // A socket's path has at most about 100 bytes.
        let directory = self.server.directory().display().to_string();
        let socket_directory = if directory.len() < 80 { directory.as_str() } else { "" };
        let mut conf = format!(
            "# Everything of this instance, so that it can be started again by hand.\n\
             listen_addresses = '127.0.0.1'\n\
             port = {}\n\
             unix_socket_directories = '{socket_directory}'\n\
             logging_collector = off\n",
            self.port
        );
        if !self.options.durable {
            conf.push_str("fsync = off\nfull_page_writes = off\n");
        }
        for (name, value) in &self.options.settings {
            conf.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
        }
        self.server.write("data/postgresql.auto.conf", &conf)?;
        Ok(())
    }

    async fn create_database(&self) -> anyhow::Result<()> {
        if self.options.database == "postgres" {
            return Ok(());
        }
        let mut connection = connect(&self.url_of("postgres").options()).await?;
        let statement = format!("create database \"{}\"", self.options.database.replace('"', "\"\""));
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.context("creating the database")?;
        connection.close().await?;
        Ok(())
    }
}

async fn connect(options: &PgConnectOptions) -> Result<sqlx::PgConnection, sqlx::Error> {
    // A server that is starting may take a connection and never answer: bounded, and tried again by the caller.
    match tokio::time::timeout(Duration::from_secs(5), sqlx::PgConnection::connect_with(options)).await {
        Ok(result) => result,
        Err(_) => Err(sqlx::Error::PoolTimedOut),
    }
}

/// An installation of PostgreSQL on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresPrograms {
    /// Empty: the programs are found through PATH.
    directory: PathBuf,
    version: u32,
}

impl PostgresPrograms {
    /// The first that is new enough of: what `pg_config` names, PATH, and the newest in the usual places.
    ///
    /// # Errors
    /// There is none; the text says how to install it.
    pub fn find() -> anyhow::Result<Self> {
        let mut too_old = None;
        for directory in candidate_directories() {
            match Self::in_directory(directory) {
                Some(programs) if programs.version >= VERSION_MIN => return Ok(programs),
                Some(programs) => too_old = Some(programs),
                None => {}
            }
        }
        match too_old {
            Some(programs) => anyhow::bail!(
                "PostgreSQL {} in {} is too old: {VERSION_MIN} or newer is needed",
                programs.version,
                programs.directory.display()
            ),
            None => anyhow::bail!(
                "no PostgreSQL server is installed on this machine. Debian or Ubuntu: apt-get install postgresql; \
                 Fedora: dnf install postgresql-server; macOS: brew install postgresql"
            ),
        }
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn in_directory(directory: PathBuf) -> Option<Self> {
        output_of(&directory.join("initdb"), "--version")?;
        let version = major_version(&output_of(&directory.join("postgres"), "--version")?)?;
        Some(Self { directory, version })
    }
}

fn candidate_directories() -> Vec<PathBuf> {
    let mut candidates = Vec::new();
    candidates.extend(output_of(Path::new("pg_config"), "--bindir").map(PathBuf::from));
    candidates.push(PathBuf::new());
    let mut versioned = Vec::new();
    for (parent, prefix) in [
        ("/usr/lib/postgresql", ""),
        ("/usr", "pgsql-"),
        ("/opt/homebrew/opt", "postgresql"),
        ("/usr/local/opt", "postgresql"),
        ("/Applications/Postgres.app/Contents/Versions", ""),
    ] {
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(version) = name.strip_prefix(prefix) {
                let version: u32 = version.trim_start_matches('@').parse().unwrap_or(0);
                versioned.push((version, entry.path().join("bin")));
            }
        }
    }
    versioned.sort_by(|a, b| b.cmp(a));
    candidates.extend(versioned.into_iter().map(|(_, path)| path));
    candidates
}

/// From `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`, `… 17beta1`.
fn major_version(text: &str) -> Option<u32> {
    let (_, after) = text.split_once("(PostgreSQL) ")?;
    let digits = after.find(|character: char| !character.is_ascii_digit()).unwrap_or(after.len());
    after[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_postgres_prints_them() {
        assert_eq!(major_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(major_version("postgres (PostgreSQL) 19beta1"), Some(19));
        assert_eq!(major_version("postgres"), None);
    }

    #[tokio::test]
    async fn a_postgres_survives_a_crash_and_leaves_nothing_behind() {
        let mut postgres = Postgres::launch(PostgresOptions::for_tests("shop")).await.expect("a Postgres");
        let directory = postgres.directory().to_owned();
        let count = async |url: DatabaseUrl, sql: &'static str| -> i64 {
            let mut connection = connect(&url.options()).await.expect("a connection");
            sqlx::query_scalar(sql).fetch_one(&mut connection).await.expect("a number")
        };
        let sql = "with made as (select 1) select count(*) from made";
        assert_eq!(count(postgres.url(), sql).await, 1);
        let mut connection = connect(&postgres.url().options()).await.expect("a connection");
        sqlx::raw_sql("create table kept as select 1; create unlogged table lost as select 1")
            .execute(&mut connection)
            .await
            .expect("two tables");
        postgres.restart_immediate().await.expect("a restart");
        assert_eq!(count(postgres.url(), "select count(*) from kept").await, 1);
        assert_eq!(count(postgres.url(), "select count(*) from lost").await, 0);
        postgres.stop().await;
        assert_eq!(postgres.pid(), None);
        postgres.start().await.expect("a start");
        let pid = postgres.pid().expect("it runs");
        drop(postgres);
        assert!(!directory.exists());
        let process = nix::unistd::Pid::from_raw(pid.cast_signed());
        assert!(nix::sys::signal::kill(process, None).is_err(), "the server still runs");
    }
}
