//! Reads a request's JSON body, never more of it than its limit.

use std::fmt;
use std::marker::PhantomData;

use axum::body::{Body, BodyDataStream, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};

use super::Door;
use super::problem::Problem;

/// What a body may have beyond the events' own bytes: names, ids and white space.
const OVERHEAD_BYTES: usize = 2 << 20;

/// How much of a refused body is read and thrown away, so that the client, still sending, gets to
/// read the answer instead of a reset.
const DISCARD_BYTES_MAX: usize = 64 << 20;

/// The request's body, if it is JSON by its own account, in time and within the limit.
///
/// # Errors
/// The problem to answer.
pub(super) async fn read_json_body(door: &Door, request: Request) -> Result<Bytes, Problem> {
    check_content_type(request.headers())?;
    let limit_bytes = door
        .backend
        .limits()
        .batch_bytes_max
        .saturating_add(OVERHEAD_BYTES);
    let deadline = door.options.body_timeout;
    let body = request.into_body();
    let read = tokio::time::timeout(deadline, read_up_to(body, limit_bytes)).await;
    match read {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(Refused::TooLarge(rest))) => {
            discard(door, rest);
            Err(Problem::body_too_large(limit_bytes as u64))
        }
        Ok(Err(Refused::Broken(error))) => {
            Err(Problem::invalid(format!("the body broke off: {error}")))
        }
        Err(_elapsed) => Err(Problem::slow_body()),
    }
}

/// Any type will do for programs, which often forget to say; but a page in a browser must not write
/// here unasked, and `application/json` is the one type that a browser asks permission for.
fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let from_browser = headers.contains_key(header::ORIGIN);
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .map(|value| String::from_utf8_lossy(value.as_bytes()));
    let essence = content_type
        .as_deref()
        .and_then(|value| value.split(';').next())
        .map(|essence| essence.trim().to_ascii_lowercase());
    let is_json =
        essence.is_some_and(|essence| essence == "application/json" || essence.ends_with("+json"));
    if from_browser && !is_json {
        return Err(Problem::not_json(content_type.as_deref().unwrap_or("")));
    }
    Ok(())
}

enum Refused {
    TooLarge(BodyDataStream),
    Broken(axum::Error),
}

async fn read_up_to(body: Body, limit_bytes: usize) -> Result<Bytes, Refused> {
    let announced_bytes = body.size_hint().lower();
    let mut chunks = body.into_data_stream();
    if announced_bytes > limit_bytes as u64 {
        return Err(Refused::TooLarge(chunks));
    }
    let Some(first) = chunks.next().await else {
        return Ok(Bytes::new());
    };
    let first = first.map_err(Refused::Broken)?;
    // Nearly every body is one chunk, and needs no copy.
    let Some(second) = chunks.next().await else {
        return if first.len() > limit_bytes {
            Err(Refused::TooLarge(chunks))
        } else {
            Ok(first)
        };
    };
    let mut all = BytesMut::from(first);
    let mut next = Some(second);
    while let Some(chunk) = next {
        let chunk = chunk.map_err(Refused::Broken)?;
        if all.len() + chunk.len() > limit_bytes {
            return Err(Refused::TooLarge(chunks));
        }
        all.extend_from_slice(&chunk);
        next = chunks.next().await;
    }
    Ok(all.freeze())
}

/// Reads on in the background while the answer goes out.
fn discard(door: &Door, mut rest: BodyDataStream) {
    let (draining, deadline) = (door.draining.clone(), door.options.body_timeout);
    tokio::spawn(async move {
        let thrown_away = async {
            let mut discarded_bytes = 0;
            while let Some(Ok(chunk)) = rest.next().await {
                discarded_bytes += chunk.len();
                if discarded_bytes > DISCARD_BYTES_MAX {
                    break;
                }
            }
        };
        tokio::select! {
            () = draining.cancelled() => {}
            _ = tokio::time::timeout(deadline, thrown_away) => {}
        }
    });
}

/// A JSON object. A derived `Deserialize` would take an array of its fields as well, which nobody
/// means and nobody described.
#[derive(Debug)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(fields))
            }
        }

        input.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

/// `body` as a `T`, which is written as a JSON object.
///
/// # Errors
/// A problem that says what is wrong with it, and where.
pub(super) fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    if body.is_empty() {
        return Err(Problem::invalid("the body is empty; send a JSON object"));
    }
    serde_json::from_slice(body)
        .map(|Object(value)| value)
        .map_err(|error| Problem::invalid(format!("the body is not as it should be: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(entries: &[(&'static str, &'static str)]) -> HeaderMap {
        entries
            .iter()
            .map(|(name, value)| {
                let name = axum::http::HeaderName::from_static(name);
                (name, axum::http::HeaderValue::from_static(value))
            })
            .collect()
    }

    fn body_of(chunks: &[&'static [u8]]) -> Body {
        let chunks: Vec<_> = chunks
            .iter()
            .map(|chunk| Ok::<_, axum::Error>(Bytes::from_static(chunk)))
            .collect();
        Body::from_stream(futures_util::stream::iter(chunks))
    }

    #[test]
    fn a_page_in_a_browser_must_say_that_it_sends_json() {
        let form = ("content-type", "application/x-www-form-urlencoded");
        let json = ("content-type", "application/json; charset=utf-8");
        let origin = ("origin", "http://elsewhere.example");
        assert!(check_content_type(&headers(&[form])).is_ok());
        assert!(check_content_type(&headers(&[origin, json])).is_ok());
        assert!(check_content_type(&headers(&[origin, form])).is_err());
        assert!(check_content_type(&headers(&[origin])).is_err());
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_limit_however_it_is_cut() {
        for chunks in [
            &[&b"abcd"[..]][..],
            &[b"ab", b"cd"],
            &[b"a", b"bc", b"", b"d"],
        ] {
            let whole = read_up_to(body_of(chunks), 4).await;
            assert!(matches!(whole, Ok(bytes) if bytes == "abcd"), "{chunks:?}");
            let refused = read_up_to(body_of(chunks), 3).await;
            assert!(matches!(refused, Err(Refused::TooLarge(_))), "{chunks:?}");
        }
    }

    #[tokio::test]
    async fn an_announced_length_over_the_limit_is_refused_before_anything_is_read() {
        let refused = read_up_to(Body::from("abcd"), 3).await;
        let Err(Refused::TooLarge(mut rest)) = refused else {
            panic!("a body over its limit was read")
        };
        assert!(matches!(rest.next().await, Some(Ok(bytes)) if bytes == "abcd"));
    }
}
