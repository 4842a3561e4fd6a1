//! How far every other region holds every log.

use std::collections::{BTreeMap, BTreeSet};

use meridian_clock::{Incarnation, LogId, Position, RegionId, VersionVector};

use crate::frame::{Head, Holding};

type Holdings = BTreeMap<LogId, (Incarnation, Position)>;

/// What each other region is known to have on disk: from its own acknowledgements and vectors while
/// it is connected, from what others say of it while it is not.
///
/// Feeds `regions:N` durability, retention and the lag that operators see. A position can go back
/// only when a region itself says, on a new connection, that it lost what it held, and where a fence cuts the log.
#[derive(Debug)]
pub struct Held {
    me: RegionId,
    connected: BTreeSet<RegionId>,
    regions: BTreeMap<RegionId, Holdings>,
}

fn raise(
    holdings: &mut Holdings,
    log: LogId,
    incarnation: Incarnation,
    position: Position,
) -> bool {
    let held = holdings.entry(log).or_default();
    // A later life of a log begins anew; what was held of an earlier one counts no more.
    let rises = (incarnation, position) > *held;
    if rises {
        *held = (incarnation, position);
    }
    rises
}

impl Held {
    /// Nothing is known yet. `me` is this node's own region, of which others need not tell us.
    pub fn new(me: RegionId) -> Self {
        Self {
            me,
            connected: BTreeSet::new(),
            regions: BTreeMap::new(),
        }
    }

    /// A peer speaks for itself from here on.
    pub fn handle_connected(&mut self, peer: RegionId) {
        self.connected.insert(peer);
    }

    /// From here on, others may speak for this peer. What it last said stays true.
    pub fn handle_disconnected(&mut self, peer: RegionId) {
        self.connected.remove(&peer);
    }

    /// A peer acknowledged. Returns whether anything rose.
    pub fn handle_ack(
        &mut self,
        peer: RegionId,
        log: LogId,
        incarnation: Incarnation,
        durable: Position,
    ) -> bool {
        raise(
            self.regions.entry(peer).or_default(),
            log,
            incarnation,
            durable,
        )
    }

    /// A peer said what it holds itself. The first time on a connection this is taken as it is, so
    /// that a peer which lost its disk is not believed to hold what it lost; later, vectors may
    /// cross acknowledgements and only raise. Returns whether anything changed.
    pub fn handle_vector(&mut self, peer: RegionId, is_first: bool, heads: &[Head]) -> bool {
        let holdings = self.regions.entry(peer).or_default();
        if is_first {
            let said: Holdings = heads
                .iter()
                .map(|head| (head.log, (head.incarnation, head.position)))
                .collect();
            let changed = *holdings != said;
            *holdings = said;
            return changed;
        }
        let mut changed = false;
        for head in heads {
            changed |= raise(holdings, head.log, head.incarnation, head.position);
        }
        changed
    }

    /// A fence cut `log`: beyond `cut`, nothing that any region holds of what was written before counts. Returns whether
    /// anything fell.
    pub fn handle_cut(&mut self, log: LogId, cut: Position) -> bool {
        let mut changed = false;
        for holdings in self.regions.values_mut() {
            if let Some((_, position)) = holdings.get_mut(&log)
                && *position > cut
            {
                *position = cut;
                changed = true;
            }
        }
        changed
    }

    /// A peer said what it heard of others. Returns whether anything rose.
    pub fn handle_holdings(&mut self, from: RegionId, said: &[Holding]) -> bool {
        let mut changed = false;
        for holding in said {
            let region = holding.region;
            if region == self.me || region == from || self.connected.contains(&region) {
                continue;
            }
            let holdings = self.regions.entry(region).or_default();
            let (incarnation, position) = (holding.incarnation, holding.position);
            changed |= raise(holdings, holding.log, incarnation, position);
        }
        changed
    }

    /// What to tell `peer` of the other regions.
    pub fn holdings_for(&self, peer: RegionId) -> Vec<Holding> {
        let mut said = Vec::new();
        for (region, holdings) in &self.regions {
            if *region == peer {
                continue;
            }
            said.extend(
                holdings
                    .iter()
                    .map(|(log, (incarnation, position))| Holding {
                        region: *region,
                        log: *log,
                        incarnation: *incarnation,
                        position: *position,
                    }),
            );
        }
        said
    }

