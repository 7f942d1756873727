//! Publications change while everything is live: nodes follow without a restart, and clients are told what is true.

use rowcast::cli::client::{Event, Handle};

use crate::harness::content::Content;
use crate::harness::dash::Dash;
use crate::harness::node::Node;
use crate::harness::until;
use crate::harness::world::{World, attempt, run};

/// Two tables; `other` is what a bystander on the same connection follows.
const SCHEMA: &str = "
    create table item (id int primary key, v int); insert into item select i, i from generate_series(1, 20) i;
    create table other (id int primary key, v int); insert into other select i, -i from generate_series(1, 20) i;
    select rowcast.publish('other', 'public')";

struct Stage {
    world: World,
    node: Node,
}

impl Stage {
    async fn set(sql: &str) -> Self {
        let world = World::start(SCHEMA).await;
        world.run(sql).await;
        let node = world.node().await;
        node.ready().await;
        Self { world, node }
    }

    /// A dashboard of these publications, with its first rows.
    async fn dash(&self, publications: &[&str]) -> (Dash, Vec<Handle>) {
        let (mut dash, handles) = Dash::open(self.node.address, publications).await;
        dash.complete().await;
        (dash, handles)
    }

    /// Waits until a subscription equals its table.
    async fn equal(&self, dash: &mut Dash, handle: Handle) {
        let name = dash.client.channel_text(handle).expect("a subscription").to_owned();
        let expected = Content::of_publication(&mut self.world.connect().await, &name).await;
        let equals =
            |dash: &Dash| dash.client.is_complete(handle) && Content::of_client(&dash.client, handle) == expected;
        dash.until(&format!("{name} equals its table"), equals).await;
    }
}

/// The code with which a subscription ends.
async fn refused(dash: &mut Dash) -> String {
    dash.until("a subscription ends", |dash| !dash.seen.refused.is_empty()).await;
    assert_eq!(dash.seen.refused.len(), 1, "{:?}", dash.seen.refused);
    std::mem::take(&mut dash.seen.refused).remove(0)
}

fn tag(dash: &Dash, handle: Handle) -> String {
    dash.client.form(handle).expect("a form").tag.clone()
}

