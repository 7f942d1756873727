//! Names, values and conditions of a channel text, read from left to right.
//!
//! A part of the text is decoded first, as a form's query string is, and remembers where each of its bytes came from: what
//! is refused is refused by its place in the text as it was sent. Recursion is bounded, and so is everything that is kept.

use super::request::{CONDITIONS_MAX, Condition, DEPTH_MAX, LITERALS_MAX, Named, OrderTerm, Value};
use super::{Comparison, Is, shortened};
use crate::protocol::{Direction, ErrorCode, Nulls, Refusal};

/// A part of a channel text, decoded.
pub(super) struct Decoded {
    text: String,
    /// For each byte of `text`, and for its end, where it stands in the channel text.
    places: Vec<u32>,
}

impl Decoded {
    /// Decodes what stands at the byte `at`.
    pub(super) fn new(raw: &str, at: usize) -> Result<Self, Refusal> {
        let mut bytes = Vec::with_capacity(raw.len());
        let mut places = Vec::with_capacity(raw.len() + 1);
        let mut place = 0;
        while let Some(&byte) = raw.as_bytes().get(place) {
            let escaped = raw.as_bytes().get(place + 1..place + 3).filter(|_| byte == b'%').and_then(hex);
            places.push((at + place) as u32);
            bytes.push(match byte {
                b'+' => b' ',
                byte => escaped.unwrap_or(byte),
            });
            place += if escaped.is_some() { 3 } else { 1 };
        }
        places.push((at + raw.len()) as u32);
        let text = String::from_utf8(bytes).map_err(|error| {
            let place = places[error.utf8_error().valid_up_to()] as usize;
            bad(place, "the text is not UTF-8")
        })?;
        match text.find('\0') {
            Some(zero) => Err(bad(places[zero] as usize, "a text in Postgres has no zero byte")),
            None => Ok(Self { text, places }),
        }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

/// Where reading stands.
pub(super) struct Cursor<'a> {
    decoded: &'a Decoded,
    at: usize,
    is_policy: bool,
    conditions: usize,
    literals: usize,
}

impl<'a> Cursor<'a> {
    /// The counts are those of the whole channel so far; [`Self::finish`] gives them back.
    pub(super) fn new(decoded: &'a Decoded, is_policy: bool, conditions: usize, literals: usize) -> Self {
        Self { decoded, at: 0, is_policy, conditions, literals }
    }

    /// Nothing may follow.
    pub(super) fn finish(self) -> Result<(usize, usize), Refusal> {
        if self.rest().is_empty() {
            return Ok((self.conditions, self.literals));
        }
        Err(self.stop(format!("nothing may follow here: `{}`", shortened(self.rest()))))
    }

    /// A name that is all there is: `a`, `a.b`, `"a"`.
    pub(super) fn whole_name(mut self) -> Result<Named, Refusal> {
        let at = self.place();
        let name = if self.rest().starts_with('"') {
            self.quoted()?
        } else {
            let name = self.rest().to_owned();
            self.at += name.len();
            name
        };
        self.named(at, name).and_then(|named| self.finish().map(|_| named))
    }

    /// `a,"b",c`.
    pub(super) fn names(&mut self) -> Result<Vec<Named>, Refusal> {
        let mut names = Vec::new();
        loop {
            if self.rest().starts_with('*') {
                return Err(self.stop("`*` is not a column; without `select` a channel has them all"));
            }
            names.push(self.name(",")?);
            if !self.takes(",") {
                return Ok(names);
            }
        }
    }

    /// `a.desc.nullslast,"b"`.
    pub(super) fn order(&mut self) -> Result<Vec<OrderTerm>, Refusal> {
        let mut order = Vec::new();
        loop {
            let column = self.name(",.")?;
            let dir = match self.word(&[".asc", ".desc"]) {
                Some(1) => Direction::Desc,
                _ => Direction::Asc,
            };
            let nulls = match (self.word(&[".nullsfirst", ".nullslast"]), dir) {
                (Some(0), _) | (None, Direction::Desc) => Nulls::First,
                _ => Nulls::Last,
            };
            if self.takes(".") {
                return Err(self.stop("here stands asc or desc, then nullsfirst or nullslast"));
            }
            order.push(OrderTerm { column, dir, nulls });
            if !self.takes(",") {
                return Ok(order);
            }
        }
    }

