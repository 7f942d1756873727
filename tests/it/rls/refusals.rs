//! What is closed: roles that row security does not bind, missing privileges, policies that fail.

use std::time::{Duration, Instant};

use rowcast::identity::Identity;

use crate::harness::seat::{Inside, Seat, proven};
use crate::harness::{DEADLINE, until};
use crate::rls::stage::{Stage, user, with_role};

/// The code by which a subscription is refused.
async fn refused(node: &Inside, identity: Identity) -> String {
    let (mut seat, _) = Seat::take(node, identity, &["notes"]).await;
    seat.until("a refusal", |seat| !seat.seen.refused.is_empty()).await;
    assert_eq!(seat.seen.snapshots, 0);
    seat.seen.refused[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_that_row_security_does_not_bind_are_refused() {
    let mut stage = Stage::set().await;
    stage.run("create role boss superuser; create role owner; grant usage, create on schema public to owner; alter table notes owner to owner").await;
    let node = stage.node().await;
    for identity in [
        Identity::Anonymous,
        proven(serde_json::json!({ "sub": "ann" })),
        with_role("ann", "postgres"),
        with_role("ann", "boss"),
        with_role("ann", "owner"),
    ] {
        assert_eq!(refused(&node, identity.clone()).await, "forbidden", "{identity:?}");
    }
    let (mut ann, at) = Seat::take(&node, user("ann"), &["notes"]).await;
    ann.complete().await;
    assert_eq!(ann.table(at[0]), stage.truth("app", "ann").await);
    // The owner is bound where the table says so.
    stage.run("alter table notes force row level security").await;
    let (mut owner, owner_at) = Seat::take(&node, with_role("ann", "owner"), &["notes"]).await;
    owner.complete().await;
    assert!(owner.keys(owner_at[0]).is_empty());
    // And a role that ceases to be bound loses what it has.
    stage.run("alter role app bypassrls").await;
    ann.until("the end", |seat| seat.seen.refused == ["forbidden"]).await;
    assert!(!ann.frames.iter().any(|frame| frame.contains("\"note 11\"")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_role_may_not_read_is_forbidden_and_columns_suffice() {
    let mut stage = Stage::set().await;
    stage.run("revoke select on notes from app; grant select (id, owner, team) on notes to app").await;
    stage.run("select rowcast.publish('notes', name => 'titles', policy => 'rls', columns => '{id,owner}')").await;
    let node = stage.node().await;
    assert_eq!(refused(&node, user("ann")).await, "forbidden");
    let (mut ann, at) = Seat::take(&node, user("ann"), &["titles"]).await;
    ann.complete().await;
    stage
        .run("update notes set owner = 'ann' where id = 5; update notes set owner = 'eve', team = null where id = 3")
        .await;
    let expected: Vec<String> = {
        let rows: Vec<(String,)> = sqlx::query_as(
            "select json_build_array(id)::text from notes
             where owner = 'ann' or team in (select team from members where sub = 'ann')",
        )
        .fetch_all(&mut stage.connection)
        .await
        .expect("rows");
        let mut keys: Vec<String> = rows.into_iter().map(|(key,)| key).collect();
        keys.sort();
        keys
    };
    ann.until("by single columns", |seat| seat.keys(at[0]) == expected).await;
    assert!(ann.gone().contains(&("[3]".into(), "permission".into())));
    assert_eq!(ann.seen.snapshots, 1);
    // A privilege that is taken away takes the rows with it.
    stage.run("revoke select (owner) on notes from app").await;
    ann.until("the end", |seat| seat.seen.refused == ["forbidden"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_fails_for_one_does_not_touch_the_others() {
    let mut stage = Stage::set().await;
    // It fails for bob alone, and only where he would see a row whose body says so.
    stage
        .run(
            "create policy broken on notes as restrictive for select to app
             using (auth.sub() <> 'bob' or body <> 'boom' or 1 / (id - id) = 1)",
        )
        .await;
    let node = stage.node().await;
    let (mut ann, at) = Seat::take(&node, user("ann"), &["notes"]).await;
    let (mut bob, bob_at) = Seat::take(&node, user("bob"), &["notes"]).await;
    ann.complete().await;
    bob.complete().await;
    stage.run("update notes set body = 'boom' where id in (1, 3)").await;
    let expected = stage.truth("app", "ann").await;
    ann.until("hers", |seat| seat.table(at[0]) == expected).await;
    assert_eq!((ann.seen.snapshots, ann.seen.resets), (1, 0), "{:?}", ann.seen);
    bob.until("his end", |seat| seat.seen.refused == ["unavailable"]).await;
    // Mended, he comes back.
    stage.run("drop policy broken on notes").await;
    bob.stand_up();
    let (mut bob, bob_again) = Seat::take(&node, user("bob"), &["notes"]).await;
    bob.complete().await;
    assert_eq!(bob.table(bob_again[0]), stage.truth("app", "bob").await);
    let _ = bob_at;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_dropped_takes_only_its_own_channels_with_it() {
    let mut stage = Stage::set().await;
    stage.run("create role boss; grant usage on schema public to boss; grant select on notes to boss; create policy b on notes for select to boss using (true)").await;
    let node = stage.node().await;
    let (mut ann, at) = Seat::take(&node, user("ann"), &["notes"]).await;
    let (mut boss, _) = Seat::take(&node, with_role("x", "boss"), &["notes"]).await;
    ann.complete().await;
    boss.complete().await;
    stage.run("drop owned by boss; drop role boss; update notes set body = 'after' where id = 3").await;
    let expected = stage.truth("app", "ann").await;
    ann.until("hers", |seat| seat.client.is_complete(at[0]) && seat.table(at[0]) == expected).await;
    boss.until("the end", |seat| !seat.seen.refused.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_that_take_too_long_for_one_hold_up_the_others_once() {
    let mut stage = Stage::set().await;
    // 24 rows are more than a cut has time for.
    stage
        .run("create policy slow on notes as restrictive for select to app using (auth.sub() <> 'bob' or pg_sleep(0.2) is null)")
        .await;
    let node = stage.node().await;
    let (mut ann, at) = Seat::take(&node, user("ann"), &["notes"]).await;
    ann.complete().await;
    let (_bob, _) = Seat::take(&node, user("bob"), &["notes"]).await;
    until("both are live", async || {
        let live = stage.local.live_identities("").await.expect("an answer")?;
        (live.identities.len() == 2).then_some(())
    })
    .await;
    for (body, patience) in [("once", DEADLINE), ("again", Duration::from_secs(5))] {
        let began = Instant::now();
        stage.run(&format!("update notes set body = '{body}'")).await;
        let expected = stage.truth("app", "ann").await;
        ann.until("hers", |seat| seat.client.is_complete(at[0]) && seat.table(at[0]) == expected).await;
        assert!(began.elapsed() < patience, "{body} took {:?}", began.elapsed());
    }
    assert_eq!(ann.seen.refused.len(), 0);
}
