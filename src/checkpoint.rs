//! A channel's rows as the store keeps them: a cached snapshot that can be rolled forward and resumed from.
//!
//! The text form, JSON so that outside tools can read it:
//!
//! ```json
//! {"epoch":"k3f9","version":41,"cut":"10:12:","as_of":1790000000123,"floor":12,"changed":40,"holes":[[14,19]],
//!  "schema":{"columns":[{"name":"id","type":"int4"}],"key":[0]},
//!  "rows":[[40,[1],[1,"paid"]]],"gone":[[33,[9],"deleted"]],
//!  "feed_schema":{…},"spare":[[[2],[2,"open"]]],"horizon":[[2],[2,"open"]]}
//! ```
//!
//! `schema` is that of the rows; `feed_schema` that of the entries which roll them forward, where it is another. `spare`
//! and `horizon` are those of a window. It holds no permission of its own: the key it is stored under does.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::channel::ChannelSpec;
use crate::entry::{Key, Row, States};
use crate::protocol::Why;
use crate::publication::Schema;
use crate::rows::{Held, Kept, RanOut, Rows, Tombstone};
use crate::store::Entry;
use crate::version::{Cut, Version};
use crate::view::View;

/// A channel at a cut.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub cut: Cut,
    pub view: Arc<View>,
    pub rows: Rows,
}

/// Why a checkpoint could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BadCheckpoint {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("its columns are not those of the channel")]
    Schema,
    #[error("its rows are not those of the channel's window")]
    Window,
}

/// Why a checkpoint could not be brought up to date; the remedy is a snapshot query for all of them.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CannotRoll {
    #[error("of another epoch")]
    Epoch,
    #[error("a resync lies between: {0}")]
    Marker(String),
    #[error("of other columns")]
    Schema,
    #[error("an entry does not tell what the identity sees")]
    Sight,
    #[error("an entry could not be read")]
    Corrupt,
    #[error(transparent)]
    RanOut(#[from] RanOut),
}

#[derive(Serialize)]
struct Writing<'a> {
    #[serde(flatten)]
    cut: &'a Cut,
    floor: Version,
    changed: Version,
    holes: &'a [(Version, Version)],
    schema: &'a Schema,
    #[serde(skip_serializing_if = "Option::is_none")]
    feed_schema: Option<&'a Schema>,
    rows: Vec<(Version, &'a RawValue, &'a RawValue)>,
    gone: Vec<(Version, &'a RawValue, Option<Why>)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    spare: Vec<(&'a RawValue, &'a RawValue)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    horizon: Option<(&'a RawValue, &'a RawValue)>,
}

#[derive(Deserialize)]
struct Reading<'a> {
    epoch: crate::version::Epoch,
    version: Version,
    cut: crate::version::PgSnapshot,
    as_of: i64,
    floor: Version,
    changed: Version,
    holes: Vec<(Version, Version)>,
    schema: Schema,
    feed_schema: Option<Schema>,
    #[serde(borrow)]
    rows: Vec<(Version, &'a RawValue, &'a RawValue)>,
    #[serde(borrow)]
    gone: Vec<(Version, &'a RawValue, Option<Why>)>,
    #[serde(borrow, default)]
    spare: Vec<(&'a RawValue, &'a RawValue)>,
    #[serde(borrow, default)]
    horizon: Option<(&'a RawValue, &'a RawValue)>,
}

impl Checkpoint {
    /// The text form.
    ///
    /// # Errors
    /// A row or key that is not JSON, which [`Row::parse`] rules out.
    pub fn encode(&self) -> Result<Bytes, serde_json::Error> {
        let mut rows = Vec::with_capacity(self.rows.len());
        for (key, held) in self.rows.iter() {
            rows.push((held.version, raw(key.as_str())?, raw(held.row.text())?));
        }
        let mut gone = Vec::new();
        for (key, tombstone) in self.rows.tombstones() {
            gone.push((tombstone.version, raw(key.as_str())?, tombstone.why));
        }
        let mut spare = Vec::new();
        for (key, row) in self.rows.spare() {
            spare.push((raw(key.as_str())?, raw(row.text())?));
        }
        let horizon = match self.rows.horizon() {
            Some((key, row)) => Some((raw(key.as_str())?, raw(row.text())?)),
            None => None,
        };
        let is_whole = self.view.feed_schema() == self.view.schema();
        serde_json::to_vec(&Writing {
            cut: &self.cut,
            floor: self.rows.floor(),
            changed: self.rows.changed(),
            holes: self.rows.holes(),
            schema: self.view.schema(),
            feed_schema: (!is_whole).then_some(&**self.view.feed_schema()),
            rows,
            gone,
            spare,
            horizon,
        })
        .map(Bytes::from)
    }

