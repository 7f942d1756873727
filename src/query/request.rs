//! A channel text, read: `orders?status=eq.open&order=placed_at.desc&limit=50`.
//!
//! The syntax is a subset of PostgREST's (DESIGN §6). It is read once, at the edge, without knowing the publication: names
//! and literals are texts here, each with its place, so that whoever resolves them can say where something is wrong.

use std::sync::Arc;

use crate::protocol::{Direction, ErrorCode, Nulls, Refusal};
use crate::query::{Comparison, Is, shortened, unknown_publication};

/// A channel text, read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChannelRequest {
    pub publication: Arc<str>,
    /// All of them have to hold.
    pub filters: Vec<Condition>,
    /// `None`: all columns.
    pub select: Option<Vec<Named>>,
    pub order: Vec<OrderTerm>,
    pub limit: Option<u32>,
}

/// A name in a channel text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Named {
    pub name: Arc<str>,
    /// Where it stands, in bytes.
    pub at: usize,
}

/// A literal in a channel text, unquoted: as Postgres would read it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Value {
    pub text: Arc<str>,
    pub at: usize,
}

/// A filter as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Not(Box<Condition>),
    Compare { column: Named, op: Comparison, value: Value },
    In { column: Named, values: Vec<Value> },
    Like { column: Named, pattern: Value, ignore_case: bool },
    Is { column: Named, is: Is },
}

/// A part of `order=`; what was not said is as in Postgres.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OrderTerm {
    pub column: Named,
    pub dir: Direction,
    pub nulls: Nulls,
}

/// Words that are not columns on the left of a `=`.
const RESERVED: [&str; 9] = ["select", "order", "limit", "offset", "and", "or", "not", "columns", "on_conflict"];

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
        let mut request =
            Self { publication: name.into(), filters: Vec::new(), select: None, order: Vec::new(), limit: None };
        let mut at = name.len() + 1;
        for pair in query.split('&') {
            match pair.split_once('=') {
                _ if pair.is_empty() => {}
                Some(("select", names)) => request.select = Some(read_names(names, at + "select=".len())),
                Some(("order", terms)) => request.order = read_order(terms, at + "order=".len())?,
                Some(("limit", limit)) => request.limit = Some(read_limit(limit, at + "limit=".len())?),
                _ => request.filters.push(read_filter(pair, at)?),
            }
            at += pair.len() + 1;
        }
        Ok(request)
    }
}

fn read_names(names: &str, mut at: usize) -> Vec<Named> {
    let named = |name: &str| {
        let named = Named { name: name.into(), at };
        at += name.len() + 1;
        named
    };
    names.split(',').map(named).collect()
}

/// Reads `column.desc.nullslast,…`; nulls come last ascending and first descending, where nothing is said.
fn read_order(terms: &str, at: usize) -> Result<Vec<OrderTerm>, Refusal> {
    let read = |term: Named| {
        let mut parts = term.name.split('.');
        let name = parts.next().unwrap_or_default();
        let (mut dir, mut nulls) = (Direction::Asc, None);
        for part in parts {
            match part {
                "asc" => dir = Direction::Asc,
                "desc" => dir = Direction::Desc,
                "nullsfirst" => nulls = Some(Nulls::First),
                "nullslast" => nulls = Some(Nulls::Last),
                other => {
                    let message = format!("`{}` is not asc, desc, nullsfirst or nullslast", shortened(other));
                    return Err(Refusal { at: Some(term.at), ..Refusal::new(ErrorCode::BadQuery, message) });
                }
            }
        }
        let usual = if dir == Direction::Desc { Nulls::First } else { Nulls::Last };
        let column = Named { name: name.into(), at: term.at };
        Ok(OrderTerm { column, dir, nulls: nulls.unwrap_or(usual) })
    };
    read_names(terms, at).into_iter().map(read).collect()
}

fn read_limit(limit: &str, at: usize) -> Result<u32, Refusal> {
    let message = || format!("`{}` is not a number of rows", shortened(limit));
    limit.parse().map_err(|_| Refusal { at: Some(at), ..Refusal::new(ErrorCode::BadQuery, message()) })
}

/// Reads `column=eq.literal`, decoded as a form's query string is.
fn read_filter(pair: &str, at: usize) -> Result<Condition, Refusal> {
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
    Ok(Condition::Compare {
        column: Named { name: column.into(), at },
        op: Comparison::Eq,
        value: Value { text: unquoted(literal).into(), at: value_at },
    })
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
        let read: Vec<(&str, &str, usize)> = request
            .filters
            .iter()
            .map(|filter| match filter {
                Condition::Compare { column, value, .. } => (&*column.name, &*value.text, column.at),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(read, [("status", "open", 7), ("name", "a b&\"c", 22), ("id", "7", 44)]);
        assert_eq!(unquoted(r#""a\"b\\c""#), r#"a"b\c"#);
    }

    #[test]
    fn a_query_that_is_not_supported_names_its_place() {
        for (text, at) in [
            ("orders?order=id.up", 13),
            ("orders?status=eq.open&limit=many", 28),
            ("orders?offset=5", 7),
            ("orders?total=gt.5", 13),
            ("orders?status", 7),
            ("orders?a=eq.%ff", 9),
            ("orders?a=eq.%00", 9),
        ] {
            let refusal = ChannelRequest::parse(text).unwrap_err();
            assert_eq!((refusal.code, refusal.at), (ErrorCode::BadQuery, Some(at)), "{text}");
        }
    }
}