fn columns(dash: &Dash, handle: Handle) -> Vec<String> {
    let form = dash.client.form(handle).expect("a form");
    form.columns.iter().map(|column| column.name.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn publishing_unpublishing_and_policies_are_taken_up_without_a_restart() {
    let stage = Stage::set("select").await;
    let (mut dash, handles) = Dash::open(stage.node.address, &["other", "item"]).await;
    let (other, item) = (handles[0], handles[1]);
    assert_eq!(refused(&mut dash).await, "unknown_publication");
    stage.world.run("select rowcast.publish('item', 'public')").await;
    dash.client.retry(item);
    dash.send_outgoing().await;
    stage.equal(&mut dash, item).await;
    stage.world.run("update item set v = 0; update other set v = 1").await;
    stage.equal(&mut dash, item).await;
    stage.equal(&mut dash, other).await;

    // The policy closes it: attached clients and new ones are told the same.
    stage.world.run("select rowcast.publish('item', 'authenticated')").await;
    assert_eq!(refused(&mut dash).await, "forbidden");
    dash.client.retry(item);
    dash.send_outgoing().await;
    assert_eq!(refused(&mut dash).await, "forbidden");
    stage.world.run("select rowcast.publish('item', 'public')").await;
    until("it opens again", async || {
        dash.client.retry(item);
        dash.send_outgoing().await;
        dash.until("an answer", |dash| dash.client.is_complete(item) || !dash.seen.refused.is_empty()).await;
        dash.seen.refused.clear();
        dash.client.is_complete(item).then_some(())
    })
    .await;
    stage.equal(&mut dash, item).await;

    stage.world.run("select rowcast.unpublish('item')").await;
    assert_eq!(refused(&mut dash).await, "unknown_publication");
    // The other subscription of the connection has noticed nothing of all that.
    stage.world.run("update other set v = 2").await;
    stage.equal(&mut dash, other).await;
    assert_eq!((dash.seen.resets, dash.seen.gaps), (0, 0));
    assert_eq!(dash.client.rows(other).map(|rows| rows.len()), Some(20));
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_that_change_move_subscriptions_and_others_join_only_where_asked_for() {
    let stage = Stage::set(
        "select rowcast.publish('item', 'public'), rowcast.publish('item', 'public', name => 'whole', columns => '{*}')",
    )
    .await;
    let (mut dash, handles) = stage.dash(&["item", "whole"]).await;
    let (item, whole) = (handles[0], handles[1]);
    let first = [tag(&dash, item), tag(&dash, whole)];

    // A column is added: it joins `whole`, whose subscribers are told; `item` has the columns of when it was published.
    stage.world.run("alter table item add column note text default 'n'; update item set v = v + 1").await;
    stage.equal(&mut dash, whole).await;
    stage.equal(&mut dash, item).await;
    assert_eq!(columns(&dash, whole), ["id", "v", "note"]);
    assert_eq!((columns(&dash, item), tag(&dash, item)), (vec!["id".to_owned(), "v".to_owned()], first[0].clone()));
    assert_ne!(tag(&dash, whole), first[1]);
    assert_eq!((dash.seen.subscribed, dash.seen.snapshots), (3, 3), "{:?}", dash.seen);

    // It is dropped, and another changes its type.
    stage.world.run("alter table item drop column note").await;
    stage.equal(&mut dash, whole).await;
    assert_eq!(columns(&dash, whole), ["id", "v"]);
    stage
        .world
        .run("alter table item alter column v type bigint; update item set v = 9007199254740993 where id = 1")
        .await;
    stage.equal(&mut dash, whole).await;
    stage.equal(&mut dash, item).await;
    assert_ne!(tag(&dash, item), first[0]);

    // Published again with other columns: the subscription moves, with a snapshot.
    let before = tag(&dash, item);
    stage.world.run("alter table item add column extra int default 3").await;
    stage.world.run("select rowcast.publish('item', 'public', columns => '{id,extra}')").await;
    dash.until("the subscription moves", |dash| columns(dash, item) == ["id", "extra"]).await;
    stage.equal(&mut dash, item).await;
    assert_ne!(tag(&dash, item), before);
    stage.world.run("update item set extra = id, v = 0; delete from item where id = 2").await;
    stage.equal(&mut dash, item).await;
    stage.equal(&mut dash, whole).await;
    assert_eq!((dash.seen.refused.len(), dash.seen.gaps), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_table_ends_its_subscriptions_and_a_renamed_one_keeps_them() {
    let stage = Stage::set("select rowcast.publish('item', 'public')").await;
    let (mut dash, handles) = stage.dash(&["item", "other"]).await;
    let tags = tag(&dash, handles[0]);
    stage
        .world
        .run("alter table item rename to thing; update thing set v = v * 2; insert into thing values (99, 1)")
        .await;
    stage.equal(&mut dash, handles[0]).await;
    stage.world.run("create schema shop; alter table thing set schema shop; delete from shop.thing where id < 5").await;
    stage.equal(&mut dash, handles[0]).await;
    assert_eq!((tag(&dash, handles[0]), dash.seen.resets), (tags, 0));
    let (mut late, late_handles) = stage.dash(&["item"]).await;
    stage.equal(&mut late, late_handles[0]).await;

    stage.world.run("drop table shop.thing").await;
    assert_eq!(refused(&mut dash).await, "unknown_publication");
    assert_eq!(refused(&mut late).await, "unknown_publication");
    stage.world.run("update other set v = 5").await;
    stage.equal(&mut dash, handles[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_reused_for_another_table_never_shows_rows_of_the_first() {
    let stage = Stage::set("select rowcast.publish('item', 'public', name => 'board')").await;
    let (mut attached, attached_handles) = stage.dash(&["board", "other"]).await;
    let (mut away, away_handles) = stage.dash(&["board"]).await;
    let (attached_board, away_board) = (attached_handles[0], away_handles[0]);
    let mut connection = stage.world.connect().await;
    let taken = attempt(&mut connection, "select rowcast.publish('other', 'public', name => 'board')").await;
    let taken = taken.expect_err("the name is taken").to_string();
    assert!(taken.contains("the name \"board\" is taken by a publication of public.item"), "{taken}");

    // Every row of `item` has a positive v by now, every row of `other` a negative one.
    away.disconnect();
    run(
        &mut connection,
        "begin; select rowcast.unpublish('board'); select rowcast.publish('other', 'public', name => 'board'); commit",
    )
    .await;
    let negative = |dash: &Dash, handle: Handle| {
        let rows = dash.client.rows(handle).into_iter().flatten();
        rows.filter(|(_, row)| row.value("v").is_some_and(|v| v.starts_with('-'))).count()
    };
    let old = tag(&attached, attached_board);
    while tag(&attached, attached_board) == old || !attached.client.is_complete(attached_board) {
        let events = attached.next().await.expect("an open connection");
        let changed =
            events.iter().any(|event| matches!(event, Event::Changed { handle, .. } if *handle == attached_board));
        // The old rows may stand until the snapshot replaces them all; they are never mixed.
        let count = negative(&attached, attached_board);
        assert!(!changed && (count == 0 || count == 20), "{count} rows of `other`");
    }
    stage.equal(&mut attached, attached_board).await;

    away.connect(stage.node.address).await;
    away.complete().await;
    assert_eq!((away.seen.resumed, away.seen.snapshots, negative(&away, away_board)), (0, 2, 20));
    stage.world.run("update item set v = 1000; update other set v = v - 1").await;
    stage.equal(&mut away, away_board).await;
    stage.equal(&mut attached, attached_board).await;
    stage.equal(&mut attached, attached_handles[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_publication_on_a_table_with_an_open_writer_misses_nothing() {
    let stage = Stage::set("select rowcast.publish('item', 'public')").await;
    let (mut dash, handles) = stage.dash(&["item"]).await;
    let mut writer = stage.world.connect().await;
    run(&mut writer, "begin").await;
    run(&mut writer, "update item set v = 77 where id = 1; insert into item values (50, 50)").await;
    let mut publisher = stage.world.connect().await;
    let second = "select rowcast.publish('item', 'public', name => 'second', columns => '{v}')";
    let busy = attempt(&mut publisher, second).await.expect_err("a writer is open").to_string();
    assert!(busy.contains("item is being written to: it could not be locked within a second"), "{busy}");
    // It waits for the writer, which goes on writing and commits.
    let publishing = tokio::spawn(async move { run(&mut publisher, second).await });
    let mut looker = stage.world.connect().await;
    until("the publisher waits", async || {
        let waits = "select exists (select from pg_locks where not granted)";
        sqlx::query_scalar::<_, bool>(waits).fetch_one(&mut looker).await.expect("locks").then_some(())
    })
    .await;
    run(&mut writer, "delete from item where id = 2; insert into item values (51, 51)").await;
    run(&mut writer, "commit").await;
    publishing.await.expect("published");
    let (mut late, late_handles) = stage.dash(&["second", "item"]).await;
    stage.equal(&mut late, late_handles[0]).await;
    stage.equal(&mut dash, handles[0]).await;
    run(&mut writer, "update item set v = v + 1 where id > 10; update item set id = 60 where id = 50").await;
    stage.equal(&mut late, late_handles[0]).await;
    stage.equal(&mut late, late_handles[1]).await;
    stage.equal(&mut dash, handles[0]).await;
}
