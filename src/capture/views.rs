//! The published views, as their leader knows them: what the last run gave, what has changed since, and when to run again.
//!
//! ```text
//!             something under it changed            due, and its run was accepted
//!   fresh ───────────────────────────────▶ dirty ─────────────────────────────────▶ fresh
//!                                            │ a cut was accepted without its run
//!                                            └─▶ named in beats as stale, until then
//! ```
//!
//! A run happens in a cut's transaction, so its result is the view at that version; what is told is the difference from the
//! result before, which is replaced only when the store has accepted the cut. At the beginning of a term nothing is known:
//! the result is then taken from the store ([`crate::base`]) if it is there, or the view is told with a marker.
//!
//! **Together.** A client that follows two views moves at versions at which both are fresh. So a view that is due waits for
//! those that are dirty and run more often: they come due soon, and then all run in one cut.
//!
//! **Slow views.** A view that takes long is run less often than it asks for, so that it never takes more than a fifth of
//! the leader's time, all views together not more than half.
//!
//! Running itself is the reader's; this file decides, and does no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::base::{Base, Trouble};
use crate::checkpoint::Checkpoint;
use crate::entry::{Key, Row, State};
use crate::publication::{Catalogue, FeedKey, Publication, Schema};
use crate::query::Predicate;
use crate::rows::Rows;
use crate::version::{Cut, Version};

/// A view rests for so many times as long as its run took.
const REST: u32 = 4;
/// A view that could not be run, as its tables were locked, is tried again after this.
const RETRY_LOCKED: Duration = Duration::from_millis(100);
/// A broken view is tried again after this, also if nothing under it changed: what is wrong may stand elsewhere.
const RETRY_BROKEN: Duration = Duration::from_secs(10);
/// A base that is older than its rows is written anew after this. The log must reach back further.
const BASE_EVERY: Duration = Duration::from_secs(20);

/// What a run may cost.
#[derive(Clone, Debug)]
pub struct ViewLimits {
    pub rows_max: usize,
    /// Bytes of rows as JSON text.
    pub bytes_max: usize,
    /// Beats wait for a run, and nodes call the pipeline late without one for 3 s.
    pub time_max: Duration,
}

impl Default for ViewLimits {
    fn default() -> Self {
        Self { rows_max: 100_000, bytes_max: 64 << 20, time_max: Duration::from_secs(2) }
    }
}

/// A run that was asked for: what its result is compared with.
#[derive(Clone, Debug)]
pub struct Prior {
    /// `None`: unknown, or of other columns than these.
    pub rows: Option<Arc<Rows>>,
    pub schema_id: Arc<str>,
    /// What was told last instead of rows.
    pub trouble: Option<Trouble>,
}

/// A run that happened in a cut.
#[derive(Clone, Debug)]
pub struct ViewRun {
    pub feed: FeedKey,
    pub schema: Arc<Schema>,
    pub outcome: Outcome,
    pub took: Duration,
}

/// What a run gave.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The keys whose rows differ from the prior ones.
    Difference(Vec<State>),
    /// All rows, where there was nothing to compare with.
    Whole(Vec<(Key, Arc<Row>)>),
    Trouble(Trouble),
}

/// See the module.
pub struct Views {
    views: BTreeMap<FeedKey, View>,
    /// No view is run before this moment.
    calm_until: Instant,
}

struct View {
    id: i32,
    refresh: Duration,
    kept: Kept,
    /// Something under it changed after its last run, as far as is known.
    dirty: bool,
    /// The head's state is not the view's: it was dirty when the head was appended.
    stale: bool,
    /// When its last run began.
    started: Instant,
    /// Not run before.
    due: Instant,
    /// From one run to the next, at least: `refresh`, or more for a view that takes long.
    interval: Duration,
    /// The base in the store: the version of its rows, and when it was written.
    base: Option<(Version, Instant)>,
}

/// What the log tells nodes of a view.
enum Kept {
    /// Not known in this term.
    Unknown,
    Rows {
        rows: Arc<Rows>,
        schema: Arc<Schema>,
    },
    Broken(Trouble),
}

impl Views {
    pub fn new(now: Instant) -> Self {
        Self { views: BTreeMap::new(), calm_until: now }
    }

    /// Follows what is published.
    pub fn follow(&mut self, catalogue: &Catalogue, now: Instant) {
        let published = |feed: &FeedKey| {
            catalogue.publications.get(&feed.name).is_some_and(|publication| publication.feed == *feed)
        };
        self.views.retain(|feed, _| published(feed));
        for publication in catalogue.publications.values().filter(|publication| publication.source.is_view()) {
            let view = self.views.entry(publication.feed.clone()).or_insert_with(|| View::new(publication, now));
            view.refresh = publication.refresh;
        }
    }

