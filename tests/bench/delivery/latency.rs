//! How soon a commit is on a dashboard: a writer at random moments, a dashboard over Redis, both in this process, so that
//! one clock measures. At rates below, at and above those at which the leader goes to sleep or wakes up.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use rand::Rng;
use sqlx::PgConnection;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::dash::connect;
use crate::harness::within;
use crate::stage::Stage;

/// Commits per second on average, and how many.
const LOADS: [Load; 7] = [
    Load::Steady { per_second: 20.0, commits: 600 },
    Load::Steady { per_second: 60.0, commits: 600 },
    Load::Steady { per_second: 100.0, commits: 1_000 },
    Load::Steady { per_second: 150.0, commits: 1_500 },
    Load::Steady { per_second: 200.0, commits: 2_000 },
    Load::Steady { per_second: 300.0, commits: 3_000 },
    Load::Bursts { commits: 3_000 },
];

#[derive(Clone, Copy, Debug)]
enum Load {
    /// At random moments.
    Steady { per_second: f64, commits: usize },
    /// 400/s for half a second, then 15/s for a second and a half: the leader wakes up and goes to sleep each time.
    Bursts { commits: usize },
}

/// A commit: what tells it apart, when it was sent and when it was confirmed.
struct Committed {
    number: u64,
    sent: Instant,
    confirmed: Instant,
}

/// Measures and prints.
pub async fn run(stage: &Stage) -> anyhow::Result<()> {
    println!(
        "Latency: one-row transactions (begin, update, commit) of one writer at random moments, one dashboard over Redis.\n\
         Milliseconds until the frame was read, from just before COMMIT was sent and from its return.\n"
    );
    println!("| commits/s | commits | p50 | p99 | longest | p50 from return | p99 | cuts |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut writer = stage.connect().await?;
    for load in LOADS {
        one(stage, &mut writer, load).await?;
    }
    println!();
    Ok(())
}

async fn one(stage: &Stage, writer: &mut PgConnection, load: Load) -> anyhow::Result<()> {
    let (frames, mut arrivals) = mpsc::unbounded_channel();
    let dashboard = tokio::spawn(follow(stage.node.address, frames));
    within("the snapshot's last page", async {
        while let Some((_, text)) = arrivals.recv().await {
            let frame: serde_json::Value = serde_json::from_str(&text)?;
            if frame["op"] == "snapshot" && frame["more"] != true {
                break;
            }
        }
        anyhow::Ok(())
    })
    .await?;
    let cuts = stage.node.metric("rowcast_cuts_total").await;
    let began = Instant::now();
    let committed = write(writer, load).await?;
    let seconds = began.elapsed().as_secs_f64();

    let mut missing: HashMap<u64, Committed> = committed.into_iter().map(|commit| (commit.number, commit)).collect();
    let count = missing.len();
    let (mut from_sent, mut from_return) = (Vec::new(), Vec::new());
    within("every commit arrives", async {
        while !missing.is_empty() {
            let Some((at, text)) = arrivals.recv().await else { anyhow::bail!("the dashboard lost its connection") };
            let frame: serde_json::Value = serde_json::from_str(&text)?;
            for row in frame["rows"].as_array().into_iter().flatten() {
                let number = row["qty"].as_str().and_then(|text| text.parse().ok());
                if let Some(commit) = number.and_then(|number: u64| missing.remove(&number)) {
                    from_sent.push(milliseconds(at, commit.sent));
                    from_return.push(milliseconds(at, commit.confirmed));
                }
            }
        }
        Ok(())
    })
    .await?;
    dashboard.abort();
    let cuts = stage.node.metric("rowcast_cuts_total").await - cuts;
    let name = match load {
        Load::Steady { .. } => format!("{:.0}", count as f64 / seconds),
        Load::Bursts { .. } => "bursts of 400, then 15".into(),
    };
    from_sent.sort_by(f64::total_cmp);
    from_return.sort_by(f64::total_cmp);
    println!(
        "| {name} | {count} | {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {cuts} |",
        share(&from_sent, 0.5),
        share(&from_sent, 0.99),
        share(&from_sent, 1.0),
        share(&from_return, 0.5),
        share(&from_return, 0.99),
    );
    Ok(())
}

/// Commits, each of another row than those around it, each with a number that nobody else has.
async fn write(writer: &mut PgConnection, load: Load) -> anyhow::Result<Vec<Committed>> {
    let first: i64 = sqlx::query_scalar("select max(qty) + 1 from published").fetch_one(&mut *writer).await?;
    let (Load::Steady { commits, .. } | Load::Bursts { commits }) = load;
    let mut committed = Vec::with_capacity(commits);
    let began = Instant::now();
    let mut due = began;
    for number in (first..).take(commits) {
        let rate = match load {
            Load::Steady { per_second, .. } => per_second,
            Load::Bursts { .. } if (due - began).as_secs_f64() % 2.0 < 0.5 => 400.0,
            Load::Bursts { .. } => 15.0,
        };
        let pause = -rand::rng().random_range(f64::EPSILON..1.0).ln() / rate;
        due += Duration::from_secs_f64(pause);
        tokio::time::sleep_until(due.into()).await;
        sqlx::raw_sql("begin").execute(&mut *writer).await?;
        sqlx::query("update published set qty = $1 where id = $2")
            .bind(number)
            .bind((number % 40_000) as i32 + 1)
            .execute(&mut *writer)
            .await?;
        let sent = Instant::now();
        sqlx::raw_sql("commit").execute(&mut *writer).await?;
        committed.push(Committed { number: number.unsigned_abs(), sent, confirmed: Instant::now() });
    }
    Ok(committed)
}

/// Reads frames and notes when; they are looked at later.
async fn follow(address: std::net::SocketAddr, frames: mpsc::UnboundedSender<(Instant, String)>) {
    let mut socket = connect(address).await.expect("a websocket opens");
    let subscribe = r#"{"op":"subscribe","id":1,"channel":"published"}"#;
    socket.send(Message::text(subscribe)).await.expect("the node listens");
    while let Some(Ok(message)) = socket.next().await {
        let at = Instant::now();
        if let Message::Text(text) = message
            && frames.send((at, text.to_string())).is_err()
        {
            return;
        }
    }
}

/// Negative where the frame came before the writer heard of its own commit.
fn milliseconds(later: Instant, earlier: Instant) -> f64 {
    match later.checked_duration_since(earlier) {
        Some(time) => time.as_secs_f64() * 1_000.0,
        None => -(earlier - later).as_secs_f64() * 1_000.0,
    }
}

/// The value that so large a share of sorted values does not exceed.
fn share(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
