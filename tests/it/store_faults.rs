//! What a Redis can do to its store: restart, forget, go back in time, hang up, say nothing.

use std::time::{Duration, Instant};

use rowcast::store::redis::{DEFAULT_PREFIX, RedisStore};
use rowcast::store::{AppendError, StoreError};
use rowcast::version::Version;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::contract::words::*;
use crate::harness::redis::PrivateRedis;
use crate::harness::until;

/// Reads pushes until one is as named.
async fn pass(subscription: &mut rowcast::store::Subscription, wanted: &str) {
    while next(subscription).await != wanted {}
}

#[tokio::test]
async fn a_lost_pubsub_connection_is_told_and_made_again() {
    let bench = Bench::redis();
    let redis = bench.redis.as_ref().expect("a Redis");
    let orders = feed("orders");
    let mut subscription = bench.subscribed(&[&orders]).await;
    let head = bench.head().await.expect("a head");
    redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    assert_eq!(next(&mut subscription).await, "lost");
    bench.write(head, 500, &orders).await;
    assert_eq!(next(&mut subscription).await, "e500 orders.17");
    assert_eq!(next(&mut subscription).await, "b500");
}

#[tokio::test]
async fn an_emptied_store_refuses_its_leader_and_takes_the_next() {
    let bench = Bench::redis();
    let orders = feed("orders");
    let fence = bench.claim().await;
    bench.store.append(&whole(fence, 0, 5, &[&orders])).await.expect("an append");
    bench.redis.as_ref().expect("a Redis").command(&["FLUSHALL"]);
    assert_stale(bench.store.beat(fence, &idle_beat(5)).await);
    assert_stale(bench.store.append(&whole(fence, 5, 6, &[&orders])).await);
    let (next, head) = bench.store.claim(7).await.expect("a claim");
    assert!(next > fence && head.is_none());
    let mut append = whole(next, 0, 8, &[&orders]);
    append.base = Version(5);
    bench.store.append(&append).await.expect("an append");
    assert_stale(bench.store.append(&whole(fence, 8, 9, &[&orders])).await);
    assert_eq!(bench.log(&orders, 5).await, Some(vec![8]));
    assert_eq!(bench.log(&orders, 4).await, None, "what was between 4 and 5 is not there any more");
    assert_eq!(bench.log(&feed("teams"), 4).await, None);
}

#[tokio::test]
async fn a_store_rolled_back_is_noticed_and_continued() {
    let mut bench = Bench::redis();
    let orders = feed("orders");
    let fence = bench.claim().await;
    for version in 1..=3 {
        bench.store.append(&whole(fence, version - 1, version, &[&orders])).await.expect("an append");
    }
    let redis = bench.redis.as_mut().expect("a Redis");
    redis.save();
    bench.store.append(&whole(fence, 3, 4, &[&orders])).await.expect("an append");
    bench.store.append(&parts(fence, 4, 5, &[(&orders, 0)])).await.expect("an append");
    redis.kill();
    redis.revive();
    // Between the parts of a version, and between versions.
    let last = closing(parts(fence, 4, 5, &[(&orders, 1)]), &[(&orders, 2)]);
    let refused = until("an answer after the restart", async || match bench.store.append(&last).await {
        Err(AppendError::Store(StoreError::Unavailable(_))) => None,
        answer => Some(answer),
    });
    assert_moved(refused.await);
    assert_moved(bench.store.append(&whole(fence, 4, 6, &[&orders])).await);
    assert_moved(bench.store.beat(fence, &idle_beat(4)).await);
    assert_eq!(bench.head().await, Some(3));
    bench.store.append(&whole(fence, 3, 7, &[&orders])).await.expect("an append");
    assert_eq!(bench.log(&orders, 2).await, Some(vec![3, 7]));
}

#[tokio::test]
async fn a_version_whose_first_parts_were_rolled_back_does_not_close() {
    let mut bench = Bench::redis();
    let orders = feed("orders");
    let fence = bench.claim().await;
    bench.store.append(&whole(fence, 0, 1, &[&orders])).await.expect("an append");
    let redis = bench.redis.as_mut().expect("a Redis");
    redis.save();
    bench.store.append(&parts(fence, 1, 2, &[(&orders, 0)])).await.expect("an append");
    redis.kill();
    redis.revive();
    until("a store that is up", async || bench.store.ping().await.ok()).await;
    let last = closing(parts(fence, 1, 2, &[(&orders, 1)]), &[(&orders, 2)]);
    assert_moved(bench.store.append(&last).await);
    assert_eq!(bench.log(&orders, 0).await, Some(vec![1]));
}

