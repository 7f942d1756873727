//! Channels that row security decides about, and entries that tell or do not tell of their identity.

use super::*;
use crate::entry::seen::Seen;
use crate::identity::{Claims, RlsSettings};

/// A node with a channel of the publication `c`, live at version 40 with two rows; its client, and its identity's hash.
fn node() -> (Node, Inbox, Arc<str>) {
    let mut node = Node::new();
    node.state.settings.rls = RlsSettings { roles: vec!["app".into()], ..RlsSettings::default() };
    let notes = Publication { policy: Policy::Rls, id: 3, ..publication("c") };
    let catalogue = Catalogue { publications: [("c".into(), Arc::new(notes))].into_iter().collect() };
    node.state.on_catalogue(Some(Arc::new(catalogue)), node.now);
    let mut inbox = node.attach(1);
    let Value::Object(all) = json!({ "role": "app", "sub": "ann" }) else { panic!("an object") };
    let subscribe = Subscribe {
        session: SessionId(1),
        id: 1,
        request: ChannelRequest::parse("c"),
        identity: Identity::Proven(Arc::new(Claims { all, expires: None })),
        resume: None,
    };
    node.state.on_command(Command::Subscribe(Box::new(subscribe)), node.now);
    node.turn();
    let flight = node.flights().pop().expect("a flight");
    node.land(&flight, Place::At(Version(40)), &[(1, 10), (2, 20)]);
    take(&mut inbox);
    node.written(1);
    let spec = node.state.channels.values().next().expect("a channel").spec.clone();
    let identity = spec.onlooker().expect("row security decides").identity.hash_text();
    (node, inbox, identity)
}

/// A version that changes rows 1 and 2, and tells that `who` sees these of them.
fn version(node: &mut Node, version: u64, who: &str, indices: &[u32]) {
    let mut seen = Seen::default();
    seen.note(who.into(), indices.to_vec(), 2);
    let mut writer = PartsWriter::new(&schema().id());
    for id in [1, 2] {
        writer.push(&format!("[{id}]"), Some(&format!("[{id},{version}]")));
    }
    let entry = Node::entry(version - 1, version, writer.finish_seen(&seen));
    node.state.on_push(Push::Entry(feed("c"), entry), node.now);
    node.beat(EPOCH, version - 1, version, &["c"]);
}

#[test]
fn what_is_not_seen_is_gone_and_what_is_seen_again_is_new() {
    let (mut node, mut inbox, identity) = node();
    version(&mut node, 41, &identity, &[0]);
    let frames = take(&mut inbox);
    assert_eq!(frames[0]["rows"], json!([{ "id": 1, "n": 41 }]));
    assert_eq!(frames[0]["gone"], json!([{ "key": [2], "why": "permission" }]));
    node.written(1);
    version(&mut node, 42, &identity, &[0, 1]);
    assert_eq!(take(&mut inbox)[0]["rows"], json!([{ "id": 1, "n": 42 }, { "id": 2, "n": 42 }]));
    assert!(node.flights().is_empty());
}

#[test]
fn an_entry_that_does_not_tell_has_the_rows_read_again() {
    let (mut node, mut inbox, identity) = node();
    version(&mut node, 41, "somebody else", &[0, 1]);
    assert!(take(&mut inbox).is_empty(), "nothing is shown of what may be hidden");
    let flight = node.flights().pop().expect("it is read again");
    // Rows from between: the next entry does not tell either, and they cannot pass it.
    node.land(&flight, Place::Sees("415:415:".parse().expect("a snapshot")), &[(1, 41)]);
    version(&mut node, 42, "somebody else", &[0, 1]);
    assert!(take(&mut inbox).is_empty() && node.flights().is_empty(), "not at once");
    node.later(Duration::from_millis(250));
    let flight = node.flights().pop().expect("it is read again");
    node.land(&flight, Place::Sees("425:425:".parse().expect("a snapshot")), &[(1, 42)]);
    version(&mut node, 43, &identity, &[0]);
    let frames = take(&mut inbox);
    let delta = frames.iter().find(|frame| frame["op"] == "delta").expect("a delta");
    assert_eq!(delta["rows"], json!([{ "id": 1, "n": 43 }]));
    assert_eq!(delta["gone"], json!([{ "key": [2] }]), "hidden or deleted: who knows");
}

#[test]
fn a_channel_that_is_never_told_of_ends_for_now() {
    let (mut node, mut inbox, _) = node();
    let mut frames = Vec::new();
    for number in 41..60 {
        version(&mut node, number, "somebody else", &[]);
        frames.extend(take(&mut inbox));
        node.later(Duration::from_millis(250));
        for flight in node.flights() {
            let between = format!("{0}:{0}:", number * 10 + 5).parse().expect("a snapshot");
            node.land(&flight, Place::Sees(between), &[(1, number)]);
        }
    }
    let error = frames.iter().find(|frame| frame["op"] == "error").expect("an end");
    assert_eq!((&error["code"], &error["retry"]), (&json!("unavailable"), &json!(true)));
    assert!(frames.iter().all(|frame| frame["rows"].is_null()), "{frames:?}");
    assert!(node.state.channels.is_empty());
}

#[test]
fn live_identities_are_registered_again_and_again() {
    let (mut node, _inbox, _) = node();
    node.effects.clear();
    for _ in 0..3 {
        node.later(Duration::from_secs(5));
        let registered = |effect: &Effect| matches!(effect, Effect::Register(onlookers) if onlookers.len() == 1);
        assert!(node.effects.iter().any(registered), "{:?}", node.effects);
        node.effects.clear();
    }
}
