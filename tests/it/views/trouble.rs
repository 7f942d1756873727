//! Views that cannot be shown say so, and their writers notice nothing; what is slow holds up nobody else.

use std::time::{Duration, Instant};

use super::SHOP;
use crate::harness::dash::Dash;
use crate::harness::within;
use crate::harness::world::{World, attempt, run};

/// Waits until a refused subscription has its rows, asking again as a client does.
async fn reopened(dash: &mut Dash, handle: rowcast::cli::client::Handle) {
    within("the subscription has rows again", async {
        dash.client.retry(handle);
        dash.send_outgoing().await;
        while !dash.client.is_complete(handle) {
            dash.next().await.expect("a connection");
            if !std::mem::take(&mut dash.seen.refused).is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
                dash.client.retry(handle);
                dash.send_outgoing().await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn rows_without_a_key_of_their_own_close_the_view_until_they_are_gone() {
    let world = World::start(
        "create table a (id int, v int, w int not null); insert into a values (1, 1, 1), (2, 2, 2);
         create table b (id int primary key); create view seen as select id, v, 10 / w as w from a;
         select rowcast.publish('seen', 'public', key => '{id}', refresh_ms => 20), rowcast.publish('b', 'public')",
    )
    .await;
    let node = world.node_with(&[("ROWCAST_CHANNEL_ROWS_MAX", "100")]).await;
    let mut connection = world.connect().await;
    let (mut dash, handles) = Dash::open(node.address, &["seen", "b"]).await;
    dash.complete().await;
    for (breaks, mends, code) in [
        ("insert into a values (2, 5, 1)", "delete from a where v = 5", "unavailable"),
        ("insert into a values (null, 6, 1)", "delete from a where id is null", "unavailable"),
        ("update a set w = 0 where id = 1", "update a set w = 1", "unavailable"),
        ("insert into a select i, i, 1 from generate_series(10, 120) i", "delete from a where id > 9", "too_many_rows"),
    ] {
        run(&mut connection, breaks).await;
        dash.until(breaks, |dash| dash.seen.refused == [code]).await;
        dash.client.retry(handles[0]);
        dash.send_outgoing().await;
        dash.until("and again", |dash| dash.seen.refused == [code, code]).await;
        run(&mut connection, &format!("insert into b select count(*) from b; {mends}")).await;
        dash.seen.refused.clear();
        reopened(&mut dash, handles[0]).await;
        assert_eq!(dash.table(handles[0]).len(), 2, "after {mends}");
    }
    dash.until("the table", |dash| dash.table(handles[1]).len() == 4).await;
    assert_eq!((dash.seen.resets, dash.seen.gaps), (0, 0));
}

#[tokio::test]
async fn what_a_view_may_not_be_made_of_is_refused() {
    let world = World::start(
        "create function roll() returns int language sql volatile as 'select 1';
         create function sets_of(int) returns setof int language sql immutable as 'select $1';
         create function twice(int) returns int language sql immutable as 'select 2 * $1';
         create function lower_of(int, int) returns int language plpgsql stable as 'begin return least($1, $2); end';
         create aggregate least_of (int) (sfunc = lower_of, stype = int);
         create function is_near(int, int) returns bool language plpgsql stable as 'begin return true; end';
         create operator ~~~ (leftarg = int, rightarg = int, function = is_near);
         create extension file_fdw; create server s foreign data wrapper file_fdw;
         create foreign table far (id int) server s options (filename '/dev/null'); create sequence numbers;
         create table a (id int primary key);
         create view rolls as select id, roll() from a; create view sets as select sets_of(id) as id from a;
         create view fine as select twice(id) as id from a where twice(id) < 9;
         create view aggregated as select 1 as id, least_of(id) from a; create view near as select id from a where id ~~~ 1;
         create view foreign_rows as select id from far; create view numbered as select last_value as id from numbers;
         create view system_rows as select oid::int as id from pg_class;
         create view under as select id from sets",
    )
    .await;
    let mut connection = world.connect().await;
    run(&mut connection, "create temporary view passing as select 1 as id").await;
    for (view, reason) in [
        ("rolls", "calls public.roll()"),
        ("sets", "calls public.sets_of(integer)"),
        ("under", "calls public.sets_of(integer)"),
        ("aggregated", "calls public.lower_of(integer,integer)"),
        ("near", "calls public.is_near(integer,integer)"),
        ("foreign_rows", "depends on public.far"),
        ("numbered", "depends on public.numbers"),
        ("system_rows", "depends on pg_class"),
        ("passing", "is temporary"),
        ("pg_stat_activity", "is a system view"),
    ] {
        let publish = format!("select rowcast.publish('{view}', 'public', key => '{{id}}')");
        let message = attempt(&mut connection, &publish).await.expect_err(view).to_string();
        assert!(message.contains(reason), "{view}: {message}");
    }
    for (call, reason) in [
        ("'fine', 'rls', key => '{id}'", "row security"),
        ("'fine', 'public'", "needs a key"),
        ("'fine', 'public', key => '{nope}'", "has no column"),
        ("'fine', 'nope=eq.1', key => '{id}'", "filters by"),
        ("'a', 'public', depends_on => '{pg_class}'", "changes cannot be seen"),
        ("'a', 'public', depends_on => '{far}'", "changes cannot be seen"),
    ] {
        let message = attempt(&mut connection, &format!("select rowcast.publish({call})")).await.expect_err(call);
        assert!(message.to_string().contains(reason), "{call}: {message}");
    }
    run(
        &mut connection,
        "select rowcast.publish('fine', 'public', key => '{id}'),
                rowcast.publish('rolls', 'public', key => '{id}', depends_on => '{}')",
    )
    .await;
}

#[tokio::test]
async fn publishing_a_view_waits_a_second_for_who_writes_under_it() {
    let world = World::start("create table a (id int primary key); create view v as select id from a").await;
    let (mut writer, mut publisher) = (world.connect().await, world.connect().await);
    run(&mut writer, "begin; insert into a values (1)").await;
    let publish = "select rowcast.publish('v', 'public', key => '{id}')";
    let message = attempt(&mut publisher, publish).await.expect_err("a lock").to_string();
    assert!(message.contains("could not be locked within a second"), "{message}");
    run(&mut writer, "commit").await;
    run(&mut publisher, publish).await;
}

#[tokio::test]
async fn a_slow_view_holds_up_no_table() {
    let world = World::start(&format!(
        "{SHOP} create view slow as select region, count(*) as n from orders, pg_sleep(0.3) group by region;
         create view endless as select region, count(*) as n from orders, pg_sleep(5) group by region;
         select rowcast.publish('slow', 'public', key => '{{region}}', refresh_ms => 10)"
    ))
    .await;
    let node = world.node().await;
    let mut connection = world.connect().await;
    let (mut dash, orders) = Dash::open(node.address, &["orders"]).await;
    let (mut slow, view) = Dash::open(node.address, &["slow"]).await;
    dash.complete().await;
    slow.complete().await;
    let mut worst = Duration::ZERO;
    let mut delays = Duration::ZERO;
    for id in 0..40 {
        let written = Instant::now();
        run(&mut connection, &format!("insert into orders values ({}, 'north', 1)", 10_000 + id)).await;
        dash.until("the order", |dash| dash.table(orders[0]).contains_key(&format!("[{}]", 10_000 + id))).await;
        worst = worst.max(written.elapsed());
        delays += written.elapsed();
    }
    println!("40 orders beside a view of 300 ms took {delays:?}, the slowest {worst:?}");
    assert!(delays < Duration::from_secs(6) && worst < Duration::from_secs(2), "{worst:?}");
    slow.until("the slow view too", |dash| dash.table(view[0])["[\"north\"]"].contains("\"50\"")).await;

    run(&mut connection, "select rowcast.publish('endless', 'public', key => '{region}')").await;
    let (mut never, _) = Dash::open(node.address, &["endless"]).await;
    never.until("it is too slow", |dash| dash.seen.refused == ["unavailable"]).await;
    run(&mut connection, "insert into orders values (20000, 'north', 1)").await;
    dash.until("the order", |dash| dash.table(orders[0]).contains_key("[20000]")).await;
}
