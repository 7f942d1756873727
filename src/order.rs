//! Sorting rows by a channel's order, from the JSON texts of their values.
//!
//! As Postgres sorts, with `collate "C"` for texts, for every type that [`ValueType`] orders; a query that sorts by another
//! one is refused when it is resolved. Keys may be of such types all the same (enums): rows are then sorted by text, in one
//! order wherever it is done, if not in Postgres' own.

use std::cmp::Ordering;

use crate::protocol::{Direction, Nulls, OrderBy};
use crate::publication::Schema;
use crate::value::{self, Comparable, ValueType};

/// What a row is sorted by: the values of an order's columns.
#[derive(Clone, Debug)]
pub struct SortKey(Vec<Option<Comparable<'static>>>);

/// How rows are sorted.
#[derive(Clone, Debug, Default)]
pub struct RowOrder {
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
struct Part {
    column: usize,
    /// `None`: by the text on the wire.
    kind: Option<ValueType>,
    dir: Direction,
    nulls: Nulls,
}

impl RowOrder {
    /// Columns that the schema does not have are left out.
    pub fn new(order: &[OrderBy], schema: &Schema) -> Self {
        let part = |by: &OrderBy| {
            let column = schema.columns.iter().position(|column| column.name == by.column)?;
            let kind = ValueType::of(&schema.columns[column]).filter(|kind| kind.is_ordered());
            Some(Part { column, kind, dir: by.dir, nulls: by.nulls })
        };
        Self { parts: order.iter().filter_map(part).collect() }
    }

    /// What a row is sorted by; `value` gives the JSON text of a column.
    pub fn key<'a>(&self, value: impl Fn(usize) -> Option<&'a str>) -> SortKey {
        SortKey(self.parts.iter().map(|part| part.read(value(part.column)).map(Comparable::into_owned)).collect())
    }

    /// The order of two rows.
    pub fn compare(&self, a: &SortKey, b: &SortKey) -> Ordering {
        let values = self.parts.iter().zip(a.0.iter().zip(&b.0));
        values
            .map(|(part, (a, b))| part.compare(a.as_ref(), b.as_ref()))
            .find(|ordering| ordering.is_ne())
            .unwrap_or(Ordering::Equal)
    }
}

impl Part {
    fn read<'a>(&self, json: Option<&'a str>) -> Option<Comparable<'a>> {
        let json = json.filter(|json| *json != "null")?;
        match self.kind {
            Some(kind) if kind.is_large(json) => None,
            Some(kind) => kind.read(json),
            None => Some(Comparable::Text(value::text(json))),
        }
    }

    fn compare(&self, a: Option<&Comparable<'_>>, b: Option<&Comparable<'_>>) -> Ordering {
        let null_first = self.nulls == Nulls::First;
        let ordering = match (a, b) {
            (None, None) => return Ordering::Equal,
            (None, _) => return if null_first { Ordering::Less } else { Ordering::Greater },
            (_, None) => return if null_first { Ordering::Greater } else { Ordering::Less },
            (Some(a), Some(b)) => a.compare(b),
        };
        if self.dir == Direction::Desc { ordering.reverse() } else { ordering }
    }
}

/// Whether values of a type are numbers.
pub fn is_number(type_name: &str) -> bool {
    matches!(type_name, "int2" | "int4" | "int8" | "float4" | "float8" | "numeric" | "oid")
}

/// The text that a JSON value stands for: strings without their quotes, everything else as it is.
pub fn plain(json: &str) -> String {
    value::text(json).into_owned()
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
