//! The hub's decisions, wake-up by wake-up, without a task, a store or a database.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Effect, HubState};
use crate::entry::{Key, PartsWriter, Row, States};
use crate::hub::inbox::{Inbox, inbox};
use crate::hub::{Command, HubSettings, SessionId, Subscribe};
use crate::identity::Identity;
use crate::protocol::{ChannelNumber, Resume};
use crate::publication::{Catalogue, Column, FeedKey, Policy, Publication, Schema};
use crate::query::{ChannelRequest, Comparison, Filter};
use crate::rows::Rows;
use crate::snapshots::{Fresh, HeldLock, Place};
use crate::store::{Beat, Entry, LogRead, Push, Touched};
use crate::version::{Cut, Epoch, Version};

mod sight;

const EPOCH: &str = "k3f9";

/// A publication's name, and its changed keys with their values.
type Change<'a> = (&'a str, &'a [(u64, Option<u64>)]);

struct Node {
    state: HubState,
    now: Instant,
    commands: mpsc::Sender<Command>,
    _taken: mpsc::Receiver<Command>,
    effects: Vec<Effect>,
}

fn schema() -> Schema {
    let column = |name: &str| Column::new(name, "int4");
    Schema { columns: vec![column("id"), column("n")], key: vec![0] }
}

fn casts(schema: &Schema) -> Vec<Arc<str>> {
    schema.columns.iter().map(|column| format!("pg_catalog.{}", column.type_name).into()).collect()
}

fn feed(name: &str) -> FeedKey {
    FeedKey { name: name.into(), generation: 1 }
}

fn publication(name: &str) -> Publication {
    Publication {
        feed: feed(name),
        id: 1,
        relation: format!("public.{name}"),
        policy: Policy::Public,
        schema: Arc::new(schema()),
        schema_id: schema().id().into(),
        casts: casts(&schema()),
        bulk_rows: 10_000,
        key_sql: String::new(),
        row_sql: String::new(),
        by_key_sql: String::new(),
        fingerprint: String::new(),
    }
}

fn cut_of(epoch: &str, version: u64) -> Cut {
    Cut {
        epoch: Epoch::new(epoch),
        version: Version(version),
        // Each version sees ten transactions more.
        snapshot: format!("{0}:{0}:", version * 10).parse().expect("a snapshot"),
        as_of: version as i64,
    }
}

fn row(id: u64, n: u64) -> (Key, Arc<Row>) {
    (Key::new(format!("[{id}]")), Arc::new(Row::parse(&format!("[{id},{n}]")).expect("a row")))
}

impl Node {
    fn new() -> Self {
        let (commands, taken) = mpsc::channel(64);
        let now = Instant::now();
        let state = HubState::new(HubSettings::default(), now);
        let mut node = Self { state, now, commands, _taken: taken, effects: Vec::new() };
        let catalogue = Catalogue {
            publications: ["a", "b"].map(|name| (name.into(), Arc::new(publication(name)))).into_iter().collect(),
        };
        node.state.on_catalogue(Some(Arc::new(catalogue)), now);
        node.beat(EPOCH, 40, 40, &[]);
        node
    }

    fn turn(&mut self) {
        let effects = self.state.finish_turn(self.now);
        self.effects.extend(effects);
    }

    fn beat(&mut self, epoch: &str, base: u64, version: u64, touched: &[&str]) {
        let touched = touched.iter().map(|name| Touched { feed: feed(name), parts: 1 }).collect();
        let cut = cut_of(epoch, version);
        let beat = Beat { base: Version(base), polled_at: cut.as_of, cut, touched, catalogue: String::new() };
        self.state.on_push(Push::Beat(beat), self.now);
        self.turn();
    }

    fn entry(base: u64, version: u64, states: Vec<String>) -> Arc<Entry> {
        let cut = cut_of(EPOCH, version);
        Arc::new(Entry {
            epoch: cut.epoch,
            version: cut.version,
            snapshot: cut.snapshot,
            as_of: cut.as_of,
            base: Version(base),
            prev: Version(base),
            states,
        })
    }

    fn states(rows: &[(u64, Option<u64>)]) -> Vec<String> {
        let mut writer = PartsWriter::new(&schema().id());
        for (id, n) in rows {
            writer.push(&format!("[{id}]"), n.map(|n| format!("[{id},{n}]")).as_deref());
        }
        writer.finish()
    }

