//! From whom each log is pulled.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_clock::{Incarnation, LogId, Position, RegionId};
use meridian_event::Chain;
use meridian_replication::frame::{Head, Lane, NotServed};
use meridian_replication::link::{
    Action, Alarm, AlarmKind, Ended, Instant, Puller, PullerTimings, Subscription,
};
use proptest::prelude::*;

use crate::{A, B, C, LIFE, log_of};

// One node, region a, of three; the test says what it hears and checks what it does.
struct World {
    puller: Puller,
    now: Instant,
    ours: Vec<Head>,
}

fn head(origin: RegionId, position: u64) -> Head {
    Head {
        incarnation: LIFE,
        position: Position(position),
        // The same for all who hold that much, as long as nobody diverges.
        chain: Chain([u8::try_from(position % 251).unwrap(); 32]),
        ..Head::empty(log_of(origin))
    }
}

impl World {
    fn new() -> Self {
        let puller = Puller::new(A, [A, B, C], 1, PullerTimings::default());
        Self {
            puller,
            now: Instant::default(),
            ours: Vec::new(),
        }
    }

    // Both peers are linked and hold nothing; our own log is written.
    fn linked() -> Self {
        let mut world = Self::new();
        world.puller.handle_writing_own(world.now);
        for peer in [B, C] {
            world.connect(peer);
            world.hear(peer, &[]);
        }
        world
    }

    fn connect(&mut self, peer: RegionId) -> Vec<Action> {
        self.puller.handle_connected(self.now, peer)
    }

    fn hear(&mut self, peer: RegionId, heads: &[Head]) -> Vec<Action> {
        let ours = self.ours.clone();
        self.puller.handle_vector(self.now, peer, heads, &ours)
    }

    fn tick(&mut self) -> Vec<Action> {
        let ours = self.ours.clone();
        self.puller.handle_tick(self.now, &ours)
    }

    // Time passes, in ticks, while `peers` keep being heard.
    fn pass(&mut self, millis: u64, peers: &[RegionId]) -> Vec<Action> {
        let mut actions = Vec::new();
        for _ in 0..millis / 100 {
            self.now = self.now.plus(Duration::from_millis(100));
            for peer in peers {
                self.puller.handle_heard(self.now, *peer);
            }
            actions.extend(self.tick());
        }
        actions
    }

    fn current(&self, origin: RegionId) -> Option<Subscription> {
        let mut all = self.puller.subscriptions();
        all.find(|subscription| subscription.log == log_of(origin))
    }

    fn via(&self, origin: RegionId) -> Option<RegionId> {
        Some(self.current(origin)?.via)
    }

    fn end(&mut self, origin: RegionId, reason: &Ended) -> Vec<Action> {
        let current = self.current(origin).unwrap();
        self.puller.handle_ended(self.now, current, reason)
    }
}

fn raised(actions: &[Action]) -> Vec<Alarm> {
    let raised = |action: &Action| match action {
        Action::Raise(alarm) => Some(*alarm),
        _ => None,
    };
    actions.iter().filter_map(raised).collect()
}

#[test]
fn each_log_is_pulled_from_its_origin() {
    let world = World::linked();
    assert_eq!(world.via(B), Some(B));
    assert_eq!(world.via(C), Some(C));
    assert_eq!(world.via(A), None, "our own log is ours");
}

#[test]
fn nothing_is_pulled_from_a_peer_before_it_said_what_it_holds() {
    let mut world = World::new();
    assert_eq!(world.connect(B), []);
    assert!(!world.hear(B, &[]).is_empty());
}

#[test]
fn a_relay_steps_in_when_the_origins_link_is_down_and_out_when_it_is_back() {
    let mut world = World::linked();
    let actions = world.puller.handle_disconnected(world.now, C);
    assert_eq!(world.via(C), Some(B));
    // What pulled it before must end first, or two would write one log.
    assert!(
        matches!(actions[..], [Action::Unsubscribe(old), Action::Subscribe(new)]
            if old.via == C && new.via == B && old.id != new.id),
        "{actions:?}"
    );
    world.connect(C);
    assert_eq!(world.via(C), Some(B), "not before it said what it holds");
    world.hear(C, &[head(C, 4)]);
    assert_eq!(world.via(C), Some(C));
}

