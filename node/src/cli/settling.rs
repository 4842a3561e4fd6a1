//! How far the one order is settled, in words: for `meridian status` and `meridian why stuck`.

use meridian_node::{HeldBack, HeldReason, HeldTier, NodeStatus};

/// How far the order is settled, in one sentence.
pub(super) fn summary(status: &NodeStatus) -> String {
    let marks = &status.watermarks;
    if marks.partitions.is_empty() {
        return "This node does not say how far the order is settled.".to_owned();
    }
    let lag = |mark: &str, lag_ms: u64| match mark {
        "0" => "not settled at all yet".to_owned(),
        _ => format!("{} behind now", length(lag_ms)),
    };
    format!(
        "Order: stable {}, final {}.",
        lag(&marks.stable, marks.stable_lag_ms),
        lag(&marks.finals, marks.final_lag_ms)
    )
}

/// Who holds what back and since when, in one sentence.
pub(super) fn blame(held: &HeldBack, partitions: u16) -> String {
    let tier = match held.tier {
        HeldTier::Stable => "Stable and final are",
        HeldTier::Final => "Final is",
    };
    let or_earlier = if held.or_earlier {
        ", when this node started, or earlier"
    } else {
        ""
    };
    let since = match held.reason {
        HeldReason::CatchingUp => match held.behind_ms {
            Some(behind) => format!("by {}", length(behind)),
            None => "since it began".to_owned(),
        },
        _ => format!(
            "for {} (since {}{or_earlier})",
            length(held.for_ms),
            clock(&held.since)
        ),
    };
    format!(
        "{tier} held back by region {} in {} {since}: {}.",
        held.region,
        which(&held.partitions, partitions),
        held.because
    )
}

/// What an operator does about it.
pub(super) fn next(held: &HeldBack, status: &NodeStatus) -> String {
    let region = &held.region;
    let there = status.members.iter().find(|member| member.name == *region);
    let url = there.map_or_else(
        || "<its URL>".to_owned(),
        |it| format!("http://{}", it.http),
    );
    match held.reason {
        HeldReason::Disagreement => format!(
            "Stop this node and that of {region}, one after the other, and run `meridian verify` on \
             each data folder; the one that reports damage is repaired from the other. Projections \
             that read this partition's settled tiers in both regions must not be trusted until then."
        ),
        HeldReason::OwnClock => {
            "Set this host's clock right (`timedatectl`, chrony); the node goes on by itself."
                .to_owned()
        }
        HeldReason::OwnRefusal => {
            "See to what this node says of itself; its log has more.".to_owned()
        }
        HeldReason::OwnWrite => {
            "Look at this host's disk (`dmesg`, `iostat`); restart the node if a write hangs."
                .to_owned()
        }
        HeldReason::NotLinked => format!(
            "Is the node of {region} running? Start it. If it is, let UDP through between the hosts, \
             both ways; ask it with `meridian status --url {url}`. What waits goes on by itself once \
             it is back: nothing is to be repeated here."
        ),
        HeldReason::NotArrived => format!(
            "It is on its way if the lag in `meridian status` shrinks. If not, look for damage in \
             {region}: `meridian status --url {url}`."
        ),
        HeldReason::Clock => {
            format!("Set the clock of the host of {region} right; its node goes on by itself.")
        }
        HeldReason::CatchingUp => {
            "Wait: it goes on by itself. If it does not shrink, the link or a disk is too slow."
                .to_owned()
        }
        HeldReason::Silent => format!("Ask it: `meridian why stuck --url {url}`."),
    }
}

/// What goes on all the same.
pub(super) fn unaffected(held: &[HeldBack]) -> String {
    let gone = held.iter().any(|held| held.reason == HeldReason::NotLinked);
    let own = held.iter().any(|held| {
        matches!(
            held.reason,
            HeldReason::OwnClock | HeldReason::OwnRefusal | HeldReason::OwnWrite
        )
    });
    let mut text = "The live tier goes on everywhere".to_owned();
    text.push_str(match (own, gone) {
        (true, _) => ", and so do appends in the other regions; this node may refuse them.",
        (false, true) => {
            ", and so do appends, except to streams whose home cannot be reached from here."
        }
        (false, false) => ", and so do appends.",
    });
    text.push_str(" Nothing is lost; stable and final wait, and no timer ends that.");
    text
}

fn which(partitions: &[u16], of: u16) -> String {
    match partitions {
        all if all.len() == usize::from(of) && of > 1 => format!("all {of} partitions"),
        [one] => format!("partition {one}"),
        some => {
            let listed: Vec<_> = some.iter().map(u16::to_string).collect();
            format!("partitions {}", listed.join(", "))
        }
    }
}

/// The moment without fractions of a second.
fn clock(moment: &str) -> String {
    match moment.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => moment.to_owned(),
    }
}

fn length(ms: u64) -> String {
    match ms {
        0..2_000 => format!("{ms} ms"),
        2_000..120_000 => format!("{:.1} s", ms as f64 / 1e3),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h {} min", ms / 3_600_000, ms / 60_000 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(reason: HeldReason) -> HeldBack {
        HeldBack {
            tier: HeldTier::Stable,
            region: "c".to_owned(),
            partitions: vec![0, 1, 2, 3],
            behind_ms: Some(65_100),
            for_ms: 65_000,
            since: "2023-11-14T22:12:15.123456789Z".to_owned(),
            or_earlier: false,
            reason,
            because: "no link to c (last heard 65 s ago): timed out".to_owned(),
        }
    }

    #[test]
    fn the_blame_says_who_where_how_long_and_why() {
        assert_eq!(
            blame(&held(HeldReason::NotLinked), 4),
            "Stable and final are held back by region c in all 4 partitions for 65.0 s (since \
             2023-11-14T22:12:15Z): no link to c (last heard 65 s ago): timed out."
        );
    }

    #[test]
    fn a_region_that_catches_up_is_behind_and_not_silent() {
        let mut held = held(HeldReason::CatchingUp);
        held.partitions = vec![0, 2];
        let text = blame(&held, 4);
        assert!(text.contains("in partitions 0, 2 by 65.1 s:"), "{text}");
    }
}
