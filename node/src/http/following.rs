//! What all answers have in common that go on as Server-Sent Events: who wants one, how many there may be, and how
//! one is made of what is written piece by piece.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::OwnedSemaphorePermit;

use super::problem::Problem;
use super::session::SessionHeader;
use super::{Backend, Door};

/// Whether a request asks for an event stream.
pub(super) fn wants_event_stream(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT).iter().any(|accept| {
        accept.to_str().is_ok_and(|accept| {
            accept.split(',').any(|range| {
                let essence = range.split(';').next().unwrap_or("");
                essence.trim().eq_ignore_ascii_case("text/event-stream")
            })
        })
    })
}

/// One of the places for followers, which is counted for as long as it is taken.
pub(super) struct Place {
    backend: Arc<dyn Backend>,
    _place: OwnedSemaphorePermit,
}

impl Place {
    /// Takes one.
    ///
    /// # Errors
    /// When there is none left.
    pub(super) fn take(door: &Door) -> Result<Self, Problem> {
        let Ok(place) = door.followers.clone().try_acquire_owned() else {
            return Err(Problem::unavailable(
                format!(
                    "{} event streams are being followed already; read pages, or follow another region",
                    door.options.followers_max
                ),
                5000,
            ));
        };
        door.backend.metrics().http_followers.inc();
        Ok(Self {
            backend: door.backend.clone(),
            _place: place,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.backend.metrics().http_followers.dec();
    }
}

/// What every event stream begins with.
pub(super) fn beginning() -> Vec<u8> {
    b"retry: 1000\n: what follows is live\n\n".to_vec()
}

/// The answer that is `first` and then `rest`.
pub(super) fn event_stream(
    first: Vec<u8>,
    rest: impl Stream<Item = Bytes> + Send + 'static,
    session: SessionHeader,
) -> Response {
    let bytes = stream::iter([Bytes::from(first)]).chain(rest);
    let bytes = bytes.map(Ok::<_, Infallible>);
    let headers = [
        (
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/event-stream"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // nginx and its kin would otherwise hold events back until a buffer is full.
        (
            HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ),
    ];
    (headers, session, Body::from_stream(bytes)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(value))])
    }

    #[test]
    fn an_event_stream_is_sent_to_who_asks_for_it() {
        assert!(wants_event_stream(&accept("text/event-stream")));
        assert!(wants_event_stream(&accept(
            "application/json;q=0.5, Text/Event-Stream;q=1"
        )));
        assert!(!wants_event_stream(&accept("*/*")));
        assert!(!wants_event_stream(&HeaderMap::new()));
    }
}
