//! The calling end of a node's HTTP door.

use std::time::Duration;

use anyhow::Context;
use reqwest::{Method, RequestBuilder, Response, Url, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{WrongUse, wrong_use};

/// Where a command finds a node.
#[derive(Debug, clap::Args)]
pub(crate) struct Target {
    /// The node's HTTP address
    #[arg(
        long,
        env = "MERIDIAN_URL",
        default_value = "http://127.0.0.1:7100",
        value_name = "URL"
    )]
    pub(crate) url: String,
}

/// Why a node's answer is not what was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DoorError {
    /// Nobody answered.
    #[error(
        "no answer from {url}; check that the node runs and that --url or MERIDIAN_URL is right"
    )]
    Unreachable {
        /// Who was asked.
        url: Url,
        /// What happened.
        source: reqwest::Error,
    },
    /// The node said no.
    #[error("{}", problem.detail)]
    Refused {
        /// What it said.
        problem: Box<Problem>,
    },
    /// Something else than a node answered.
    #[error("{url} answered {status}, which no Meridian node does; check --url or MERIDIAN_URL")]
    Stranger {
        /// Who was asked.
        url: Url,
        /// What it answered.
        status: reqwest::StatusCode,
    },
}

/// What a node says went wrong (`application/problem+json`).
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Problem {
    /// Which kind of error.
    pub(crate) code: String,
    /// What happened and what to do next.
    #[serde(default)]
    pub(crate) detail: String,
    /// When trying again makes sense.
    #[serde(default)]
    pub(crate) retry_after_ms: Option<u64>,
    /// All of it, for `--json`.
    #[serde(skip)]
    pub(crate) whole: serde_json::Value,
}

impl Problem {
    /// Reads a problem.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let whole: serde_json::Value = serde_json::from_slice(bytes).ok()?;
        let mut problem = Self::deserialize(&whole).ok()?;
        if problem.detail.is_empty() {
            problem.detail = format!("the node answered {}", problem.code);
        }
        problem.whole = whole;
        Some(problem)
    }
}

impl DoorError {
    /// The problem that the node answered with, if it did.
    pub(crate) fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused { problem } => Some(problem),
            _ => None,
        }
    }

    /// This error with the exit code it stands for: a request that can never be done is wrong use.
    pub(crate) fn into_failure(self) -> anyhow::Error {
        match self.problem().map(|problem| problem.code.as_str()) {
            Some("invalid" | "too_large") => anyhow::Error::new(WrongUse(self.to_string())),
            _ => anyhow::Error::new(self),
        }
    }
}

/// One node's HTTP door.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    base: Url,
    client: reqwest::Client,
}

impl Door {
    /// A door at `url`; nothing is sent yet.
    ///
    /// # Errors
    /// When it is not the URL of a node.
    pub(crate) fn new(url: &str) -> anyhow::Result<Self> {
        let base = Url::parse(url).map_err(|error| {
            wrong_use(format!(
                "{url:?} is not a URL ({error}); write it as in http://127.0.0.1:7100"
            ))
        })?;
        if base.scheme() != "http" {
            return Err(wrong_use(format!(
                "{url:?} is not plain HTTP, which is all that this command speaks; write http://…"
            )));
        }
        let client = reqwest::Client::builder()
            // A node is asked directly: a proxy for the web at large knows nothing of it.
            .no_proxy()
            .connect_timeout(Duration::from_secs(5))
            .build()
            .context("prepare HTTP")?;
        Ok(Self { base, client })
    }

    /// A request below `segments`, each percent-encoded.
    pub(crate) fn request(&self, method: Method, segments: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        self.client.request(method, url)
    }

    /// Sends `request` and returns the answer when it is a success.
    ///
    /// # Errors
    /// When nobody answers, or the node says no.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, DoorError> {
        let unreachable = |source: reqwest::Error| DoorError::Unreachable {
            url: self.base.clone(),
            source: source.without_url(),
        };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let is_problem = response
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/problem+json"));
        let body = response.bytes().await.map_err(unreachable)?;
        match Problem::parse(&body).filter(|_| is_problem) {
            Some(problem) => Err(DoorError::Refused {
                problem: Box::new(problem),
            }),
            None => Err(DoorError::Stranger {
                url: self.base.clone(),
                status,
            }),
        }
    }

    /// Sends `request` and reads the JSON of its answer.
    ///
    /// # Errors
    /// When nobody answers, the node says no, or the answer is not what it should be.
    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<T, DoorError> {
        let response = self.send(request.timeout(Duration::from_secs(60))).await?;
        let status = response.status();
        let body = response.bytes().await;
        let body = body.map_err(|source| DoorError::Unreachable {
            url: self.base.clone(),
            source: source.without_url(),
        })?;
        serde_json::from_slice(&body).map_err(|_| DoorError::Stranger {
            url: self.base.clone(),
            status,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_streams_name_is_one_segment_of_the_path() {
        let door = Door::new("http://127.0.0.1:7100/").expect("a door");
        let request = door.request(Method::GET, &["v1", "streams", "a/b ?", "events"]);
        let url = request.build().expect("a request").url().to_string();
        assert_eq!(url, "http://127.0.0.1:7100/v1/streams/a%2Fb%20%3F/events");
    }

    #[test]
    fn what_is_no_plain_http_is_refused() {
        assert!(Door::new("https://example.org").is_err());
        assert!(Door::new("127.0.0.1:7100").is_err());
    }
}
