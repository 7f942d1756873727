//! What a client asks of a publication, and the channel that it names.
//!
//! A channel text is read once, at the edge, into a [`ChannelRequest`]; together with the publication and the policy
//! resolved for the identity it becomes a [`ChannelSpec`], which is valid by construction. Equal specs are one channel:
//! one cache entry, one encoding, one permission. Filters, orders and limits will join [`Query`]; today a channel is
//! the whole publication.

use std::sync::Arc;

use crate::identity::ResolvedPolicy;
use crate::protocol::{Direction, ErrorCode, Nulls, OrderBy, Refusal};
use crate::publication::{FeedKey, Schema};
use crate::version::base36;

/// A channel text, read: `orders`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChannelRequest {
    pub publication: Arc<str>,
    pub query: Query,
}

/// The part of a channel after the `?`, in canonical form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Query {}

impl ChannelRequest {
    /// Reads a channel text.
    ///
    /// # Errors
    /// `unknown_publication` for a text that cannot be a name, `bad_query` (with `at`) for the rest.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let (name, query) = match text.split_once('?') {
            Some((name, query)) => (name, query),
            None => (text, ""),
        };
        let may_stand = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.-".contains(&byte);
        if name.is_empty() || name.len() > 63 || !name.bytes().all(may_stand) {
            return Err(unknown_publication(name));
        }
        if !query.is_empty() {
            let what = query.split(['=', '&']).next().unwrap_or_default();
            return Err(Refusal {
                at: Some(name.len() + 1),
                ..Refusal::new(
                    ErrorCode::BadQuery,
                    format!("`{}` is not supported: this server serves whole publications", shortened(what)),
                )
            });
        }
        Ok(Self { publication: name.into(), query: Query::default() })
    }
}

/// The refusal for a name that is not published.
pub fn unknown_publication(name: &str) -> Refusal {
    Refusal::new(ErrorCode::UnknownPublication, format!("there is no publication `{}`", shortened(name)))
}

/// At most 80 characters of what a client sent, for messages.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Publication + resolved policy + query, in canonical form: the unit of caching, of fan-out and of permission.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChannelSpec {
    pub feed: FeedKey,
    pub policy: ResolvedPolicy,
    pub query: Query,
}

impl ChannelSpec {
    /// The channel's part of a store key: permission and query, so that no entry is ever shared across them.
    pub fn hash(&self) -> String {
        base36(xxhash_rust::xxh3::xxh3_64(self.canonical().as_bytes()))
    }

    /// The tag that clients resume with: the channel, and the columns with types and key that its rows have.
    pub fn tag(&self, schema: &Schema) -> String {
        let text = format!("{} {}", self.canonical(), schema.id());
        base36(xxhash_rust::xxh3::xxh3_64(text.as_bytes()))
    }

    fn canonical(&self) -> String {
        format!("{}?{}", self.feed, self.policy)
    }

    /// The order of the channel's rows: the key, ascending, where the query names none.
    pub fn order(&self, schema: &Schema) -> Vec<OrderBy> {
        schema
            .key_names()
            .map(|name| OrderBy { column: name.clone(), dir: Direction::Asc, nulls: Nulls::Last })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_a_publication_by_name() {
        let request = ChannelRequest::parse("app.orders-2_x").expect("a channel");
        assert_eq!(&*request.publication, "app.orders-2_x");
        assert_eq!(&*ChannelRequest::parse("orders?").expect("a channel").publication, "orders");
    }

    #[test]
    fn what_cannot_be_a_name_is_unknown() {
        for text in ["", "Orders", "or ders", "orders;drop", "ö", &"x".repeat(64), "?a=eq.1"] {
            assert_eq!(ChannelRequest::parse(text).unwrap_err().code, ErrorCode::UnknownPublication, "{text}");
        }
    }

    #[test]
    fn a_query_that_is_not_supported_names_its_place() {
        let refusal = ChannelRequest::parse("orders?status=eq.open").unwrap_err();
        assert_eq!((refusal.code, refusal.at), (ErrorCode::BadQuery, Some(7)));
    }
}
