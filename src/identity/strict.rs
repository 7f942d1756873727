//! JSON that means the same to everybody who reads it: for the signed parts of a token.
//!
//! Of a name that stands twice in an object, one reader takes the first value and another the last; of a number that no
//! double holds, one takes its digits and another what is nearest. Both are refused, at every depth: an issuer that
//! checked one value must not have signed another.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Beyond this not every whole number is a double.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// Reads an object.
///
/// # Errors
/// It is no JSON object, or an ambiguous one. The error may repeat a part of the text: it is not for logs.
pub fn object(bytes: &[u8]) -> Result<Map<String, Value>, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict.deserialize(&mut deserializer)?;
    deserializer.end()?;
    match value {
        Value::Object(object) => Ok(object),
        _ => Err(serde_json::Error::custom("not an object")),
    }
}

struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).filter(|_| value.abs() <= EXACT_MAX);
        number.map(Value::Number).ok_or_else(|| E::custom("a number that is not exact"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(Strict)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(name) = object.next_key::<String>()? {
            if values.insert(name, object.next_value_seed(Strict)?).is_some() {
                return Err(A::Error::custom("a name stands twice"));
            }
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_unambiguous_is_read_as_it_stands() {
        let text = r#"{"a":1,"b":[-2,0.5,null,true,"x\u00e9"],"c":{"a":18446744073709551615},"d":1e3}"#;
        let read = object(text.as_bytes()).expect("JSON");
        assert_eq!(Value::Object(read), json!({"a":1,"b":[-2,0.5,null,true,"xé"],"c":{"a":u64::MAX},"d":1000.0}));
    }

    #[test]
    fn what_two_readers_would_read_differently_is_refused() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"a":{"b":1,"b":2}}"#,
            r#"{"a":[{"b":1,"b":2}]}"#,
            r#"{"a":18446744073709551616}"#,
            r#"{"a":1e300}"#,
            r#"{"a":1e999}"#,
            r#"{"a":1} x"#,
            r#"{"a":1"#,
            "[]",
            "7",
            "",
        ] {
            assert!(object(text.as_bytes()).is_err(), "{text}");
        }
        assert!(object(format!("{}{}", "[".repeat(10_000), "]".repeat(10_000)).as_bytes()).is_err());
    }
}
