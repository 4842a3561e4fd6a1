//! How one event reaches the federation, over QUIC or HTTP, and what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use meridian_client::{
    AppendError, AppendRequest, Client, ClientConfig, ConnectError, Durability, Expected, Seed, tls,
};
use meridian_clock::RegionId;
use meridian_conflict::Route;
use meridian_node::config::Loaded;
use meridian_node::seams::{Random, SystemRandom};
use meridian_node::{NodeStatus, files};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;
use uuid::Uuid;

use super::lanes::Heads;
use super::line::Line;
use crate::cli::door::{Door, DoorError};
use crate::cli::{Output, wrong_use};

/// How long a node may take to say how far its logs go; it is only asked for the count of what is new.
const DIGEST_WITHIN: Duration = Duration::from_secs(3);
/// How long to wait when an answer does not say.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// How long one HTTP request may take; an append waits in the node for less.
const REQUEST_WITHIN: Duration = Duration::from_secs(30);

/// Where an event was put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) origin: String,
    pub(super) partition: u16,
    pub(super) position: u64,
}

/// Why an event was not acknowledged.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nothing was written, or it is not known; the same event can be sent again.
    Retry { reason: String, after: Duration },
    /// It can never be written as it is.
    Refused(String),
    /// Sending more makes no sense.
    Stop(anyhow::Error),
}

/// Sends events.
pub(super) enum Sender {
    Quic(Box<QuicSender>),
    Http(HttpSender),
}

impl Sender {
    /// Sends the event of `line`. `until` is when its caller gives up.
    pub(super) async fn send(
        &self,
        line: &Line,
        durability: Durability,
        until: Instant,
    ) -> Result<Option<Place>, Failure> {
        match self {
            Self::Quic(sender) => sender.send(line, durability, until).await,
            Self::Http(sender) => sender.send(line, durability).await,
        }
    }

    /// Where HTTP is answered in each region that is known.
    fn doors(&self) -> Vec<(String, String)> {
        match self {
            Self::Quic(sender) => {
                let topology = sender.any.topology();
                let door = |member: &meridian_client::Member| {
                    (member.name.clone(), format!("http://{}", member.http))
                };
                topology.members.iter().map(door).collect()
            }
            Self::Http(sender) => sender.members.clone(),
        }
    }

    /// How far each origin log goes now, by what its own region says: an event that is put at or
    /// below that was there before. Regions that do not answer are left out.
    pub(super) async fn heads(&self) -> Heads {
        let ask = |(region, url): (String, String)| async move {
            let door = Door::new(&url).ok()?;
            let request = door.request(Method::GET, &["v1", "digest"]);
            let digest = tokio::time::timeout(DIGEST_WITHIN, door.json(request)).await;
            Some((region, digest.ok()?.ok()?))
        };
        let answers = futures_util::future::join_all(self.doors().into_iter().map(ask)).await;
        let mut heads = Heads::default();
        for (region, digest) in answers.into_iter().flatten() {
            heads.note(region, digest);
        }
        heads
    }
}

/// Sends over QUIC, straight to the home of each stream.
pub(super) struct QuicSender {
    names: BTreeMap<RegionId, String>,
    any: Client,
    // For streams that every region may write: they are written where they happened.
    by_region: BTreeMap<String, Client>,
}

