//! Rows as a client keeps them: the JSON text of every value, so that no digit is lost on the way.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use crate::entry::Key;
use crate::order::{RowOrder, SortKey};
use crate::protocol::OrderBy;
use crate::publication::{Column, Schema};

/// A row, by the names of its columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    values: BTreeMap<String, Box<str>>,
    /// Columns that are null because their value is too large, with its size in bytes.
    large: BTreeMap<String, u64>,
}

impl Row {
    /// The JSON text of a value; `None` where the row has no such column.
    pub fn value(&self, column: &str) -> Option<&str> {
        self.values.get(column).map(|text| &**text)
    }

    /// The size in bytes of a value that was too large to send.
    pub fn large(&self, column: &str) -> Option<u64> {
        self.large.get(column).copied()
    }

    /// The columns it has, by name.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// The row as one JSON object, its columns in the given order.
    pub fn to_json(&self, columns: &[Column]) -> String {
        let mut text = String::from("{");
        for (index, column) in columns.iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            text.push_str(&json_text(&column.name));
            text.push(':');
            text.push_str(self.value(&column.name).unwrap_or("null"));
        }
        text.push('}');
        text
    }

    /// The row as a tree, for comparing with what somebody else says of it.
    pub fn to_value(&self) -> serde_json::Value {
        let members = self.values.iter().map(|(name, text)| {
            let value = serde_json::from_str(text).expect("a value came out of a JSON text");
            (name.clone(), value)
        });
        serde_json::Value::Object(members.collect())
    }

    /// A row as a frame has it, perhaps in part.
    pub(super) fn of_frame(values: BTreeMap<String, Box<RawValue>>) -> Self {
        let values = values.into_iter().map(|(name, value)| (name, Box::<str>::from(value.get()))).collect();
        Self { values, large: BTreeMap::new() }
    }

    pub(super) fn set_large(&mut self, large: BTreeMap<String, u64>) {
        self.large = large;
    }

    /// Takes over what `newer` has, and returns the names of the columns that are different now.
    pub(super) fn merge(&mut self, newer: Row) -> Vec<String> {
        let mut changed = Vec::new();
        for (name, value) in newer.values {
            let large = newer.large.get(&name).copied();
            if self.large(&name) != large || self.value(&name) != Some(&*value) {
                changed.push(name.clone());
            }
            match large {
                Some(size) => drop(self.large.insert(name.clone(), size)),
                None => drop(self.large.remove(&name)),
            }
            self.values.insert(name, value);
        }
        changed
    }

    /// The key that the row's values make; `None` where a key column is missing.
    pub(super) fn key(&self, columns: &[String]) -> Option<Key> {
        let values: Option<Vec<&str>> = columns.iter().map(|column| self.value(column)).collect();
        values.map(|values| key_of(&values))
    }
}

/// A key in its one text form.
pub(super) fn key_of<T: AsRef<str>>(values: &[T]) -> Key {
    let values: Vec<&str> = values.iter().map(AsRef::as_ref).collect();
    Key::new(format!("[{}]", values.join(",")))
}

/// Sorts rows by a channel's order. The key is the order's last part, so no two rows are equal under it.
pub(super) fn sort(rows: &mut [(&Key, &Row)], order: &[OrderBy], columns: &[Column]) {
    let schema = Schema { columns: columns.to_vec(), key: Vec::new() };
    let order = RowOrder::new(order, &schema);
    let mut keyed: Vec<(SortKey, (&Key, &Row))> = rows
        .iter()
        .map(|&(key, row)| (order.key(|column| row.values.get(&*columns[column].name).map(|text| &**text)), (key, row)))
        .collect();
    keyed.sort_by(|(a, _), (b, _)| order.compare(a, b));
    for (place, (_, row)) in rows.iter_mut().zip(keyed) {
        *place = row;
    }
}

fn json_text(text: &str) -> String {
    serde_json::to_string(text).expect("a text is always JSON")
}
