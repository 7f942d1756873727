//! A channel on this node: its rows, and how rows that were read elsewhere find their way to the node's version.
//!
//! Rows come from a checkpoint, which stands at a version, or from a snapshot query, which stands at its own snapshot
//! S(q) between two cuts. Meanwhile the node moves on; the feed keeps its steps until the rows land:
//!
//! ```text
//!   node's versions      41 ────── 42 ────── 43 ────── 44
//!                        ▲ asked       ▲ S(q)          ▲ rows landed
//!   steps kept           ·         42 skipped: S(q) sees all of it
//!                                            43 applied: it sees S(q) and more, so this is version 43, the floor
//!                                                      44 applied: live
//! ```
//!
//! A window that runs low is read again in the same way, while the channel goes on living: what lands gives it spare rows.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::index::Index;
use super::pages::{Heading, Pages};
use super::{RowsRead, SessionId};
use crate::audit::Served;
use crate::channel::ChannelSpec;
use crate::entry::seen::Seen;
use crate::entry::{State, States};
use crate::protocol::{ChannelForm, ChannelNumber, Refusal};
use crate::publication::FeedKey;
use crate::rows::{RanOut, Rows};
use crate::snapshots::{HeldLock, Place};
use crate::store::Entry;
use crate::version::{Cut, Version};
use crate::view::View;

/// What one version says of one feed.
#[derive(Debug)]
pub(super) enum Change {
    Nothing,
    States { schema_id: Arc<str>, states: Vec<State>, seen: Seen },
    Marker(String),
}

impl Change {
    /// What an entry says; an entry that cannot be read says that something changed.
    pub(super) fn of(entry: &Entry) -> Self {
        match States::parse(&entry.states) {
            Ok(States::Rows { schema, states, seen }) => Self::States { schema_id: schema, states, seen },
            Ok(States::Marker(why)) => Self::Marker(why),
            Err(error) => Self::Marker(format!("an entry that cannot be read: {error}")),
        }
    }
}

/// One version as one feed sees it.
#[derive(Debug)]
pub(super) struct FeedStep {
    pub(super) cut: Cut,
    pub(super) base: Version,
    pub(super) change: Change,
}

/// A publication's live channels.
#[derive(Debug, Default)]
pub(super) struct Feed {
    pub(super) channels: BTreeSet<ChannelNumber>,
    /// Channels that have a flight, and take every step: their rows are not where the index could find them.
    pub(super) flying: BTreeSet<ChannelNumber>,
    /// The live channels.
    pub(super) index: Index,
    /// Entries above the node's version, not yet closed by a beat.
    pub(super) arrived: std::collections::BTreeMap<Version, Arc<Entry>>,
    /// Steps since the oldest flight in the air began.
    kept: VecDeque<Arc<FeedStep>>,
    /// The leader runs it: there are versions at which it is stale.
    pub(super) is_view: bool,
    /// At the node's version its rows are those of an earlier one, or it is not known whether they are. Whoever follows it
    /// stands still.
    pub(super) stale: bool,
}

impl Feed {
    /// Steps kept for flights at most; beyond it the flights start again.
    const KEPT_MAX: usize = 20_000;

    pub(super) fn new(is_view: bool, stale: bool) -> Self {
        Self { is_view, stale, ..Self::default() }
    }

    /// Keeps a step for the flights in the air. False: there were too many, and none is kept now.
    pub(super) fn keep(&mut self, step: Arc<FeedStep>) -> bool {
        if self.kept.len() >= Self::KEPT_MAX {
            self.kept.clear();
            return false;
        }
        // Two steps in which nothing happened are one.
        if matches!(step.change, Change::Nothing)
            && self.kept.back().is_some_and(|last| matches!(last.change, Change::Nothing))
        {
            self.kept.pop_back();
        }
        self.kept.push_back(step);
        true
    }

    pub(super) fn kept(&self) -> Vec<Arc<FeedStep>> {
        self.kept.iter().cloned().collect()
    }

    pub(super) fn forget_kept(&mut self) {
        self.kept.clear();
    }
}

/// Why rows have to be read again that were on their way.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Overtaken {
    #[error("{0}")]
    Resync(String),
    #[error("an entry does not tell what its identity sees")]
    Untold,
    #[error(transparent)]
    RanOut(#[from] RanOut),
}