    /// One version: what it says of each publication, pushed and closed.
    fn version(&mut self, version: u64, changes: &[Change<'_>]) {
        for (name, rows) in changes {
            let entry = Self::entry(version - 1, version, Self::states(rows));
            self.state.on_push(Push::Entry(feed(name), entry), self.now);
        }
        let names: Vec<&str> = changes.iter().map(|(name, _)| *name).collect();
        self.beat(EPOCH, version - 1, version, &names);
    }

    fn marker(&mut self, version: u64, name: &str) {
        let entry = Self::entry(version - 1, version, vec![States::marker_part("truncate")]);
        self.state.on_push(Push::Entry(feed(name), entry), self.now);
        self.beat(EPOCH, version - 1, version, &[name]);
    }

    fn attach(&mut self, number: u64) -> Inbox {
        let session = SessionId(number);
        let (outbox, inbox) = inbox(session, self.commands.clone());
        self.state.on_command(Command::Attach { session, outbox }, self.now);
        let mut inbox = inbox;
        assert_eq!(ops(&take(&mut inbox)), ["live"], "a client hears at once how things stand");
        inbox
    }

    fn subscribe(&mut self, session: u64, id: u64, name: &str, resume: Option<(String, u64)>) {
        let resume = resume.map(|(tag, version)| Resume { tag, epoch: Epoch::new(EPOCH), version: Version(version) });
        let subscribe = Subscribe {
            session: SessionId(session),
            id,
            request: ChannelRequest::parse(name),
            identity: Identity::Anonymous,
            resume,
        };
        self.state.on_command(Command::Subscribe(Box::new(subscribe)), self.now);
        self.turn();
    }

    /// The flights asked for since the last look.
    fn flights(&mut self) -> Vec<(ChannelNumber, u64, String)> {
        let (flights, rest) = std::mem::take(&mut self.effects)
            .into_iter()
            .partition::<Vec<_>, _>(|effect| matches!(effect, Effect::Open { .. }));
        self.effects = rest;
        flights
            .into_iter()
            .filter_map(|effect| match effect {
                Effect::Open { channel, flight, order } => Some((channel, flight, order.spec.feed.name.to_string())),
                _ => None,
            })
            .collect()
    }

    fn land(&mut self, flight: &(ChannelNumber, u64, String), place: Place, rows: &[(u64, u64)]) {
        let version = match &place {
            Place::At(version) => *version,
            Place::Sees(_) => Version(0),
        };
        let fresh = Fresh {
            rows: Rows::at(version, rows.iter().map(|&(id, n)| row(id, n))),
            place,
            schema: Arc::new(schema()),
            epoch: Epoch::new(EPOCH),
            lock: None,
        };
        self.state.on_landed(flight.0, flight.1, Ok(fresh), self.now);
        self.turn();
    }

    /// Rows of a query of our own, under the cluster's lock; whether the lock is given back at once.
    fn land_locked(&mut self, flight: &(ChannelNumber, u64, String), place: &str) -> bool {
        let lock = HeldLock { feed: feed("a"), channel: "hash".into() };
        let fresh = Fresh {
            rows: Rows::at(Version(0), [row(1, 1)]),
            place: Place::Sees(place.parse().expect("a snapshot")),
            schema: Arc::new(schema()),
            epoch: Epoch::new(EPOCH),
            lock: Some(lock),
        };
        self.state.on_landed(flight.0, flight.1, Ok(fresh), self.now);
        self.turn();
        self.gave_back()
    }

    /// Whether a lock was given back since the last look.
    fn gave_back(&mut self) -> bool {
        let before = self.effects.len();
        self.effects.retain(|effect| !matches!(effect, Effect::Unlock(_)));
        self.effects.len() < before
    }

    fn written(&mut self, session: u64) {
        self.state.on_command(Command::Drained(SessionId(session)), self.now);
        self.turn();
    }

    fn later(&mut self, by: Duration) {
        self.now += by;
        self.state.on_tick(self.now);
        self.turn();
    }

    /// A client of both publications, up to date.
    fn client_of_both(&mut self, session: u64) -> Inbox {
        let mut client = self.attach(session);
        self.subscribe(session, 1, "a", None);
        self.subscribe(session, 2, "b", None);
        for flight in self.flights() {
            let at = self.state.position.as_ref().expect("a position").cut.version;
            self.land(&flight, Place::At(at), &[(1, 100)]);
        }
        take(&mut client);
        self.written(session);
        take(&mut client);
        self.written(session);
        client
    }
}

fn take(inbox: &mut Inbox) -> Vec<Value> {
    let mut frames = Vec::new();
    while let Some(mut delivery) = inbox.try_next() {
        while let Some(frame) = delivery.next_frame() {
            frames.push(serde_json::from_str(frame.as_str()).expect("JSON"));
        }
    }
    frames
}

fn ops(frames: &[Value]) -> Vec<&str> {
    frames.iter().map(|frame| frame["op"].as_str().expect("an op")).collect()
}

#[test]
fn a_subscription_is_answered_by_a_snapshot_and_then_by_changed_columns() {
    let mut node = Node::new();
    let mut client = node.attach(1);
    node.subscribe(1, 7, "a", None);
    let flights = node.flights();
    assert_eq!(flights.len(), 1);
    assert!(take(&mut client).is_empty());
    node.land(&flights[0], Place::At(Version(40)), &[(1, 10), (2, 20)]);
    let frames = take(&mut client);
    assert_eq!(ops(&frames), ["subscribed", "snapshot"]);
    assert_eq!((&frames[0]["version"], &frames[0]["resumed"]), (&json!(40), &json!(false)));
    assert_eq!(frames[1]["rows"].as_array().map(Vec::len), Some(2));
    node.version(41, &[("a", &[(1, Some(11)), (2, None), (9, None)])]);
    let frames = take(&mut client);
    assert_eq!(
        frames,
        [json!({"op":"delta","ch":1,"prev":40,"version":41,"as_of":41,"rows":[{"id":1,"n":11}],
            "gone":[{"key":[2],"why":"deleted"}]})]
    );
}

#[test]
fn channels_of_a_client_move_in_one_step() {
    let mut node = Node::new();
    let mut client = node.client_of_both(1);
    node.version(41, &[("a", &[(1, Some(90))]), ("b", &[(1, Some(110))])]);
    let frames = take(&mut client);
    assert_eq!(ops(&frames), ["step", "delta", "delta", "live"]);
    assert_eq!((&frames[0]["version"], &frames[3]["version"]), (&json!(41), &json!(41)));
    node.version(42, &[("b", &[(1, Some(111))])]);
    assert_eq!(ops(&take(&mut client)), ["delta"]);
}

#[test]
fn a_client_with_a_channel_under_resync_stands_still_and_then_moves_in_one_step() {
    let mut node = Node::new();
    let mut client = node.client_of_both(1);
    node.marker(41, "a");
    node.version(42, &[("b", &[(1, Some(42))])]);
    assert!(take(&mut client).is_empty(), "nothing moves while a channel is read again");
    let flights = node.flights();
    assert_eq!(flights.len(), 1);
    // Read between 42 and 43: it becomes version 43.
    node.land(&flights[0], Place::Sees("425:425:".parse().expect("a snapshot")), &[(5, 50)]);
    assert!(take(&mut client).is_empty());
    node.version(43, &[("a", &[(6, Some(60))])]);
    let frames = take(&mut client);
    assert_eq!(ops(&frames), ["step", "delta", "delta", "live"]);
    assert_eq!(frames[1]["rows"].as_array().map(Vec::len), Some(2));
    assert_eq!(frames[1]["gone"], json!([{"key":[1],"why":"deleted"}]));
    assert_eq!((&frames[1]["prev"], &frames[1]["version"]), (&json!(40), &json!(43)));
    assert_eq!(frames[2]["rows"], json!([{"id":1,"n":42}]));
}

#[test]
fn a_subscription_behind_a_resync_is_not_left_waiting_for_ever() {
    let mut node = Node::new();
    let mut client = node.attach(1);
    node.subscribe(1, 1, "a", None);
    let flights = node.flights();
    node.land(&flights[0], Place::At(Version(40)), &[(1, 100)]);
    take(&mut client);
    node.written(1);
    node.marker(41, "a");
    node.flights();
    node.subscribe(1, 2, "b", None);
    let flights = node.flights();
    node.land(&flights[0], Place::At(Version(41)), &[(1, 100)]);
    assert!(take(&mut client).is_empty(), "all its channels wait for the one that is read again");
    node.later(Duration::from_secs(11));
    let frames = take(&mut client);
    let error = frames.iter().find(|frame| frame["op"] == "error").expect("an error");
    assert_eq!((&error["id"], &error["code"], &error["retry"]), (&json!(2), &json!("unavailable"), &json!(true)));
}

#[test]
fn rows_that_do_not_contain_the_marker_are_read_again() {
    let mut node = Node::new();
    let mut client = node.client_of_both(1);
    node.marker(41, "a");
    let first = node.flights();
    node.marker(42, "a");
    assert!(node.flights().is_empty(), "the reading in the air may contain the second marker");
    node.land(&first[0], Place::Sees("411:411:".parse().expect("a snapshot")), &[(5, 50)]);
    let second = node.flights();
    node.beat(EPOCH, 42, 43, &[]);
    assert!(take(&mut client).is_empty(), "the first reading does not contain it");
    node.land(&second[0], Place::Sees("421:421:".parse().expect("a snapshot")), &[(6, 60)]);
    node.beat(EPOCH, 43, 44, &[]);
    let frames = take(&mut client);
    assert_eq!(ops(&frames), ["delta", "live"]);
    assert_eq!(frames[0]["rows"], json!([{"id":6,"n":60}]));
}

#[test]
fn the_lock_of_rows_that_are_thrown_away_is_given_back() {
    let mut node = Node::new();
    let _client = node.client_of_both(1);
    node.marker(41, "a");
    let first = node.flights();
    node.marker(42, "a");
    assert!(node.land_locked(&first[0], "411:411:"), "a marker overtook them");
    assert!(node.land_locked(&first[0], "411:411:"), "nobody waits for them any more");
    let second = node.flights();
    assert!(!node.land_locked(&second[0], "425:425:"), "they are on their way to the next version");
    node.marker(43, "a");
    assert!(node.gave_back(), "and a marker overtook them");
    let third = node.flights();
    assert!(!node.land_locked(&third[0], "431:431:"));
    node.beat(EPOCH, 43, 44, &[]);
    assert!(!node.gave_back(), "the checkpoint gives it back");
    assert!(node.effects.iter().any(|effect| matches!(effect, Effect::Keep { first: true, .. })));
}

#[test]
fn a_slow_client_gets_each_changed_row_once_in_its_latest_state() {
    let mut node = Node::new();
    let mut client = node.client_of_both(1);
    let mut fast = node.client_of_both(2);
    for version in 41..241 {
        node.version(version, &[("a", &[(1, Some(version)), (version, Some(1))])]);
        assert_eq!(take(&mut fast).len(), 1);
    }
    let frames = take(&mut client);
    assert_eq!(frames.len(), crate::hub::INBOX_DELIVERIES);
    let told = frames.last().expect("frames")["version"].as_u64().expect("a version");
    node.written(1);
    let frames = take(&mut client);
    assert_eq!(ops(&frames), ["delta", "live"]);
    assert_eq!((&frames[0]["prev"], &frames[0]["version"]), (&json!(told), &json!(240)));
    assert_eq!(frames[0]["rows"].as_array().map(Vec::len), Some(1 + 240 - told as usize));
    node.version(241, &[("a", &[(1, Some(0))])]);
    assert_eq!(ops(&take(&mut client)), ["delta"], "it is level again");
}

#[test]
fn resume_is_answered_by_what_changed_or_by_a_snapshot_but_never_in_the_past() {
    let mut node = Node::new();
    let mut client = node.client_of_both(1);
    node.version(41, &[("a", &[(2, Some(20))])]);
    node.version(42, &[("a", &[(1, None)])]);
    take(&mut client);
    let number = *node.state.channels.keys().min().expect("a channel");
    let tag = node.state.channels[&number].form.as_ref().expect("live").tag.clone();

    let mut resumed = node.attach(2);
    node.subscribe(2, 1, "a", Some((tag.clone(), 41)));
    let frames = take(&mut resumed);
    assert_eq!(ops(&frames), ["subscribed", "delta"]);
    assert_eq!((&frames[0]["resumed"], &frames[0]["version"]), (&json!(true), &json!(41)));
    assert_eq!(frames[1]["gone"], json!([{"key":[1],"why":"deleted"}]));

    let mut level = node.attach(3);
    node.subscribe(3, 1, "a", Some((tag.clone(), 42)));
    assert_eq!(ops(&take(&mut level)), ["subscribed"]);
    let tag_of_b = node.state.channels.values().find(|channel| &*channel.feed().name == "b").expect("a channel");
    let tag_of_b = tag_of_b.form.as_ref().expect("live").tag.clone();
    node.subscribe(3, 2, "b", Some((tag_of_b, 41)));
    let frames = take(&mut level);
    assert_eq!(ops(&frames), ["subscribed"], "nothing changed, so nothing follows");
    assert_eq!(frames[0]["version"], json!(41), "resumed from where the client was");

    let mut old = node.attach(4);
    node.subscribe(4, 1, "a", Some((tag.clone(), 39)));
    assert_eq!(ops(&take(&mut old)), ["subscribed", "snapshot"]);

    let mut other_tag = node.attach(5);
    node.subscribe(5, 1, "a", Some(("zzz".into(), 42)));
    assert_eq!(take(&mut other_tag)[0]["resumed"], json!(false));

    let mut ahead = node.attach(6);
    node.subscribe(6, 1, "a", Some((tag.clone(), 44)));
    assert!(take(&mut ahead).is_empty(), "the node lags behind the client");
    node.version(43, &[("a", &[(3, Some(30))])]);
    assert!(take(&mut ahead).is_empty());
    node.version(44, &[("a", &[(4, Some(40))])]);
    assert_eq!(ops(&take(&mut ahead)), ["subscribed"]);

    let mut never = node.attach(7);
    node.subscribe(7, 1, "a", Some((tag, 99)));
    node.later(Duration::from_secs(11));
    let frames = take(&mut never);
    let error = frames.iter().find(|frame| frame["op"] == "error").expect("an error");
    assert_eq!((&error["code"], &error["retry"], &error["id"]), (&json!("unavailable"), &json!(true), &json!(1)));
}

#[test]
fn a_snapshot_that_is_shared_is_never_older_than_what_a_client_was_told() {
    let mut node = Node::new();
    let _client = node.client_of_both(1);
    for version in 41..45 {
        node.version(version, &[("b", &[(1, Some(version))])]);
    }
    let mut stranger = node.attach(2);
    node.subscribe(2, 1, "a", None);
    assert_eq!(take(&mut stranger)[1]["version"], json!(40), "nothing has changed since: the pages are shared");
    let mut returning = node.attach(3);
    node.subscribe(3, 1, "a", Some(("another".into(), 43)));
    assert_eq!(take(&mut returning)[1]["version"], json!(44));
}

#[test]
fn what_was_not_pushed_is_read_from_the_log_and_told_in_one_step() {
    let mut node = Node::new();
    let mut client = node.client_of_both(1);
    node.beat(EPOCH, 42, 43, &["a"]);
    let Some(Effect::ReadLogs { number, after, feeds }) =
        std::mem::take(&mut node.effects).into_iter().find(|effect| matches!(effect, Effect::ReadLogs { .. }))
    else {
        panic!("the log is read")
    };
    assert_eq!((after, feeds.len()), (Version(40), 2));
    let head = Some(cut_of(EPOCH, 43));
    let entries_a =
        vec![Node::entry(40, 41, Node::states(&[(1, Some(41))])), Node::entry(42, 43, Node::states(&[(1, Some(43))]))];
    let entries_b = vec![Node::entry(41, 42, Node::states(&[(1, Some(42))]))];
    let read = vec![
        (feed("a"), LogRead { head: head.clone(), entries: Some(entries_a) }),
        (feed("b"), LogRead { head, entries: Some(entries_b) }),
    ];
    node.state.on_logs(number, Some(read), node.now);
    node.turn();
    let frames = take(&mut client);
    assert_eq!(ops(&frames), ["step", "delta", "delta", "live"]);
    assert_eq!(frames[1]["rows"], json!([{"id":1,"n":43}]));
}

#[test]
fn a_log_that_does_not_reach_back_leads_to_a_resync_of_that_feed_alone() {
    let mut node = Node::new();
    let mut client = node.client_of_both(1);
    node.beat(EPOCH, 42, 43, &["a"]);
    node.effects.clear();
    let head = Some(cut_of(EPOCH, 43));
    let number = node.state.reading_logs.expect("the log is read");
    let read = vec![
        (feed("a"), LogRead { head: head.clone(), entries: None }),
        (feed("b"), LogRead { head, entries: Some(vec![]) }),
    ];
    node.state.on_logs(number, Some(read), node.now);
    node.turn();
    let flights = node.flights();
    assert_eq!(flights.iter().map(|flight| flight.2.as_str()).collect::<Vec<_>>(), ["a"]);
    assert!(take(&mut client).is_empty());
    node.land(&flights[0], Place::At(Version(43)), &[(1, 100), (3, 1)]);
    let frames = take(&mut client);
    assert_eq!(ops(&frames), ["delta", "live"]);
    assert_eq!(frames[0]["rows"], json!([{"id":3,"n":1}]));
}

#[test]
fn a_new_epoch_is_told_with_the_difference() {
    let mut node = Node::new();
    let mut client = node.client_of_both(1);
    node.beat("next", 0, 50, &[]);
    assert!(take(&mut client).is_empty());
    for flight in node.flights() {
        let fresh = Fresh {
            rows: Rows::at(Version(50), [row(1, 100), row(2, 200)]),
            place: Place::At(Version(50)),
            schema: Arc::new(schema()),
            epoch: Epoch::new("next"),
            lock: None,
        };
        node.state.on_landed(flight.0, flight.1, Ok(fresh), node.now);
        node.turn();
    }
    let frames = take(&mut client);
    assert_eq!(ops(&frames), ["step", "delta", "delta", "live"]);
    assert_eq!((&frames[1]["epoch"], &frames[3]["epoch"]), (&json!("next"), &json!("next")));
    assert_eq!(frames[1]["rows"], json!([{"id":2,"n":200}]));
}

#[test]
fn a_beat_below_our_version_changes_nothing_and_a_replay_above_it_does_no_harm() {
    let mut node = Node::new();
    let mut client = node.client_of_both(1);
    node.version(41, &[("a", &[(1, Some(41))])]);
    take(&mut client);
    node.beat(EPOCH, 30, 35, &["a"]);
    assert_eq!(node.state.position.as_ref().expect("a position").cut.version, Version(41));
    let entry = Node::entry(35, 45, Node::states(&[(1, Some(41)), (2, Some(2))]));
    node.state.on_push(Push::Entry(feed("a"), entry), node.now);
    node.beat(EPOCH, 35, 45, &["a"]);
    let frames = take(&mut client);
    assert_eq!(frames[0]["rows"], json!([{"id":2,"n":2}]), "a state that we have is not told again");
}

#[test]
fn a_client_that_stands_where_a_replay_overtakes_it_goes_on() {
    let mut node = Node::new();
    let mut client = node.client_of_both(1);
    node.version(41, &[("a", &[(1, Some(41))])]);
    take(&mut client);
    node.written(1);
    // The store lost 36 to 41 and goes on: the node reads two steps from the log, and takes them at once.
    node.beat(EPOCH, 45, 46, &["a"]);
    let (number, after) = node
        .effects
        .iter()
        .find_map(|effect| match effect {
            Effect::ReadLogs { number, after, .. } => Some((*number, *after)),
            _ => None,
        })
        .expect("the log is read");
    assert_eq!(after, Version(41));
    let read = ["a", "b"].map(|name| {
        let entries = match name {
            "a" => vec![
                Node::entry(35, 45, Node::states(&[(1, Some(41)), (2, Some(2))])),
                Node::entry(45, 46, Node::states(&[(2, Some(3))])),
            ],
            _ => Vec::new(),
        };
        (feed(name), LogRead { head: Some(cut_of(EPOCH, 46)), entries: Some(entries) })
    });
    node.state.on_logs(number, Some(read.into_iter().collect()), node.now);
    node.turn();
    let frames = take(&mut client);
    assert_eq!(ops(&frames), ["delta", "live"], "no reset");
    assert_eq!((&frames[0]["version"], &frames[0]["rows"]), (&json!(46), &json!([{"id":2,"n":3}])));
}

#[test]
fn ids_are_unique_shared_and_free_again() {
    let mut node = Node::new();
    let mut client = node.client_of_both(1);
    node.subscribe(1, 1, "b", None);
    node.subscribe(1, 3, "a", None);
    let frames = take(&mut client);
    assert_eq!((&frames[0]["code"], &frames[0]["id"]), (&json!("duplicate_id"), &json!(1)));
    assert_eq!((&frames[1]["shared"], &frames[1]["id"]), (&json!(true), &json!(3)));
    node.state.on_command(Command::Unsubscribe { session: SessionId(1), id: 1 }, node.now);
    node.state.on_command(Command::Unsubscribe { session: SessionId(1), id: 1 }, node.now);
    node.turn();
    let frames = take(&mut client);
    assert_eq!(ops(&frames), ["unsubscribed", "error"]);
    assert_eq!((&frames[1]["code"], frames[1].get("id")), (&json!("unknown_id"), None));
    node.version(41, &[("a", &[(1, Some(41))])]);
    assert_eq!(take(&mut client).len(), 1, "the other id still has the channel");
    node.state.on_detach(SessionId(1), node.now);
    node.later(Duration::from_secs(31));
    assert!(node.state.channels.is_empty() && node.state.feeds.is_empty());
}

#[test]
fn a_publication_that_ends_or_changes_ends_or_moves_its_subscriptions() {
    let mut node = Node::new();
    let mut client = node.client_of_both(1);
    let mut other = publication("a");
    other.feed.generation = 2;
    let catalogue = Catalogue { publications: [("a".into(), Arc::new(other))].into_iter().collect() };
    node.state.on_catalogue(Some(Arc::new(catalogue)), node.now);
    node.turn();
    let frames = take(&mut client);
    assert_eq!((ops(&frames), &frames[0]["code"]), (vec!["error"], &json!("unknown_publication")));
    let flights = node.flights();
    node.land(&flights[0], Place::At(Version(40)), &[(1, 1)]);
    let frames = take(&mut client);
    assert_eq!(ops(&frames), ["subscribed", "snapshot"]);
    assert_eq!((&frames[0]["id"], &frames[0]["ch"]), (&json!(1), &json!(3)));
}

#[test]
fn a_client_that_left_before_its_request_was_resolved_leaves_nothing_behind() {
    let mut node = Node::new();
    let _client = node.attach(1);
    node.subscribe(1, 1, "later", None);
    node.state.on_detach(SessionId(1), node.now);
    let catalogue =
        Catalogue { publications: [("later".into(), Arc::new(publication("later")))].into_iter().collect() };
    // A reading that was under way already, and the one that decides.
    for _ in 0..2 {
        node.state.on_catalogue(Some(Arc::new(catalogue.clone())), node.now);
        node.turn();
    }
    assert!(node.state.channels.is_empty() && node.state.feeds.is_empty());
}

#[test]
fn heartbeats_tell_the_truth_about_the_pipeline() {
    let mut node = Node::new();
    let mut client = node.client_of_both(1);
    node.later(Duration::from_millis(250));
    assert_eq!(take(&mut client)[0]["state"], json!("live"));
    node.later(Duration::from_secs(4));
    let frames = take(&mut client);
    assert_eq!((&frames[0]["op"], &frames[0]["state"]), (&json!("live"), &json!("late")));
    node.beat(EPOCH, 40, 40, &[]);
    node.later(Duration::from_millis(250));
    assert_eq!(take(&mut client)[0]["state"], json!("live"));
}

#[test]
fn a_node_that_nobody_asks_anything_follows_beats_also_after_it_missed_some() {
    let mut node = Node::new();
    node.beat(EPOCH, 45, 46, &["a"]);
    assert_eq!(node.state.position.as_ref().expect("a position").cut.version, Version(46));
    assert!(node.state.reading_logs.is_none(), "there is no log to read");
}

#[test]
fn versions_that_arrive_while_the_log_is_read_are_taken_after_it() {
    let mut node = Node::new();
    let mut client = node.client_of_both(1);
    node.beat(EPOCH, 41, 42, &[]);
    let number = node.state.reading_logs.expect("the log is read");
    node.version(43, &[("a", &[(1, Some(43))])]);
    node.version(44, &[("a", &[(1, Some(44))])]);
    let head = Some(cut_of(EPOCH, 42));
    let read = ["a", "b"].map(|name| (feed(name), LogRead { head: head.clone(), entries: Some(vec![]) }));
    node.state.on_logs(number, Some(read.into_iter().collect()), node.now);
    node.turn();
    assert_eq!(node.state.position.as_ref().expect("a position").cut.version, Version(44));
    assert!(node.state.reading_logs.is_none(), "everything was here");
    assert_eq!(take(&mut client).last().expect("frames")["rows"], json!([{"id":1,"n":44}]));
}

#[test]
fn a_beat_of_an_epoch_that_was_left_by_the_log_does_not_lead_back() {
    let mut node = Node::new();
    let _client = node.client_of_both(1);
    node.beat(EPOCH, 41, 42, &[]);
    let number = node.state.reading_logs.expect("the log is read");
    node.beat(EPOCH, 42, 43, &[]);
    let head = Some(cut_of("next", 60));
    let read = ["a", "b"].map(|name| (feed(name), LogRead { head: head.clone(), entries: None }));
    node.state.on_logs(number, Some(read.into_iter().collect()), node.now);
    node.turn();
    let epoch = |node: &Node| node.state.position.as_ref().map(|position| position.cut.epoch.clone());
    assert_eq!(epoch(&node), Some(Epoch::new("next")), "what waited for the log is older");
    node.beat(EPOCH, 43, 44, &[]);
    assert_eq!(epoch(&node), Some(Epoch::new("next")), "what waited in the queue is older");
}

#[test]
fn rows_between_two_cuts_are_read_again_when_no_cut_follows() {
    let mut node = Node::new();
    let mut client = node.client_of_both(1);
    node.state.on_push(Push::Lost, node.now);
    node.turn();
    let number = node.state.reading_logs.expect("the log is read");
    let head = Some(cut_of(EPOCH, 45));
    let read = vec![
        (feed("a"), LogRead { head: head.clone(), entries: None }),
        (feed("b"), LogRead { head, entries: Some(vec![]) }),
    ];
    node.state.on_logs(number, Some(read), node.now);
    node.turn();
    // The log does not say which catalogue 45 had, so the query cannot tell that its rows are those of 45.
    let flights = node.flights();
    node.land(&flights[0], Place::Sees("455:455:".parse().expect("a snapshot")), &[(1, 45)]);
    assert!(take(&mut client).is_empty());
    // Nobody writes any more: the leader has nothing to say but that 45 is the newest version.
    node.beat(EPOCH, 45, 45, &[]);
    let flights = node.flights();
    assert_eq!(flights.len(), 1, "the rows would wait for a cut that never comes");
    node.land(&flights[0], Place::At(Version(45)), &[(1, 45)]);
    let frames = take(&mut client);
    assert_eq!(ops(&frames), ["delta", "live"]);
    assert_eq!(frames[0]["rows"], json!([{"id":1,"n":45}]));
}

#[test]
fn an_epoch_whose_versions_began_again_below_is_told_with_snapshots() {
    let mut node = Node::new();
    let mut client = node.client_of_both(1);
    // Postgres was restored from a backup and the store emptied: the sequence of versions went back with them.
    node.beat("restored", 0, 20, &[]);
    for flight in node.flights() {
        let fresh = Fresh {
            rows: Rows::at(Version(20), [row(2, 200)]),
            place: Place::At(Version(20)),
            schema: Arc::new(schema()),
            epoch: Epoch::new("restored"),
            lock: None,
        };
        node.state.on_landed(flight.0, flight.1, Ok(fresh), node.now);
        node.turn();
    }
    let frames = take(&mut client);
    assert_eq!(ops(&frames), ["step", "subscribed", "snapshot", "subscribed", "snapshot", "live"]);
    assert_eq!((&frames[1]["epoch"], &frames[1]["version"]), (&json!("restored"), &json!(20)));
    assert_eq!(frames[2]["rows"], json!([{"id":2,"n":200}]));
}

#[test]
fn a_client_of_a_database_that_is_no_more_gets_a_snapshot_instead_of_waiting_for_its_version() {
    let mut node = Node::new();
    let _client = node.client_of_both(1);
    let tag = node.state.channels.values().next().and_then(|channel| channel.form.clone()).expect("live").tag;
    let mut client = node.attach(2);
    let resume = Resume { tag, epoch: Epoch::new("before"), version: Version(5000) };
    let subscribe = Subscribe {
        session: SessionId(2),
        id: 1,
        request: ChannelRequest::parse("a"),
        identity: Identity::Anonymous,
        resume: Some(resume),
    };
    node.state.on_command(Command::Subscribe(Box::new(subscribe)), node.now);
    node.turn();
    assert!(take(&mut client).is_empty(), "this node may be the one that has not heard of the newest epoch");
    for _ in 0..5 {
        node.beat(EPOCH, 40, 40, &[]);
        node.later(Duration::from_secs(1));
    }
    let frames = take(&mut client);
    let begun: Vec<&Value> = frames.iter().filter(|frame| frame["op"] != "live").collect();
    assert_eq!(begun.iter().map(|frame| &frame["op"]).collect::<Vec<_>>(), ["subscribed", "snapshot"]);
    assert_eq!((&begun[0]["epoch"], &begun[0]["version"]), (&json!(EPOCH), &json!(40)));
}

#[test]
fn a_filter_follows_the_type_of_its_column_and_ends_with_the_column() {
    let mut node = Node::new();
    let mut client = node.attach(1);
    node.subscribe(1, 1, "a?n=eq.7", None);
    node.state.on_cast(vec![(("pg_catalog.int4".into(), "7".into()), Ok("7".into()))], node.now);
    node.turn();
    let flights = node.flights();
    node.land(&flights[0], Place::At(Version(40)), &[(1, 7)]);
    assert_eq!(ops(&take(&mut client)), ["subscribed", "snapshot"]);
    node.written(1);

    let altered = |columns: &[(&str, &str)]| {
        let columns = columns.iter().map(|&(name, type_name)| Column::new(name, type_name));
        let schema = Schema { columns: columns.collect(), key: vec![0] };
        let mut publication = publication("a");
        publication.schema_id = schema.id().into();
        publication.casts = casts(&schema);
        publication.schema = Arc::new(schema);
        Arc::new(Catalogue { publications: [("a".into(), Arc::new(publication))].into_iter().collect() })
    };
    // Values of an int8 are texts on the wire: what the filter compares with is another text.
    node.state.on_catalogue(Some(altered(&[("id", "int4"), ("n", "int8")])), node.now);
    node.state.on_cast(vec![(("pg_catalog.int8".into(), "7".into()), Ok("\"7\"".into()))], node.now);
    node.turn();
    let flights = node.flights();
    assert_eq!(flights.len(), 1, "it is another channel");
    let spec = &node.state.channels[&flights[0].0].spec;
    let seven = Filter::Compare { column: "n".into(), op: Comparison::Eq, value: "\"7\"".into() };
    assert_eq!(spec.query.filter, seven);

    node.state.on_catalogue(Some(altered(&[("id", "int4")])), node.now);
    node.turn();
    let frames = take(&mut client);
    assert_eq!((ops(&frames), &frames[0]["code"]), (vec!["error"], &json!("bad_query")));
}

#[test]
fn channels_that_come_and_go_while_there_is_no_leader_leave_nothing_behind() {
    let mut node = Node::new();
    node.state.position = None;
    let (outbox, _client) = inbox(SessionId(1), node.commands.clone());
    node.state.on_command(Command::Attach { session: SessionId(1), outbox }, node.now);
    for id in 1..=5 {
        node.subscribe(1, id, "a", None);
        node.later(Duration::from_secs(11));
        assert!(node.state.channels.is_empty(), "it is refused in time");
    }
    node.later(Duration::from_secs(1));
    assert!(node.state.grounded.is_empty());
}
