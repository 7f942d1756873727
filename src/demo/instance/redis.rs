//! A private Redis: starting, restarting, killing, removing. It keeps nothing on disk unless it is told to `SAVE`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::Signal;

use super::process::{Server, free_port, output_of, random_password};
use crate::config::RedisUrl;

/// The oldest Redis that Rowcast works with.
const VERSION_MIN: u32 = 7;

/// How long a start may take.
const START_PATIENCE: Duration = Duration::from_secs(15);

/// A private Redis, running or stopped. Dropping it stops it and removes its directory.
pub struct Redis {
    program: PathBuf,
    server: Server,
    port: u16,
    password: String,
}

impl Redis {
    /// Starts an empty Redis.
    ///
    /// # Errors
    /// No Redis on this machine that is new enough, or what the server said.
    pub async fn launch() -> anyhow::Result<Self> {
        let program = redis_program().context(
            "no Redis 7 or newer is installed on this machine (Debian or Ubuntu: apt-get install redis-server)",
        )?;
        let server = Server::prepare("redis", Signal::SIGTERM, false)?;
        let mut redis = Self { program, server, port: 0, password: random_password() };
        // Between finding a free port and listening on it, another program may take it.
        let mut tries = 0;
        loop {
            redis.choose_port()?;
            match redis.start().await {
                Ok(()) => return Ok(redis),
                Err(_) if tries < 3 && redis.server.log_tail().contains("Address already in use") => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    pub fn url(&self) -> RedisUrl {
        format!("redis://:{}@127.0.0.1:{}", self.password, self.port).parse().expect("the parts need no escaping")
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the server, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// The directory of this instance; `SAVE` writes `dump.rdb` there, and a start reads it.
    pub fn directory(&self) -> &Path {
        self.server.directory()
    }

    /// Starts a stopped server, on the same port, and returns when it answers.
    ///
    /// # Errors
    /// What the server said.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        let mut command = self.server.command(&self.program);
        self.server.start(command.arg(self.server.directory().join("redis.conf")))?;
        let client = redis::Client::open(self.url().expose()).context("the address of the private Redis")?;
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            let error = match ping(&client).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            anyhow::ensure!(self.server.is_running(), "Redis ended at once:\n{}", self.server.log_tail());
            anyhow::ensure!(Instant::now() < deadline, "Redis does not answer ({error}):\n{}", self.server.log_tail());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops the server in order.
    pub async fn stop(&mut self) {
        self.server.stop(Signal::SIGTERM).await;
    }

    /// Kills the server without a chance to say goodbye.
    pub async fn kill(&mut self) {
        self.server.stop(Signal::SIGKILL).await;
    }

    /// Stops and starts it: empty again, unless somebody said `SAVE`.
    ///
    /// # Errors
    /// What the server said.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await;
        self.start().await
    }

    fn choose_port(&mut self) -> anyhow::Result<()> {
        self.port = free_port()?;
        let conf = format!(
            "bind 127.0.0.1\nport {}\nrequirepass {}\ndir \"{}\"\nsave \"\"\nappendonly no\ndaemonize no\n",
            self.port,
            self.password,
            self.server.directory().display()
        );
        self.server.write("redis.conf", &conf)?;
        Ok(())
    }
}

async fn ping(client: &redis::Client) -> redis::RedisResult<()> {
    let mut connection = client.get_multiplexed_async_connection().await?;
    redis::cmd("PING").query_async(&mut connection).await
}

/// The program of a Redis (or Valkey) that is new enough, if this machine has one.
pub fn redis_program() -> Option<PathBuf> {
    ["redis-server", "valkey-server"].into_iter().map(PathBuf::from).find(|program| {
        let version = output_of(program, "--version").and_then(|text| major_version(&text));
        version.is_some_and(|version| version >= VERSION_MIN)
    })
}

/// From `Redis server v=7.0.15 sha=00000000:0 …`.
fn major_version(text: &str) -> Option<u32> {
    let (_, after) = text.split_once("v=")?;
    after.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_redis_prints_them() {
        assert_eq!(major_version("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1"), Some(7));
        assert_eq!(major_version("Redis"), None);
    }

    #[tokio::test]
    async fn a_restarted_redis_is_empty_and_has_its_old_address() {
        let mut redis = Redis::launch().await.expect("a Redis");
        let client = redis::Client::open(redis.url().expose()).expect("an address");
        let set_and_get = async |command: redis::Cmd| -> Option<String> {
            let mut connection = client.get_multiplexed_async_connection().await.expect("a connection");
            command.query_async(&mut connection).await.expect("an answer")
        };
        set_and_get(redis::Cmd::set("a", "b")).await;
        assert_eq!(set_and_get(redis::Cmd::get("a")).await.as_deref(), Some("b"));
        redis.restart().await.expect("a restart");
        assert_eq!(set_and_get(redis::Cmd::get("a")).await, None);
        redis.kill().await;
        assert_eq!(redis.pid(), None);
        let directory = redis.directory().to_owned();
        drop(redis);
        assert!(!directory.exists());
    }
}
