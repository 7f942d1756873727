//! Channels that filter: rows enter and leave, also while the client is away, and equal queries are one channel.

use rowcast::config::DatabaseUrl;
use rowcast::demo::instance::{Postgres, PostgresOptions, Redis};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::harness::dash::{Dash, Table};
use crate::harness::node::Node;
use crate::harness::until;

struct Shop {
    postgres: Postgres,
    redis: Redis,
    connection: PgConnection,
}

impl Shop {
    async fn open() -> Self {
        let postgres = Postgres::launch(PostgresOptions::for_tests("shop")).await.expect("Postgres starts");
        let redis = Redis::launch().await.expect("Redis starts");
        rowcast::app::migrate(&postgres.url()).await.expect("migrates");
        let connection = PgConnection::connect_with(&postgres.url().options()).await.expect("connects");
        let mut shop = Self { postgres, redis, connection };
        shop.run(
            "create table orders (id int primary key, status text not null, customer_id int8, paid boolean, note varchar(20));
             insert into orders select n, case n % 2 when 0 then 'open' else 'paid' end, n % 5, n % 3 = 0, 'n' || n
             from generate_series(1, 40) as n;
             select rowcast.publish('orders', policy => 'public');",
        )
        .await;
        shop
    }

    fn url(&self) -> DatabaseUrl {
        self.postgres.url()
    }

    async fn node(&self) -> Node {
        Node::start(&self.url(), Some(&self.redis.url())).await
    }

    async fn run(&mut self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.connection).await.expect("the statement works");
    }

    /// The rows that a filter means, by Postgres, in a client's form.
    async fn rows(&mut self, filter: &str) -> Table {
        let sql = format!(
            "select json_build_array(id)::text, jsonb_build_object('id', id, 'status', status, 'customer_id', customer_id::text,
             'paid', paid, 'note', note)::text from orders where {filter}"
        );
        let rows: Vec<(String, String)> =
            sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut self.connection).await.expect("rows");
        rows.into_iter()
            .map(|(key, row)| {
                let value: serde_json::Value = serde_json::from_str(&row).expect("JSON");
                (key, value.to_string())
            })
            .collect()
    }
}

#[tokio::test]
async fn a_filtered_channel_equals_its_query_as_rows_enter_and_leave() {
    let mut shop = Shop::open().await;
    let node = shop.node().await;
    let channels = [
        ("orders?status=eq.open", "status = 'open'"),
        ("orders?customer_id=eq.3&status=eq.paid", "customer_id = 3 and status = 'paid'"),
        ("orders?paid=eq.true", "paid"),
        ("orders?note=eq.n7", "note = 'n7'"),
        ("orders?id=eq.7", "id = 7"),
        ("orders?status=eq.%27%22odd%5C", "status = '''\"odd\\'"),
        ("orders?id=gt.20&id=lte.40", "id > 20 and id <= 40"),
        (
            "orders?or=(customer_id.in.(1,2),and(status.eq.paid,not.or(id.lt.10,paid.is.null)))",
            "customer_id in (1, 2) or (status = 'paid' and not (id < 10 or paid is null))",
        ),
        ("orders?note=like.n_&customer_id=not.is.null", "note like 'n_' and customer_id is not null"),
        ("orders?note=not.ilike.N1*", "note not ilike 'n1%'"),
        ("orders?customer_id=neq.3&paid=is.false", "customer_id <> 3 and not paid"),
    ];
    let texts: Vec<&str> = channels.iter().map(|(channel, _)| *channel).collect();
    let (mut dash, handles) = Dash::open(node.address, &texts).await;
    dash.complete().await;
    for change in [
        "update orders set status = 'paid' where id in (2, 4)",
        "update orders set status = 'open', customer_id = null where id in (3, 8)",
        "insert into orders values (50, 'open', 3, true, 'n7'), (51, '''\"odd\\', 9007199254740993, null, null)",
        "delete from orders where id in (6, 7)",
        "update orders set id = 7 where id = 50",
        "begin; update orders set status = 'x' where id = 10; update orders set status = 'open' where id = 10; commit",
        "update orders set customer_id = 3, status = 'paid' where id > 30",
    ] {
        shop.run(change).await;
        for (handle, (channel, filter)) in handles.iter().zip(&channels) {
            let expected = shop.rows(filter).await;
            dash.until(&format!("{channel} after {change}"), |dash| dash.table(*handle) == expected).await;
        }
    }
    assert_eq!((dash.seen.resets, dash.seen.gaps), (0, 0));
}