#[test]
fn among_relays_the_one_that_holds_most_is_asked_and_kept() {
    let mut puller = Puller::new(A, [A, B, C, RegionId(4)], 1, PullerTimings::default());
    let now = Instant::default();
    for (peer, position) in [(B, 3), (C, 5)] {
        puller.handle_connected(now, peer);
        puller.handle_vector(now, peer, &[head(RegionId(4), position)], &[]);
    }
    let via = |puller: &Puller| {
        let mut all = puller.subscriptions();
        all.find(|it| it.log == log_of(RegionId(4)))
            .map(|it| it.via)
    };
    // The first to speak was chosen; another that is ahead is no reason to change by itself.
    assert_eq!(via(&puller), Some(B));
    puller.handle_disconnected(now, B);
    assert_eq!(via(&puller), Some(C));
    puller.handle_connected(now, B);
    puller.handle_vector(now, B, &[head(RegionId(4), 9)], &[]);
    assert_eq!(via(&puller), Some(C));
}

#[test]
fn an_origin_that_brings_nothing_while_a_relay_is_ahead_is_passed_over_for_a_while() {
    let mut world = World::linked();
    world.hear(B, &[head(C, 8)]);
    world.pass(1400, &[B, C]);
    assert_eq!(world.via(C), Some(C), "not yet");
    world.pass(300, &[B, C]);
    assert_eq!(world.via(C), Some(B));
    // The relay brings it; later the origin has its turn again.
    world.ours = vec![head(C, 8)];
    world.pass(6000, &[B, C]);
    assert_eq!(world.via(C), Some(C));
}

#[test]
fn an_origin_that_brings_something_now_and_then_is_not_passed_over() {
    let mut world = World::linked();
    for position in 1..20 {
        world.hear(B, &[head(C, position + 5)]);
        world.ours = vec![head(C, position)];
        world.pass(1000, &[B, C]);
        assert_eq!(world.via(C), Some(C));
    }
}

#[test]
fn an_origin_whose_log_waits_for_other_logs_here_is_not_passed_over() {
    let mut world = World::linked();
    let current = |world: &World| {
        let mut all = world.puller.subscriptions();
        all.find(|it| it.log == log_of(C)).expect("it is pulled")
    };
    let waiting = current(&world);
    world.puller.handle_held_back(waiting, true);
    world.hear(B, &[head(C, 8)]);
    world.pass(6000, &[B, C]);
    assert_eq!(current(&world), waiting);
    world.puller.handle_held_back(waiting, false);
    world.pass(1700, &[B, C]);
    assert_eq!(world.via(C), Some(B));
}

#[test]
fn a_silent_origin_is_left_for_a_peer_that_is_heard() {
    let mut world = World::linked();
    world.pass(1600, &[B]);
    assert_eq!(world.via(C), Some(B));
    world.puller.handle_heard(world.now, C);
    world.tick();
    assert_eq!(world.via(C), Some(C));
}

#[test]
fn a_peer_that_does_not_serve_a_log_is_asked_again_only_after_a_wait_that_grows() {
    let mut world = World::new();
    world.connect(C);
    world.hear(C, &[]);
    let mut waits = Vec::new();
    for _ in 0..8 {
        world.end(C, &Ended::Violated);
        let began = world.now;
        while world.via(C).is_none() {
            world.pass(100, &[C]);
        }
        waits.push(world.now.since(began).as_millis());
    }
    assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
}

#[test]
fn news_of_an_earlier_subscription_does_not_end_the_present_one() {
    let mut world = World::linked();
    let old = world.current(C).unwrap();
    world.puller.handle_disconnected(world.now, C);
    let present = world.current(C);
    world.puller.handle_ended(world.now, old, &Ended::Lost);
    assert_eq!(world.current(C), present);
}

#[test]
fn another_chain_at_the_same_position_stops_the_log_and_raises_one_alarm() {
    let mut world = World::linked();
    world.ours = vec![head(C, 4)];
    let mut other = head(C, 4);
    other.chain = Chain([99; 32]);
    let actions = world.hear(C, &[other]);
    let alarm = Alarm {
        log: log_of(C),
        peer: C,
        kind: AlarmKind::Diverged {
            position: Position(4),
        },
    };
    assert_eq!(raised(&actions), [alarm]);
    assert!(
        actions
            .iter()
            .any(|it| matches!(it, Action::Unsubscribe(_)))
    );
    assert_eq!(world.via(C), None);
    // Neither time nor a relay brings it back, and the operator is not told twice.
    world.hear(B, &[head(C, 9)]);
    assert_eq!(raised(&world.hear(C, &[other])), []);
    world.pass(60_000, &[B, C]);
    assert_eq!(world.via(C), None);
    assert_eq!(world.via(B), Some(B), "other logs go on");
    assert_eq!(world.puller.alarms().collect::<Vec<_>>(), [alarm]);
}

