//! A Postgres of one's own: the machine's binaries, a temporary directory, reachable only by a socket in it. It runs as
//! the user `postgres` where the tests run as root, which the server refuses to be. It ends with its handle.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

pub struct PrivatePostgres {
    directory: TempDir,
    settings: Vec<String>,
    server: Child,
}

impl PrivatePostgres {
    /// With the `rowcast` schema installed.
    pub async fn start() -> Self {
        let postgres = Self::bare(&[]).await;
        rowcast::capture::install::migrate(&postgres.options()).await.expect("migrations that apply");
        postgres
    }

    /// Without it, and with settings of its own (`name=value`).
    pub async fn bare(settings: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        if let Some(user) = server_user() {
            std::os::unix::fs::chown(directory.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw()))
                .expect("root may give a directory away");
        }
        let made = server_command("initdb", directory.path())
            .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(directory.path().join("data"))
            .stdout(Stdio::null())
            .status();
        assert!(made.expect("initdb is installed").success());
        let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
        let server = serve(directory.path(), &settings);
        let postgres = Self { directory, settings, server };
        postgres.answers().await;
        postgres
    }

    pub fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(self.directory.path())
            .port(5432)
            .username("postgres")
            .database("postgres")
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@localhost/postgres?host={}", self.directory.path().display())
    }

    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect_with(&self.options()).await.expect("a connection to the private Postgres")
    }

    /// Runs statements that have to work.
    pub async fn run(&self, sql: &str) {
        let mut connection = self.connect().await;
        run(&mut connection, sql).await;
        connection.close().await.expect("a connection that closes");
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Shuts the server down in order.
    pub fn stop(&mut self) {
        self.end(Signal::SIGINT);
    }

    /// Shuts it down at once: the next start recovers, and unlogged tables are empty.
    pub fn crash(&mut self) {
        self.end(Signal::SIGQUIT);
    }

    /// Starts it again.
    pub async fn revive(&mut self) {
        self.server = serve(self.directory.path(), &self.settings);
        self.answers().await;
    }

    fn end(&mut self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.server.id() as i32), signal);
        let _ = self.server.wait();
    }

    async fn answers(&self) {
        let started = Instant::now();
        while let Err(error) = PgConnection::connect_with(&self.options()).await {
            assert!(started.elapsed() < Duration::from_secs(20), "the private Postgres does not answer: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        self.end(Signal::SIGQUIT);
    }
}

/// Runs statements that have to work.
pub async fn run(connection: &mut PgConnection, sql: &str) {
    if let Err(error) = attempt(connection, sql).await {
        panic!("{error}\n{sql}");
    }
}

/// Runs statements that may fail.
pub async fn attempt(connection: &mut PgConnection, sql: &str) -> Result<u64, sqlx::Error> {
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(connection).await.map(|done| done.rows_affected())
}

fn serve(directory: &Path, settings: &[String]) -> Child {
    let mut command = server_command("postgres", directory);
    command.arg("-D").arg(directory.join("data")).arg("-k").arg(directory);
    for setting in ["listen_addresses=", "fsync=off", "max_connections=60", "shared_buffers=64MB"] {
        command.args(["-c", setting]);
    }
    for setting in settings {
        command.args(["-c", setting]);
    }
    let log = std::fs::File::create(directory.join("log")).expect("a log file");
    command.stdout(Stdio::null()).stderr(log).spawn().expect("postgres is installed")
}

/// A command of the server's, as a user that the server accepts.
fn server_command(name: &str, directory: &Path) -> Command {
    let mut command = Command::new(binaries().join(name));
    command.current_dir(directory);
    if let Some(user) = server_user() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

/// `postgres`, where we are root.
fn server_user() -> Option<User> {
    nix::unistd::geteuid().is_root().then(|| User::from_name("postgres").ok().flatten().expect("the user postgres"))
}

/// The newest installed release's directory.
fn binaries() -> PathBuf {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .expect("PostgreSQL is installed")
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((path.file_name()?.to_str()?.parse().ok()?, path.join("bin")))
        })
        .filter(|(_, path)| path.join("initdb").exists())
        .collect();
    found.sort();
    found.pop().expect("a PostgreSQL with initdb").1
}
