//! The identities that are live on this node, each until its time is up.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::store::LiveIdentities;

#[derive(Default)]
pub(super) struct Identities {
    ends: HashMap<String, Instant>,
    /// Counts changes of the list.
    changes: u64,
}

impl Identities {
    pub fn register(&mut self, identities: &[String], ttl: Duration) {
        let now = Instant::now();
        let before = self.ends.len();
        self.ends.retain(|_, ends| *ends > now);
        let mut changed = self.ends.len() < before;
        for identity in identities {
            changed |= self.ends.insert(identity.clone(), now + ttl).is_none();
        }
        self.changes += u64::from(changed);
    }

    pub fn read(&self, known: &str) -> Option<LiveIdentities> {
        let stamp = self.changes.to_string();
        let now = Instant::now();
        let live = || self.ends.iter().filter(|(_, ends)| **ends > now).map(|(identity, _)| identity.clone()).collect();
        (stamp != known).then(|| LiveIdentities { identities: live(), stamp })
    }
}