    /// Whether a publication is one of them.
    pub fn contains(&self, id: i32) -> bool {
        self.views.values().any(|view| view.id == id)
    }

    /// Something under these changed.
    pub fn changed<'a>(&mut self, ids: impl IntoIterator<Item = &'a i32>) {
        let ids: BTreeSet<i32> = ids.into_iter().copied().collect();
        for view in self.views.values_mut().filter(|view| ids.contains(&view.id)) {
            view.dirty = true;
            // What was wrong may be mended.
            view.due = view.due.min(view.started + view.interval);
        }
    }

    /// What to run now, by publication.
    pub fn plan(&self, now: Instant) -> BTreeMap<i32, Prior> {
        if now < self.calm_until {
            return BTreeMap::new();
        }
        let mut together = true;
        let due = |view: &&View| {
            let due = view.due <= now;
            // Nobody follows a broken view, so nobody waits for it.
            together &= due || view.is_broken();
            due && (together || view.is_broken())
        };
        self.dirty().into_iter().filter(due).map(|view| (view.id, view.prior())).collect()
    }

    /// How long nothing is to be run, if nothing changes.
    pub fn pause(&self, now: Instant) -> Option<Duration> {
        let dirty = self.dirty();
        let first = dirty.iter().find(|view| !view.is_broken());
        let next = dirty.iter().filter(|view| view.is_broken()).chain(first).map(|view| view.due).min()?;
        Some(next.max(self.calm_until).saturating_duration_since(now))
    }

    /// Those that wait for a run, in the order in which they wait for each other.
    fn dirty(&self) -> Vec<&View> {
        let mut dirty: Vec<&View> = self.views.values().filter(|view| view.dirty).collect();
        dirty.sort_unstable_by_key(|view| (view.interval, view.id));
        dirty
    }

    /// Publications that the head's beat names as stale.
    pub fn stale_ids(&self) -> BTreeSet<i32> {
        self.views.values().filter(|view| view.stale).map(|view| view.id).collect()
    }

    /// The same by feed.
    pub fn stale(&self) -> Vec<FeedKey> {
        self.views.iter().filter(|(_, view)| view.stale).map(|(feed, _)| feed.clone()).collect()
    }

    /// What will be stale once a cut is accepted in which these were run, and which found these changed besides.
    pub fn stale_after(&self, runs: &[ViewRun], changed: &BTreeSet<i32>) -> Vec<FeedKey> {
        let stale = |feed: &FeedKey, view: &View| {
            (view.dirty || changed.contains(&view.id)) && !view.is_broken() && !runs.iter().any(|run| run.feed == *feed)
        };
        self.views.iter().filter(|(feed, view)| stale(feed, view)).map(|(feed, _)| feed.clone()).collect()
    }

    /// Views whose result is not known in this term.
    pub fn unknown(&self) -> Vec<FeedKey> {
        let unknown = |view: &View| matches!(view.kept, Kept::Unknown);
        self.views.iter().filter(|(_, view)| unknown(view)).map(|(feed, _)| feed.clone()).collect()
    }

    /// The result as the store has it at the head: runs are compared with it.
    pub fn recall(&mut self, feed: &FeedKey, at_head: Checkpoint, now: Instant) {
        if let Some(view) = self.views.get_mut(feed) {
            view.base = Some((at_head.rows.changed(), now));
            view.kept = Kept::Rows { rows: Arc::new(at_head.rows), schema: at_head.schema };
        }
    }

    /// What has to be in the store before a cut is told: the bases of views that it tells by a marker.
    pub fn bases_of(runs: &[ViewRun], cut: &Cut) -> Vec<(FeedKey, Base)> {
        let base = |run: &ViewRun| match &run.outcome {
            Outcome::Difference(_) => None,
            Outcome::Whole(rows) => Some(Base::Rows(Checkpoint {
                cut: cut.clone(),
                schema: run.schema.clone(),
                rows: Rows::at(cut.version, rows.iter().cloned()),
            })),
            Outcome::Trouble(trouble) => Some(Base::Broken { epoch: cut.epoch.clone(), trouble: *trouble }),
        };
        runs.iter().filter_map(|run| Some((run.feed.clone(), base(run)?))).collect()
    }

    /// The store has accepted a cut: see [`Self::stale_after`]. `tried` were to be run. `base`: the head before.
    pub fn accepted(&mut self, runs: Vec<ViewRun>, changed: &BTreeSet<i32>, tried: &BTreeSet<i32>, step: &Step<'_>) {
        let stale: BTreeSet<FeedKey> = self.stale_after(&runs, changed).into_iter().collect();
        let took: Duration = runs.iter().map(|run| run.took).sum();
        let ran: BTreeSet<FeedKey> = runs.iter().map(|run| run.feed.clone()).collect();
        for (feed, view) in &mut self.views {
            view.stale = stale.contains(feed);
            view.dirty |= changed.contains(&view.id);
            if tried.contains(&view.id) && !ran.contains(feed) {
                view.due = step.now + RETRY_LOCKED;
            }
        }
        for run in runs {
            if let Some(view) = self.views.get_mut(&run.feed) {
                view.ran(run, step);
            }
        }
        self.calm_until = step.now + took;
    }

    /// Bases that are to be written anew, at the head: those that are missing, and those that lag behind their rows.
    pub fn bases_due(&mut self, missing: &BTreeSet<FeedKey>, head: &Cut, now: Instant) -> Vec<(FeedKey, Base)> {
        let mut due = Vec::new();
        for (feed, view) in &mut self.views {
            let base = match &view.kept {
                Kept::Unknown => continue,
                Kept::Rows { rows, schema } => {
                    let lags = view.base.is_none_or(|(version, written)| {
                        version < rows.changed() && now.duration_since(written) >= BASE_EVERY
                    });
                    if !lags && !missing.contains(feed) {
                        continue;
                    }
                    view.base = Some((rows.changed(), now));
                    Base::Rows(Checkpoint { cut: head.clone(), schema: schema.clone(), rows: Rows::clone(rows) })
                }
                Kept::Broken(trouble) if missing.contains(feed) => {
                    Base::Broken { epoch: head.epoch.clone(), trouble: *trouble }
                }
                Kept::Broken(_) => continue,
            };
            due.push((feed.clone(), base));
        }
        due
    }

    /// Those that have a base in the store, or should have.
    pub fn with_base(&self) -> Vec<FeedKey> {
        let known = |view: &View| !matches!(view.kept, Kept::Unknown);
        self.views.iter().filter(|(_, view)| known(view)).map(|(feed, _)| feed.clone()).collect()
    }
}

