//! What a consumer settles an event by.

use std::fmt;
use std::str::FromStr;

use meridian_clock::OrderKey;

/// What a delivery is settled by: `order key@life.number`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeliveryId {
    /// The event's place.
    pub(super) key: OrderKey,
    /// Which life of the group gave it out.
    pub(super) life: u32,
    /// Which of that life's deliveries it is.
    pub(super) number: u64,
}

impl fmt::Display for DeliveryId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}@{:08x}.{}", self.key, self.life, self.number)
    }
}

impl FromStr for DeliveryId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let parse = || {
            let (key, rest) = text.split_once('@')?;
            let (life, number) = rest.split_once('.')?;
            let id = Self {
                key: key.parse().ok()?,
                life: u32::from_str_radix(life, 16).ok()?,
                number: number.parse().ok()?,
            };
            (id.to_string() == text).then_some(id)
        };
        parse().ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_has_one_spelling() {
        let id = DeliveryId {
            key: OrderKey::ZERO,
            life: 0xab,
            number: 7,
        };
        let text = id.to_string();
        assert_eq!(text.parse(), Ok(id));
        for bad in [
            "",
            "@",
            "0.0.0.0@ab.7",
            "0.0.0.0@000000ab.07",
            "0.0.0.0@000000ab",
        ] {
            assert_eq!(bad.parse::<DeliveryId>(), Err(()), "{bad}");
        }
    }
}