/// Rows on their way to the node's version.
#[derive(Debug)]
pub(super) struct Settling {
    pub(super) rows: Rows,
    pub(super) place: Place,
    pub(super) view: Arc<View>,
    /// Given back when the rows are thrown away, else with the channel's checkpoint.
    pub(super) lock: Option<HeldLock>,
}

impl Settling {
    /// Takes one step.
    ///
    /// # Errors
    /// The rows do not contain a resync that the step marks, or their window runs out: they have to be read again.
    pub(super) fn step(&mut self, step: &FeedStep) -> Result<(), Overtaken> {
        match &self.place {
            Place::At(version) if step.cut.version <= *version => Ok(()),
            Place::At(_) => {
                self.apply(step)?;
                self.place = Place::At(step.cut.version);
                Ok(())
            }
            Place::Sees(seen) => {
                let reached = seen.is_within(&step.cut.snapshot);
                if !step.cut.snapshot.is_within(seen) {
                    self.apply(step)?;
                }
                if reached {
                    self.rows.settle_at(step.cut.version);
                    self.place = Place::At(step.cut.version);
                }
                Ok(())
            }
        }
    }

    fn apply(&mut self, step: &FeedStep) -> Result<(), Overtaken> {
        match &step.change {
            Change::Nothing => Ok(()),
            Change::States { schema_id, states, seen } if schema_id == self.view.feed_schema_id() => {
                let visible = self.view.sight().of(seen).ok_or(Overtaken::Untold)?;
                let base = match &self.place {
                    Place::At(version) => step.base.max(*version),
                    Place::Sees(_) => step.base,
                };
                self.rows.apply(base, step.cut.version, visible.mark(states), &self.view)?;
                Ok(())
            }
            Change::States { .. } => Err(Overtaken::Resync("its columns changed".to_owned())),
            Change::Marker(why) => Err(Overtaken::Resync(why.clone())),
        }
    }

    pub(super) fn is_at(&self, version: Version) -> bool {
        matches!(self.place, Place::At(at) if at == version)
    }
}

/// How a channel's rows relate to the node's version.
///
/// `Opening` → `Live` ⇄ `Resync`; a channel that cannot open is removed.
#[derive(Debug)]
pub(super) enum Phase {
    /// No rows yet.
    Opening(Flight),
    /// The rows are those of the node's version. `refill`: spare rows of its window are on their way.
    Live { refill: Option<Flight> },
    /// The rows stand still at a version until fresh ones have passed the marker.
    Resync { frozen_at: Version, flight: Flight },
}

/// A reading of rows, asked for or landed.
#[derive(Debug)]
pub(super) struct Flight {
    /// What lands under another number is out of date.
    pub(super) number: u64,
    /// The node's version when it was asked for; `None`: waits for the node to have one, or to be asked again.
    pub(super) asked_at: Option<Cut>,
    /// Not before this moment, after a failure.
    pub(super) not_before: Option<Instant>,
    /// Rows below this version do not contain the marker that caused the flight.
    pub(super) at_least: Version,
    /// How often what landed had too few spare rows.
    pub(super) ran_out: u32,
    /// How often rows were sent back because an entry did not tell what the channel's identity sees.
    pub(super) untold: u32,
    pub(super) settling: Option<Settling>,
}

impl Flight {
    /// A flight that has not begun.
    pub(super) fn new(number: u64, at_least: Version) -> Self {
        Self { number, asked_at: None, not_before: None, at_least, ran_out: 0, untold: 0, settling: None }
    }
}

/// Who waits to read a channel once, and since when.
pub(super) type Reader = (Instant, oneshot::Sender<Result<RowsRead, Refusal>>);

/// A channel with its subscribers.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) spec: ChannelSpec,
    pub(super) number: ChannelNumber,
    /// Known once the channel was live.
    pub(super) form: Option<ChannelForm>,
    /// What the rows were read by. `None`: there are none, or nothing can be said of what changed since.
    pub(super) view: Option<Arc<View>>,
    pub(super) rows: Rows,
    pub(super) phase: Phase,
    pub(super) subscribers: HashSet<SessionId>,
    pub(super) readers: Vec<Reader>,
    pub(super) opened: Instant,
    /// Where the rows came from that it opened with.
    pub(super) served: Served,
    /// Since when nobody is subscribed.
    pub(super) idle_since: Option<Instant>,
    /// The version and moment of the last checkpoint written.
    pub(super) checkpoint: Option<(Version, Instant)>,
    snapshot: Option<(Version, Arc<Pages>)>,
    /// Differences asked for by several clients, as of one version.
    differences: HashMap<(Version, Version, bool), Option<Arc<Pages>>>,
    differences_at: Version,
}

