//! Which of a version's rows the identities see that row security decides about.
//!
//! The leader asks Postgres in the cut's own snapshot, and the entry carries the answer: for each identity, by its hash,
//! the indices of the rows that it sees, or of those that it does not, whichever list is shorter.
//!
//! ```json
//! "sights":{"seen":{"a1-b2":[0,3]},"unseen":{"c3-d4":[7]}}
//! ```
//!
//! An identity that stands in neither is unknown: the version is a barrier for its channels, which have to be read again.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::State;

/// What a version tells of the identities.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    identities: HashMap<Arc<str>, Sights>,
}

/// What one identity sees, by the index of a row in its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sights {
    /// These, ascending.
    Only(Vec<u32>),
    /// All but these, ascending.
    AllBut(Vec<u32>),
}

impl Sights {
    fn sees(&self, index: usize) -> bool {
        let Ok(index) = u32::try_from(index) else { return false };
        match self {
            Self::Only(indices) => indices.binary_search(&index).is_ok(),
            Self::AllBut(indices) => indices.binary_search(&index).is_err(),
        }
    }
}

/// Through whose eyes a channel looks at its publication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sight {
    /// Every row there is.
    #[default]
    All,
    /// What row security shows to an identity, by its hash.
    Of(Arc<str>),
}

/// What a channel sees of one version.
#[derive(Clone, Copy, Debug)]
pub enum Visible<'a> {
    All,
    Some(&'a Sights),
}

impl Sight {
    /// What is to be seen of a version; `None`: it does not tell.
    pub fn of<'a>(&self, seen: &'a Seen) -> Option<Visible<'a>> {
        match self {
            Self::All => Some(Visible::All),
            Self::Of(identity) => seen.identities.get(identity).map(Visible::Some),
        }
    }
}

impl Visible<'_> {
    /// The states of the version, each with whether it is visible.
    pub fn mark(self, states: &[State]) -> impl Iterator<Item = (&State, bool)> {
        states.iter().enumerate().map(move |(index, state)| (state, self.has(index)))
    }

    /// Whether the row at an index is visible.
    pub fn has(self, index: usize) -> bool {
        match self {
            Self::All => true,
            Self::Some(sights) => sights.sees(index),
        }
    }
}

/// How the maps are written in a part.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct Wire {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    seen: BTreeMap<String, Vec<u32>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    unseen: BTreeMap<String, Vec<u32>>,
}

impl Seen {
    pub fn is_empty(&self) -> bool {
        self.identities.is_empty()
    }

    /// Notes the rows that an identity sees, by their indices in the `rows` of the version, in any order. Indices that are
    /// not asked about (keys that are gone) count as unseen; nobody looks at them.
    pub fn note(&mut self, identity: Arc<str>, mut indices: Vec<u32>, rows: usize) {
        indices.sort_unstable();
        indices.dedup();
        let sights = if indices.len() * 2 <= rows {
            Sights::Only(indices)
        } else {
            let all = 0..u32::try_from(rows).unwrap_or(u32::MAX);
            Sights::AllBut(all.filter(|index| indices.binary_search(index).is_err()).collect())
        };
        self.identities.insert(identity, sights);
    }

    pub(super) fn take(&mut self, wire: Wire) {
        let sorted = |mut indices: Vec<u32>| {
            indices.sort_unstable();
            indices
        };
        for (identity, indices) in wire.seen {
            self.identities.insert(identity.into(), Sights::Only(sorted(indices)));
        }
        for (identity, indices) in wire.unseen {
            self.identities.insert(identity.into(), Sights::AllBut(sorted(indices)));
        }
    }

    pub(super) fn wire(&self) -> Wire {
        let mut wire = Wire::default();
        for (identity, sights) in &self.identities {
            match sights {
                Sights::Only(indices) => wire.seen.insert(identity.to_string(), indices.clone()),
                Sights::AllBut(indices) => wire.unseen.insert(identity.to_string(), indices.clone()),
            };
        }
        wire
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_list_says_the_same() {
        let mut seen = Seen::default();
        seen.note("few".into(), vec![3, 0], 5);
        seen.note("most".into(), vec![4, 0, 1, 3], 5);
        seen.note("none".into(), vec![], 5);
        let visible = |identity: &str| -> Vec<usize> {
            let visible = Sight::Of(identity.into()).of(&seen).expect("it is listed");
            (0..5).filter(|&index| visible.has(index)).collect()
        };
        assert_eq!((visible("few"), visible("most"), visible("none")), (vec![0, 3], vec![0, 1, 3, 4], vec![]));
        let text = serde_json::to_string(&seen.wire()).expect("JSON");
        assert_eq!(text, r#"{"seen":{"few":[0,3],"none":[]},"unseen":{"most":[2]}}"#);
    }

    #[test]
    fn who_is_not_listed_is_unknown_and_who_sees_all_needs_no_list() {
        let seen = Seen::default();
        assert!(Sight::Of("a".into()).of(&seen).is_none());
        assert!(Sight::All.of(&seen).expect("every version tells").has(7));
    }
}
