//! From texts to a query in canonical form: columns are found, operators checked against types, literals cast.
//!
//! Postgres casts the literals, once, elsewhere: what is not known yet is asked for, and the request is resolved again. The
//! same rules serve the filters of clients and those of policies; only that policies may name hidden columns.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::grammar::bad;
use super::like::{self, Pattern};
use super::request::{ChannelRequest, Condition, Named, Value};
use super::{Comparison, Filter, Is, Literal, Query, shortened};
use crate::protocol::{Direction, Nulls, OrderBy, Refusal};
use crate::publication::{Column, Publication, Schema};
use crate::value::ValueType;

/// Bytes of a pattern: every row is matched against it.
pub const PATTERN_MAX: usize = 1_000;

/// Bytes of a literal after Postgres has cast it: `1e100000` grows.
const CANONICAL_MAX: usize = 65_536;

/// Words of dates and times that mean something else every day.
const MOVING: [&str; 4] = ["now", "today", "tomorrow", "yesterday"];

/// Who names the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A client: hidden columns are not there.
    Shown,
    /// A policy.
    All,
}

/// Resolves a request; `known` gives a literal's canonical value, if it has been cast, or why it cannot be.
/// `Ok(Err(…))`: these have to be cast first.
///
/// # Errors
/// `bad_query`, with the place.
pub fn resolve(
    request: &ChannelRequest,
    publication: &Publication,
    known: impl Fn(&Literal) -> Option<Result<Arc<str>, String>>,
) -> Result<Result<Query, Vec<Literal>>, Refusal> {
    let schema = &publication.schema;
    let order = canonical_order(request, schema)?;
    let select = match &request.select {
        Some(names) => Some(canonical_select(names, &order, schema)?),
        None => None,
    };
    let filter = resolve_filter(&request.filters, publication, Scope::Shown, known)?;
    Ok(filter.map(|filter| Query { filter, select, order, limit: request.limit }))
}

/// Resolves conditions, all of which have to hold.
///
/// # Errors
/// `bad_query`, with the place.
pub fn resolve_filter(
    conditions: &[Condition],
    publication: &Publication,
    scope: Scope,
    known: impl Fn(&Literal) -> Option<Result<Arc<str>, String>>,
) -> Result<Result<Filter, Vec<Literal>>, Refusal> {
    let mut resolver = Resolver { publication, scope, known, missing: BTreeSet::new() };
    let filters = conditions.iter().map(|condition| resolver.filter(condition)).collect::<Result<Vec<_>, _>>()?;
    Ok(if resolver.missing.is_empty() { Ok(Filter::all(filters)) } else { Err(resolver.missing.into_iter().collect()) })
}

struct Resolver<'a, F> {
    publication: &'a Publication,
    scope: Scope,
    known: F,
    missing: BTreeSet<Literal>,
}

