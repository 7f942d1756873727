//! Filters in canonical form, and whether they hold for a row.
//!
//! Values in a [`Filter`] are JSON texts as rows have them, cast by Postgres. A [`Predicate`] is a filter made ready for
//! the columns of one schema; it agrees with Postgres (with `collate "C"` for texts) or it is not made at all.

use std::sync::Arc;

use serde::Serialize;

use crate::entry::Row;
use crate::publication::{Kind, Schema};

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Comparison {
    Eq,
    Neq,
    Gt,
    Gte,
    Lt,
    Lte,
}

/// What a value `is`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Is {
    Null,
    True,
    False,
    Unknown,
}

/// A condition on rows, in canonical form: equal filters are written equally. True for every row: `All` of nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// Sorted, each once; not a single one, and none of them is an `All`.
    All(Vec<Filter>),
    /// Sorted, each once; not a single one, and none of them is an `Any`.
    Any(Vec<Filter>),
    Not(Box<Filter>),
    Compare {
        column: Arc<str>,
        op: Comparison,
        /// JSON text as rows have it.
        value: Arc<str>,
    },
    /// Two values at least, sorted, each once.
    In {
        column: Arc<str>,
        values: Vec<Arc<str>>,
    },
    Like {
        column: Arc<str>,
        pattern: Arc<str>,
        ignore_case: bool,
    },
    Is {
        column: Arc<str>,
        is: Is,
    },
}

impl Default for Filter {
    fn default() -> Self {
        Self::All(Vec::new())
    }
}

impl Filter {
    /// All of these, in canonical form.
    pub fn all(filters: impl IntoIterator<Item = Self>) -> Self {
        let mut flat = Vec::new();
        for filter in filters {
            match filter {
                Self::All(inner) => flat.extend(inner),
                other => flat.push(other),
            }
        }
        flat.sort_unstable();
        flat.dedup();
        match flat.len() {
            1 => flat.remove(0),
            _ => Self::All(flat),
        }
    }

    /// Whether it holds for every row.
    pub fn is_everything(&self) -> bool {
        matches!(self, Self::All(all) if all.is_empty())
    }

    /// Columns, by their place, that have one of these values in every row that it holds for. Only of types whose values
    /// are equal exactly if their texts are, so that a row can be looked up by its text.
    pub fn pinned(&self, schema: &Schema) -> Vec<(usize, Vec<Arc<str>>)> {
        let place = |name: &str| {
            let place = schema.columns.iter().position(|column| &*column.name == name)?;
            let column = &schema.columns[place];
            can_equal(&column.type_name, column.kind).then_some(place)
        };
        match self {
            Self::All(all) => all.iter().flat_map(|filter| filter.pinned(schema)).collect(),
            Self::Compare { column, op: Comparison::Eq, value } => {
                place(column).map(|place| (place, vec![value.clone()])).into_iter().collect()
            }
            Self::In { column, values } => place(column).map(|place| (place, values.clone())).into_iter().collect(),
            _ => Vec::new(),
        }
    }

    /// The columns that it names.
    pub fn columns(&self) -> Vec<&Arc<str>> {
        match self {
            Self::All(inner) | Self::Any(inner) => inner.iter().flat_map(Self::columns).collect(),
            Self::Not(inner) => inner.columns(),
            Self::Compare { column, .. }
            | Self::In { column, .. }
            | Self::Like { column, .. }
            | Self::Is { column, .. } => {
                vec![column]
            }
        }
    }
}

/// A filter, ready to be asked about rows of one schema.
#[derive(Clone, Debug, Default)]
pub struct Predicate {
    /// Columns, and what each of them may be.
    any_of: Vec<(usize, Vec<Arc<str>>)>,
}

impl Predicate {
    /// `None`: the schema lacks a column that the filter names, or has it by a type that it cannot compare.
    pub fn new(filter: &Filter, schema: &Schema) -> Option<Self> {
        let place = |name: &str| schema.columns.iter().position(|column| &*column.name == name);
        let one = |filter: &Filter| match filter {
            Filter::Compare { column, op: Comparison::Eq, value } => Some((place(column)?, vec![value.clone()])),
            Filter::In { column, values } => Some((place(column)?, values.clone())),
            _ => None,
        };
        let any_of = match filter {
            Filter::All(all) => all.iter().map(one).collect::<Option<_>>()?,
            filter => vec![one(filter)?],
        };
        Some(Self { any_of })
    }

    /// Whether the filter is true for a row; unknown is not true.
    pub fn holds(&self, row: &Row) -> bool {
        self.any_of.iter().all(|(column, values)| values.iter().any(|value| row.value(*column) == &**value))
    }
}

/// Whether two values of a type are equal in Postgres exactly if their texts on the wire are. Not so for numeric (1.0 and
/// 1.00), floats (0 and -0), padded and case-insensitive texts.
pub fn can_equal(type_name: &str, kind: Kind) -> bool {
    kind == Kind::Builtin
        && matches!(
            type_name,
            "bool" | "int2" | "int4" | "int8" | "text" | "varchar" | "uuid" | "date" | "timestamp" | "timestamptz"
        )
}
