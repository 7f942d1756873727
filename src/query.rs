//! What a client asks of a publication: filter, columns, order, limit.
//!
//! A channel text is read once, at the edge, into a [`ChannelRequest`]; with the publication's columns and literals that
//! Postgres has cast it becomes a [`Query`], which is canonical: equal queries are equal values. A filter then has two
//! forms that agree: a [`Predicate`] over rows in memory, and a [`Where`] for Postgres.

use std::sync::Arc;

use crate::protocol::{ErrorCode, OrderBy, Refusal};
#[cfg(doc)]
use crate::publication::Publication;

mod filter;
mod grammar;
pub mod like;
mod predicate;
mod request;
mod resolve;
mod sql;

pub use filter::{Comparison, Filter, Is};
pub use predicate::Predicate;
pub use request::{ChannelRequest, Condition, Named, OrderTerm, Value};
pub use resolve::{Scope, resolve, resolve_filter};
pub use sql::{Bound, Where, order_by, quoted};

/// The part of a channel after the `?`, in canonical form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Query {
    pub filter: Filter,
    /// The columns asked for and those of the key and of `order`, sorted, each once; `None`: all that are shown.
    pub select: Option<Vec<Arc<str>>>,
    /// With the key as the last tie-break; empty: by key alone, where there is no limit.
    pub order: Vec<OrderBy>,
    pub limit: Option<u32>,
}

/// A literal that Postgres has to cast: the SQL name of the type ([`Publication::casts`]), and the text.
pub type Literal = (Arc<str>, Arc<str>);

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
