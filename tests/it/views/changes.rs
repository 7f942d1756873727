//! What changes without a write to a table under the view: its definition, what it is made of, a REFRESH.

use super::{SHOP, SUMS, truth, watch};
use crate::harness::dash::Dash;
use crate::harness::node::Node;
use crate::harness::world::{World, attempt, run};
use crate::harness::{until, within};

#[tokio::test]
async fn both_kinds_of_refresh_are_seen() {
    let world = World::start(
        "create table a (id int primary key, v int);
         insert into a select i, i from generate_series(1, 5) i;
         create materialized view kept as select id, v from a; create unique index on kept (id);
         create view above as select v % 2 as odd, count(*)::int as n from kept group by 1;
         select rowcast.publish('kept', 'public', key => '{id}'), rowcast.publish('above', 'public', key => '{odd}')",
    )
    .await;
    let node = world.node().await;
    let mut connection = world.connect().await;
    let (mut dash, handles) = Dash::open(node.address, &["kept", "above"]).await;
    dash.complete().await;
    for change in [
        "insert into a values (6, 6); refresh materialized view kept",
        "insert into a values (7, 7); refresh materialized view concurrently kept",
        "delete from a where id < 3; refresh materialized view concurrently kept",
        "update a set v = v + 1; begin; refresh materialized view kept; insert into a values (8, 8); commit",
    ] {
        run(&mut connection, change).await;
        let expected = [
            truth(&mut connection, "select * from kept", "id").await,
            truth(&mut connection, "select * from above", "odd").await,
        ];
        dash.until(change, |dash| {
            handles.iter().zip(&expected).all(|(handle, expected)| dash.table(*handle) == *expected)
        })
        .await;
    }
    assert_eq!((dash.seen.resets, dash.seen.gaps), (0, 0));
}

#[tokio::test]
async fn a_view_that_is_defined_anew_is_watched_anew() {
    let world = World::start(SHOP).await;
    let node = world.node().await;
    let mut connection = world.connect().await;
    let (mut dash, handles) = Dash::open(node.address, &["sums", "orders"]).await;
    let handles: [_; 2] = handles.try_into().expect("two");
    dash.complete().await;
    for change in [
        // The same columns, other rows; then made of another table, which is watched from now on.
        "create or replace view sums as select region, count(*) as orders, sum(total) as total from orders
         where id < 20 group by region",
        "create table late (region text, total int); insert into late values ('north', 3);
         create or replace view sums as select region, count(*) as orders, sum(total) as total
         from (select region, total from orders union all select region, total from late) as u group by region",
        "insert into late values ('moon', 1)",
        "update late set total = 5; delete from late where region = 'north'",
        // What is under it is rewritten, renamed, split.
        "alter table orders add column t float default random()",
        "alter table late rename to later; insert into later values ('mars', 2)",
        // Other columns: the client hears of them.
        "drop view bosses, sums; create view sums as select region, 1::bigint as orders, sum(total) as total from orders
         group by region; select rowcast.unpublish('sums'), rowcast.publish('sums', 'public', key => '{region}')",
        "insert into orders values (1000, 'new', 1)",
    ] {
        if let Err(error) = attempt(&mut connection, change).await {
            // The name was free already, as the relation is gone.
            let change = change.replace("rowcast.unpublish('sums'), ", "");
            assert!(error.to_string().contains("no publication"), "{error}");
            attempt(&mut connection, "rollback").await.expect("a connection");
            run(&mut connection, &change).await;
        }
        let expected = truth(&mut connection, SUMS, "region").await;
        if dash.client.rows(handles[0]).is_none() || !dash.seen.refused.is_empty() {
            dash.seen.refused.clear();
            dash.client.retry(handles[0]);
            dash.send_outgoing().await;
        }
        within(change, async {
            while dash.table(handles[0]) != expected {
                dash.next().await.expect("a connection");
                if !std::mem::take(&mut dash.seen.refused).is_empty() {
                    dash.client.retry(handles[0]);
                    dash.send_outgoing().await;
                }
            }
        })
        .await;
    }
    let watched: Vec<String> = sqlx::query_scalar(
        "select distinct tgrelid::regclass::text from pg_trigger where tgfoid = 'rowcast.watch()'::regprocedure order by 1",
    )
    .fetch_all(&mut connection)
    .await
    .expect("triggers");
    assert_eq!(watched, ["orders"], "what nothing depends on is watched no longer");
    assert_eq!(dash.seen.gaps, 0);
}

