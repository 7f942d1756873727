//! The window of a channel with a limit: its first rows, and spare ones behind them, exact at every version.
//!
//! ```text
//!   the channel's order ──────────────────────────────────────────────────────────▶
//!   │ shown: limit rows │ spare: known, not shown │ beyond the horizon: not known │
//!   └───────────────────┴─────────────────────────┴───────────────────────────────┘
//!                                            horizon: the place up to which every member is known
//! ```
//!
//! A row that enters pushes the last shown one among the spare ones; one that leaves is followed by the first spare one. A
//! member beyond the horizon is not held, since others may stand there that nobody told us of. So what is shown is right
//! as long as there are rows to show; when there are not, and there is a horizon, the window has *run out*, and the channel
//! has to be read again. Without a horizon every member is known, as where all of them fit.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::entry::{Key, Row};
use crate::order::{RowOrder, SortKey};
use crate::view::View;

/// Spare rows read at least: a small window of a busy table should not be read again every second.
const SPARE_MIN: usize = 64;

/// Spare rows read at most: they are a cushion against deletions, and not a second table.
const SPARE_MAX: usize = 1_024;

/// A cushion is doubled so often at most: to a thousand times.
const DOUBLED_MAX: u32 = 10;

/// 4 MiB: spare rows may be large ones, and nobody sees them.
const SPARE_BYTES: usize = 4 << 20;

/// See the module.
#[derive(Clone, Debug)]
pub struct Window {
    order: Arc<RowOrder>,
    limit: usize,
    /// Every member that is known, shown or spare.
    members: HashMap<Key, Arc<Row>>,
    shown: BTreeSet<Placed>,
    spare: BTreeSet<Placed>,
    spare_bytes: usize,
    /// Spare rows wanted: twice as many are too many.
    cushion: usize,
    /// Every member up to the place of this row is known; `None`: every member is. The row itself may be gone meanwhile.
    horizon: Option<(Placed, Arc<Row>)>,
    /// Spare rows when they were last read or trimmed.
    filled: usize,
}

/// A row's place in the order. The key stands at the order's end, so two rows never share one.
#[derive(Clone, Debug)]
struct Placed {
    order: Arc<RowOrder>,
    sort: SortKey,
    key: Key,
}

/// Keys that a window moved by itself.
#[derive(Debug, Default)]
pub(super) struct Moved {
    /// Between shown and spare.
    pub(super) crossed: Vec<Key>,
    /// Known no more.
    pub(super) trimmed: Vec<Key>,
}

impl Window {
    /// Rows to read at most, for a limit: those that are shown, and a cushion, which is doubled for each time that it was
    /// too small: a table that loses more rows in every version than a cushion has would keep its windows waiting.
    pub fn reading(limit: usize, ran_out: u32) -> usize {
        limit.saturating_add(spare_rows(limit) << ran_out.min(DOUBLED_MAX))
    }

    /// Whether spare rows of so many bytes are enough of a cushion, however few they are.
    pub fn is_ample(spare_bytes: usize) -> bool {
        spare_bytes > SPARE_BYTES
    }

    /// A window of the members that were read, which are all there are, or all up to the last of them. `None`: the view has
    /// no limit.
    pub(super) fn of(view: &View, members: Vec<(Key, Arc<Row>)>, all: bool) -> Option<Self> {
        let mut window = Self::empty(view)?;
        let places = members.iter().map(|(key, row)| (window.place(key, row), row.clone()));
        let last = places.max_by(|(a, _), (b, _)| a.cmp(b)).filter(|_| !all);
        window.cushion = window.cushion.max(members.len().saturating_sub(window.limit));
        for (key, row) in members {
            window.set(&key, Some(row));
        }
        window.horizon = last;
        window.settle();
        window.filled = window.spare.len();
        Some(window)
    }

    /// A window as a checkpoint kept it. `None`: the view has no limit.
    pub(super) fn restore(
        view: &View,
        members: impl IntoIterator<Item = (Key, Arc<Row>)>,
        horizon: Option<(Key, Arc<Row>)>,
    ) -> Option<Self> {
        let mut window = Self::empty(view)?;
        for (key, row) in members {
            window.set(&key, Some(row));
        }
        window.cushion = window.cushion.max(window.members.len().saturating_sub(window.limit));
        window.horizon = horizon.map(|(key, row)| (window.place(&key, &row), row));
        window.settle();
        window.filled = spare_rows(window.limit);
        Some(window)
    }

    fn empty(view: &View) -> Option<Self> {
        let limit = view.limit()?;
        Some(Self {
            order: view.order().clone(),
            limit,
            cushion: spare_rows(limit),
            members: HashMap::new(),
            shown: BTreeSet::new(),
            spare: BTreeSet::new(),
            spare_bytes: 0,
            horizon: None,
            filled: 0,
        })
    }