#[tokio::test]
async fn a_row_that_left_the_filter_while_the_client_was_away_is_gone_when_it_resumes() {
    let mut shop = Shop::open().await;
    let mut first = shop.node().await;
    let second = shop.node().await;
    let (mut dash, handles) = Dash::open(first.address, &["orders?status=eq.open"]).await;
    dash.complete().await;
    // It was told of one version at least, as a client is that has been there for a while.
    shop.run("update orders set note = 'seen' where id = 2").await;
    let expected = shop.rows("status = 'open'").await;
    dash.until("the first change", |dash| dash.table(handles[0]) == expected).await;
    dash.disconnect();

    shop.run("update orders set status = 'paid' where id = 2").await;
    shop.run("update orders set note = 'never seen' where id = 2").await;
    shop.run("insert into orders values (60, 'open', 1, false, 'new')").await;
    shop.run("delete from orders where id = 4").await;
    let expected = shop.rows("status = 'open'").await;

    // On the node that has the channel …
    dash.connect(first.address).await;
    dash.until("the difference", |dash| dash.table(handles[0]) == expected).await;
    assert_eq!((dash.seen.resumed, dash.seen.snapshots), (1, 1), "resumed, and no second snapshot: {:?}", dash.seen);
    dash.disconnect();

    // … and on one that has never had it, after the first has died.
    shop.run("update orders set status = 'paid' where id = 60").await;
    shop.run("update orders set status = 'open' where id = 1").await;
    first.kill().await;
    let expected = shop.rows("status = 'open'").await;
    dash.connect(second.address).await;
    dash.until("the difference", |dash| dash.table(handles[0]) == expected).await;
    assert_eq!((dash.seen.resumed, dash.seen.snapshots), (2, 1), "resumed elsewhere: {:?}", dash.seen);
}

#[tokio::test]
async fn equal_queries_are_one_channel_and_wrong_ones_are_refused_by_place() {
    let mut shop = Shop::open().await;
    shop.run("create table prices (id int primary key, amount numeric); select rowcast.publish('prices', policy => 'public')")
        .await;
    let node = shop.node().await;
    node.ready().await;
    for query in ["id=eq.7&status=eq.open", "status=eq.open&id=eq.007", "id=eq.%207&status=eq.open&id=eq.7"] {
        let (status, body) = node.get(&format!("/v1/rows/orders?{query}")).await.expect("an answer");
        assert_eq!(status, 200, "{query}: {body}");
    }
    until("one channel is open", async || (node.metric("rowcast_channels").await == 1.0).then_some(())).await;
    for (channel, at, message) in [
        ("orders?id=eq.x", 13, "invalid input syntax for type integer"),
        ("orders?id=eq.99999999999", 13, "out of range"),
        ("orders?paid=eq.maybe", 15, "invalid input syntax for type boolean"),
        ("orders?status=eq.open&nope=eq.1", 22, "there is no column `nope`"),
        ("orders?id=eq.1;drop table orders", 13, "invalid input syntax"),
        ("prices?amount=like.1*", 7, "numeric are no texts"),
        ("orders?limit=none", 13, "a limit is a number"),
    ] {
        let (status, body) = node.get(&format!("/v1/rows/{}", channel.replace(' ', "%20"))).await.expect("an answer");
        let body: serde_json::Value = serde_json::from_str(&body).expect("problem JSON");
        assert_eq!((status, &body["code"], &body["at"]), (400, &"bad_query".into(), &at.into()), "{channel}: {body}");
        assert!(body["detail"].as_str().is_some_and(|detail| detail.contains(message)), "{channel}: {body}");
    }
    assert_eq!(shop.rows("true").await.len(), 40);
}
