//! Channels that see a part: which steps concern them, windows that run low and out, columns that nobody asked for.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A channel's rows as its client has them: `n` by `id`.
type Table = BTreeMap<u64, u64>;

impl Node {
    /// Subscribes to a channel, whose literals Postgres casts at once; the flight that it needs, if it does.
    fn ask(&mut self, session: u64, id: u64, channel: &str) -> Option<(ChannelNumber, u64, String)> {
        self.subscribe(session, id, channel, None);
        let casts = self.effects.iter().filter_map(|effect| match effect {
            Effect::Cast(literals) => Some(literals.clone()),
            _ => None,
        });
        let cast = casts.flatten().map(|literal| (literal.clone(), Ok(literal.1.clone()))).collect();
        self.state.on_cast(cast, self.now);
        self.turn();
        self.effects.retain(|effect| !matches!(effect, Effect::Cast(_)));
        self.flights().pop()
    }

    /// A client of one channel, with these rows of the table.
    fn client_of(&mut self, session: u64, channel: &str, rows: &[(u64, u64)], all: bool) -> Inbox {
        let mut client = self.attach(session);
        let flight = self.ask(session, 1, channel).expect("a flight");
        let at = self.state.position.as_ref().expect("a position").cut.version;
        self.land_first(&flight, Place::At(at), rows, all);
        assert_eq!(ops(&take(&mut client)), ["subscribed", "snapshot"]);
        self.written(session);
        client
    }

    /// The channels that states of the feed `a` would concern.
    fn concerned(&self, rows: &[(u64, Option<u64>)]) -> usize {
        let Ok(States::Rows { schema, states, .. }) = States::parse(&Self::states(rows)) else { panic!("rows") };
        self.state.feeds[&feed("a")].index.concerned(&schema, &states).len()
    }
}

