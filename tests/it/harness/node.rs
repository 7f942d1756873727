//! A node: the real binary as a process of its own, so that it can be killed for good.

use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rowcast::config::{DatabaseUrl, RedisUrl};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::until;

/// A running `rowcast serve`. It is killed when dropped.
pub struct Node {
    child: Child,
    pub address: SocketAddr,
}

impl Node {
    /// Starts a node on a free port and waits until it serves.
    pub async fn start(database: &DatabaseUrl, redis: Option<&RedisUrl>) -> Self {
        Self::start_with(database, redis, &[]).await
    }

    /// The same, with further environment variables.
    pub async fn start_with(database: &DatabaseUrl, redis: Option<&RedisUrl>, environment: &[(&str, &str)]) -> Self {
        Self::start_at("127.0.0.1:0".parse().expect("an address"), database, redis, environment).await
    }

    /// The same, at an address, for a node that comes back.
    pub async fn start_at(
        address: SocketAddr,
        database: &DatabaseUrl,
        redis: Option<&RedisUrl>,
        environment: &[(&str, &str)],
    ) -> Self {
        Self::spawn(address, database, redis, environment, Stdio::inherit()).await
    }

    /// The same, and everything it logs goes to a file, for a test that looks for what must not be there.
    pub async fn start_logging(
        log: std::fs::File,
        database: &DatabaseUrl,
        redis: Option<&RedisUrl>,
        environment: &[(&str, &str)],
    ) -> Self {
        let anywhere = "127.0.0.1:0".parse().expect("an address");
        Self::spawn(anywhere, database, redis, environment, log.into()).await
    }

    async fn spawn(
        address: SocketAddr,
        database: &DatabaseUrl,
        redis: Option<&RedisUrl>,
        environment: &[(&str, &str)],
        stderr: Stdio,
    ) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rowcast"));
        command
            .arg("serve")
            .env("DATABASE_URL", database.expose())
            .env("ROWCAST_LISTEN", address.to_string())
            .env("ROWCAST_DRAIN_WAIT", "0s")
            .env("ROWCAST_DRAIN_SPREAD", "0s")
            .env("ROWCAST_LOG", std::env::var("ROWCAST_TEST_LOG").unwrap_or_else(|_| "warn".into()))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true);
        if let Some(redis) = redis {
            command.env("REDIS_URL", redis.expose());
        }
        let mut child = command.spawn().expect("the rowcast binary starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut lines = BufReader::new(stdout).lines();
        let address = super::within("a node says where it serves", async {
            loop {
                let line = lines.next_line().await.expect("stdout is text").expect("the node serves before it ends");
                if let Some((_, rest)) = line.split_once("http://") {
                    let host = rest.split(|c: char| c == '/' || c.is_whitespace()).next().expect("a host");
                    let address: SocketAddr = host.parse().expect("an address");
                    // One that listens everywhere is asked here.
                    let here = address.ip().is_unspecified().then(|| ([127, 0, 0, 1], address.port()).into());
                    break here.unwrap_or(address);
                }
            }
        })
        .await;
        // The rest of what it prints is read, so that it never waits for us.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let node = Self { child, address };
        until("the node serves", async || node.get("/servez").await.ok().filter(|answer| answer.0 == 200)).await;
        node
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("the node runs")
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Status and body of a GET.
    pub async fn get(&self, path: &str) -> Result<(u16, String), reqwest::Error> {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        let answer = client.get(self.url(path)).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// The sum of a metric's series; 0 where it has none.
    pub async fn metric(&self, name: &str) -> f64 {
        let (status, body) = self.get("/metrics").await.expect("/metrics answers");
        assert_eq!(status, 200, "{body}");
        body.lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    pub async fn leads(&self) -> bool {
        self.metric("rowcast_leader").await == 1.0
    }

    /// Waits until delivery works.
    pub async fn ready(&self) {
        until("the node is ready", async || self.get("/readyz").await.ok().filter(|answer| answer.0 == 200)).await;
    }

    /// kill -9.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("the node can be killed");
    }

    /// SIGTERM; the exit status.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal_to_terminate();
        self.ended().await
    }

    /// SIGTERM, without waiting for what comes of it.
    pub fn signal_to_terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(self.pid() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("the node can be signalled");
    }

    /// Waits until it has ended by itself; the exit status.
    pub async fn ended(&mut self) -> ExitStatus {
        super::within("the node ends", self.child.wait()).await.expect("the node can be waited for")
    }

    /// SIGSTOP and SIGCONT: a node that hangs.
    pub fn freeze(&self, frozen: bool) {
        use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
        let pid = nix::unistd::Pid::from_raw(self.pid() as i32);
        nix::sys::signal::kill(pid, if frozen { SIGSTOP } else { SIGCONT }).expect("the node can be signalled");
    }
}
