//! A JSON parser that rejects duplicate keys in an object.
//!
//! The standard does not define what a duplicate key means, so two consumers could read the same message differently.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Parses a JSON value.
///
/// # Errors
///
/// The input is not JSON in UTF-8, is nested deeper than 128 levels, or has a duplicate key; the error names the key.
pub fn parse(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = StrictVisitor.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

#[derive(Clone, Copy)]
struct StrictVisitor;

impl<'de> DeserializeSeed<'de> for StrictVisitor {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number is not finite"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            array.push(item);
        }
        Ok(array.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(self)?;
            if object.contains_key(&key) {
                let shown: String = key.escape_debug().take(60).collect();
                return Err(A::Error::custom(format_args!("duplicate key \"{shown}\"")));
            }
            object.insert(key, value);
        }
        Ok(object.into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse_error(text: &str) -> String {
        parse(text.as_bytes()).expect_err("the JSON is invalid").to_string()
    }

    #[test]
    fn repeated_key_is_rejected_by_name_at_any_depth() {
        assert!(parse_error(r#"{"a": 1, "a": 1}"#).starts_with("duplicate key \"a\""));
        assert!(parse_error(r#"[{"x": {"b\n": 1, "b\n": 2}}]"#).starts_with("duplicate key \"b\\n\""));
        assert!(parse(br#"[{"a": 1}, {"a": 1}]"#).is_ok());
    }

    #[test]
    fn invalid_json_is_rejected() {
        for text in ["", "{", "{} {}", "NaN", "[1e999]", "{\"a\": Infinity}", "\"\u{1}\""] {
            parse_error(text);
        }
        assert!(parse(b"\"\xff\"").is_err());
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(parse_error(&deep).contains("recursion limit exceeded"));
    }

    proptest! {
        #[test]
        fn json_without_repeated_keys_parses_like_serde_json(text in "[\\[\\]{}\",:0-9a-b.eE\\-ntrufals ]{0,40}") {
            if let Ok(value) = parse(text.as_bytes()) {
                prop_assert_eq!(Some(value), serde_json::from_str(&text).ok());
            }
        }

        #[test]
        fn numbers_keep_their_exact_value(number in any::<f64>().prop_filter("finite", |n| n.is_finite()), whole: i64) {
            prop_assert_eq!(parse(number.to_string().as_bytes()).ok(), serde_json::from_str(&number.to_string()).ok());
            prop_assert_eq!(parse(whole.to_string().as_bytes()).ok(), Some(Value::from(whole)));
        }
    }
}
