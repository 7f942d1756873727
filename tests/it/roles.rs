//! Least privilege: a node serves as a login role that owns nothing, and a table's owner publishes without owning the schema.

use std::sync::Arc;
use std::time::Duration;

use rowcast::config::{DatabaseUrl, RedisUrl};
use rowcast::identity::RlsSettings;
use rowcast::store::redis::{DEFAULT_PREFIX, RedisStore};
use rowcast::store::{Retention, Store, local::LocalStore};
use sqlx::{Connection, PgConnection};

use crate::harness::dash::Dash;
use crate::harness::node::Node;
use crate::harness::redis::PrivateRedis;
use crate::harness::seat::{Inside, Seat, proven};
use crate::harness::until;
use crate::harness::world::{World, attempt, run};

/// Tables of their own owner; a login role for the node that may nothing but what it is granted.
const SCHEMA: &str = "
    create role shop_owner login; grant rowcast_installer to shop_owner;
    create role node login; grant rowcast_server to node;
    create role app nologin; create role hidden nologin;
    create schema shop authorization shop_owner;
    grant usage on schema shop to rowcast_server, app;
    revoke create on schema public from public;
";
const TABLES: &str = "
    create table shop.orders (id int primary key, status text);
    create table shop.notes (id int primary key, owner text);
    insert into shop.orders select i, 'open' from generate_series(1, 20) as i;
    insert into shop.notes select i, case i % 2 when 0 then 'ann' else 'bob' end from generate_series(1, 20) as i;
    alter table shop.notes enable row level security;
    grant select on shop.notes to app;
    create policy own on shop.notes for select to app
        using (owner = current_setting('request.jwt.claims')::json ->> 'sub');
    grant select on shop.orders, shop.notes to rowcast_server;
    create policy rowcast_server on shop.notes for select to rowcast_server using (true);
    select rowcast.publish('shop.orders', policy => 'public');
    select rowcast.publish('shop.notes', policy => 'rls');
";

fn url_as(world: &World, role: &str) -> DatabaseUrl {
    let url = world.postgres.url();
    let (_, rest) = url.expose().split_once('@').expect("an address with a user");
    format!("postgres://{role}@{rest}").parse().expect("an address")
}

async fn connect_as(world: &World, role: &str) -> PgConnection {
    PgConnection::connect_with(&url_as(world, role).options()).await.expect("a connection")
}

