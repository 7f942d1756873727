//! Publishing: what is refused, what it leaves behind, and that writers never fail because of us.

use sqlx::PgConnection;

use super::mirror::Mirror;
use crate::harness::postgres::{PrivatePostgres, attempt, run};
use crate::harness::within;

async fn refusal(connection: &mut PgConnection, sql: &str) -> String {
    within("a refusal", attempt(connection, sql))
        .await
        .err()
        .map(|error| error.to_string())
        .unwrap_or_else(|| panic!("not refused: {sql}"))
}

async fn triggers(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar("select count(*) from pg_trigger where tgname like '!rowcast%'")
        .fetch_one(connection)
        .await
        .expect("a count")
}

#[tokio::test]
async fn what_cannot_be_published_is_refused_with_its_reason() {
    let postgres = PrivatePostgres::start().await;
    let mut connection = postgres.connect().await;
    run(
        &mut connection,
        "create table good (id int primary key, b int, c int not null); create table other (id int primary key);
         create table keyless (a int, b int not null); create view seen as select 1 as id;
         create materialized view kept as select 1 as id; create temporary table passing (id int primary key);
         create table parent (id int primary key); create table child () inherits (parent);
         create sequence numbers; create foreign data wrapper w; create server s foreign data wrapper w;
         create table split (id int) partition by range (id);
         create foreign table far partition of split for values from (0) to (9) server s;
         select rowcast.publish('good', 'public')",
    )
    .await;
    for (call, reason) in [
        ("'good'", "does not exist"),
        ("'good', null", "needs a policy"),
        ("'good', 'open to all'", "cannot be read at \"open to all\""),
        ("'good', 'nobody=eq.1'", "filters by \"nobody\""),
        ("'good', 'public', columns => '{id,x}'", "has no column \"x\""),
        ("'good', 'public', columns => '{id,id}'", "twice"),
        ("'good', 'public', columns => '{}'", "must name columns"),
        ("'good', 'public', key => '{b}'", "may be null"),
        ("'good', 'public', key => '{c}'", "is not unique"),
        ("'good', 'public', key => '{ctid}'", "has no column"),
        ("'good', 'public', bulk_rows => -1", "cannot be negative"),
        ("'good', 'public', name => 'Good'", "cannot be the name"),
        ("'good', 'public', name => ''", "cannot be the name"),
        ("'other', 'public', name => 'good'", "taken by a publication of public.good"),
        ("'keyless', 'public'", "has no primary key"),
        ("'seen', 'public'", "is a view, so it needs a key"),
        ("'kept', 'public', key => '{nope}'", "has no column \"nope\""),
        ("'passing', 'public'", "is temporary"),
        ("'parent', 'public'", "has inheritance children"),
        ("'split', 'public'", "foreign tables"),
        ("'numbers', 'public'", "is neither a table nor a view"),
        ("'pg_class', 'public'", "is a system table"),
        ("'rowcast.state', 'public'", "is a system table"),
        ("null, 'public'", "needs a relation"),
    ] {
        let message = refusal(&mut connection, &format!("select rowcast.publish({call})")).await;
        assert!(message.contains(reason), "{call}: {message}");
    }
    assert!(refusal(&mut connection, "select rowcast.unpublish('x')").await.contains("no publication \"x\""));
    assert_eq!(triggers(&mut connection).await, 4);
}

#[tokio::test]
async fn unpublishing_and_dropping_the_schema_leave_nothing_behind() {
    let postgres = PrivatePostgres::start().await;
    let mut connection = postgres.connect().await;
    run(
        &mut connection,
        "create table a (id int primary key, v int); create table p (id int primary key) partition by range (id);
         create table p1 partition of p for values from (0) to (9);
         select rowcast.publish('a', 'public'), rowcast.publish('a', 'public', name => 'a2', columns => '{id}');
         select rowcast.unpublish('a'); insert into a values (1)",
    )
    .await;
    assert_eq!(triggers(&mut connection).await, 4, "another publication needs them");
    run(&mut connection, "select rowcast.unpublish('a2')").await;
    assert_eq!(triggers(&mut connection).await, 0);
    run(&mut connection, "select rowcast.publish('a', 'public'), rowcast.publish('p', 'public'); drop table a").await;
    run(&mut connection, "create table a (id int primary key); select rowcast.publish('a', 'public')").await;
    assert_eq!(triggers(&mut connection).await, 8, "the dropped table's name is free again");
    run(&mut connection, "drop schema rowcast cascade; insert into a values (1); insert into p values (1)").await;
    assert_eq!(triggers(&mut connection).await, 0);
    rowcast::capture::install::migrate(&postgres.options()).await.expect("an installation like the first");
    run(&mut connection, "select rowcast.publish('a', 'public')").await;
}

