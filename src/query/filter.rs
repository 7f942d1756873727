//! Filters in canonical form.
//!
//! Values in a [`Filter`] are JSON texts as rows have them, cast by Postgres. A negation stands only where no comparison
//! says the same: `not (a or b)` is `not a and not b`, also when some of it is unknown. So nothing ever negates what is
//! unknown, and for a row unknown and false are the same everywhere: not true.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::publication::Schema;
use crate::value::ValueType;

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

impl Comparison {
    /// What holds exactly where this one does not, null aside: values have one order, NaN included.
    pub fn negated(self) -> Self {
        match self {
            Self::Eq => Self::Neq,
            Self::Neq => Self::Eq,
            Self::Gt => Self::Lte,
            Self::Gte => Self::Lt,
            Self::Lt => Self::Gte,
            Self::Lte => Self::Gt,
        }
    }
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
    /// Of an `In`, a `Like` or an `Is`.
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
        /// In Postgres' syntax: `%`, `_`, and `\\` before a character that stands for itself.
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
        let excluded = |filter: &Self| match filter {
            Self::Compare { column, op: Comparison::Neq, value } => Some((column.clone(), vec![value.clone()])),
            Self::Not(inner) => match &**inner {
                Self::In { column, values } => Some((column.clone(), values.clone())),
                _ => None,
            },
            _ => None,
        };
        let (excluded, mut flat) = merged(flat, excluded);
        flat.extend(excluded.into_iter().map(|(column, values)| Self::one_of(column, values).negated()));
        flat.sort_unstable();
        flat.dedup();
        match flat.len() {
            1 => flat.remove(0),
            _ => Self::All(flat),
        }
    }

    /// One of these at least, in canonical form.
    pub fn any(filters: impl IntoIterator<Item = Self>) -> Self {
        let mut flat = Vec::new();
        for filter in filters {
            match filter {
                Self::Any(inner) => flat.extend(inner),
                other => flat.push(other),
            }
        }
        let named = |filter: &Self| match filter {
            Self::Compare { column, op: Comparison::Eq, value } => Some((column.clone(), vec![value.clone()])),
            Self::In { column, values } => Some((column.clone(), values.clone())),
            _ => None,
        };
        let (named, mut flat) = merged(flat, named);
        flat.extend(named.into_iter().map(|(column, values)| Self::one_of(column, values)));
        flat.sort_unstable();
        flat.dedup();
        match flat.len() {
            1 => flat.remove(0),
            _ => Self::Any(flat),
        }
    }

    /// A column equals one of these values, of which there is one at least.
    pub fn one_of(column: Arc<str>, mut values: Vec<Arc<str>>) -> Self {
        values.sort_unstable();
        values.dedup();
        match values.len() {
            1 => Self::Compare { column, op: Comparison::Eq, value: values.remove(0) },
            _ => Self::In { column, values },
        }
    }

    /// True where this one is false; unknown where it is unknown.
    #[must_use]
    pub fn negated(self) -> Self {
        match self {
            Self::All(inner) => Self::any(inner.into_iter().map(Self::negated)),
            Self::Any(inner) => Self::all(inner.into_iter().map(Self::negated)),
            Self::Not(inner) => *inner,
            Self::Compare { column, op, value } => Self::Compare { column, op: op.negated(), value },
            leaf => Self::Not(Box::new(leaf)),
        }
    }

    /// Whether it holds for every row.
    pub fn is_everything(&self) -> bool {
        matches!(self, Self::All(all) if all.is_empty())
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

    /// Columns that have to equal one of some values, so that an index of channels can look a row up: the column's place in
    /// the schema, and the JSON texts of the values, sorted. A row for which the filter holds has one of these very texts
    /// there. Only columns whose values are equal exactly if their texts are.
    pub fn pinned(&self, schema: &Schema) -> Vec<(usize, Vec<Arc<str>>)> {
        let conjuncts = match self {
            Self::All(all) => all.as_slice(),
            one => std::slice::from_ref(one),
        };
        let pinned = conjuncts.iter().filter_map(|filter| {
            let (column, values) = match filter {
                Self::Compare { column, op: Comparison::Eq, value } => (column, std::slice::from_ref(value)),
                Self::In { column, values } => (column, values.as_slice()),
                _ => return None,
            };
            let place = schema.columns.iter().position(|other| other.name == *column)?;
            let is_exact = ValueType::of(&schema.columns[place]).is_some_and(ValueType::is_equal_as_text);
            is_exact.then(|| (place, values.to_vec()))
        });
        pinned.collect()
    }
}