async fn stage() -> (World, PgConnection) {
    let world = World::start(SCHEMA).await;
    let mut owner = connect_as(&world, "shop_owner").await;
    run(&mut owner, TABLES).await;
    (world, owner)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_serves_as_a_role_that_owns_nothing() {
    let (world, mut owner) = stage().await;
    let node = Node::start(&url_as(&world, "node"), Some(&world.redis.url())).await;
    node.ready().await;
    assert!(node.leads().await);
    let (mut dash, handles) = Dash::open(node.address, &["orders"]).await;
    dash.complete().await;
    run(&mut owner, "update shop.orders set status = 'paid' where id = 3; delete from shop.orders where id = 4").await;
    dash.until("a change", |dash| dash.table(handles[0]).len() == 19).await;
    run(&mut owner, "truncate shop.orders; insert into shop.orders values (7, 'again')").await;
    dash.until("a resync", |dash| dash.table(handles[0]).len() == 1).await;
    // A key column of another type: the capture function has to be written again, by the server.
    run(&mut owner, "alter table shop.orders alter column id type bigint").await;
    run(&mut owner, "insert into shop.orders values (8, 'by a renewed function')").await;
    dash.until("a change after it", |dash| dash.table(handles[0]).contains_key("[\"8\"]")).await;
    let mut observer = world.connect().await;
    until("the capture function is renewed", async || {
        let sql = "select count(*) from rowcast.describe() where not is_intact";
        let broken: i64 = sqlx::query_scalar(sql).fetch_one(&mut observer).await.expect("a count");
        (broken == 0).then_some(())
    })
    .await;
    assert_eq!((dash.seen.resets, dash.seen.gaps), (0, 0), "{:?}", dash.seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn row_security_is_followed_by_a_role_that_it_binds() {
    let (world, mut owner) = stage().await;
    run(&mut world.connect().await, "grant app to node").await;
    let rls = RlsSettings { roles: vec!["app".into(), "hidden".into()], ..RlsSettings::default() };
    let mut node = Inside::start(&url_as(&world, "node"), Arc::new(LocalStore::new(Retention::default())), rls);
    node.leads().await;
    let identity = |role: &str| proven(serde_json::json!({ "sub": "ann", "role": role }));
    let (mut ann, at) = Seat::take(&node, identity("app"), &["notes"]).await;
    ann.complete().await;
    assert_eq!(ann.table(at[0]).len(), 10);
    run(
        &mut owner,
        "update shop.notes set owner = 'ann' where id = 1; update shop.notes set owner = 'bob' where id = 2",
    )
    .await;
    ann.until("a move", |seat| {
        let keys = seat.keys(at[0]);
        keys.contains(&"[1]".to_owned()) && !keys.contains(&"[2]".to_owned())
    })
    .await;
    assert!(ann.gone().contains(&("[2]".into(), "permission".into())), "{:?}", ann.gone());
    // A role that was not granted to the server's.
    let (mut stranger, _) = Seat::take(&node, identity("hidden"), &["notes"]).await;
    stranger.until("a refusal", |seat| seat.seen.refused == ["unavailable"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_group_roles_may_what_they_need_and_no_more() {
    let (world, _owner) = stage().await;
    let mut node = connect_as(&world, "node").await;
    for refused in [
        "insert into rowcast.publications (name, relation, policy, key, bulk_rows, refresh_ms, generation, capture)
         values ('x', 'shop.orders', 'public', '{id}', 1, 1, 0, 0)",
        "update rowcast.publications set policy = 'public'",
        "insert into rowcast.changes_0 (publication) values (1)",
        "truncate rowcast.changes_0",
        "delete from rowcast.state",
        "select rowcast.publish('shop.orders', policy => 'public')",
        "update shop.orders set status = 'x'",
        "create table rowcast.mine ()",
        "select rowcast.write_capture_function(1, false)",
        "select rowcast.become('app', '{}')",
        "select rowcast.become('postgres', '{}')",
    ] {
        assert!(attempt(&mut node, refused).await.is_err(), "{refused}");
    }
    let mut installer = connect_as(&world, "shop_owner").await;
    run(
        &mut installer,
        "select rowcast.unpublish('orders'); select rowcast.publish('shop.orders', policy => 'public')",
    )
    .await;
    for refused in [
        "select rowcast.publish('pg_class', policy => 'public')",
        "select rowcast.renew_capture()",
        "drop schema rowcast cascade",
    ] {
        assert!(attempt(&mut installer, refused).await.is_err(), "{refused}");
    }
    // A writer keeps writing when the publisher's privileges go.
    let mut admin = world.connect().await;
    run(&mut admin, "revoke rowcast_installer from shop_owner").await;
    run(&mut installer, "insert into shop.orders values (100, 'still')").await;
    run(&mut admin, "create role looker login; grant rowcast_auditor to looker").await;
    let mut looker = connect_as(&world, "looker").await;
    run(&mut looker, "select * from rowcast.publications").await;
    for refused in ["select * from rowcast.changes_0", "select rowcast.show_life()", "select * from shop.orders"] {
        assert!(attempt(&mut looker, refused).await.is_err(), "{refused}");
    }
}

/// The line of docs/security.md, as it stands there.
#[tokio::test(flavor = "multi_thread")]
async fn redis_may_be_closed_to_all_but_what_is_documented() {
    let (world, mut owner) = stage().await;
    let document =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/security.md")).expect("a document");
    let line = document.lines().find(|line| line.starts_with("user rowcast on ")).expect("an ACL line");
    let rules = line.trim_start_matches("user rowcast ").replace(">…", ">secret");
    let redis = tokio::task::spawn_blocking(PrivateRedis::start).await.expect("a Redis");
    let mut words = vec!["ACL", "SETUSER", "rowcast"];
    words.extend(rules.split_whitespace());
    redis.command(&words);
    let address: RedisUrl = redis.address().replace("redis://", "redis://rowcast:secret@").parse().expect("an address");
    let node = Node::start(&url_as(&world, "node"), Some(&address)).await;
    node.ready().await;
    let (mut dash, handles) = Dash::open(node.address, &["orders"]).await;
    dash.complete().await;
    run(&mut owner, "insert into shop.orders values (30, 'new')").await;
    dash.until("a change", |dash| dash.table(handles[0]).len() == 21).await;
    // What only row security needs.
    let store = RedisStore::new(address.expose(), DEFAULT_PREFIX, Retention::default()).expect("a store");
    store.register_identities(&["a".to_owned()], Duration::from_secs(9)).await.expect("an answer");
    assert_eq!(store.live_identities("").await.expect("an answer").expect("a list").identities, ["a"]);
    let log = redis.command(&["ACL", "LOG"]);
    assert!(matches!(&log, redis::Value::Array(denied) if denied.is_empty()), "denied: {log:?}");
}

#[tokio::test]
async fn who_publishes_hears_what_the_server_may_not_read() {
    let world = World::start(SCHEMA).await;
    let mut owner = connect_as(&world, "shop_owner").await;
    let tables = TABLES.replace("grant select on shop.orders, shop.notes to rowcast_server;", "");
    run(
        &mut owner,
        &tables.replace("create policy rowcast_server on shop.notes for select to rowcast_server using (true);", ""),
    )
    .await;
    let log = world.postgres.log_tail();
    for warning in ["rowcast_server may not read shop.notes", "row security may hide rows of shop.notes"] {
        assert!(log.contains(warning), "{log}");
    }
}
