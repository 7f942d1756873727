//! Values as Postgres compares them, read from their JSON texts on the wire.
//!
//! One definition for filters, for orders and for the index of channels: [`ValueType`] says how the values of a column
//! compare, [`Comparable`] is a value ready to be compared. Nothing is copied where the text can be borrowed. A type that
//! is not listed here cannot be compared, and whoever asks for it is refused.
//!
//! Texts compare by their bytes, as with `collate "C"`. How the texts look is decided by the settings of our sessions
//! (`capture/session.rs`): UTC, ISO dates, ISO 8601 intervals, hex bytea.

use std::borrow::Cow;
use std::cmp::Ordering;

use crate::publication::{Column, Kind};

mod decimal;
mod json;
mod time;

pub use decimal::Decimal;

/// A value of more bytes is not sent (DESIGN §6), and so it matches no range, no pattern, and sorts as null: in Postgres too,
/// since the SQL we write says so. `migrations/0006_values.sql` has the same number.
pub const LARGE_BYTES: usize = 1 << 20;

/// How the values of a column compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ValueType {
    Bool,
    /// `int2`, `int4`, `int8`, `oid`.
    Whole,
    Numeric,
    Float4,
    Float8,
    /// `text`, `varchar`, `name`.
    Text,
    /// `bpchar`: trailing spaces do not count.
    Padded,
    Uuid,
    Date,
    /// `timestamp`, `timestamptz`.
    Moment,
    Time,
    Timetz,
    Interval,
    Bytea,
    /// Equal or not; the order of its labels is not known here.
    Enum,
    /// Equal or not.
    Jsonb,
}

/// A value that can be compared with others of its type.
#[derive(Clone, Debug)]
pub enum Comparable<'a> {
    Whole(i128),
    Double(f64),
    Decimal(Decimal<'a>),
    Text(Cow<'a, str>),
    Json(Cow<'a, str>),
}

impl ValueType {
    /// `None`: its values cannot be compared here.
    pub fn of(column: &Column) -> Option<Self> {
        match column.kind {
            Kind::Enum => return Some(Self::Enum),
            Kind::Other => return None,
            Kind::Builtin => {}
        }
        Some(match &*column.type_name {
            "bool" => Self::Bool,
            "int2" | "int4" | "int8" | "oid" => Self::Whole,
            "numeric" => Self::Numeric,
            "float4" => Self::Float4,
            "float8" => Self::Float8,
            "text" | "varchar" | "name" => Self::Text,
            "bpchar" => Self::Padded,
            "uuid" => Self::Uuid,
            "date" => Self::Date,
            "timestamp" | "timestamptz" => Self::Moment,
            "time" => Self::Time,
            "timetz" => Self::Timetz,
            "interval" => Self::Interval,
            "bytea" => Self::Bytea,
            "jsonb" => Self::Jsonb,
            _ => return None,
        })
    }

    /// Whether values are less or greater, and not only equal or not.
    pub fn is_ordered(self) -> bool {
        !matches!(self, Self::Enum | Self::Jsonb)
    }

    /// Whether values match patterns.
    pub fn is_text(self) -> bool {
        matches!(self, Self::Text | Self::Padded)
    }

    /// Whether values are equal exactly if their texts on the wire are. Not so for numbers with fractions (1.0 and 1.00),
    /// padded texts, intervals (P1M and P30D).
    pub fn is_equal_as_text(self) -> bool {
        match self {
            Self::Bool | Self::Whole | Self::Text | Self::Uuid | Self::Date => true,
            Self::Moment | Self::Time | Self::Timetz | Self::Bytea | Self::Enum => true,
            Self::Numeric | Self::Float4 | Self::Float8 | Self::Padded | Self::Interval | Self::Jsonb => false,
        }
    }

    /// Whether a value may be longer than [`LARGE_BYTES`], so that rows have null instead.
    pub fn may_be_large(self) -> bool {
        matches!(self, Self::Text | Self::Padded | Self::Bytea | Self::Jsonb)
    }

    /// Whether a value's text is longer than [`LARGE_BYTES`], as Postgres measures it.
    pub fn is_large(self, json: &str) -> bool {
        if !self.may_be_large() || json.len() <= LARGE_BYTES {
            return false;
        }
        match self {
            Self::Bytea => text(json).len().saturating_sub(2) / 2 > LARGE_BYTES,
            Self::Jsonb => json.len() > LARGE_BYTES,
            _ => text(json).len() > LARGE_BYTES,
        }
    }

    /// Reads a value; `None`: null, or no text of this type.
    pub fn read(self, json: &str) -> Option<Comparable<'_>> {
        if json == "null" {
            return None;
        }
        Some(match self {
            Self::Bool => Comparable::Whole(i128::from(json == "true")),
            Self::Whole => Comparable::Whole(text(json).parse().ok()?),
            Self::Numeric => Comparable::Decimal(Decimal::read(unquoted(json)?)?),
            // The shortest text of a float4 is one only among float4s.
            Self::Float4 => Comparable::Double(text(json).parse::<f32>().ok()?.into()),
            Self::Float8 => Comparable::Double(text(json).parse().ok()?),
            Self::Text | Self::Uuid | Self::Bytea | Self::Enum => Comparable::Text(text(json)),
            Self::Padded => Comparable::Text(match text(json) {
                Cow::Borrowed(text) => Cow::Borrowed(text.trim_end_matches(' ')),
                Cow::Owned(text) => Cow::Owned(text.trim_end_matches(' ').to_owned()),
            }),
            Self::Date | Self::Moment => Comparable::Whole(time::moment(unquoted(json)?)?),
            Self::Time => Comparable::Whole(time::of_day(unquoted(json)?)?),
            Self::Timetz => Comparable::Whole(time::of_day_with_zone(unquoted(json)?)?),
            Self::Interval => Comparable::Whole(time::interval(unquoted(json)?)?),
            Self::Jsonb => Comparable::Json(Cow::Borrowed(json)),
        })
    }

    /// The JSON text that stands for all that are equal to this one, as far as that is cheap to know.
    pub fn canonical(self, json: &str) -> Cow<'_, str> {
        match self {
            Self::Numeric => match unquoted(json).and_then(Decimal::read) {
                Some(decimal) => Cow::Owned(format!("\"{decimal}\"")),
                None => Cow::Borrowed(json),
            },
            Self::Float4 | Self::Float8 if json == "-0" => Cow::Borrowed("0"),
            // A space is never written as an escape.
            Self::Padded => match json.strip_suffix('"') {
                Some(open) if open.len() > 1 => Cow::Owned(format!("{}\"", open.trim_end_matches(' '))),
                _ => Cow::Borrowed(json),
            },
            _ => Cow::Borrowed(json),
        }
    }

    /// The text from which Postgres casts a value.
    pub fn literal(self, json: &str) -> Cow<'_, str> {
        if self == Self::Jsonb { Cow::Borrowed(json) } else { text(json) }
    }
}

