//! Filters and orders as SQL, with the meaning that they have in memory.
//!
//! Operators are named with their schema and identifiers are quoted; values are bound, as texts that are cast to the type
//! of the column. Texts compare with `collate "C"`. Where a column's own collation has the indexes, that condition stands
//! beside it. Values too large to be sent match no range and no pattern, since in memory they are not there.

use std::fmt::Write;
use std::sync::Arc;

use super::{Comparison, Filter, Is};
use crate::protocol::{Direction, Nulls, OrderBy};
use crate::publication::{Kind, Publication};
use crate::value::{LARGE_BYTES, ValueType};

/// A condition over a row `r` of the publication's relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Where {
    pub sql: String,
    /// The values of `$1`, `$2`, …
    pub values: Vec<Bound>,
}

/// A bound value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    Text(String),
    Texts(Vec<String>),
}

impl Where {
    /// All of these filters; `None`: a column of theirs is not there any more, or of another type.
    pub fn new<'a>(filters: impl IntoIterator<Item = &'a Filter>, publication: &Publication) -> Option<Self> {
        let mut writer = Writer { publication, sql: String::new(), values: Vec::new() };
        for filter in filters {
            if !writer.sql.is_empty() {
                writer.sql.push_str(" and ");
            }
            writer.filter(filter)?;
        }
        if writer.sql.is_empty() {
            writer.sql.push_str("true");
        }
        Some(Self { sql: writer.sql, values: writer.values })
    }
}

/// What stands behind `order by`, over a row `r`; `None`: a column is not there any more, or has no order.
pub fn order_by(order: &[OrderBy], publication: &Publication) -> Option<String> {
    let mut terms = Vec::with_capacity(order.len());
    for by in order {
        let column = Column::find(&by.column, publication)?;
        let kind = column.kind.filter(|kind| kind.is_ordered())?;
        let name = &column.sql;
        let value = match kind {
            ValueType::Text | ValueType::Padded => {
                format!("case when {} then {name} end collate \"C\"", is_not_large(&column, kind))
            }
            kind if kind.may_be_large() => format!("case when {} then {name} end", is_not_large(&column, kind)),
            _ => name.clone(),
        };
        let dir = match by.dir {
            Direction::Asc => "asc",
            Direction::Desc => "desc",
        };
        let nulls = match by.nulls {
            Nulls::First => "first",
            Nulls::Last => "last",
        };
        terms.push(format!("{value} {dir} nulls {nulls}"));
    }
    Some(terms.join(", "))
}

/// A name for SQL.
pub fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

struct Writer<'a> {
    publication: &'a Publication,
    sql: String,
    values: Vec<Bound>,
}

struct Column<'a> {
    /// `r."name"`
    sql: String,
    kind: Option<ValueType>,
    /// The type to cast to.
    cast: &'a Arc<str>,
}

impl<'a> Column<'a> {
    fn find(name: &str, publication: &'a Publication) -> Option<Self> {
        let place = publication.schema.columns.iter().position(|column| *column.name == *name)?;
        let column = &publication.schema.columns[place];
        let cast = publication.casts.get(place)?;
        let name = format!("r.{}", quoted(name));
        // Operators of enums do not look through domains; for an enum itself the cast is none.
        let sql = if column.kind == Kind::Enum { format!("{name}::{cast}") } else { name };
        Some(Self { sql, kind: ValueType::of(column), cast })
    }
}

