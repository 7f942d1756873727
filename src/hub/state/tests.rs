//! The hub's decisions, wake-up by wake-up, without a task, a store or a database.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Effect, HubState};
use crate::audit::{Served, Viewer};
use crate::entry::{Key, PartsWriter, Row, States};
use crate::hub::inbox::{Inbox, inbox};
use crate::hub::{Command, HubSettings, SessionId, Subscribe};
use crate::identity::{Claims, Identity, ResolvedPolicy};
use crate::protocol::{self, ChannelNumber, Resume};
use crate::publication::{Catalogue, Column, FeedKey, Policy, Publication, Schema, Source};
use crate::query::{ChannelRequest, Comparison, Filter};
use crate::rows::Rows;
use crate::snapshots::{Fresh, HeldLock, Place};
use crate::store::{Beat, Entry, LogRead, Push, Touched};
use crate::version::{Cut, Epoch, Version};
use crate::view::{Verdict, View};

mod views;

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
        source: if name == "v" { Source::View } else { Source::Table },
        policy: Policy::Public,
        schema: Arc::new(schema()),
        schema_id: schema().id().into(),
        casts: casts(&schema()),
        bulk_rows: 10_000,
        refresh: Duration::from_millis(250),
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

fn beat(epoch: &str, base: u64, version: u64, touched: &[&str], stale: &[&str]) -> Beat {
    let cut = cut_of(epoch, version);
    Beat {
        base: Version(base),
        polled_at: cut.as_of,
        cut,
        touched: touched.iter().map(|name| Touched { feed: feed(name), parts: 1 }).collect(),
        catalogue: String::new(),
        stale: stale.iter().map(|name| feed(name)).collect(),
    }
}

