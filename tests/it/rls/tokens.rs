//! Row security from end to end: the real binary, tokens that name a role and claims, rows over websockets and HTTP.
//!
//! Every row says in its `body` whose it is, so that a foreign one is known without asking anybody.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rowcast::cli::client::Event;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgConnection};
use tokio::sync::watch;

use crate::edge::wire::Wire;
use crate::harness::dash::{Dash, Table};
use crate::harness::node::Node;
use crate::harness::tokens::{WITH_SECRET, token};
use crate::harness::world::{World, attempt, run};
use crate::harness::{until, within};

const ENVIRONMENT: [(&str, &str); 3] =
    [WITH_SECRET, ("ROWCAST_RLS_ROLES", "app"), ("ROWCAST_RLS_CLAIMS", "sub,role,tenant")];

/// Notes by tenant, and tasks by membership.
const SCHEMA: &str = "
    create role app nologin;
    create table notes (id int primary key, tenant text not null, n int not null default 0, body text not null);
    insert into notes (id, tenant, body) select i, 't' || i % 4, 'of t' || i % 4 from generate_series(1, 200) as i;
    alter table notes enable row level security;
    create policy seen on notes for select to app
        using (tenant = current_setting('request.jwt.claims', true)::json ->> 'tenant');
    create table members (project int, sub text, primary key (project, sub));
    create table tasks (id int primary key, project int not null);
    insert into tasks select i, i % 5 from generate_series(0, 49) as i;
    alter table tasks enable row level security;
    create policy seen on tasks for select to app using (exists (
        select from members as m
        where m.project = tasks.project and m.sub = current_setting('request.jwt.claims', true)::json ->> 'sub'));
    grant select on notes, members, tasks to app;
    select rowcast.publish('notes', name => 'secured', policy => 'rls');
    select rowcast.publish('tasks', policy => 'rls', depends_on => '{members}');
";

fn of(sub: &str, tenant: &str) -> String {
    token(sub, 600, &json!({ "role": "app", "tenant": tenant, "nonce": rand::random::<u32>() }))
}

async fn world_and_node() -> (World, Node) {
    let world = World::start(SCHEMA).await;
    let node = world.node_with(&ENVIRONMENT).await;
    node.ready().await;
    (world, node)
}

/// The notes as Postgres shows them to a tenant.
async fn truth(connection: &mut PgConnection, tenant: &str) -> Table {
    let claims = json!({ "role": "app", "tenant": tenant });
    run(connection, &format!("begin; set local role app; set local request.jwt.claims = '{claims}'")).await;
    let sql = "select json_build_array(id)::text, to_jsonb(notes)::text from notes";
    let rows: Vec<(String, String)> =
        sqlx::query_as(AssertSqlSafe(sql)).persistent(false).fetch_all(&mut *connection).await.expect("rows");
    run(connection, "rollback").await;
    let canonical = |row: &str| serde_json::from_str::<Value>(row).expect("JSON").to_string();
    rows.into_iter().map(|(key, row)| (key, canonical(&row))).collect()
}

