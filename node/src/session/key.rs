//! The file that holds the federation's key for session tokens.

use data_encoding::HEXLOWER_PERMISSIVE;

use crate::seams::Random;

/// A new key, as a file holds it.
pub fn new_key(random: &dyn Random) -> String {
    let mut key = [0; 32];
    random.fill(&mut key);
    HEXLOWER_PERMISSIVE.encode(&key) + "\n"
}

/// The key in a file's `text`; `None` when it is not 64 hexadecimal digits.
pub fn parse_key(text: &str) -> Option<[u8; 32]> {
    let bytes = HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).ok()?;
    bytes.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seams::SystemRandom;

    #[test]
    fn a_key_is_read_as_it_was_written_and_nothing_else_is_one() {
        let text = new_key(&SystemRandom);
        assert!(parse_key(&text).is_some());
        assert_eq!(parse_key(&text), parse_key(&text.to_uppercase()));
        for bad in ["", "00", &text[1..], &format!("{text}00"), &"g".repeat(64)] {
            assert_eq!(parse_key(bad), None, "{bad:?}");
        }
    }
}
