//! JSON values in one spelling, so that equal values are equal texts in every region.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A JSON value in its canonical spelling: no spaces, the keys of objects sorted, floats in their shortest form.
///
/// Two elements are the same when their texts are. So `{"a":1,"b":2}` is `{"b":2,"a":1}` and `1.50` is `1.5`, but `1`
/// and `1.0` are *different*: one is an integer and the other a float.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Element(Arc<str>);

impl Element {
    /// `value` in its canonical spelling.
    pub fn new(mut value: Value) -> Self {
        // Another crate of the same binary may have asked for maps that keep the order of arrival.
        value.sort_all_objects();
        Self(value.to_string().into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The value.
    pub fn to_value(&self) -> Value {
        serde_json::from_str(&self.0).expect("it was made from a value")
    }
}

impl fmt::Debug for Element {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl From<Element> for String {
    fn from(element: Element) -> Self {
        element.0.as_ref().to_owned()
    }
}

impl TryFrom<String> for Element {
    type Error = ElementError;

    fn try_from(text: String) -> Result<Self, ElementError> {
        let value: Value = serde_json::from_str(&text).map_err(|_| ElementError)?;
        let element = Self::new(value);
        match element.as_str() == text {
            true => Ok(element),
            false => Err(ElementError),
        }
    }
}

/// A stored element is not spelled canonically, so it was not stored by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an element is not canonical JSON")]
pub struct ElementError;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn spelling_does_not_matter_but_an_integer_is_no_float() {
        let element = |text: &str| Element::new(serde_json::from_str(text).expect("JSON"));
        let same = element(r#"{"b":[1, {"d":2,"c":3}],"a":"\u0041"}"#);
        assert_eq!(same, element(r#"{"a":"A","b":[1,{"c":3,"d":2}]}"#));
        assert_eq!(element("1.50"), element("1.5"));
        assert_ne!(element("1"), element("1.0"));
        assert_eq!(
            same.to_value(),
            json!({"a": "A", "b": [1, {"c": 3, "d": 2}]})
        );
        let loose = Element::try_from(r#"{"b":1,"a":2}"#.to_owned());
        assert_eq!(loose, Err(ElementError));
    }

    proptest! {
        #[test]
        fn floats_read_back_as_themselves(bits in any::<u64>()) {
            if let Some(number) = serde_json::Number::from_f64(f64::from_bits(bits)) {
                let element = Element::new(Value::Number(number));
                prop_assert_eq!(Element::try_from(String::from(element.clone())), Ok(element));
            }
        }
    }
}
