//! The client against frames written by hand, promise by promise.

use serde_json::{Value, json};

use super::*;
use crate::order::plain;

/// A client that is connected, and the messages it sent.
struct Bench {
    client: Client,
}

impl Bench {
    fn new() -> Self {
        let mut client = Client::default();
        client.connected();
        Self { client }
    }

    fn subscribe(&mut self, channel: &str) -> (Handle, u64) {
        let handle = self.client.subscribe(channel);
        let message = self.sent().pop().expect("a message");
        assert_eq!((&message["op"], &message["channel"]), (&json!("subscribe"), &json!(channel)));
        (handle, message["id"].as_u64().expect("an id"))
    }

    fn sent(&mut self) -> Vec<Value> {
        let messages = self.client.take_outgoing();
        messages.iter().map(|text| serde_json::from_str(text).expect("JSON")).collect()
    }

    fn try_say(&mut self, frame: &Value) -> Result<Vec<Event>, Violation> {
        self.client.receive(&frame.to_string())
    }

    fn say(&mut self, frame: Value) -> Vec<Event> {
        self.try_say(&frame).unwrap_or_else(|violation| panic!("{violation}: {frame}"))
    }

    fn refuses(&mut self, frame: Value) -> Violation {
        self.try_say(&frame).expect_err("a violation")
    }

    /// The rows as (id, status), ascending.
    fn rows(&self, handle: Handle) -> Vec<(i64, String)> {
        let rows = self.client.sorted(handle);
        rows.iter()
            .map(|(_, row)| {
                let id = row.value("id").expect("an id").parse().expect("a number");
                (id, plain(row.value("status").expect("a status")))
            })
            .collect()
    }

    fn version(&self, handle: Handle) -> Option<u64> {
        self.client.position(handle).map(|position| position.version.0)
    }
}

fn subscribed(id: u64, ch: u64, version: u64) -> Value {
    json!({"op": "subscribed", "id": id, "ch": ch, "tag": "t1", "epoch": "e1", "version": version, "key": ["id"],
        "resumed": false, "order": [{"column": "id", "dir": "asc", "nulls": "last"}],
        "columns": [{"name": "id", "type": "int4"}, {"name": "status", "type": "text"}]})
}

fn with(mut frame: Value, name: &str, value: Value) -> Value {
    frame[name] = value;
    frame
}

fn snapshot(ch: u64, version: u64, rows: &[(i64, &str)]) -> Value {
    json!({"op": "snapshot", "ch": ch, "version": version, "rows": objects(rows)})
}

fn delta(ch: u64, prev: u64, version: u64, rows: &[(i64, &str)], gone: &[i64]) -> Value {
    let gone: Vec<Value> = gone.iter().map(|id| json!({"key": [id], "why": "deleted"})).collect();
    json!({"op": "delta", "ch": ch, "prev": prev, "version": version, "as_of": 1, "rows": objects(rows), "gone": gone})
}

fn objects(rows: &[(i64, &str)]) -> Vec<Value> {
    rows.iter().map(|(id, status)| json!({"id": id, "status": status})).collect()
}

fn live(version: u64) -> Value {
    json!({"op": "live", "epoch": "e1", "version": version, "as_of": 5, "state": "live"})
}

fn of(rows: &[(i64, &str)]) -> Vec<(i64, String)> {
    rows.iter().map(|&(id, status)| (id, status.to_owned())).collect()
}

/// A client with channel 7 complete at version 41.
fn complete() -> (Bench, Handle) {
    let mut bench = Bench::new();
    let (handle, id) = bench.subscribe("orders");
    bench.say(subscribed(id, 7, 41));
    bench.say(snapshot(7, 41, &[(1, "open"), (2, "open")]));
    (bench, handle)
}

