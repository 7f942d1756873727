//! Every way into and out of a channel: rows enter, stay, leave, change their key, change where nobody looks, are pushed out
//! of a window, come in when there is room, and are read again when a window runs out. Whatever writers do at once, a
//! client's rows equal the channel's query at every version that it is told.
//!
//! As in `handoff`, the test is the leader: before it closes a cut it asks Postgres, in the cut's own transaction, what
//! each channel has to show. Writers get a share of work for each cut, so that a slow machine does not turn every cut into
//! a sweep.

mod writers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::Semaphore;

use crate::handoff::leader::{Leader, Query};
use crate::handoff::visitor::{Tally, Visitor};
use crate::harness::tokens::{WITH_SECRET, token};
use crate::harness::world::World;

const SUBSCRIPTIONS: usize = 150;
const WRITERS: u64 = 5;

/// Transactions for each cut, and cuts for each sweep.
const TRANSACTIONS: usize = 6;
const CUTS_PER_SWEEP: usize = 4;
const VISITORS: u64 = 12;

/// `few` is the same table with a low `bulk_rows`: sweeps are markers to it, and key by key to `item`.
const SCHEMA: &str = "
    create table item (id int primary key, tenant int, status text, v int, note text);
    insert into item select i, i % 8, case i % 3 when 0 then 'open' else 'paid' end, nullif(i % 90, 7), 'n' || i % 40
    from generate_series(1, 320) i;
    select rowcast.publish('item', 'public');
    select rowcast.publish('item', 'public', name => 'few', columns => '{tenant,v}', bulk_rows => 80);
    select rowcast.publish('item', 'tenant=eq.{tenant}', name => 'mine', columns => '{status,v,note}');
";

const ALL: &[&str] = &["id", "tenant", "status", "v", "note"];

const QUERIES: &[Query] = &[
    Query { channel: "item?status=eq.open", publication: "item", columns: ALL, clause: "where status = 'open'" },
    Query {
        channel: "item?status=eq.open&tenant=eq.3&select=v",
        publication: "item",
        columns: &["id", "v"],
        clause: "where status = 'open' and tenant = 3",
    },
    Query { channel: "item?tenant=eq.5", publication: "item", columns: ALL, clause: "where tenant = 5" },
    Query { channel: "item?select=status", publication: "item", columns: &["id", "status"], clause: "" },
    Query {
        channel: "item?order=v.desc&limit=10",
        publication: "item",
        columns: ALL,
        clause: "order by v desc nulls first, id limit 10",
    },
    Query {
        channel: "item?status=eq.open&order=v.nullsfirst,note.desc.nullslast&limit=7&select=tenant",
        publication: "item",
        columns: &["id", "tenant", "v", "note"],
        clause: r#"where status = 'open' order by v nulls first, note collate "C" desc nulls last, id limit 7"#,
    },
    Query {
        channel: "item?tenant=eq.3&order=note.desc&limit=5&select=note",
        publication: "item",
        columns: &["id", "note"],
        clause: r#"where tenant = 3 order by note collate "C" desc nulls first, id limit 5"#,
    },
    Query { channel: "item?limit=3", publication: "item", columns: ALL, clause: "order by id limit 3" },
    Query { channel: "item?order=id.desc&limit=1000", publication: "item", columns: ALL, clause: "" },
    Query {
        channel: "few?order=v.desc.nullslast&limit=40&select=v",
        publication: "few",
        columns: &["id", "v"],
        clause: "order by v desc nulls last, id limit 40",
    },
    Query {
        channel: "few?tenant=eq.2",
        publication: "few",
        columns: &["id", "tenant", "v"],
        clause: "where tenant = 2",
    },
    Query { channel: "mine", publication: "mine", columns: OWN, clause: "where tenant = 3" },
    Query {
        channel: "mine?status=neq.paid&order=v.desc&limit=4&select=note",
        publication: "mine",
        columns: &["id", "v", "note"],
        clause: "where tenant = 3 and status <> 'paid' order by v desc nulls first, id limit 4",
    },
    Query {
        channel: "mine?or=(v.gte.40,v.is.null)&note=like.n1*",
        publication: "mine",
        columns: OWN,
        clause: "where tenant = 3 and (v >= 40 or v is null) and note like 'n1%'",
    },
];

/// What `mine` shows to everybody here: the rows of tenant 3.
const OWN: &[&str] = &["id", "status", "v", "note"];

#[tokio::test(flavor = "multi_thread")]
async fn at_every_version_a_clients_rows_equal_its_query() {
    let world = World::start(SCHEMA).await;
    let mut leader = Leader::begin_with(&world, QUERIES).await;
    // The first forgets its channels and their checkpoints soon, so that they are opened over and over.
    let fickle = [("ROWCAST_LINGER", "100ms"), ("ROWCAST_CHECKPOINT_TTL", "1s"), WITH_SECRET];
    let nodes = [world.node_with(&fickle).await, world.node_with(&[WITH_SECRET]).await];
    let token = token("someone", 600, &json!({"tenant": 3}));
    let addresses = [nodes[0].address, nodes[1].address];

    let (transactions, sweeps) = (Arc::new(Semaphore::new(TRANSACTIONS)), Arc::new(Semaphore::new(0)));
    let mut writing = vec![tokio::spawn(writers::sweep_while_allowed(world.connect().await, sweeps.clone()))];
    for number in 0..WRITERS {
        let connection = world.connect().await;
        writing.push(tokio::spawn(writers::write_while_allowed(connection, number, transactions.clone())));
    }
    let leaving = Arc::new(AtomicBool::new(false));
    let opened = Arc::new(AtomicUsize::new(0));
    let channels: Vec<&'static str> = QUERIES.iter().map(|query| query.channel).collect();
    let mut visiting = Vec::new();
    for number in 0..VISITORS {
        let visitor = Visitor::new(number, addresses, channels.clone(), leader.oracle.clone(), opened.clone());
        visiting.push(tokio::spawn(visitor.with_token(&token).run(leaving.clone())));
    }

    let started = Instant::now();
    let mut refilled = (0.0, 0.0);
    while opened.load(Ordering::Relaxed) < SUBSCRIPTIONS
        || leader.cuts < 120
        || refilled.0 < 5.0
        || refilled.1 < 5.0
        || started.elapsed() < Duration::from_secs(6)
    {
        assert!(started.elapsed() < Duration::from_secs(60), "{} opened, {refilled:?}", opened.load(Ordering::Relaxed));
        assert!(!visiting.iter().any(tokio::task::JoinHandle::is_finished), "a visitor has ended: see its panic");
        let is_cut = leader.turn().await;
        transactions.add_permits(TRANSACTIONS.saturating_sub(transactions.available_permits()));
        if is_cut && leader.cuts.is_multiple_of(CUTS_PER_SWEEP) && sweeps.available_permits() == 0 {
            sweeps.add_permits(1);
        }
        if is_cut && leader.cuts.is_multiple_of(30) {
            refilled = (0.0, 0.0);
            for node in &nodes {
                refilled.0 += node.metric("rowcast_window_refills_total").await;
                refilled.1 += node.metric("rowcast_windows_run_out_total").await;
            }
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    transactions.close();
    sweeps.close();
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
    println!(
        "{} cuts, {} of them with markers {:?}; {refilled:?} refills and windows that ran out; {tally:?}",
        leader.cuts, leader.marked, leader.reasons
    );
    assert!(tally.resumed > 20, "{tally:?}");
    assert!(tally.comparisons > 5 * SUBSCRIPTIONS && tally.unknown < tally.comparisons / 10, "{tally:?}");
}
