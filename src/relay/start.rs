//! Where a term starts: at the store's head, at the cut kept in Postgres, or with a new epoch.
//!
//! Pure: what it is told decides. The rule of each branch is a promise: continuing is allowed only where it is proved that
//! nothing between the start and now is missing from the change log, and that its rows are read by known definitions.

use crate::capture::catalogue::Definitions;
use crate::capture::slices::Delivered;
use crate::version::{Cut, Epoch, PgSnapshot, Version};

/// What a term knows before it starts.
pub struct Found {
    /// The store's head, as of the claim.
    pub head: Option<Cut>,
    pub delivered: Delivered,
    /// The database's epoch now; `None`: no token is planted.
    pub epoch: Option<Epoch>,
    /// The database now.
    pub snapshot: PgSnapshot,
    /// A version drawn now.
    pub version: Version,
}

/// How a term starts.
#[derive(Debug, PartialEq, Eq)]
pub enum Start {
    /// From this cut, in the same epoch.
    Continue {
        from: Cut,
        /// The definitions delivered by then; `None`: unknown, everything is marked.
        definitions: Option<Definitions>,
        /// The log does not reach back to it: every publication is marked.
        mark: Option<&'static str>,
    },
    /// Nothing can be continued: every publication is marked in the first cut of a new epoch.
    Begin {
        why: &'static str,
        /// The token has to be planted anew, so that the epoch is another one.
        plant: bool,
    },
}

/// Decides how a term starts.
pub fn decide(found: &Found) -> Start {
    let Some(epoch) = &found.epoch else {
        return Start::Begin { why: "no token is planted: first start, crash or promotion", plant: true };
    };
    let acknowledged = found.delivered.acknowledged.as_ref().filter(|cut| cut.epoch == *epoch);
    let Some(from) = found.head.as_ref().or(acknowledged) else {
        return Start::Begin { why: "neither store nor database know a cut of this epoch", plant: false };
    };
    if from.epoch != *epoch {
        return Start::Begin { why: "the head is of another epoch", plant: false };
    }
    if !from.snapshot.is_within(&found.snapshot) {
        return Start::Begin { why: "the database no longer contains the head", plant: true };
    }
    if found.version <= from.version {
        return Start::Begin { why: "the database has drawn the head's version again", plant: true };
    }
    let truncated = found.delivered.truncated.as_ref();
    let reaches_back = truncated.is_none_or(|(of, cut)| of != epoch || cut.is_within(&from.snapshot));
    let defined = found.delivered.defined.as_ref();
    let definitions = defined
        .filter(|(of, cut, _)| of == epoch && cut.is_within(&from.snapshot))
        .map(|(_, _, definitions)| definitions.clone());
    Start::Continue { from: from.clone(), definitions, mark: (!reaches_back).then_some("log cut short") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> PgSnapshot {
        text.parse().expect("a snapshot")
    }

    fn cut(epoch: &str, version: u64, text: &str) -> Cut {
        Cut { epoch: Epoch::new(epoch), version: Version(version), snapshot: snapshot(text), as_of: 0 }
    }

    fn found() -> Found {
        let definitions = Definitions::default();
        Found {
            head: Some(cut("e", 7, "90:100:90")),
            delivered: Delivered {
                defined: Some((Epoch::new("e"), snapshot("80:80:"), definitions)),
                ..Delivered::default()
            },
            epoch: Some(Epoch::new("e")),
            snapshot: snapshot("110:110:"),
            version: Version(8),
        }
    }

    fn begins(found: &Found) -> bool {
        matches!(decide(found), Start::Begin { .. })
    }

    #[test]
    fn the_head_is_continued_where_it_is_contained() {
        let Start::Continue { from, definitions, mark } = decide(&found()) else { panic!("a new epoch") };
        assert_eq!((from.version, definitions.is_some(), mark), (Version(7), true, None));
    }

    #[test]
    fn an_empty_store_is_continued_from_the_acknowledged_cut() {
        let mut found = Found { head: None, ..found() };
        assert!(begins(&found));
        found.delivered.acknowledged = Some(cut("e", 5, "90:90:"));
        assert!(matches!(decide(&found), Start::Continue { from, .. } if from.version == Version(5)));
        found.delivered.acknowledged = Some(cut("other", 5, "90:90:"));
        assert!(begins(&found));
    }

    #[test]
    fn what_the_database_does_not_contain_is_not_continued() {
        assert!(begins(&Found { epoch: None, ..found() }));
        assert!(begins(&Found { epoch: Some(Epoch::new("other")), ..found() }));
        assert!(begins(&Found { snapshot: snapshot("95:95:"), ..found() }));
        assert!(begins(&Found { version: Version(7), ..found() }));
    }

    #[test]
    fn a_head_older_than_the_truncation_marks_everything() {
        let mut found = found();
        found.delivered.truncated = Some((Epoch::new("e"), snapshot("95:95:")));
        assert!(matches!(decide(&found), Start::Continue { mark: Some(_), .. }));
        found.delivered.truncated = Some((Epoch::new("e"), snapshot("85:85:")));
        assert!(matches!(decide(&found), Start::Continue { mark: None, .. }));
    }

    #[test]
    fn definitions_newer_than_the_head_are_not_relied_on() {
        let mut found = found();
        found.delivered.defined = Some((Epoch::new("e"), snapshot("105:105:"), Definitions::default()));
        assert!(matches!(decide(&found), Start::Continue { definitions: None, .. }));
    }
}