impl<'a> Comparable<'a> {
    /// The order of two values of one type, as in Postgres: NaN is above all other numbers, and equal to itself. That of
    /// jsonb values which are not equal means nothing.
    pub fn compare(&self, other: &Comparable<'_>) -> Ordering {
        match (self, other) {
            (Self::Whole(a), Comparable::Whole(b)) => a.cmp(b),
            (Self::Double(a), Comparable::Double(b)) => a.partial_cmp(b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan())),
            (Self::Decimal(a), Comparable::Decimal(b)) => a.compare(b),
            (Self::Text(a), Comparable::Text(b)) => a.as_bytes().cmp(b.as_bytes()),
            (Self::Json(a), Comparable::Json(b)) if json::are_equal(a, b) => Ordering::Equal,
            (Self::Json(a), Comparable::Json(b)) => a.cmp(b),
            (a, b) => a.rank().cmp(&b.rank()),
        }
    }

    /// The value with a text of its own.
    pub fn into_owned(self) -> Comparable<'static> {
        match self {
            Self::Whole(whole) => Comparable::Whole(whole),
            Self::Double(double) => Comparable::Double(double),
            Self::Decimal(decimal) => Comparable::Decimal(decimal.into_owned()),
            Self::Text(text) => Comparable::Text(Cow::Owned(text.into_owned())),
            Self::Json(json) => Comparable::Json(Cow::Owned(json.into_owned())),
        }
    }

    /// Values of different types never meet; if they did, they would still have one order.
    fn rank(&self) -> u8 {
        match self {
            Self::Whole(_) => 0,
            Self::Double(_) => 1,
            Self::Decimal(_) => 2,
            Self::Text(_) => 3,
            Self::Json(_) => 4,
        }
    }
}

/// The text that a JSON value stands for: strings without their quotes, everything else as it is.
pub fn text(json: &str) -> Cow<'_, str> {
    match unquoted(json) {
        Some(inner) => Cow::Borrowed(inner),
        None => serde_json::from_str::<String>(json).map_or(Cow::Borrowed(json), Cow::Owned),
    }
}

