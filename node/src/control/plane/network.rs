//! What the Raft library asks its peers, over our links.

use std::sync::Arc;

use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable,
};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, RaftNetwork, RaftNetworkFactory};

use super::{Answer, Asked, Life, Question, Shared, Types};

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unanswered(pub(super) String);

pub(super) struct Network(pub(super) Arc<Shared>);

pub(super) struct Peer {
    shared: Arc<Shared>,
    life: Life,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _: &EmptyNode) -> Peer {
        Peer {
            shared: Arc::clone(&self.0),
            life: Life(target),
        }
    }
}

type Failed<E> = RPCError<u64, EmptyNode, E>;

impl Peer {
    async fn ask<T, E: std::error::Error>(
        &self,
        what: Asked,
        read: impl FnOnce(Answer) -> Option<Result<T, E>>,
    ) -> Result<T, Failed<E>> {
        let question = Question {
            to: Some(self.life.0),
            what,
        };
        let region = self.life.region();
        let answer = self.shared.ask(region, &question).await;
        // The library waits before it asks one again that is not there.
        let answer = answer.map_err(|error| Unreachable::new(&error))?;
        if let Answer::Wrong(reason) = answer {
            return Err(Unreachable::new(&Unanswered(reason)).into());
        }
        match read(answer) {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => Err(RemoteError::new(self.life.0, error).into()),
            None => {
                let error = Unanswered("the answer is to something else".to_owned());
                Err(NetworkError::new(&error).into())
            }
        }
    }
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failed<RaftError<u64>>> {
        self.ask(Asked::Append(request), |answer| match answer {
            Answer::Append(answer) => Some(answer),
            _ => None,
        })
        .await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<Types>,
        _: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failed<RaftError<u64, InstallSnapshotError>>> {
        self.ask(Asked::Snapshot(request), |answer| match answer {
            Answer::Snapshot(answer) => Some(answer),
            _ => None,
        })
        .await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        _: RPCOption,
    ) -> Result<VoteResponse<u64>, Failed<RaftError<u64>>> {
        self.ask(Asked::Vote(request), |answer| match answer {
            Answer::Vote(answer) => Some(answer),
            _ => None,
        })
        .await
    }
}