impl<'a, F: Fn(&Literal) -> Option<Result<Arc<str>, String>>> Resolver<'a, F> {
    fn filter(&mut self, condition: &Condition) -> Result<Filter, Refusal> {
        Ok(match condition {
            Condition::All(all) => {
                Filter::all(all.iter().map(|condition| self.filter(condition)).collect::<Result<Vec<_>, _>>()?)
            }
            Condition::Any(any) => {
                Filter::any(any.iter().map(|condition| self.filter(condition)).collect::<Result<Vec<_>, _>>()?)
            }
            Condition::Not(inner) => {
                let filter = self.filter(inner)?.negated();
                self.check_negated(inner)?;
                filter
            }
            Condition::Compare { column: named, op, value } => {
                let (place, column) = self.column(named)?;
                let kind = comparable(named, column)?;
                if *op == Comparison::Neq {
                    check_unequal(named, kind)?;
                }
                if !matches!(op, Comparison::Eq | Comparison::Neq) && !kind.is_ordered() {
                    return Err(bad(named.at, format!("columns of type {} have no order here", column.type_name)));
                }
                Filter::Compare { column: column.name.clone(), op: *op, value: self.cast(place, kind, value)? }
            }
            Condition::In { column: named, values } => {
                let (place, column) = self.column(named)?;
                let kind = comparable(named, column)?;
                let values = values.iter().map(|value| self.cast(place, kind, value)).collect::<Result<Vec<_>, _>>()?;
                Filter::one_of(column.name.clone(), values)
            }
            Condition::InClaim { claim, .. } => return Err(bad(claim.at, "only policies name claims")),
            Condition::Like { column: named, pattern, ignore_case } => {
                let (_, column) = self.column(named)?;
                if !ValueType::of(column).is_some_and(ValueType::is_text) {
                    let message = format!("columns of type {} are no texts and match no pattern", column.type_name);
                    return Err(bad(named.at, message));
                }
                if pattern.text.len() > PATTERN_MAX {
                    return Err(bad(pattern.at, format!("a pattern has at most {PATTERN_MAX} bytes")));
                }
                let translated = like::translate(&pattern.text);
                if Pattern::new(&translated, *ignore_case).is_none() {
                    return Err(bad(pattern.at, "a pattern cannot end with `\\`, which protects what follows"));
                }
                Filter::Like { column: column.name.clone(), pattern: translated.into(), ignore_case: *ignore_case }
            }
            Condition::Is { column: named, is } => {
                let (_, column) = self.column(named)?;
                let is_bool = ValueType::of(column) == Some(ValueType::Bool);
                if *is != Is::Null && !is_bool {
                    return Err(bad(named.at, format!("columns of type {} are not true or false", column.type_name)));
                }
                if matches!(&*column.type_name, "json" | "jsonb") {
                    return Err(bad(named.at, "null and a JSON null look the same on their way here"));
                }
                let is = if *is == Is::Unknown { Is::Null } else { *is };
                Filter::Is { column: column.name.clone(), is }
            }
        })
    }

    /// What is negated must not be a comparison of jsonb.
    fn check_negated(&self, condition: &Condition) -> Result<(), Refusal> {
        match condition {
            Condition::All(inner) | Condition::Any(inner) => {
                inner.iter().try_for_each(|inner| self.check_negated(inner))
            }
            // Not exactly: what is negated twice would do. Nobody needs it.
            Condition::Not(inner) => self.check_negated(inner),
            Condition::Compare { column: named, .. } | Condition::In { column: named, .. } => {
                let (_, column) = self.column(named)?;
                check_unequal(named, comparable(named, column)?)
            }
            Condition::InClaim { .. } | Condition::Like { .. } | Condition::Is { .. } => Ok(()),
        }
    }

    fn column(&self, named: &Named) -> Result<(usize, &'a Column), Refusal> {
        shown(named, &self.publication.schema, self.scope)
    }

    /// The literal as rows would have it. Where it is not known yet, it is noted, and something stands in its place.
    fn cast(&mut self, place: usize, kind: ValueType, value: &Value) -> Result<Arc<str>, Refusal> {
        let is_time = matches!(
            kind,
            ValueType::Date | ValueType::Moment | ValueType::Time | ValueType::Timetz | ValueType::Interval
        );
        let lower = if is_time { value.text.to_ascii_lowercase() } else { String::new() };
        if let Some(word) = MOVING.iter().find(|word| lower.contains(*word)) {
            return Err(bad(value.at, format!("`{word}` would mean something else later: name the time itself")));
        }
        let literal = (self.publication.casts[place].clone(), value.text.clone());
        match (self.known)(&literal) {
            None => {
                self.missing.insert(literal);
                Ok("".into())
            }
            Some(Err(message)) => Err(bad(value.at, message)),
            Some(Ok(json)) if json.len() > CANONICAL_MAX => {
                Err(bad(value.at, format!("a value has at most {CANONICAL_MAX} bytes as Postgres writes it")))
            }
            Some(Ok(json)) => {
                let canonical = kind.canonical(&json);
                if kind.read(&canonical).is_none() {
                    // A JSON null, which looks like none at all, or a text that only a later Postgres writes.
                    return Err(bad(value.at, format!("`{}` cannot be compared with here", shortened(&value.text))));
                }
                Ok(if *canonical == *json { json } else { canonical.into() })
            }
        }
    }
}

