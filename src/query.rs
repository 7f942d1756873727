//! What a client asks of a publication, and the channel that it names.
//!
//! A channel text is read once, at the edge, into a [`ChannelRequest`]; together with the publication and the policy
//! resolved for the identity it becomes a [`ChannelSpec`], which is valid by construction. Equal specs are one channel:
//! one cache entry, one encoding, one permission.
//!
//! Today a query filters by equality, `orders?status=eq.open&customer_id=eq.7`, on columns of types whose equality is that
//! of their text on the wire ([`can_equal`]). Everything else is `bad_query`; more operators, `select`, `order` and
//! `limit` will join [`Query`]. Literals are cast by Postgres when the channel opens, so that `eq.7` and `eq.07` are one
//! channel and a text that is no number is refused by who knows.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::entry::Row;
use crate::identity::ResolvedPolicy;
use crate::protocol::{Direction, ErrorCode, Nulls, OrderBy, Refusal};
use crate::publication::{FeedKey, Publication, Schema};
use crate::version::base36;

/// A channel text, read: `orders?status=eq.open`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChannelRequest {
    pub publication: Arc<str>,
    pub filters: Vec<Requested>,
}

/// A filter as it was asked for: a column equals a literal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requested {
    pub column: Arc<str>,
    /// As Postgres would read it.
    pub literal: Arc<str>,
    /// Where it stands in the channel text, in bytes.
    pub at: usize,
}

/// The part of a channel after the `?`, in canonical form: sorted, each filter once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Query {
    pub equals: Vec<Equals>,
}

/// A column has a value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Equals {
    pub column: Arc<str>,
    /// The value as JSON text, as rows have it.
    pub value: Arc<str>,
}

/// Words that are not columns on the left of a `=`.
const RESERVED: [&str; 9] = ["select", "order", "limit", "offset", "and", "or", "not", "columns", "on_conflict"];

/// Whether two values of a type are equal in Postgres exactly if their texts on the wire are. Not so for numeric (1.0 and
/// 1.00), floats (0 and -0), padded and case-insensitive texts.
pub fn can_equal(type_name: &str) -> bool {
    matches!(
        type_name,
        "bool" | "int2" | "int4" | "int8" | "text" | "varchar" | "uuid" | "date" | "timestamp" | "timestamptz"
    )
}

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
        let mut filters = Vec::new();
        let mut at = name.len() + 1;
        for pair in query.split('&') {
            if !pair.is_empty() {
                filters.push(read_filter(pair, at)?);
            }
            at += pair.len() + 1;
        }
        Ok(Self { publication: name.into(), filters })
    }
}

/// Reads `column=eq.literal`, decoded as a form's query string is.
fn read_filter(pair: &str, at: usize) -> Result<Requested, Refusal> {
    let bad = |at: usize, message: String| Refusal { at: Some(at), ..Refusal::new(ErrorCode::BadQuery, message) };
    let Some((raw_column, raw_value)) = pair.split_once('=') else {
        return Err(bad(at, format!("`{}` is not of the form column=eq.value", shortened(pair))));
    };
    let decode = |raw: &str, at: usize| {
        let spaced = raw.replace('+', " ");
        let decoded = percent_encoding::percent_decode_str(&spaced).decode_utf8().map(|text| text.into_owned());
        decoded.map_err(|_| bad(at, format!("`{}` is not UTF-8", shortened(raw))))
    };
    let value_at = at + raw_column.len() + 1;
    let column = decode(raw_column, at)?;
    let value = decode(raw_value, value_at)?;
    if RESERVED.contains(&column.as_str()) {
        return Err(bad(at, format!("`{column}` is not supported yet: channels filter by column=eq.value")));
    }
    let Some(literal) = value.strip_prefix("eq.") else {
        let operator = value.split('.').next().unwrap_or_default();
        return Err(bad(value_at, format!("the operator `{}` is not supported yet: use eq", shortened(operator))));
    };
    if literal.contains('\0') {
        return Err(bad(value_at, "a text in Postgres has no zero byte".to_owned()));
    }
    Ok(Requested { column: column.into(), literal: unquoted(literal).into(), at })
}

/// A literal with the quotes removed that protect `,` `.` `:` `(` `)` `"`.
fn unquoted(literal: &str) -> String {
    let Some(inner) = literal.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return literal.to_owned();
    };
    let mut text = String::with_capacity(inner.len());
    let mut escaped = false;
    for character in inner.chars() {
        if character == '\\' && !escaped {
            escaped = true;
        } else {
            text.push(character);
            escaped = false;
        }
    }
    text
}

/// A literal that Postgres has to cast: the type, and the text.
pub type Literal = (Arc<str>, Arc<str>);