impl Channel {
    pub(super) fn new(spec: ChannelSpec, number: ChannelNumber, flight: Flight, now: Instant) -> Self {
        Self {
            spec,
            number,
            form: None,
            view: None,
            rows: Rows::default(),
            phase: Phase::Opening(flight),
            subscribers: HashSet::new(),
            readers: Vec::new(),
            opened: now,
            served: Served::Memory,
            idle_since: Some(now),
            checkpoint: None,
            snapshot: None,
            differences: HashMap::new(),
            differences_at: Version(0),
        }
    }

    pub(super) fn feed(&self) -> &FeedKey {
        &self.spec.feed
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.phase, Phase::Live { .. })
    }

    pub(super) fn flight(&mut self) -> Option<&mut Flight> {
        match &mut self.phase {
            Phase::Opening(flight) | Phase::Resync { flight, .. } => Some(flight),
            Phase::Live { refill } => refill.as_mut(),
        }
    }

    pub(super) fn has_flight(&self) -> bool {
        !matches!(self.phase, Phase::Live { refill: None })
    }

    /// Whether rows are in the air for it: steps have to be kept until they land.
    pub(super) fn awaits_rows(&self) -> bool {
        match &self.phase {
            Phase::Opening(flight) | Phase::Resync { flight, .. } | Phase::Live { refill: Some(flight) } => {
                flight.asked_at.is_some() && flight.settling.is_none()
            }
            Phase::Live { refill: None } => false,
        }
    }

    /// The rows of the settled flight become the channel's, at `version`. True: the channel's form is another now, so
    /// subscribers have to be told it and get a snapshot.
    pub(super) fn land(&mut self, version: Version) -> bool {
        let frozen_at = match &self.phase {
            Phase::Resync { frozen_at, .. } => Some(*frozen_at),
            _ => None,
        };
        let Some(settling) = self.flight().and_then(|flight| flight.settling.take()) else { return false };
        self.phase = Phase::Live { refill: None };
        self.snapshot = None;
        self.differences.clear();
        let view = settling.view;
        // Also where columns of the feed changed that are none of the channel's.
        let same_form =
            self.form.is_some() && self.view.as_ref().is_some_and(|ours| ours.schema_id() == view.schema_id());
        match frozen_at {
            Some(frozen_at) if same_form => {
                self.rows.replace(frozen_at, version, settling.rows, &view);
            }
            _ => {
                self.rows = settling.rows;
                self.form = Some(ChannelForm {
                    number: self.number,
                    tag: self.spec.tag(view.schema()),
                    order: self.spec.order(view.schema()),
                    schema: view.schema().clone(),
                });
            }
        }
        self.view = Some(view);
        !same_form
    }

    /// Spare rows that have reached the version of a live channel. False: they are not of the rows that it shows.
    pub(super) fn land_refill(&mut self) -> bool {
        let Some(settling) = self.flight().and_then(|flight| flight.settling.take()) else { return true };
        self.phase = Phase::Live { refill: None };
        self.rows.refill(settling.rows)
    }

    /// The snapshot of a live channel: its version, and pages that all who join share while nothing changes. The version
    /// may be one at which the rows were the same, but lies never below `known`, which the client has been told.
    pub(super) fn snapshot(&mut self, form: &ChannelForm, version: Version, known: Version) -> (Version, Arc<Pages>) {
        if let Some((at, pages)) = &self.snapshot
            && *at >= self.rows.changed().max(known)
        {
            return (*at, pages.clone());
        }
        let rows = self.rows.iter().map(|(key, held)| (key.clone(), held.row.clone())).collect();
        let heading = Heading::Snapshot { version };
        let pages = Arc::new(Pages::new(self.number, form.schema.clone(), heading, rows, Vec::new()));
        self.snapshot = Some((version, pages.clone()));
        (version, pages)
    }

    /// What a live channel's client misses that has everything up to `since`; inside, `None` if that is nothing, outside,
    /// if it cannot be known. `prev`: a version that the client was told, at most `since`.
    pub(super) fn difference(
        &mut self,
        form: &ChannelForm,
        since: Version,
        prev: Version,
        cut: &Cut,
        names_epoch: bool,
    ) -> Option<Option<Arc<Pages>>> {
        if self.differences_at != cut.version {
            self.differences.clear();
            self.differences_at = cut.version;
        }
        if let Some(known) = self.differences.get(&(since, prev, names_epoch)) {
            return Some(known.clone());
        }
        let difference = self.rows.changes_since(since)?;
        let pages = (!difference.rows.is_empty() || !difference.gone.is_empty()).then(|| {
            let heading = Heading::Delta { prev, cut: cut.clone(), names_epoch };
            Arc::new(Pages::new(self.number, form.schema.clone(), heading, difference.rows, difference.gone))
        });
        self.differences.insert((since, prev, names_epoch), pages.clone());
        Some(pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Key, Row};
    use crate::identity::ResolvedPolicy;
    use crate::publication::{Column, Schema};
    use crate::query::Query;
    use crate::version::Epoch;

    fn step(version: u64, snapshot: &str, ids: &[u64]) -> FeedStep {
        let state = |&id: &u64| State {
            key: Key::new(format!("[{id}]")),
            row: Some(Arc::new(Row::parse(&format!("[{id},{version}]")).expect("a row"))),
        };
        let change = match ids {
            [] => Change::Nothing,
            ids => {
                let states = ids.iter().map(state).collect();
                Change::States { schema_id: view().feed_schema_id().clone(), states, seen: Seen::default() }
            }
        };
        let cut = Cut {
            epoch: Epoch::new("e"),
            version: Version(version),
            snapshot: snapshot.parse().expect("a snapshot"),
            as_of: 0,
        };
        FeedStep { cut, base: Version(version - 1), change }
    }

    fn view() -> View {
        let schema = Schema { columns: ["id", "n"].map(|name| Column::new(name, "int8")).into(), key: vec![0] };
        let feed = FeedKey { name: "a".into(), generation: 1 };
        let spec = ChannelSpec { feed, policy: ResolvedPolicy::Public, query: Query::default() };
        View::new(&spec, &Arc::new(schema)).expect("a view")
    }

    fn settling(place: Place) -> Settling {
        Settling { rows: Rows::at(Version(0), []), place, view: Arc::new(view()), lock: None }
    }

    #[test]
    fn rows_between_two_cuts_become_the_version_that_sees_them() {
        let mut rows = settling(Place::Sees("20:20:".parse().expect("a snapshot")));
        rows.step(&step(42, "15:15:", &[1])).expect("steps");
        assert!(rows.rows.is_empty(), "the query saw it");
        rows.step(&step(43, "25:25:", &[2])).expect("steps");
        assert!(rows.is_at(Version(43)));
        assert_eq!(rows.rows.floor(), Version(43));
        rows.step(&step(44, "26:26:", &[3])).expect("steps");
        assert!(rows.is_at(Version(44)));
        assert_eq!(rows.rows.len(), 2);
    }

    #[test]
    fn rows_of_a_checkpoint_ahead_wait_for_the_node() {
        let mut rows = settling(Place::At(Version(43)));
        rows.step(&step(42, "15:15:", &[1])).expect("steps");
        assert!(rows.is_at(Version(43)) && rows.rows.is_empty());
        rows.step(&step(45, "25:25:", &[2])).expect("steps");
        assert!(rows.is_at(Version(45)));
    }

    #[test]
    fn a_marker_that_the_rows_do_not_contain_sends_them_back() {
        let marker =
            |version, snapshot| FeedStep { change: Change::Marker("ddl".into()), ..step(version, snapshot, &[]) };
        let mut rows = settling(Place::Sees("20:20:".parse().expect("a snapshot")));
        rows.step(&marker(42, "15:15:")).expect("the query saw it");
        assert_eq!(rows.step(&marker(43, "25:25:")), Err(Overtaken::Resync("ddl".to_owned())));
        let mut rows = settling(Place::At(Version(50)));
        rows.step(&marker(50, "25:25:")).expect("contained");
        assert_eq!(rows.step(&marker(51, "26:26:")), Err(Overtaken::Resync("ddl".to_owned())));
    }
}