/// By column, the values of those filters that `values` reads, and the other filters.
#[expect(clippy::type_complexity, reason = "two halves, taken apart at once")]
fn merged(
    filters: Vec<Filter>,
    values: impl Fn(&Filter) -> Option<(Arc<str>, Vec<Arc<str>>)>,
) -> (BTreeMap<Arc<str>, Vec<Arc<str>>>, Vec<Filter>) {
    let mut merged: BTreeMap<Arc<str>, Vec<Arc<str>>> = BTreeMap::new();
    let mut others = Vec::new();
    for filter in filters {
        match values(&filter) {
            Some((column, values)) => merged.entry(column).or_default().extend(values),
            None => others.push(filter),
        }
    }
    (merged, others)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publication::Column;

    fn compare(column: &str, op: Comparison, value: &str) -> Filter {
        Filter::Compare { column: column.into(), op, value: value.into() }
    }

    fn eq(column: &str, value: &str) -> Filter {
        compare(column, Comparison::Eq, value)
    }

    #[test]
    fn equal_filters_are_equal_values() {
        let (a, b, c) = (eq("a", "1"), eq("b", "2"), compare("c", Comparison::Gt, "3"));
        let all = |filters: &[&Filter]| Filter::all(filters.iter().copied().cloned());
        let any = |filters: &[&Filter]| Filter::any(filters.iter().copied().cloned());
        assert_eq!(all(&[&a, &b, &c]), all(&[&all(&[&c]), &all(&[&b, &a, &b])]));
        assert_eq!(any(&[&a, &any(&[&c, &b])]), any(&[&b, &a, &c, &c]));
        assert_eq!(any(&[&a]), all(&[&any(&[&all(&[&a])])]));
        let listed = Filter::one_of("a".into(), vec!["2".into(), "1".into(), "2".into()]);
        assert_eq!(any(&[&eq("a", "2"), &a]), listed);
        assert_eq!(any(&[&listed, &b, &eq("a", "2")]), any(&[&b, &listed]));
        let neither = all(&[&compare("a", Comparison::Neq, "1"), &compare("a", Comparison::Neq, "2")]);
        assert_eq!(neither, listed.clone().negated());
        assert_eq!(any(&[&listed, &c]).negated(), all(&[&neither, &compare("c", Comparison::Lte, "3")]));
        assert_eq!(listed.clone().negated().negated(), listed);
        assert!(all(&[]).is_everything() && !any(&[]).is_everything());
    }

    #[test]
    fn what_is_pinned_is_what_a_look_up_may_rely_on() {
        let schema = Schema {
            columns: ["id", "region", "price", "note"]
                .map(|name| {
                    Column::new(
                        name,
                        match name {
                            "id" => "int8",
                            "price" => "numeric",
                            _ => "text",
                        },
                    )
                })
                .to_vec(),
            key: vec![0],
        };
        let region = Filter::one_of("region".into(), vec!["\"eu\"".into(), "\"us\"".into()]);
        let either = Filter::any([eq("id", "\"1\""), eq("note", "\"x\"")]);
        let filter = Filter::all([
            eq("id", "\"7\""),
            region.clone(),
            eq("price", "\"1\""),
            compare("note", Comparison::Gt, "\"a\""),
            either.clone(),
        ]);
        assert_eq!(filter.pinned(&schema), [(0, vec!["\"7\"".into()]), (1, vec!["\"eu\"".into(), "\"us\"".into()])]);
        assert_eq!(region.pinned(&schema).len(), 1);
        assert_eq!(either.pinned(&schema), []);
        assert_eq!(region.negated().pinned(&schema), []);
    }
}
