//! The demo's page in a real browser, over a real node: what a person sees is what stands in the table.

use rowcast::config::DatabaseUrl;
use rowcast::demo::shop;
use rowcast::demo::traffic::Traffic;
use serde_json::Value;

use crate::harness::browser::Browser;
use crate::harness::database::{Database, connect, run};
use crate::harness::node::Node;
use crate::harness::until;

/// The orders that the page holds, by id.
const PAGE_ORDERS: &str = "[...rowcastDemo.orders.rows].sort((a, b) => a.id - b.id)";

/// The page shows itself live and whole.
const LIVE: &str = "document.getElementById('state').dataset.state === 'live' \
    && [rowcastDemo.orders, rowcastDemo.customers, rowcastDemo.products].every((each) => each.state === 'live')";

/// The table's orders by id, each value as the protocol encodes it.
async fn table_orders(url: &DatabaseUrl) -> Value {
    let sql = "select coalesce(json_agg(document order by id), '[]')::text from (
                   select id, json_build_object('id', id, 'customer_id', customer_id, 'product_id', product_id,
                       'quantity', quantity, 'status', status, 'total', total::text, 'placed_at', placed_at,
                       'updated_at', updated_at) as document
                   from shop.orders) orders";
    let mut connection = connect(url).await;
    sqlx::raw_sql("set timezone to 'UTC'").execute(&mut connection).await.expect("a setting");
    let text: String = sqlx::query_scalar(sql).fetch_one(&mut connection).await.expect("the orders");
    serde_json::from_str(&text).expect("JSON")
}

/// Waits until the page holds exactly what the table does, to which nobody writes any more.
async fn page_equals_table(browser: &Browser, url: &DatabaseUrl) {
    let table = table_orders(url).await;
    assert!(table.as_array().is_some_and(|orders| orders.len() > 1_000));
    until("the page equals the table", async || (browser.value(PAGE_ORDERS).await == table).then_some(())).await;
}

/// Places an order, and gives its id.
async fn place_order(url: &DatabaseUrl) -> i32 {
    let sql = "insert into shop.orders (customer_id, product_id, quantity, total) values (1, 1, 2, 12.50) returning id";
    sqlx::query_scalar(sql).fetch_one(&mut connect(url).await).await.expect("an id")
}

/// A database with the shop in it.
async fn shop() -> Database {
    let database = Database::create().await;
    shop::create(&database.url, 50.0).await.expect("the shop");
    database
}

#[tokio::test]
async fn the_page_shows_a_commit_survives_a_restart_and_equals_the_table() {
    let database = shop().await;
    let mut node = Node::start(&database.url, None).await;
    let browser = Browser::start().await;
    browser.page.goto(&node.url("/")).await.expect("the page");
    browser.until(LIVE).await;
    page_equals_table(&browser, &database.url).await;

    let id = place_order(&database.url).await;
    let badge = |status: &str| {
        format!("document.querySelector('#orders tr[data-id=\"{id}\"] .badge')?.textContent === '{status}'")
    };
    browser.until(&badge("open")).await;
    run(&database.url, &format!("update shop.orders set status = 'packed' where id = {id}")).await;
    browser.until(&badge("packed")).await;

    // The node dies amid writes, one of which happens while it is away.
    let traffic = Traffic::start(&database.url);
    node.kill().await;
    browser.until("document.getElementById('state').dataset.state === 'offline'").await;
    assert_eq!(browser.value("document.getElementById('orders').children.length").await, 50, "old rows stay shown");
    run(&database.url, &format!("update shop.orders set status = 'shipped' where id = {id}")).await;
    let _node = Node::start_at(node.address, &database.url, None, &[]).await;
    browser.until(LIVE).await;
    browser.until(&format!("rowcastDemo.orders.get({id})?.status === 'shipped'")).await;
    browser.until("Number(document.getElementById('rows-per-second').textContent) > 0").await;
    browser.until("Number.isFinite(Number(document.getElementById('latency').textContent))").await;
    traffic.stop().await;
    page_equals_table(&browser, &database.url).await;
    assert_eq!(browser.value("rowcastDemo.connection.error").await, Value::Null);
}

#[tokio::test]
async fn two_tabs_agree() {
    let database = shop().await;
    let node = Node::start(&database.url, None).await;
    let browser = Browser::start().await;
    browser.page.goto(&node.url("/")).await.expect("the page");
    browser.until(LIVE).await;
    let first = browser.page.window().await.expect("a window");
    let traffic = Traffic::start(&database.url);
    let second = browser.page.new_window(true).await.expect("a second tab");
    browser.page.switch_to_window(second.handle).await.expect("the second tab");
    browser.page.goto(&node.url("/")).await.expect("the page");
    browser.until(LIVE).await;
    // Each version's fingerprints are compared while the orders change.
    browser.until("document.getElementById('verdict').dataset.verdict === 'agree'").await;
    browser.until("Number(/(\\d+) versions/.exec(document.getElementById('verdict').textContent)?.[1]) > 20").await;
    assert_eq!(browser.value("document.getElementById('verdict').dataset.verdict").await, "agree");
    traffic.stop().await;
    page_equals_table(&browser, &database.url).await;
    browser.page.switch_to_window(first).await.expect("the first tab");
    page_equals_table(&browser, &database.url).await;
    browser.until("document.getElementById('verdict').dataset.verdict === 'agree'").await;
}
