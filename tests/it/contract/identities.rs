//! Identities that nodes register as live, for the leader.

use std::time::Duration;

use super::words::*;
use crate::harness::until;

crate::on_both_stores!(
    the_leader_hears_of_every_identity_that_a_node_has_registered,
    a_list_that_is_known_is_not_told_again,
    an_identity_lapses_unless_it_is_renewed,
);

const LONG: Duration = Duration::from_secs(60);

fn texts(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Who is live, sorted, and the stamp.
async fn live(bench: &Bench, known: &str) -> Option<(Vec<String>, String)> {
    let read = bench.second().live_identities(known).await.expect("an answer")?;
    let mut identities = read.identities;
    identities.sort();
    Some((identities, read.stamp))
}

async fn the_leader_hears_of_every_identity_that_a_node_has_registered(bench: Bench) {
    let (nobody, stamp) = live(&bench, "").await.expect("a list");
    assert!(nobody.is_empty() && !stamp.is_empty());
    bench.store.register_identities(&texts(&["a \"ü\"\0", "b"]), LONG).await.expect("an answer");
    bench.second().register_identities(&texts(&["c", "b"]), LONG).await.expect("an answer");
    assert_eq!(live(&bench, &stamp).await.expect("another list").0, texts(&["a \"ü\"\0", "b", "c"]));
    let many: Vec<String> = (0..2_500).map(|number| number.to_string()).collect();
    bench.store.register_identities(&many, LONG).await.expect("an answer");
    assert_eq!(live(&bench, "").await.expect("a list").0.len(), 2_503);
}

async fn a_list_that_is_known_is_not_told_again(bench: Bench) {
    bench.store.register_identities(&texts(&["a"]), LONG).await.expect("an answer");
    let (_, stamp) = live(&bench, "").await.expect("a list");
    assert_eq!(live(&bench, &stamp).await, None);
    bench.store.register_identities(&texts(&["a"]), LONG).await.expect("an answer");
    assert_eq!(live(&bench, &stamp).await, None, "renewing adds nothing");
    bench.store.register_identities(&texts(&["b"]), LONG).await.expect("an answer");
    let (both, newer) = live(&bench, &stamp).await.expect("another list");
    assert!(both == texts(&["a", "b"]) && newer != stamp);
}

async fn an_identity_lapses_unless_it_is_renewed(bench: Bench) {
    bench.store.register_identities(&texts(&["a", "b"]), Duration::from_millis(200)).await.expect("an answer");
    bench.store.register_identities(&texts(&["b"]), LONG).await.expect("an answer");
    until("the end of one", async || (live(&bench, "").await?.0 == texts(&["b"])).then_some(())).await;
}