impl Writer<'_> {
    fn filter(&mut self, filter: &Filter) -> Option<()> {
        match filter {
            Filter::All(all) => self.joined(all, " and ", "true"),
            Filter::Any(any) => self.joined(any, " or ", "false"),
            Filter::Not(inner) => self.leaf(inner, true),
            leaf => self.leaf(leaf, false),
        }
    }

    fn joined(&mut self, filters: &[Filter], between: &str, of_none: &str) -> Option<()> {
        if filters.is_empty() {
            self.sql.push_str(of_none);
        }
        for (place, filter) in filters.iter().enumerate() {
            self.sql.push_str(if place == 0 { "(" } else { between });
            self.filter(filter)?;
        }
        if !filters.is_empty() {
            self.sql.push(')');
        }
        Some(())
    }

    fn leaf(&mut self, leaf: &Filter, is_negated: bool) -> Option<()> {
        let column = Column::find(leaf.columns().first()?, self.publication)?;
        let not = if is_negated { "not " } else { "" };
        match leaf {
            Filter::Compare { op, value, .. } => self.compare(&column, *op, value),
            Filter::In { values, .. } => {
                let kind = column.kind?;
                let literals = values.iter().map(|value| kind.literal(value).into_owned()).collect();
                self.values.push(Bound::Texts(literals));
                let bound = format!("${}::pg_catalog.text[]::{}[]", self.values.len(), column.cast);
                let (operator, which) = if is_negated { ("<>", "all") } else { ("=", "any") };
                self.compared(&column, kind, operator, &format!("{which} ({bound})"))
            }
            Filter::Like { pattern, ignore_case, .. } => {
                let kind = column.kind.filter(|kind| kind.is_text())?;
                let operator = match (ignore_case, is_negated) {
                    (false, false) => "~~",
                    (false, true) => "!~~",
                    (true, false) => "~~*",
                    (true, true) => "!~~*",
                };
                self.values.push(Bound::Text(pattern.to_string()));
                let bound = format!("${}::pg_catalog.text", self.values.len());
                let guard = is_not_large(&column, kind);
                write!(self.sql, "({} collate \"C\" operator(pg_catalog.{operator}) {bound} and {guard})", column.sql)
                    .ok()
            }
            // Unlike `is null`, this does not look into a composite value.
            Filter::Is { is: Is::Null, .. } => {
                let distinct = if is_negated { "is distinct from" } else { "is not distinct from" };
                write!(self.sql, "{} {distinct} null", column.sql).ok()
            }
            Filter::Is { is, .. } => {
                column.kind.filter(|kind| *kind == ValueType::Bool)?;
                let word = match is {
                    Is::True => "true",
                    Is::False => "false",
                    Is::Null | Is::Unknown => "unknown",
                };
                write!(self.sql, "{} is {not}{word}", column.sql).ok()
            }
            Filter::All(_) | Filter::Any(_) | Filter::Not(_) => None,
        }
    }

    fn compare(&mut self, column: &Column<'_>, op: Comparison, value: &str) -> Option<()> {
        let kind = column.kind?;
        let operator = match op {
            Comparison::Eq => "=",
            Comparison::Neq => "<>",
            Comparison::Gt => ">",
            Comparison::Gte => ">=",
            Comparison::Lt => "<",
            Comparison::Lte => "<=",
        };
        let is_range = !matches!(op, Comparison::Eq | Comparison::Neq);
        if is_range && !kind.is_ordered() {
            return None;
        }
        self.values.push(Bound::Text(kind.literal(value).into_owned()));
        let bound = format!("${}::pg_catalog.text::{}", self.values.len(), column.cast);
        self.compared(column, kind, operator, &bound)
    }

    /// `column operator right`, with the collation where there is one.
    fn compared(&mut self, column: &Column<'_>, kind: ValueType, operator: &str, right: &str) -> Option<()> {
        let name = &column.sql;
        let is_equality = operator == "=";
        // In memory it is known of a text or a bytea that is not there that it is no literal, and nothing else.
        let is_known_if_large = matches!(kind, ValueType::Text | ValueType::Bytea) && (is_equality || operator == "<>");
        self.sql.push('(');
        if kind.may_be_large() && !is_known_if_large {
            write!(self.sql, "{} and ", is_not_large(column, kind)).ok()?;
        }
        // The column's collation, which its indexes have, may take different texts for equal.
        if kind.is_text() && is_equality {
            write!(self.sql, "{name} operator(pg_catalog.=) {right} and ").ok()?;
        }
        let collation = if kind.is_text() { " collate \"C\"" } else { "" };
        write!(self.sql, "{name}{collation} operator(pg_catalog.{operator}) {right})").ok()
    }
}

/// SQL: the value is not too large to be sent, as `rowcast.row_sql` measures it.
fn is_not_large(column: &Column<'_>, kind: ValueType) -> String {
    let name = &column.sql;
    match kind {
        // The stored size is the compressed one, and nothing shrinks to less than a 256th.
        ValueType::Jsonb => format!(
            "case when pg_catalog.pg_column_size({name}) operator(pg_catalog.>) 4000 \
             then pg_catalog.octet_length({name}::pg_catalog.text) operator(pg_catalog.<=) {LARGE_BYTES} else true end"
        ),
        // Of a name too.
        ValueType::Text => {
            format!("pg_catalog.octet_length({name}::pg_catalog.text) operator(pg_catalog.<=) {LARGE_BYTES}")
        }
        _ => format!("pg_catalog.octet_length({name}) operator(pg_catalog.<=) {LARGE_BYTES}"),
    }
}
