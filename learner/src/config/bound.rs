//! A bound that can be taken away: a number, or `"off"`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A bound such as a clip: a number in TOML, or the text `"off"`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    /// Not bounded: `"off"`.
    Off,
    /// Bounded by this number.
    At(f64),
}

impl Bound {
    /// The number, if there is one.
    pub fn number(self) -> Option<f64> {
        match self {
            Self::Off => None,
            Self::At(number) => Some(number),
        }
    }
}

impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Off => serializer.serialize_str("off"),
            Self::At(number) => serializer.serialize_f64(*number),
        }
    }
}

impl<'de> Deserialize<'de> for Bound {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BoundVisitor)
    }
}

impl JsonSchema for Bound {
    fn schema_name() -> Cow<'static, str> {
        "Bound".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "number" }, { "const": "off", "description": "Not bounded." }] })
    }
}

struct BoundVisitor;

impl Visitor<'_> for BoundVisitor {
    type Value = Bound;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a number or \"off\"")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Bound, E> {
        match text {
            "off" => Ok(Bound::Off),
            _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
        }
    }

    fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<Bound, E> {
        if number.is_nan() {
            return Err(E::custom("a bound must be a number or \"off\", not nan"));
        }
        Ok(if number == f64::INFINITY { Bound::Off } else { Bound::At(number) })
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<Bound, E> {
        Ok(Bound::At(number as f64))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Bound, E> {
        Ok(Bound::At(number as f64))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_str, to_string};

    use super::*;

    #[test]
    fn a_number_or_off() {
        assert_eq!(from_str::<Bound>("0.2").unwrap(), Bound::At(0.2));
        assert_eq!(from_str::<Bound>("1").unwrap(), Bound::At(1.0));
        assert_eq!(from_str::<Bound>("\"off\"").unwrap(), Bound::Off);
        for bound in [Bound::Off, Bound::At(0.25)] {
            assert_eq!(from_str::<Bound>(&to_string(&bound).unwrap()).unwrap(), bound);
        }
        let error = from_str::<Bound>("\"none\"").unwrap_err().to_string();
        assert!(error.contains("expected a number or \"off\""), "{error}");
        assert!(from_str::<Bound>("true").is_err());
    }
}
