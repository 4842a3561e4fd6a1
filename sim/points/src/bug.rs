//! The bugs that can be planted.

macro_rules! bugs {
    ($($variant:ident, $name:literal, $does:literal;)*) => {
        /// A bug that our checkers must see. Each is planted where it would be made; what a sound
        /// node checks twice is planted at both checks, or the second would hide the first.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Bug {
            $(#[doc = $does] $variant,)*
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name on the command line.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// What is wrong with a node that has it.
            pub fn does(self) -> &'static str {
                match self {
                    $(Self::$variant => $does,)*
                }
            }
        }
    };
}

bugs! {
    SkipSync, "skip-sync", "A block is reported durable without a sync.";
    SyncByNeighbour, "sync-by-neighbour",
        "A group is reported durable before its sync when another group is in flight, whose sync is yet to come.";
    RetrySync, "retry-sync", "A sync that failed is repeated, and the second answer believed.";
    KeepTornTail, "keep-torn-tail", "Recovery takes a torn tail for damage and does not cut it.";
    ForgetIds, "forget-ids", "After a restart the ids of events in the last segment are not known any more.";
    SkipDamage, "skip-damage", "A damaged block is left out of what is read, and not reported.";
    AcceptGap, "accept-gap", "A block that leaves positions out is accepted, by the link and by the store.";
    SkipChainCheck, "skip-chain-check",
        "A block is accepted whatever bytes it was written after, by the link and by the store; relays send such blocks.";
    RelayRestamps, "relay-restamps", "A relay encodes blocks anew, with later timestamps.";
    AckUnsynced, "ack-unsynced", "A block from a peer is acknowledged to it before our own sync.";
    FollowFarFuture, "follow-far-future", "At a restart the clock starts above what others stamped, however far ahead.";
    TrustCopy, "trust-copy", "A data folder that was copied is taken for one that was never away.";
    ForgetCeiling, "forget-ceiling", "The clock's ceiling is not honoured at a restart.";
    GiveBackCeiling, "give-back-ceiling", "A node that stops in order leaves no ceiling for its clock behind.";
    PromiseEarly, "promise-early", "A promise reaches past blocks that are under way.";
    PromiseUnheld, "promise-unheld", "A promise counts before its prefix is held.";
    PromiseShut, "promise-shut",
        "A node promises for logs that it may still take back from its peers.";
    TimeOutSilent, "time-out-silent",
        "A member that has said nothing for two seconds is taken out of the watermarks.";
    ForgetPromised, "forget-promised",
        "A node that lost its disk stamps at or below what it had promised before.";
    SplitCheckpoint, "split-checkpoint",
        "A read model's checkpoint is committed apart from its rows.";
    ForgetFence, "forget-fence", "A worker goes on writing a read model that another one has taken over.";
    CollectAtStable, "collect-at-stable",
        "What streams that every region writes have deleted is let go of as soon as it is stable.";
    ForgetTaken, "forget-taken",
        "What waits for our disk is not told to the region whose log it is, and more from before its restart is taken.";
    OpenGate, "open-gate",
        "A node that lost its disk gives out positions before its peers have answered, and before it knows what is decided.";
    OneRegionLess, "one-region-less", "`regions:N` and `all` are answered with one region too few.";
    IgnoreExpected, "ignore-expected", "The expected revision is not compared.";
    StaleHead, "stale-head", "A stream's revision is looked up in what is committed, without what is in flight.";
    AnswerFailed, "answer-failed", "Appends whose block could not be written are answered as if it had been.";
    ReadBehind, "read-behind", "A read with a session's token is answered whether or not the region has caught up.";
    OpenEarly, "open-early", "A stream's new home takes writes before it holds what the old one wrote.";
    OpenUnheld, "open-unheld",
        "A new home takes writes for a fenced category before a majority holds what the old one wrote, and others take what it writes.";
    TakeUnheld, "take-unheld",
        "A region takes what a stream's new home wrote before it holds what the home opened on.";
    KeepHome, "keep-home", "A stream's old home goes on taking writes after its transfer.";
    SealByMajority, "seal-by-majority", "A fence decides its cut when a majority has sealed, not all who remain.";
    OpenBeforeBackfill, "open-before-backfill", "A fence opens, and its homes with it, before those who remain hold all up to the cut.";
    UntaggedWords, "untagged-words", "What a region settled counts for those who wait for more regions than it did.";
    SecondHome, "second-home", "A region takes appends for a home that it cannot reach.";
    EpochUnchecked, "epoch-unchecked",
        "Blocks of a fenced epoch are taken beyond its cut too, by the link and by the store.";
    LeaseWithoutMargin, "lease-without-margin",
        "A lost home's successor opens for fenced categories without waiting until its lease is over.";
    AcknowledgeAlone, "acknowledge-alone", "A fenced category's home answers before a majority holds what it wrote.";
    ReadmitTwice, "readmit-twice", "Stranded events are written again with new ids.";
    ClientDots, "client-dots",
        "Operations are numbered as their clients would, who do not know of each other, and not by the sequencer.";
    LwwByReadmission, "lww-by-readmission",
        "The last writer wins by when a stranded write came home, not by when it was first written.";
}

impl Bug {
    /// The bug called `name`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|bug| bug.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bug_is_found_by_its_name() {
        for bug in Bug::ALL {
            assert_eq!(Bug::named(bug.name()), Some(*bug));
        }
    }
}