fn ids(frame: &Value, of: &str) -> Vec<u64> {
    let id = |row: &Value| if of == "rows" { row["id"].as_u64() } else { row["key"][0].as_u64() };
    let mut ids: Vec<u64> = frame[of].as_array().into_iter().flatten().filter_map(id).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn a_changed_row_concerns_the_channel_that_it_leaves_and_the_one_that_it_enters() {
    let mut node = Node::new();
    let mut clients: Vec<Inbox> =
        (0..50).map(|n| node.client_of(n + 1, &format!("a?n=eq.{n}"), &[(n, n)], true)).collect();
    let mut whole = node.client_of(100, "a", &[(3, 3)], true);
    assert_eq!(node.concerned(&[(3, Some(7))]), 3);
    assert_eq!(node.concerned(&[(3, Some(3)), (900, Some(900)), (901, None)]), 2);
    node.version(41, &[("a", &[(3, Some(7))])]);
    for (n, client) in clients.iter_mut().enumerate() {
        let frames = take(client);
        match n {
            3 => assert_eq!(frames[0]["gone"], json!([{"key":[3],"why":"filter"}])),
            7 => assert_eq!(frames[0]["rows"], json!([{"id":3,"n":7}])),
            _ => assert!(frames.is_empty()),
        }
    }
    assert_eq!(take(&mut whole).len(), 1);
    // It is found by its key from now on where it is, and not where it was.
    assert_eq!(node.concerned(&[(3, None)]), 2);
    node.version(42, &[("a", &[(3, None)])]);
    assert_eq!(take(&mut clients[7])[0]["gone"], json!([{"key":[3],"why":"deleted"}]));
    assert!(take(&mut clients[3]).is_empty());
    assert_eq!(node.concerned(&[(3, None)]), 1);
}

#[test]
fn a_step_that_jumps_over_lost_versions_is_known_to_channels_that_it_does_not_concern() {
    let mut node = Node::new();
    let _client = node.client_of(1, "a?n=eq.1", &[(1, 1)], true);
    let tag = node.state.channels.values().next().and_then(|channel| channel.form.clone()).expect("live").tag;
    // On another node somebody saw row 2 enter in 43, which the store has lost since.
    let entry = Node::entry(40, 45, Node::states(&[(2, Some(5))]));
    node.state.on_push(Push::Entry(feed("a"), entry), node.now);
    node.beat(EPOCH, 40, 45, &["a"]);
    let mut lost = node.attach(2);
    node.subscribe(2, 1, "a?n=eq.1", Some((tag.clone(), 43)));
    assert_eq!(ops(&take(&mut lost)), ["subscribed", "snapshot"]);
    let mut level = node.attach(3);
    node.subscribe(3, 1, "a?n=eq.1", Some((tag, 40)));
    assert_eq!(ops(&take(&mut level)), ["subscribed"]);
}

#[test]
fn columns_of_the_feed_that_are_none_of_the_channels_may_change_unseen() {
    let mut node = Node::new();
    let mut client = node.client_of(1, "a?select=id", &[(1, 10)], true);
    node.version(41, &[("a", &[(1, Some(11))])]);
    assert!(take(&mut client).is_empty(), "nobody asked for `n`");
    // `n` becomes another type: a marker, and rows read under other columns.
    node.marker(42, "a");
    let flights = node.flights();
    let other = Schema { columns: vec![Column::new("id", "int4"), Column::new("n", "int8")], key: vec![0] };
    let view = View::new(&node.state.channels[&flights[0].0].spec, &Arc::new(other.clone())).expect("a view");
    let member = |id: u64| (Key::new(format!("[{id}]")), Arc::new(Row::parse(&format!("[{id}]")).expect("a row")));
    let fresh = Fresh {
        served: Served::Postgres,
        rows: Rows::read(&view, Version(42), vec![member(1), member(2)], true),
        place: Place::At(Version(42)),
        view: Arc::new(view),
        epoch: Epoch::new(EPOCH),
        lock: None,
    };
    node.state.on_landed(flights[0].0, flights[0].1, Ok(fresh), node.now);
    node.turn();
    let frames = take(&mut client);
    assert_eq!(ops(&frames), ["delta", "live"], "the same form: no `subscribed`");
    assert_eq!(frames[0]["rows"], json!([{"id":2}]));
    // Entries of the new columns are judged by them.
    let mut writer = PartsWriter::new(&other.id());
    writer.push("[3]", Some("[3,\"9\"]"));
    node.state.on_push(Push::Entry(feed("a"), Node::entry(42, 43, writer.finish())), node.now);
    node.beat(EPOCH, 42, 43, &["a"]);
    assert_eq!(take(&mut client)[0]["rows"], json!([{"id":3}]));
}

#[test]
fn who_named_all_columns_there_were_gets_none_that_join_later() {
    let mut node = Node::new();
    let mut named = node.client_of(1, "a?select=id,n", &[(1, 10)], true);
    let other = Schema { columns: ["id", "n", "more"].map(|name| Column::new(name, "int4")).into(), key: vec![0] };
    let wider = Publication {
        schema_id: other.id().into(),
        casts: casts(&other),
        schema: Arc::new(other.clone()),
        ..publication("a")
    };
    let catalogue = Catalogue { publications: HashMap::from([("a".into(), Arc::new(wider))]) };
    node.state.on_catalogue(Some(Arc::new(catalogue)), node.now);
    node.marker(41, "a");
    let flights = node.flights();
    let view = View::new(&node.state.channels[&flights[0].0].spec, &Arc::new(other)).expect("a view");
    let row = Arc::new(Row::parse("[1,10,7]").expect("a row"));
    let Verdict::Member(row) = view.judge(Some(&row)) else { panic!("a member") };
    let fresh = Fresh {
        served: Served::Postgres,
        rows: Rows::read(&view, Version(41), vec![(Key::new("[1]"), row)], true),
        place: Place::At(Version(41)),
        view: Arc::new(view),
        epoch: Epoch::new(EPOCH),
        lock: None,
    };
    node.state.on_landed(flights[0].0, flights[0].1, Ok(fresh), node.now);
    node.turn();
    let frames = take(&mut named);
    assert!(frames.iter().all(|frame| frame["op"] == "live"), "{frames:?}");
}

#[test]
fn a_window_says_its_order_and_tells_who_is_pushed_out_and_who_comes_in() {
    let mut node = Node::new();
    let mut client = node.attach(1);
    let flight = node.ask(1, 1, "a?order=n.desc&limit=2").expect("a flight");
    node.land(&flight, Place::At(Version(40)), &[(1, 10), (2, 20), (3, 30)]);
    let frames = take(&mut client);
    let by = |column: &str, dir: &str, nulls: &str| json!({"column":column,"dir":dir,"nulls":nulls});
    assert_eq!(frames[0]["order"], json!([by("n", "desc", "first"), by("id", "asc", "last")]));
    assert_eq!(ids(&frames[1], "rows"), [2, 3]);
    node.written(1);
    node.version(41, &[("a", &[(1, Some(40))])]);
    let frames = take(&mut client);
    assert_eq!(frames[0]["rows"], json!([{"id":1,"n":40}]));
    assert_eq!(frames[0]["gone"], json!([{"key":[2],"why":"window"}]));
    node.version(42, &[("a", &[(3, None)])]);
    let frames = take(&mut client);
    assert_eq!(frames[0]["rows"], json!([{"id":2,"n":20}]));
    assert_eq!(frames[0]["gone"], json!([{"key":[3],"why":"deleted"}]));
    // Equal queries are one channel, said in another way.
    assert!(node.ask(1, 2, "a?limit=2&order=n.desc.nullsfirst,id").is_none());
    assert_eq!(take(&mut client)[0]["shared"], json!(true));
}

/// `[(1, 999), (2, 998), …]`.
fn falling(ids: std::ops::RangeInclusive<u64>) -> Vec<(u64, u64)> {
    ids.map(|id| (id, 1_000 - id)).collect()
}

fn gone(ids: std::ops::RangeInclusive<u64>) -> Vec<(u64, Option<u64>)> {
    ids.map(|id| (id, None)).collect()
}

#[test]
fn a_window_that_runs_low_is_refilled_while_it_goes_on() {
    let mut node = Node::new();
    let mut client = node.client_of(1, "a?order=n.desc&limit=2", &falling(1..=66), false);
    node.version(41, &[("a", &gone(1..=32))]);
    assert_eq!(ids(&take(&mut client)[0], "rows"), [33, 34]);
    assert!(node.flights().is_empty(), "half of the spare rows are there");
    node.version(42, &[("a", &gone(33..=33))]);
    let flights = node.flights();
    assert_eq!(flights.len(), 1, "they are read again");
    node.version(43, &[("a", &gone(34..=34))]);
    assert_eq!(take(&mut client).len(), 2, "and meanwhile the window moves");
    // Read between 43 and 44.
    node.land_first(&flights[0], Place::Sees("435:435:".parse().expect("a snapshot")), &falling(35..=100), false);
    node.version(44, &[("a", &gone(35..=35))]);
    let frames = take(&mut client);
    assert_eq!((ops(&frames), ids(&frames[0], "rows")), (vec!["delta"], vec![37]));
    node.turn();
    assert!(node.effects.iter().any(|effect| matches!(effect, Effect::Keep { first: true, .. })), "for other nodes");
    node.version(45, &[("a", &gone(36..=90))]);
    assert_eq!(ids(&take(&mut client)[0], "rows"), [91, 92], "what was read is shown");
}

#[test]
fn a_window_that_runs_out_stands_still_until_it_was_read_again() {
    let mut node = Node::new();
    let mut client = node.client_of(1, "a?order=n.desc&limit=2", &falling(1..=66), false);
    node.version(41, &[("a", &gone(1..=65))]);
    assert!(take(&mut client).is_empty(), "only one row is known");
    node.version(42, &[("a", &gone(66..=66))]);
    let flights = node.flights();
    node.land_first(&flights[0], Place::Sees("425:425:".parse().expect("a snapshot")), &falling(67..=132), false);
    assert!(take(&mut client).is_empty() && node.flights().is_empty(), "they are those of the next version");
    node.version(43, &[("a", &gone(67..=67))]);
    let frames = take(&mut client);
    assert_eq!(ops(&frames), ["delta", "live"], "no reset");
    assert_eq!((&frames[0]["prev"], &frames[0]["version"]), (&json!(40), &json!(43)));
    assert_eq!((ids(&frames[0], "rows"), ids(&frames[0], "gone")), (vec![68, 69], vec![1, 2]));
    let whys = frames[0]["gone"].as_array().into_iter().flatten().map(|gone| &gone["why"]);
    assert!(whys.into_iter().all(|why| why == "deleted"));
}

#[test]
fn spare_rows_that_are_on_their_way_serve_when_the_window_runs_out() {
    let mut node = Node::new();
    let mut client = node.client_of(1, "a?order=n.desc&limit=2", &falling(1..=66), false);
    node.version(41, &[("a", &gone(1..=40))]);
    let flights = node.flights();
    assert_eq!(ids(&take(&mut client)[0], "rows"), [41, 42]);
    node.version(42, &[("a", &gone(41..=66))]);
    assert!(take(&mut client).is_empty() && node.flights().is_empty(), "nothing more is read");
    node.land_first(&flights[0], Place::At(Version(41)), &falling(41..=106), false);
    let frames = take(&mut client);
    assert_eq!(ops(&frames), ["delta", "live"]);
    assert_eq!((ids(&frames[0], "rows"), ids(&frames[0], "gone")), (vec![67, 68], vec![41, 42]));
}

#[test]
fn a_refill_ends_with_a_resync_of_its_channel_and_with_the_channel() {
    let mut node = Node::new();
    let mut client = node.client_of(1, "a?order=n.desc&limit=2", &falling(1..=66), false);
    node.version(41, &[("a", &gone(1..=40))]);
    let refill = node.flights();
    node.marker(42, "a");
    let resync = node.flights();
    assert_ne!(refill[0].1, resync[0].1);
    node.land_first(&refill[0], Place::At(Version(41)), &falling(41..=106), false);
    take(&mut client);
    node.land_first(&resync[0], Place::At(Version(42)), &falling(50..=115), false);
    assert_eq!(ids(&take(&mut client)[0], "rows"), [50, 51]);
    node.version(43, &[("a", &gone(50..=90))]);
    let refill = node.flights();
    node.state.on_detach(SessionId(1), "test", node.now);
    node.later(Duration::from_secs(31));
    node.state.on_landed(refill[0].0, refill[0].1, Err(crate::snapshots::OpenError::Again("late".into())), node.now);
    node.turn();
    assert!(node.state.channels.is_empty() && node.state.feeds.is_empty());
}

/// A client's rows, kept as the protocol says.
struct Watcher {
    inbox: Inbox,
    rows: Table,
}

impl Watcher {
    fn take_in(&mut self) {
        for frame in take(&mut self.inbox) {
            match frame["op"].as_str() {
                Some("snapshot") => self.rows = Table::new(),
                Some("delta") => {}
                _ => continue,
            }
            for gone in frame["gone"].as_array().into_iter().flatten() {
                assert!(self.rows.remove(&gone["key"][0].as_u64().expect("a key")).is_some(), "gone, and never there");
            }
            for row in frame["rows"].as_array().into_iter().flatten() {
                let (id, n) = (row["id"].as_u64().expect("an id"), row["n"].as_u64());
                let n = n.or_else(|| self.rows.get(&id).copied()).expect("an unknown key is a whole row");
                self.rows.insert(id, n);
            }
        }
    }
}

/// What each kind of channel makes of the table.
fn expected(channel: usize, table: &Table) -> Table {
    let mut rows: Vec<(u64, u64)> = table.iter().map(|(&id, &n)| (id, n)).collect();
    match channel {
        0..5 => rows.retain(|&(_, n)| n == channel as u64),
        5 => {}
        6 => {
            rows.sort_by_key(|&(id, n)| (std::cmp::Reverse(n), id));
            rows.truncate(3);
        }
        7 => rows.truncate(4),
        _ => {
            rows.retain(|&(_, n)| n == 2);
            rows.sort_by_key(|&(id, _)| std::cmp::Reverse(id));
            rows.truncate(2);
        }
    }
    rows.into_iter().collect()
}

const CHANNELS: [&str; 9] = [
    "a?n=eq.0",
    "a?n=eq.1",
    "a?n=eq.2",
    "a?n=eq.3",
    "a?n=eq.4",
    "a",
    "a?order=n.desc&limit=3",
    "a?limit=4",
    "a?n=eq.2&order=id.desc&limit=2",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever happens to the table, and however late rows land that are read again: whenever a client is level, its
    /// rows are the channel's query on the table at the node's version.
    #[test]
    fn every_client_equals_its_query_at_the_versions_it_is_told(
        steps in proptest::collection::vec(
            (proptest::collection::btree_map(0u64..160, proptest::option::weighted(0.7, 0u64..6), 0..10),
             proptest::option::weighted(0.2, 0u64..160), 0u8..4, proptest::bool::weighted(0.05)), 1..40)
    ) {
        let mut node = Node::new();
        let mut table: Table = (0..160).map(|id| (id, id % 6)).collect();
        let all: Vec<(u64, u64)> = table.iter().map(|(&id, &n)| (id, n)).collect();
        let read = |channel: usize, table: &Table| {
            // What Postgres would give: all members, or the first of them and spare ones.
            let mut rows: Vec<(u64, u64)> = table.iter().map(|(&id, &n)| (id, n)).collect();
            let members = match channel { 0..6 => return (rows, true), 6 => 67, 7 => 68, _ => 66 };
            match channel {
                6 => rows.sort_by_key(|&(id, n)| (std::cmp::Reverse(n), id)),
                7 => {}
                _ => {
                    rows.retain(|&(_, n)| n == 2);
                    rows.sort_by_key(|&(id, _)| std::cmp::Reverse(id));
                }
            }
            let is_all = rows.len() < members;
            rows.truncate(members);
            (rows, is_all)
        };
        let mut watchers: Vec<Watcher> = Vec::new();
        for (index, channel) in CHANNELS.iter().enumerate() {
            let session = index as u64 + 1;
            let mut inbox = node.attach(session);
            let flight = node.ask(session, 1, channel).expect("a flight");
            let (rows, is_all) = read(index, &all.iter().copied().collect());
            node.land_first(&flight, Place::At(Version(40)), &rows, is_all);
            let snapshot = take(&mut inbox);
            node.written(session);
            let rows = snapshot[1]["rows"].as_array().into_iter().flatten();
            let rows = rows.map(|row| (row["id"].as_u64().expect("id"), row["n"].as_u64().expect("n"))).collect();
            watchers.push(Watcher { inbox, rows });
        }
        // Flights in the air, with what Postgres saw when they were flown.
        let mut flights = Vec::new();
        for (index, (step, swept, landing, marked)) in steps.into_iter().enumerate() {
            let mut step = step;
            if let Some(from) = swept {
                step.extend((from..from + 120).filter(|id| id % 7 != 0).map(|id| (id, None)));
            }
            let version = 41 + index as u64;
            for (&id, n) in &step {
                match n {
                    Some(n) => table.insert(id, *n),
                    None => table.remove(&id),
                };
            }
            if marked {
                node.marker(version, "a");
            } else {
                let states: Vec<(u64, Option<u64>)> = step.into_iter().collect();
                node.version(version, &[("a", &states)]);
            }
            for flight in node.flights() {
                let (rows, is_all) = read(flight.0.0 as usize - 1, &table);
                flights.push((flight, Version(version), rows, is_all));
            }
            // Some land now, others later; those that are out of date are asked for again.
            if landing > 0 {
                for (flight, version, rows, is_all) in std::mem::take(&mut flights) {
                    node.land_first(&flight, Place::At(version), &rows, is_all);
                }
            }
            for (index, watcher) in watchers.iter_mut().enumerate() {
                watcher.take_in();
                node.written(index as u64 + 1);
                watcher.take_in();
                let channel = &node.state.channels[&ChannelNumber(index as u64 + 1)];
                if channel.is_live() {
                    prop_assert_eq!(&watcher.rows, &expected(index, &table), "{} at {}", CHANNELS[index], version);
                }
            }
        }
    }
}

/// What a step costs with so many live channels `n=eq.N`, each with a client and ten rows: CPU time in microseconds for
/// each changed row, and for a tick.
fn cost_with(channels: u64) -> (f64, f64) {
    let mut node = Node::new();
    let mut clients: Vec<Inbox> = (0..channels)
        .map(|n| {
            let rows: Vec<(u64, u64)> = (0..10).map(|row| (n * 10 + row, n)).collect();
            node.client_of(n + 1, &format!("a?n=eq.{n}"), &rows, true)
        })
        .collect();
    node.effects.clear();
    let used = || {
        let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_THREAD).expect("usage");
        let (user, system) = (usage.user_time(), usage.system_time());
        (user.tv_sec() + system.tv_sec()) as f64 * 1e6 + (user.tv_usec() + system.tv_usec()) as f64
    };
    let (batches, versions) = (60, 50);
    let (mut version, mut stepping) = (40, 0.0);
    for batch in 0..batches {
        // A row enters some channel, and leaves it again.
        let states: Vec<(u64, Vec<String>)> = (0..versions)
            .map(|step| {
                let n = (batch * versions + step) / 2 * 7_919 % channels;
                (n, Node::states(&[(1_000_000, (step % 2 == 0).then_some(n))]))
            })
            .collect();
        let entries: Vec<_> =
            (version + 1..).zip(&states).map(|(at, (_, text))| Node::entry(at - 1, at, text.clone())).collect();
        let before = used();
        for entry in entries {
            version += 1;
            node.state.on_push(Push::Entry(feed("a"), entry), node.now);
            node.beat(EPOCH, version - 1, version, &["a"]);
        }
        stepping += used() - before;
        let told: usize = clients.iter_mut().map(|client| take(client).len()).sum();
        assert_eq!(told as u64, versions, "one delta for each changed row");
        for (n, _) in &states {
            node.written(n + 1);
        }
    }
    let before = used();
    for _ in 0..10 {
        node.state.on_tick(node.now);
    }
    (stepping / (batches * versions) as f64, (used() - before) / 10.0)
}

/// `cargo test --lib -- --ignored --nocapture ten_thousand`
#[test]
#[ignore = "a figure, which takes a while"]
fn ten_thousand_channels_cost_a_changed_row_what_one_costs() {
    let (one, tick_of_one) = cost_with(1);
    let (many, tick_of_many) = cost_with(10_000);
    println!("a changed row: {one:.1} µs with 1 channel, {many:.1} µs with 10,000, {:.2} times as much", many / one);
    println!("a tick: {tick_of_one:.1} µs with 1 channel, {tick_of_many:.1} µs with 10,000");
    assert!(many < 3.0 * one, "a step that touches one channel must not look at the others");
}