#[tokio::test]
async fn several_processes_may_install_at_once() {
    let postgres = PrivatePostgres::bare(&[]).await;
    let options: sqlx::postgres::PgConnectOptions = postgres.url().parse().expect("an address");
    let installs = (0..5).map(|_| rowcast::capture::install::migrate(&options));
    for installed in futures_util::future::join_all(installs).await {
        installed.expect("an installation");
    }
}

#[tokio::test]
async fn publishing_waits_a_second_for_an_open_writer_and_misses_none_of_its_changes() {
    let postgres = PrivatePostgres::start().await;
    postgres.run("create table a (id int primary key, v int); select rowcast.publish('a', 'public')").await;
    let mut mirror = Mirror::new(&postgres).await;
    let mut writer = postgres.connect().await;
    let mut publisher = postgres.connect().await;
    run(&mut writer, "begin; insert into a values (1, 1)").await;
    let message = refusal(&mut publisher, "select rowcast.publish('a', 'public', name => 'b')").await;
    assert!(message.contains("could not be locked within a second"), "{message}");
    let publish = tokio::spawn(async move {
        run(&mut publisher, "select rowcast.publish('a', 'public', name => 'b')").await;
    });
    run(&mut writer, "insert into a values (2, 2); commit; insert into a values (3, 3)").await;
    publish.await.expect("published");
    run(&mut writer, "update a set id = 5 where id = 2").await;
    while mirror.step().await {}
    for name in ["a", "b"] {
        assert_eq!(mirror.rows(name).expect("rows").len(), 3);
    }
    assert_eq!(mirror.take_markers("a"), Vec::<&str>::new());
}

#[tokio::test]
async fn writers_go_on_whatever_happens_to_the_key() {
    let postgres = PrivatePostgres::start().await;
    let mut connection = postgres.connect().await;
    run(
        &mut connection,
        "create table a (id int primary key, v int); insert into a select i, i from generate_series(1, 9) i;
         create table p (id int, v int, part int default 1, primary key (id, part)) partition by range (part);
         create table p1 partition of p for values from (0) to (99);
         insert into p select i, i from generate_series(1, 9) i;
         select rowcast.publish('a', 'public'), rowcast.publish('p', 'public')",
    )
    .await;
    let mut mirror = Mirror::new(&postgres).await;
    run(
        &mut connection,
        "create role clerk; grant select, insert, update, delete on a, p to clerk; set role clerk;
         insert into a values (10, 1); update p set v = 7 where id = 9; reset role",
    )
    .await;
    assert!(mirror.step().await);
    assert_eq!(mirror.states, 2, "a writer needs no rights on anything of ours");
    let write = "insert into T (K, v) values (20, 1); update T set v = v + 1; delete from T where v = 5;
                 update T set K = 30 where K = 1; delete from T where K in (20, 30)";
    for table in ["a", "p"] {
        let write = write.replace('T', table);
        run(&mut connection, &format!("alter table {table} alter id type bigint; {}", write.replace('K', "id"))).await;
        while mirror.step().await {}
        let rows = mirror.rows(table).expect("rows");
        assert!(rows.keys().all(|key| key.starts_with("[\"")), "the text of an int8 key is a text: {rows:?}");
        run(&mut connection, &format!("alter table {table} rename id to number; {}", write.replace('K', "number")))
            .await;
        while mirror.step().await {}
        assert!(mirror.rows(table).is_none(), "without its key a publication ends");
    }
    run(&mut connection, "alter table a rename number to id; insert into a values (50, 1)").await;
    while mirror.step().await {}
    assert!(mirror.rows("a").expect("the key is back").contains_key("[\"50\"]"));
    run(&mut connection, "alter table a drop column id; insert into a values (1); truncate a; drop table a, p").await;
    while mirror.step().await {}
    assert!(mirror.rows("a").is_none() && mirror.rows("p").is_none());
}

