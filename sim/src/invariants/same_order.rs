//! `same-order`: the settled feeds of all regions are prefixes of one order, that of the order keys.

use meridian_client::SettledTier;
use meridian_clock::OrderKey;
use meridian_event::EventId;

use super::Evidence;

pub(super) fn check(evidence: &Evidence) -> Vec<String> {
    let mut broken = Vec::new();
    let Some(copy) = evidence.copies.first() else {
        return broken;
    };
    let mut order: Vec<(OrderKey, EventId)> = copy
        .logs
        .values()
        .flatten()
        .flatten()
        .map(|event| (OrderKey::new(event.timestamp, event.dot), event.id))
        .collect();
    order.sort_unstable();
    for tier in [SettledTier::Stable, SettledTier::Final] {
        for (index, feed) in evidence.settled.feeds(tier) {
            let differs = feed.events.iter().zip(&order).position(|(a, b)| a != b);
            if let Some(at) = differs {
                broken.push(format!(
                    "region {index} read {tier}: event {at} was {:?}, and the order has {:?}",
                    feed.events[at], order[at]
                ));
            } else if feed.events.len() > order.len() {
                broken.push(format!(
                    "region {index} read {tier}: {} events, and there are {}",
                    feed.events.len(),
                    order.len()
                ));
            }
        }
    }
    broken
}