#[tokio::test]
async fn a_dropped_view_ends_and_takes_its_watches_along() {
    let world = World::start(SHOP).await;
    let node = world.node().await;
    let mut connection = world.connect().await;
    let (mut dash, _handles) = Dash::open(node.address, &["bosses", "orders"]).await;
    dash.complete().await;
    run(&mut connection, "drop view bosses; insert into regions values ('east', 'Eve')").await;
    dash.until("the subscription ends", |dash| dash.seen.refused == ["unknown_publication"]).await;
    until("nothing watches regions", async || {
        let count: i64 = sqlx::query_scalar("select count(*) from pg_trigger where tgrelid = 'regions'::regclass")
            .fetch_one(&mut connection)
            .await
            .expect("a count");
        if count > 0 {
            run(&mut connection, "update regions set boss = boss || '.'").await;
        }
        (count == 0).then_some(())
    })
    .await;
    run(&mut connection, "drop schema rowcast cascade; insert into orders values (500, 'north', 1)").await;
}

#[tokio::test]
async fn depends_on_names_what_a_function_reads_and_what_a_table_depends_on() {
    let world = World::start(
        "create table rates (name text primary key, rate int not null);
         insert into rates values ('vat', 20);
         create function vat() returns int language sql stable as $$ select rate from public.rates where name = 'vat' $$;
         create table a (id int primary key, net int);
         insert into a values (1, 100);
         create view gross as select id, net + vat() as gross from a;
         select rowcast.publish('a', 'public', depends_on => '{rates}')",
    )
    .await;
    let mut connection = world.connect().await;
    let refused = attempt(&mut connection, "select rowcast.publish('gross', 'public', key => '{id}')").await;
    let message = refused.expect_err("a function that reads who knows what").to_string();
    assert!(message.contains("calls public.vat()"), "{message}");
    run(&mut connection, "select rowcast.publish('gross', 'public', key => '{id}', depends_on => '{rates}')").await;
    // A single node, with the store in its process.
    let node = Node::start(&world.postgres.url(), None).await;
    let (mut dash, handles) = Dash::open(node.address, &["gross", "a"]).await;
    dash.complete().await;
    let resyncs = node.metric("rowcast_resyncs_total").await;
    run(&mut connection, "update rates set rate = 25").await;
    dash.until("another rate", |dash| dash.table(handles[0])["[1]"].contains("125")).await;
    until("the table is looked at again, as its policy may", async || {
        (node.metric("rowcast_resyncs_total").await > resyncs).then_some(())
    })
    .await;
}

#[tokio::test]
async fn whatever_is_written_under_a_view_is_seen() {
    let world = World::start(
        "create table p (id int, v int) partition by range (id);
         create table p1 partition of p for values from (0) to (100);
         create table p2 partition of p for values from (100) to (200);
         create table mother (id int, v int); create table child () inherits (mother);
         create view orders as select id, 'p' as region, v as total from p union all select id + 1000, 'm', v from mother;
         create view sums as select region, count(*) as orders, sum(total) as total from orders group by region;
         select rowcast.publish('orders', 'public', key => '{id}', refresh_ms => 10),
                rowcast.publish('sums', 'public', key => '{region}', refresh_ms => 50)",
    )
    .await;
    let node = world.node().await;
    let mut connection = world.connect().await;
    let (mut dash, handles) = Dash::open(node.address, &["sums", "orders"]).await;
    let handles: [_; 2] = handles.try_into().expect("two");
    dash.complete().await;
    for change in [
        "insert into p select i, i from generate_series(0, 150) i",
        "delete from p where id = 99; insert into p1 values (99, 1000)",
        "update p2 set v = 1",
        "update p set id = id + 160 where id = 7",
        "insert into mother values (1, 1); insert into child values (2, 2)",
        "update child set v = 3",
        "update mother set v = v + 1",
        "delete from p2 where id > 120",
        "truncate child",
        "create table p3 partition of p for values from (200) to (300); insert into p3 values (250, 5)",
        "create table child2 () inherits (mother)",
        "insert into child2 values (3, 3)",
        "set session_replication_role = replica; insert into mother values (9, 9); reset session_replication_role",
        "truncate p1",
        "alter table p detach partition p2",
        "do $$ begin insert into mother values (20, 1); begin insert into mother values (21, 1); raise 'x';
         exception when others then null; end; insert into mother values (22, 2); end $$",
    ] {
        run(&mut connection, change).await;
        let expected = truth(&mut connection, SUMS, "region").await;
        let rows = truth(&mut connection, "select * from orders", "id").await;
        watch(&mut dash, handles, |dash| dash.table(handles[0]) == expected && dash.table(handles[1]) == rows).await;
    }
}
