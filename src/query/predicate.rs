//! Whether a filter holds for a row.
//!
//! A [`Predicate`] is a filter made ready for the columns of one schema: literals are read once, and a row's values are
//! compared where they stand in its text. It agrees with Postgres (with `collate "C"` for texts), or it is not made at all.
//! Filters have no negation above a comparison (see `filter.rs`), so that unknown is false here.

use std::collections::HashMap;
use std::sync::Arc;

use super::like::Pattern;
use super::{Comparison, Filter, Is};
use crate::entry::Row;
use crate::publication::Schema;
use crate::value::{Comparable, ValueType};

/// A filter, ready to be asked about rows of one schema. The default holds for every row.
#[derive(Clone, Debug, Default)]
pub struct Predicate {
    root: Option<Node>,
}

#[derive(Clone, Debug)]
enum Node {
    All(Vec<Node>),
    Any(Vec<Node>),
    Test(Test),
}

/// A question about one column.
#[derive(Clone, Debug)]
struct Test {
    column: usize,
    name: Arc<str>,
    /// Columns of the schema: a row with one value more names there what was too large to be sent.
    width: usize,
    kind: Option<ValueType>,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    /// The text on the wire is, or is not, one of these, which are sorted.
    Same {
        texts: Vec<Arc<str>>,
        is_negated: bool,
    },
    /// The value is, or is not, equal to one of these. Sorted, except for jsonb.
    Equal {
        values: Vec<Comparable<'static>>,
        is_negated: bool,
    },
    Compare {
        op: Comparison,
        value: Comparable<'static>,
    },
    Like {
        pattern: Pattern,
        is_negated: bool,
    },
    Is {
        is: Is,
        is_negated: bool,
    },
}

impl Predicate {
    /// `None`: the schema lacks a column that the filter names, or has it by a type that cannot be asked this.
    pub fn new(filter: &Filter, schema: &Schema) -> Option<Self> {
        if filter.is_everything() {
            return Some(Self::default());
        }
        Node::new(filter, schema).map(|root| Self { root: Some(root) })
    }

    /// Whether the filter is true for a row; unknown is not true.
    pub fn holds(&self, row: &Row) -> bool {
        self.root.as_ref().is_none_or(|root| root.holds(row))
    }
}

impl Node {
    fn new(filter: &Filter, schema: &Schema) -> Option<Self> {
        let each = |filters: &[Filter]| filters.iter().map(|filter| Self::new(filter, schema)).collect::<Option<_>>();
        Some(match filter {
            Filter::All(all) => Self::All(each(all)?),
            Filter::Any(any) => Self::Any(each(any)?),
            Filter::Not(inner) => Self::Test(Test::new(inner, true, schema)?),
            leaf => Self::Test(Test::new(leaf, false, schema)?),
        })
    }

    fn holds(&self, row: &Row) -> bool {
        match self {
            Self::All(all) => all.iter().all(|node| node.holds(row)),
            Self::Any(any) => any.iter().any(|node| node.holds(row)),
            Self::Test(test) => test.holds(row),
        }
    }
}

impl Test {
    fn new(leaf: &Filter, is_negated: bool, schema: &Schema) -> Option<Self> {
        let name = leaf.columns().first().copied()?.clone();
        let column = schema.columns.iter().position(|column| column.name == name)?;
        let kind = ValueType::of(&schema.columns[column]);
        let what = match leaf {
            Filter::Compare { op: op @ (Comparison::Eq | Comparison::Neq), value, .. } => {
                let is_negated = is_negated != (*op == Comparison::Neq);
                What::equal(kind?, std::slice::from_ref(value), is_negated)?
            }
            Filter::Compare { op, value, .. } => {
                let kind = kind.filter(|kind| kind.is_ordered() && !is_negated)?;
                What::Compare { op: *op, value: kind.read(value)?.into_owned() }
            }
            Filter::In { values, .. } => What::equal(kind?, values, is_negated)?,
            Filter::Like { pattern, ignore_case, .. } => {
                kind.filter(|kind| kind.is_text())?;
                What::Like { pattern: Pattern::new(pattern, *ignore_case)?, is_negated }
            }
            Filter::Is { is: Is::Null, .. } => What::Is { is: Is::Null, is_negated },
            Filter::Is { is, .. } => {
                kind.filter(|kind| *kind == ValueType::Bool)?;
                What::Is { is: *is, is_negated }
            }
            Filter::All(_) | Filter::Any(_) | Filter::Not(_) => return None,
        };
        Some(Self { column, name, width: schema.columns.len(), kind, what })
    }

    fn holds(&self, row: &Row) -> bool {
        let json = row.value(self.column);
        let is_null = json == "null";
        match &self.what {
            What::Is { is: Is::Null | Is::Unknown, is_negated } => (is_null && !self.is_cut(row)) != *is_negated,
            What::Is { is, is_negated } => (json == if *is == Is::True { "true" } else { "false" }) != *is_negated,
            // No literal is as large as what is cut.
            _ if is_null => self.is_unequal_to_all_literals() && self.is_cut(row),
            What::Same { texts, is_negated } => {
                texts.binary_search_by(|text| (**text).cmp(json)).is_ok() != *is_negated
            }
            What::Equal { values, is_negated } => self.read(json).is_some_and(|value| {
                let is_one = match value {
                    Comparable::Json(_) => values.iter().any(|one| one.compare(&value).is_eq()),
                    _ => values.binary_search_by(|one| one.compare(&value)).is_ok(),
                };
                is_one != *is_negated
            }),
            What::Compare { op, value: literal } => self.read(json).is_some_and(|value| {
                let ordering = value.compare(literal);
                match op {
                    Comparison::Eq => ordering.is_eq(),
                    Comparison::Neq => ordering.is_ne(),
                    Comparison::Gt => ordering.is_gt(),
                    Comparison::Gte => ordering.is_ge(),
                    Comparison::Lt => ordering.is_lt(),
                    Comparison::Lte => ordering.is_le(),
                }
            }),
            What::Like { pattern, is_negated } => {
                !self.kind.is_some_and(|kind| kind.is_large(json))
                    && pattern.matches(&crate::value::text(json)) != *is_negated
            }
        }
    }