impl QuicSender {
    /// Connects to the members in `loaded`, and to each of `regions` for what happened there.
    ///
    /// # Errors
    /// When there is no operator certificate, or no node accepts us.
    pub(super) async fn connect(
        loaded: &Loaded,
        regions: &BTreeSet<String>,
    ) -> anyhow::Result<Self> {
        let node = &loaded.node;
        for region in regions {
            check_region(
                region,
                node.members.iter().map(|member| member.name.as_str()),
            )?;
        }
        let operator = loaded.operator.as_ref().ok_or_else(|| {
            wrong_use(
                "the configuration has no [operator] table, whose certificate this command presents; \
                 add it, or use --url",
            )
        })?;
        let read = |path: &std::path::Path| {
            files::read_text(path)
                .map_err(|error| wrong_use(format!("{} cannot be read: {error}", path.display())))
        };
        let identity = tls::Identity::load(
            read(&operator.authority)?.as_bytes(),
            read(&operator.certificate)?.as_bytes(),
            read(&operator.key)?.as_bytes(),
        )
        .context("use the operator's certificate")?;
        let seeds = |first: Option<&str>| {
            let mut seeds: Vec<Seed> = node
                .members
                .iter()
                .map(|member| Seed {
                    addr: member.quic,
                    region: Some(member.name.clone()),
                })
                .collect();
            seeds.sort_by_key(|seed| seed.region.as_deref() != first);
            seeds
        };
        let from: SocketAddr = match node.members.first() {
            Some(member) if member.quic.is_ipv6() => ([0u16; 8], 0).into(),
            _ => ([0, 0, 0, 0], 0).into(),
        };
        let endpoint = meridian_client::bind(from).context("open a UDP socket")?;
        let connect = async |prefer: Option<&String>| {
            let mut seed = [0; 8];
            SystemRandom.fill(&mut seed);
            let seeds = seeds(prefer.map(String::as_str));
            let mut config =
                ClientConfig::new(endpoint.clone(), identity.clone(), node.federation, seeds);
            config.name = "meridian import".to_owned();
            config.prefer = prefer.cloned();
            config.jitter_seed = u64::from_le_bytes(seed);
            Client::connect(config).await
        };
        let any = connect(None).await.map_err(connect_failed)?;
        let mut by_region = BTreeMap::new();
        // Streams with a home go there wherever they happened, so that without others one client does.
        let topology = any.topology();
        let shared = topology
            .categories
            .values()
            .any(|policy| policy.mode != meridian_conflict::Mode::Home);
        if shared {
            for region in regions {
                let client = connect(Some(region)).await.map_err(connect_failed)?;
                by_region.insert(region.clone(), client);
            }
        }
        let names = node.members.iter();
        Ok(Self {
            names: names
                .map(|member| (member.id, member.name.clone()))
                .collect(),
            any,
            by_region,
        })
    }

    async fn send(
        &self,
        line: &Line,
        durability: Durability,
        until: Instant,
    ) -> Result<Option<Place>, Failure> {
        let local = line
            .region
            .as_ref()
            .and_then(|region| self.by_region.get(region));
        let client = match self.any.route(&line.stream) {
            Route::Anywhere | Route::Creator => local.unwrap_or(&self.any),
            Route::Home(_) => &self.any,
        };
        let request = AppendRequest {
            stream: line.stream.clone(),
            expected: Expected::Any,
            durability,
            events: vec![line.event.clone()],
        };
        match client.append_until(request, until).await {
            Ok(appended) => Ok(appended.dots.first().and_then(|dot| {
                Some(Place {
                    origin: self.names.get(&dot.origin)?.clone(),
                    partition: dot.partition.0,
                    position: dot.position.0,
                })
            })),
            Err(error) => Err(match &error {
                AppendError::Unavailable { retry_after_ms, .. } => Failure::Retry {
                    reason: error.to_string(),
                    after: Duration::from_millis(*retry_after_ms),
                },
                AppendError::Indeterminate { .. } | AppendError::NotHome { .. } => Failure::Retry {
                    reason: error.to_string(),
                    after: RETRY_AFTER,
                },
                AppendError::Invalid { .. }
                | AppendError::TooLarge { .. }
                | AppendError::Conflict { .. } => Failure::Refused(error.to_string()),
                AppendError::WrongExpectedRevision { .. } => {
                    Failure::Stop(anyhow::Error::new(error))
                }
            }),
        }
    }
}

fn connect_failed(error: ConnectError) -> anyhow::Error {
    anyhow::Error::new(error).context("connect to the federation; check that a region of the configuration runs and can be reached")
}

fn check_region<'a>(
    region: &str,
    members: impl Iterator<Item = &'a str> + Clone,
) -> anyhow::Result<()> {
    if members.clone().any(|member| member == region) {
        return Ok(());
    }
    let members: Vec<&str> = members.collect();
    Err(wrong_use(format!(
        "--map names region {region:?}, which is not a member; the members are: {}",
        members.join(", ")
    )))
}

