//! Appending and reading: one writer, nothing above the head, and a log that knows how far it reaches.

use rowcast::store::{Closing, Fence};
use rowcast::version::{Cut, Epoch, Version};

use super::words::*;

crate::on_both_stores!(
    an_empty_store_has_no_head_and_reaches_nothing,
    a_fence_is_above_every_earlier_one_and_the_floor,
    nobody_writes_without_a_claim,
    a_leader_that_was_replaced_writes_nothing,
    an_append_follows_the_head_or_is_refused,
    what_was_appended_is_read_back_whole,
    each_entry_names_the_feeds_entry_before_it,
    a_feed_that_never_had_an_entry_reaches_back_to_the_heads_beginning,
    a_version_is_invisible_until_its_last_part,
    what_a_leader_left_between_the_parts_is_gone_with_the_next_append,
    a_version_cannot_close_without_all_its_parts,
    a_log_trimmed_by_length_says_what_it_does_not_reach,
    a_log_trimmed_by_age_says_what_it_does_not_reach,
    a_log_trimmed_within_a_version_does_not_reach_it,
    a_log_that_nobody_writes_to_is_trimmed_by_age_too,
    a_new_epoch_continues_the_log,
    versions_only_ascend,
    a_forgotten_feed_is_gone,
    a_long_log_is_read_whole,
);

async fn an_empty_store_has_no_head_and_reaches_nothing(bench: Bench) {
    bench.store.ping().await.expect("a store that is up");
    assert_eq!(bench.head().await, None);
    let read = bench.store.read_log(&feed("orders"), Version(5)).await.expect("a log");
    assert!(read.head.is_none() && read.entries.is_none());
    assert!(bench.store.claim(0).await.expect("a claim").1.is_none());
}

async fn a_fence_is_above_every_earlier_one_and_the_floor(bench: Bench) {
    assert_eq!(bench.store.claim(40).await.expect("a claim").0, Fence(40));
    assert_eq!(bench.store.claim(12).await.expect("a claim").0, Fence(41));
    let large = (1 << 53) - 7;
    assert_eq!(bench.store.claim(large).await.expect("a claim").0, Fence(large));
    bench.write(0, 3, &feed("orders")).await;
    let (fence, head) = bench.store.claim(0).await.expect("a claim");
    assert_eq!(fence, Fence(large + 2));
    assert_eq!(head, Some(cut(3)));
}

async fn nobody_writes_without_a_claim(bench: Bench) {
    assert_stale(bench.store.append(&whole(Fence(1), 0, 1, &[&feed("orders")])).await);
    assert_stale(bench.store.append(&whole(Fence(0), 0, 1, &[&feed("orders")])).await);
    assert_stale(bench.store.beat(Fence(1), &idle_beat(1)).await);
    assert_eq!(bench.head().await, None);
}

async fn a_leader_that_was_replaced_writes_nothing(bench: Bench) {
    let orders = feed("orders");
    let old = bench.claim().await;
    bench.store.append(&whole(old, 0, 1, &[&orders])).await.expect("an append");
    let new = bench.claim().await;
    assert_stale(bench.store.append(&whole(old, 1, 2, &[&orders])).await);
    assert_stale(bench.store.append(&parts(old, 1, 2, &[(&orders, 0)])).await);
    assert_stale(bench.store.beat(old, &idle_beat(1)).await);
    assert_eq!((bench.head().await, bench.log(&orders, 0).await), (Some(1), Some(vec![1])));
    bench.store.append(&whole(new, 1, 3, &[&orders])).await.expect("an append");
    bench.store.beat(new, &idle_beat(3)).await.expect("a beat");
}

async fn an_append_follows_the_head_or_is_refused(bench: Bench) {
    let orders = feed("orders");
    let fence = bench.claim().await;
    assert_moved(bench.store.append(&whole(fence, 1, 2, &[&orders])).await);
    bench.store.append(&whole(fence, 0, 2, &[&orders])).await.expect("an append");
    assert_moved(bench.store.append(&whole(fence, 0, 3, &[&orders])).await);
    assert_moved(bench.store.append(&whole(fence, 1, 3, &[&orders])).await);
    let mut other_epoch = whole(fence, 2, 3, &[&orders]);
    other_epoch.follows = Some((Epoch::new("e0"), Version(2)));
    assert_moved(bench.store.append(&other_epoch).await);
    assert_moved(bench.store.beat(fence, &idle_beat(1)).await);
    assert_eq!((bench.head().await, bench.log(&orders, 0).await), (Some(2), Some(vec![2])));
}

