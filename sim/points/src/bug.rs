//! The bugs that can be planted.

/// A bug that our checkers must see. Each is planted at one place, which names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Bug {
    /// A block is reported durable without its sync.
    SkipSync,
}

impl Bug {
    /// All of them.
    pub const ALL: &[Self] = &[Self::SkipSync];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::SkipSync => "skip-sync",
        }
    }

    /// The bug called `name`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|bug| bug.name() == name)
    }
}
