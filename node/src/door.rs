//! The QUIC door: what clients and other regions' nodes ask over it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use meridian_client::server::{Caller, Service};
use meridian_client::tls::PeerName;
use meridian_client::wire::{Request, Response, Welcome};
use meridian_client::{AppendError, ConsumerError, ReadError, ReserveError};
use uuid::Uuid;

use crate::session::refused;
use crate::{Node, odd};

/// Answers requests with the node, for as long as it is there.
pub(crate) struct Door {
    pub(crate) federation: Uuid,
    /// As it was when the node started: who is a member may have changed since.
    pub(crate) welcome: Welcome,
    pub(crate) node: Weak<Node>,
}

impl Service for Door {
    fn federation(&self) -> Uuid {
        self.federation
    }

    fn welcome(&self) -> Welcome {
        let node = self.node.upgrade();
        let topology = node.map_or_else(|| self.welcome.topology.clone(), |it| it.topology());
        Welcome {
            topology,
            ..self.welcome.clone()
        }
    }

    fn handle<'a>(&'a self, caller: Caller, request: Request) -> BoxFuture<'a, Response> {
        async move {
            odd::pause("a request waits at the door").await;
            let node = self.node.upgrade();
            let stopping = "the node is stopping".to_owned();
            match request {
                Request::Topology => Response::Topology(self.welcome().topology),
                Request::Append { request, hops } => Response::Append(match node {
                    // Only a region's node may say that it has passed an append on.
                    Some(_) if hops > 0 && !matches!(caller.peer, PeerName::Region(_)) => {
                        Err(AppendError::Invalid {
                            reason: "only nodes pass appends on; send it with 0 hops".to_owned(),
                        })
                    }
                    Some(node) => node.append_until(request, hops, caller.deadline).await,
                    None => Err(AppendError::Unavailable {
                        reason: stopping,
                        retry_after_ms: 1000,
                    }),
                }),
                Request::ReadStream(read) => Response::ReadStream(match node {
                    Some(node) => node.read_stream(&read),
                    None => Err(ReadError::Unavailable {
                        reason: stopping,
                        retry_after_ms: 1000,
                    }),
                }),
                Request::ReadAtHome(read) => Response::ReadStream(match node {
                    Some(node) => node.read_at_home(&read, caller.deadline).await,
                    None => Err(ReadError::Unavailable {
                        reason: stopping,
                        retry_after_ms: 1000,
                    }),
                }),
                Request::Live(read) => Response::Live(match node {
                    Some(node) => node.read_live(&read).await,
                    None => Err(ReadError::Unavailable {
                        reason: stopping,
                        retry_after_ms: 1000,
                    }),
                }),
                Request::InSession {
                    token,
                    wait_ms,
                    request,
                } => match node {
                    Some(node) => {
                        let wait = Duration::from_millis(u64::from(wait_ms));
                        node.in_session(&token, wait, request, caller.deadline)
                            .await
                    }
                    None => refused(
                        &request,
                        ReadError::Unavailable {
                            reason: stopping,
                            retry_after_ms: 1000,
                        },
                    ),
                },
                Request::Await(asked) => Response::Await(match node {
                    Some(node) => node.await_settled(asked).await,
                    None => Err(ReadError::Unavailable {
                        reason: stopping,
                        retry_after_ms: 1000,
                    }),
                }),
                Request::Consume(asked) => Response::Consume(match node {
                    // Nothing of the node is held while a consumer waits, so that it can stop.
                    Some(node) => {
                        let consumers = Arc::clone(node.consumers());
                        drop(node);
                        consumers.consume(&asked).await
                    }
                    None => Err(ConsumerError::Unavailable {
                        reason: stopping,
                        retry_after_ms: 1000,
                    }),
                }),
                Request::Reserve { request, hops } => Response::Reserve(match node {
                    // As with appends.
                    Some(_) if hops > 0 && !matches!(caller.peer, PeerName::Region(_)) => {
                        Err(ReserveError::Invalid {
                            reason: "only nodes pass reservations on; send it with 0 hops"
                                .to_owned(),
                        })
                    }
                    Some(node) => node.carry_out(request, hops, Some(caller.deadline)).await,
                    None => Err(ReserveError::Unavailable {
                        reason: stopping,
                        retry_after_ms: 1000,
                    }),
                }),
                Request::State(read) => Response::State(match node {
                    Some(node) => node.state(&read).await,
                    None => Err(ReadError::Unavailable {
                        reason: stopping,
                        retry_after_ms: 1000,
                    }),
                }),
                Request::Settled(read) => Response::Settled(match node {
                    Some(node) => node.read_settled(&read).await,
                    None => Err(ReadError::Unavailable {
                        reason: stopping,
                        retry_after_ms: 1000,
                    }),
                }),
            }
        }
        .boxed()
    }
}
