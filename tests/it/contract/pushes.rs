//! Subscriptions: in order, whole, at most once, and honest about what is missing.

use rowcast::store::Push;

use super::words::*;
use crate::harness::within;

crate::on_both_stores!(
    entries_come_before_the_beat_that_closes_them,
    a_beat_says_what_was_touched,
    a_version_is_pushed_with_its_last_part,
    what_was_never_closed_is_never_pushed,
    a_feed_not_asked_for_is_not_pushed,
    a_full_queue_ends_in_lost_and_goes_on,
    a_subscription_that_is_dropped_ends_its_filler,
);

async fn entries_come_before_the_beat_that_closes_them(bench: Bench) {
    let (orders, teams) = (feed("orders"), feed("teams"));
    let mut subscription = bench.subscribed(&[&orders, &teams]).await;
    let (fence, head) = bench.store.claim(0).await.expect("a claim");
    let mut follows = head.expect("a head").version.0;
    let mut expected = Vec::new();
    for version in 1000..1100 {
        bench.store.append(&whole(fence, follows, version, &[&orders, &teams])).await.expect("an append");
        follows = version;
        expected.extend([format!("e{version} orders.17"), format!("e{version} teams.17"), format!("b{version}")]);
    }
    for expected in expected {
        assert_eq!(next(&mut subscription).await, expected);
    }
}

async fn a_beat_says_what_was_touched(bench: Bench) {
    let mut subscription = bench.subscribed(&[]).await;
    let (fence, head) = bench.store.claim(0).await.expect("a claim");
    let head = head.expect("a head").version.0;
    let append =
        closing(parts(fence, head, 500, &[(&feed("orders"), 0), (&feed("orders"), 1)]), &[(&feed("orders"), 2)]);
    bench.store.append(&append).await.expect("an append");
    bench.store.beat(fence, &idle_beat(500)).await.expect("a beat");
    let Some(Push::Beat(closing)) = within("a beat", subscription.next()).await else { panic!("not a beat") };
    assert_eq!((closing.base.0, &closing.cut, closing.polled_at), (head, &cut(500), cut(500).as_of));
    assert_eq!((closing.touched, &*closing.catalogue), (append.closes.expect("a closing").touched, "c1"));
    let Some(Push::Beat(idle)) = within("a beat", subscription.next()).await else { panic!("not a beat") };
    assert_eq!(idle, idle_beat(500));
}

async fn a_version_is_pushed_with_its_last_part(bench: Bench) {
    let orders = feed("orders");
    let mut subscription = bench.subscribed(&[&orders]).await;
    let (fence, head) = bench.store.claim(0).await.expect("a claim");
    let head = head.expect("a head").version.0;
    for part in 0..3 {
        bench.store.append(&parts(fence, head, 500, &[(&orders, part)])).await.expect("an append");
        bench.store.beat(fence, &idle_beat(head)).await.expect("a beat");
    }
    let last = closing(parts(fence, head, 500, &[(&orders, 3)]), &[(&orders, 4)]);
    bench.store.append(&last).await.expect("an append");
    for _ in 0..3 {
        assert_eq!(next(&mut subscription).await, format!("b{head}"));
    }
    let Some(Push::Entry(of, pushed)) = within("an entry", subscription.next()).await else { panic!("not an entry") };
    assert_eq!(of, orders);
    assert_eq!((pushed.version.0, pushed.base.0, pushed.states.len()), (500, head, 4));
    assert_eq!(pushed.states, entry(&orders, head, 0, 500, 4).states);
    let read = bench.store.read_log(&orders, pushed.prev).await.expect("a log").entries.expect("entries");
    assert_eq!(read, [pushed], "the log says the same as the push");
    assert_eq!(next(&mut subscription).await, "b500");
}

async fn what_was_never_closed_is_never_pushed(bench: Bench) {
    let orders = feed("orders");
    let mut subscription = bench.subscribed(&[&orders]).await;
    let (killed, head) = bench.store.claim(0).await.expect("a claim");
    let head = head.expect("a head").version.0;
    bench.store.append(&parts(killed, head, 500, &[(&orders, 0)])).await.expect("an append");
    let next_leader = bench.claim().await;
    bench.store.append(&whole(next_leader, head, 501, &[&feed("teams")])).await.expect("an append");
    bench.store.append(&whole(next_leader, 501, 502, &[&orders])).await.expect("an append");
    assert_eq!(next(&mut subscription).await, "b501");
    assert_eq!(next(&mut subscription).await, "e502 orders.17");
    assert_eq!(next(&mut subscription).await, "b502");
}

async fn a_feed_not_asked_for_is_not_pushed(bench: Bench) {
    let (orders, teams) = (feed("orders"), feed("teams"));
    let mut subscription = bench.subscribed(&[&orders, &teams]).await;
    subscription.unfeed(&teams);
    let (fence, head) = bench.store.claim(0).await.expect("a claim");
    let mut follows = head.expect("a head").version.0;
    within("an unfeed in effect", async {
        loop {
            bench.store.append(&whole(fence, follows, follows + 1, &[&orders, &teams])).await.expect("an append");
            follows += 1;
            assert_eq!(next(&mut subscription).await, format!("e{follows} orders.17"));
            match next(&mut subscription).await.as_str() {
                teams if teams.starts_with('e') => assert_eq!(next(&mut subscription).await, format!("b{follows}")),
                _ => return,
            }
        }
    })
    .await;
    subscription.feed(&teams);
    within("a feed in effect again", async {
        loop {
            bench.store.append(&whole(fence, follows, follows + 1, &[&teams])).await.expect("an append");
            follows += 1;
            if next(&mut subscription).await == format!("e{follows} teams.17") {
                return;
            }
        }
    })
    .await;
}

async fn a_full_queue_ends_in_lost_and_goes_on(bench: Bench) {
    let mut subscription = bench.subscribed(&[]).await;
    let fence = bench.claim().await;
    let head = bench.head().await.expect("a head");
    for _ in 0..4_500 {
        bench.store.beat(fence, &idle_beat(head)).await.expect("a beat");
    }
    let mut beats = 0;
    while next(&mut subscription).await != "lost" {
        beats += 1;
    }
    assert_eq!(beats, 4_096);
    bench.store.append(&whole(fence, head, 9_000, &[&feed("orders")])).await.expect("an append");
    within("the first beat behind the gap", async { while next(&mut subscription).await != "b9000" {} }).await;
}

async fn a_subscription_that_is_dropped_ends_its_filler(bench: Bench) {
    let (subscription, filler) = bench.store.subscribe();
    let filler = tokio::spawn(filler);
    subscription.feed(&feed("orders"));
    drop(subscription);
    within("the end of the filler", filler).await.expect("no panic");
}