    pub(super) fn limit(&mut self) -> Result<u32, Refusal> {
        let digits = self.rest().bytes().take_while(u8::is_ascii_digit).count();
        match self.rest()[..digits].parse() {
            Ok(limit) if limit > 0 => {
                self.at += digits;
                Ok(limit)
            }
            _ => Err(self.stop(format!("a limit is a number from 1 to {}", u32::MAX))),
        }
    }

    /// `(a.eq.1,or(b.eq.2,c.is.null))`.
    pub(super) fn conditions(&mut self) -> Result<Vec<Condition>, Refusal> {
        self.list_of_conditions(1)
    }

    /// What stands behind `column=`, to the end of the text.
    pub(super) fn condition_to_end(&mut self, column: Named) -> Result<Condition, Refusal> {
        self.operation(column, |cursor| {
            let at = cursor.place();
            if cursor.rest().starts_with('"') {
                return Ok(Value { text: cursor.quoted()?.into(), at, is_quoted: true });
            }
            let text = cursor.rest();
            cursor.at += text.len();
            Ok(Value { text: text.into(), at, is_quoted: false })
        })
    }

    fn list_of_conditions(&mut self, depth: usize) -> Result<Vec<Condition>, Refusal> {
        if depth > DEPTH_MAX {
            return Err(self.stop(format!("conditions stand within each other at most {DEPTH_MAX} deep")));
        }
        self.expect("(")?;
        let mut conditions = Vec::new();
        loop {
            conditions.push(self.condition(depth)?);
            if !self.takes(",") {
                self.expect(")")?;
                return Ok(conditions);
            }
        }
    }

    fn condition(&mut self, depth: usize) -> Result<Condition, Refusal> {
        // `and.eq.1` is about a column.
        let group = self.word(&["and(", "or(", "not.and(", "not.or("]);
        if let Some(group) = group {
            self.at -= 1;
            let inner = self.list_of_conditions(depth + 1)?;
            return Ok(match group {
                0 => Condition::All(inner),
                1 => Condition::Any(inner),
                2 => Condition::Not(Box::new(Condition::All(inner))),
                _ => Condition::Not(Box::new(Condition::Any(inner))),
            });
        }
        let column = self.name(".")?;
        self.expect(".")?;
        self.operation(column, |cursor| {
            let at = cursor.place();
            cursor.token().map(|(text, is_quoted)| Value { text: text.into(), at, is_quoted })
        })
    }

    /// `eq.1`, `not.in.(1,2)`; `value` reads a single one.
    fn operation(
        &mut self,
        column: Named,
        value: impl FnOnce(&mut Self) -> Result<Value, Refusal>,
    ) -> Result<Condition, Refusal> {
        const OPERATORS: [&str; 10] = ["eq.", "neq.", "gt.", "gte.", "lt.", "lte.", "in.", "like.", "ilike.", "is."];
        self.conditions += 1;
        if self.conditions > CONDITIONS_MAX {
            return Err(self.stop(format!("a channel has at most {CONDITIONS_MAX} conditions")));
        }
        let is_negated = self.takes("not.");
        let Some(operator) = self.word(&OPERATORS) else {
            let found = self.rest().split(['.', ',', ')']).next().unwrap_or_default();
            return Err(self.stop(format!(
                "`{}` is not an operator: eq, neq, gt, gte, lt, lte, in, like, ilike, is, each with a dot behind it",
                shortened(found)
            )));
        };
        let condition = match OPERATORS[operator] {
            "in." if self.is_policy && self.rest().starts_with('{') => {
                Condition::InClaim { column, claim: value(self)? }
            }
            "in." => Condition::In { column, values: self.values()? },
            "is." => Condition::Is { column, is: self.is()? },
            "like." => Condition::Like { column, pattern: value(self)?, ignore_case: false },
            "ilike." => Condition::Like { column, pattern: value(self)?, ignore_case: true },
            word => {
                let op = match word {
                    "eq." => Comparison::Eq,
                    "neq." => Comparison::Neq,
                    "gt." => Comparison::Gt,
                    "gte." => Comparison::Gte,
                    "lt." => Comparison::Lt,
                    _ => Comparison::Lte,
                };
                Condition::Compare { column, op, value: value(self)? }
            }
        };
        Ok(if is_negated { Condition::Not(Box::new(condition)) } else { condition })
    }

