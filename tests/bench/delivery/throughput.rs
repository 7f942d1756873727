//! How much of their speed writers keep: `pgbench` with one-row updates, in turn on a table without a trigger, on one
//! that is published and delivered to a dashboard, and on one whose trigger rings in every transaction.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::{SinkExt, StreamExt};
use rowcast::cli::client::{Client, Handle};
use sqlx::postgres::PgListener;
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::cpu::median;
use crate::harness::dash::connect;
use crate::harness::within;
use crate::stage::{ROWS, Stage, TABLES};

const CLIENTS: [u32; 2] = [8, 32];

/// How long a commit takes to be flushed: as long as this machine takes, or a millisecond more, as on a usual disk.
const FLUSHES: [(&str, &str); 2] = [("native", ""), ("1 ms", "-c commit_delay=1000 -c commit_siblings=0")];

/// What one run gave.
struct Run {
    tps: f64,
    cores: BTreeMap<&'static str, f64>,
    cuts: f64,
}

/// Measures and prints.
pub async fn run(stage: &Stage, runs: usize, time: Duration) -> anyhow::Result<()> {
    println!(
        "Throughput: one-row updates of {ROWS} rows, pgbench -M prepared, medians of {runs} interleaved runs of {} s.\n\
         CPU in cores (of {}), shared by all.\n",
        time.as_secs(),
        std::thread::available_parallelism()?
    );
    println!("| flush | clients | trigger | tps | ratio (lowest to highest) | cuts/s | CPU |");
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let mut listener = PgListener::connect(stage.postgres.url().expose()).await?;
    listener.listen("bench").await?;
    let drain = tokio::spawn(async move { while listener.recv().await.is_ok() {} });
    let mut connection = stage.connect().await?;
    for (flush, settings) in FLUSHES {
        for clients in CLIENTS {
            let mut results: BTreeMap<&str, Vec<Run>> = BTreeMap::new();
            for _ in 0..runs {
                for table in TABLES {
                    let run = one(stage, &mut connection, table, settings, clients, time).await?;
                    results.entry(table).or_default().push(run);
                }
            }
            for table in TABLES {
                print_row(flush, clients, table, &results);
            }
        }
    }
    drain.abort();
    println!();
    Ok(())
}

fn print_row(flush: &str, clients: u32, table: &str, results: &BTreeMap<&str, Vec<Run>>) {
    let (plain, runs) = (&results["plain"], &results[table]);
    let tps = median(runs.iter().map(|run| run.tps).collect());
    // Each run against the one without a trigger that ran just before.
    let mut ratios: Vec<f64> = runs.iter().zip(plain).map(|(run, plain)| run.tps / plain.tps).collect();
    ratios.sort_by(f64::total_cmp);
    let word = match table {
        "plain" => "none",
        "published" => "rowcast",
        _ => "NOTIFY",
    };
    let cpu: Vec<String> = runs[0]
        .cores
        .keys()
        .map(|name| (name, median(runs.iter().map(|run| run.cores[name]).collect())))
        .filter(|(_, cores)| *cores >= 0.005)
        .map(|(name, cores)| format!("{name} {cores:.2}"))
        .collect();
    println!(
        "| {flush} | {clients} | {word} | {tps:.0} | {:.2} ({:.2} to {:.2}) | {:.0} | {} |",
        tps / median(plain.iter().map(|run| run.tps).collect()),
        ratios[0],
        ratios[ratios.len() - 1],
        median(runs.iter().map(|run| run.cuts).collect()),
        cpu.join(", ")
    );
}