#[test]
fn blocks_or_an_answer_that_tell_of_another_history_stop_the_log_too() {
    let position = Position(4);
    let not_served = NotServed::Diverged {
        log: log_of(C),
        position,
    };
    for reason in [Ended::WrongChain { position }, Ended::NotServed(not_served)] {
        let mut world = World::linked();
        world.ours = vec![head(C, 4)];
        let actions = world.end(C, &reason);
        assert_eq!(raised(&actions).len(), 1);
        world.pass(60_000, &[B, C]);
        assert_eq!(world.via(C), None);
    }
}

#[test]
fn a_relay_that_diverged_is_not_asked_but_the_origin_is() {
    let mut world = World::linked();
    world.ours = vec![head(C, 4)];
    let mut other = head(C, 4);
    other.chain = Chain([99; 32]);
    assert_eq!(raised(&world.hear(B, &[other])).len(), 1);
    assert_eq!(world.via(C), Some(C));
    world.puller.handle_disconnected(world.now, C);
    assert_eq!(world.via(C), None);
}

#[test]
fn an_alarm_is_over_when_the_copies_agree_again() {
    let mut world = World::linked();
    world.ours = vec![head(C, 4)];
    let mut other = head(C, 4);
    other.chain = Chain([99; 32]);
    world.hear(B, &[other]);
    let actions = world.hear(B, &[head(C, 4)]);
    assert!(actions.iter().any(|it| matches!(it, Action::Clear(_))));
    assert_eq!(world.puller.alarms().count(), 0);
}

#[test]
fn a_later_life_of_a_log_is_not_pulled_over_an_earlier_one() {
    let mut world = World::linked();
    world.ours = vec![head(C, 4)];
    let mut later = head(C, 9);
    later.incarnation = Incarnation(2);
    let alarms = raised(&world.hear(C, &[later]));
    assert!(matches!(
        alarms[..],
        [Alarm {
            kind: AlarmKind::LaterIncarnation { .. },
            ..
        }]
    ));
    assert_eq!(world.via(C), None);
}

#[test]
fn our_own_lost_log_is_pulled_back_from_who_holds_most_until_we_write_it() {
    let mut world = World::new();
    world.connect(B);
    world.connect(C);
    world.hear(B, &[head(A, 5)]);
    assert_eq!(world.via(A), Some(B));
    world.hear(C, &[head(A, 9)]);
    world.ours = vec![head(A, 5)];
    world.tick();
    assert_eq!(world.via(A), Some(C), "b has nothing more to give");
    let actions = world.puller.handle_writing_own(world.now);
    assert!(matches!(actions[..], [Action::Unsubscribe(it)] if it.log == log_of(A)));
    assert_eq!(world.via(A), None);
    let alarms = raised(&world.hear(C, &[head(A, 9)]));
    let kind = AlarmKind::HoldsMoreOfOurs {
        ours: Position(5),
        theirs: Position(9),
    };
    assert_eq!(alarms.len(), 1);
    assert_eq!(alarms[0].kind, kind);
    world.pass(60_000, &[B, C]);
    assert_eq!(world.via(A), None);
}

#[test]
fn our_own_log_is_not_pulled_from_who_holds_no_more_than_we() {
    let mut world = World::new();
    world.connect(B);
    world.ours = vec![head(A, 5)];
    world.hear(B, &[head(A, 5)]);
    assert_eq!(world.via(A), None);
}

#[test]
fn a_log_far_behind_is_caught_up_in_bulk_and_then_followed_live() {
    let timings = PullerTimings::default();
    let mut world = World::linked();
    let lane = |world: &World| world.current(C).unwrap().lane;
    world.hear(C, &[head(C, timings.bulk_above)]);
    assert_eq!(lane(&world), Lane::Live);
    world.hear(C, &[head(C, timings.bulk_above + 1)]);
    assert_eq!(lane(&world), Lane::Bulk);
    // It does not go back and forth around one mark.
    world.ours = vec![head(C, 2)];
    world.tick();
    assert_eq!(lane(&world), Lane::Bulk);
    world.ours = vec![head(C, timings.bulk_above - timings.live_below + 2)];
    world.tick();
    assert_eq!(lane(&world), Lane::Live);
}

#[test]
fn a_damaged_range_is_fetched_from_those_that_hold_it_in_turn() {
    let mut world = World::linked();
    world.hear(B, &[head(C, 9)]);
    world.hear(C, &[head(C, 9)]);
    let holder = |turn| world.puller.holder(log_of(C), Position(9), turn);
    assert_eq!(
        [holder(0), holder(1), holder(2)],
        [Some(B), Some(C), Some(B)]
    );
    assert_eq!(world.puller.holder(log_of(C), Position(10), 0), None);
}

#[derive(Clone, Debug)]
enum Step {
    Connect(RegionId),
    Disconnect(RegionId),
    // The peer says what it holds of each log, in a history that is the same for all.
    Hear(RegionId, [u64; 3]),
    Receive(RegionId, u64),
    End(RegionId, Ended),
    Pass(u64),
    WriteOwn,
}

