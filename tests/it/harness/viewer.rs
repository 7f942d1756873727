//! A viewer: a [`Dash`] in a task of its own that stays with its subscriptions, wherever it finds a node.
//!
//! It connects to the first of its nodes that takes it, reconnects when the connection ends, and checks all the while
//! what has to hold at every moment: no version and no row goes back, and the sum over the tables of transfers is the
//! same after every version. What it finds wrong is a panic in its task, told to whoever asks it next.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use rowcast::cli::client::{Event, Handle};
use rowcast::version::Version;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::dash::{Dash, Seen, Table};
use super::load::{ACCOUNTS, BALANCE};
use super::until;

/// Before the next node is tried, and before a refused subscription is asked for again.
const RETRY: Duration = Duration::from_millis(50);

/// A running viewer; it ends with its handle.
pub struct Viewer {
    asks: mpsc::UnboundedSender<Ask>,
    glance: watch::Receiver<Glance>,
    task: JoinHandle<()>,
}

/// What a viewer shows without being asked.
#[derive(Clone, Debug, Default)]
pub struct Glance {
    pub seen: Seen,
    pub node: Option<SocketAddr>,
    /// Every subscription has its rows.
    pub complete: bool,
    /// The lowest version of its subscriptions.
    pub version: Version,
}

enum Ask {
    Tables(oneshot::Sender<Vec<Table>>),
    /// Close the connection and connect to these nodes, the first that takes it.
    Go(Vec<SocketAddr>),
    /// Close the connection and stay away until the next [`Ask::Go`].
    Leave,
}

impl Viewer {
    /// Subscribes to channels at the first of the nodes, and has its rows when this returns.
    pub async fn open(nodes: &[SocketAddr], channels: &[&str]) -> Self {
        let viewer = Self::begin(nodes, channels);
        viewer.wait("a viewer has its rows", |glance| glance.complete).await;
        viewer
    }

    /// The same without waiting.
    pub fn begin(nodes: &[SocketAddr], channels: &[&str]) -> Self {
        let mut dash = Dash::default();
        let handles: Vec<Handle> = channels.iter().map(|channel| dash.client.subscribe(channel)).collect();
        let (asks, asked) = mpsc::unbounded_channel();
        let (glances, glance) = watch::channel(Glance::default());
        let watching = Watching {
            dash,
            handles,
            channels: channels.iter().map(|&channel| channel.to_owned()).collect(),
            nodes: nodes.to_vec(),
            node: None,
            newest: HashMap::new(),
            ticks: HashMap::new(),
            glances,
        };
        Self { asks, glance, task: tokio::spawn(watching.run(asked)) }
    }

    pub fn glance(&self) -> Glance {
        assert!(!self.task.is_finished(), "the viewer has ended, see above");
        self.glance.borrow().clone()
    }

    /// Waits until a condition holds.
    pub async fn wait(&self, what: &str, condition: impl Fn(&Glance) -> bool) {
        until(what, async || condition(&self.glance()).then_some(())).await;
    }

