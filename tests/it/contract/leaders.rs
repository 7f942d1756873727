//! Several processes that all believe to be the leader: the store lets the work of one of them count.
//!
//! Each batch's content follows from what the store holds, as a leader's does; so the log must hold every batch once, in
//! order, whoever wrote it, and however many were stopped in the middle.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rowcast::store::local::LocalStore;
use rowcast::store::{AppendError, Part, Retention, Store};
use rowcast::version::{Epoch, Version};
use tokio::task::JoinHandle;

use super::words::*;
use crate::harness::DEADLINE;

crate::on_both_stores!(rivals_write_each_batch_once_and_in_order);

/// The sequence that versions come from.
type Sequence = Arc<AtomicU64>;

async fn rivals_write_each_batch_once_and_in_order(bench: Bench) {
    // The bench keeps five parts; here everything is kept.
    let retention = Retention { parts: usize::MAX >> 1, ..RETENTION };
    let local: Arc<dyn Store> = Arc::new(LocalStore::new(retention));
    let node = || match &bench.redis {
        Some(redis) => redis_store(redis, retention),
        None => local.clone(),
    };
    let sequence = Sequence::default();
    let mut rivals: Vec<_> = (0..4).map(|_| tokio::spawn(lead(node(), sequence.clone()))).collect();
    // On a busy machine they are stopped before they get far.
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let mut stops = 0;
    while stops < 40 || batches(&*node()).await <= 50 && tokio::time::Instant::now() < deadline {
        stops += 1;
        tokio::time::sleep(Duration::from_millis(random(20..60))).await;
        let stopped = random(0..4) as usize;
        let rival = std::mem::replace(&mut rivals[stopped], tokio::spawn(lead(node(), sequence.clone())));
        stop(rival).await;
    }
    for rival in rivals {
        stop(rival).await;
    }
    let read = node().read_log(&feed("orders"), Version(0)).await.expect("a log").entries.expect("entries");
    assert!(read.len() > 50, "only {} batches: the rivals were in each other's way", read.len());
    let mut prev = Version(0);
    for (batch, entry) in read.iter().enumerate() {
        let expected: Vec<String> = (0..3).map(|part| format!("\"batch {batch} part {part}\"")).collect();
        assert_eq!(entry.states, expected);
        assert_eq!(entry.prev, prev);
        prev = entry.version;
    }
}

/// How many batches are in the log.
async fn batches(store: &dyn Store) -> usize {
    store.read_log(&feed("orders"), Version(0)).await.expect("a log").entries.expect("entries").len()
}

/// Claims and writes until it finds out that another did.
async fn lead(store: Arc<dyn Store>, sequence: Sequence) {
    let orders = feed("orders");
    loop {
        let drawn = sequence.fetch_add(1, Ordering::SeqCst) + 1;
        let Ok((fence, mut head)) = store.claim(drawn).await else { continue };
        let after = Version(0);
        let Ok(read) = store.read_log(&orders, after).await else { continue };
        if read.head != head {
            continue;
        }
        let mut batch = read.entries.map_or(0, |entries| entries.len());
        for _ in 0..random(1..100) {
            if random(0..50) == 0 {
                // A pause in which others go on.
                tokio::time::sleep(Duration::from_millis(random(0..50))).await;
            }
            let version = sequence.fetch_add(1, Ordering::SeqCst) + 1;
            let follows = head.as_ref().map(|cut| (Epoch::new("e1"), cut.version));
            let mut append = parts(fence, 0, version, &[]);
            append.base = follows.as_ref().map_or(Version(0), |(_, version)| *version);
            append.follows = follows;
            append.cut.as_of = 0;
            let part =
                |number| Part { feed: orders.clone(), number, states: format!("\"batch {batch} part {number}\"") };
            append.parts = vec![part(0), part(1)];
            let mut last = closing(append.clone(), &[(&orders, 3)]);
            last.parts = vec![part(2)];
            let wrote = async {
                store.append(&append).await?;
                // Here rivals come in between, and here the axe falls.
                tokio::time::sleep(Duration::from_micros(random(0..500))).await;
                store.append(&last).await
            };
            match wrote.await {
                Ok(()) => {
                    batch += 1;
                    head = Some(append.cut);
                }
                Err(AppendError::StaleFence) => break,
                Err(error) => panic!("{error}: only the fence stands between rivals"),
            }
        }
        tokio::time::sleep(Duration::from_millis(random(0..20))).await;
    }
}

/// Stops a rival wherever it is. It must have been at work.
async fn stop(rival: JoinHandle<()>) {
    rival.abort();
    let end = rival.await.expect_err("a rival never ends by itself");
    assert!(end.is_cancelled(), "{end}");
}

fn random(range: std::ops::Range<u64>) -> u64 {
    rand::Rng::random_range(&mut rand::rng(), range)
}
