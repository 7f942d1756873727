//! The audit tells who was shown what, from where and out of what, when it ended and why; and no secret.

use serde_json::json;

use crate::harness::dash::Dash;
use crate::harness::tokens::{WITH_SECRET, token};
use crate::harness::until;
use crate::harness::world::World;

/// In a row, and in the signature of no token: it must never be written down.
const CANARY: &str = "canary-7f3a";

type Told = (String, String, Option<String>, Option<String>, Option<i64>, Option<String>, bool, bool);

#[tokio::test(flavor = "multi_thread")]
async fn every_subscription_its_end_and_every_refusal_is_on_record() {
    let world = World::start(&format!(
        "create table notes (id int primary key, tenant text, note text);
         insert into notes values (1, 'a', '{CANARY}'), (2, 'a', '{CANARY}'), (3, 'b', '{CANARY}');
         select rowcast.publish('notes', 'tenant=eq.{{tenant}}');"
    ))
    .await;
    let node = world.node_with(&[WITH_SECRET, ("ROWCAST_AUDIT", "table")]).await;
    node.ready().await;
    let ann = token("ann", 600, &json!({"tenant": "a", "jti": "private-token-id"}));

    let (mut first, handles) = Dash::open_as(node.address, &ann, &["notes"]).await;
    first.complete().await;
    let (mut second, _) = Dash::open_as(node.address, &ann, &["notes"]).await;
    second.complete().await;
    first.client.unsubscribe(handles[0]);
    first.send_outgoing().await;
    second.disconnect();
    let (mut stranger, _) = Dash::open(node.address, &["notes"]).await;
    stranger.until("a refusal", |dash| dash.seen.refused == ["forbidden"]).await;
    let client = reqwest::Client::new();
    let read = client.get(node.url("/v1/rows/notes")).bearer_auth(&ann).send().await.expect("an answer");
    assert_eq!(read.status(), 200);

    let mut connection = world.connect().await;
    let told: Vec<Told> = until("everything is on record", async || {
        let told: Vec<Told> = sqlx::query_as(
            "select event, publication, subject, served, rows, why, peer = '127.0.0.1', token is not null and duration_ms is not null
             from rowcast.audit order by event, served, why",
        )
        .fetch_all(&mut connection)
        .await
        .expect("the table");
        (told.len() == 6).then_some(told)
    })
    .await;
    let record = |event: &str,
                  subject: Option<&str>,
                  served: Option<&str>,
                  rows: Option<i64>,
                  why: Option<&str>,
                  ended|
     -> Told {
        let text = |text: Option<&str>| text.map(str::to_owned);
        (event.to_owned(), "notes".to_owned(), text(subject), text(served), rows, text(why), true, ended)
    };
    assert_eq!(
        told,
        [
            record("ended", Some("ann"), None, None, Some("lost"), true),
            record("ended", Some("ann"), None, None, Some("unsubscribed"), true),
            record("read", Some("ann"), Some("memory"), Some(2), None, false),
            record("refused", None, None, None, Some("forbidden"), false),
            record("subscribed", Some("ann"), Some("memory"), Some(2), None, false),
            record("subscribed", Some("ann"), Some("postgres"), Some(2), None, false),
        ]
    );
    let all: String = sqlx::query_scalar("select string_agg(a::text, ' ') from rowcast.audit as a")
        .fetch_one(&mut connection)
        .await
        .expect("a text");
    assert!(!all.contains(CANARY) && !all.contains("private-token-id") && !all.contains(&ann), "{all}");
    assert!(all.contains(r#"tenant"#), "the resolved channel is named: {all}");
}