#[tokio::test]
async fn a_restart_is_over_within_two_seconds() {
    let mut bench = Bench::redis();
    let orders = feed("orders");
    let mut subscription = bench.subscribed(&[&orders]).await;
    let head = bench.head().await.expect("a head");
    let redis = bench.redis.as_mut().expect("a Redis");
    redis.save();
    redis.kill();
    assert!(matches!(bench.store.head().await, Err(StoreError::Unavailable(_))));
    assert!(matches!(bench.store.ping().await, Err(StoreError::Unavailable(_))));
    redis.revive();
    let back = Instant::now();
    assert_eq!(bench.head().await, Some(head), "the first command after the restart works");
    pass(&mut subscription, "lost").await;
    bench.write(head, 500, &orders).await;
    assert_eq!(next(&mut subscription).await, "e500 orders.17");
    assert!(back.elapsed() < Duration::from_secs(2), "{:?}", back.elapsed());
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_given_up() {
    let redis = PrivateRedis::start();
    let wire = Wire::before(&redis).await;
    let store = RedisStore::new(&wire.address, DEFAULT_PREFIX, RETENTION).expect("an address");
    let bench = Bench { store: std::sync::Arc::new(store), redis: None };
    let orders = feed("orders");
    let mut subscription = bench.subscribed(&[&orders]).await;
    let head = bench.head().await.expect("a head");
    // What is connected now stays open and is silent; new connections work.
    wire.silence();
    let refused = bench.store.head().await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert_eq!(bench.head().await, Some(head));
    pass(&mut subscription, "lost").await;
    bench.write(head, 500, &orders).await;
    assert_eq!(next(&mut subscription).await, "e500 orders.17");
}

#[tokio::test]
async fn keys_that_are_not_ours_are_named() {
    let bench = Bench::redis();
    let redis = bench.redis.as_ref().expect("a Redis");
    let orders = feed("orders");
    let fence = bench.claim().await;
    redis.command(&["SET", "rowcast:orders.17:log", "x"]);
    let refused = bench.store.append(&whole(fence, 0, 1, &[&feed("teams"), &orders])).await;
    assert!(matches!(refused, Err(AppendError::Store(StoreError::Corrupt(_)))), "{refused:?}");
    assert_eq!((bench.head().await, redis.command(&["EXISTS", "rowcast:teams.17:log"])), (None, redis::Value::Int(0)));
    redis.command(&["HSET", "rowcast:head", "epoch", "e1", "version", "seven", "cut", "1:1:", "as_of", "1"]);
    assert!(matches!(bench.store.head().await, Err(StoreError::Corrupt(_))));
    redis.command(&["DEL", "rowcast:orders.17:log", "rowcast:head"]);
    redis.command(&["XADD", "rowcast:orders.17:log", "9-0", "a", "b"]);
    let refused = bench.store.append(&whole(fence, 0, 1, &[&orders])).await;
    assert!(refused.as_ref().is_err_and(|error| error.to_string().contains("orders.17 9-0")), "{refused:?}");
    bench.store.append(&whole(fence, 0, 10, &[&feed("teams")])).await.expect("an append");
}

#[tokio::test]
async fn what_outsiders_publish_changes_nothing() {
    let bench = Bench::redis();
    let redis = bench.redis.as_ref().expect("a Redis");
    let orders = feed("orders");
    let mut subscription = bench.subscribed(&[&orders]).await;
    for (channel, text) in [("rowcast:beat", "{}"), ("rowcast:beat", "\u{1}"), ("rowcast:orders.17:live", "[1]")] {
        redis.command(&["PUBLISH", channel, text]);
    }
    bench.write(bench.head().await.expect("a head"), 500, &orders).await;
    assert_eq!(next(&mut subscription).await, "e500 orders.17");
}

#[tokio::test]
async fn the_keys_are_those_that_outside_tools_read() {
    let bench = Bench::redis();
    let redis = bench.redis.as_ref().expect("a Redis");
    bench.write(0, 5, &feed("orders")).await;
    let hash: std::collections::HashMap<String, String> =
        redis::from_redis_value(redis.command(&["HGETALL", "rowcast:head"])).expect("a hash");
    let as_of = cut(5).as_of.to_string();
    for (field, value) in [("epoch", "e1"), ("version", "5"), ("cut", "5:8:5"), ("as_of", &as_of), ("catalogue", "c1")]
    {
        assert_eq!(hash[field], value);
    }
    assert_eq!((&*hash["since"], &*hash["last:orders.17"]), ("0", "5"));
    let items: Vec<(String, std::collections::HashMap<String, String>)> =
        redis::from_redis_value(redis.command(&["XRANGE", "rowcast:orders.17:log", "-", "+"])).expect("a stream");
    assert_eq!(items[0].0, "5-0");
    assert_eq!((&*items[0].1["prev"], &*items[0].1["cut"]), ("0", "5:8:5"));
    assert_eq!(items[0].1["states"], states(&feed("orders"), 5, 0));
    assert_eq!(redis.command(&["GET", "rowcast:fence"]), redis::Value::BulkString(b"1".to_vec()));
}

#[test]
fn an_address_that_cannot_be_read_is_refused_without_its_password() {
    for address in ["", "localhost:x", "http://a", "redis://user:secret@host:port/x"] {
        let error = RedisStore::new(address, "rowcast:", RETENTION).err().expect("a refusal").to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}

/// A wire to a Redis that can fall silent without breaking.
struct Wire {
    address: String,
    silenced: watch::Sender<()>,
}

impl Wire {
    async fn before(redis: &PrivateRedis) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("redis://{}/", listener.local_addr().expect("an address"));
        let target = redis.address().trim_start_matches("redis://").trim_end_matches('/').to_owned();
        let (silenced, _) = watch::channel(());
        let silence = silenced.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (target, mut silent) = (target.clone(), silence.subscribe());
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(target).await.expect("a connection to Redis");
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                        _ = silent.changed() => {}
                    }
                    // Both ends stay open, and nobody reads or writes.
                    std::future::pending::<()>().await;
                });
            }
        });
        Self { address, silenced }
    }

    fn silence(&self) {
        self.silenced.send_replace(());
    }
}
