//! What a cut says of one publication, and a row as it travels: JSON text that is never parsed into trees.
//!
//! The text form of [`States`], one part of a version in the store's log:
//!
//! ```json
//! {"schema":"2xk1","rows":[[[1],[1,"paid","12.50"]],[[9],null]]}
//! {"marker":"truncate"}
//! ```
//!
//! Each item of `rows` is a key and the row's values in the order of the schema's columns, or null where the row is gone.
//! Where row security decides, the last part also says who sees which of the version's rows ([`seen`]).

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use self::seen::Seen;

pub mod seen;

/// A key's values as compact JSON text, `[1]` or `["a","2"]`: equal texts are equal keys, nothing else is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key(Arc<str>);

impl Key {
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// Written out, so that it is visibly the hash of the borrowed form.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A row's values as they came from Postgres: one JSON array, with the place of every value in it.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    text: Box<str>,
    /// Start and end of each value in `text`.
    places: Box<[(u32, u32)]>,
}

impl Row {
    /// Reads a JSON array.
    ///
    /// # Errors
    /// Text that is not a JSON array, or is longer than 4 GiB.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let values: Vec<&RawValue> = serde_json::from_str(text)?;
        if u32::try_from(text.len()).is_err() {
            return Err(serde::de::Error::custom("a row of more than 4 GiB"));
        }
        let start = text.as_ptr() as usize;
        let places = values
            .iter()
            .map(|value| {
                let from = (value.get().as_ptr() as usize - start) as u32;
                (from, from + value.get().len() as u32)
            })
            .collect();
        Ok(Self { text: text.into(), places })
    }

    /// A row of these values, each JSON text.
    pub fn of_values(values: &[&str]) -> Self {
        let mut text = String::with_capacity(values.iter().map(|value| value.len() + 1).sum::<usize>() + 1);
        let mut places = Vec::with_capacity(values.len());
        text.push('[');
        for value in values {
            if !places.is_empty() {
                text.push(',');
            }
            let from = text.len() as u32;
            text.push_str(value);
            places.push((from, text.len() as u32));
        }
        text.push(']');
        Self { text: text.into(), places: places.into() }
    }

    /// The values, the extra object of large columns included if there is one.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The JSON text of a value.
    pub fn value(&self, index: usize) -> &str {
        let (from, to) = self.places[index];
        &self.text[from as usize..to as usize]
    }

    /// The whole array as JSON text.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One key of a publication at a snapshot: its row, or that it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    pub key: Key,
    pub row: Option<Arc<Row>>,
}

/// What one version says of one publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum States {
    /// The keys that changed, each once, as they are at the cut.
    Rows {
        schema: Arc<str>,
        states: Vec<State>,
        /// Who sees which of `states`; empty where that is not for row security to say.
        seen: Seen,
    },
    /// Which keys changed is not known: every channel has to look for itself. The text says why, for logs.
    Marker(String),
}

#[derive(Deserialize)]
struct Wire<'a> {
    #[serde(default)]
    schema: String,
    #[serde(borrow, default)]
    rows: Vec<(&'a RawValue, Option<&'a RawValue>)>,
    #[serde(default)]
    marker: Option<String>,
    #[serde(default)]
    sights: seen::Wire,
}

impl States {
    /// Joins the parts of a version, in order.
    ///
    /// # Errors
    /// Text that is not what [`PartsWriter`] writes.
    pub fn parse(parts: &[String]) -> Result<Self, serde_json::Error> {
        let mut all = Vec::new();
        let mut schema_id = Arc::<str>::from("");
        let mut seen = Seen::default();
        for part in parts {
            let wire: Wire<'_> = serde_json::from_str(part)?;
            if let Some(why) = wire.marker {
                return Ok(Self::Marker(why));
            }
            schema_id = wire.schema.into();
            seen.take(wire.sights);
            all.reserve(wire.rows.len());
            for (key, row) in wire.rows {
                let row = row.map(|row| Row::parse(row.get())).transpose()?.map(Arc::new);
                all.push(State { key: Key::new(key.get()), row });
            }
        }
        Ok(Self::Rows { schema: schema_id, states: all, seen })
    }