#[test]
fn a_snapshot_and_deltas_make_the_rows() {
    let (mut bench, handle) = complete();
    let events = bench.say(delta(7, 41, 44, &[(1, "paid"), (3, "open")], &[2]));
    let Event::Changed { changes, version: Version(44), .. } = &events[0] else { panic!("{events:?}") };
    assert!(matches!(&changes[0], Change::Upsert { before: Some(_), changed, .. } if changed == &["status"]));
    assert!(matches!(&changes[1], Change::Upsert { before: None, .. }));
    assert!(matches!(&changes[2], Change::Gone { row: Some(_), why: Some(Why::Deleted), .. }));
    assert_eq!(bench.rows(handle), of(&[(1, "paid"), (3, "open")]));
    assert_eq!(bench.version(handle), Some(44));
}

#[test]
fn a_delta_may_leave_out_columns_of_rows_that_are_known() {
    let (mut bench, handle) = complete();
    let frame = json!({"op": "delta", "ch": 7, "prev": 41, "version": 42, "as_of": 1, "rows": [{"id": 1}]});
    let events = bench.say(frame.clone());
    assert!(matches!(&events[0], Event::Changed { changes, .. }
        if matches!(&changes[0], Change::Upsert { changed, .. } if changed.is_empty())));
    assert_eq!(bench.rows(handle), of(&[(1, "open"), (2, "open")]));
    let new = with(with(frame, "version", json!(43)), "rows", json!([{"id": 9}]));
    assert!(matches!(bench.refuses(new), Violation::Form { .. }));
}

#[test]
fn pages_take_effect_with_the_last_and_others_may_come_between() {
    let mut bench = Bench::new();
    let (orders, orders_id) = bench.subscribe("orders");
    let (people, people_id) = bench.subscribe("people");
    bench.say(subscribed(orders_id, 7, 41));
    bench.say(subscribed(people_id, 8, 41));
    assert!(bench.say(with(snapshot(7, 41, &[(1, "a")]), "more", json!(true))).is_empty());
    assert!(bench.say(with(snapshot(8, 41, &[(5, "x")]), "more", json!(true))).is_empty());
    assert!(bench.rows(orders).is_empty() && bench.version(orders).is_none());
    bench.say(with(snapshot(7, 41, &[(2, "b")]), "more", json!(true)));
    bench.say(snapshot(8, 41, &[]));
    assert_eq!(bench.rows(people), of(&[(5, "x")]));
    bench.say(delta(8, 41, 43, &[(6, "y")], &[5]));
    // `live` does not count for what is not complete.
    bench.say(live(43));
    assert_eq!((bench.version(orders), bench.version(people)), (None, Some(43)));
    bench.say(snapshot(7, 41, &[(3, "c")]));
    assert_eq!(bench.rows(orders), of(&[(1, "a"), (2, "b"), (3, "c")]));
    assert_eq!(bench.version(orders), Some(41));
}

#[test]
fn pages_of_a_delta_take_effect_together() {
    let (mut bench, handle) = complete();
    assert!(bench.say(with(delta(7, 41, 50, &[(1, "paid")], &[]), "more", json!(true))).is_empty());
    bench.say(live(45));
    assert_eq!((bench.rows(handle)[0].1.as_str(), bench.version(handle)), ("open", Some(41)));
    assert!(bench.say(with(delta(7, 41, 50, &[], &[2]), "more", json!(true))).is_empty());
    let events = bench.say(delta(7, 41, 50, &[], &[9]));
    assert!(matches!(&events[0], Event::Changed { changes, .. } if changes.len() == 3));
    assert_eq!((bench.rows(handle), bench.version(handle)), (of(&[(1, "paid")]), Some(50)));
}

#[test]
fn a_page_of_something_else_between_two_pages_is_a_violation() {
    for wrong in [delta(7, 41, 51, &[], &[]), delta(7, 40, 50, &[], &[]), snapshot(7, 50, &[])] {
        let (mut bench, _) = complete();
        bench.say(with(delta(7, 41, 50, &[(1, "paid")], &[]), "more", json!(true)));
        assert!(matches!(bench.refuses(wrong), Violation::Form { .. }));
    }
}