/// Resolves the filters of a request; `known` gives a literal's canonical value, if it has been cast, or why it cannot
/// be. `Ok(Err(…))`: these have to be cast first.
///
/// # Errors
/// `bad_query`, with the filter's place.
pub fn resolve(
    request: &ChannelRequest,
    publication: &Publication,
    known: impl Fn(&Literal) -> Option<Result<Arc<str>, String>>,
) -> Result<Result<Query, Vec<Literal>>, Refusal> {
    let mut equals = Vec::new();
    let mut missing = Vec::new();
    for filter in &request.filters {
        let bad = |message: String| Refusal { at: Some(filter.at), ..Refusal::new(ErrorCode::BadQuery, message) };
        let column = publication.schema.columns.iter().find(|column| column.name == filter.column);
        let Some(column) = column else {
            return Err(bad(format!("there is no column `{}`", shortened(&filter.column))));
        };
        if !can_equal(&column.type_name) {
            return Err(bad(format!("columns of type {} cannot be filtered yet", column.type_name)));
        }
        let literal = (column.type_name.clone(), filter.literal.clone());
        match known(&literal) {
            None => missing.push(literal),
            Some(Ok(value)) => equals.push(Equals { column: column.name.clone(), value }),
            Some(Err(message)) => return Err(bad(message)),
        }
    }
    equals.sort_unstable();
    equals.dedup();
    Ok(if missing.is_empty() { Ok(Query { equals }) } else { Err(missing) })
}

/// Tells which rows of a schema belong to a channel.
#[derive(Clone, Debug, Default)]
pub struct Membership {
    equals: Vec<(usize, Arc<str>)>,
}

impl Membership {
    /// `None`: the schema lacks a column that the query filters by.
    pub fn new(query: &Query, schema: &Schema) -> Option<Self> {
        let place = |name: &str| schema.columns.iter().position(|column| &*column.name == name);
        let equals = query.equals.iter().map(|filter| Some((place(&filter.column)?, filter.value.clone())));
        Some(Self { equals: equals.collect::<Option<_>>()? })
    }

    pub fn holds(&self, row: &Row) -> bool {
        self.equals.iter().all(|(column, value)| row.value(*column) == &**value)
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
    /// The channel's part of a store key: permission and query, so that no entry is ever shared across them. Clients
    /// choose a part of what goes in, so this is a hash for which nobody can make two channels collide.
    pub fn hash(&self) -> String {
        digest(&self.canonical())
    }

    /// The tag that clients resume with: the channel, and the columns with types and key that its rows have.
    pub fn tag(&self, schema: &Schema) -> String {
        digest(&format!("{} {}", self.canonical(), schema.id()))
    }

    /// Values are JSON texts, so nothing in them can be taken for what stands between them.
    fn canonical(&self) -> String {
        let mut text = format!("{}?{}", self.feed, self.policy);
        for filter in &self.query.equals {
            let column = serde_json::to_string(&filter.column).expect("a text is always JSON");
            text.push_str(&format!("&{column}={}", filter.value));
        }
        text
    }

    /// The order of the channel's rows: the key, ascending, where the query names none.
    pub fn order(&self, schema: &Schema) -> Vec<OrderBy> {
        schema
            .key_names()
            .map(|name| OrderBy { column: name.clone(), dir: Direction::Asc, nulls: Nulls::Last })
            .collect()
    }
}

/// The first 128 bits of SHA-256, as text of at most 27 characters.
fn digest(text: &str) -> String {
    let hash = Sha256::digest(text.as_bytes());
    let half =
        |from: usize| base36(hash[from..from + 8].iter().fold(0, |number, &byte| (number << 8) | u64::from(byte)));
    format!("{}-{}", half(0), half(8))
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
    fn filters_are_decoded_once_and_keep_their_place() {
        let request = ChannelRequest::parse("orders?status=eq.open&na%6De=eq.a+b%26%22c&&id=eq.%227%22").expect("read");
        let read: Vec<(&str, &str, usize)> =
            request.filters.iter().map(|filter| (&*filter.column, &*filter.literal, filter.at)).collect();
        assert_eq!(read, [("status", "open", 7), ("name", "a b&\"c", 22), ("id", "7", 44)]);
        assert_eq!(unquoted(r#""a\"b\\c""#), r#"a"b\c"#);
    }

    #[test]
    fn a_query_that_is_not_supported_names_its_place() {
        for (text, at) in [
            ("orders?select=id", 7),
            ("orders?status=eq.open&limit=5", 22),
            ("orders?total=gt.5", 13),
            ("orders?status", 7),
            ("orders?a=eq.%ff", 9),
            ("orders?a=eq.%00", 9),
        ] {
            let refusal = ChannelRequest::parse(text).unwrap_err();
            assert_eq!((refusal.code, refusal.at), (ErrorCode::BadQuery, Some(at)), "{text}");
        }
    }

    #[test]
    fn equal_queries_are_one_channel_and_different_ones_are_not() {
        let spec = |filters: &[(&str, &str)]| {
            let mut equals: Vec<Equals> = filters
                .iter()
                .map(|(column, value)| Equals { column: (*column).into(), value: (*value).into() })
                .collect();
            equals.sort_unstable();
            let feed = FeedKey { name: "orders".into(), generation: 1 };
            ChannelSpec { feed, policy: ResolvedPolicy::Public, query: Query { equals } }.hash()
        };
        assert_eq!(spec(&[("a", "1"), ("b", "2")]), spec(&[("b", "2"), ("a", "1")]));
        let different = [
            spec(&[]),
            spec(&[("a", "1")]),
            spec(&[("a", "\"1\"")]),
            spec(&[("a", "\"1&\\\"b\\\"=2\"")]),
            spec(&[("a", "1"), ("b", "2")]),
        ];
        assert_eq!(different.iter().collect::<std::collections::HashSet<_>>().len(), different.len());
    }
}
