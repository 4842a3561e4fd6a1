//! Carries the control plane's questions and answers, whose bytes mean nothing here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meridian_clock::RegionId;
use tokio::time::timeout;

use super::dial;
use super::state::Shared;
use super::wire::{MessageReader, MessageWriter, WireError, unexpected};
use crate::frame::{ASK_SINCE, Lane, Message, NotServed};

/// How many questions of one peer are answered at once.
pub(crate) const QUESTIONS_MAX: usize = 8;

/// Why a question to a peer has no answer. The peer may have acted on it all the same.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is no link to it now.
    #[error("{0}")]
    NotLinked(String),
    /// Its build knows nothing of the control plane.
    #[error(
        "the peer speaks link protocol {found}, the control plane needs {ASK_SINCE}; upgrade it"
    )]
    TooOld {
        /// What it speaks.
        found: u16,
    },
    /// It has no control plane, or too many questions already.
    #[error("the peer answers no questions now")]
    NotAnswered,
    /// The stream broke, or nothing came in time.
    #[error("{0}")]
    Broken(String),
}

impl From<WireError> for AskError {
    fn from(error: WireError) -> Self {
        Self::Broken(error.to_string())
    }
}

/// Asks `peer`, and waits for the answer so long.
pub(crate) async fn ask(
    shared: &Arc<Shared>,
    peer: RegionId,
    question: Bytes,
    within: Duration,
) -> Result<Bytes, AskError> {
    let (connection, _) = dial::connection(shared, peer, Lane::Live)
        .await
        .map_err(AskError::NotLinked)?;
    let found = shared.live_version(peer);
    if found < ASK_SINCE {
        return Err(AskError::TooOld { found });
    }
    let exchange = async {
        let (send, recv) = connection
            .open_bi()
            .await
            .map_err(|error| AskError::NotLinked(error.to_string()))?;
        let mut writer = MessageWriter::new(send, within);
        writer.write(&Message::Ask(question)).await?;
        let mut reader = MessageReader::new(recv);
        match reader.expect(within).await? {
            Message::Answer(answer) => Ok(answer),
            Message::NotServed(NotServed::TooMany) => Err(AskError::NotAnswered),
            other => Err(unexpected("Answer", &other).into()),
        }
    };
    timeout(within, exchange)
        .await
        .map_err(|_| AskError::from(WireError::TimedOut { within }))?
}

/// The answer to what `peer` asks; `None` when this node has no control plane.
pub(crate) async fn answer(shared: &Shared, peer: RegionId, question: Bytes) -> Option<Bytes> {
    let door = shared.config.control.as_ref()?;
    Some(door(peer, question).await)
}