#[test]
fn a_reset_discards_unfinished_pages_and_the_position_but_not_what_is_shown() {
    let (mut bench, handle) = complete();
    bench.say(with(delta(7, 41, 44, &[(1, "paid")], &[]), "more", json!(true)));
    let events = bench.say(json!({"op": "reset", "ch": 7, "why": "resync"}));
    assert_eq!(events, [Event::Reset { handle, why: "resync".into() }]);
    assert_eq!((bench.version(handle), bench.rows(handle).len()), (None, 2));
    bench.say(live(46));
    assert_eq!(bench.version(handle), None);
    assert!(matches!(bench.refuses(delta(7, 41, 44, &[], &[])), Violation::Form { .. }));
    bench.say(snapshot(7, 47, &[(4, "new")]));
    assert_eq!((bench.rows(handle), bench.version(handle)), (of(&[(4, "new")]), Some(47)));
}

#[test]
fn a_gap_is_noticed_and_subscribed_again_from_the_position() {
    let (mut bench, handle) = complete();
    let events = bench.say(delta(7, 42, 44, &[(1, "paid")], &[]));
    assert_eq!(events, [Event::Gap { handle }]);
    assert_eq!(bench.rows(handle), of(&[(1, "open"), (2, "open")]));
    let sent = bench.sent();
    assert_eq!((&sent[0]["op"], &sent[1]["op"]), (&json!("unsubscribe"), &json!("subscribe")));
    assert_eq!(sent[1]["resume"], json!({"tag": "t1", "epoch": "e1", "version": 41}));
    assert_ne!(sent[0]["id"], sent[1]["id"]);
    // What still comes of the old subscription is ignored.
    assert!(bench.say(delta(7, 44, 45, &[(1, "sent")], &[])).is_empty());
    assert!(bench.say(json!({"op": "unsubscribed", "id": sent[0]["id"]})).is_empty());
    let id = sent[1]["id"].as_u64().expect("an id");
    bench.say(with(subscribed(id, 7, 41), "resumed", json!(true)));
    bench.say(delta(7, 41, 45, &[(1, "sent")], &[]));
    assert_eq!((bench.rows(handle)[0].1.as_str(), bench.version(handle)), ("sent", Some(45)));
}

#[test]
fn prev_may_lie_below_the_position_but_never_the_version() {
    let (mut bench, handle) = complete();
    bench.say(live(50));
    bench.say(delta(7, 44, 52, &[(1, "paid")], &[]));
    assert_eq!(bench.version(handle), Some(52));
    assert!(matches!(
        bench.refuses(delta(7, 44, 51, &[(1, "open")], &[])),
        Violation::BackInTime { from: Version(52), to: Version(51), .. }
    ));
}

#[test]
fn a_snapshot_never_goes_back_in_time() {
    let (mut bench, _) = complete();
    bench.say(live(50));
    bench.say(json!({"op": "reset", "ch": 7, "why": "resync"}));
    assert!(matches!(bench.refuses(snapshot(7, 49, &[])), Violation::BackInTime { .. }));
}

#[test]
fn a_step_takes_effect_at_its_live() {
    let mut bench = Bench::new();
    let (orders, orders_id) = bench.subscribe("orders");
    let (people, people_id) = bench.subscribe("people");
    for (id, ch) in [(orders_id, 7), (people_id, 8)] {
        bench.say(subscribed(id, ch, 41));
        bench.say(snapshot(ch, 41, &[(1, "a")]));
    }
    assert!(bench.say(json!({"op": "step", "version": 44})).is_empty());
    assert!(bench.say(delta(7, 41, 44, &[(1, "b")], &[])).is_empty());
    assert_eq!(bench.rows(orders), of(&[(1, "a")]));
    assert!(bench.say(with(delta(8, 41, 44, &[(2, "c")], &[]), "more", json!(true))).is_empty());
    assert!(bench.say(delta(8, 41, 44, &[], &[1])).is_empty());
    // Not yet as far as the step goes.
    assert!(bench.say(live(43)).is_empty());
    let events = bench.say(live(44));
    assert!(matches!(events[..], [Event::Changed { .. }, Event::Changed { .. }, Event::Live(_)]));
    assert_eq!((bench.rows(orders), bench.rows(people)), (of(&[(1, "b")]), of(&[(2, "c")])));
}