    /// The value, unless it is too large to be compared (see [`crate::value::LARGE_BYTES`]).
    fn read<'a>(&self, json: &'a str) -> Option<Comparable<'a>> {
        self.kind.filter(|kind| !kind.is_large(json)).and_then(|kind| kind.read(json))
    }

    /// Whether the row has null here because the value was too large.
    fn is_cut(&self, row: &Row) -> bool {
        row.len() > self.width
            && serde_json::from_str::<HashMap<String, u64>>(row.value(self.width))
                .is_ok_and(|sizes| sizes.contains_key(&*self.name))
    }

    /// Whether the question is `neq`, of a type whose equality needs no reading.
    fn is_unequal_to_all_literals(&self) -> bool {
        matches!(self.what, What::Same { is_negated: true, .. })
    }
}

impl What {
    fn equal(kind: ValueType, literals: &[Arc<str>], is_negated: bool) -> Option<Self> {
        if kind.is_equal_as_text() {
            let mut texts = literals.to_vec();
            texts.sort_unstable();
            return Some(Self::Same { texts, is_negated });
        }
        // A null on the wire is a JSON null or none: no telling whether it is unequal.
        if kind == ValueType::Jsonb && is_negated {
            return None;
        }
        let values: Option<Vec<_>> =
            literals.iter().map(|literal| kind.read(literal).map(Comparable::into_owned)).collect();
        let mut values = values?;
        values.sort_by(Comparable::compare);
        Some(Self::Equal { values, is_negated })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publication::Column;

    fn schema() -> Schema {
        let columns = [("id", "int4"), ("body", "text"), ("price", "numeric"), ("paid", "bool")];
        Schema { columns: columns.map(|(name, kind)| Column::new(name, kind)).to_vec(), key: vec![0] }
    }

    fn holds(filter: &Filter, row: &str) -> bool {
        let predicate = Predicate::new(filter, &schema()).expect("a predicate");
        predicate.holds(&Row::parse(row).expect("a row"))
    }

    fn compare(column: &str, op: Comparison, value: &str) -> Filter {
        Filter::Compare { column: column.into(), op, value: value.into() }
    }

    #[test]
    fn what_is_unknown_is_not_true_and_its_negation_neither() {
        let row = r#"[1,null,null,null]"#;
        let filters = [
            compare("body", Comparison::Eq, "\"x\""),
            compare("price", Comparison::Lt, "\"1\""),
            Filter::one_of("price".into(), vec!["\"1\"".into(), "\"2\"".into()]),
            Filter::Like { column: "body".into(), pattern: "%".into(), ignore_case: false },
        ];
        for filter in filters {
            let or_true = Filter::any([filter.clone(), compare("id", Comparison::Eq, "1")]);
            assert!(!holds(&filter, row) && !holds(&filter.clone().negated(), row), "{filter:?}");
            assert!(holds(&or_true, row) && !holds(&or_true.negated(), row));
        }
        let is = |is| Filter::Is { column: "paid".into(), is };
        assert!(holds(&is(Is::Null), row) && !holds(&is(Is::Null).negated(), row));
        assert!(!holds(&is(Is::True), row) && holds(&is(Is::False).negated(), row));
    }

    #[test]
    fn a_value_too_large_to_be_sent_is_not_null_and_equals_nothing() {
        let row = r#"[1,null,"1.50",true,{"body":2000000}]"#;
        let is_null = Filter::Is { column: "body".into(), is: Is::Null };
        assert!(!holds(&is_null, row) && holds(&is_null.negated(), row));
        assert!(!holds(&compare("body", Comparison::Eq, "\"x\""), row));
        assert!(holds(&compare("body", Comparison::Neq, "\"x\""), row));
        assert!(!holds(&compare("body", Comparison::Gt, "\"\""), row));
        assert!(!holds(&compare("body", Comparison::Lte, "\"\""), row));
        assert!(holds(&compare("price", Comparison::Eq, "\"1.5\""), row));
        let uncut = format!(r#"[1,"{}","1",true]"#, "x".repeat(crate::value::LARGE_BYTES + 1));
        assert!(!holds(&compare("body", Comparison::Gt, "\"\""), &uncut));
    }

    #[test]
    fn what_cannot_be_asked_of_a_column_is_no_predicate() {
        let data = Schema { columns: vec![Column::new("data", "jsonb"), Column::new("tags", "text[]")], key: vec![0] };
        for filter in [
            compare("data", Comparison::Gt, "1"),
            compare("data", Comparison::Neq, "1"),
            compare("tags", Comparison::Eq, "[]"),
            compare("nope", Comparison::Eq, "1"),
            Filter::Like { column: "data".into(), pattern: "%".into(), ignore_case: false },
            Filter::Is { column: "data".into(), is: Is::True },
        ] {
            assert!(Predicate::new(&filter, &data).is_none(), "{filter:?}");
        }
        assert!(Predicate::new(&compare("data", Comparison::Eq, "1"), &data).is_some());
    }
}