    /// The one part of a marker.
    pub fn marker_part(why: &str) -> String {
        serde_json::json!({ "marker": why }).to_string()
    }
}

/// Writes states as parts of about a mebibyte.
pub struct PartsWriter {
    opening: String,
    current: String,
    done: Vec<String>,
}

impl PartsWriter {
    /// About 1 MiB: a part is closed at the first row past it.
    const PART_BYTES: usize = 1 << 20;

    pub fn new(schema_id: &str) -> Self {
        let opening = format!("{{\"schema\":\"{schema_id}\",\"rows\":[");
        Self { current: opening.clone(), opening, done: Vec::new() }
    }

    /// Adds a key and its row, both as JSON text.
    pub fn push(&mut self, key: &str, row: Option<&str>) {
        if self.current.len() > Self::PART_BYTES {
            self.close_part();
        }
        if self.current.len() > self.opening.len() {
            self.current.push(',');
        }
        self.current.push('[');
        self.current.push_str(key);
        self.current.push(',');
        self.current.push_str(row.unwrap_or("null"));
        self.current.push(']');
    }

    /// The parts, at least one, the last of them with who sees which of the rows, counted over all parts.
    pub fn finish_seen(mut self, seen: &Seen) -> Vec<String> {
        self.close_part();
        if let Some(last) = self.done.last_mut().filter(|_| !seen.is_empty()) {
            let sights = serde_json::to_string(&seen.wire()).expect("texts and numbers are always JSON");
            last.truncate(last.len() - 1);
            last.push_str(",\"sights\":");
            last.push_str(&sights);
            last.push('}');
        }
        self.done
    }

    fn close_part(&mut self) {
        let mut part = std::mem::replace(&mut self.current, self.opening.clone());
        part.push_str("]}");
        self.done.push(part);
    }

    /// The parts, at least one.
    pub fn finish(mut self) -> Vec<String> {
        self.close_part();
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_knows_where_its_values_are() {
        let row = Row::parse(r#"[1, "a,]b" ,null,{"x":[1,2]}]"#).expect("a row");
        let values: Vec<&str> = (0..row.len()).map(|index| row.value(index)).collect();
        assert_eq!(values, ["1", r#""a,]b""#, "null", r#"{"x":[1,2]}"#]);
        assert!(Row::parse("{}").is_err());
    }

    #[test]
    fn parts_join_to_what_was_written() {
        let mut writer = PartsWriter::new("s1");
        let long = format!("[\"{}\"]", "x".repeat(400_000));
        for id in 0..8 {
            writer.push(&format!("[{id}]"), (id != 3).then_some(long.as_str()));
        }
        let parts = writer.finish();
        assert!(parts.len() > 1 && parts.iter().all(|part| part.len() < 2 << 20));
        let States::Rows { schema, states, .. } = States::parse(&parts).expect("states") else { panic!("not rows") };
        assert_eq!(&*schema, "s1");
        assert_eq!(states.len(), 8);
        assert!(states.iter().enumerate().all(|(id, state)| state.key.as_str() == format!("[{id}]")));
        assert!(states.iter().enumerate().all(|(id, state)| state.row.is_some() == (id != 3)));
    }

    #[test]
    fn the_last_part_says_who_sees_what() {
        let mut seen = Seen::default();
        seen.note("i".into(), vec![1], 2);
        let long = format!("[\"{}\"]", "x".repeat(2 << 20));
        let mut writer = PartsWriter::new("s1");
        writer.push("[1]", Some(&long));
        writer.push("[2]", Some("[2]"));
        let parts = writer.finish_seen(&seen);
        assert_eq!(parts.len(), 2);
        let States::Rows { seen: read, states, .. } = States::parse(&parts).expect("states") else {
            panic!("not rows")
        };
        assert_eq!((read, states.len()), (seen, 2));
    }

    #[test]
    fn a_marker_says_why() {
        let parts = [States::marker_part("truncate")];
        assert_eq!(States::parse(&parts).expect("a marker"), States::Marker("truncate".into()));
    }
}
