//! Keys by the version at which they last changed, for the question "what changed after v?".
//!
//! A row that changes moves from one version to the newest. In one sorted set of pairs that is two searches among all
//! keys, each comparing a dozen texts from all over the memory, and it was the dearest part of applying a cut. Here a
//! version is found among versions, and the key in it by its hash.
//!
//! Within a version keys are in no order.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;

use crate::entry::Key;
use crate::version::Version;

/// A set that lost so many of its keys gives its memory back: most rows once came in one version, with a snapshot.
const SHRINK_BELOW: usize = 4;
/// Sets that take this many keys are not worth shrinking.
const SMALL: usize = 64;

#[derive(Clone, Debug, Default)]
pub struct ByVersion {
    /// No set is empty.
    versions: BTreeMap<Version, HashSet<Key>>,
    len: usize,
}

impl ByVersion {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    pub fn insert(&mut self, version: Version, key: Key) {
        self.len += usize::from(self.versions.entry(version).or_default().insert(key));
    }

    pub fn remove(&mut self, version: Version, key: &Key) {
        let Some(keys) = self.versions.get_mut(&version) else { return };
        if !keys.remove(key) {
            return;
        }
        self.len -= 1;
        if keys.is_empty() {
            self.versions.remove(&version);
        } else if keys.capacity() > SMALL && keys.len() < keys.capacity() / SHRINK_BELOW {
            keys.shrink_to(keys.len() * 2);
        }
    }

    pub fn contains(&self, version: Version, key: &Key) -> bool {
        self.versions.get(&version).is_some_and(|keys| keys.contains(key))
    }

    /// The keys that changed after a version, oldest version first.
    pub fn after(&self, since: Version) -> impl Iterator<Item = &Key> {
        self.versions.range((Bound::Excluded(since), Bound::Unbounded)).flat_map(|(_, keys)| keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u64) -> Key {
        Key::new(format!("[{id}]"))
    }

    #[test]
    fn keys_are_found_after_a_version_and_nothing_is_left_of_one_that_lost_all() {
        let mut by_version = ByVersion::default();
        for id in 0..1_000 {
            by_version.insert(Version(5), key(id));
        }
        by_version.insert(Version(5), key(0));
        assert_eq!(by_version.len(), 1_000);
        for id in 0..1_000 {
            by_version.remove(Version(5), &key(id));
            by_version.insert(Version(6 + id / 500), key(id));
            assert!(by_version.contains(Version(6 + id / 500), &key(id)) && !by_version.contains(Version(5), &key(id)));
        }
        by_version.remove(Version(5), &key(1));
        assert_eq!(by_version.len(), 1_000);
        assert_eq!(by_version.versions.len(), 2);
        assert_eq!(by_version.after(Version(5)).count(), 1_000);
        assert_eq!(by_version.after(Version(6)).count(), 500);
        assert!(by_version.after(Version(7)).next().is_none());
    }
}
