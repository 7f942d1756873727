//! Keyed rows that remember when they changed: the body of a channel and of its checkpoint.
//!
//! ```text
//!             floor        a hole            at
//!  ───────────┼─────────●━━━━━━━━━●───────────┤   versions
//!   answered  │ rows and tombstones  changed   │
//!   by a      │ after v answer "what changed   │
//!   snapshot  │ since v?" for v here           │
//! ```
//!
//! Resuming, catching up a slow client and a late join are one question, [`Rows::changes_since`]. It is answered exactly
//! or not at all: below the floor tombstones may be missing, and inside a hole (a step that jumped over versions which
//! others may have seen, as a resync does) the way that the asker took is not known.
//!
//! Pure: no I/O, no clock.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use crate::entry::seen::Visible;
use crate::entry::{Key, Row, State};
use crate::protocol::Why;
use crate::query::Predicate;
use crate::version::Version;

/// Tombstones kept beyond the number of rows; the oldest go first and raise the floor.
const TOMBSTONES_MIN: usize = 10_000;

/// Holes kept; the oldest goes first and raises the floor.
const HOLES_MAX: usize = 64;

/// A row, and the version at which it last changed or entered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub row: Arc<Row>,
    pub version: Version,
}

/// A key that is gone: since when, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tombstone {
    pub version: Version,
    pub why: Why,
}

/// The rows of one channel at a version.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    held: HashMap<Key, Held>,
    tombstones: HashMap<Key, Tombstone>,
    /// Every key of `held` and of `tombstones`, by its version.
    by_version: BTreeSet<(Version, Key)>,
    floor: Version,
    /// Open intervals, ascending: a version strictly inside cannot be continued from.
    holes: Vec<(Version, Version)>,
    /// The version of the last change, at least the floor.
    changed: Version,
    /// Bytes of row text held.
    bytes: usize,
}

/// What one step changed, each key once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub rows: Vec<Changed>,
    pub gone: Vec<(Key, Why)>,
}

/// A row that is new or differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    pub key: Key,
    /// What was held before; `None` where the row entered.
    pub before: Option<Arc<Row>>,
    pub row: Arc<Row>,
}

impl Changes {
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.gone.is_empty()
    }
}

/// The answer to "what changed since v?": whole rows in their latest state, and keys that are gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Since {
    pub rows: Vec<(Key, Arc<Row>)>,
    pub gone: Vec<(Key, Why)>,
}

impl Rows {
    /// Rows that were read whole: nothing is known of versions below `version`.
    pub fn at(version: Version, rows: impl IntoIterator<Item = (Key, Arc<Row>)>) -> Self {
        let mut this = Self { floor: version, changed: version, ..Self::default() };
        for (key, row) in rows {
            this.hold(key, row, version);
        }
        this
    }

    /// Rows as a checkpoint kept them.
    pub fn restore(
        floor: Version,
        changed: Version,
        holes: Vec<(Version, Version)>,
        held: impl IntoIterator<Item = (Key, Held)>,
        gone: impl IntoIterator<Item = (Key, Tombstone)>,
    ) -> Self {
        let mut this = Self { floor, changed, holes, ..Self::default() };
        for (key, held) in held {
            this.hold(key, held.row, held.version);
        }
        for (key, tombstone) in gone {
            this.bury(key, tombstone);
        }
        this
    }