/// One run of `pgbench`. A published table has a dashboard, which shows every update soon after the end.
async fn one(
    stage: &Stage,
    connection: &mut PgConnection,
    table: &str,
    settings: &str,
    clients: u32,
    time: Duration,
) -> anyhow::Result<Run> {
    sqlx::raw_sql(AssertSqlSafe(format!("vacuum {table}"))).execute(&mut *connection).await?;
    sqlx::raw_sql("checkpoint").execute(&mut *connection).await?;
    let mut dashboard = match table {
        "published" => Some(Dashboard::open(stage, table).await?),
        _ => None,
    };
    let script = stage.socket().join("script.sql");
    std::fs::write(
        &script,
        format!(
            "\\set id random(1, {ROWS})\nupdate {table} set qty = qty + 1, updated = clock_timestamp() where id = :id;\n"
        ),
    )?;
    let cuts = stage.node.metric("rowcast_cuts_total").await;
    let before = stage.cpu(connection).await?;
    let began = Instant::now();
    let mut pgbench = Command::new(stage.postgres.program("pgbench"));
    pgbench
        .args(["-n", "-M", "prepared", "-j", "1", "-U", "postgres", "-c"])
        .arg(clients.to_string())
        .args(["-T", &time.as_secs().to_string(), "-p", &stage.postgres.port().to_string(), "-h"])
        .arg(stage.socket())
        .arg("-f")
        .arg(&script)
        .arg("bench")
        .env("PGOPTIONS", settings)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = match &mut dashboard {
        None => pgbench.output().await?,
        Some(dashboard) => dashboard.read_during(pgbench.output()).await??,
    };
    let seconds = began.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&output.stdout);
    anyhow::ensure!(output.status.success(), "pgbench: {said}{}", String::from_utf8_lossy(&output.stderr));
    let tps = said.lines().find_map(|line| line.strip_prefix("tps = ")).context("pgbench says tps")?;
    let tps = tps.split_whitespace().next().unwrap_or_default().parse()?;
    // Postgres counts its ended sessions once it has noticed their end.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let cores = stage.cpu(connection).await?.cores_since(&before, seconds);
    let cuts = (stage.node.metric("rowcast_cuts_total").await - cuts) / seconds;
    if let Some(mut dashboard) = dashboard {
        dashboard.converge(connection, table).await?;
    }
    Ok(Run { tps, cores, cuts })
}

/// A dashboard that shares the cores with what is measured: it reads frames and looks at them later.
struct Dashboard {
    client: Client,
    handle: Handle,
    socket: Socket,
    unseen: Vec<Utf8Bytes>,
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

impl Dashboard {
    /// Subscribes, and has the rows.
    async fn open(stage: &Stage, table: &str) -> anyhow::Result<Self> {
        let mut socket = connect(stage.node.address).await.context("a websocket opens")?;
        let mut client = Client::default();
        let handle = client.subscribe(table);
        client.connected();
        for text in client.take_outgoing() {
            socket.send(Message::text(text)).await?;
        }
        let mut dashboard = Self { client, handle, socket, unseen: Vec::new() };
        while !dashboard.client.is_complete(handle) {
            dashboard.read().await?;
            dashboard.look()?;
        }
        Ok(dashboard)
    }

    async fn read(&mut self) -> anyhow::Result<()> {
        match self.socket.next().await.context("the dashboard lost its connection")?? {
            Message::Text(text) => self.unseen.push(text),
            _ => self.socket.flush().await?,
        }
        Ok(())
    }

    fn look(&mut self) -> anyhow::Result<()> {
        for text in self.unseen.drain(..) {
            self.client.receive(&text)?;
        }
        Ok(())
    }

    async fn read_during<T>(&mut self, other: impl Future<Output = T>) -> anyhow::Result<T> {
        let mut other = std::pin::pin!(other);
        loop {
            tokio::select! {
                value = &mut other => return Ok(value),
                read = self.read() => read?,
            }
        }
    }

    /// Ends with every update counted: one that was fast because it missed something would be no achievement.
    async fn converge(&mut self, connection: &mut PgConnection, table: &str) -> anyhow::Result<()> {
        let sum: i64 = sqlx::query_scalar(AssertSqlSafe(format!("select sum(qty)::int8 from {table}")))
            .fetch_one(connection)
            .await?;
        within("the dashboard shows every update", async {
            loop {
                self.look()?;
                let rows = self.client.rows(self.handle).into_iter().flatten();
                let shown = rows.filter_map(|(_, row)| row.to_value().get("qty")?.as_str()?.parse::<i64>().ok());
                if shown.sum::<i64>() == sum {
                    return Ok(());
                }
                self.read().await?;
            }
        })
        .await
    }
}