#[test]
fn a_step_that_the_connection_breaks_off_never_happened() {
    let (mut bench, handle) = complete();
    bench.say(json!({"op": "step", "version": 44}));
    bench.say(delta(7, 41, 44, &[(1, "paid")], &[]));
    bench.client.disconnected();
    assert_eq!((bench.rows(handle)[0].1.as_str(), bench.version(handle)), ("open", Some(41)));
    assert!(!bench.client.is_complete(handle));
    bench.client.connected();
    assert_eq!(bench.sent()[0]["resume"]["version"], json!(41));
}

#[test]
fn after_a_reconnect_it_resumes_under_another_number() {
    let (mut bench, handle) = complete();
    bench.say(live(48));
    bench.client.connected();
    let sent = bench.sent();
    assert_eq!(sent[0]["resume"], json!({"tag": "t1", "epoch": "e1", "version": 48}));
    let id = sent[0]["id"].as_u64().expect("an id");
    let events = bench.say(with(subscribed(id, 3, 48), "resumed", json!(true)));
    assert_eq!(events, [Event::Subscribed { handle, resumed: true }]);
    // The old number means nothing on this connection.
    assert!(bench.say(delta(7, 48, 49, &[], &[1])).is_empty());
    bench.say(delta(3, 48, 50, &[], &[2]));
    assert_eq!(bench.rows(handle), of(&[(1, "open")]));
}

#[test]
fn a_refused_resume_is_a_snapshot_that_replaces_everything() {
    let (mut bench, handle) = complete();
    bench.client.connected();
    let id = bench.sent()[0]["id"].as_u64().expect("an id");
    let events = bench.say(with(subscribed(id, 3, 60), "tag", json!("t2")));
    assert_eq!(events, [Event::Subscribed { handle, resumed: false }]);
    assert_eq!((bench.rows(handle).len(), bench.version(handle)), (2, None));
    bench.say(snapshot(3, 60, &[(8, "new")]));
    assert_eq!(bench.rows(handle), of(&[(8, "new")]));
    assert_eq!(bench.client.form(handle).map(|form| form.tag.as_str()), Some("t2"));
}

#[test]
fn resuming_what_was_not_asked_for_is_a_violation() {
    let mut bench = Bench::new();
    let (_, id) = bench.subscribe("orders");
    assert!(matches!(bench.refuses(with(subscribed(id, 7, 41), "resumed", json!(true))), Violation::Form { .. }));
    let (mut bench, _) = complete();
    bench.client.connected();
    let id = bench.sent()[0]["id"].as_u64().expect("an id");
    let frame = with(with(subscribed(id, 7, 41), "resumed", json!(true)), "tag", json!("t2"));
    assert!(matches!(bench.refuses(frame), Violation::Form { .. }));
}

#[test]
fn a_resume_may_say_that_nothing_has_changed_up_to_a_later_version() {
    let (mut bench, handle) = complete();
    bench.client.connected();
    let id = bench.sent()[0]["id"].as_u64().expect("an id");
    bench.say(with(subscribed(id, 3, 60), "resumed", json!(true)));
    assert_eq!((bench.rows(handle).len(), bench.version(handle)), (2, Some(60)));
    bench.say(delta(3, 60, 61, &[(1, "paid")], &[]));
    assert_eq!(bench.version(handle), Some(61));
}

#[test]
fn columns_may_change_while_it_is_live() {
    let (mut bench, handle) = complete();
    let id = bench.client.subscriptions[&handle].wire_id.expect("an id");
    bench.say(with(delta(7, 41, 44, &[(1, "paid")], &[]), "more", json!(true)));
    let columns =
        json!([{"name": "id", "type": "int4"}, {"name": "status", "type": "text"}, {"name": "n", "type": "int4"}]);
    bench.say(with(with(subscribed(id, 7, 45), "tag", json!("t2")), "columns", columns));
    assert_eq!(bench.version(handle), None);
    bench.say(json!({"op": "snapshot", "ch": 7, "version": 45, "rows": [{"id": 1, "status": "paid", "n": 3}]}));
    let row = bench.client.sorted(handle)[0].1.clone();
    assert_eq!(row.to_value(), json!({"id": 1, "status": "paid", "n": 3}));
}

