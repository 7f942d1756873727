//! A channel text, read: `orders?status=eq.open&order=placed_at.desc&limit=50`.
//!
//! The syntax is a subset of PostgREST's (DESIGN §6). It is read once, at the edge, without knowing the publication: names
//! and literals are texts here, each with its place, so that whoever resolves them can say where something is wrong. The
//! grammar of names, values and conditions stands in `grammar.rs`.

use std::sync::Arc;

use super::grammar::{Cursor, Decoded, bad};
use crate::protocol::{Direction, Nulls, Refusal};
use crate::query::{Comparison, Is, shortened, unknown_publication};

/// Bytes of a channel text. A message of a client has at most as many by default.
pub const TEXT_MAX: usize = 65_536;

/// `and` and `or` within each other.
pub const DEPTH_MAX: usize = 32;

/// Conditions of one channel.
pub const CONDITIONS_MAX: usize = 256;

/// Literals of one channel, those of lists included: each is cast by Postgres.
pub const LITERALS_MAX: usize = 5_000;

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
    /// In a policy, braces stand for a claim only outside of quotes.
    pub is_quoted: bool,
}

/// A filter as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    All(Vec<Condition>),
    Any(Vec<Condition>),
    Not(Box<Condition>),
    Compare {
        column: Named,
        op: Comparison,
        value: Value,
    },
    In {
        column: Named,
        values: Vec<Value>,
    },
    /// In a policy: `region=in.{regions}`.
    InClaim {
        column: Named,
        claim: Value,
    },
    Like {
        column: Named,
        pattern: Value,
        ignore_case: bool,
    },
    Is {
        column: Named,
        is: Is,
    },
}

/// A part of `order=`; what was not said is as in Postgres.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OrderTerm {
    pub column: Named,
    pub dir: Direction,
    pub nulls: Nulls,
}

/// Words that are not columns on the left of a `=`, and mean nothing here.
const RESERVED: [&str; 4] = ["offset", "not", "columns", "on_conflict"];

impl ChannelRequest {
    /// Reads a channel text.
    ///
    /// # Errors
    /// `unknown_publication` for a text that cannot be a name, `bad_query` (with `at`) for the rest.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let (name, query) = text.split_once('?').unwrap_or((text, ""));
        let may_stand = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.-".contains(&byte);
        if name.is_empty() || name.len() > 63 || !name.bytes().all(may_stand) {
            return Err(unknown_publication(name));
        }
        let mut request =
            Self { publication: name.into(), filters: Vec::new(), select: None, order: Vec::new(), limit: None };
        let mut reader = Reader { request: &mut request, conditions: 0, literals: 0, is_policy: false };
        reader.read(query, name.len() + 1)?;
        Ok(request)
    }

    /// Reads a policy: filters only, with claims in braces.
    ///
    /// # Errors
    /// `bad_query`, with the place in the policy.
    pub fn parse_policy(text: &str) -> Result<Vec<Condition>, Refusal> {
        let mut request =
            Self { publication: "".into(), filters: Vec::new(), select: None, order: Vec::new(), limit: None };
        let mut reader = Reader { request: &mut request, conditions: 0, literals: 0, is_policy: true };
        reader.read(text, 0)?;
        if request.filters.is_empty() {
            return Err(bad(0, "a policy has at least one filter"));
        }
        Ok(request.filters)
    }
}

struct Reader<'a> {
    request: &'a mut ChannelRequest,
    conditions: usize,
    literals: usize,
    is_policy: bool,
}

