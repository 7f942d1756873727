//! What a client asks of a publication: filter, columns, order, limit.
//!
//! A channel text is read once, at the edge, into a [`ChannelRequest`]; with the publication's columns and literals that
//! Postgres has cast it becomes a [`Query`], which is canonical: equal queries are equal values.

use std::sync::Arc;

use crate::protocol::{Direction, ErrorCode, Nulls, OrderBy, Refusal};
use crate::publication::{Column, Publication};

mod filter;
mod request;

pub use filter::{Comparison, Filter, Is, Predicate, can_equal};
pub use request::{ChannelRequest, Condition, Named, OrderTerm, Value};

/// The part of a channel after the `?`, in canonical form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Query {
    pub filter: Filter,
    /// The columns asked for, sorted, each once; `None`: all that are shown. Key columns and those of `order` come besides.
    pub select: Option<Vec<Arc<str>>>,
    /// With the key as the last tie-break; empty: by key alone, where there is no limit.
    pub order: Vec<OrderBy>,
    pub limit: Option<u32>,
}

/// A literal that Postgres has to cast: the SQL name of the type ([`Publication::casts`]), and the text.
pub type Literal = (Arc<str>, Arc<str>);

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
    let mut filters = Vec::new();
    let mut missing = Vec::new();
    for condition in &request.filters {
        let Condition::Compare { column: named, op, value } = condition else { continue };
        let bad = |message: String| Refusal { at: Some(named.at), ..Refusal::new(ErrorCode::BadQuery, message) };
        let place = publication.schema.columns.iter().position(|column| column.name == named.name && !column.hidden);
        let Some(place) = place else {
            return Err(bad(format!("there is no column `{}`", shortened(&named.name))));
        };
        let column = &publication.schema.columns[place];
        if !can_equal(&column.type_name, column.kind) {
            return Err(bad(format!("columns of type {} cannot be filtered yet", column.type_name)));
        }
        let literal = (publication.casts[place].clone(), value.text.clone());
        match known(&literal) {
            None => missing.push(literal),
            Some(Ok(value)) => filters.push(Filter::Compare { column: column.name.clone(), op: *op, value }),
            Some(Err(message)) => return Err(bad(message)),
        }
    }
    let select = match &request.select {
        None => None,
        Some(select) => {
            let mut names = Vec::new();
            for named in select {
                names.push(shown(named, publication)?.name.clone());
            }
            names.sort_unstable();
            names.dedup();
            Some(names)
        }
    };
    let order = resolve_order(request, publication)?;
    let query = Query { filter: Filter::all(filters), select, order, limit: request.limit };
    Ok(if missing.is_empty() { Ok(query) } else { Err(missing) })
}

/// The order asked for, and the key behind it; none where nothing is asked for, and nothing is cut off.
fn resolve_order(request: &ChannelRequest, publication: &Publication) -> Result<Vec<OrderBy>, Refusal> {
    let mut order: Vec<OrderBy> = Vec::new();
    for term in &request.order {
        let column = shown(&term.column, publication)?;
        if !can_equal(&column.type_name, column.kind) {
            let message = format!("columns of type {} cannot be ordered yet", column.type_name);
            return Err(Refusal { at: Some(term.column.at), ..Refusal::new(ErrorCode::BadQuery, message) });
        }
        if !order.iter().any(|by| by.column == column.name) {
            order.push(OrderBy { column: column.name.clone(), dir: term.dir, nulls: term.nulls });
        }
    }
    if !order.is_empty() || request.limit.is_some() {
        for name in publication.schema.key_names() {
            if !order.iter().any(|by| by.column == *name) {
                order.push(OrderBy { column: name.clone(), dir: Direction::Asc, nulls: Nulls::Last });
            }
        }
    }
    Ok(order)
}

/// A column that clients may name.
fn shown<'a>(named: &Named, publication: &'a Publication) -> Result<&'a Column, Refusal> {
    let column = publication.schema.columns.iter().find(|column| column.name == named.name && !column.hidden);
    column.ok_or_else(|| {
        let message = format!("there is no column `{}`", shortened(&named.name));
        Refusal { at: Some(named.at), ..Refusal::new(ErrorCode::BadQuery, message) }
    })
}

/// The refusal for a name that is not published.
pub fn unknown_publication(name: &str) -> Refusal {
    Refusal::new(ErrorCode::UnknownPublication, format!("there is no publication `{}`", shortened(name)))
}

/// At most 80 characters of what a client sent, for messages.
pub fn shortened(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