    /// The rows of its subscriptions, in the order of its channels.
    pub async fn tables(&self) -> Vec<Table> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Tables(reply)).unwrap_or_else(|_| panic!("the viewer has ended, see above"));
        answer.await.expect("the viewer has ended, see above")
    }

    /// Waits until a row is there, or gone, in the first of its channels.
    pub async fn sees(&self, key: &str, present: bool) {
        until(&format!("row {key} is there: {present}"), async || {
            (self.tables().await[0].contains_key(key) == present).then_some(())
        })
        .await;
    }

    pub fn leave(&self) {
        let _ = self.asks.send(Ask::Leave);
    }

    pub fn go(&self, nodes: &[SocketAddr]) {
        let _ = self.asks.send(Ask::Go(nodes.to_vec()));
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The task's side.
struct Watching {
    dash: Dash,
    handles: Vec<Handle>,
    channels: Vec<String>,
    nodes: Vec<SocketAddr>,
    node: Option<SocketAddr>,
    newest: HashMap<Handle, Version>,
    /// The highest `n` ever seen of a key of `items`.
    ticks: HashMap<String, i64>,
    glances: watch::Sender<Glance>,
}

impl Watching {
    /// Wakes up for: what is asked; the next frame.
    async fn run(mut self, mut asked: mpsc::UnboundedReceiver<Ask>) {
        loop {
            if !self.dash.is_connected() {
                self.find_node().await;
            }
            let ask = if self.dash.is_connected() {
                tokio::select! {
                    ask = asked.recv() => Some(ask),
                    events = self.dash.next() => {
                        self.take_in(events).await;
                        None
                    }
                }
            } else {
                tokio::time::timeout(RETRY, asked.recv()).await.ok()
            };
            match ask {
                Some(Some(Ask::Tables(reply))) => {
                    let _ = reply.send(self.handles.iter().map(|&handle| self.dash.table(handle)).collect());
                }
                Some(Some(Ask::Go(nodes))) => {
                    self.dash.disconnect();
                    self.nodes = nodes;
                }
                Some(Some(Ask::Leave)) => {
                    self.dash.disconnect();
                    self.nodes.clear();
                }
                Some(None) => return,
                None => {}
            }
            self.publish();
        }
    }

    async fn find_node(&mut self) {
        self.node = None;
        for index in 0..self.nodes.len() {
            // A node that hangs takes connections and never answers.
            let connecting = self.dash.try_connect(self.nodes[index]);
            if matches!(tokio::time::timeout(Duration::from_secs(2), connecting).await, Ok(true)) {
                self.node = Some(self.nodes[index]);
                return;
            }
        }
    }

    async fn take_in(&mut self, events: Option<Vec<Event>>) {
        for event in events.iter().flatten() {
            match event {
                Event::Live(_) => self.check_sum(),
                Event::Refused { handle, error } => {
                    assert!(error.retry, "refused for good: {error:?}");
                    tokio::time::sleep(RETRY).await;
                    self.dash.client.retry(*handle);
                    self.dash.send_outgoing().await;
                }
                Event::Changed { handle, .. } | Event::Snapshot { handle, .. } => self.check_rows(*handle),
                _ => {}
            }
        }
        for &handle in &self.handles {
            let Some(version) = self.dash.version(handle) else { continue };
            let newest = self.newest.entry(handle).or_default();
            assert!(version >= *newest, "a subscription went back from {newest} to {version}");
            *newest = version;
        }
    }

    fn check_rows(&mut self, handle: Handle) {
        for (key, row) in self.dash.client.rows(handle).into_iter().flatten() {
            let Some(n) = row.value("n").and_then(|text| text.trim_matches('"').parse().ok()) else { return };
            match self.ticks.get_mut(key.as_str()) {
                Some(before) => {
                    assert!(n >= *before, "row {} went back from {before} to {n}", key.as_str());
                    *before = n;
                }
                None => drop(self.ticks.insert(key.as_str().to_owned(), n)),
            }
        }
    }

    /// Transfers are never seen in part. Asked after `live`, where every complete subscription stands at one version.
    fn check_sum(&self) {
        let both = ["accounts", "vaults"].map(|name| {
            let place = self.channels.iter().position(|channel| channel == name)?;
            let handle = self.handles[place];
            self.dash.client.is_complete(handle).then_some(handle)
        });
        let [Some(accounts), Some(vaults)] = both else { return };
        let rows =
            [accounts, vaults].into_iter().flat_map(|handle| self.dash.client.rows(handle).into_iter().flatten());
        let sum: i64 = rows
            .map(|(_, row)| {
                row.value("balance").map_or("0", |text| text.trim_matches('"')).parse::<i64>().expect("int8")
            })
            .sum();
        let versions = [accounts, vaults].map(|handle| self.dash.version(handle));
        assert_eq!(sum, i64::from(ACCOUNTS) * BALANCE * 2, "a transfer is seen in part at {versions:?}");
    }

    fn publish(&self) {
        let client = &self.dash.client;
        self.glances.send_replace(Glance {
            seen: self.dash.seen.clone(),
            node: self.node.filter(|_| self.dash.is_connected()),
            complete: self.dash.is_connected() && self.handles.iter().all(|&handle| client.is_complete(handle)),
            version: self.handles.iter().filter_map(|&handle| self.dash.version(handle)).min().unwrap_or_default(),
        });
    }
}