impl Reader<'_> {
    /// Reads what stands after the `?`, at the byte `at` of the text.
    fn read(&mut self, query: &str, mut at: usize) -> Result<(), Refusal> {
        if at + query.len() > TEXT_MAX {
            return Err(bad(TEXT_MAX, format!("a channel has at most {TEXT_MAX} bytes")));
        }
        for pair in query.split('&') {
            if !pair.is_empty() {
                self.pair(pair, at)?;
            }
            at += pair.len() + 1;
        }
        Ok(())
    }

    fn pair(&mut self, pair: &str, at: usize) -> Result<(), Refusal> {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(bad(at, format!("`{}` is not of the form column=op.value", shortened(pair))));
        };
        let value_at = at + key.len() + 1;
        let (key, value) = (Decoded::new(key, at)?, Decoded::new(value, value_at)?);
        let mut value = Cursor::new(&value, self.is_policy, self.conditions, self.literals);
        match key.text() {
            word @ ("select" | "order" | "limit") if self.is_policy => {
                return Err(bad(at, format!("a policy has no `{word}`")));
            }
            "select" if self.request.select.is_some() => return Err(bad(at, "`select` stands twice")),
            "select" => self.request.select = Some(value.names()?),
            "order" if !self.request.order.is_empty() => return Err(bad(at, "`order` stands twice")),
            "order" => self.request.order = value.order()?,
            "limit" if self.request.limit.is_some() => return Err(bad(at, "`limit` stands twice")),
            "limit" => self.request.limit = Some(value.limit()?),
            "and" => self.request.filters.push(Condition::All(value.conditions()?)),
            "or" => self.request.filters.push(Condition::Any(value.conditions()?)),
            "not.and" => self.request.filters.push(Condition::Not(Box::new(Condition::All(value.conditions()?)))),
            "not.or" => self.request.filters.push(Condition::Not(Box::new(Condition::Any(value.conditions()?)))),
            word if RESERVED.contains(&word) => {
                let message =
                    format!("`{word}` means nothing here; a column of that name is written and=({word}.eq.…)");
                return Err(bad(at, message));
            }
            _ => {
                let column = Cursor::new(&key, self.is_policy, 0, 0).whole_name()?;
                self.request.filters.push(value.condition_to_end(column)?);
            }
        }
        (self.conditions, self.literals) = value.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ErrorCode;

    /// A condition in a short form of its own.
    fn written(condition: &Condition) -> String {
        let list = |conditions: &[Condition]| conditions.iter().map(written).collect::<Vec<_>>().join(" ");
        match condition {
            Condition::All(all) => format!("all({})", list(all)),
            Condition::Any(any) => format!("any({})", list(any)),
            Condition::Not(not) => format!("!{}", written(not)),
            Condition::Compare { column, op, value } => format!("{}{op:?}[{}]", column.name, value.text),
            Condition::In { column, values } => {
                let values: Vec<&str> = values.iter().map(|value| &*value.text).collect();
                format!("{}In{values:?}", column.name)
            }
            Condition::InClaim { column, claim } => format!("{}In{}", column.name, claim.text),
            Condition::Like { column, pattern, ignore_case } => {
                format!("{}{}[{}]", column.name, if *ignore_case { "ILike" } else { "Like" }, pattern.text)
            }
            Condition::Is { column, is } => format!("{}Is{is:?}", column.name),
        }
    }

    fn read(text: &str) -> String {
        let request = ChannelRequest::parse(text).unwrap_or_else(|refusal| panic!("{text}: {refusal:?}"));
        request.filters.iter().map(written).collect::<Vec<_>>().join(" ")
    }

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
    fn conditions_are_read_as_they_are_meant() {
        for (query, expected) in [
            ("a=eq.1&b=neq.2&c=gt.3&d=gte.4&e=lt.5&f=lte.6", "aEq[1] bNeq[2] cGt[3] dGte[4] eLt[5] fLte[6]"),
            ("status=eq.open&na%6De=eq.a+b%26%22c&&id=eq.%227%22", "statusEq[open] nameEq[a b&\"c] idEq[7]"),
            ("a=eq.", "aEq[]"),
            ("a=eq.x.y:z,(1)", "aEq[x.y:z,(1)]"),
            (r#"a=eq."q\"\\.,()""#, r#"aEq[q"\.,()]"#),
            ("a=not.eq.1&a=not.is.null", "!aEq[1] !aIsNull"),
            ("a=is.true&a=is.false&a=is.unknown", "aIsTrue aIsFalse aIsUnknown"),
            (r#"a=in.(1,b c,"d,\"e",f.g)"#, r#"aIn["1", "b c", "d,\"e", "f.g"]"#),
            (r#"a=not.in.("")"#, r#"!aIn[""]"#),
            ("a=like.x*&b=not.ilike.*y", "aLike[x*] !bILike[*y]"),
            ("or=(a.eq.1,b.not.in.(2,3))", "any(aEq[1] !bIn[\"2\", \"3\"])"),
            ("and=(a.eq.1,or(b.eq.2,not.and(c.eq.3,d.is.null)))", "all(aEq[1] any(bEq[2] !all(cEq[3] dIsNull)))"),
            ("not.or=(a.eq.1.5,b.eq.12:30)", "!any(aEq[1.5] bEq[12:30])"),
            ("not.and=(a.eq.,b.eq.\"\")", "!all(aEq[] bEq[])"),
            (r#"and=("odd.\"name".eq."a,b)",or.eq.1,not.is.null)"#, r#"all(odd."nameEq[a,b)] orEq[1] notIsNull)"#),
            ("and=(limit.eq.5,select.not.eq.6,not.not.eq.7)", "all(limitEq[5] !selectEq[6] !notEq[7])"),
            (r#""limit"=eq.5&a.b=eq.1"#, "limitEq[5] a.bEq[1]"),
            ("a=eq.{x}", "aEq[{x}]"),
        ] {
            assert_eq!(read(&format!("o?{query}")), expected, "{query}");
        }
    }

    #[test]
    fn columns_order_and_limit_are_read() {
        let request = ChannelRequest::parse(
            "o?select=id,\"a,b\",c+d&order=a,b.desc,c.nullsfirst,\"d.desc\".asc.nullslast&limit=50",
        )
        .expect("read");
        let names: Vec<(&str, usize)> = request.select.iter().flatten().map(|named| (&*named.name, named.at)).collect();
        assert_eq!(names, [("id", 9), ("a,b", 12), ("c d", 18)]);
        let order: Vec<(&str, Direction, Nulls)> =
            request.order.iter().map(|term| (&*term.column.name, term.dir, term.nulls)).collect();
        assert_eq!(
            order,
            [
                ("a", Direction::Asc, Nulls::Last),
                ("b", Direction::Desc, Nulls::First),
                ("c", Direction::Asc, Nulls::First),
                ("d.desc", Direction::Asc, Nulls::Last),
            ]
        );
        assert_eq!(request.limit, Some(50));
    }

    #[test]
    fn what_cannot_be_read_is_refused_where_reading_stopped() {
        for (query, at) in [
            ("a", 2),
            ("a=1", 4),
            ("a=foo.1", 4),
            ("a=eq", 4),
            ("a=EQ.1", 4),
            ("a=not.not.eq.1", 8),
            ("=eq.1", 2),
            ("a=eq.%ff", 7),
            ("a=eq.x%00", 8),
            ("a=eq.\"x", 7),
            ("a=eq.\"x\"y", 10),
            ("%61%62=eq.%22x", 12),
            ("a=is.null.x", 7),
            ("a=is.NULL", 7),
            ("a=is.not_null", 7),
            ("a=in.1", 7),
            ("a=in.()", 8),
            ("a=in.(1,)", 10),
            ("a=in.(1", 9),
            ("a=in.(1)x", 10),
            ("a=in.(a\"b)", 9),
            ("a=in.((1))", 8),
            ("and=a.eq.1", 6),
            ("and=()", 7),
            ("and=(a)", 8),
            ("and=(a.eq.1", 13),
            ("and=(a.eq.1))", 14),
            ("and=(a.eq.1,)", 14),
            ("and=(a.eq.f(x))", 13),
            ("or=(a.eq.1,and())", 17),
            ("not=eq.1", 2),
            ("offset=5", 2),
            ("columns=a", 2),
            ("on_conflict=a", 2),
            ("select=", 9),
            ("select=*", 9),
            ("select=a,,b", 11),
            ("select=a:b", 10),
            ("select=a(b)", 10),
            ("select=a&select=b", 11),
            ("order=", 8),
            ("order=a.up", 10),
            ("order=a.nullsfirst.desc", 21),
            ("order=a&order=b", 10),
            ("limit=0", 8),
            ("limit=-1", 8),
            ("limit=+5", 8),
            ("limit=5x", 9),
            ("limit=4294967296", 8),
            ("limit=5&limit=5", 10),
        ] {
            let refusal = ChannelRequest::parse(&format!("o?{query}")).expect_err(query);
            assert_eq!((refusal.code, refusal.at), (ErrorCode::BadQuery, Some(at)), "{query}: {}", refusal.message);
        }
    }

    #[test]
    fn what_is_too_deep_or_too_long_is_refused_by_its_limit() {
        let deep = |depth: usize| format!("o?and={}a.eq.1{}", "(and".repeat(depth - 1) + "(", ")".repeat(depth));
        assert!(ChannelRequest::parse(&deep(DEPTH_MAX)).is_ok());
        let conditions = |count: usize| format!("o?or=({})", vec!["a.eq.1"; count].join(","));
        assert!(ChannelRequest::parse(&conditions(CONDITIONS_MAX)).is_ok());
        let values = |count: usize| format!("o?a=in.({})", vec!["1"; count].join(","));
        assert!(ChannelRequest::parse(&values(LITERALS_MAX)).is_ok());
        for (text, limit) in [
            (deep(DEPTH_MAX + 1), "32"),
            (deep(10_000), "32"),
            (conditions(CONDITIONS_MAX + 1), "256"),
            (vec!["a=eq.1"; CONDITIONS_MAX + 1].join("&"), "256"),
            (values(LITERALS_MAX + 1), "5000"),
            (format!("o?a=eq.{}", "x".repeat(1 << 20)), "65536"),
            (format!("o?{}", "(".repeat(TEXT_MAX)), "65536"),
        ] {
            let text = if text.starts_with("o?") { text } else { format!("o?{text}") };
            let refusal = ChannelRequest::parse(&text).expect_err("too much");
            assert_eq!(refusal.code, ErrorCode::BadQuery);
            assert!(refusal.message.contains(limit) && refusal.at.is_some(), "{refusal:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_sent_is_read_or_refused_by_its_place(
            query in r#"((and|or|not|a|é|%2[0-9a-f]|%|eq|in|is|select|order|limit)?[.,:()"&=+\\]?){0,40}"#,
        ) {
            let text = format!("o?{query}");
            if let Err(refusal) = ChannelRequest::parse(&text) {
                proptest::prop_assert!(refusal.at.is_some_and(|at| at <= text.len()), "{refusal:?}");
            }
            let _ = ChannelRequest::parse_policy(&query);
        }
    }

    #[test]
    fn a_policy_has_filters_only() {
        let policy = |text: &str| ChannelRequest::parse_policy(text);
        let read: Vec<String> = policy("a=eq.{x.y}&b=in.{list}&or=(c.in.({p},q),d.not.in.{l})")
            .expect("a policy")
            .iter()
            .map(written)
            .collect();
        assert_eq!(read, ["aEq[{x.y}]", "bIn{list}", "any(cIn[\"{p}\", \"q\"] !dIn{l})"]);
        for (text, at) in [("", 0), ("&", 0), ("a=eq.1&select=a", 7), ("order=a", 0), ("limit=1", 0), ("a=in.x", 5)] {
            assert_eq!(policy(text).expect_err(text).at, Some(at), "{text}");
        }
    }
}