    /// `(1,"a,b")`.
    fn values(&mut self) -> Result<Vec<Value>, Refusal> {
        self.expect("(")?;
        let mut values = Vec::new();
        loop {
            let at = self.place();
            let (text, is_quoted) = self.token()?;
            if text.is_empty() && !is_quoted {
                return Err(self.stop("here stands a value; an empty text is written \"\""));
            }
            self.literals += 1;
            if self.literals > LITERALS_MAX {
                return Err(self.stop(format!("a channel has at most {LITERALS_MAX} values")));
            }
            values.push(Value { text: text.into(), at, is_quoted });
            if !self.takes(",") {
                self.expect(")")?;
                return Ok(values);
            }
        }
    }

    fn is(&mut self) -> Result<Is, Refusal> {
        let word = self.rest().split([',', ')']).next().unwrap_or_default();
        let is = match word {
            "null" => Is::Null,
            "true" => Is::True,
            "false" => Is::False,
            "unknown" => Is::Unknown,
            _ => return Err(self.stop("here stands null, true, false or unknown")),
        };
        self.at += word.len();
        Ok(is)
    }

    /// A name, quoted if one of `, . : ( ) "` is in it; `ends` are those of them that may follow it.
    fn name(&mut self, ends: &str) -> Result<Named, Refusal> {
        let at = self.place();
        if self.rest().starts_with('"') {
            let name = self.quoted()?;
            return self.named(at, name);
        }
        let name = self.plain(",.:()\"");
        if let Some(next) = self.rest().chars().next()
            && !ends.contains(next)
        {
            return Err(self.stop(format!("`{next}` cannot stand here; a name with it is written in quotes")));
        }
        self.named(at, name)
    }

    fn named(&self, at: usize, name: String) -> Result<Named, Refusal> {
        if name.is_empty() {
            return Err(bad(at, "here stands the name of a column"));
        }
        Ok(Named { name: name.into(), at })
    }

    /// A value within parentheses, and whether it was quoted. Dots and colons in it need no quotes.
    fn token(&mut self) -> Result<(String, bool), Refusal> {
        if self.rest().starts_with('"') {
            return Ok((self.quoted()?, true));
        }
        let text = self.plain(",()\"");
        if self.rest().starts_with(['(', '"']) {
            return Err(self.stop("a value with `(`, `)`, `,` or `\"` in it is written in quotes"));
        }
        Ok((text, false))
    }

    /// What stands before the first of these characters.
    fn plain(&mut self, ends: &str) -> String {
        let rest = self.rest();
        let text = &rest[..rest.find(|c| ends.contains(c)).unwrap_or(rest.len())];
        self.at += text.len();
        text.to_owned()
    }

    /// A text in quotes, without them and without the `\` that protect `"` and `\`.
    fn quoted(&mut self) -> Result<String, Refusal> {
        let opening = self.place();
        let mut text = String::new();
        let mut characters = self.rest().char_indices().skip(1);
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.at += at + 1;
                    return Ok(text);
                }
                '\\' => text.extend(characters.next().map(|(_, protected)| protected)),
                other => text.push(other),
            }
        }
        Err(bad(opening, "a quote that is not closed"))
    }

    /// Takes one of these words, if one stands here, and says which.
    fn word(&mut self, words: &[&str]) -> Option<usize> {
        words.iter().position(|word| self.takes(word))
    }

    fn takes(&mut self, word: &str) -> bool {
        let is_there = self.rest().starts_with(word);
        if is_there {
            self.at += word.len();
        }
        is_there
    }

    fn expect(&mut self, word: &str) -> Result<(), Refusal> {
        if self.takes(word) { Ok(()) } else { Err(self.stop(format!("here stands `{word}`"))) }
    }

    fn rest(&self) -> &'a str {
        &self.decoded.text[self.at..]
    }

    fn place(&self) -> usize {
        self.decoded.places[self.at] as usize
    }

    fn stop(&self, message: impl Into<String>) -> Refusal {
        bad(self.place(), message)
    }
}

/// A refusal of a query, by the place in the channel text where reading stopped.
pub(super) fn bad(at: usize, message: impl Into<String>) -> Refusal {
    Refusal { at: Some(at), ..Refusal::new(ErrorCode::BadQuery, message) }
}

fn hex(digits: &[u8]) -> Option<u8> {
    digits.iter().try_fold(0_u8, |number, &digit| {
        let digit = char::from(digit).to_digit(16)?;
        Some(number << 4 | digit as u8)
    })
}
