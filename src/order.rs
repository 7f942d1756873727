//! Sorting rows by a channel's order, from the JSON texts of their values.
//!
//! Numbers by value, everything else by the bytes of its text, which for times in the wire's ISO form and for `collate "C"`
//! is Postgres' own order. Snapshots on a websocket are not sorted: the client keeps its rows in order anyway.

use std::cmp::Ordering;

use crate::protocol::{Direction, Nulls, OrderBy};
use crate::publication::Schema;

/// A value as it is compared.
#[derive(Clone, Debug)]
enum Comparable {
    Null,
    Whole(i128),
    /// Digits beyond a double's do not count.
    Number(f64),
    Text(String),
}

/// What a row is sorted by: the values of an order's columns.
#[derive(Clone, Debug)]
pub struct SortKey(Vec<Comparable>);

/// How rows are sorted.
#[derive(Clone, Debug)]
pub struct RowOrder {
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
struct Part {
    column: usize,
    is_number: bool,
    dir: Direction,
    nulls: Nulls,
}

impl RowOrder {
    /// Columns that the schema does not have are left out.
    pub fn new(order: &[OrderBy], schema: &Schema) -> Self {
        let part = |by: &OrderBy| {
            let column = schema.columns.iter().position(|column| column.name == by.column)?;
            let is_number = is_number(&schema.columns[column].type_name);
            Some(Part { column, is_number, dir: by.dir, nulls: by.nulls })
        };
        Self { parts: order.iter().filter_map(part).collect() }
    }

    /// What a row is sorted by; `value` gives the JSON text of a column.
    pub fn key<'a>(&self, value: impl Fn(usize) -> Option<&'a str>) -> SortKey {
        SortKey(self.parts.iter().map(|part| Comparable::read(value(part.column), part.is_number)).collect())
    }

    /// The order of two rows.
    pub fn compare(&self, a: &SortKey, b: &SortKey) -> Ordering {
        let values = self.parts.iter().zip(a.0.iter().zip(&b.0));
        values.map(|(part, (a, b))| part.compare(a, b)).find(|ordering| ordering.is_ne()).unwrap_or(Ordering::Equal)
    }
}

impl Part {
    fn compare(&self, a: &Comparable, b: &Comparable) -> Ordering {
        let null_first = self.nulls == Nulls::First;
        let ordering = match (a, b) {
            (Comparable::Null, Comparable::Null) => return Ordering::Equal,
            (Comparable::Null, _) => return if null_first { Ordering::Less } else { Ordering::Greater },
            (_, Comparable::Null) => return if null_first { Ordering::Greater } else { Ordering::Less },
            (Comparable::Whole(a), Comparable::Whole(b)) => a.cmp(b),
            (Comparable::Text(a), Comparable::Text(b)) => a.cmp(b),
            (a, b) => compare_doubles(a.as_double(), b.as_double()),
        };
        if self.dir == Direction::Desc { ordering.reverse() } else { ordering }
    }
}

impl Comparable {
    fn read(json: Option<&str>, is_number: bool) -> Self {
        let Some(json) = json.filter(|json| *json != "null") else { return Self::Null };
        let text = plain(json);
        if !is_number {
            return Self::Text(text);
        }
        match text.parse() {
            Ok(whole) => Self::Whole(whole),
            Err(_) => Self::Number(text.parse().unwrap_or(f64::NAN)),
        }
    }

    fn as_double(&self) -> f64 {
        match self {
            Self::Whole(whole) => *whole as f64,
            Self::Number(number) => *number,
            Self::Null | Self::Text(_) => f64::NAN,
        }
    }
}

/// As Postgres does: NaN above all others, and equal to itself.
fn compare_doubles(a: f64, b: f64) -> Ordering {
    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

/// Whether values of a type are numbers.
pub fn is_number(type_name: &str) -> bool {
    matches!(type_name, "int2" | "int4" | "int8" | "float4" | "float8" | "numeric" | "oid")
}

/// The text that a JSON value stands for: strings without their quotes, everything else as it is.
pub fn plain(json: &str) -> String {
    serde_json::from_str::<String>(json).unwrap_or_else(|_| json.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publication::Column;

    fn sorted(type_name: &str, dir: Direction, nulls: Nulls, values: &[&'static str]) -> Vec<&'static str> {
        let schema = Schema { columns: vec![Column::new("a", type_name)], key: vec![0] };
        let order = RowOrder::new(&[OrderBy { column: "a".into(), dir, nulls }], &schema);
        let mut rows = values.to_vec();
        rows.sort_by(|a, b| order.compare(&order.key(|_| Some(a)), &order.key(|_| Some(b))));
        rows
    }

    #[test]
    fn numbers_by_value_and_texts_by_bytes() {
        let numbers = [r#""NaN""#, r#""9007199254740993""#, r#""-1.5""#, "null", r#""9007199254740992""#, "7"];
        assert_eq!(
            sorted("numeric", Direction::Asc, Nulls::Last, &numbers),
            [r#""-1.5""#, "7", r#""9007199254740992""#, r#""9007199254740993""#, r#""NaN""#, "null"]
        );
        assert_eq!(
            sorted("numeric", Direction::Desc, Nulls::First, &numbers),
            ["null", r#""NaN""#, r#""9007199254740993""#, r#""9007199254740992""#, "7", r#""-1.5""#]
        );
        assert_eq!(
            sorted("text", Direction::Asc, Nulls::Last, &[r#""b""#, r#""é""#, r#""Z""#, r#""\u0001""#]),
            [r#""\u0001""#, r#""Z""#, r#""b""#, r#""é""#]
        );
    }
}