    /// A key's member is this now, or it has none. What is shown is settled afterwards.
    pub(super) fn set(&mut self, key: &Key, member: Option<Arc<Row>>) {
        if let Some(before) = self.members.remove(key) {
            let place = self.place(key, &before);
            if self.spare.remove(&place) {
                self.spare_bytes -= before.text().len();
            } else {
                self.shown.remove(&place);
            }
        }
        let Some(row) = member.filter(|_| self.limit > 0) else { return };
        let place = self.place(key, &row);
        if self.horizon.as_ref().is_none_or(|(horizon, _)| place <= *horizon) {
            self.spare_bytes += row.text().len();
            self.spare.insert(place);
            self.members.insert(key.clone(), row);
        }
    }

    /// Shows the first rows, and no others.
    pub(super) fn settle(&mut self) -> Moved {
        let mut moved = Moved::default();
        while self.shown.len() < self.limit
            && let Some(up) = self.take_first_spare()
        {
            moved.crossed.push(up.key.clone());
            self.shown.insert(up);
        }
        while let (Some(last), Some(first)) = (self.shown.last(), self.spare.first())
            && first < last
            && let (Some(down), Some(up)) = (self.shown.pop_last(), self.take_first_spare())
        {
            moved.crossed.extend([down.key.clone(), up.key.clone()]);
            self.spare_bytes += self.members.get(&down.key).map_or(0, |row| row.text().len());
            self.spare.insert(down);
            self.shown.insert(up);
        }
        self.trim(&mut moved);
        moved
    }

    fn take_first_spare(&mut self) -> Option<Placed> {
        let first = self.spare.pop_first()?;
        self.spare_bytes -= self.members.get(&first.key).map_or(0, |row| row.text().len());
        Some(first)
    }

    /// What is let go of lies beyond the horizon then.
    fn trim(&mut self, moved: &mut Moved) {
        if self.spare.len() <= 2 * self.cushion && self.spare_bytes <= 2 * SPARE_BYTES {
            return;
        }
        while (self.spare.len() > self.cushion || self.spare_bytes > SPARE_BYTES)
            && let Some(last) = self.spare.pop_last()
        {
            self.spare_bytes -= self.members.remove(&last.key).map_or(0, |row| row.text().len());
            moved.trimmed.push(last.key);
        }
        let last = self.spare.last().or(self.shown.last());
        self.horizon = last.and_then(|last| Some((last.clone(), self.members.get(&last.key)?.clone())));
        self.filled = self.spare.len();
    }

    /// The row of a key, if it is shown.
    pub(super) fn shown(&self, key: &Key) -> Option<&Arc<Row>> {
        self.members.get(key).filter(|row| self.shown.contains(&self.place(key, row)))
    }

    /// Every row that is shown.
    pub(super) fn rows(&self) -> impl Iterator<Item = (&Key, &Arc<Row>)> {
        self.shown.iter().filter_map(|placed| self.members.get_key_value(&placed.key))
    }

    /// Rows that are known and not shown, in order.
    pub(super) fn spare(&self) -> impl Iterator<Item = (&Key, &Arc<Row>)> {
        self.spare.iter().filter_map(|placed| self.members.get_key_value(&placed.key))
    }

    /// Every key that is known.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Key> {
        self.members.keys()
    }

    pub(super) fn knows(&self, key: &Key) -> bool {
        self.members.contains_key(key)
    }

    /// The row up to which every member is known; `None`: there are no others.
    pub(super) fn horizon(&self) -> Option<(&Key, &Arc<Row>)> {
        self.horizon.as_ref().map(|(place, row)| (&place.key, row))
    }

    /// Fewer rows are shown than there may be.
    pub(super) fn has_run_out(&self) -> bool {
        self.shown.len() < self.limit && self.horizon.is_some()
    }

    /// Half of the cushion is gone: time to read it again, while nobody has to wait for it.
    pub(super) fn runs_low(&self) -> bool {
        self.horizon.is_some() && self.spare.len() < self.filled / 2
    }

    fn place(&self, key: &Key, row: &Row) -> Placed {
        let sort = self.order.key(|column| Some(row.value(column)));
        Placed { order: self.order.clone(), sort, key: key.clone() }
    }

    /// What must hold between the parts; for tests and debug builds.
    pub(super) fn check_invariants(&self) {
        assert_eq!(self.members.len(), self.shown.len() + self.spare.len());
        assert!(self.shown.len() <= self.limit);
        assert!(self.spare.is_empty() || self.shown.len() == self.limit);
        assert!(self.shown.last().is_none_or(|last| self.spare.first().is_none_or(|first| last < first)));
        let last = self.spare.last().or(self.shown.last());
        assert!(last.is_none_or(|last| self.horizon.as_ref().is_none_or(|(horizon, _)| last <= horizon)));
        assert!(self.spare.len() <= 2 * self.cushion);
        assert_eq!(self.spare_bytes, self.spare().map(|(_, row)| row.text().len()).sum::<usize>());
    }
}

/// The usual cushion of a limit.
fn spare_rows(limit: usize) -> usize {
    if limit == 0 { 0 } else { limit.clamp(SPARE_MIN, SPARE_MAX) }
}

impl Ord for Placed {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order.compare(&self.sort, &other.sort).then_with(|| self.key.cmp(&other.key))
    }
}

impl PartialOrd for Placed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Placed {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Placed {}
