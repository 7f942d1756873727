//! A client that comes, watches, pauses, goes and comes back at random, and compares its rows with the oracle at every
//! version that it is told.

use std::net::SocketAddr;
use std::ops::AddAssign;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rowcast::cli::client::{Event, Handle};
use rowcast::version::Version;

use super::leader::Oracle;
use crate::harness::content::Content;
use crate::harness::dash::Dash;
use crate::harness::within;

/// What visitors did and saw.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Opened without a position.
    pub subscriptions: usize,
    /// Asked for again with one, after a connection was dropped.
    pub resumes: usize,
    pub resumed: usize,
    pub snapshots: usize,
    pub resets: usize,
    /// Versions told, to one subscription each, and compared.
    pub comparisons: usize,
    /// Versions told at which the oracle could not read the table.
    pub unknown: usize,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.subscriptions += other.subscriptions;
        self.resumes += other.resumes;
        self.resumed += other.resumed;
        self.snapshots += other.snapshots;
        self.resets += other.resets;
        self.comparisons += other.comparisons;
        self.unknown += other.unknown;
    }
}

pub struct Visitor {
    number: u64,
    addresses: [SocketAddr; 2],
    /// Who it is.
    token: Option<String>,
    /// What it may open, each by the name that the oracle has for it.
    channels: Vec<&'static str>,
    oracle: Arc<Oracle>,
    opened: Arc<AtomicUsize>,
    chance: StdRng,
    tally: Tally,
}

/// A subscription, and what was compared last.
struct Watched {
    handle: Handle,
    channel: &'static str,
    content: Option<Content>,
    compared: Option<Version>,
}

impl Visitor {
    pub fn new(
        number: u64,
        addresses: [SocketAddr; 2],
        channels: Vec<&'static str>,
        oracle: Arc<Oracle>,
        opened: Arc<AtomicUsize>,
    ) -> Self {
        let chance = StdRng::seed_from_u64(1_000 + number);
        Self { number, addresses, token: None, channels, oracle, opened, chance, tally: Tally::default() }
    }

    /// The same as somebody.
    pub fn with_token(self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self }
    }

    /// Comes and goes until it is time to leave.
    pub async fn run(mut self, leaving: Arc<AtomicBool>) -> Tally {
        while !leaving.load(Ordering::Relaxed) {
            self.visit().await;
        }
        self.tally
    }

    async fn visit(&mut self) {
        self.channels.shuffle(&mut self.chance);
        let channels = self.channels[..self.chance.random_range(1..=3)].to_vec();
        let address = self.address();
        let (mut dash, handles) = match &self.token {
            Some(token) => Dash::open_as(address, token, &channels).await,
            None => Dash::open(address, &channels).await,
        };
        self.tally.subscriptions += handles.len();
        self.opened.fetch_add(handles.len(), Ordering::Relaxed);
        let mut watched: Vec<Watched> = handles
            .into_iter()
            .zip(channels)
            .map(|(handle, channel)| Watched { handle, channel, content: None, compared: None })
            .collect();
        // Everybody sees its subscriptions complete at least once.
        within("every subscription is complete", async {
            while !watched.iter().all(|watched| watched.compared.is_some()) {
                self.next(&mut dash, &mut watched).await;
            }
        })
        .await;
        for _ in 0..self.chance.random_range(0..3) {
            self.watch(&mut dash, &mut watched).await;
            dash.disconnect();
            self.pause(0..400).await;
            self.tally.resumes += watched.len();
            let address = self.address();
            dash.connect(address).await;
        }
        self.watch(&mut dash, &mut watched).await;
        self.tally.resumed += dash.seen.resumed;
        self.tally.snapshots += dash.seen.snapshots;
        self.tally.resets += dash.seen.resets;
        assert_eq!((dash.seen.gaps, dash.seen.refused.len()), (0, 0), "visitor {}: {:?}", self.number, dash.seen);
    }

    /// Takes frames in for a while; sometimes does not read for a moment.
    async fn watch(&mut self, dash: &mut Dash, watched: &mut [Watched]) {
        let until = tokio::time::Instant::now() + Duration::from_millis(self.chance.random_range(20..600));
        if self.chance.random_bool(0.15) {
            self.pause(100..500).await;
        }
        while tokio::time::timeout_at(until, self.next(dash, watched)).await.is_ok() {}
    }

    /// Takes a frame in and compares. Cancel-safe: it waits in one place, for the frame.
    async fn next(&mut self, dash: &mut Dash, watched: &mut [Watched]) {
        let events = dash.next().await.expect("nodes do not close connections");
        let told = |handle: Handle| {
            events.iter().any(|event| match event {
                Event::Snapshot { handle: of, .. } | Event::Changed { handle: of, .. } => *of == handle,
                _ => false,
            })
        };
        let live = events.iter().any(|event| matches!(event, Event::Live(_)));
        for watched in watched {
            let moved = told(watched.handle);
            if !dash.client.is_complete(watched.handle) || !(moved || live) {
                continue;
            }
            let Some(version) = dash.version(watched.handle) else { continue };
            if moved || watched.content.is_none() {
                watched.content = Some(Content::of_client(&dash.client, watched.handle));
            }
            watched.compared = Some(version);
            let Some(known) = self.oracle.content(version, watched.channel) else {
                panic!("visitor {} was told {version}, which never was", self.number);
            };
            match known {
                None => self.tally.unknown += 1,
                content if content == watched.content => self.tally.comparisons += 1,
                Some(content) => panic!(
                    "visitor {}: {} at {version} is {content:?}, the client has {:?}; {:?}; {events:?}",
                    self.number, watched.channel, watched.content, dash.seen
                ),
            }
        }
    }

    async fn pause(&mut self, ms: std::ops::Range<u64>) {
        tokio::time::sleep(Duration::from_millis(self.chance.random_range(ms))).await;
    }

    fn address(&mut self) -> SocketAddr {
        self.addresses[self.chance.random_range(0..2)]
    }
}