#[test]
fn a_second_id_shares_the_rows() {
    let (mut bench, first) = complete();
    let (second, id) = bench.subscribe("orders");
    let events = bench.say(with(subscribed(id, 7, 41), "shared", json!(true)));
    assert_eq!(events.len(), 2);
    assert_eq!(bench.rows(second), bench.rows(first));
    let events = bench.say(delta(7, 41, 44, &[(1, "paid")], &[]));
    assert_eq!(events.len(), 2);
    assert_eq!(bench.version(second), Some(44));
    bench.client.unsubscribe(first);
    bench.say(delta(7, 44, 45, &[(1, "sent")], &[]));
    assert_eq!(bench.rows(second)[0].1, "sent");
    // After a reconnect one resumes and the other shares again.
    let (third, _) = bench.subscribe("orders");
    bench.client.connected();
    let ids: Vec<u64> = bench.sent().iter().map(|message| message["id"].as_u64().expect("an id")).collect();
    bench.say(with(subscribed(ids[0], 2, 45), "resumed", json!(true)));
    bench.say(with(subscribed(ids[1], 2, 45), "shared", json!(true)));
    bench.say(delta(2, 45, 46, &[], &[1]));
    assert_eq!(bench.rows(second), of(&[(2, "open")]));
    assert_eq!(bench.rows(third), bench.rows(second));
}

#[test]
fn sharing_a_channel_that_the_connection_does_not_have_is_a_violation() {
    let mut bench = Bench::new();
    let (_, id) = bench.subscribe("orders");
    assert!(matches!(bench.refuses(with(subscribed(id, 7, 41), "shared", json!(true))), Violation::Form { .. }));
}

#[test]
fn ids_that_share_move_to_a_new_channel_one_by_one() {
    let (mut bench, first) = complete();
    let (second, second_id) = bench.subscribe("orders");
    bench.say(with(subscribed(second_id, 7, 41), "shared", json!(true)));
    let first_id = bench.client.subscriptions[&first].wire_id.expect("an id");
    bench.say(with(subscribed(first_id, 9, 50), "tag", json!("t2")));
    bench.say(delta(7, 41, 44, &[(1, "paid")], &[]));
    assert_eq!((bench.version(first), bench.version(second)), (None, Some(44)));
    bench.say(snapshot(9, 50, &[(1, "new")]));
    bench.say(with(with(subscribed(second_id, 9, 50), "tag", json!("t2")), "shared", json!(true)));
    assert_eq!((bench.rows(first), bench.rows(second)), (of(&[(1, "new")]), of(&[(1, "new")])));
    assert!(bench.say(delta(7, 44, 51, &[(1, "old")], &[])).is_empty());
}

#[test]
fn a_refused_subscription_can_be_asked_for_again() {
    let mut bench = Bench::new();
    let (handle, id) = bench.subscribe("orders");
    let error =
        json!({"op": "error", "id": id, "code": "unavailable", "message": "later", "retry": true, "retry_after_ms": 5});
    let events = bench.say(error.clone());
    assert!(matches!(&events[0], Event::Refused { error, .. } if error.retry && error.retry_after_ms == Some(5)));
    assert!(bench.say(error).is_empty());
    bench.client.retry(handle);
    bench.client.retry(handle);
    let sent = bench.sent();
    assert_eq!(sent.len(), 1);
    assert_ne!(sent[0]["id"], json!(id));
}

#[test]
fn a_subscription_that_ends_while_live_is_not_complete() {
    let (mut bench, handle) = complete();
    let id = bench.client.subscriptions[&handle].wire_id.expect("an id");
    bench.say(json!({"op": "error", "id": id, "code": "forbidden", "message": "no", "retry": false}));
    assert!(!bench.client.is_complete(handle));
    assert!(bench.say(delta(7, 41, 44, &[(1, "paid")], &[])).is_empty());
}