fn a_step() -> impl Strategy<Value = Step> {
    let peer = || prop_oneof![Just(B), Just(C)];
    let origin = || prop_oneof![Just(A), Just(B), Just(C)];
    let reason = prop_oneof![
        Just(Ended::Lost),
        Just(Ended::Violated),
        Just(Ended::Local),
        origin().prop_map(|origin| {
            Ended::NotServed(NotServed::Damaged {
                log: log_of(origin),
                after: Position(1),
            })
        }),
    ];
    let positions = || prop::array::uniform3(prop_oneof![0..20u64, 0..40_000u64]);
    prop_oneof![
        2 => peer().prop_map(Step::Connect),
        1 => peer().prop_map(Step::Disconnect),
        4 => (peer(), positions()).prop_map(|(peer, positions)| Step::Hear(peer, positions)),
        3 => (origin(), 1..2000u64).prop_map(|(origin, count)| Step::Receive(origin, count)),
        2 => (origin(), reason).prop_map(|(origin, reason)| Step::End(origin, reason)),
        3 => (1..30u64).prop_map(|ticks| Step::Pass(ticks * 100)),
        1 => Just(Step::WriteOwn),
    ]
}

proptest! {
    /// Whatever happens, in whatever order: a log has one puller at most and every change of it is
    /// told to the driver, nobody is asked who is not linked or has not spoken, our own log is left
    /// alone once we write it; and when all is calm, every log is pulled from its origin.
    #[test]
    fn the_driver_is_told_all_it_needs_and_never_to_pull_twice(
        steps in prop::collection::vec(a_step(), 1..120),
    ) {
        let mut world = World::new();
        let mut running: BTreeMap<LogId, Subscription> = BTreeMap::new();
        let mut spoken: BTreeMap<RegionId, bool> = BTreeMap::new();
        let mut writes_own = false;
        for step in steps {
            let actions = match step {
                Step::Connect(peer) => {
                    spoken.insert(peer, false);
                    world.connect(peer)
                }
                Step::Disconnect(peer) => {
                    spoken.remove(&peer);
                    world.puller.handle_disconnected(world.now, peer)
                }
                Step::Hear(peer, positions) => {
                    if let Some(has_spoken) = spoken.get_mut(&peer) {
                        *has_spoken = true;
                    }
                    let heads = [A, B, C].into_iter().zip(positions);
                    let heads: Vec<_> = heads.map(|(origin, at)| head(origin, at)).collect();
                    world.hear(peer, &heads)
                }
                Step::Receive(origin, count) => {
                    let known = world.ours.iter().position(|ours| ours.log == log_of(origin));
                    let index = known.unwrap_or_else(|| {
                        world.ours.push(head(origin, 0));
                        world.ours.len() - 1
                    });
                    world.ours[index] = head(origin, world.ours[index].position.0 + count);
                    world.tick()
                }
                Step::End(origin, reason) => match running.remove(&log_of(origin)) {
                    Some(ended) => world.puller.handle_ended(world.now, ended, &reason),
                    None => Vec::new(),
                },
                Step::Pass(millis) => world.pass(millis, &[]),
                Step::WriteOwn => {
                    writes_own = true;
                    world.puller.handle_writing_own(world.now)
                }
            };
            for action in actions {
                match action {
                    Action::Subscribe(subscription) => {
                        let earlier = running.insert(subscription.log, subscription);
                        prop_assert_eq!(earlier, None, "two pull one log");
                    }
                    Action::Unsubscribe(subscription) => {
                        let stopped = running.remove(&subscription.log);
                        prop_assert_eq!(stopped, Some(subscription), "another one was stopped");
                    }
                    Action::Raise(_) | Action::Clear(_) => {}
                }
            }
            let told: Vec<_> = running.values().copied().collect();
            let meant: Vec<_> = world.puller.subscriptions().collect();
            prop_assert_eq!(told, meant);
            for subscription in running.values() {
                prop_assert_eq!(spoken.get(&subscription.via), Some(&true));
                prop_assert!(!(writes_own && subscription.log.origin == A));
            }
        }

        world.puller.handle_writing_own(world.now);
        for peer in [B, C] {
            world.connect(peer);
        }
        for _ in 0..70 {
            for peer in [B, C] {
                let heads = world.ours.clone();
                world.hear(peer, &heads);
            }
            world.pass(1000, &[B, C]);
        }
        prop_assert_eq!((world.via(A), world.via(B), world.via(C)), (None, Some(B), Some(C)));
        prop_assert!(world.puller.subscriptions().all(|it| it.lane == Lane::Live));
    }
}
