//! A channel's rows as the store keeps them: a cached snapshot that can be rolled forward and resumed from.
//!
//! The text form, JSON so that outside tools can read it:
//!
//! ```json
//! {"epoch":"k3f9","version":41,"cut":"10:12:","as_of":1790000000123,"floor":12,"changed":40,"holes":[[14,19]],
//!  "schema":{"columns":[{"name":"id","type":"int4"}],"key":[0]},
//!  "rows":[[40,[1],[1,"paid"]]],"gone":[[33,[9],"deleted"]]}
//! ```
//!
//! It holds no permission of its own: the key it is stored under does.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::entry::seen::Sight;
use crate::entry::{Key, Row, States};
use crate::protocol::Why;
use crate::publication::Schema;
use crate::query::{Predicate, Query};
use crate::rows::{Held, Rows, Tombstone};
use crate::store::Entry;
use crate::version::{Cut, Version};

/// A channel at a cut.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub cut: Cut,
    pub schema: Arc<Schema>,
    pub rows: Rows,
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
}

#[derive(Serialize)]
struct Writing<'a> {
    #[serde(flatten)]
    cut: &'a Cut,
    floor: Version,
    changed: Version,
    holes: &'a [(Version, Version)],
    schema: &'a Schema,
    rows: Vec<(Version, &'a RawValue, &'a RawValue)>,
    gone: Vec<(Version, &'a RawValue, Why)>,
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
    #[serde(borrow)]
    rows: Vec<(Version, &'a RawValue, &'a RawValue)>,
    #[serde(borrow)]
    gone: Vec<(Version, &'a RawValue, Why)>,
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
        serde_json::to_vec(&Writing {
            cut: &self.cut,
            floor: self.rows.floor(),
            changed: self.rows.changed(),
            holes: self.rows.holes(),
            schema: &self.schema,
            rows,
            gone,
        })
        .map(Bytes::from)
    }

    /// Reads the text form.
    ///
    /// # Errors
    /// Anything that [`Self::encode`] does not write.
    pub fn decode(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let reading: Reading<'_> = serde_json::from_slice(bytes)?;
        let mut held = Vec::with_capacity(reading.rows.len());
        for (version, key, row) in reading.rows {
            held.push((Key::new(key.get()), Held { row: Arc::new(Row::parse(row.get())?), version }));
        }
        let gone =
            reading.gone.into_iter().map(|(version, key, why)| (Key::new(key.get()), Tombstone { version, why }));
        Ok(Self {
            cut: Cut { epoch: reading.epoch, version: reading.version, snapshot: reading.cut, as_of: reading.as_of },
            schema: Arc::new(reading.schema),
            rows: Rows::restore(reading.floor, reading.changed, reading.holes, held, gone),
        })
    }

    /// Applies the log's entries above the checkpoint, and stands at `head` then. `query` and `sight`: the channel's own.
    ///
    /// # Errors
    /// See [`CannotRoll`]: nothing is rolled forward across a resync, an epoch or a change of columns.
    pub fn roll_forward(
        mut self,
        entries: &[Arc<Entry>],
        head: &Cut,
        query: &Query,
        sight: &Sight,
    ) -> Result<Self, CannotRoll> {
        if head.epoch != self.cut.epoch {
            return Err(CannotRoll::Epoch);
        }
        let schema_id = self.schema.id();
        let membership = Predicate::new(&query.filter, &self.schema).ok_or(CannotRoll::Schema)?;
        let mut at = self.cut.version;
        for entry in entries.iter().filter(|entry| entry.version > self.cut.version) {
            if entry.epoch != self.cut.epoch {
                return Err(CannotRoll::Epoch);
            }
            match States::parse(&entry.states) {
                Ok(States::Rows { schema, states, seen }) if *schema == *schema_id => {
                    let visible = sight.of(&seen).ok_or(CannotRoll::Sight)?;
                    self.rows.apply_visible(entry.base.max(at), entry.version, &states, visible, &membership);
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

/// Text that is known to be JSON, unparsed.
fn raw(text: &str) -> Result<&RawValue, serde_json::Error> {
    serde_json::from_str(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::seen::Seen;
    use crate::entry::{PartsWriter, State};
    use crate::publication::Column;
    use crate::version::Epoch;

    fn cut(version: u64) -> Cut {
        Cut {
            epoch: Epoch::new("k3f9"),
            version: Version(version),
            snapshot: "1:1:".parse().expect("a snapshot"),
            as_of: 7,
        }
    }

    fn checkpoint() -> Checkpoint {
        let schema = Schema { columns: vec![Column::new("id", "int4")], key: vec![0] };
        let row = |id: u32| (Key::new(format!("[{id}]")), Arc::new(Row::parse(&format!("[{id}]")).expect("a row")));
        let mut rows = Rows::at(Version(40), [row(1), row(2)]);
        rows.apply(Version(40), Version(43), &[State { key: Key::new("[2]"), row: None }], &Predicate::default());
        Checkpoint { cut: cut(43), schema: Arc::new(schema), rows }
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
        let read = Checkpoint::decode(&written.encode().expect("JSON")).expect("a checkpoint");
        assert_eq!((read.cut, read.schema), (written.cut, written.schema));
        assert_eq!(read.rows.holes(), [(Version(40), Version(43))]);
        assert_eq!(read.rows.changes_since(Version(40)), written.rows.changes_since(Version(40)));
        assert_eq!((read.rows.floor(), read.rows.changed()), (Version(40), Version(43)));
        read.rows.check_invariants();
    }

    #[test]
    fn a_replay_from_below_it_leaves_its_own_version_known() {
        let start = checkpoint();
        let mut writer = PartsWriter::new(&start.schema.id());
        writer.push("[5]", Some("[5]"));
        let states = Arc::new(Entry { base: Version(41), ..(*entry(47, writer.finish())).clone() });
        let rolled = start.roll_forward(&[states], &cut(47), &Query::default(), &Sight::All).expect("rolls");
        assert!(rolled.rows.reaches(Version(43)), "where it stood");
        assert!(!rolled.rows.reaches(Version(44)), "a version that was lost");
    }

    #[test]
    fn it_rolls_forward_but_not_across_a_marker_an_epoch_or_other_columns() {
        let start = checkpoint();
        let mut writer = PartsWriter::new(&start.schema.id());
        writer.push("[5]", Some("[5]"));
        let states = entry(45, writer.finish());
        let rolled = start
            .clone()
            .roll_forward(std::slice::from_ref(&states), &cut(46), &Query::default(), &Sight::All)
            .expect("rolls");
        assert_eq!((rolled.cut.version, rolled.rows.len()), (Version(46), 2));

        let marker = entry(46, vec![States::marker_part("truncate")]);
        assert_eq!(
            start
                .clone()
                .roll_forward(&[states, marker], &cut(46), &Query::default(), &Sight::All)
                .expect_err("a marker"),
            CannotRoll::Marker("truncate".into())
        );
        let other = entry(45, PartsWriter::new("other").finish());
        assert_eq!(
            start.clone().roll_forward(&[other], &cut(46), &Query::default(), &Sight::All).expect_err("columns"),
            CannotRoll::Schema
        );
        let mut seen = Seen::default();
        seen.note("i".into(), vec![], 1);
        let mut writer = PartsWriter::new(&start.schema.id());
        writer.push("[5]", Some("[5]"));
        let listed = entry(45, writer.finish_seen(&seen));
        let roll = |of: &str| {
            let sight = Sight::Of(of.into());
            start.clone().roll_forward(std::slice::from_ref(&listed), &cut(46), &Query::default(), &sight)
        };
        assert_eq!(roll("i").expect("it is told of").rows.len(), 1);
        assert_eq!(roll("another").expect_err("it is not"), CannotRoll::Sight);
        let epoch = Cut { epoch: Epoch::new("other"), ..cut(46) };
        assert_eq!(
            start.roll_forward(&[], &epoch, &Query::default(), &Sight::All).expect_err("an epoch"),
            CannotRoll::Epoch
        );
    }
}
