//! Whether two jsonb values are equal, from the texts that Postgres wrote of them.
//!
//! Those texts are alike already: keys sorted and each once, strings escaped in one way. What remains are numbers, which
//! keep their scale (1.0 = 1), and spaces. No recursion: a value may be nested as deeply as Postgres allows.

use super::decimal::Decimal;

pub(super) fn are_equal(a: &str, b: &str) -> bool {
    let (mut a, mut b) = (a, b);
    loop {
        match (token(&mut a), token(&mut b)) {
            (None, None) => return true,
            (Some(a), Some(b)) if a == b => {}
            (Some(a), Some(b)) => match (Decimal::read(a), Decimal::read(b)) {
                (Some(a), Some(b)) if a.compare(&b).is_eq() => {}
                _ => return false,
            },
            _ => return false,
        }
    }
}

/// Takes the next string, number, word or mark.
fn token<'a>(rest: &mut &'a str) -> Option<&'a str> {
    let text = rest.trim_start_matches([' ', '\n', '\r', '\t']);
    let bytes = text.as_bytes();
    let end = match bytes.first()? {
        b'"' => {
            let mut at = 1;
            while at < bytes.len() && bytes[at] != b'"' {
                at += if bytes[at] == b'\\' { 2 } else { 1 };
            }
            (at + 1).min(bytes.len())
        }
        b'{' | b'}' | b'[' | b']' | b',' | b':' => 1,
        _ => text.find(|c: char| " \n\r\t{}[],:\"".contains(c)).unwrap_or(text.len()),
    };
    let (token, after) = text.split_at(end);
    *rest = after;
    Some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_equal_by_value_and_all_else_by_text() {
        for (a, b, equal) in [
            ("1", "1.00", true),
            ("[1, 2.50]", "[1.0,2.5]", true),
            (r#"{"a": "x\"] 1.0", "b": -0.0}"#, r#"{"a":"x\"] 1.0","b":0}"#, true),
            (r#""1.0""#, r#""1""#, false),
            ("[1]", "1", false),
            ("[]", "{}", false),
            ("[1,2]", "[1]", false),
            ("true", "false", false),
            ("null", "null", true),
            (r#"{"a": 1}"#, r#"{"b": 1}"#, false),
            (r#""\\""#, r#""\\""#, true),
        ] {
            assert_eq!(are_equal(a, b), equal, "{a} {b}");
        }
        let deep = |number: &str| format!("{}{number}{}", "[".repeat(50_000), "]".repeat(50_000));
        assert!(are_equal(&deep("1"), &deep("1.0")) && !are_equal(&deep("1"), &deep("2")));
    }
}