#[tokio::test]
async fn nothing_is_logged_when_no_leader_came_for_long() {
    let postgres = PrivatePostgres::start().await;
    let mut connection = postgres.connect().await;
    let logged = "select count(*) from (select from rowcast.changes_0 union all select from rowcast.changes_1
                  union all select from rowcast.changes_2 union all select from rowcast.changes_3) c";
    run(
        &mut connection,
        "create table a (id int primary key); select rowcast.publish('a', 'public');
         update rowcast.pulse set at = now() - interval '25 hours'; insert into a values (1); truncate a;
         alter table a rename id to number; insert into a values (2)",
    )
    .await;
    let count: i64 = sqlx::query_scalar(logged).fetch_one(&mut connection).await.expect("a count");
    assert_eq!(count, 1, "only the marker of publish itself");
    run(&mut connection, "update rowcast.pulse set at = now(); insert into a values (3)").await;
    let count: i64 = sqlx::query_scalar(logged).fetch_one(&mut connection).await.expect("a count");
    assert_eq!(count, 2);
}

#[tokio::test]
async fn prepared_transactions_work_and_are_delivered_when_they_commit() {
    let postgres = PrivatePostgres::bare(&["max_prepared_transactions=5"]).await;
    rowcast::capture::install::migrate(&postgres.options()).await.expect("migrations");
    let mut connection = postgres.connect().await;
    run(&mut connection, "create table a (id int primary key); select rowcast.publish('a', 'public')").await;
    let mut mirror = Mirror::new(&postgres).await;
    run(&mut connection, "begin; insert into a values (1); prepare transaction 'x'; insert into a values (2)").await;
    while mirror.step().await {}
    assert_eq!(mirror.rows("a").expect("rows").len(), 1);
    run(&mut connection, "commit prepared 'x'").await;
    while mirror.step().await {}
    assert_eq!(mirror.rows("a").expect("rows").len(), 2);
}

#[tokio::test]
async fn values_are_written_by_type_and_wide_rows_whole() {
    let postgres = PrivatePostgres::start().await;
    let mut connection = postgres.connect().await;
    run(
        &mut connection,
        "create domain amount as numeric; create type mood as enum ('so', 'la');
         create table a (id bigint, at timestamptz, big bigint[], n amount, b bytea, i interval, j jsonb, m mood,
                         body text, doc jsonb, primary key (id, at));
         select rowcast.publish('a', 'public');
         set timezone = 'Asia/Tokyo'; set bytea_output = 'escape'; set intervalstyle = 'sql_standard';
         insert into a values (9007199254740993, '2020-01-01 00:00:00+00', '{1,null}', 'NaN', '\\x00ff', '1 day', '[1]',
                               'la', repeat('x', 1048577), to_jsonb(repeat('y', 2000000)))",
    )
    .await;
    let mut mirror = Mirror::new(&postgres).await;
    run(&mut connection, "update a set m = 'so'").await;
    mirror.step().await;
    let rows = mirror.rows("a").expect("rows");
    let row: serde_json::Value =
        serde_json::from_str(&rows[r#"["9007199254740993","2020-01-01T00:00:00+00:00"]"#]).expect("JSON");
    assert_eq!(
        row,
        serde_json::json!(["9007199254740993", "2020-01-01T00:00:00+00:00", ["1", null], "NaN", "\\x00ff", "P1D", [1], "so",
            null, null, {"body": 1_048_577, "doc": 2_000_002}])
    );
    assert_eq!(mirror.take_markers("a"), Vec::<&str>::new(), "the writer's settings do not matter");

    let columns: String = (0..1500).map(|number| format!(", \"c %{number}\" int default {number}")).collect();
    run(&mut connection, &format!("create table wide (id int primary key{columns}); insert into wide values (1)"))
        .await;
    run(&mut connection, "select rowcast.publish('wide', 'public')").await;
    while mirror.step().await {}
    let row: Vec<i64> = serde_json::from_str(&mirror.rows("wide").expect("rows")["[1]"]).expect("JSON");
    assert_eq!((row.len(), row[1500]), (1501, 1499));
}