    /// Reads the text form of a channel's checkpoint. `known`: the feed's columns as the caller has them, to be shared if
    /// the checkpoint's are the same.
    ///
    /// # Errors
    /// Anything that [`Self::encode`] does not write for this channel.
    pub fn decode(bytes: &[u8], spec: &ChannelSpec, known: &Arc<Schema>) -> Result<Self, BadCheckpoint> {
        Self::decode_by(bytes, Some(known), |feed_schema| View::new(spec, feed_schema))
    }

    /// Reads the text form of rows of which everything is shown.
    ///
    /// # Errors
    /// Anything that [`Self::encode`] does not write for them.
    pub fn decode_whole(bytes: &[u8]) -> Result<Self, BadCheckpoint> {
        Self::decode_by(bytes, None, |feed_schema| Some(View::whole(feed_schema)))
    }

    fn decode_by(
        bytes: &[u8],
        known: Option<&Arc<Schema>>,
        view: impl FnOnce(&Arc<Schema>) -> Option<View>,
    ) -> Result<Self, BadCheckpoint> {
        let reading: Reading<'_> = serde_json::from_slice(bytes)?;
        let feed_schema = reading.feed_schema.as_ref().unwrap_or(&reading.schema);
        let feed_schema = match known.filter(|known| ***known == *feed_schema) {
            Some(same) => same.clone(),
            None => Arc::new(feed_schema.clone()),
        };
        let view = view(&feed_schema).ok_or(BadCheckpoint::Schema)?;
        if **view.schema() != reading.schema {
            return Err(BadCheckpoint::Schema);
        }
        let mut held = Vec::with_capacity(reading.rows.len());
        for (version, key, row) in reading.rows {
            held.push((Key::new(key.get()), Held { row: row_of(row)?, version }));
        }
        let gone =
            reading.gone.into_iter().map(|(version, key, why)| (Key::new(key.get()), Tombstone { version, why }));
        let mut spare = Vec::with_capacity(reading.spare.len());
        for (key, row) in reading.spare {
            spare.push((Key::new(key.get()), row_of(row)?));
        }
        let horizon = match reading.horizon {
            Some((key, row)) => Some((Key::new(key.get()), row_of(row)?)),
            None => None,
        };
        let (floor, changed, holes) = (reading.floor, reading.changed, reading.holes);
        let kept = Kept { floor, changed, holes, held, gone: gone.collect(), spare, horizon };
        Ok(Self {
            cut: Cut { epoch: reading.epoch, version: reading.version, snapshot: reading.cut, as_of: reading.as_of },
            rows: Rows::restore(&view, kept).map_err(|RanOut| BadCheckpoint::Window)?,
            view: Arc::new(view),
        })
    }

    /// Applies the log's entries above the checkpoint, and stands at `head` then.
    ///
    /// # Errors
    /// See [`CannotRoll`]: nothing is rolled forward across a resync, an epoch or a change of columns.
    pub fn roll_forward(mut self, entries: &[Arc<Entry>], head: &Cut) -> Result<Self, CannotRoll> {
        if head.epoch != self.cut.epoch {
            return Err(CannotRoll::Epoch);
        }
        let mut at = self.cut.version;
        for entry in entries.iter().filter(|entry| entry.version > self.cut.version) {
            if entry.epoch != self.cut.epoch {
                return Err(CannotRoll::Epoch);
            }
            match States::parse(&entry.states) {
                Ok(States::Rows { schema, states, seen }) if schema == *self.view.feed_schema_id() => {
                    let visible = self.view.sight().of(&seen).ok_or(CannotRoll::Sight)?;
                    let view = self.view.clone();
                    self.rows.apply(entry.base.max(at), entry.version, visible.mark(&states), &view)?;
                    at = entry.version;
                }
                Ok(States::Rows { .. }) => return Err(CannotRoll::Schema),
                Ok(States::Marker(why)) => return Err(CannotRoll::Marker(why)),
                Err(_) => return Err(CannotRoll::Corrupt),
            }
        }
        if head.version > self.cut.version {
            self.cut = head.clone();
        }
        Ok(self)
    }
}