/// Sends over HTTP, to the region where it happened or to the one node that is known.
pub(super) struct HttpSender {
    any: Door,
    members: Vec<(String, String)>,
    by_region: BTreeMap<String, Door>,
}

#[derive(Serialize)]
struct Body<'a> {
    durability: String,
    events: [Event<'a>; 1],
}

#[derive(Serialize)]
struct Event<'a> {
    id: Uuid,
    #[serde(rename = "type")]
    event_type: &'a str,
    data: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Appended {
    dots: Vec<Dot>,
}

#[derive(Deserialize)]
struct Dot {
    origin: String,
    partition: u16,
    position: u64,
}

impl HttpSender {
    /// Asks the node at `url` for the regions, and opens a door to each of `regions`.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) async fn connect(url: &str, regions: &BTreeSet<String>) -> anyhow::Result<Self> {
        let any = Door::new(url)?;
        let status = any.json::<NodeStatus>(any.request(Method::GET, &["v1", "status"]));
        let status = status.await.map_err(DoorError::into_failure)?;
        let mut by_region = BTreeMap::new();
        for region in regions {
            check_region(
                region,
                status.members.iter().map(|member| member.name.as_str()),
            )?;
        }
        let mut members = Vec::new();
        for member in status.members {
            // The node that was named is reached as it was named: its own idea of its address
            // may mean nothing here.
            let member_url = if member.name == status.region {
                url.to_owned()
            } else {
                format!("http://{}", member.http)
            };
            if regions.contains(&member.name) {
                by_region.insert(member.name.clone(), Door::new(&member_url)?);
            }
            members.push((member.name, member_url));
        }
        Ok(Self {
            any,
            members,
            by_region,
        })
    }

    async fn send(&self, line: &Line, durability: Durability) -> Result<Option<Place>, Failure> {
        let local = line
            .region
            .as_ref()
            .and_then(|region| self.by_region.get(region));
        let door = local.unwrap_or(&self.any);
        let raw = |bytes| serde_json::from_slice::<&RawValue>(bytes);
        let refused = |error: serde_json::Error| Failure::Refused(error.to_string());
        let body = Body {
            durability: durability.to_string(),
            events: [Event {
                id: line.event.id.0,
                event_type: line.event.event_type.as_str(),
                data: raw(&line.event.data).map_err(refused)?,
                metadata: match line.event.metadata.as_ref() {
                    [] => None,
                    metadata => Some(raw(metadata).map_err(refused)?),
                },
            }],
        };
        let request = door.request(
            Method::POST,
            &["v1", "streams", line.stream.as_str(), "events"],
        );
        let request = request.json(&body).timeout(REQUEST_WITHIN);
        match door.json::<Appended>(request).await {
            Ok(appended) => Ok(appended.dots.into_iter().next().map(|dot| Place {
                origin: dot.origin,
                partition: dot.partition,
                position: dot.position,
            })),
            Err(error) => Err(judge(error)),
        }
    }
}

/// What an error of the HTTP door asks for.
fn judge(error: DoorError) -> Failure {
    let code = error.problem().map(|problem| problem.code.as_str());
    let again = match (&error, code) {
        // The node may be restarting, and the request may have reached it: the ids settle that.
        (DoorError::Unreachable { .. }, _) => true,
        (_, Some(code)) => matches!(
            code,
            "unavailable" | "indeterminate" | "not_home" | "timeout" | "stale"
        ),
        _ => false,
    };
    if again {
        let after = error.problem().and_then(|problem| problem.retry_after_ms);
        return Failure::Retry {
            after: after.map_or(RETRY_AFTER, Duration::from_millis),
            reason: Output::error(&anyhow::Error::new(error)),
        };
    }
    match code {
        Some("invalid" | "too_large") => Failure::Refused(error.to_string()),
        _ => Failure::Stop(anyhow::Error::new(error)),
    }
}
