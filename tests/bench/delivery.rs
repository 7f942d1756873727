//! What Rowcast costs writers, and how soon a commit is on a dashboard. `make bench`; the figures kept are in
//! `docs/benchmarks.md`.
//!
//! ```text
//!   cargo bench --bench delivery -- [throughput] [latency] [--runs 5] [--seconds 3]
//! ```
//!
//! Everything is real and private to the run: Postgres with `fsync` on, Redis, one `rowcast serve`, one dashboard on a
//! websocket. Writers, servers, node and dashboard share the machine's cores, so what the node burns is part of every
//! figure. It judges nothing: it prints tables, with the CPU of each process beside the rates.

#![allow(clippy::disallowed_methods, reason = "the rules for tasks and queues are for the product")]

#[path = "delivery/cpu.rs"]
mod cpu;
#[path = "delivery/latency.rs"]
mod latency;
#[path = "delivery/stage.rs"]
mod stage;
#[path = "delivery/throughput.rs"]
mod throughput;

#[allow(unused_imports, reason = "the tests' harness; a benchmark needs a part of it")]
#[path = "../it/harness/mod.rs"]
mod harness;

use std::time::Duration;

use stage::Stage;

/// What was asked for.
struct Asked {
    throughput: bool,
    latency: bool,
    runs: usize,
    seconds: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let asked = Asked::from_arguments(std::env::args().skip(1))?;
    let stage = Stage::set().await?;
    println!("{}\n", stage.describe().await?);
    if asked.throughput {
        throughput::run(&stage, asked.runs, Duration::from_secs(asked.seconds)).await?;
    }
    if asked.latency {
        latency::run(&stage).await?;
    }
    Ok(())
}

impl Asked {
    fn from_arguments(arguments: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        // Cargo adds `--bench`.
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        let mut asked = Self { throughput: false, latency: false, runs: 5, seconds: 3 };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "throughput" => asked.throughput = true,
                "latency" => asked.latency = true,
                "--runs" => asked.runs = number(&mut arguments)? as usize,
                "--seconds" => asked.seconds = number(&mut arguments)?,
                other => anyhow::bail!("{other:?}: expected throughput, latency, --runs N or --seconds N"),
            }
        }
        if !asked.throughput && !asked.latency {
            (asked.throughput, asked.latency) = (true, true);
        }
        Ok(asked)
    }
}

fn number(arguments: &mut impl Iterator<Item = String>) -> anyhow::Result<u64> {
    let text = arguments.next().unwrap_or_default();
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => anyhow::bail!("{text:?}: expected a number from 1 on"),
    }
}
