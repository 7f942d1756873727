//! Handoff is exact: whenever a subscription opens, resumes or catches up, and whatever writers do meanwhile, its rows
//! equal the table at every version that it is told.
//!
//! The oracle is the leader itself: this process holds the lease, reads each cut with the product's own reader, and
//! before it closes the cut reads the whole tables through the cut's own transaction. So it knows the exact content of
//! every version before any client can. The nodes are real processes, whose relays cannot get the lease.

pub mod leader;
pub mod visitor;
mod writers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::world::World;
use leader::Leader;
use visitor::{Tally, Visitor};

const SUBSCRIPTIONS: usize = 500;
const WRITERS: u64 = 6;
const VISITORS: u64 = 32;

/// `few` is the same table with a low `bulk_rows`: statements that `item` tells key by key are markers to it.
const SCHEMA: &str = "
    create table item (id int primary key, v int, note text);
    create table changing (id int primary key, v int);
    insert into item select i, i, repeat('x', i % 50) from generate_series(1, 200) i;
    insert into changing select i, i from generate_series(1, 100) i;
    select rowcast.publish('item', 'public');
    select rowcast.publish('item', 'public', name => 'few', columns => '{v}', bulk_rows => 40);
    select rowcast.publish('changing', 'public', columns => '{*}', bulk_rows => 60);
";

#[tokio::test(flavor = "multi_thread")]
async fn every_subscription_equals_the_table_at_every_version_it_is_told() {
    let world = World::start(SCHEMA).await;
    let mut leader = Leader::begin(&world).await;
    // The first forgets its channels and their checkpoints soon, so that they are opened over and over.
    let fickle = [("ROWCAST_LINGER", "100ms"), ("ROWCAST_CHECKPOINT_TTL", "1s")];
    let nodes = [world.node_with(&fickle).await, world.node().await];
    let addresses = [nodes[0].address, nodes[1].address];

    let stop = Arc::new(AtomicBool::new(false));
    let mut writing = Vec::new();
    for number in 0..WRITERS + 2 {
        let connection = world.connect().await;
        writing.push(tokio::spawn(writers::run_until_stopped(connection, number, WRITERS, stop.clone())));
    }
    let leaving = Arc::new(AtomicBool::new(false));
    let opened = Arc::new(AtomicUsize::new(0));
    let channels = ["item", "few", "changing"];
    let mut visiting = Vec::new();
    for number in 0..VISITORS {
        let visitor = Visitor::new(number, addresses, channels.to_vec(), leader.oracle.clone(), opened.clone());
        visiting.push(tokio::spawn(visitor.run(leaving.clone())));
    }

    let started = Instant::now();
    while opened.load(Ordering::Relaxed) < SUBSCRIPTIONS
        || leader.cuts < 150
        || leader.marked < 25
        || started.elapsed() < Duration::from_secs(10)
    {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "only {} subscriptions, {} cuts, {} marked",
            opened.load(Ordering::Relaxed),
            leader.cuts,
            leader.marked
        );
        assert!(!visiting.iter().any(tokio::task::JoinHandle::is_finished), "a visitor has ended: see its panic");
        leader.turn().await;
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    stop.store(true, Ordering::Relaxed);
    while !writing.iter().all(tokio::task::JoinHandle::is_finished) {
        leader.turn().await;
    }
    for writer in writing {
        writer.await.expect("a writer that ends");
    }
    while leader.turn().await {}
    leaving.store(true, Ordering::Relaxed);
    let mut tally = Tally::default();
    for visitor in visiting {
        while !visitor.is_finished() {
            leader.turn().await;
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        tally += visitor.await.expect("a visitor without complaints");
    }
    println!("{} cuts, {} of them with markers {:?}; {tally:?}", leader.cuts, leader.marked, leader.reasons);
    assert!(tally.subscriptions >= SUBSCRIPTIONS && tally.resumed > 50, "{tally:?}");
    assert!(tally.comparisons > 5 * SUBSCRIPTIONS && tally.unknown < tally.comparisons / 10, "{tally:?}");
    assert!(leader.cuts > 100 && leader.marked > 20, "{} cuts, {} marked", leader.cuts, leader.marked);
}