fn shown<'a>(named: &Named, schema: &'a Schema, scope: Scope) -> Result<(usize, &'a Column), Refusal> {
    let is_there = |column: &Column| column.name == named.name && (scope == Scope::All || !column.hidden);
    match schema.columns.iter().position(is_there) {
        Some(place) => Ok((place, &schema.columns[place])),
        None => Err(bad(named.at, format!("there is no column `{}`", shortened(&named.name)))),
    }
}

fn comparable(named: &Named, column: &Column) -> Result<ValueType, Refusal> {
    ValueType::of(column)
        .ok_or_else(|| bad(named.at, format!("columns of type {} cannot be compared", column.type_name)))
}

fn check_unequal(named: &Named, kind: ValueType) -> Result<(), Refusal> {
    if kind == ValueType::Jsonb {
        return Err(bad(named.at, "of jsonb it can be asked what is equal, and not what is unequal"));
    }
    Ok(())
}

/// Sorted, each once, with those of the key and of the order, which come in any case. Also where these are all that there
/// are now: who names columns gets none that join later.
fn canonical_select(names: &[Named], order: &[OrderBy], schema: &Schema) -> Result<Vec<Arc<str>>, Refusal> {
    let mut select: BTreeSet<Arc<str>> = schema.key_names().chain(order.iter().map(|by| &by.column)).cloned().collect();
    for named in names {
        let (_, column) = shown(named, schema, Scope::Shown)?;
        select.insert(column.name.clone());
    }
    Ok(select.into_iter().collect())
}

/// Each column once, the key behind them, nothing behind the whole key. Empty: by key alone, and nothing is cut off.
fn canonical_order(request: &ChannelRequest, schema: &Schema) -> Result<Vec<OrderBy>, Refusal> {
    let ChannelRequest { publication, order: terms, limit, .. } = request;
    let mut order: Vec<OrderBy> = Vec::new();
    for term in terms {
        let (place, column) = shown(&term.column, schema, Scope::Shown)?;
        check_ordered(column, term.column.at)?;
        if order.iter().any(|by| by.column == column.name) || has_key(&order, schema) {
            continue;
        }
        // Nothing in a key is null.
        let nulls = if schema.key.contains(&place) { default_nulls(term.dir) } else { term.nulls };
        order.push(OrderBy { column: column.name.clone(), dir: term.dir, nulls });
    }
    let by_key = |name: &Arc<str>| OrderBy { column: name.clone(), dir: Direction::Asc, nulls: Nulls::Last };
    if limit.is_none() && (order.is_empty() || order.iter().cloned().eq(schema.key_names().map(by_key))) {
        return Ok(Vec::new());
    }
    for &place in &schema.key {
        let column = &schema.columns[place];
        if !order.iter().any(|by| by.column == column.name) {
            check_ordered(column, terms.first().map_or(publication.len() + 1, |term| term.column.at))?;
            order.push(by_key(&column.name));
        }
    }
    Ok(order)
}

fn check_ordered(column: &Column, at: usize) -> Result<(), Refusal> {
    if ValueType::of(column).is_some_and(ValueType::is_ordered) {
        return Ok(());
    }
    Err(bad(at, format!("rows cannot be sorted by `{}`, of type {}", shortened(&column.name), column.type_name)))
}

fn has_key(order: &[OrderBy], schema: &Schema) -> bool {
    schema.key_names().all(|name| order.iter().any(|by| by.column == *name))
}

fn default_nulls(dir: Direction) -> Nulls {
    match dir {
        Direction::Asc => Nulls::Last,
        Direction::Desc => Nulls::First,
    }
}
