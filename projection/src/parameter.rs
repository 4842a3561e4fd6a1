//! What an event gives to a statement.

/// One of the things that an event gives to a statement: [`crate::definition::PARAMETERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parameter {
    Data,
    Metadata,
    Stream,
    Revision,
    Type,
    Id,
    Timestamp,
    Region,
    RecordedAt,
}

impl Parameter {
    /// The one of that name, which is given without its `:`.
    pub(crate) fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "data" => Self::Data,
            "metadata" => Self::Metadata,
            "stream" => Self::Stream,
            "revision" => Self::Revision,
            "type" => Self::Type,
            "id" => Self::Id,
            "timestamp" => Self::Timestamp,
            "region" => Self::Region,
            "recorded_at" => Self::RecordedAt,
            _ => return None,
        })
    }
}