async fn what_was_appended_is_read_back_whole(bench: Bench) {
    let (orders, teams) = (feed("orders"), feed("app.teams-2_x"));
    let fence = bench.claim().await;
    let mut first =
        closing(parts(fence, 0, 9, &[(&orders, 0), (&orders, 1), (&teams, 0)]), &[(&orders, 2), (&teams, 1)]);
    first.base = Version(4);
    bench.store.append(&first).await.expect("an append");
    let read = bench.store.read_log(&orders, Version(4)).await.expect("a log");
    assert_eq!(read.head, Some(cut(9)));
    assert_eq!(*read.entries.expect("entries")[0], entry(&orders, 4, 4, 9, 2));
    let read = bench.second().read_log(&teams, Version(5)).await.expect("a log");
    assert_eq!(*read.entries.expect("entries")[0], entry(&teams, 4, 4, 9, 1));
}

async fn each_entry_names_the_feeds_entry_before_it(bench: Bench) {
    let (orders, teams) = (feed("orders"), feed("teams"));
    let fence = bench.claim().await;
    for (follows, version, feeds) in [(0, 2, vec![&orders]), (2, 4, vec![&teams]), (4, 7, vec![&orders, &teams])] {
        bench.store.append(&whole(fence, follows, version, &feeds)).await.expect("an append");
    }
    let read = bench.store.read_log(&orders, Version(0)).await.expect("a log").entries.expect("entries");
    assert_eq!([&*read[0], &*read[1]], [&entry(&orders, 0, 0, 2, 1), &entry(&orders, 4, 2, 7, 1)]);
    let read = bench.store.read_log(&teams, Version(0)).await.expect("a log").entries.expect("entries");
    assert_eq!([&*read[0], &*read[1]], [&entry(&teams, 2, 0, 4, 1), &entry(&teams, 4, 4, 7, 1)]);
    assert_eq!(bench.log(&orders, 5).await, Some(vec![7]));
    assert_eq!(bench.log(&orders, 7).await, Some(vec![]));
    assert_eq!(bench.log(&orders, 99).await, Some(vec![]));
}

async fn a_feed_that_never_had_an_entry_reaches_back_to_the_heads_beginning(bench: Bench) {
    let fence = bench.claim().await;
    let mut first = whole(fence, 0, 9, &[&feed("orders")]);
    first.base = Version(6);
    bench.store.append(&first).await.expect("an append");
    bench.store.append(&whole(fence, 9, 10, &[&feed("orders")])).await.expect("an append");
    let idle = feed("idle");
    assert_eq!(bench.log(&idle, 6).await, Some(vec![]));
    assert_eq!(bench.log(&idle, 10).await, Some(vec![]));
    assert_eq!(bench.log(&idle, 5).await, None);
}

async fn a_version_is_invisible_until_its_last_part(bench: Bench) {
    let (orders, teams) = (feed("orders"), feed("teams"));
    let fence = bench.claim().await;
    bench.store.append(&whole(fence, 0, 1, &[&orders])).await.expect("an append");
    bench.store.append(&parts(fence, 1, 2, &[(&orders, 0), (&teams, 0)])).await.expect("an append");
    bench.store.append(&parts(fence, 1, 2, &[(&orders, 1)])).await.expect("an append");
    assert_eq!(bench.head().await, Some(1));
    assert_eq!(bench.log(&orders, 0).await, Some(vec![1]));
    assert_eq!(bench.log(&teams, 0).await, Some(vec![]));
    let last = closing(parts(fence, 1, 2, &[(&orders, 2)]), &[(&teams, 1), (&orders, 3)]);
    bench.store.append(&last).await.expect("an append");
    assert_eq!(bench.head().await, Some(2));
    let read = bench.store.read_log(&orders, Version(1)).await.expect("a log").entries.expect("entries");
    assert_eq!(*read[0], entry(&orders, 1, 1, 2, 3));
    assert_eq!(bench.log(&teams, 0).await, Some(vec![2]));
}

