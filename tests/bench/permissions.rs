//! What permission costs the fan-out: the same load for clients that may see everything and ask for their tenant's rows,
//! and for clients whose token says which tenant's rows they may see.
//!
//! ```text
//!   cargo bench --bench permissions -- [--clients 1000] [--tenants 100] [--runs 5] [--seconds 4]
//! ```
//!
//! Each commit changes one row of every tenant, so each client gets one delta per commit. The two kinds run in turn on one
//! node, on one table with two publications; what is compared is deliveries per second of the node's own CPU. A run in
//! which a client misses the last commit, or gets a row of another tenant, fails.

#![allow(clippy::disallowed_methods, reason = "the rules for tasks and queues are for the product")]

#[allow(dead_code, reason = "shared with the other benchmarks")]
#[path = "delivery/cpu.rs"]
mod cpu;

#[allow(unused_imports, reason = "the tests' harness; a benchmark needs a part of it")]
#[path = "../it/harness/mod.rs"]
mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use sqlx::{Connection, PgConnection};
use tokio_tungstenite::tungstenite::Message;

use harness::dash::connect;
use harness::node::Node;
use harness::tokens::Signer;
use harness::world::World;

const SECRET: &str = "a secret of the benchmark, long enough for HS256";

/// Commits per second.
const COMMITS: u64 = 20;

/// What was asked for.
struct Asked {
    clients: usize,
    tenants: usize,
    runs: usize,
    seconds: u64,
}

/// How clients come to see their tenant's rows.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// By a query on a public publication.
    Public,
    /// By the policy, whatever they ask.
    Policy,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let asked = Asked::from_arguments(std::env::args().skip(1))?;
    let world = World::start(&format!(
        "create table items (id int primary key, tenant text not null, n bigint not null, note text not null);
         insert into items select i, 't' || i, 0, repeat('x', 160) from generate_series(0, {} - 1) i;
         select rowcast.publish('items', name => 'open', policy => 'public');
         select rowcast.publish('items', name => 'own', policy => 'tenant=eq.{{tenant}}');",
        asked.tenants
    ))
    .await;
    let node = world.node_with(&[("ROWCAST_JWT_SECRET", SECRET), ("ROWCAST_LOG", "error")]).await;
    node.ready().await;
    let mut connection = PgConnection::connect_with(&world.postgres.url().options()).await?;
    println!(
        "{} clients of {} tenants, {COMMITS} commits/s of {} rows, {} interleaved runs of {} s",
        asked.clients, asked.tenants, asked.tenants, asked.runs, asked.seconds
    );
    let mut results: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    let mut commit = 0;
    for run in 0..asked.runs {
        for (place, kind) in [Kind::Public, Kind::Policy].into_iter().enumerate() {
            let per_second = one(&node, &mut connection, &asked, kind, &mut commit).await?;
            println!("run {} {:<6} {per_second:>9.0} deliveries per CPU second of the node", run + 1, kind.name());
            results[place].push(per_second);
        }
    }
    let [public, policy] = results.map(cpu::median);
    println!("medians: public {public:.0}, filter policy {policy:.0}, ratio {:.2}", policy / public);
    Ok(())
}

