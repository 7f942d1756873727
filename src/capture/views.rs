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
use crate::entry::seen::Visible;
use crate::entry::{Key, Row, State};
use crate::publication::{Catalogue, FeedKey, Publication, Schema};
use crate::rows::Rows;
use crate::version::{Cut, Version};
use crate::view;

/// A view rests for so many times as long as its run took.
const REST: u32 = 4;
/// What is told of in the log, when it keeps a view from being run as often as it asks for.
const SLOW: Duration = Duration::from_millis(200);
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
    told_slow: bool,
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
            view.kept = Kept::Rows { rows: Arc::new(at_head.rows), schema: at_head.view.feed_schema().clone() };
        }
    }

    /// What has to be in the store before a cut is told: the bases of views that it tells by a marker.
    pub fn bases_of(runs: &[ViewRun], cut: &Cut) -> Vec<(FeedKey, Base)> {
        let base = |run: &ViewRun| match &run.outcome {
            Outcome::Difference(_) => None,
            Outcome::Whole(rows) => Some(Base::Rows(Box::new(Checkpoint {
                cut: cut.clone(),
                view: Arc::new(view::View::whole(&run.schema)),
                rows: Rows::at(cut.version, rows.iter().cloned()),
            }))),
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
        }
        let not_run = |id: &&i32| !self.views.iter().any(|(feed, view)| view.id == **id && ran.contains(feed));
        let put_off: BTreeSet<i32> = tried.iter().filter(not_run).copied().collect();
        self.put_off(&put_off, step.now);
        for run in runs {
            if let Some(view) = self.views.get_mut(&run.feed) {
                view.ran(run, step);
            }
        }
        self.calm_until = self.calm_until.max(step.now + took);
    }

    /// These could not be run now.
    pub fn put_off(&mut self, ids: &BTreeSet<i32>, now: Instant) {
        for view in self.views.values_mut().filter(|view| ids.contains(&view.id)) {
            view.due = view.due.max(now + RETRY_LOCKED);
        }
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
                    let rows = Rows::clone(rows);
                    let view = Arc::new(view::View::whole(schema));
                    Base::Rows(Box::new(Checkpoint { cut: head.clone(), view, rows }))
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
            told_slow: false,
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
        // Once, as it may take long now and then.
        if interval > self.refresh && run.took > SLOW && !std::mem::replace(&mut self.told_slow, true) {
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
                if let Kept::Rows { rows, schema } = &mut self.kept {
                    let applied = Arc::make_mut(rows).apply(
                        step.base,
                        step.cut.version,
                        Visible::All.mark(&states),
                        &view::View::whole(schema),
                    );
                    applied.expect("what shows every row has no window that could run out");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publication::{Column, Policy, Source};
    use crate::version::Epoch;

    const MS: Duration = Duration::from_millis(1);

    fn publication(id: i32, refresh: Duration) -> Publication {
        let schema = Schema { columns: vec![Column::new("id", "int4")], key: vec![0] };
        Publication {
            feed: feed(id),
            id,
            relation: format!("public.v{id}"),
            source: Source::View,
            policy: Policy::Public,
            schema_id: schema.id().into(),
            schema: Arc::new(schema),
            casts: vec!["pg_catalog.int4".into()],
            bulk_rows: 10,
            refresh,
            key_sql: String::new(),
            row_sql: String::new(),
            by_key_sql: String::new(),
            fingerprint: String::new(),
        }
    }

    fn feed(id: i32) -> FeedKey {
        FeedKey { name: format!("v{id}").into(), generation: 1 }
    }

    fn cut(version: u64) -> Cut {
        let snapshot = "1:1:".parse().expect("a snapshot");
        Cut { epoch: Epoch::new("e"), version: Version(version), snapshot, as_of: 0 }
    }

    fn whole() -> Outcome {
        Outcome::Whole(vec![(Key::new("[1]"), Arc::new(Row::parse("[1]").expect("a row")))])
    }

    /// Views with these refresh times, run once at `now`.
    fn views(refreshes: &[Duration], now: Instant) -> Views {
        let mut views = Views::new(now);
        let published = refreshes.iter().zip(1..).map(|(&refresh, id)| publication(id, refresh));
        let publications = published.map(|view| (view.feed.name.clone(), Arc::new(view))).collect();
        views.follow(&Catalogue { publications }, now);
        assert_eq!(views.stale().len(), refreshes.len(), "what was never run is stale");
        let ids: Vec<i32> = (1..).take(refreshes.len()).collect();
        run(&mut views, 1, now, &ids.iter().map(|&id| (id, whole(), Duration::ZERO)).collect::<Vec<_>>());
        assert!(views.stale().is_empty() && views.plan(now).is_empty());
        views
    }

    /// A cut that is accepted, in which these are run.
    fn run(views: &mut Views, version: u64, now: Instant, outcomes: &[(i32, Outcome, Duration)]) {
        let schema = publication(1, MS).schema;
        let runs = outcomes.iter().map(|(id, outcome, took)| ViewRun {
            feed: feed(*id),
            schema: schema.clone(),
            outcome: outcome.clone(),
            took: *took,
        });
        let cut = cut(version);
        let step = Step { base: Version(version - 1), cut: &cut, started: now, now };
        let tried = views.plan(now).into_keys().collect();
        views.accepted(runs.collect(), &BTreeSet::new(), &tried, &step);
    }

    fn planned(views: &Views, now: Instant) -> Vec<i32> {
        views.plan(now).into_keys().collect()
    }

    #[test]
    fn a_view_is_run_when_something_changed_and_not_before_it_may() {
        let now = Instant::now();
        let mut views = views(&[MS * 250], now);
        assert_eq!(views.pause(now), None);
        views.changed(&[1, 7]);
        assert_eq!((planned(&views, now), views.pause(now)), (vec![], Some(MS * 250)));
        run(&mut views, 2, now, &[]);
        assert_eq!(views.stale(), [feed(1)], "a cut without its run");
        assert_eq!(planned(&views, now + MS * 250), [1]);
        run(&mut views, 3, now + MS * 250, &[(1, Outcome::Difference(vec![]), Duration::ZERO)]);
        assert!(views.stale().is_empty() && views.pause(now).is_none());
    }

    #[test]
    fn a_view_that_is_due_waits_for_those_that_run_more_often() {
        let now = Instant::now();
        let mut views = views(&[MS * 1000, MS * 250], now);
        views.changed(&[1, 2]);
        assert_eq!(planned(&views, now + MS * 900), [2]);
        run(&mut views, 2, now + MS * 900, &[(2, Outcome::Difference(vec![]), Duration::ZERO)]);
        views.changed(&[2]);
        assert_eq!(planned(&views, now + MS * 1000), Vec::<i32>::new());
        assert_eq!(planned(&views, now + MS * 1150), [1, 2], "together, so that both are fresh at one version");
    }

    #[test]
    fn a_view_that_takes_long_rests_and_a_broken_one_holds_up_nobody() {
        let now = Instant::now();
        let mut views = views(&[MS * 10, MS * 20], now);
        views.changed(&[1, 2]);
        let later = now + MS * 20;
        run(
            &mut views,
            2,
            later,
            &[(1, Outcome::Trouble(Trouble::Fails), MS), (2, Outcome::Difference(vec![]), MS * 100)],
        );
        views.changed(&[2]);
        assert!(views.stale_after(&[], &BTreeSet::new()) == [feed(2)], "nobody follows a broken view");
        assert_eq!(planned(&views, later + MS * 499), Vec::<i32>::new());
        assert_eq!(planned(&views, later + MS * 500), [2]);
        assert_eq!(planned(&views, later + RETRY_BROKEN), [1, 2]);
        views.changed(&[1]);
        assert_eq!(planned(&views, later + MS * 101), [1], "what was wrong may be mended");
    }

    #[test]
    fn a_run_that_could_not_be_is_tried_again_soon() {
        let now = Instant::now();
        let mut views = views(&[MS], now);
        views.changed(&[1]);
        views.put_off(&BTreeSet::from([1]), now + MS);
        assert_eq!(planned(&views, now + MS * 100), Vec::<i32>::new());
        assert_eq!(planned(&views, now + MS * 101), [1]);
    }

    #[test]
    fn a_base_is_written_where_it_is_missing_or_lags() {
        let now = Instant::now();
        let mut views = views(&[MS], now);
        let none = BTreeSet::new();
        assert!(views.bases_due(&none, &cut(2), now + BASE_EVERY).is_empty(), "nothing has changed");
        assert_eq!(views.bases_due(&BTreeSet::from([feed(1)]), &cut(2), now).len(), 1);
        views.changed(&[1]);
        let state = State { key: Key::new("[2]"), row: Some(Arc::new(Row::parse("[2]").expect("a row"))) };
        run(&mut views, 3, now + MS, &[(1, Outcome::Difference(vec![state]), Duration::ZERO)]);
        assert!(views.bases_due(&none, &cut(3), now + MS).is_empty(), "the log reaches back to it");
        let due = views.bases_due(&none, &cut(4), now + BASE_EVERY);
        let Some((_, Base::Rows(base))) = due.first() else { panic!("a base") };
        assert_eq!((base.cut.version, base.rows.len()), (Version(4), 2));
    }
}
