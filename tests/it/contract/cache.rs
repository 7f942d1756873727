//! Checkpoints and locks.

use std::time::Duration;

use bytes::Bytes;

use super::words::*;
use crate::harness::until;

crate::on_both_stores!(
    a_checkpoint_is_any_bytes_until_it_ends,
    checkpoints_of_other_channels_and_feeds_are_others,
    one_holds_a_lock_and_only_it_gives_it_back,
    a_checkpoint_that_is_extended_lasts,
    a_lock_lapses,
    a_lock_that_is_renewed_lasts_and_only_its_holder_renews_it,
);

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(150);

async fn a_checkpoint_is_any_bytes_until_it_ends(bench: Bench) {
    let (store, orders) = (&bench.store, feed("orders"));
    let bytes: Bytes = (0..=255).cycle().take(1 << 20).collect::<Vec<u8>>().into();
    assert_eq!(store.checkpoint(&orders, "a").await.expect("an answer"), None);
    store.put_checkpoint(&orders, "a", Bytes::from_static(b"old"), LONG).await.expect("a checkpoint put");
    store.put_checkpoint(&orders, "a", bytes.clone(), LONG).await.expect("a checkpoint put");
    assert_eq!(bench.second().checkpoint(&orders, "a").await.expect("an answer"), Some(bytes.clone()));
    store.put_checkpoint(&orders, "a", bytes, SHORT).await.expect("a checkpoint put");
    until("the end of a checkpoint", async || store.checkpoint(&orders, "a").await.ok()?.is_none().then_some(())).await;
}

async fn a_checkpoint_that_is_extended_lasts(bench: Bench) {
    let (store, orders) = (&bench.store, &feed("orders"));
    assert!(!store.extend_checkpoint(orders, "a", LONG).await.expect("an answer"), "there is none");
    let while_the_test_runs_on = Duration::from_secs(1);
    for channel in ["a", "b"] {
        let bytes = Bytes::from_static(b"1");
        store.put_checkpoint(orders, channel, bytes, while_the_test_runs_on).await.expect("a checkpoint put");
    }
    assert!(bench.second().extend_checkpoint(orders, "a", LONG).await.expect("an answer"));
    // What was not extended, put as long ago, has ended.
    until("the end of a checkpoint", async || store.checkpoint(orders, "b").await.ok()?.is_none().then_some(())).await;
    assert!(!store.extend_checkpoint(orders, "b", LONG).await.expect("an answer"));
    assert!(store.checkpoint(orders, "a").await.expect("an answer").is_some());
}

async fn checkpoints_of_other_channels_and_feeds_are_others(bench: Bench) {
    let mut other = feed("orders");
    other.generation = 18;
    bench.store.put_checkpoint(&feed("orders"), "a", Bytes::from_static(b"1"), LONG).await.expect("a checkpoint put");
    assert_eq!(bench.store.checkpoint(&feed("orders"), "b").await.expect("an answer"), None);
    assert_eq!(bench.store.checkpoint(&other, "a").await.expect("an answer"), None);
    assert_eq!(bench.store.checkpoint(&feed("orders"), "a").await.expect("an answer"), Some(Bytes::from_static(b"1")));
}

async fn one_holds_a_lock_and_only_it_gives_it_back(bench: Bench) {
    let (first, second, orders) = (&bench.store, bench.second(), feed("orders"));
    assert!(first.lock(&orders, "a", "n1", LONG).await.expect("an answer"));
    assert!(!second.lock(&orders, "a", "n2", LONG).await.expect("an answer"));
    assert!(!first.lock(&orders, "a", "n1", LONG).await.expect("an answer"), "not even the holder takes it twice");
    assert!(second.lock(&orders, "b", "n2", LONG).await.expect("an answer"));
    second.unlock(&orders, "a", "n2").await.expect("an answer");
    assert!(!second.lock(&orders, "a", "n2", LONG).await.expect("an answer"));
    first.unlock(&orders, "a", "n1").await.expect("an answer");
    assert!(second.lock(&orders, "a", "n2", LONG).await.expect("an answer"));
}

async fn a_lock_that_is_renewed_lasts_and_only_its_holder_renews_it(bench: Bench) {
    let (store, orders) = (&bench.store, feed("orders"));
    assert!(!store.renew(&orders, "a", "n1", LONG).await.expect("an answer"), "nobody has it");
    let while_the_test_runs_on = Duration::from_secs(1);
    assert!(store.lock(&orders, "a", "n1", while_the_test_runs_on).await.expect("an answer"));
    assert!(store.renew(&orders, "a", "n1", LONG).await.expect("an answer"));
    assert!(!store.renew(&orders, "a", "n2", SHORT).await.expect("an answer"), "not its holder");
    // What was not renewed, taken as long ago, has lapsed.
    assert!(store.lock(&orders, "b", "n1", while_the_test_runs_on).await.expect("an answer"));
    until("the end of a lock", async || store.lock(&orders, "b", "n2", LONG).await.ok()?.then_some(())).await;
    assert!(!store.lock(&orders, "a", "n2", LONG).await.expect("an answer"));
}

async fn a_lock_lapses(bench: Bench) {
    let (store, orders) = (&bench.store, feed("orders"));
    assert!(store.lock(&orders, "a", "n1", SHORT).await.expect("an answer"));
    until("the end of a lock", async || store.lock(&orders, "a", "n2", LONG).await.ok()?.then_some(())).await;
    store.unlock(&orders, "a", "n1").await.expect("an answer");
    assert!(!store.lock(&orders, "a", "n3", LONG).await.expect("an answer"), "n1's came too late");
}