async fn what_a_leader_left_between_the_parts_is_gone_with_the_next_append(bench: Bench) {
    let (orders, teams, notes) = (feed("orders"), feed("teams"), feed("notes"));
    let killed = bench.claim().await;
    bench.store.append(&whole(killed, 0, 1, &[&orders])).await.expect("an append");
    bench.store.append(&parts(killed, 1, 2, &[(&orders, 0), (&teams, 0), (&notes, 0)])).await.expect("an append");
    let next = bench.claim().await;
    // The next version touches one of the three feeds, in parts of its own.
    bench.store.append(&parts(next, 1, 3, &[(&orders, 0)])).await.expect("an append");
    let last = closing(parts(next, 1, 3, &[(&orders, 1)]), &[(&orders, 2)]);
    bench.store.append(&last).await.expect("an append");
    let read = bench.store.read_log(&orders, Version(0)).await.expect("a log").entries.expect("entries");
    assert_eq!([&*read[0], &*read[1]], [&entry(&orders, 0, 0, 1, 1), &entry(&orders, 1, 1, 3, 2)]);
    assert_eq!(bench.log(&teams, 0).await, Some(vec![]));
    bench.store.append(&whole(next, 3, 4, &[&teams])).await.expect("an append");
    assert_eq!(bench.log(&teams, 0).await, Some(vec![4]));
    assert_eq!(bench.log(&notes, 0).await, Some(vec![]));
    if let Some(redis) = &bench.redis {
        let left = |stream: &str| redis::from_redis_value::<u64>(redis.command(&["XLEN", stream])).expect("a length");
        assert_eq!(left("rowcast:notes.17:log"), 0);
        assert_eq!(left("rowcast:orders.17:log"), 3);
    }
}

async fn a_version_cannot_close_without_all_its_parts(bench: Bench) {
    let orders = feed("orders");
    let fence = bench.claim().await;
    assert_moved(bench.store.append(&closing(parts(fence, 0, 1, &[(&orders, 1)]), &[(&orders, 2)])).await);
    assert_moved(bench.store.append(&closing(parts(fence, 0, 1, &[(&orders, 1)]), &[(&orders, 1)])).await);
    assert_moved(bench.store.append(&closing(parts(fence, 0, 1, &[(&orders, 0)]), &[(&orders, 2)])).await);
    assert_moved(bench.store.append(&closing(parts(fence, 0, 1, &[]), &[(&orders, 1)])).await);
    assert_eq!(bench.head().await, None);
}

async fn a_log_trimmed_by_length_says_what_it_does_not_reach(bench: Bench) {
    let orders = feed("orders");
    for version in 1..=8 {
        bench.write(version - 1, version, &orders).await;
    }
    assert_eq!(bench.log(&orders, 2).await, None);
    assert_eq!(bench.log(&orders, 3).await, Some(vec![4, 5, 6, 7, 8]));
    assert_eq!(bench.log(&orders, 6).await, Some(vec![7, 8]));
}

async fn a_log_trimmed_by_age_says_what_it_does_not_reach(bench: Bench) {
    let orders = feed("orders");
    for (follows, version) in [(0, 100), (100, 130), (130, 170), (170, 200)] {
        bench.write(follows, version, &orders).await;
    }
    assert_eq!(bench.log(&orders, 99).await, None, "100 is older than a minute");
    assert_eq!(bench.log(&orders, 140).await, Some(vec![170, 200]));
}

async fn a_log_trimmed_within_a_version_does_not_reach_it(bench: Bench) {
    let orders = feed("orders");
    let fence = bench.claim().await;
    let long = closing(parts(fence, 0, 1, &[(&orders, 0), (&orders, 1), (&orders, 2)]), &[(&orders, 3)]);
    bench.store.append(&long).await.expect("an append");
    for version in 2..=4 {
        bench.write(version - 1, version, &orders).await;
    }
    assert_eq!(bench.log(&orders, 0).await, None);
    assert_eq!(bench.log(&orders, 1).await, Some(vec![2, 3, 4]));
}

