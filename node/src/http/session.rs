//! The headers of a session: what the caller has seen, and how long it may be waited for.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::Door;
use super::problem::Problem;
use crate::session::{Seen, Shown, WAIT_MAX};

/// Carries a token, in requests and in answers.
pub(super) const SESSION_HEADER: HeaderName = HeaderName::from_static("meridian-session");
const WAIT_HEADER: HeaderName = HeaderName::from_static("meridian-wait-ms");
/// How long a region may take to catch up when nobody says.
const WAIT_DEFAULT: Duration = Duration::from_secs(2);

/// The header of an answer.
pub(super) type SessionHeader = [(HeaderName, HeaderValue); 1];

/// A caller's session; one that has seen nothing when it names none.
pub(super) struct Session {
    pub(super) seen: Seen,
    wait: Duration,
}

impl FromRequestParts<Door> for Session {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, door: &Door) -> Result<Self, Problem> {
        let tokens = tokens(&parts.headers)?;
        let seen = door.backend.seen(&tokens);
        Ok(Self {
            seen: seen.map_err(|error| Problem::of_read(&error))?,
            wait: wait(&parts.headers)?,
        })
    }
}

impl Session {
    /// Waits until reads of `shown` show what this session has seen.
    ///
    /// # Errors
    /// `stale` when that takes too long.
    pub(super) async fn catch_up(&self, door: &Door, shown: Shown<'_>) -> Result<(), Problem> {
        let caught_up = door.backend.catch_up(&self.seen, shown, self.wait).await;
        caught_up.map_err(|error| Problem::of_read(&error))
    }

    /// How long its caller waits until what was seen is shown.
    pub(super) fn wait(&self) -> Duration {
        self.wait
    }

    /// A token for what was seen so far.
    pub(super) fn token(&self, door: &Door) -> HeaderValue {
        let token = door.backend.token(&self.seen);
        HeaderValue::try_from(token.0).expect("a token is letters and digits")
    }

    /// The header for an answer that showed what was seen so far.
    pub(super) fn header(&self, door: &Door) -> SessionHeader {
        [(SESSION_HEADER, self.token(door))]
    }
}

/// The tokens of a request. Several headers of one name are one list with commas (RFC 9110).
fn tokens(headers: &HeaderMap) -> Result<String, Problem> {
    let mut tokens = Vec::new();
    for token in headers.get_all(SESSION_HEADER) {
        let token = token.to_str().map_err(|_| {
            Problem::invalid(
                "the header Meridian-Session holds no token; send one as it was given, or none",
            )
        })?;
        tokens.push(token.trim());
    }
    Ok(tokens.join(","))
}

fn wait(headers: &HeaderMap) -> Result<Duration, Problem> {
    let most = WAIT_MAX.as_millis();
    let mut given = headers.get_all(WAIT_HEADER).iter();
    let (Some(first), None) = (given.next(), given.next()) else {
        return match headers.contains_key(WAIT_HEADER) {
            false => Ok(WAIT_DEFAULT),
            true => Err(Problem::invalid(
                "the header Meridian-Wait-Ms is given twice",
            )),
        };
    };
    let text = first.to_str().unwrap_or_default();
    // `parse` would also take a sign.
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u64>().ok().filter(|_| digits) {
        Some(wait) if u128::from(wait) <= most => Ok(Duration::from_millis(wait)),
        _ => Err(Problem::invalid(format!(
            "the header Meridian-Wait-Ms is {text:?}; give 0 to {most} milliseconds"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(values: &[&'static str]) -> Option<Duration> {
        let values = values
            .iter()
            .map(|value| (WAIT_HEADER, HeaderValue::from_static(value)));
        let mut headers = HeaderMap::new();
        values.for_each(|(name, value)| {
            headers.append(name, value);
        });
        wait(&headers).ok()
    }

    #[test]
    fn a_wait_is_bounded_and_a_wrong_one_is_refused() {
        assert_eq!(waits(&[]), Some(WAIT_DEFAULT));
        assert_eq!(waits(&["0"]), Some(Duration::ZERO));
        assert_eq!(waits(&["30000"]), Some(WAIT_MAX));
        for wrong in ["", "30001", "-1", "+1", "1.5", "2s", "99999999999999999999"] {
            assert_eq!(waits(&[wrong]), None, "{wrong:?}");
        }
        assert_eq!(waits(&["1", "2"]), None);
    }
}
