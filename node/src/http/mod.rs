//! The HTTP door: JSON and Server-Sent Events, described by `/openapi.json`.
//!
//! [`serve`] takes connections from a listener and answers each request by asking a [`Backend`],
//! which is the node or, in tests, something that plays one.
//!
//! Not here: what an append or a read means (the node), the QUIC door (`meridian_client::server`).
//! Start reading at `routes`, then `append` and `events`.
//!
//! Always true: every request that can be read as HTTP and fails is answered with
//! `application/problem+json` and a stable `code`; a body is never read beyond its limit; a follower that does not read costs one page.

mod append;
mod backend;
mod body;
mod categories;
mod conflicts;
#[expect(
    unused_qualifications,
    reason = "the macro that describes parameters writes them"
)]
mod consumers;
#[expect(
    unused_qualifications,
    reason = "the macro that describes parameters writes them"
)]
mod events;
mod following;
mod homes;
mod openapi;
mod operations;
mod params;
mod problem;
#[expect(
    unused_qualifications,
    reason = "the macro that describes parameters writes them"
)]
mod projections;
mod regions;
#[expect(
    unused_qualifications,
    reason = "the macro that describes parameters writes them"
)]
mod reservations;
mod routes;
mod server;
mod session;
#[expect(
    unused_qualifications,
    reason = "the macro that describes parameters writes them"
)]
mod settling;
mod sse;
#[expect(
    unused_qualifications,
    reason = "the macro that describes parameters writes them"
)]
mod state;
#[expect(
    unused_qualifications,
    reason = "the macro that describes parameters writes them"
)]
mod stream;
mod views;
#[expect(
    unused_qualifications,
    reason = "the macro that describes parameters writes them"
)]
mod why;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use meridian_clock::RegionId;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::problem::Problem;
pub use backend::{Backend, Changes, Events, EventsRead, Tier};
pub use openapi::openapi;
pub use server::{ServeOptions, serve};

/// What every handler is given.
#[derive(Clone)]
struct Door {
    backend: Arc<dyn Backend>,
    // Membership is static in the configuration, so the names are asked for once.
    regions: Arc<BTreeMap<RegionId, String>>,
    // Followers end when this is cancelled; requests in progress are still answered.
    draining: CancellationToken,
    // One permit per event stream that is followed.
    followers: Arc<Semaphore>,
    // Held while the metrics are brought up to date and written out.
    scrape: Arc<Mutex<()>>,
    options: ServeOptions,
}

impl Door {
    fn new(backend: Arc<dyn Backend>, options: ServeOptions, draining: CancellationToken) -> Self {
        let regions = Arc::new(backend.regions());
        Self {
            backend,
            regions,
            draining,
            followers: Arc::new(Semaphore::new(options.followers_max)),
            scrape: Arc::default(),
            options,
        }
    }

    // The region of this name.
    fn region_id(&self, name: &str) -> Result<RegionId, Problem> {
        let found = self.regions.iter().find(|(_, known)| *known == name);
        found.map(|(region, _)| *region).ok_or_else(|| {
            let known: Vec<&str> = self.regions.values().map(String::as_str).collect();
            Problem::invalid(format!(
                "there is no region {name:?}; the regions are {}",
                known.join(", ")
            ))
        })
    }

    /// The name of `region`, or something that says its number when it is no member.
    fn region_name(&self, region: RegionId) -> String {
        let name = self.regions.get(&region).cloned();
        name.unwrap_or_else(|| format!("region-{region}"))
    }
}
