//! Rows enter, stay and leave: by their own change, by a policy's, by a role's, by a membership's.

use crate::harness::seat::Seat;
use crate::harness::{until, within};
use crate::rls::stage::{Stage, user, with_role};

#[tokio::test(flavor = "multi_thread")]
async fn rows_enter_stay_and_leave_as_row_security_decides() {
    let mut stage = Stage::set().await;
    let node = stage.node().await;
    let (mut ann, at) = Seat::take(&node, user("ann"), &["notes"]).await;
    let (mut bob, bob_at) = Seat::take(&node, user("bob"), &["notes"]).await;
    let (mut staff, staff_at) = Seat::take(&node, with_role("s", "staff"), &["notes"]).await;
    for change in [
        "select 1",
        "update notes set body = 'stays' where id = 3",
        "update notes set owner = 'ann', body = 'enters' where id = 4",
        "update notes set owner = 'eve', team = 3 where id = 6",
        "update notes set owner = 'bob', team = null where id in (3, 9)",
        "update notes set id = 103 where id = 12",
        "delete from notes where id in (15, 16)",
        "insert into notes values (50, 'ann', 3, 'new'), (51, 'eve', 3, 'never seen by her')",
        "update notes set body = body || '!' where id > 10",
        "begin; update notes set owner = 'ann' where id = 7; update notes set owner = 'bob' where id = 7; commit",
        // These fire no trigger of the table.
        "create policy more on notes for select to app using (id = 2)",
        "drop policy own on notes",
        "create policy own on notes for select to app using (owner = (select auth.sub()))",
        "alter policy more on notes using (id = 5)",
        "drop policy more on notes",
    ] {
        stage.run(change).await;
        for (seat, handle, role, sub) in [
            (&mut ann, at[0], "app", "ann"),
            (&mut bob, bob_at[0], "app", "bob"),
            (&mut staff, staff_at[0], "staff", "s"),
        ] {
            let expected = stage.truth(role, sub).await;
            within(&format!("{sub} after {change}"), async {
                while !(seat.client.is_complete(handle) && seat.table(handle) == expected) {
                    seat.next().await;
                }
            })
            .await;
        }
    }
    let gone = ann.gone();
    for (key, why) in [("[6]", "permission"), ("[3]", "permission"), ("[15]", "deleted"), ("[12]", "deleted")] {
        assert!(gone.contains(&(key.to_owned(), why.to_owned())), "{key} {why}: {gone:?}");
    }
    assert!(!ann.frames.iter().any(|frame| frame.contains("never seen by her")));
    assert!(!gone.iter().any(|(key, _)| key == "[51]"), "{gone:?}");
    assert_eq!((ann.seen.resets, ann.seen.gaps, ann.seen.snapshots), (0, 0, 1), "{:?}", ann.seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_claims_share_a_channel_and_an_undeclared_claim_hides_the_row() {
    let mut stage = Stage::set().await;
    stage.run("create policy mail on notes for select to app using (body = current_setting('request.jwt.claims')::json ->> 'email')").await;
    let node = stage.node().await;
    let identity = |sub: &str, email: &str| {
        crate::harness::seat::proven(serde_json::json!({ "sub": sub, "role": "app", "email": email }))
    };
    // `note 2` is nobody's of these but by the claim, which is not declared.
    let (mut first, at) = Seat::take(&node, identity("ann", "note 2"), &["notes"]).await;
    let (mut second, at_second) = Seat::take(&node, identity("ann", "note 5"), &["notes"]).await;
    first.complete().await;
    second.complete().await;
    let expected = stage.truth("app", "ann").await;
    assert_eq!((first.table(at[0]), second.table(at_second[0])), (expected.clone(), expected));
    assert!(!first.keys(at[0]).contains(&"[2]".to_owned()));
    until("both have one channel", async || (node.hub.status().channels == 1).then_some(())).await;
    let (mut other, _) = Seat::take(&node, identity("bob", "note 2"), &["notes"]).await;
    other.complete().await;
    until("another identity is another channel", async || (node.hub.status().channels == 2).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_membership_that_changes_is_seen_with_the_next_marker() {
    let mut stage = Stage::set().await;
    let node = stage.node().await;
    let (mut ann, at) = Seat::take(&node, user("ann"), &["notes"]).await;
    ann.complete().await;
    // What a trigger on a relation that the publication depends on writes.
    let marker = "select rowcast.log_marker(p.id) from rowcast.publications as p where p.name = 'notes'";
    for change in ["insert into members values (2, 'ann')", "delete from members where team = 1 and sub = 'ann'"] {
        stage.run(&format!("begin; {change}; {marker}; commit")).await;
        let expected = stage.truth("app", "ann").await;
        ann.until(change, |seat| seat.client.is_complete(at[0]) && seat.table(at[0]) == expected).await;
    }
    assert_eq!((ann.seen.snapshots, ann.seen.resets, ann.seen.gaps), (1, 0, 0), "differences: {:?}", ann.seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_resumes_what_it_may_see_on_another_node_after_the_leader_died() {
    let mut stage = Stage::set().await;
    let mut first = stage.node_of_many();
    first.leads().await;
    let second = stage.node_of_many();
    let (mut ann, at) = Seat::take(&first, user("ann"), &["notes"]).await;
    let (mut bob, bob_at) = Seat::take(&second, user("bob"), &["notes"]).await;
    ann.complete().await;
    bob.complete().await;
    stage.run("update notes set body = 'seen' where id = 3").await;
    let expected = stage.truth("app", "ann").await;
    ann.until("a change", |seat| seat.table(at[0]) == expected).await;
    ann.stand_up();

    stage.run("update notes set owner = 'eve', team = null where id = 3").await;
    stage.run("insert into notes values (60, 'ann', 3, 'came meanwhile')").await;
    let expected = stage.truth("app", "ann").await;
    ann.sit_down(&first).await;
    ann.until("what was missed", |seat| seat.client.is_complete(at[0]) && seat.table(at[0]) == expected).await;
    assert_eq!((ann.seen.resumed, ann.seen.snapshots), (1, 1), "{:?}", ann.seen);
    assert!(ann.gone().contains(&("[3]".into(), "permission".into())), "{:?}", ann.gone());
    ann.stand_up();

    first.kill_relay().await;
    stage.run("update notes set owner = 'ann' where id = 3; update notes set owner = 'bob' where id = 6").await;
    let expected = stage.truth("app", "ann").await;
    ann.sit_down(&second).await;
    ann.until("on another node", |seat| seat.client.is_complete(at[0]) && seat.table(at[0]) == expected).await;
    let expected = stage.truth("app", "bob").await;
    bob.until("the new leader", |seat| seat.client.is_complete(bob_at[0]) && seat.table(bob_at[0]) == expected).await;
    assert_eq!((bob.seen.resets, bob.seen.gaps), (0, 0), "{:?}", bob.seen);
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_and_keys_of_several_columns_are_followed_row_by_row() {
    let mut stage = Stage::set().await;
    stage
        .run(
            "create table logs (day date, number numeric, owner text, primary key (day, number)) partition by range (day);
             create table logs_1 partition of logs for values from ('2026-01-01') to ('2026-02-01');
             create table logs_2 partition of logs for values from ('2026-02-01') to ('2026-03-01');
             alter table logs enable row level security;
             grant select on logs to app;
             grant select (day, number, owner) on logs to staff;
             create policy own on logs for select to app, staff using (owner = (select auth.sub()));
             insert into logs select ('2026-01-01'::date + i), i, case i % 2 when 0 then 'ann' else 'bob' end
             from generate_series(0, 40) as i;
             select rowcast.publish('logs', policy => 'rls')",
        )
        .await;
    let node = stage.node().await;
    let mut seats = Vec::new();
    // By place, and by key where the role may read columns only.
    for role in ["app", "staff"] {
        let (mut seat, at) = Seat::take(&node, with_role("ann", role), &["logs"]).await;
        seat.complete().await;
        assert_eq!(seat.table(at[0]).len(), 21);
        seats.push((seat, at[0]));
    }
    stage
        .run(
            "update logs set owner = 'ann' where number = 3;
             update logs set owner = 'bob' where number in (2, 36);
             update logs set day = '2026-02-20' where number = 4;
             delete from logs where number = 38",
        )
        .await;
    for (seat, handle) in &mut seats {
        seat.until("the changes", |seat| {
            let keys = seat.keys(*handle);
            keys.contains(&r#"["2026-01-04","3"]"#.to_owned())
                && keys.contains(&r#"["2026-02-20","4"]"#.to_owned())
                && keys.len() == 19
        })
        .await;
        let mut gone = seat.gone();
        gone.sort();
        let expected = [
            (r#"["2026-01-03","2"]"#, "permission"),
            (r#"["2026-01-05","4"]"#, "deleted"),
            (r#"["2026-02-06","36"]"#, "permission"),
            (r#"["2026-02-08","38"]"#, "deleted"),
        ];
        assert_eq!(gone, expected.map(|(key, why)| (key.to_owned(), why.to_owned())));
        assert_eq!(seat.seen.snapshots, 1);
    }
}
