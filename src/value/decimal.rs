//! A numeric of any size: its digits are compared where they stand, and never become a machine number.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

/// A numeric, read from Postgres' text.
#[derive(Clone, Debug)]
pub enum Decimal<'a> {
    NegativeInfinity,
    Finite(Digits<'a>),
    Infinity,
    NaN,
}

/// Sign and digits; zero is not negative.
#[derive(Clone, Debug)]
pub struct Digits<'a> {
    is_negative: bool,
    /// Without leading zeros.
    whole: Cow<'a, str>,
    /// Without trailing zeros.
    fraction: Cow<'a, str>,
}

impl<'a> Decimal<'a> {
    /// `None`: not a numeric as Postgres writes it, which has no exponent.
    pub fn read(text: &'a str) -> Option<Self> {
        match text {
            "NaN" => return Some(Self::NaN),
            "Infinity" => return Some(Self::Infinity),
            "-Infinity" => return Some(Self::NegativeInfinity),
            _ => {}
        }
        let (is_negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        let is_zero = whole.is_empty() && fraction.is_empty();
        Some(Self::Finite(Digits {
            is_negative: is_negative && !is_zero,
            whole: Cow::Borrowed(whole),
            fraction: Cow::Borrowed(fraction),
        }))
    }

    pub fn compare(&self, other: &Decimal<'_>) -> Ordering {
        match (self, other) {
            (Self::Finite(a), Decimal::Finite(b)) => a.compare(b),
            (a, b) => a.rank().cmp(&b.rank()),
        }
    }

    pub fn into_owned(self) -> Decimal<'static> {
        match self {
            Self::NegativeInfinity => Decimal::NegativeInfinity,
            Self::Infinity => Decimal::Infinity,
            Self::NaN => Decimal::NaN,
            Self::Finite(Digits { is_negative, whole, fraction }) => Decimal::Finite(Digits {
                is_negative,
                whole: Cow::Owned(whole.into_owned()),
                fraction: Cow::Owned(fraction.into_owned()),
            }),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::NegativeInfinity => 0,
            Self::Finite(_) => 1,
            Self::Infinity => 2,
            Self::NaN => 3,
        }
    }
}

impl Digits<'_> {
    fn compare(&self, other: &Digits<'_>) -> Ordering {
        match (self.is_negative, other.is_negative) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => self.compare_size(other),
            (true, true) => other.compare_size(self),
        }
    }

    fn compare_size(&self, other: &Digits<'_>) -> Ordering {
        let whole = self.whole.len().cmp(&other.whole.len()).then_with(|| self.whole.cmp(&other.whole));
        whole.then_with(|| self.fraction.cmp(&other.fraction))
    }
}

/// The shortest text of the value.
impl fmt::Display for Decimal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Digits { is_negative, whole, fraction } = match self {
            Self::NegativeInfinity => return f.write_str("-Infinity"),
            Self::Infinity => return f.write_str("Infinity"),
            Self::NaN => return f.write_str("NaN"),
            Self::Finite(digits) => digits,
        };
        let sign = if *is_negative { "-" } else { "" };
        let whole = if whole.is_empty() { "0" } else { whole };
        let point = if fraction.is_empty() { "" } else { "." };
        write!(f, "{sign}{whole}{point}{fraction}")
    }
}