/// One run: opens the clients, commits, and counts.
async fn one(
    node: &Node,
    connection: &mut PgConnection,
    asked: &Asked,
    kind: Kind,
    commit: &mut u64,
) -> anyhow::Result<f64> {
    let delivered = Arc::new(AtomicU64::new(0));
    let ready = Arc::new(tokio::sync::Semaphore::new(0));
    let last = Arc::new(AtomicU64::new(u64::MAX));
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..asked.clients {
        let tenant = format!("t{}", number % asked.tenants);
        let token = (kind == Kind::Policy).then(|| {
            let claims = serde_json::json!({"sub": format!("u{number}"), "tenant": tenant, "exp": 4_102_444_800_u64});
            Signer::secret(SECRET).sign(&claims)
        });
        let channel = match kind {
            Kind::Public => format!("open?tenant=eq.{tenant}"),
            Kind::Policy => "own".to_owned(),
        };
        let client = Client { tenant, token, channel, delivered: delivered.clone(), last: last.clone() };
        clients.spawn(client.run(node.address, ready.clone()));
    }
    let all = ready.acquire_many(u32::try_from(asked.clients)?).await?;
    all.forget();
    let before = cpu::own(node.pid())?;
    let count = delivered.load(Ordering::Relaxed);
    let began = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_millis(1_000 / COMMITS));
    while began.elapsed() < Duration::from_secs(asked.seconds) {
        ticks.tick().await;
        *commit += 1;
        sqlx::query("update items set n = $1").bind(i64::try_from(*commit)?).execute(&mut *connection).await?;
    }
    last.store(*commit, Ordering::Relaxed);
    // One more, so that nobody waits for a frame that has come already.
    *commit += 1;
    sqlx::query("update items set n = $1").bind(i64::try_from(*commit)?).execute(&mut *connection).await?;
    while let Some(ended) = tokio::time::timeout(Duration::from_secs(20), clients.join_next()).await? {
        ended??;
    }
    let used = cpu::own(node.pid())? - before;
    Ok((delivered.load(Ordering::Relaxed) - count) as f64 / used)
}

/// A client that reads frames and looks at no more of them than it must.
struct Client {
    tenant: String,
    token: Option<String>,
    channel: String,
    delivered: Arc<AtomicU64>,
    /// The commit after which it may end.
    last: Arc<AtomicU64>,
}

impl Client {
    async fn run(self, address: std::net::SocketAddr, ready: Arc<tokio::sync::Semaphore>) -> anyhow::Result<()> {
        let mut socket = connect(address).await.context("a websocket opens")?;
        if let Some(token) = &self.token {
            socket.send(Message::text(serde_json::json!({"op": "auth", "token": token}).to_string())).await?;
        }
        let subscribe = serde_json::json!({"op": "subscribe", "id": 1, "channel": self.channel});
        socket.send(Message::text(subscribe.to_string())).await?;
        loop {
            let text = match socket.next().await.context("the node closed")?? {
                Message::Text(text) => text,
                _ => continue,
            };
            anyhow::ensure!(!text.contains("\"op\":\"error\""), "{text}");
            if text.contains("\"op\":\"snapshot\"") {
                anyhow::ensure!(text.contains(&format!("\"tenant\":\"{}\"", self.tenant)), "{text}");
                ready.add_permits(1);
            } else if text.contains("\"op\":\"delta\"") {
                self.delivered.fetch_add(1, Ordering::Relaxed);
                let frame: serde_json::Value = serde_json::from_str(&text)?;
                let rows = frame["rows"].as_array().context("rows")?;
                anyhow::ensure!(rows.len() == 1 && format!("t{}", rows[0]["id"]) == self.tenant, "{text}");
                let n: u64 = rows[0]["n"].as_str().context("an int8")?.parse()?;
                if n >= self.last.load(Ordering::Relaxed) {
                    return Ok(());
                }
            }
        }
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Policy => "policy",
        }
    }
}

impl Asked {
    fn from_arguments(arguments: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        // Cargo adds `--bench`.
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        let mut asked = Self { clients: 1_000, tenants: 100, runs: 5, seconds: 4 };
        while let Some(argument) = arguments.next() {
            let number: usize = arguments.next().unwrap_or_default().parse().with_context(|| argument.clone())?;
            match argument.as_str() {
                "--clients" => asked.clients = number,
                "--tenants" => asked.tenants = number,
                "--runs" => asked.runs = number,
                "--seconds" => asked.seconds = number as u64,
                other => anyhow::bail!("{other:?}: expected --clients, --tenants, --runs or --seconds"),
            }
        }
        Ok(asked)
    }
}