    pub fn len(&self) -> usize {
        self.held.len()
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Bytes of row text.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The version of the last change.
    pub fn changed(&self) -> Version {
        self.changed
    }

    pub fn floor(&self) -> Version {
        self.floor
    }

    pub fn holes(&self) -> &[(Version, Version)] {
        &self.holes
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Held)> {
        self.held.iter()
    }

    pub fn tombstones(&self) -> impl Iterator<Item = (&Key, &Tombstone)> {
        self.tombstones.iter()
    }

    /// Moves to `version` by the states of its keys. `base` is the head that the version continued, or
    /// where these rows stand if that is higher: whoever is strictly between the two is on a version that was lost.
    ///
    /// A row that is no member of the channel is not held; one that was held and is no member any more is gone.
    pub fn apply(&mut self, base: Version, version: Version, states: &[State], membership: &Predicate) -> Changes {
        self.apply_visible(base, version, states, Visible::All, membership)
    }

    /// The same, where row security shows only some of the states: what it does not show is gone, or never was there.
    pub fn apply_visible(
        &mut self,
        base: Version,
        version: Version,
        states: &[State],
        visible: Visible<'_>,
        membership: &Predicate,
    ) -> Changes {
        let mut changes = Changes::default();
        for (index, state) in states.iter().enumerate() {
            let shown = state.row.as_ref().filter(|_| visible.has(index));
            match shown.filter(|row| membership.holds(row)) {
                Some(row) => {
                    let before = self.held.get(&state.key);
                    if before.is_some_and(|held| held.row == *row) {
                        continue;
                    }
                    let before = before.map(|held| held.row.clone());
                    self.hold(state.key.clone(), row.clone(), version);
                    changes.rows.push(Changed { key: state.key.clone(), before, row: row.clone() });
                }
                None => {
                    if self.held.contains_key(&state.key) {
                        let why = match (&state.row, shown) {
                            (None, _) => Why::Deleted,
                            (Some(_), None) => Why::Permission,
                            (Some(_), Some(_)) => Why::Filter,
                        };
                        self.bury(state.key.clone(), Tombstone { version, why });
                        changes.gone.push((state.key.clone(), why));
                    }
                }
            }
        }
        if !changes.is_empty() {
            self.changed = version;
        }
        self.add_hole(base, version);
        self.prune();
        changes
    }

    /// Moves from the version `from` to `version` by comparing with rows that were read anew. Versions strictly between
    /// become a hole: what they held is not known. `lost`: what is said of rows that are not there any more.
    pub fn replace(&mut self, from: Version, version: Version, fresh: &Rows, lost: Why) -> Changes {
        let mut states: Vec<State> = Vec::new();
        for key in self.held.keys() {
            if !fresh.held.contains_key(key) {
                states.push(State { key: key.clone(), row: None });
            }
        }
        for (key, held) in &fresh.held {
            states.push(State { key: key.clone(), row: Some(held.row.clone()) });
        }
        // What was read anew are members already.
        let mut changes = self.apply(from, version, &states, &Predicate::default());
        for (key, why) in &mut changes.gone {
            *why = lost;
            if let Some(tombstone) = self.tombstones.get_mut(key) {
                tombstone.why = lost;
            }
        }
        changes
    }

    /// Raises the floor to `version`, for rows that turned out to stand there (see `at`).
    pub fn settle_at(&mut self, version: Version) {
        self.floor = version;
        self.changed = version;
        self.holes.clear();
        self.tombstones.clear();
        self.by_version.clear();
        for (key, held) in &mut self.held {
            held.version = version;
            self.by_version.insert((version, key.clone()));
        }
    }

    /// Whether [`Self::changes_since`] can be answered.
    pub fn reaches(&self, since: Version) -> bool {
        since >= self.floor && !self.holes.iter().any(|&(low, high)| low < since && since < high)
    }

    /// What changed after `since`; `None` where that cannot be known.
    pub fn changes_since(&self, since: Version) -> Option<Since> {
        if !self.reaches(since) {
            return None;
        }
        let mut answer = Since::default();
        let above = (Bound::Excluded((since, Key::above_all())), Bound::Unbounded);
        for (_, key) in self.by_version.range(above) {
            match self.held.get(key) {
                Some(held) => answer.rows.push((key.clone(), held.row.clone())),
                None => {
                    let why = self.tombstones.get(key).map_or(Why::Deleted, |tombstone| tombstone.why);
                    answer.gone.push((key.clone(), why));
                }
            }
        }
        Some(answer)
    }

    fn hold(&mut self, key: Key, row: Arc<Row>, version: Version) {
        self.bytes += row.text().len();
        if let Some(tombstone) = self.tombstones.remove(&key) {
            self.by_version.remove(&(tombstone.version, key.clone()));
        }
        if let Some(before) = self.held.insert(key.clone(), Held { row, version }) {
            self.bytes -= before.row.text().len();
            self.by_version.remove(&(before.version, key.clone()));
        }
        self.by_version.insert((version, key));
    }

    fn bury(&mut self, key: Key, tombstone: Tombstone) {
        if let Some(before) = self.held.remove(&key) {
            self.bytes -= before.row.text().len();
            self.by_version.remove(&(before.version, key.clone()));
        }
        if let Some(before) = self.tombstones.insert(key.clone(), tombstone) {
            self.by_version.remove(&(before.version, key.clone()));
        }
        self.by_version.insert((tombstone.version, key));
    }

    fn add_hole(&mut self, low: Version, high: Version) {
        // A version counts up by one where nothing was lost, and then there is nothing strictly between.
        if high.0 > low.0 + 1 && low >= self.floor {
            self.holes.push((low, high));
        } else if high.0 > low.0 + 1 && high > self.floor {
            self.holes.push((self.floor, high));
        }
        if self.holes.len() > HOLES_MAX {
            let (_, high) = self.holes.remove(0);
            self.raise_floor(high);
        }
    }

    /// Below the new floor tombstones are not kept, nor holes.
    fn raise_floor(&mut self, floor: Version) {
        self.floor = self.floor.max(floor);
        self.holes.retain(|&(_, high)| high > self.floor);
    }

    fn prune(&mut self) {
        let allowed = TOMBSTONES_MIN.max(self.held.len());
        if self.tombstones.len() <= allowed {
            return;
        }
        // A quarter at once, so that the sort is paid seldom.
        let mut oldest: Vec<(Version, Key)> =
            self.tombstones.iter().map(|(key, tombstone)| (tombstone.version, key.clone())).collect();
        oldest.sort_unstable();
        let excess = self.tombstones.len() - allowed * 3 / 4;
        let mut floor = self.floor;
        for (version, key) in oldest.into_iter().take(excess) {
            self.tombstones.remove(&key);
            floor = floor.max(version);
            self.by_version.remove(&(version, key));
        }
        self.raise_floor(floor);
    }

    /// What must hold between the parts; for tests and debug builds.
    pub fn check_invariants(&self) {
        assert_eq!(self.by_version.len(), self.held.len() + self.tombstones.len());
        assert!(self.held.iter().all(|(key, held)| self.by_version.contains(&(held.version, key.clone()))));
        assert!(self.tombstones.keys().all(|key| !self.held.contains_key(key)));
        assert_eq!(self.bytes, self.held.values().map(|held| held.row.text().len()).sum::<usize>());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::entry::seen::{Seen, Sight};
    use crate::publication::{Column, Schema};
    use crate::query::{Comparison, Filter};

    fn key(id: u64) -> Key {
        Key::new(format!("[{id}]"))
    }

    fn row(id: u64, value: u64) -> Arc<Row> {
        Arc::new(Row::parse(&format!("[{id},{value}]")).expect("a row"))
    }

    fn upsert(id: u64, value: u64) -> State {
        State { key: key(id), row: Some(row(id, value)) }
    }

    fn delete(id: u64) -> State {
        State { key: key(id), row: None }
    }

    /// A step of a channel without filters.
    fn move_to(rows: &mut Rows, base: Version, version: Version, states: &[State]) -> Changes {
        rows.apply(base, version, states, &Predicate::default())
    }

    fn content(rows: &Rows) -> HashMap<String, String> {
        rows.iter().map(|(key, held)| (key.as_str().to_owned(), held.row.text().to_owned())).collect()
    }

    #[test]
    fn a_step_says_only_what_differs() {
        let mut rows = Rows::at(Version(5), [(key(1), row(1, 10)), (key(2), row(2, 20))]);
        let changes =
            move_to(&mut rows, Version(5), Version(6), &[upsert(1, 10), upsert(2, 21), delete(9), upsert(3, 30)]);
        assert_eq!(changes.rows.len(), 2);
        assert_eq!(changes.rows[0].before, Some(row(2, 20)));
        assert_eq!(changes.rows[1].before, None);
        assert!(changes.gone.is_empty());
        let changes = move_to(&mut rows, Version(6), Version(7), &[delete(1)]);
        assert_eq!(changes.gone, [(key(1), Why::Deleted)]);
        assert_eq!(rows.changed(), Version(7));
        rows.check_invariants();
    }

    #[test]
    fn what_lies_below_the_floor_or_in_a_hole_is_not_answered() {
        let mut rows = Rows::at(Version(5), [(key(1), row(1, 10))]);
        move_to(&mut rows, Version(5), Version(6), &[upsert(1, 11)]);
        assert!(rows.changes_since(Version(4)).is_none());
        assert!(rows.changes_since(Version(5)).is_some());
        // A version that continued 6 and is numbered 9: 7 and 8 were lost.
        move_to(&mut rows, Version(6), Version(9), &[upsert(1, 12)]);
        assert!(rows.reaches(Version(6)) && rows.reaches(Version(9)));
        assert!(!rows.reaches(Version(7)) && !rows.reaches(Version(8)));
    }

    #[test]
    fn a_replayed_step_below_the_position_leaves_no_hole_above_the_floor_unmarked() {
        let mut rows = Rows::at(Version(50), [(key(1), row(1, 10))]);
        move_to(&mut rows, Version(40), Version(60), &[upsert(1, 11)]);
        assert!(rows.reaches(Version(50)) && rows.reaches(Version(60)));
        assert!(!rows.reaches(Version(55)));
    }

    #[test]
    fn a_row_that_came_and_went_between_two_resyncs_makes_a_hole() {
        let mut rows = Rows::at(Version(5), [(key(1), row(1, 10))]);
        let fresh = Rows::at(Version(9), [(key(2), row(2, 20))]);
        let changes = rows.replace(Version(5), Version(9), &fresh, Why::Permission);
        assert_eq!((changes.rows.len(), &*changes.gone), (1, &[(key(1), Why::Permission)][..]));
        assert!(rows.tombstones().all(|(_, tombstone)| tombstone.why == Why::Permission));
        assert!(rows.reaches(Version(5)) && !rows.reaches(Version(7)));
        assert_eq!(content(&rows), content(&fresh));
        rows.check_invariants();
    }

    #[test]
    fn a_row_that_leaves_the_filter_is_gone_and_one_that_enters_is_new() {
        let column = |name: &str| Column::new(name, "int4");
        let schema = Schema { columns: vec![column("id"), column("n")], key: vec![0] };
        let filter = Filter::Compare { column: "n".into(), op: Comparison::Eq, value: "1".into() };
        let filter = Predicate::new(&filter, &schema).expect("the schema has the column");
        let mut rows = Rows::at(Version(5), [(key(1), row(1, 1))]);
        let changes = rows.apply(Version(5), Version(6), &[upsert(1, 2), upsert(2, 1), upsert(3, 3)], &filter);
        assert_eq!(changes.gone, [(key(1), Why::Filter)]);
        assert_eq!(changes.rows.iter().map(|changed| &changed.key).collect::<Vec<_>>(), [&key(2)]);
        // It changes and goes where nobody sees it.
        assert!(rows.apply(Version(6), Version(7), &[upsert(1, 3)], &filter).is_empty());
        assert!(rows.apply(Version(7), Version(8), &[delete(1)], &filter).is_empty());
        let since = rows.changes_since(Version(5)).expect("above the floor");
        assert_eq!((since.rows.len(), since.gone), (1, vec![(key(1), Why::Filter)]));
        rows.check_invariants();
    }

    #[test]
    fn a_row_that_row_security_hides_is_gone_for_want_of_permission() {
        let mut rows = Rows::at(Version(5), [(key(1), row(1, 1)), (key(2), row(2, 1)), (key(3), row(3, 1))]);
        let mut seen = Seen::default();
        seen.note("i".into(), vec![0, 4], 5);
        let sight = Sight::Of("i".into());
        let states = [upsert(1, 2), upsert(2, 2), delete(3), upsert(4, 1), upsert(5, 1)];
        let visible = sight.of(&seen).expect("listed");
        let changes = rows.apply_visible(Version(5), Version(6), &states, visible, &Predicate::default());
        assert_eq!(changes.rows.iter().map(|changed| &changed.key).collect::<Vec<_>>(), [&key(1), &key(5)]);
        assert_eq!(changes.gone, [(key(2), Why::Permission), (key(3), Why::Deleted)]);
        rows.check_invariants();
    }

    #[test]
    fn old_tombstones_go_and_raise_the_floor() {
        let count = TOMBSTONES_MIN as u64 + 2;
        let mut rows = Rows::at(Version(0), (0..count).map(|id| (key(id), row(id, 1))));
        for id in 0..count {
            move_to(&mut rows, Version(id), Version(id + 1), &[delete(id)]);
        }
        assert!(rows.tombstones.len() <= TOMBSTONES_MIN);
        assert!(rows.floor() > Version(0));
        assert!(rows.changes_since(Version(0)).is_none());
        assert!(rows.changes_since(rows.floor()).is_some());
        rows.check_invariants();
    }

    proptest! {
        /// A client that holds the state of any version it may stand on, and applies the answer, equals the rows.
        #[test]
        fn changes_since_lead_from_any_version_to_the_last(
            steps in proptest::collection::vec(
                proptest::collection::btree_map(0u64..8, proptest::option::of(0u64..3), 0..5), 1..30)
        ) {
            let mut rows = Rows::at(Version(0), []);
            let mut history = vec![content(&rows)];
            for (index, step) in steps.iter().enumerate() {
                let states: Vec<State> = step
                    .iter()
                    .map(|(&id, value)| value.map_or_else(|| delete(id), |value| upsert(id, value)))
                    .collect();
                move_to(&mut rows, Version(index as u64), Version(index as u64 + 1), &states);
                rows.check_invariants();
                history.push(content(&rows));
            }
            for (version, state) in history.iter().enumerate() {
                let since = rows.changes_since(Version(version as u64)).expect("above the floor");
                let mut client = state.clone();
                for (key, _) in since.gone {
                    client.remove(key.as_str());
                }
                for (key, row) in since.rows {
                    client.insert(key.as_str().to_owned(), row.text().to_owned());
                }
                prop_assert_eq!(&client, &content(&rows));
            }
        }
    }
}