    /// How far each other region holds each log.
    pub fn vectors(&self) -> BTreeMap<RegionId, VersionVector> {
        let vector = |holdings: &Holdings| {
            holdings
                .iter()
                .map(|(log, (_, position))| (*log, *position))
                .collect()
        };
        self.regions
            .iter()
            .map(|(region, holdings)| (*region, vector(holdings)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use meridian_clock::PartitionId;

    use super::*;

    const ME: RegionId = RegionId(1);
    const B: RegionId = RegionId(2);
    const C: RegionId = RegionId(3);
    const FIRST: Incarnation = Incarnation(1);

    fn log() -> LogId {
        LogId::new(ME, PartitionId(0))
    }

    fn head(position: u64) -> Head {
        Head {
            incarnation: FIRST,
            position: Position(position),
            ..Head::empty(log())
        }
    }

    fn holding(region: RegionId, position: u64) -> Holding {
        Holding {
            region,
            log: log(),
            incarnation: FIRST,
            position: Position(position),
        }
    }

    fn position(held: &Held, region: RegionId) -> u64 {
        held.vectors()
            .get(&region)
            .map_or(0, |vector| vector.get(log()).0)
    }

    #[test]
    fn an_acknowledgement_travels_over_a_relay() {
        let mut at_b = Held::new(B);
        at_b.handle_connected(C);
        at_b.handle_ack(C, log(), FIRST, Position(7));
        let mut here = Held::new(ME);
        here.handle_connected(B);
        assert!(here.handle_holdings(B, &at_b.holdings_for(ME)));
        assert_eq!(position(&here, C), 7);
    }

    #[test]
    fn what_a_fence_cut_off_counts_as_held_by_nobody() {
        let mut held = Held::new(ME);
        held.handle_connected(B);
        held.handle_vector(B, true, &[head(17)]);
        held.handle_holdings(B, &[holding(C, 3)]);
        assert!(held.handle_cut(log(), Position(4)));
        assert_eq!((position(&held, B), position(&held, C)), (4, 3));
        assert!(!held.handle_cut(log(), Position(4)));
        // It is written on from there.
        assert!(held.handle_ack(B, log(), FIRST, Position(5)));
        assert_eq!(position(&held, B), 5);
    }

    #[test]
    fn a_late_vector_does_not_take_an_acknowledgement_back() {
        let mut held = Held::new(ME);
        held.handle_connected(B);
        held.handle_vector(B, true, &[head(3)]);
        held.handle_ack(B, log(), FIRST, Position(9));
        assert!(!held.handle_vector(B, false, &[head(5)]));
        assert_eq!(position(&held, B), 9);
    }

    #[test]
    fn a_peer_that_comes_back_without_its_disk_holds_nothing() {
        let mut held = Held::new(ME);
        held.handle_connected(B);
        held.handle_ack(B, log(), FIRST, Position(9));
        held.handle_disconnected(B);
        held.handle_connected(B);
        assert!(held.handle_vector(B, true, &[]));
        assert_eq!(position(&held, B), 0);
        // Others who have not heard of it are not believed over the peer itself.
        assert!(!held.handle_holdings(C, &[holding(B, 9)]));
        assert_eq!(position(&held, B), 0);
    }

    #[test]
    fn nobody_tells_us_what_we_hold_or_is_told_what_it_holds() {
        let mut held = Held::new(ME);
        assert!(!held.handle_holdings(C, &[holding(ME, 9)]));
        held.handle_ack(B, log(), FIRST, Position(4));
        assert_eq!(held.holdings_for(B), []);
        assert_eq!(held.holdings_for(C), [holding(B, 4)]);
    }

    #[test]
    fn a_later_life_of_a_log_begins_anew() {
        let mut held = Held::new(ME);
        held.handle_ack(B, log(), FIRST, Position(9));
        assert!(held.handle_ack(B, log(), Incarnation(2), Position(1)));
        assert_eq!(position(&held, B), 1);
    }
}
