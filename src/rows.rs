//! Keyed rows that remember when they changed: the body of a channel and of its checkpoint.
//!
//! They are what the channel's clients see: rows of its [`View`], and of its window those that are shown.
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

use std::collections::HashMap;
use std::sync::Arc;

use crate::entry::{Key, Row, State};
use crate::protocol::Why;
use crate::version::Version;
use crate::view::{Verdict, View};

mod by_version;
#[cfg(test)]
mod tests;
mod window;

use by_version::ByVersion;
pub use window::Window;

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

/// A key that is gone: since when, and why if that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tombstone {
    pub version: Version,
    pub why: Option<Why>,
}

/// The rows of one channel at a version.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    held: HashMap<Key, Held>,
    tombstones: HashMap<Key, Tombstone>,
    /// Every key of `held` and of `tombstones`, by its version.
    by_version: ByVersion,
    floor: Version,
    /// Open intervals, ascending: a version strictly inside cannot be continued from.
    holes: Vec<(Version, Version)>,
    /// The version of the last change, at least the floor.
    changed: Version,
    /// Bytes of row text held.
    bytes: usize,
    /// Of a channel with a limit: what is held is what it shows.
    window: Option<Window>,
}

/// A window has fewer rows to show than there may be: the channel has to be read again. Of the step that led to it only
/// the rows that left are told, with the reason, which is not known any more when the rows are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the window has run out of spare rows")]
pub struct RanOut;

/// Rows of a channel as a checkpoint keeps them.
#[derive(Debug, Default)]
pub struct Kept {
    pub floor: Version,
    pub changed: Version,
    pub holes: Vec<(Version, Version)>,
    pub held: Vec<(Key, Held)>,
    pub gone: Vec<(Key, Tombstone)>,
    /// Of a window: rows that are known and not shown.
    pub spare: Vec<(Key, Arc<Row>)>,
    /// Of a window: the row up to which all are known; `None`: there are no others.
    pub horizon: Option<(Key, Arc<Row>)>,
}

/// What one step changed, each key once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub rows: Vec<Changed>,
    pub gone: Vec<(Key, Option<Why>)>,
    /// Rows that nobody saw, and that a window knows no more.
    pub trimmed: Vec<Key>,
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
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.gone.is_empty()
    }
}

