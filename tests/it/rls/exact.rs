//! At every version that a client is told, its rows are what Postgres shows to its role and claims in that version's
//! snapshot: while rows, owners, teams, memberships and policies change, and clients come and go between two nodes.
//!
//! The oracle is the leader, as in `handoff`: before it closes a cut it looks at the table as every identity.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rowcast::cli::client::{Event, Handle};
use rowcast::hub::HubSettings;
use rowcast::identity::RlsIdentity;
use rowcast::version::Version;
use serde_json::json;
use sqlx::PgConnection;
use tokio::task::JoinHandle;

use crate::handoff::leader::{Leader, Oracle};
use crate::harness::content::Content;
use crate::harness::seat::{Inside, Seat, proven};
use crate::harness::within;
use crate::harness::world::{attempt, run};
use crate::rls::stage::{Stage, settings};

const EYES: [(&str, &str, &str); 4] =
    [("ann", "app", "ann"), ("bob", "app", "bob"), ("eve", "app", "eve"), ("boss", "staff", "boss")];
const VISITORS: u64 = 12;
const COMPARISONS: usize = 1_000;
const TIME: std::ops::Range<Duration> = Duration::from_secs(6)..Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn every_client_sees_what_postgres_shows_it_at_every_version() {
    let mut stage = Stage::set().await;
    stage
        .run(
            "insert into notes select i, 'eve', i % 5, 'more' from generate_series(25, 150) as i;
             select rowcast.publish('notes', policy => 'rls', bulk_rows => 40)",
        )
        .await;
    let mut leader = Leader::begin(&stage.world).await;
    leader.eyes = EYES
        .map(|(who, role, sub)| {
            (who, RlsIdentity { role: role.into(), claims: json!({ "role": role, "sub": sub }).to_string() })
        })
        .to_vec();
    // The first forgets its channels soon, and reads checkpoints that are old.
    let fickle = HubSettings {
        linger: Duration::from_millis(100),
        checkpoint_every: Duration::from_millis(500),
        ..HubSettings::default()
    };
    let follow = |hub: HubSettings| Inside::follow(&stage.world.postgres.url(), stage.shared_store(), settings(), hub);
    let nodes = Arc::new([follow(fickle), follow(HubSettings::default())]);

    let (stop, leaving) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let mut writing = Vec::new();
    for number in 0..4 {
        let connection = stage.world.connect().await;
        writing.push(tokio::spawn(write(connection, number, stop.clone())));
    }
    let compared = Arc::new(AtomicUsize::new(0));
    let mut visiting: Vec<JoinHandle<Tally>> = Vec::new();
    for number in 0..VISITORS {
        let truth = Truth { oracle: leader.oracle.clone(), compared: compared.clone() };
        visiting.push(tokio::spawn(visit(number, nodes.clone(), truth, leaving.clone())));
    }
    let began = Instant::now();
    while began.elapsed() < TIME.start || compared.load(Ordering::Relaxed) < COMPARISONS {
        assert!(began.elapsed() < TIME.end, "only {} comparisons", compared.load(Ordering::Relaxed));
        assert!(!visiting.iter().any(JoinHandle::is_finished), "a visitor has ended: see its panic");
        leader.turn().await;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    stop.store(true, Ordering::Relaxed);
    while !writing.iter().all(JoinHandle::is_finished) {
        leader.turn().await;
    }
    while leader.turn().await {}
    leaving.store(true, Ordering::Relaxed);
    let mut tally = Tally::default();
    for visitor in visiting {
        while !visitor.is_finished() {
            leader.turn().await;
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        let one = visitor.await.expect("a visitor without complaints");
        tally.comparisons += one.comparisons;
        tally.unknown += one.unknown;
        tally.resumed += one.resumed;
        for (why, count) in one.gone {
            *tally.gone.entry(why).or_default() += count;
        }
    }
    println!("{} cuts, {} with markers {:?}; {tally:?}", leader.cuts, leader.marked, leader.reasons);
    assert!(tally.comparisons > COMPARISONS / 2 && tally.resumed > 10, "{tally:?}");
    assert!(tally.gone.get("permission").is_some_and(|&count| count > 20), "{tally:?}");
    assert!(leader.reasons.contains_key("definition") && leader.cuts - leader.marked > 30, "{:?}", leader.reasons);
}

#[derive(Debug, Default)]
struct Tally {
    comparisons: usize,
    unknown: usize,
    resumed: usize,
    /// Rows that left, by what was said of it.
    gone: BTreeMap<String, usize>,
}

/// What clients compare with, and how often they all have.
struct Truth {
    oracle: Arc<Oracle>,
    compared: Arc<AtomicUsize>,
}

/// Comes and goes, and compares whatever it is told.
async fn visit(number: u64, nodes: Arc<[Inside; 2]>, truth: Truth, leaving: Arc<AtomicBool>) -> Tally {
    let mut chance = StdRng::seed_from_u64(7_000 + number);
    let mut tally = Tally::default();
    while !leaving.load(Ordering::Relaxed) {
        let (who, role, sub) = EYES[chance.random_range(0..EYES.len())];
        let identity = proven(json!({ "sub": sub, "role": role, "jti": number }));
        let node = &nodes[chance.random_range(0..2)];
        let (mut seat, handles) = Seat::take(node, identity, &["notes"]).await;
        let mut watched = Watched { who, handle: handles[0], content: None, compared: None };
        within("a subscription is complete", async {
            while watched.compared.is_none() {
                watched.next(&mut seat, &truth, &mut tally).await;
            }
        })
        .await;
        for _ in 0..chance.random_range(1..4) {
            let until = tokio::time::Instant::now() + Duration::from_millis(chance.random_range(20..700));
            while tokio::time::timeout_at(until, watched.next(&mut seat, &truth, &mut tally)).await.is_ok() {}
            seat.stand_up();
            tokio::time::sleep(Duration::from_millis(chance.random_range(0..300))).await;
            seat.sit_down(&nodes[chance.random_range(0..2)]).await;
        }
        assert_eq!((seat.seen.gaps, seat.seen.refused.len()), (0, 0), "{who}: {:?}", seat.seen);
        tally.resumed += seat.seen.resumed;
        for (_, why) in seat.gone() {
            *tally.gone.entry(why).or_default() += 1;
        }
        seat.stand_up();
    }
    tally
}

struct Watched {
    who: &'static str,
    handle: Handle,
    content: Option<Content>,
    compared: Option<Version>,
}

impl Watched {
    async fn next(&mut self, seat: &mut Seat, truth: &Truth, tally: &mut Tally) {
        let events = seat.next().await;
        let moved = events.iter().any(|event| matches!(event, Event::Snapshot { .. } | Event::Changed { .. }));
        let live = events.iter().any(|event| matches!(event, Event::Live(_)));
        if !seat.client.is_complete(self.handle) || !(moved || live) {
            return;
        }
        let Some(version) = seat.client.position(self.handle).map(|position| position.version) else { return };
        if moved || self.content.is_none() {
            self.content = Some(Content::of_client(&seat.client, self.handle));
        }
        self.compared = Some(version);
        truth.compared.fetch_add(1, Ordering::Relaxed);
        match truth.oracle.content(version, &format!("notes as {}", self.who)) {
            None => panic!("{} was told {version}, which never was", self.who),
            Some(None) => tally.unknown += 1,
            Some(content) if content == self.content => tally.comparisons += 1,
            Some(content) => panic!(
                "{} at {version}: is {content:?}, the client has {:?}; {:?}; {:?}",
                self.who,
                self.content,
                seat.seen,
                seat.frames.iter().rev().take(4).collect::<Vec<_>>()
            ),
        }
    }
}

async fn write(mut connection: PgConnection, number: u64, stop: Arc<AtomicBool>) {
    let connection = &mut connection;
    run(connection, "set deadlock_timeout = '10ms'; set lock_timeout = '300ms'; set synchronous_commit = off").await;
    let mut chance = StdRng::seed_from_u64(number);
    while !stop.load(Ordering::Relaxed) {
        let sql = match number {
            0 => rare(&mut chance),
            _ => transaction(&mut chance),
        };
        if attempt(connection, &sql).await.is_err() {
            run(connection, "rollback").await;
        }
        let pause = if number == 0 { 100..400 } else { 1..15 };
        tokio::time::sleep(Duration::from_millis(chance.random_range(pause))).await;
    }
}

fn transaction(chance: &mut StdRng) -> String {
    let mut sql = String::from("begin;");
    for _ in 0..chance.random_range(1..4) {
        let (id, other) = (chance.random_range(1..=150), chance.random_range(1..=150));
        let owner = ["ann", "bob", "eve"][chance.random_range(0..3)];
        let team = chance.random_range(0..5);
        sql += &match chance.random_range(0..8) {
            0 | 1 => format!("update notes set owner = '{owner}' where id = {id};"),
            2 => format!("update notes set team = {team} where id between {id} and {};", id + 3),
            3 => format!("update notes set body = body || 'x' where id = {id};"),
            4 => format!("delete from notes where id = {id};"),
            5 => format!(
                "insert into notes values ({id}, '{owner}', {team}, 'new') on conflict (id) do update set owner = 'eve';"
            ),
            6 => format!("update notes set id = {id} where id = {other};"),
            _ => format!("update notes set owner = '{owner}', team = null where id = {id};"),
        };
    }
    sql += if chance.random_bool(0.1) { "rollback" } else { "commit" };
    sql
}

/// What moves much, and what fires no trigger of the table.
fn rare(chance: &mut StdRng) -> String {
    let team = chance.random_range(0..5);
    let sub = ["ann", "bob", "eve"][chance.random_range(0..3)];
    let told = "select rowcast.log_marker(id) from rowcast.publications";
    match chance.random_range(0..6) {
        0 => "update notes set body = left(body, 10)".into(),
        1 => format!("begin; insert into members values ({team}, '{sub}'); {told}; commit"),
        2 => format!("begin; delete from members where team = {team}; {told}; commit"),
        3 => format!("alter policy own on notes using (owner = (select auth.sub()) and id % 5 <> {team})"),
        4 => "alter policy own on notes using (owner = (select auth.sub()))".into(),
        _ => format!("begin; update notes set owner = '{sub}' where id % 7 = {team}; commit"),
    }
}