/// The inside of a JSON string without escapes, or what is not a string; `None`: a string with escapes.
fn unquoted(json: &str) -> Option<&str> {
    let Some(inner) = json.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else { return Some(json) };
    (!inner.contains('\\')).then_some(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that values stand in ascending order, and are equal where they stand in one group.
    fn ascending(type_name: &str, groups: &[&[&str]]) {
        let kind = ValueType::of(&Column::new("a", type_name)).expect("a type that compares");
        let all: Vec<(usize, &str)> =
            groups.iter().enumerate().flat_map(|(place, group)| group.iter().map(move |json| (place, *json))).collect();
        for (place, json) in &all {
            for (other_place, other) in &all {
                let read = |json| kind.read(json).unwrap_or_else(|| panic!("{type_name} {json}"));
                assert_eq!(read(json).compare(&read(other)), place.cmp(other_place), "{type_name}: {json} and {other}");
            }
        }
    }

    #[test]
    fn values_compare_as_in_postgres() {
        ascending("bool", &[&["false"], &["true"]]);
        ascending("int8", &[&[r#""-9223372036854775808""#], &[r#""-1""#], &[r#""10""#], &[r#""9007199254740993""#]]);
        ascending("oid", &[&[r#""7""#, "7"], &[r#""4294967295""#]]);
        ascending(
            "numeric",
            &[
                &[r#""-Infinity""#],
                &[r#""-10""#, r#""-10.00""#],
                &[r#""-9.99""#],
                &[r#""0""#, r#""0.000""#, r#""-0.0""#],
                &[r#""0.001""#],
                &[r#""0.1""#, r#""0.10""#],
                &[r#""99999999999999999999999999999999999999.1""#],
                &[r#""99999999999999999999999999999999999999.11""#],
                &[r#""Infinity""#],
                &[r#""NaN""#],
            ],
        );
        ascending("float8", &[&[r#""-Infinity""#], &["-0", "0"], &["5e-324"], &["1e+20"], &[r#""NaN""#]]);
        ascending("float4", &[&["1e-07"], &["0.1"], &["16777216"], &["1.6777218e+07"]]);
        ascending("text", &[&[r#""""#], &[r#""\u0001""#], &[r#""A""#], &[r#""A ""#], &[r#""a""#], &[r#""é""#]]);
        ascending("bpchar", &[&[r#""  ""#, r#""""#], &[r#""a\t""#, r#""a\t ""#], &[r#""ab""#, r#""ab   ""#]]);
        ascending("bytea", &[&[r#""\\x""#], &[r#""\\x00""#], &[r#""\\x00ff""#], &[r#""\\xa0""#], &[r#""\\xff""#]]);
        ascending("jsonb", &[&[r#"[1, {"a": "1.0"}]"#, r#"[1.00,{"a":"1.0"}]"#]]);
    }

    #[test]
    fn times_compare_as_in_postgres() {
        ascending(
            "date",
            &[
                &[r#""-infinity""#],
                &[r#""4713-01-01 BC""#],
                &[r#""0001-12-31 BC""#],
                &[r#""0001-01-01""#],
                &[r#""2020-02-29""#],
                &[r#""2020-03-01""#],
                &[r#""10000-01-01""#],
                &[r#""5874897-12-31""#],
                &[r#""infinity""#],
            ],
        );
        ascending(
            "timestamptz",
            &[
                &[r#""0044-03-15T01:02:03+00:00 BC""#],
                &[r#""2020-01-01T00:00:00+01:00""#, r#""2019-12-31T23:00:00+00:00""#],
                &[r#""2020-01-01T00:00:00+00:00""#],
                &[r#""2020-01-01T00:00:00.000001+00:00""#],
                &[r#""2020-01-01T00:00:00.1+00:00""#, r#""2020-01-01T00:00:00.100+00:00""#],
                &[r#""294276-12-31T23:59:59.999999+00:00""#],
            ],
        );
        ascending("time", &[&[r#""00:00:00""#], &[r#""12:34:56.7""#], &[r#""24:00:00""#]]);
        ascending(
            "timetz",
            &[&[r#""14:00:00+02""#], &[r#""12:00:00+00""#], &[r#""07:00:00-05""#], &[r#""12:00:01-05:30:15""#]],
        );
        ascending(
            "interval",
            &[
                &[r#""P-178000000Y""#],
                &[r#""PT-0.5S""#],
                &[r#""PT0S""#],
                &[r#""PT0.000001S""#],
                &[r#""P1D""#, r#""PT24H""#],
                &[r#""P1M""#, r#""P30D""#, r#""P1M1DT-24H""#],
                &[r#""P1Y2M-3DT-4H5M6.007S""#],
            ],
        );
    }

    #[test]
    fn equal_values_have_one_canonical_text_where_that_is_cheap() {
        let canonical = |type_name: &str, json: &str| {
            ValueType::of(&Column::new("a", type_name)).expect("a type").canonical(json).into_owned()
        };
        for (type_name, json, expected) in [
            ("numeric", r#""1.500""#, r#""1.5""#),
            ("numeric", r#""-100.00""#, r#""-100""#),
            ("numeric", r#""-0.0""#, r#""0""#),
            ("numeric", r#""NaN""#, r#""NaN""#),
            ("float8", "-0", "0"),
            ("bpchar", r#""ab  ""#, r#""ab""#),
            ("bpchar", r#""  ""#, r#""""#),
            ("text", r#""ab  ""#, r#""ab  ""#),
        ] {
            assert_eq!(canonical(type_name, json), expected, "{type_name} {json}");
        }
    }

    #[test]
    fn what_is_not_known_does_not_compare() {
        for type_name in ["int4[]", "json", "xml", "citext", "char", "point", "inet"] {
            assert_eq!(ValueType::of(&Column::new("a", type_name)), None, "{type_name}");
        }
        let of_a_user = Column { kind: Kind::Other, ..Column::new("a", "int4") };
        assert_eq!(ValueType::of(&of_a_user), None);
        assert!(ValueType::Date.read("\"someday\"").is_none() && ValueType::Date.read("null").is_none());
    }
}