/// A cut that was accepted.
pub struct Step<'a> {
    /// The head that it continued.
    pub base: Version,
    pub cut: &'a Cut,
    /// When its reading began, and now.
    pub started: Instant,
    pub now: Instant,
}

impl View {
    fn new(publication: &Publication, now: Instant) -> Self {
        Self {
            id: publication.id,
            refresh: publication.refresh,
            kept: Kept::Unknown,
            dirty: true,
            stale: true,
            started: now,
            due: now,
            interval: publication.refresh,
            base: None,
        }
    }

    fn is_broken(&self) -> bool {
        matches!(self.kept, Kept::Broken(_))
    }

    fn prior(&self) -> Prior {
        match &self.kept {
            Kept::Unknown => Prior { rows: None, schema_id: "".into(), trouble: None },
            Kept::Rows { rows, schema } => {
                Prior { rows: Some(rows.clone()), schema_id: schema.id().into(), trouble: None }
            }
            Kept::Broken(trouble) => Prior { rows: None, schema_id: "".into(), trouble: Some(*trouble) },
        }
    }

    fn ran(&mut self, run: ViewRun, step: &Step<'_>) {
        let interval = self.refresh.max(run.took * (REST + 1));
        if interval > self.refresh && interval > self.interval * 2 {
            tracing::warn!(
                view = %run.feed, took = ?run.took, every = ?interval,
                "a view takes long, so it is run less often than its refresh_ms asks for"
            );
        }
        self.interval = interval;
        self.started = step.started;
        self.due = step.started + interval;
        self.dirty = false;
        self.stale = false;
        match run.outcome {
            Outcome::Difference(states) => {
                if let Kept::Rows { rows, .. } = &mut self.kept {
                    let rows = Arc::make_mut(rows);
                    rows.apply(step.base, step.cut.version, &states, &Predicate::default());
                }
            }
            Outcome::Whole(rows) => {
                self.kept = Kept::Rows { rows: Arc::new(Rows::at(step.cut.version, rows)), schema: run.schema };
                self.base = Some((step.cut.version, step.now));
            }
            Outcome::Trouble(trouble) => {
                self.kept = Kept::Broken(trouble);
                self.base = None;
                self.dirty = true;
                self.due = step.now + RETRY_BROKEN;
            }
        }
    }
}