impl Node {
    fn new() -> Self {
        let (commands, taken) = mpsc::channel(64);
        let now = Instant::now();
        let state = HubState::new(HubSettings::default(), now);
        let mut node = Self { state, now, commands, _taken: taken, effects: Vec::new() };
        let catalogue = Catalogue {
            publications: ["a", "b", "v"].map(|name| (name.into(), Arc::new(publication(name)))).into_iter().collect(),
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
        self.beat_with(epoch, base, version, touched, &[]);
    }

    /// The same, with the views that are stale at the version.
    fn beat_with(&mut self, epoch: &str, base: u64, version: u64, touched: &[&str], stale: &[&str]) {
        self.state.on_push(Push::Beat(beat(epoch, base, version, touched, stale)), self.now);
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
        self.version_with(version, changes, &[]);
    }

    /// The same, with the views that are stale at it.
    fn version_with(&mut self, version: u64, changes: &[Change<'_>], stale: &[&str]) {
        for (name, rows) in changes {
            let entry = Self::entry(version - 1, version, Self::states(rows));
            self.state.on_push(Push::Entry(feed(name), entry), self.now);
        }
        let names: Vec<&str> = changes.iter().map(|(name, _)| *name).collect();
        self.beat_with(EPOCH, version - 1, version, &names, stale);
    }

    fn marker(&mut self, version: u64, name: &str) {
        let entry = Self::entry(version - 1, version, vec![States::marker_part("truncate")]);
        self.state.on_push(Push::Entry(feed(name), entry), self.now);
        self.beat(EPOCH, version - 1, version, &[name]);
    }

    fn attach(&mut self, number: u64) -> Inbox {
        let session = SessionId(number);
        let (outbox, inbox) = inbox(session, self.commands.clone());
        self.state.on_command(Command::Attach { session, viewer: Viewer::default(), outbox }, self.now);
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
        self.land_first(flight, place, rows, true);
    }

    /// The same, of a window: `all` the rows there are, or the first of them.
    fn land_first(&mut self, flight: &(ChannelNumber, u64, String), place: Place, rows: &[(u64, u64)], all: bool) {
        let view = self.view(flight.0);
        let members = rows.iter().map(|&(id, n)| row(id, n)).filter_map(|(key, row)| match view.judge(Some(&row)) {
            Verdict::Member(row) => Some((key, row)),
            Verdict::Not(_) => None,
        });
        let version = match &place {
            Place::At(version) => *version,
            Place::Sees(_) => Version(0),
        };
        let fresh = Fresh {
            served: Served::Postgres,
            rows: Rows::read(&view, version, members.collect(), all),
            place,
            view,
            epoch: Epoch::new(EPOCH),
            lock: None,
        };
        self.state.on_landed(flight.0, flight.1, Ok(fresh), self.now);
        self.turn();
    }

    /// What a channel makes of the feed's rows.
    fn view(&self, number: ChannelNumber) -> Arc<View> {
        Arc::new(View::new(&self.state.channels[&number].spec, &Arc::new(schema())).expect("a view"))
    }

    /// Rows of a query of our own, under the cluster's lock; whether the lock is given back at once.
    fn land_locked(&mut self, flight: &(ChannelNumber, u64, String), place: &str) -> bool {
        let lock = HeldLock { feed: feed("a"), channel: "hash".into() };
        let fresh = Fresh {
            served: Served::Postgres,
            rows: Rows::at(Version(0), [row(1, 1)]),
            place: Place::Sees(place.parse().expect("a snapshot")),
            view: self.view(flight.0),
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
            served: Served::Postgres,
            rows: Rows::at(Version(50), [row(1, 100), row(2, 200)]),
            place: Place::At(Version(50)),
            view: node.view(flight.0),
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
    node.state.on_detach(SessionId(1), "test", node.now);
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
    node.state.on_detach(SessionId(1), "test", node.now);
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
            served: Served::Postgres,
            rows: Rows::at(Version(20), [row(2, 200)]),
            place: Place::At(Version(20)),
            view: node.view(flight.0),
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
fn a_policy_decides_before_anything_is_said_of_the_query() {
    let mut node = Node::new();
    let guarded = Publication { policy: Policy::Filter("n=eq.{tenant}".into()), ..publication("a") };
    let catalogue = Catalogue { publications: [("a".into(), Arc::new(guarded))].into_iter().collect() };
    node.state.on_catalogue(Some(Arc::new(catalogue)), node.now);
    let mut client = node.attach(1);
    let mut ask = |node: &mut Node, id: u64, channel: &str, tenant: Option<Value>| {
        let identity = tenant.map_or(Identity::Anonymous, |tenant| {
            let all = [("tenant".to_owned(), tenant)].into_iter().collect();
            Identity::Proven(Arc::new(Claims { all, expires: None }))
        });
        let request = ChannelRequest::parse(channel);
        let subscribe = Subscribe { session: SessionId(1), id, request, identity, resume: None };
        node.state.on_command(Command::Subscribe(Box::new(subscribe)), node.now);
        node.turn();
        let codes: Vec<String> =
            take(&mut client).iter().filter_map(|frame| frame["code"].as_str().map(str::to_owned)).collect();
        node.written(1);
        codes
    };
    let seven = |value| vec![(("pg_catalog.int4".into(), "7".into()), value)];
    assert_eq!(ask(&mut node, 1, "a?nope=eq.1", None), ["forbidden"]);
    assert_eq!(ask(&mut node, 2, "a?nope=eq.1", Some(Value::Null)), ["forbidden"]);
    assert!(ask(&mut node, 3, "a?nope=eq.1", Some(json!("7"))).is_empty(), "what the claim is worth is not known yet");
    node.state.on_cast(seven(Err("invalid input syntax".to_owned())), node.now);
    assert_eq!(ask(&mut node, 4, "a?nope=eq.1", Some(json!("7"))), ["forbidden", "forbidden"]);
    node.state.on_cast(seven(Ok("7".into())), node.now);
    assert_eq!(ask(&mut node, 5, "a?nope=eq.1", Some(json!("7"))), ["bad_query"]);
    assert!(ask(&mut node, 6, "a?id=eq.7", Some(json!(7))).is_empty());
    let eq = |column: &str| Filter::Compare { column: column.into(), op: Comparison::Eq, value: "7".into() };
    let number = node.flights()[0].0;
    let spec = &node.state.channels[&number].spec;
    assert_eq!((&spec.policy, &spec.query.filter), (&ResolvedPolicy::Filter(eq("n")), &eq("id")));
    assert_eq!(spec.filter(), Filter::all([eq("n"), eq("id")]));
}

#[test]
fn literals_that_were_forgotten_before_they_were_used_are_cast_again() {
    let mut node = Node::new();
    let mut client = node.attach(1);
    let literal = |text: &str| (("pg_catalog.int4".into(), text.into()), Ok(text.into()));
    node.state.on_cast(vec![literal("1")], node.now);
    node.subscribe(1, 1, "a?n=in.(1,2)", None);
    // Others fill the memory for literals meanwhile.
    node.state.on_cast((10..10_010).map(|n| literal(&n.to_string())).collect(), node.now);
    node.state.on_cast(vec![literal("2")], node.now);
    node.turn();
    let asked: Vec<_> = node
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Cast(literals) => Some(literals.iter().map(|(_, text)| text.to_string()).collect::<Vec<_>>()),
            _ => None,
        })
        .collect();
    let expected: [&[&str]; 3] = [&["2"], &["1", "2"], &["1"]];
    assert_eq!(asked, expected, "again each time, as far as it was forgotten");
    node.state.on_cast(vec![literal("1")], node.now);
    node.turn();
    assert_eq!(node.flights().len(), 1);
    assert!(take(&mut client).iter().all(|frame| frame["op"] == "live"));
}

#[test]
fn literals_that_became_long_are_not_kept_by_their_number() {
    let mut node = Node::new();
    let long: Arc<str> = "7".repeat(65_537).into();
    for n in 0..1_000 {
        let literal = ("pg_catalog.numeric".into(), format!("{n}e65535").into());
        node.state.on_cast(vec![(literal, Ok(long.clone()))], node.now);
    }
    assert!(!node.state.casts.is_empty() && node.state.casts.len() < 300, "{}", node.state.casts.len());
}

#[test]
fn channels_that_come_and_go_while_there_is_no_leader_leave_nothing_behind() {
    let mut node = Node::new();
    node.state.position = None;
    let (outbox, _client) = inbox(SessionId(1), node.commands.clone());
    node.state.on_command(Command::Attach { session: SessionId(1), viewer: Viewer::default(), outbox }, node.now);
    for id in 1..=5 {
        node.subscribe(1, id, "a", None);
        node.later(Duration::from_secs(11));
        assert!(node.state.channels.is_empty(), "it is refused in time");
    }
    node.later(Duration::from_secs(1));
    assert!(node.state.grounded.is_empty());
}

/// A catalogue in which these publications are for whoever has a token, and `b` for everybody.
fn catalogue_for_members(names: &[&str]) -> Arc<Catalogue> {
    let mut publications: HashMap<Arc<str>, Arc<Publication>> = HashMap::new();
    publications.insert("b".into(), Arc::new(publication("b")));
    for &name in names {
        publications.insert(name.into(), Arc::new(Publication { policy: Policy::Authenticated, ..publication(name) }));
    }
    Arc::new(Catalogue { publications })
}

fn proven(sub: &str) -> Identity {
    let all = json!({"sub":sub}).as_object().expect("an object").clone();
    Identity::Proven(Arc::new(Claims { all, expires: None }))
}

#[test]
fn another_identity_keeps_what_it_may_see_and_loses_the_rest_at_once() {
    let mut node = Node::new();
    node.state.on_catalogue(Some(catalogue_for_members(&["a"])), node.now);
    let mut client = node.attach(1);
    let reidentify = |node: &mut Node, identity: Identity| {
        let told = protocol::authenticated(None, None);
        node.state.on_command(Command::Reidentify { session: SessionId(1), identity, told }, node.now);
    };
    reidentify(&mut node, proven("u1"));
    for (id, name) in [(1, "a"), (2, "b"), (3, "a?n=eq.7"), (4, "later")] {
        let subscribe = Subscribe {
            session: SessionId(1),
            id,
            request: ChannelRequest::parse(name),
            identity: proven("u1"),
            resume: None,
        };
        node.state.on_command(Command::Subscribe(Box::new(subscribe)), node.now);
    }
    node.turn();
    for flight in node.flights() {
        node.land(&flight, Place::At(Version(40)), &[(1, 100)]);
    }
    let mut frames = take(&mut client);
    node.written(1);
    frames.extend(take(&mut client));
    node.written(1);
    assert_eq!(ops(&frames)[0], "authenticated");
    assert_eq!(frames.iter().filter(|frame| frame["op"] == "subscribed").count(), 2, "{frames:?}");

    // Somebody else, who may see the same: the same channels, and nothing to say.
    reidentify(&mut node, proven("u2"));
    node.turn();
    assert_eq!(ops(&take(&mut client)), ["authenticated"]);
    node.version(41, &[("a", &[(1, Some(41))]), ("b", &[(1, Some(41))])]);
    assert_eq!(ops(&take(&mut client)), ["step", "delta", "delta", "live"]);

    // Nobody: a change that comes in the same turn is not for it any more. What waits to be resolved waits as nobody.
    reidentify(&mut node, Identity::Anonymous);
    node.version(42, &[("a", &[(1, Some(42))]), ("b", &[(1, Some(42))])]);
    let seven = ("pg_catalog.int4".into(), "7".into());
    node.state.on_cast(vec![(seven, Ok("7".into()))], node.now);
    node.turn();
    let frames = take(&mut client);
    let refused: Vec<&Value> = frames.iter().filter(|frame| frame["op"] == "error").collect();
    assert_eq!(refused.len(), 2, "{frames:?}");
    assert!(refused.iter().all(|error| error["code"] == "forbidden" && (error["id"] == 1 || error["id"] == 3)));
    let deltas: Vec<&Value> = frames.iter().filter(|frame| frame["op"] == "delta").collect();
    assert_eq!((deltas.len(), &deltas[0]["ch"]), (1, &json!(2)), "{frames:?}");
    node.state.on_catalogue(Some(catalogue_for_members(&["a", "later"])), node.now);
    node.turn();
    node.state.on_catalogue(Some(catalogue_for_members(&["a", "later"])), node.now);
    node.turn();
    let frames = take(&mut client);
    assert_eq!((&frames[0]["id"], &frames[0]["code"]), (&json!(4), &json!("forbidden")), "{frames:?}");
}

#[test]
fn what_waits_for_casts_of_one_identity_is_cast_and_opened_for_the_next() {
    let of = |n: u64| {
        let all = json!({"n":n}).as_object().expect("an object").clone();
        Identity::Proven(Arc::new(Claims { all, expires: None }))
    };
    let mut node = Node::new();
    let policy = Policy::Filter("n=eq.{n}".into());
    let only = Publication { policy, ..publication("a") };
    let catalogue = Catalogue { publications: HashMap::from([("a".into(), Arc::new(only))]) };
    node.state.on_catalogue(Some(Arc::new(catalogue)), node.now);
    let mut client = node.attach(1);
    let subscribe =
        Subscribe { session: SessionId(1), id: 1, request: ChannelRequest::parse("a"), identity: of(1), resume: None };
    node.state.on_command(Command::Subscribe(Box::new(subscribe)), node.now);
    node.turn();
    let cast = |node: &mut Node| -> Vec<String> {
        let casts = std::mem::take(&mut node.effects).into_iter().filter_map(|effect| match effect {
            Effect::Cast(literals) => Some(literals),
            _ => None,
        });
        casts.flatten().map(|(_, text)| text.to_string()).collect()
    };
    assert_eq!(cast(&mut node), ["1"]);
    let told = protocol::authenticated(None, None);
    node.state.on_command(Command::Reidentify { session: SessionId(1), identity: of(2), told }, node.now);
    node.turn();
    assert_eq!(cast(&mut node), ["2"]);
    for text in ["1", "2"] {
        let literal = ("pg_catalog.int4".into(), text.into());
        node.state.on_cast(vec![(literal, Ok(text.into()))], node.now);
        node.turn();
    }
    let flights = node.flights();
    assert_eq!(flights.len(), 1);
    node.land(&flights[0], Place::At(Version(40)), &[(1, 1), (2, 2), (3, 2)]);
    let frames = take(&mut client);
    assert_eq!(ops(&frames), ["authenticated", "subscribed", "snapshot"]);
    assert_eq!(node.state.channels.len(), 1);
    let spec = node.state.channels.values().next().expect("a channel").spec.policy.clone();
    assert!(format!("{spec:?}").contains(r#""2""#), "{spec:?}");
}

/// A client of the table `a` and of the view `v`, up to date at version 40.
fn client_of_table_and_view(node: &mut Node) -> Inbox {
    let mut client = node.attach(1);
    node.subscribe(1, 1, "a", None);
    node.subscribe(1, 2, "v", None);
    for flight in node.flights() {
        node.land(&flight, Place::At(Version(40)), &[(1, 100)]);
    }
    for _ in 0..2 {
        take(&mut client);
        node.written(1);
    }
    client
}

#[test]
fn a_client_of_a_stale_view_moves_when_it_is_fresh_in_one_step() {
    let mut node = Node::new();
    let mut client = client_of_table_and_view(&mut node);
    node.version_with(41, &[("a", &[(1, Some(41))])], &["v"]);
    node.version_with(42, &[("a", &[(2, Some(42))])], &["v"]);
    assert!(take(&mut client).is_empty(), "it stands still");
    node.later(Duration::from_secs(6));
    node.beat_with(EPOCH, 42, 42, &[], &["v"]);
    node.later(Duration::from_secs(6));
    assert!(take(&mut client).iter().all(|frame| (&frame["op"], &frame["version"]) == (&json!("live"), &json!(40))));
    // Fresh, and stale again before the turn ends: it must not miss the version between.
    let fresh = Node::entry(42, 43, Node::states(&[(1, Some(43))]));
    node.state.on_push(Push::Entry(feed("v"), fresh), node.now);
    node.state.on_push(Push::Beat(beat(EPOCH, 42, 43, &["v"], &[])), node.now);
    node.state.on_push(Push::Beat(beat(EPOCH, 43, 44, &[], &["v"])), node.now);
    node.turn();
    let frames = take(&mut client);
    assert_eq!(ops(&frames), ["step", "delta", "delta", "live"]);
    assert!(frames.iter().all(|frame| frame["version"] == json!(43)), "{frames:?}");
}

#[test]
fn what_is_new_on_a_stale_view_waits_and_holds_up_nobody() {
    let mut node = Node::new();
    let mut client = node.attach(1);
    node.version_with(41, &[], &["v"]);
    node.subscribe(1, 1, "a", None);
    node.subscribe(1, 2, "v", None);
    for flight in node.flights() {
        node.land(&flight, Place::At(Version(41)), &[(1, 100)]);
    }
    assert_eq!(ops(&take(&mut client)), ["subscribed", "snapshot"]);
    node.written(1);
    node.version_with(42, &[("a", &[(1, Some(42))])], &["v"]);
    assert_eq!(ops(&take(&mut client)), ["delta"]);
    // The leader has found that it is as it was.
    node.beat(EPOCH, 42, 42, &[]);
    let frames = take(&mut client);
    assert_eq!((ops(&frames), &frames[0]["version"]), (vec!["subscribed", "snapshot"], &json!(42)));

    let mut late = node.attach(2);
    node.version_with(43, &[], &["v"]);
    node.subscribe(2, 1, "v", None);
    node.later(Duration::from_secs(11));
    let frames: Vec<Value> = take(&mut late).into_iter().filter(|frame| frame["op"] != "live").collect();
    assert_eq!((ops(&frames), &frames[0]["code"]), (vec!["error"], &json!("unavailable")));
}

#[test]
fn a_version_that_only_the_log_told_of_may_be_stale() {
    let mut node = Node::new();
    let mut client = client_of_table_and_view(&mut node);
    node.state.on_push(Push::Lost, node.now);
    let number = node.state.reading_logs.expect("a reading");
    let read = |name: &str, entries: Vec<Arc<Entry>>| {
        (feed(name), LogRead { head: Some(cut_of(EPOCH, 41)), entries: Some(entries) })
    };
    let changed = Node::entry(40, 41, Node::states(&[(1, Some(41))]));
    node.state.on_logs(number, Some(vec![read("a", vec![changed]), read("v", vec![])]), node.now);
    node.turn();
    assert!(take(&mut client).is_empty(), "who knows how it stands with the view");
    node.beat(EPOCH, 41, 41, &[]);
    assert_eq!(ops(&take(&mut client)), ["delta", "live"]);
}

#[test]
fn a_new_epoch_that_only_the_log_told_of_leaves_views_stale_until_a_beat() {
    let mut node = Node::new();
    let mut client = client_of_table_and_view(&mut node);
    node.state.on_push(Push::Lost, node.now);
    let number = node.state.reading_logs.expect("the log is read");
    let read = |name: &str| (feed(name), LogRead { head: Some(cut_of("next", 41)), entries: None });
    node.state.on_logs(number, Some(vec![read("a"), read("v")]), node.now);
    node.turn();
    for (channel, flight, _) in node.flights() {
        let view = node.view(channel);
        let rows = Rows::read(&view, Version(41), vec![row(1, 41)], true);
        let place = Place::At(Version(41));
        let fresh = Fresh { served: Served::Store, rows, place, view, epoch: Epoch::new("next"), lock: None };
        node.state.on_landed(channel, flight, Ok(fresh), node.now);
    }
    node.turn();
    assert!(take(&mut client).iter().all(|frame| frame["op"] == "live"), "the view may be stale");
    node.beat("next", 41, 41, &[]);
    assert_eq!(ops(&take(&mut client)), ["step", "delta", "delta", "live"]);
}