fn row_of(text: &RawValue) -> Result<Arc<Row>, serde_json::Error> {
    Row::parse(text.get()).map(Arc::new)
}

/// Text that is known to be JSON, unparsed.
fn raw(text: &str) -> Result<&RawValue, serde_json::Error> {
    serde_json::from_str(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::seen::{Seen, Visible};
    use crate::entry::{PartsWriter, State};
    use crate::identity::{ResolvedPolicy, RlsIdentity};
    use crate::publication::{Column, FeedKey};
    use crate::query::Query;
    use crate::version::Epoch;

    fn cut(version: u64) -> Cut {
        Cut {
            epoch: Epoch::new("k3f9"),
            version: Version(version),
            snapshot: "1:1:".parse().expect("a snapshot"),
            as_of: 7,
        }
    }

    fn spec(query: Query) -> ChannelSpec {
        ChannelSpec { feed: FeedKey { name: "a".into(), generation: 1 }, policy: ResolvedPolicy::Public, query }
    }

    fn view(query: Query) -> Arc<View> {
        let schema =
            Arc::new(Schema { columns: ["id", "n"].map(|name| Column::new(name, "int4")).into(), key: vec![0] });
        Arc::new(View::new(&spec(query), &schema).expect("a view"))
    }

    fn ids(select: Option<&str>, limit: Option<u32>) -> Query {
        Query { select: select.map(|name| vec![name.into()]), limit, ..Query::default() }
    }

    fn row(id: u32) -> (Key, Arc<Row>) {
        (Key::new(format!("[{id}]")), Arc::new(Row::parse(&format!("[{id}]")).expect("a row")))
    }

    /// Of the column `id` alone.
    fn checkpoint() -> Checkpoint {
        let view = view(ids(Some("id"), None));
        let mut rows = Rows::at(Version(40), [row(1), row(2)]);
        rows.apply(Version(40), Version(43), Visible::All.mark(&[State { key: Key::new("[2]"), row: None }]), &view)
            .expect("no window");
        Checkpoint { cut: cut(43), view, rows }
    }

    /// What an entry says of these keys.
    fn states(ids: &[u32]) -> Vec<String> {
        let mut writer = PartsWriter::new(view(Query::default()).feed_schema_id());
        for id in ids {
            writer.push(&format!("[{id}]"), Some(&format!("[{id},7]")));
        }
        writer.finish()
    }

    fn entry(version: u64, states: Vec<String>) -> Arc<Entry> {
        Arc::new(Entry {
            epoch: Epoch::new("k3f9"),
            version: Version(version),
            snapshot: "1:1:".parse().expect("a snapshot"),
            as_of: 8,
            base: Version(version - 1),
            prev: Version(43),
            states,
        })
    }

    #[test]
    fn a_checkpoint_comes_back_whole() {
        let written = checkpoint();
        let bytes = written.encode().expect("JSON");
        let read = Checkpoint::decode(
            &bytes,
            &spec(ids(Some("id"), None)),
            &Arc::new(Schema { columns: vec![], key: vec![] }),
        )
        .expect("a checkpoint");
        assert_eq!((&read.cut, read.view.schema()), (&written.cut, written.view.schema()));
        assert_eq!(read.view.feed_schema_id(), written.view.feed_schema_id());
        assert_eq!(read.rows.holes(), [(Version(40), Version(43))]);
        assert_eq!(read.rows.changes_since(Version(40)), written.rows.changes_since(Version(40)));
        assert_eq!((read.rows.floor(), read.rows.changed()), (Version(40), Version(43)));
        read.rows.check_invariants();
        let other = Checkpoint::decode(&bytes, &spec(Query::default()), written.view.feed_schema());
        assert!(matches!(other, Err(BadCheckpoint::Schema)), "rows without `n` are not those of another channel");
    }

    #[test]
    fn a_window_comes_back_with_its_spare_rows_and_rolls_forward_until_they_run_out() {
        let query = ids(Some("id"), Some(2));
        let view = view(query.clone());
        let known = view.feed_schema().clone();
        let rows = Rows::read(&view, Version(40), (1..=4).map(row).collect(), false);
        let bytes = Checkpoint { cut: cut(40), view, rows }.encode().expect("JSON");
        let read = || Checkpoint::decode(&bytes, &spec(query.clone()), &known).expect("a checkpoint");
        assert_eq!((read().rows.len(), read().rows.spare().count()), (2, 2));
        assert_eq!(read().rows.horizon().map(|(key, _)| key.clone()), Some(Key::new("[4]")));
        let gone = |version, ids: &[u32]| {
            let mut writer = PartsWriter::new(read().view.feed_schema_id());
            ids.iter().for_each(|id| writer.push(&format!("[{id}]"), None));
            Arc::new(Entry { base: Version(version - 1), ..(*entry(version, writer.finish())).clone() })
        };
        let rolled = read().roll_forward(&[gone(41, &[1, 3])], &cut(41)).expect("rolls");
        let mut shown: Vec<&Key> = rolled.rows.iter().map(|(key, _)| key).collect();
        shown.sort();
        assert_eq!(shown, [&Key::new("[2]"), &Key::new("[4]")]);
        rolled.rows.check_invariants();
        let ran_out = read().roll_forward(&[gone(41, &[1, 3]), gone(42, &[2])], &cut(42));
        assert_eq!(ran_out.expect_err("too few rows"), CannotRoll::RanOut(RanOut));
    }

    #[test]
    fn a_replay_from_below_it_leaves_its_own_version_known() {
        let states = Arc::new(Entry { base: Version(41), ..(*entry(47, states(&[5]))).clone() });
        let rolled = checkpoint().roll_forward(&[states], &cut(47)).expect("rolls");
        assert!(rolled.rows.reaches(Version(43)), "where it stood");
        assert!(!rolled.rows.reaches(Version(44)), "a version that was lost");
    }

    #[test]
    fn it_rolls_forward_but_not_across_a_marker_an_epoch_or_other_columns() {
        let start = checkpoint();
        let states = entry(45, states(&[5]));
        let rolled = start.clone().roll_forward(std::slice::from_ref(&states), &cut(46)).expect("rolls");
        assert_eq!((rolled.cut.version, rolled.rows.len()), (Version(46), 2));
        assert!(rolled.rows.iter().any(|(_, held)| held.row.text() == "[5]"), "without the column `n`");

        let marker = entry(46, vec![States::marker_part("truncate")]);
        assert_eq!(
            start.clone().roll_forward(&[states, marker], &cut(46)).expect_err("a marker"),
            CannotRoll::Marker("truncate".into())
        );
        let other = entry(45, PartsWriter::new("other").finish());
        assert_eq!(start.clone().roll_forward(&[other], &cut(46)).expect_err("columns"), CannotRoll::Schema);
        let mut seen = Seen::default();
        seen.note("someone else".into(), vec![], 1);
        let identity = RlsIdentity { role: "app".into(), claims: "{}".into() };
        let policy = ResolvedPolicy::Rls(Arc::new(identity.clone()));
        let spec = ChannelSpec { policy, ..spec(Query::default()) };
        let secured =
            Checkpoint { view: Arc::new(View::new(&spec, start.view.feed_schema()).expect("a view")), ..start.clone() };
        let roll = |seen: &Seen| {
            let mut writer = PartsWriter::new(start.view.feed_schema_id());
            writer.push("[5]", Some("[5,5]"));
            secured.clone().roll_forward(&[entry(45, writer.finish_seen(seen))], &cut(46))
        };
        assert_eq!(roll(&seen).expect_err("it is not told of"), CannotRoll::Sight);
        let rows = secured.rows.len();
        seen.note(identity.hash_text(), vec![], 1);
        assert_eq!(roll(&seen).expect("it is told of, and sees nothing").rows.len(), rows);
        let epoch = Cut { epoch: Epoch::new("other"), ..cut(46) };
        assert_eq!(start.roll_forward(&[], &epoch).expect_err("an epoch"), CannotRoll::Epoch);
    }
}
