//! Patterns of `like` and `ilike`, matched as Postgres does with `collate "C"`.
//!
//! `%` is any text, `_` any character, `\` takes the next character as it is. `ilike` folds the letters A to Z and no
//! others, which is what folding means in that collation. A pattern is cut at its `%`, and each piece is looked for from the
//! left once, so that matching takes time in proportion to the text.

use std::borrow::Cow;

/// A pattern, ready to match.
#[derive(Clone, Debug)]
pub struct Pattern {
    ignore_case: bool,
    /// What stands between the `%`; one piece is a pattern without any.
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, Default)]
struct Piece {
    parts: Vec<Part>,
    /// The piece as a text, if it has no `_`.
    plain: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Exactly(char),
    Any,
}

impl Pattern {
    /// A pattern in Postgres' syntax; `None`: it ends within an escape.
    pub fn new(pattern: &str, ignore_case: bool) -> Option<Self> {
        let mut pieces = vec![Piece::default()];
        let mut rest = pattern.chars();
        while let Some(character) = rest.next() {
            let part = match character {
                '%' => {
                    pieces.push(Piece::default());
                    continue;
                }
                '_' => Part::Any,
                '\\' => Part::Exactly(rest.next()?),
                other => Part::Exactly(other),
            };
            if let Some(piece) = pieces.last_mut() {
                piece.parts.push(match part {
                    Part::Exactly(character) if ignore_case => Part::Exactly(character.to_ascii_lowercase()),
                    part => part,
                });
            }
        }
        for piece in &mut pieces {
            piece.plain = piece
                .parts
                .iter()
                .map(|part| match part {
                    Part::Exactly(character) => Some(*character),
                    Part::Any => None,
                })
                .collect();
        }
        Some(Self { ignore_case, pieces })
    }

    pub fn matches(&self, text: &str) -> bool {
        let text = if self.ignore_case && text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(text.to_ascii_lowercase())
        } else {
            Cow::Borrowed(text)
        };
        let Some((first, others)) = self.pieces.split_first() else { return false };
        let Some(rest) = first.after_prefix(&text) else { return false };
        let Some((last, middle)) = others.split_last() else { return rest.is_empty() };
        let rest = middle.iter().try_fold(rest, |rest, piece| piece.after_first(rest));
        rest.is_some_and(|rest| last.is_suffix(rest))
    }
}

impl Piece {
    fn after_prefix<'a>(&self, text: &'a str) -> Option<&'a str> {
        if let Some(plain) = &self.plain {
            return text.strip_prefix(&**plain);
        }
        let mut rest = text.chars();
        let fits = self.parts.iter().all(|part| rest.next().is_some_and(|character| part.fits(character)));
        fits.then_some(rest.as_str())
    }

    fn after_first<'a>(&self, text: &'a str) -> Option<&'a str> {
        if let Some(plain) = &self.plain {
            return text.find(&**plain).map(|at| &text[at + plain.len()..]);
        }
        text.char_indices().find_map(|(at, _)| self.after_prefix(&text[at..]))
    }

    fn is_suffix(&self, text: &str) -> bool {
        if let Some(plain) = &self.plain {
            return text.ends_with(&**plain);
        }
        let mut rest = text.chars();
        self.parts.iter().rev().all(|part| rest.next_back().is_some_and(|character| part.fits(character)))
    }
}

impl Part {
    fn fits(self, character: char) -> bool {
        match self {
            Self::Exactly(wanted) => wanted == character,
            Self::Any => true,
        }
    }
}

/// A pattern of a channel text in Postgres' syntax, in which `*` is an ordinary character: `*` becomes `%`, and what `\`
/// protects stays as it is.
pub fn translate(pattern: &str) -> String {
    let mut translated = String::with_capacity(pattern.len());
    let mut rest = pattern.chars();
    while let Some(character) = rest.next() {
        match character {
            // Each `%` after another adds nothing.
            '*' | '%' if translated.ends_with('%') && !translated.ends_with("\\%") => {}
            '*' | '%' => translated.push('%'),
            '\\' => match rest.next() {
                Some(protected @ ('%' | '_' | '\\')) => translated.extend(['\\', protected]),
                Some(other) => translated.push(other),
                None => translated.push('\\'),
            },
            other => translated.push(other),
        }
    }
    translated
}

/// A text as a pattern of a channel text that only it matches.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if "%_*\\".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        Pattern::new(&translate(pattern), false).expect("a pattern").matches(text)
    }

    #[test]
    fn patterns_match_as_in_postgres() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("*b*", "abc", true),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("*ab*ab", "abab", true),
            ("*ab*ab", "aab", false),
            ("_", "é", true),
            ("_*_", "é", false),
            ("*_b_*", "xabc", true),
            ("a\\*c", "a*c", true),
            ("a\\*c", "abc", false),
            ("a\\%\\*c", "a%*c", true),
            ("50\\%", "50%", true),
            ("50\\%", "50x", false),
            ("\\a", "a", true),
            ("\\\\", "\\", true),
            ("A", "a", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
        let folded = Pattern::new("%aÉ_", true).expect("a pattern");
        assert!(folded.matches("xAÉY") && !folded.matches("xAéY"));
        assert!(Pattern::new("a\\", false).is_none());
    }

    #[test]
    fn an_escaped_text_matches_itself_and_nothing_else() {
        for text in ["", "%", "_", "*", "\\", "a\\%b", "\\\\*", "é_", "a,\"b)"] {
            let pattern = escape(text);
            assert!(matches(&pattern, text), "{text}");
            for other in ["x", "%%", "\\*", "aXb", text.to_uppercase().as_str()] {
                assert_eq!(matches(&pattern, other), text == other, "{text} {other}");
            }
        }
        assert_eq!(translate("a**%b\\%*"), "a%b\\%%");
    }
}