/// The answer to "what changed since v?": whole rows in their latest state, and keys that are gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Since {
    pub rows: Vec<(Key, Arc<Row>)>,
    pub gone: Vec<(Key, Option<Why>)>,
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

    /// Members of a view that were read anew. `all`: there are no others; else there may be others behind the last.
    pub fn read(view: &View, version: Version, members: Vec<(Key, Arc<Row>)>, all: bool) -> Self {
        if view.limit().is_none() {
            return Self::at(version, members);
        }
        let window = Window::of(view, members, all);
        let shown: Vec<(Key, Arc<Row>)> =
            window.iter().flat_map(Window::rows).map(|(key, row)| (key.clone(), row.clone())).collect();
        Self { window, ..Self::at(version, shown) }
    }

    /// Rows as a checkpoint kept them. Where they are not what a window shows, it has run out.
    ///
    /// # Errors
    /// They are not such rows.
    pub fn restore(view: &View, kept: Kept) -> Result<Self, RanOut> {
        let Kept { floor, changed, holes, held, gone, spare, horizon } = kept;
        let shown = held.iter().map(|(key, held)| (key.clone(), held.row.clone()));
        let window = Window::restore(view, shown.chain(spare), horizon);
        let fits = |window: &Window| {
            !window.has_run_out()
                && window.rows().count() == held.len()
                && held.iter().all(|(key, held)| window.shown(key) == Some(&held.row))
        };
        if !window.as_ref().is_none_or(fits) {
            return Err(RanOut);
        }
        let mut this = Self { floor, changed, holes, window, ..Self::default() };
        for (key, held) in held {
            this.hold(key, held.row, held.version);
        }
        for (key, tombstone) in gone {
            this.bury(key, tombstone);
        }
        Ok(this)
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

    /// The row of a key, if it is held.
    pub fn row(&self, key: &Key) -> Option<&Arc<Row>> {
        self.held.get(key).map(|held| &held.row)
    }

    pub fn tombstones(&self) -> impl Iterator<Item = (&Key, &Tombstone)> {
        self.tombstones.iter()
    }

    /// Rows of a window that are known and not shown.
    pub fn spare(&self) -> impl Iterator<Item = (&Key, &Arc<Row>)> {
        self.window.iter().flat_map(Window::spare)
    }

    /// The row up to which all rows of a window are known; `None`: there are no others.
    pub fn horizon(&self) -> Option<(&Key, &Arc<Row>)> {
        self.window.as_ref().and_then(Window::horizon)
    }

    /// Whether the spare rows should be read again before they run out.
    pub fn runs_low(&self) -> bool {
        self.window.as_ref().is_some_and(Window::runs_low)
    }

    /// Whether a key's row is known, also if it is a spare one.
    pub fn knows(&self, key: &Key) -> bool {
        self.window.as_ref().map_or_else(|| self.held.contains_key(key), |window| window.knows(key))
    }

    /// Every key whose row is known.
    pub fn known_keys(&self) -> impl Iterator<Item = &Key> {
        let plain = self.held.keys().take(if self.window.is_some() { 0 } else { usize::MAX });
        plain.chain(self.window.iter().flat_map(Window::keys))
    }

    /// Moves to `version` by the states of its keys. `base` is the head that the version continued, or
    /// where these rows stand if that is higher: whoever is strictly between the two is on a version that was lost.
    ///
    /// A row that is no member of the channel is not held; one that was held and is no member any more is gone. With each
    /// state comes whether row security shows it.
    ///
    /// # Errors
    /// The channel has to be read again.
    pub fn apply<'a>(
        &mut self,
        base: Version,
        version: Version,
        states: impl IntoIterator<Item = (&'a State, bool)>,
        view: &View,
    ) -> Result<Changes, RanOut> {
        let mut changes = Changes::default();
        let mut ran_out = false;
        match self.window.take() {
            None => {
                for (state, is_seen) in states {
                    match view.judge_seen(state.row.as_ref(), is_seen) {
                        Verdict::Member(row) => self.show(&state.key, row, version, &mut changes),
                        Verdict::Not(why) => self.hide(&state.key, Some(why), version, &mut changes),
                    }
                }
            }
            Some(mut window) => {
                self.apply_to(&mut window, version, states, view, &mut changes);
                ran_out = window.has_run_out();
                self.window = Some(window);
            }
        }
        if !changes.is_empty() {
            self.changed = version;
        }
        self.jump(base, version);
        self.prune();
        if ran_out { Err(RanOut) } else { Ok(changes) }
    }

    /// What a window shows depends on all of its rows: they move first, and then it is told what is shown.
    fn apply_to<'a>(
        &mut self,
        window: &mut Window,
        version: Version,
        states: impl IntoIterator<Item = (&'a State, bool)>,
        view: &View,
        changes: &mut Changes,
    ) {
        let mut affected: Vec<Key> = Vec::new();
        let mut left: HashMap<&Key, Why> = HashMap::new();
        for (state, is_seen) in states {
            match view.judge_seen(state.row.as_ref(), is_seen) {
                Verdict::Member(row) => window.set(&state.key, Some(row)),
                Verdict::Not(why) => {
                    window.set(&state.key, None);
                    left.insert(&state.key, why);
                }
            }
            affected.push(state.key.clone());
        }
        let moved = window.settle();
        affected.extend(moved.crossed);
        for key in affected {
            match window.shown(&key) {
                Some(row) if !window.has_run_out() => self.show(&key, row.clone(), version, changes),
                // What comes in instead is not known; who has left is, and why.
                Some(_) => {}
                None => self.hide(&key, Some(left.get(&key).copied().unwrap_or(Why::Window)), version, changes),
            }
        }
        changes.trimmed = moved.trimmed;
    }

    /// Moves from the version `from` to `version` by comparing with rows that were read anew. Versions strictly between
    /// become a hole: what they held is not known.
    pub fn replace(&mut self, from: Version, version: Version, fresh: Self, view: &View) -> Changes {
        let mut changes = Changes::default();
        let missing: Vec<Key> = self.held.keys().filter(|&key| !fresh.held.contains_key(key)).cloned().collect();
        for key in missing {
            // Of a row that is not among those read nothing is known but that.
            let why = if fresh.knows(&key) { Some(Why::Window) } else { view.shows_all().then_some(Why::Deleted) };
            self.hide(&key, why, version, &mut changes);
        }
        for (key, held) in fresh.held {
            self.show(&key, held.row, version, &mut changes);
        }
        self.window = fresh.window;
        if !changes.is_empty() {
            self.changed = version;
        }
        self.jump(from, version);
        self.prune();
        changes
    }

    /// Takes over the spare rows of the same rows, read anew. False: they are not the same, and nothing was taken.
    pub fn refill(&mut self, fresh: Self) -> bool {
        let same = self.held.len() == fresh.held.len()
            && fresh.held.iter().all(|(key, held)| self.held.get(key).is_some_and(|ours| ours.row == held.row));
        if same {
            self.window = fresh.window;
        }
        same
    }

    /// Goes on from `low` to `high`, where nothing of these rows changed, or what changed is known: versions strictly
    /// between the two were lost.
    pub fn jump(&mut self, low: Version, high: Version) {
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

    /// Raises the floor to `version`, for rows that turned out to stand there (see `at`).
    pub fn settle_at(&mut self, version: Version) {
        self.floor = version;
        self.changed = version;
        self.holes.clear();
        self.tombstones.clear();
        self.by_version.clear();
        for (key, held) in &mut self.held {
            held.version = version;
            self.by_version.insert(version, key.clone());
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
        for key in self.by_version.after(since) {
            match self.held.get(key) {
                Some(held) => answer.rows.push((key.clone(), held.row.clone())),
                None => {
                    let why = self.tombstones.get(key).and_then(|tombstone| tombstone.why);
                    answer.gone.push((key.clone(), why));
                }
            }
        }
        Some(answer)
    }

    /// A row is there now, and looks like this.
    fn show(&mut self, key: &Key, row: Arc<Row>, version: Version, changes: &mut Changes) {
        let before = self.held.get(key);
        if before.is_some_and(|held| held.row == row) {
            return;
        }
        let before = before.map(|held| held.row.clone());
        self.hold(key.clone(), row.clone(), version);
        changes.rows.push(Changed { key: key.clone(), before, row });
    }

    /// A row is not there, or no more.
    fn hide(&mut self, key: &Key, why: Option<Why>, version: Version, changes: &mut Changes) {
        if self.held.contains_key(key) {
            self.bury(key.clone(), Tombstone { version, why });
            changes.gone.push((key.clone(), why));
        }
    }

    fn hold(&mut self, key: Key, row: Arc<Row>, version: Version) {
        self.bytes += row.text().len();
        if let Some(tombstone) = self.tombstones.remove(&key) {
            self.by_version.remove(tombstone.version, &key);
        }
        if let Some(before) = self.held.insert(key.clone(), Held { row, version }) {
            self.bytes -= before.row.text().len();
            self.by_version.remove(before.version, &key);
        }
        self.by_version.insert(version, key);
    }

    fn bury(&mut self, key: Key, tombstone: Tombstone) {
        if let Some(before) = self.held.remove(&key) {
            self.bytes -= before.row.text().len();
            self.by_version.remove(before.version, &key);
        }
        if let Some(before) = self.tombstones.insert(key.clone(), tombstone) {
            self.by_version.remove(before.version, &key);
        }
        self.by_version.insert(tombstone.version, key);
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
            self.by_version.remove(version, &key);
        }
        self.raise_floor(floor);
    }

    /// What must hold between the parts; for tests and debug builds.
    pub fn check_invariants(&self) {
        assert_eq!(self.by_version.len(), self.held.len() + self.tombstones.len());
        assert!(self.held.iter().all(|(key, held)| self.by_version.contains(held.version, key)));
        assert!(self.tombstones.keys().all(|key| !self.held.contains_key(key)));
        assert_eq!(self.bytes, self.held.values().map(|held| held.row.text().len()).sum::<usize>());
        if let Some(window) = &self.window {
            window.check_invariants();
            assert_eq!(window.rows().count(), self.held.len());
            assert!(window.rows().all(|(key, row)| self.held.get(key).is_some_and(|held| held.row == *row)));
        }
    }
}