async fn a_log_that_nobody_writes_to_is_trimmed_by_age_too(bench: Bench) {
    let (orders, idle) = (feed("orders"), feed("idle"));
    bench.write(0, 10, &idle).await;
    bench.write(10, 40, &orders).await;
    bench.write(40, 75, &orders).await;
    bench.write(75, 110, &orders).await;
    assert_eq!(bench.log(&idle, 9).await, None);
    assert_eq!(bench.log(&idle, 10).await, Some(vec![]));
}

async fn a_new_epoch_continues_the_log(bench: Bench) {
    let orders = feed("orders");
    bench.write(0, 5, &orders).await;
    let fence = bench.claim().await;
    let mut next = whole(fence, 5, 8, &[&orders]);
    next.cut.epoch = Epoch::new("e2");
    bench.store.append(&next).await.expect("an append");
    assert_eq!(bench.store.head().await.expect("a head"), Some(Cut { epoch: Epoch::new("e2"), ..cut(8) }));
    let read = bench.store.read_log(&orders, Version(0)).await.expect("a log").entries.expect("entries");
    let epochs: Vec<&str> = read.iter().map(|entry| entry.epoch.as_str()).collect();
    assert_eq!((epochs, read[1].prev), (vec!["e1", "e2"], Version(5)));
    assert_moved(bench.store.append(&whole(fence, 8, 9, &[&orders])).await);
}

async fn versions_only_ascend(bench: Bench) {
    let orders = feed("orders");
    bench.write(0, 5, &orders).await;
    let fence = bench.claim().await;
    for version in [4, 5] {
        let refused = bench.store.append(&whole(fence, 5, version, &[&orders])).await;
        assert!(refused.is_err(), "version {version}");
    }
    assert_eq!((bench.head().await, bench.log(&orders, 0).await), (Some(5), Some(vec![5])));
}

async fn a_forgotten_feed_is_gone(bench: Bench) {
    let (orders, teams) = (feed("orders"), feed("teams"));
    let fence = bench.claim().await;
    bench.store.append(&whole(fence, 0, 1, &[&orders, &teams])).await.expect("an append");
    let mut next = whole(fence, 1, 2, &[&orders]);
    next.closes = next.closes.map(|closing| Closing { forget: vec![teams.clone()], ..closing });
    bench.store.append(&next).await.expect("an append");
    assert_eq!(bench.log(&orders, 0).await, Some(vec![1, 2]));
    let read = bench.store.read_log(&teams, Version(0)).await.expect("a log");
    assert_eq!(read.entries.map(|entries| entries.len()), Some(0));
    if let Some(redis) = &bench.redis {
        assert_eq!(redis.command(&["EXISTS", "rowcast:teams.17:log"]), redis::Value::Int(0));
        assert_eq!(redis.command(&["HEXISTS", "rowcast:head", "last:teams.17"]), redis::Value::Int(0));
    }
}

/// Longer than a page of the Redis store, in items and in bytes.
async fn a_long_log_is_read_whole(bench: Bench) {
    let store = match &bench.redis {
        Some(redis) => redis_store(redis, Default::default()),
        None => std::sync::Arc::new(rowcast::store::local::LocalStore::new(Default::default())),
    };
    let orders = feed("orders");
    let (fence, _) = store.claim(0).await.expect("a claim");
    for version in 1..=1100 {
        let mut append = whole(fence, version - 1, version, &[&orders]);
        append.cut.as_of = cut(1).as_of;
        if version % 100 == 0 {
            append.parts[0].states = format!("\"{}\"", "x".repeat(2 << 20));
        }
        store.append(&append).await.expect("an append");
    }
    for after in [0, 350, 1099] {
        let read = store.read_log(&orders, Version(after)).await.expect("a log").entries.expect("entries");
        let versions: Vec<u64> = read.iter().map(|entry| entry.version.0).collect();
        assert_eq!(versions, (after + 1..=1100).collect::<Vec<u64>>());
        assert!(read.iter().all(|entry| (entry.states[0].len() > 2 << 20) == (entry.version.0 % 100 == 0)));
    }
}
