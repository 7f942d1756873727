//! Views: any SQL is live, exact at every version that a client is told, and consistent with the tables beside it.

mod changes;
mod load;
mod trouble;

use std::collections::BTreeMap;

use rowcast::cli::client::Handle;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::harness::dash::{Dash, Table};
use crate::harness::within;
use crate::harness::world::{World, run};

const SHOP: &str = "
    create table regions (name text primary key, boss text not null);
    create table orders (id int primary key, region text not null, total int not null);
    insert into regions values ('north', 'Ada'), ('south', 'Ben'), ('west', 'Cy');
    insert into orders select i, (array['north', 'south', 'west'])[1 + i % 3], i from generate_series(1, 30) i;
    create view sums as select region, count(*) as orders, sum(total) as total from orders group by region;
    create view bosses as select s.*, r.boss from sums s join regions r on r.name = s.region;
    create view ranks as select id, region, rank() over (partition by region order by total desc) from orders;
    select rowcast.publish('sums', 'public', key => '{region}', refresh_ms => 20),
           rowcast.publish('bosses', 'public', key => '{region}', refresh_ms => 20),
           rowcast.publish('ranks', 'public', key => '{id}', refresh_ms => 20),
           rowcast.publish('orders', 'public');
";

/// The rows of a query in a client's form, by the key columns named.
async fn truth(connection: &mut PgConnection, query: &str, key: &str) -> Table {
    let sql = format!("select json_build_array({key})::text, to_jsonb(q)::text from ({query}) as q");
    let rows: Vec<(String, String)> =
        sqlx::query_as(AssertSqlSafe(sql)).fetch_all(connection).await.expect("a query that works");
    rows.into_iter()
        .map(|(key, row)| (key, serde_json::from_str::<serde_json::Value>(&row).expect("JSON").to_string()))
        .collect()
}

/// What the views of [`SHOP`] should show, with int8 as texts.
const SUMS: &str = "select region, orders::text, total::text from sums";
const BOSSES: &str = "select region, orders::text, total::text, boss from bosses";
const RANKS: &str = "select id, region, rank::text from ranks";

#[tokio::test]
async fn joins_aggregates_windows_and_views_on_views_follow_the_tables_under_them() {
    let world = World::start(SHOP).await;
    let node = world.node().await;
    let mut connection = world.connect().await;
    let (mut dash, handles) =
        Dash::open(node.address, &["sums", "bosses", "ranks", "orders", "sums?region=eq.north"]).await;
    dash.complete().await;
    for change in [
        "select 1",
        "insert into orders values (100, 'north', 7)",
        "update orders set region = 'south' where id = 100",
        "update regions set boss = 'Dee' where name = 'south'",
        "delete from regions where name = 'west'; delete from orders where region = 'west'",
        "begin; insert into orders values (200, 'east', 1); insert into regions values ('east', 'Eve'); commit",
        "truncate orders",
        "insert into orders select i, 'north', i from generate_series(1, 500) i",
        "update orders set total = total + 1 where false",
    ] {
        run(&mut connection, change).await;
        let expected = [
            truth(&mut connection, SUMS, "region").await,
            truth(&mut connection, BOSSES, "region").await,
            truth(&mut connection, RANKS, "id").await,
            truth(&mut connection, "select * from orders", "id").await,
            truth(&mut connection, &format!("{SUMS} where region = 'north'"), "region").await,
        ];
        for (handle, expected) in handles.iter().zip(&expected) {
            dash.until(&format!("{handle:?} after {change}"), |dash| dash.table(*handle) == *expected).await;
        }
    }
    assert_eq!((dash.seen.resets, dash.seen.gaps), (0, 0));
}

/// Whether the shop that a client sees is one state of the database: each sum is the sum over the orders.
fn is_consistent(dash: &Dash, sums: Handle, orders: Handle) -> Result<(), String> {
    let mut wanted: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for row in dash.table(orders).values() {
        let row: serde_json::Value = serde_json::from_str(row).expect("JSON");
        let sum = wanted.entry(row["region"].as_str().expect("a region").to_owned()).or_default();
        sum.0 += 1;
        sum.1 += row["total"].as_i64().expect("a total");
    }
    let shown: BTreeMap<String, (i64, i64)> = dash
        .table(sums)
        .values()
        .map(|row| {
            let row: serde_json::Value = serde_json::from_str(row).expect("JSON");
            let number = |name: &str| row[name].as_str().expect("an int8").parse().expect("a number");
            (row["region"].as_str().expect("a region").to_owned(), (number("orders"), number("total")))
        })
        .collect();
    if shown == wanted { Ok(()) } else { Err(format!("shown {shown:?}\nof {wanted:?}")) }
}

/// Takes frames in until a condition holds; after each of the client's steps its view has to be the sum of its table. How
/// many steps there were in which the view moved.
async fn watch(dash: &mut Dash, [sums, orders]: [Handle; 2], mut done: impl FnMut(&Dash) -> bool) -> usize {
    let mut steps = 0;
    let mut last = dash.table(sums);
    within("what is watched for", async {
        while !done(dash) {
            dash.next().await.expect("a connection");
            if dash.client.is_complete(sums) && dash.client.is_complete(orders) {
                if let Err(difference) = is_consistent(dash, sums, orders) {
                    panic!("at {:?} and {:?}: {difference}", dash.version(sums), dash.version(orders));
                }
                let now = dash.table(sums);
                steps += usize::from(now != last);
                last = now;
            }
        }
    })
    .await;
    steps
}
