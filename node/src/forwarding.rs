//! The way to another region's node: what it is home to is forwarded to it, and it is asked what only it knows.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use meridian_client::tls::{Alpn, Identity};
use meridian_client::wire::{Hello, Request, Response};
use meridian_client::{AppendError, AppendRequest, Appended, Connection, RequestError};
use meridian_points::{buggify, reached};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;
use uuid::Uuid;

use crate::config::MemberConfig;
use crate::node::{read_lock, write_lock};
use crate::surely::NEVER;

/// After a home could not be dialled, how long requests for it are refused at once. Nothing was
/// written, so the caller is better served by knowing than by waiting.
const DIAL_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How often a request that never left is tried: a connection may just have closed.
const UNSENT_ATTEMPTS: u32 = 2;
/// The pause between two attempts to reach a home.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// How long one attempt to dial a home may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// How this node presents itself to a home it forwards to.
#[derive(Clone)]
pub(crate) struct Presentation {
    pub(crate) endpoint: quinn::Endpoint,
    pub(crate) identity: Arc<RwLock<Arc<Identity>>>,
    pub(crate) federation: Uuid,
    pub(crate) name: String,
}

/// The way to another region's node, for appends that it is home to and for what only it knows: one
/// connection, dialled when it is needed.
pub(crate) struct Home {
    member: MemberConfig,
    server_name: String,
    us: Presentation,
    dialled: RwLock<Dialled>,
    // Held by whoever dials.
    dialling: Mutex<()>,
}

/// What the last attempt to dial a home came to.
#[derive(Clone)]
enum Dialled {
    Not,
    Reached(Connection),
    Failed { at: Instant, reason: String },
}

impl Home {
    pub(crate) fn new(member: MemberConfig, us: Presentation) -> Self {
        let name = meridian_client::tls::PeerName::Region(member.name.clone());
        Self {
            server_name: name.dns_name(),
            member,
            us,
            dialled: RwLock::new(Dialled::Not),
            dialling: Mutex::new(()),
        }
    }

    /// The region's name.
    pub(crate) fn name(&self) -> &str {
        &self.member.name
    }

    /// Asks the region's node once.
    ///
    /// # Errors
    /// When it could not be reached, or did not answer.
    pub(crate) async fn ask(
        &self,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, RequestError> {
        let not_sent = |reason: String| RequestError::NotSent { reason };
        let connection = timeout_at(deadline, self.connect())
            .await
            .map_err(|_| not_sent("it was not reached in time".to_owned()))?
            .map_err(not_sent)?;
        connection.request(request, deadline).await
    }

    /// Sends the request, again and with the same ids if it is not answered: the home knows what it
    /// has recorded. Never turns "may be written" into "failed".
    ///
    /// # Errors
    /// As the region answered, or that it did not.
    pub(crate) async fn append(
        &self,
        request: AppendRequest,
        hops: u8,
        deadline: Instant,
        may_be_written: &mut Option<String>,
    ) -> Result<Appended, AppendError> {
        let request = Request::Append { request, hops };
        let mut attempts = 0;
        loop {
            let failure = match self.attempt(&request, deadline).await {
                // Whoever is home now holds what any home before it wrote, and knows it by its ids.
                Ok(Err(error @ AppendError::NotHome { .. })) => return Err(error),
                // The home refused this attempt, but an earlier one may still be on its way there.
                Ok(Err(error)) if may_be_written.is_some() && !settles(&error) => {
                    RequestError::NotSent {
                        reason: error.to_string(),
                    }
                }
                Ok(answer) => return answer,
                Err(failure) => failure,
            };
            debug!(home = %self.member.name, %failure, "an append was not answered by its home");
            if !matches!(failure, RequestError::NotSent { .. }) {
                *may_be_written = Some(failure.to_string());
            }
            attempts += 1;
            let gave_up = may_be_written.is_none() && attempts == UNSENT_ATTEMPTS;
            if gave_up || Instant::now() + RETRY_AFTER >= deadline {
                return Err(match may_be_written.take() {
                    Some(reason) => AppendError::Indeterminate { reason },
                    None => AppendError::Unavailable {
                        reason: format!("its home region {}: {failure}", self.member.name),
                        retry_after_ms: 1000,
                    },
                });
            }
            reached("a home was asked once more");
            sleep(RETRY_AFTER).await;
        }
    }

    async fn attempt(
        &self,
        request: &Request,
        deadline: Instant,
    ) -> Result<Result<Appended, AppendError>, RequestError> {
        match self.ask(request, deadline).await {
            Ok(Response::Append(_)) if buggify("a home's answer is lost") => {
                Err(RequestError::Unanswered {
                    reason: "it was lost".to_owned(),
                })
            }
            Ok(Response::Append(answer)) => Ok(answer),
            Ok(other) => Ok(Err(AppendError::Unavailable {
                reason: format!("its home answered something else: {other:?}"),
                retry_after_ms: 1000,
            })),
            Err(RequestError::TooLong(error)) => Ok(Err(AppendError::Invalid {
                reason: error.to_string(),
            })),
            Err(failure) => Err(failure),
        }
    }

    async fn connect(&self) -> Result<Connection, String> {
        let dialling = match self.known() {
            Dialled::Reached(connection) => return Ok(connection),
            Dialled::Not => self.dialling.lock().await,
            // Someone else is trying already; a home that was out of reach a moment ago is not
            // worth waiting for.
            Dialled::Failed { reason, at } => match self.dialling.try_lock() {
                Ok(dialling) if at.elapsed() >= DIAL_AGAIN_AFTER => dialling,
                _ => return Err(reason),
            },
        };
        if let Dialled::Reached(connection) = self.known() {
            return Ok(connection);
        }
        let identity = read_lock(&self.us.identity);
        let opened = Connection::open(
            &self.us.endpoint,
            identity.client_config(Alpn::Client),
            self.member.quic,
            &self.server_name,
            &Hello::new(self.us.federation, self.us.name.clone()),
            DIAL_TIMEOUT,
        )
        .await
        .map_err(|error| error.to_string());
        write_lock(
            &self.dialled,
            match &opened {
                Ok(connection) => Dialled::Reached(connection.clone()),
                Err(reason) => Dialled::Failed {
                    at: Instant::now(),
                    reason: reason.clone(),
                },
            },
        );
        drop(dialling);
        opened
    }

    // What is known without dialling; a connection that has closed counts for nothing.
    fn known(&self) -> Dialled {
        match read_lock(&self.dialled) {
            Dialled::Reached(connection) if !connection.is_open() => Dialled::Not,
            known => known,
        }
    }
}

/// Whether a refusal also tells what became of earlier attempts with the same ids: no stream goes
/// back to a revision that it has left behind, none reaches the one that a mere question expects, and what was invalid
/// stays so.
pub(crate) fn settles(error: &AppendError) -> bool {
    match error {
        AppendError::WrongExpectedRevision {
            expected, actual, ..
        } => *expected == NEVER || expected.is_past(*actual),
        AppendError::Invalid { .. } | AppendError::TooLarge { .. } => true,
        AppendError::NotHome { .. }
        | AppendError::Unavailable { .. }
        | AppendError::Indeterminate { .. }
        | AppendError::Conflict { .. } => false,
    }
}