#[test]
fn an_error_without_an_id_concerns_the_connection() {
    let (mut bench, _) = complete();
    let events = bench.say(json!({"op": "error", "code": "bad_message", "message": "what?", "retry": false}));
    assert!(matches!(&events[0], Event::Error(error) if error.code == "bad_message"));
}

#[test]
fn unknown_ops_channels_and_fields_are_ignored() {
    let (mut bench, handle) = complete();
    assert!(bench.say(json!({"op": "shout", "rows": 1})).is_empty());
    assert!(bench.say(json!({"op": "pong"})).is_empty());
    assert!(bench.say(delta(99, 1, 2, &[(1, "x")], &[])).is_empty());
    bench.say(with(delta(7, 41, 44, &[(1, "paid")], &[]), "mood", json!("good")));
    assert_eq!(bench.version(handle), Some(44));
    assert!(matches!(bench.client.receive("{"), Err(Violation::Unreadable { .. })));
}

#[test]
fn a_key_stands_at_most_once_in_a_version() {
    for rows in [&[(1, "a"), (1, "b")][..], &[(2, "a")][..]] {
        let (mut bench, _) = complete();
        assert!(matches!(bench.refuses(delta(7, 41, 44, rows, &[2])), Violation::Form { .. }));
    }
}

#[test]
fn a_new_epoch_is_taken_from_the_delta_and_from_live() {
    let (mut bench, handle) = complete();
    bench.say(with(delta(7, 41, 44, &[], &[1]), "epoch", json!("e2")));
    assert_eq!(bench.client.position(handle).map(|position| position.epoch.as_str()), Some("e2"));
    bench.say(with(live(45), "epoch", json!("e3")));
    assert_eq!(bench.client.position(handle).map(|position| position.epoch.as_str()), Some("e3"));
}

#[test]
fn values_keep_every_digit_and_large_ones_their_size() {
    let mut bench = Bench::new();
    let (handle, id) = bench.subscribe("orders");
    bench.say(subscribed(id, 7, 41));
    let rows = r#"[{"id":1,"status":1.000000000000000000001},{"id":2,"status":null}]"#;
    let frame = format!(
        r#"{{"op":"snapshot","ch":7,"version":41,"rows":{rows},"large":[{{"key":[2],"columns":{{"status":1834021}}}}]}}"#
    );
    bench.client.receive(&frame).expect("a snapshot");
    let rows = bench.client.rows(handle).expect("rows");
    assert_eq!(rows["[1]"].value("status"), Some("1.000000000000000000001"));
    assert_eq!(rows["[2]"].large("status"), Some(1_834_021));
    bench.say(delta(7, 41, 42, &[(2, "small")], &[]));
    assert_eq!(bench.client.rows(handle).expect("rows")["[2]"].large("status"), None);
}

#[test]
fn rows_are_sorted_by_the_channels_order() {
    let mut bench = Bench::new();
    let (handle, id) = bench.subscribe("orders");
    let order =
        json!([{"column": "total", "dir": "desc", "nulls": "first"}, {"column": "id", "dir": "asc", "nulls": "last"}]);
    let columns = json!([{"name": "id", "type": "int8"}, {"name": "total", "type": "numeric"}]);
    bench.say(with(with(subscribed(id, 7, 41), "order", order), "columns", columns));
    bench.say(json!({"op": "snapshot", "ch": 7, "version": 41, "rows": [
        {"id": "10", "total": "9.5"}, {"id": "9", "total": "9.50"}, {"id": "3", "total": "100"}, {"id": "4", "total": null},
        {"id": "5", "total": "NaN"}, {"id": "6", "total": "-3"}]}));
    let sorted = bench.client.sorted(handle);
    let ids: Vec<String> = sorted.iter().map(|(_, row)| plain(row.value("id").expect("an id"))).collect();
    assert_eq!(ids, ["4", "5", "3", "9", "10", "6"]);
}

#[test]
fn nothing_is_sent_while_there_is_no_connection() {
    let mut client = Client::default();
    client.subscribe("orders");
    assert!(client.take_outgoing().is_empty());
    client.connected();
    assert_eq!(client.take_outgoing().len(), 1);
    client.disconnected();
    assert!(client.take_outgoing().is_empty());
}