/// Moves notes from tenant to tenant, until it is told to stop.
async fn write(mut connection: PgConnection, number: u64, stop: Arc<AtomicBool>) {
    let mut chance = StdRng::seed_from_u64(number);
    while !stop.load(Ordering::Relaxed) {
        let (first, tenant) = (chance.random_range(1..=200), chance.random_range(0..4));
        let sql = match chance.random_range(0..3) {
            0 => format!("update notes set n = n + 1 where id between {first} and {first} + 3"),
            1 => format!("update notes set tenant = 't{tenant}', body = 'of t{tenant}' where id = {first}"),
            _ => format!(
                "update notes set tenant = 't{tenant}', body = 'of t{tenant}' where id between {first} and {first} + 5"
            ),
        };
        // Two writers may meet at a row.
        let _ = attempt(&mut connection, &sql).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_as_another_tenant_takes_the_old_ones_rows_away_for_good() {
    let (world, node) = world_and_node().await;
    let stop = Arc::new(AtomicBool::new(false));
    let writing = tokio::spawn(write(world.connect().await, 1, stop.clone()));
    let mut wire = Wire::greeted(node.address).await;
    let say_token = |tenant: &str| json!({ "op": "auth", "token": of("ann", tenant) }).to_string();
    wire.say(&say_token("t0")).await;
    assert_eq!(wire.answer().await["op"], "authenticated");
    let (_, rows) = wire.subscribe(1, "secured").await;
    assert!(!rows.is_empty() && rows.iter().all(|row| row["body"] == "of t0"), "{rows:?}");

    for (old, new) in [("t0", "t1"), ("t1", "t2"), ("t2", "t0")] {
        wire.say(&say_token(new)).await;
        while wire.answer().await["op"] != "authenticated" {}
        let (mut moved, mut shown) = (false, 0);
        while !moved || shown < 80 {
            let frame = wire.answer().await;
            assert_ne!(frame["op"], "error", "{frame}");
            assert!(!frame.to_string().contains(&format!("of {old}")), "{old} after the refresh as {new}: {frame}");
            moved |= frame["op"] == "snapshot" && frame["more"] != true;
            for row in frame["rows"].as_array().into_iter().flatten() {
                // A row that is held may say no more than what changed.
                assert!(row["body"].is_null() || row["body"] == format!("of {new}"), "{frame}");
                shown += 1;
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    within("the writer stops", writing).await.expect("a writer");
}

/// Status, entity tag and body of a read; with a tag, of one that may be spared.
async fn read(node: &Node, token: &str, known: Option<&str>) -> (u16, String, Value) {
    let mut request = reqwest::Client::new().get(node.url("/v1/rows/secured")).bearer_auth(token);
    if let Some(tag) = known {
        request = request.header("if-none-match", tag);
    }
    let answer = within("an answer", request.send()).await.expect("an answer");
    let status = answer.status().as_u16();
    let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
    let tag = header("etag").unwrap_or_default();
    if status == 200 || status == 304 {
        assert_eq!(header("cache-control").as_deref(), Some("private, no-cache"));
        assert!(header("vary").is_some_and(|vary| vary.contains("Authorization")));
    }
    let body = within("a body", answer.text()).await.expect("a body");
    (status, tag, serde_json::from_str(&body).unwrap_or_default())
}

/// The rows of a document, as [`truth`] has them.
fn table(document: &Value) -> Table {
    let rows = document["rows"].as_array().expect("rows").iter();
    rows.map(|row| (json!([row["id"]]).to_string(), row.to_string())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_is_the_query_as_the_role_and_an_entity_tag_is_good_for_its_own_identity_only() {
    let (world, node) = world_and_node().await;
    let mut connection = world.connect().await;
    let (ann, bob) = (of("ann", "t0"), of("bob", "t1"));
    let (status, ann_tag, document) = read(&node, &ann, None).await;
    assert_eq!((status, table(&document)), (200, truth(&mut connection, "t0").await));
    let (status, bob_tag, document) = read(&node, &bob, None).await;
    assert_eq!((status, table(&document)), (200, truth(&mut connection, "t1").await));
    assert_eq!(table(&document).len(), 50);

    // Another token with the same claims is the same identity; other claims, of whomever, are not.
    for same in [ann.clone(), of("ann", "t0")] {
        let (status, tag, document) = read(&node, &same, Some(&ann_tag)).await;
        assert_eq!((status, tag, document), (304, ann_tag.clone(), Value::Null));
    }
    for (other, tenant, stolen) in [
        (&bob, "t1", &ann_tag),
        (&ann, "t0", &bob_tag),
        (&of("ann", "t1"), "t1", &ann_tag),
        (&of("eve", "t0"), "t0", &ann_tag),
    ] {
        for known in [stolen.clone(), format!("{ann_tag}x, {stolen}"), "*".to_owned()] {
            let (status, _, document) = read(&node, other, Some(&known)).await;
            assert_eq!((status, table(&document)), (200, truth(&mut connection, tenant).await), "{known}");
        }
    }
    let stranger = token("ann", 600, &json!({ "role": "postgres", "tenant": "t0" }));
    let nobody = token("ann", 600, &json!({ "tenant": "t0" }));
    for refused in [&stranger, &nobody] {
        assert_eq!(read(&node, refused, Some(&ann_tag)).await.0, 403);
    }

    // What changes for one says nothing to the other.
    run(&mut connection, "update notes set n = 7 where tenant = 't1'").await;
    let expected = truth(&mut connection, "t1").await;
    until("bob's change", async || {
        let (status, _, document) = read(&node, &bob, Some(&bob_tag)).await;
        (status == 200 && table(&document) == expected).then_some(())
    })
    .await;
    assert_eq!(read(&node, &ann, Some(&ann_tag)).await.0, 304);
    // A policy that changes does, though no row has.
    run(&mut connection, "create policy odd on notes as restrictive for select to app using (id % 8 <> 0)").await;
    let expected = truth(&mut connection, "t0").await;
    assert_eq!(expected.len(), 25);
    until("the policy", async || {
        let (status, _, document) = read(&node, &ann, Some(&ann_tag)).await;
        (status == 200 && table(&document) == expected).then_some(())
    })
    .await;
}

/// A client that stays with `secured`, on whichever node there is, until it has what it is told to have; it looks at its
/// rows after every frame. How often it looked, and how often it came back.
async fn stay(nodes: [SocketAddr; 2], tenant: String, goal: Goal, looks: Arc<AtomicUsize>) -> usize {
    let mut dash = Dash::default();
    dash.client.authenticate(of("somebody", &tenant).parse().expect("a token"));
    let handle = dash.client.subscribe("secured");
    let body = format!("\"of {tenant}\"");
    let mut connections = 0;
    loop {
        let reached = |dash: &Dash| {
            let goal = goal.borrow();
            goal.as_ref().is_some_and(|goal| dash.client.is_complete(handle) && dash.table(handle) == goal[&tenant])
        };
        if reached(&dash) {
            return connections;
        }
        if !dash.is_connected() {
            let node = nodes[connections % 2];
            connections += usize::from(dash.try_connect(node).await);
            if !dash.is_connected() {
                let other = nodes[(connections + 1) % 2];
                connections += usize::from(dash.try_connect(other).await);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            continue;
        }
        let Ok(events) = tokio::time::timeout(Duration::from_millis(100), dash.next()).await else { continue };
        for event in events.iter().flatten() {
            if let Event::Refused { handle, error } = event {
                assert!(error.retry, "refused for good: {error:?}");
                dash.client.retry(*handle);
                dash.send_outgoing().await;
            }
        }
        for (key, row) in dash.client.rows(handle).into_iter().flatten() {
            assert_eq!(row.value("body"), Some(body.as_str()), "{} is shown to {tenant}", key.as_str());
            looks.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What each tenant has to have in the end, once that is known.
type Goal = watch::Receiver<Option<HashMap<String, Table>>>;

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_is_killed_under_load_nobody_sees_a_foreign_row_and_all_converge() {
    let (world, mut leader) = world_and_node().await;
    until("the first leads", async || leader.leads().await.then_some(())).await;
    let other = world.node_with(&ENVIRONMENT).await;
    other.ready().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writing = tokio::task::JoinSet::new();
    for number in 0..3 {
        writing.spawn(write(world.connect().await, number, stop.clone()));
    }
    let (say_goal, goal) = watch::channel(None);
    let looks = Arc::new(AtomicUsize::new(0));
    let mut staying = tokio::task::JoinSet::new();
    for number in 0..12 {
        let nodes = if number % 3 == 0 { [other.address, leader.address] } else { [leader.address, other.address] };
        staying.spawn(stay(nodes, format!("t{}", number % 4), goal.clone(), looks.clone()));
    }
    let mut looked = async |least: usize| {
        until("rows are looked at", async || {
            assert!(staying.try_join_next().is_none(), "a client has ended: see its panic");
            (looks.load(Ordering::Relaxed) >= least).then_some(())
        })
        .await;
    };
    looked(10_000).await;
    let before = looks.load(Ordering::Relaxed);
    leader.kill().await;
    let killed = Instant::now();
    until("the other leads", async || other.leads().await.then_some(())).await;
    let takeover = killed.elapsed();
    looked(before + 20_000).await;

    stop.store(true, Ordering::Relaxed);
    writing.join_all().await;
    let mut connection = world.connect().await;
    let mut tables = HashMap::new();
    for tenant in ["t0", "t1", "t2", "t3"] {
        tables.insert(tenant.to_owned(), truth(&mut connection, tenant).await);
    }
    say_goal.send_replace(Some(tables));
    let ended = Instant::now();
    let mut connections = 0;
    while let Some(stayed) = within("everybody converges", staying.join_next()).await {
        connections += stayed.expect("a client without complaints");
    }
    println!(
        "the other leads after {takeover:?}; all equal {:?} after the last write; {} rows looked at, {connections} connections",
        ended.elapsed(),
        looks.load(Ordering::Relaxed)
    );
    assert!(connections >= 20, "who was at the leader came back: {connections}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_membership_of_a_table_that_is_depended_on_moves_rows_within_a_second() {
    let (world, node) = world_and_node().await;
    let mut connection = world.connect().await;
    let mut wire = Wire::greeted(node.address).await;
    wire.say(&json!({ "op": "auth", "token": of("ann", "t0") }).to_string()).await;
    assert_eq!(wire.answer().await["op"], "authenticated");
    assert_eq!(wire.subscribe(1, "tasks").await.1, Vec::<Value>::new());

    let mut took = Vec::new();
    for project in [1, 2, 3, 1] {
        // Somebody else's are nothing to her: the next frame is about her own.
        run(&mut connection, "insert into members values (0, 'bob') on conflict do nothing").await;
        let keys: Vec<u64> = (0..50).filter(|id| id % 5 == project).collect();
        let began = Instant::now();
        run(&mut connection, &format!("insert into members values ({project}, 'ann')")).await;
        let frame = wire.answer().await;
        took.push(began.elapsed());
        let mut entered: Vec<u64> =
            frame["rows"].as_array().expect("rows").iter().map(|row| row["id"].as_u64().expect("an id")).collect();
        entered.sort_unstable();
        assert_eq!((&entered, frame.get("gone")), (&keys, None), "{frame}");

        let began = Instant::now();
        run(&mut connection, &format!("delete from members where project = {project} and sub = 'ann'")).await;
        let frame = wire.answer().await;
        took.push(began.elapsed());
        let gone = frame["gone"].as_array().expect("keys");
        let mut left: Vec<u64> = gone.iter().map(|gone| gone["key"][0].as_u64().expect("an id")).collect();
        left.sort_unstable();
        assert_eq!((&left, frame.get("rows")), (&keys, None), "{frame}");
        // After a marker all rows are read again: nothing tells why one is not among them.
        assert!(gone.iter().all(|gone| gone.get("why").is_none()), "{frame}");
    }
    took.sort_unstable();
    println!("rows enter and leave by membership: {took:?}");
    // The slowest may say more of the machine.
    assert!(took[took.len() / 2] < Duration::from_secs(1), "{took:?}");
}
