//! Both ends of one subscription.

use meridian_clock::{Epoch, Incarnation, Position};
use meridian_event::{Block, Chain};
use meridian_replication::frame::{Ack, Head, NotServed, Subscribe};
use meridian_replication::link::{
    AckError, InboundError, InboundSubscription, OutboundSubscription, Verdict,
};
use proptest::prelude::*;

use crate::{A, B, block_after, history, log_of};

fn epoch(major: u32) -> Epoch {
    Epoch { major, minor: 0 }
}

const WINDOW: u64 = 10_000;

fn bytes(blocks: &[Block]) -> u64 {
    blocks.iter().map(|block| block.bytes().len() as u64).sum()
}

// Has accepted the first `count` blocks, none of them durable.
fn inbound_after(blocks: &[Block], count: usize) -> InboundSubscription {
    let empty = Head::empty(log_of(A));
    let mut inbound = InboundSubscription::new(&empty, Position::ZERO, WINDOW);
    for block in &blocks[..count] {
        assert_eq!(inbound.handle_block(block), Ok(Verdict::Persist));
    }
    inbound
}

#[test]
fn blocks_in_order_are_persisted() {
    let (heads, blocks) = history(log_of(A), 3);
    let inbound = inbound_after(&blocks, 3);
    assert_eq!(inbound.accepted(), heads[3].position);
    let asked = inbound.subscribe();
    assert_eq!(
        (asked.after, asked.chain),
        (heads[3].position, heads[3].chain)
    );
}

#[test]
fn a_replay_is_not_persisted_again_and_its_credit_is_given_back() {
    let (_, blocks) = history(log_of(A), 3);
    let mut inbound = inbound_after(&blocks, 3);
    let verdict = inbound.handle_block(&blocks[1]);
    let expected = Ack {
        durable: Position::ZERO,
        credit_bytes: WINDOW + bytes(&blocks[1..2]),
    };
    assert_eq!(verdict, Ok(Verdict::AlreadyHeld(expected)));
    assert_eq!(inbound.accepted(), Position(6));
}

#[test]
fn a_gap_is_refused_and_nothing_of_it_counts() {
    let (_, blocks) = history(log_of(A), 3);
    let mut inbound = inbound_after(&blocks, 1);
    let gap = InboundError::Gap {
        log: log_of(A),
        expected: Position(3),
        found: Position(5),
    };
    assert_eq!(inbound.handle_block(&blocks[2]), Err(gap));
    assert_eq!(inbound.accepted(), Position(2));
}

#[test]
fn a_block_that_was_written_after_other_bytes_is_refused() {
    let (_, blocks) = history(log_of(A), 2);
    let mut inbound = inbound_after(&blocks, 1);
    let mut other = Head::empty(log_of(A));
    block_after(&mut other, 1);
    let theirs = block_after(&mut other, 1);
    let wrong = InboundError::WrongChain {
        log: log_of(A),
        position: Position(2),
    };
    assert_eq!(inbound.handle_block(&theirs), Err(wrong));
    assert_eq!(inbound.accepted(), Position(2));
    assert_eq!(inbound.handle_block(&blocks[1]), Ok(Verdict::Persist));
}

#[test]
fn a_block_of_another_life_or_an_earlier_epoch_or_another_log_is_refused() {
    let (heads, _) = history(log_of(A), 1);
    let next = |change: &dyn Fn(&mut Head)| {
        let mut head = heads[1];
        head.epoch = epoch(5);
        let mut inbound = InboundSubscription::new(&head, head.position, WINDOW);
        change(&mut head);
        let block = block_after(&mut head, 0);
        inbound.handle_block(&block)
    };
    assert_eq!(next(&|_| {}), Ok(Verdict::Persist));
    assert!(matches!(
        next(&|head| head.incarnation = Incarnation(2)),
        Err(InboundError::OtherIncarnation { .. })
    ));
    assert!(matches!(
        next(&|head| head.epoch = epoch(4)),
        Err(InboundError::EarlierEpoch { .. })
    ));
    assert!(matches!(
        next(&|head| head.log = log_of(B)),
        Err(InboundError::OtherLog { .. })
    ));
    assert_eq!(next(&|head| head.epoch = epoch(6)), Ok(Verdict::Persist));
}

#[test]
fn a_log_of_which_nothing_is_held_is_taken_in_whatever_life_it_is() {
    let mut head = Head::empty(log_of(A));
    head.incarnation = Incarnation(9);
    let block = block_after(&mut head, 0);
    let mut inbound = inbound_after(&[], 0);
    assert_eq!(inbound.handle_block(&block), Ok(Verdict::Persist));
    assert_eq!(inbound.subscribe().incarnation, Incarnation(9));
}

#[test]
fn nothing_is_acknowledged_before_it_is_durable_and_one_answer_covers_all() {
    let (_, blocks) = history(log_of(A), 3);
    let mut inbound = inbound_after(&blocks, 3);
    let Ok(Verdict::AlreadyHeld(ack)) = inbound.handle_block(&blocks[2]) else {
        panic!("it is held");
    };
    assert_eq!(ack.durable, Position::ZERO);
    let ack = inbound.handle_durable(Position(4)).unwrap().unwrap();
    assert_eq!(ack.durable, Position(4));
    assert_eq!(inbound.handle_durable(Position(4)), Ok(None));
    assert_eq!(inbound.handle_durable(Position(3)), Ok(None));
}

#[test]
fn a_log_that_grew_by_another_hand_ends_the_subscription() {
    let (_, blocks) = history(log_of(A), 2);
    let mut inbound = inbound_after(&blocks, 2);
    let error = inbound.handle_durable(Position(5));
    assert!(matches!(error, Err(InboundError::WrittenElsewhere { .. })));
}

#[test]
fn credit_is_given_back_only_for_what_is_durable() {
    let (_, blocks) = history(log_of(A), 2);
    let mut inbound = inbound_after(&blocks, 2);
    assert_eq!(inbound.subscribe().credit_bytes, WINDOW);
    let ack = inbound.handle_durable(Position(2)).unwrap().unwrap();
    assert_eq!(ack.credit_bytes, WINDOW + bytes(&blocks[..1]));
    let ack = inbound.handle_durable(Position(4)).unwrap().unwrap();
    assert_eq!(ack.credit_bytes, WINDOW + bytes(&blocks));
}

#[test]
fn a_block_may_end_beyond_the_credit_but_not_begin_there() {
    let (_, blocks) = history(log_of(A), 2);
    let empty = Head::empty(log_of(A));
    let mut inbound = InboundSubscription::new(&empty, Position::ZERO, 1);
    assert_eq!(inbound.handle_block(&blocks[0]), Ok(Verdict::Persist));
    let over = inbound.handle_block(&blocks[1]);
    assert!(matches!(over, Err(InboundError::OverCredit { .. })));
}

fn subscribe(after: &Head, credit_bytes: u64) -> Subscribe {
    Subscribe {
        log: after.log,
        incarnation: after.incarnation,
        after: after.position,
        chain: after.chain,
        credit_bytes,
    }
}

fn start(
    subscribe: &Subscribe,
    heads: &[Head],
    blocks: &[Block],
) -> Result<OutboundSubscription, NotServed> {
    let next = blocks
        .iter()
        .map(|block| *block.header())
        .find(|header| header.last_position() > subscribe.after);
    OutboundSubscription::start(subscribe, heads.last().unwrap(), next.as_ref())
}

#[test]
fn a_subscription_goes_on_where_the_asker_is() {
    let (heads, blocks) = history(log_of(A), 3);
    for (index, head) in heads.iter().enumerate() {
        let mut outbound = start(&subscribe(head, WINDOW), &heads, &blocks).unwrap();
        assert_eq!(outbound.sent(), head.position);
        let count = outbound.handle_read(&blocks[index..]);
        assert_eq!(count, 3 - index);
        assert_eq!(outbound.sent(), Position(6));
        assert_eq!(outbound.wants_bytes(Position(6), 1 << 20), None);
    }
}

#[test]
fn an_asker_that_holds_more_is_told_how_far_we_are() {
    let (heads, blocks) = history(log_of(A), 3);
    let asked = subscribe(&heads[3], WINDOW);
    let refused = start(&asked, &heads[..3], &blocks[..2]).map(drop);
    let behind = NotServed::Behind {
        log: log_of(A),
        held: Position(4),
        asked: Position(6),
    };
    assert_eq!(refused, Err(behind));
}

#[test]
fn an_asker_with_another_history_is_told_that_it_differs() {
    let (heads, blocks) = history(log_of(A), 3);
    for head in &heads {
        let mut asked = subscribe(head, WINDOW);
        asked.chain = Chain([9; 32]);
        let refused = start(&asked, &heads, &blocks).map(drop);
        let diverged = NotServed::Diverged {
            log: log_of(A),
            position: head.position,
        };
        assert_eq!(refused, Err(diverged));
    }
}

#[test]
fn an_asker_that_cut_its_blocks_elsewhere_has_another_history() {
    let (heads, blocks) = history(log_of(A), 3);
    let mut asked = subscribe(&heads[1], WINDOW);
    asked.after = Position(3);
    let refused = start(&asked, &heads, &blocks).map(drop);
    assert!(matches!(refused, Err(NotServed::Diverged { .. })));
}

#[test]
fn an_asker_of_another_life_is_refused() {
    let (heads, blocks) = history(log_of(A), 3);
    let mut asked = subscribe(&heads[1], WINDOW);
    asked.incarnation = Incarnation(8);
    let refused = start(&asked, &heads, &blocks).map(drop);
    assert!(matches!(refused, Err(NotServed::OtherIncarnation { .. })));
}

#[test]
fn no_more_blocks_are_sent_than_begin_within_the_credit() {
    let (heads, blocks) = history(log_of(A), 3);
    let one = bytes(&blocks[..1]);
    let mut outbound = start(&subscribe(&heads[0], one + 1), &heads, &blocks).unwrap();
    assert_eq!(outbound.handle_read(&blocks), 2);
    assert_eq!(outbound.wants_bytes(Position(6), 1 << 20), None);
    let ack = Ack {
        durable: Position(2),
        credit_bytes: bytes(&blocks[..2]) + 7,
    };
    outbound.handle_ack(ack).unwrap();
    assert_eq!(outbound.wants_bytes(Position(6), 1 << 20), Some(7));
    assert_eq!(outbound.wants_bytes(Position(6), 5), Some(5));
    assert_eq!(outbound.handle_read(&blocks[2..]), 1);
}

#[test]
fn what_an_asker_goes_on_from_does_not_count_as_on_its_disk() {
    // After a change of lane or of peer, the asker has accepted more than is durable there. An
    // acknowledgement of less must not be rounded up to it.
    let (heads, blocks) = history(log_of(A), 3);
    let mut outbound = start(&subscribe(&heads[2], WINDOW), &heads, &blocks).unwrap();
    let ack = Ack {
        durable: heads[1].position,
        credit_bytes: WINDOW,
    };
    outbound.handle_ack(ack).unwrap();
    assert_eq!(outbound.durable(), heads[1].position);
}

#[test]
fn acknowledging_what_was_not_sent_is_an_error_and_counts_for_nothing() {
    let (heads, blocks) = history(log_of(A), 3);
    let mut outbound = start(&subscribe(&heads[1], WINDOW), &heads, &blocks).unwrap();
    let ack = |durable: u64| Ack {
        durable: Position(durable),
        credit_bytes: WINDOW,
    };
    outbound.handle_ack(ack(1)).unwrap();
    let error = AckError::NotSent {
        log: log_of(A),
        acknowledged: Position(6),
        sent: Position(2),
    };
    assert_eq!(outbound.handle_ack(ack(6)), Err(error));
    assert_eq!(outbound.durable(), Position(1));
}

#[test]
fn an_old_acknowledgement_takes_nothing_back() {
    let (heads, blocks) = history(log_of(A), 3);
    let mut outbound = start(&subscribe(&heads[0], WINDOW), &heads, &blocks).unwrap();
    outbound.handle_read(&blocks);
    for durable in [4, 2] {
        let ack = Ack {
            durable: Position(durable),
            credit_bytes: WINDOW * durable,
        };
        outbound.handle_ack(ack).unwrap();
    }
    assert_eq!(outbound.durable(), Position(4));
    let left = WINDOW * 4 - bytes(&blocks);
    let wants = outbound.wants_bytes(Position(8), usize::MAX);
    assert_eq!(wants, Some(usize::try_from(left).unwrap()));
}

#[test]
#[should_panic(expected = "dense")]
fn our_own_store_skipping_a_block_is_our_defect() {
    let (heads, blocks) = history(log_of(A), 3);
    let mut outbound = start(&subscribe(&heads[0], WINDOW), &heads, &blocks).unwrap();
    outbound.handle_read(&blocks[1..]);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Send,
    Deliver,
    Commit(u8),
    Cut,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => Just(Step::Send),
        4 => Just(Step::Deliver),
        4 => (1u8..4).prop_map(Step::Commit),
        1 => Just(Step::Cut),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn both_ends_agree_whatever_is_cut_and_the_sender_never_believes_too_much(
        steps in steps(),
        window in 1u64..1500,
    ) {
        let (heads, blocks) = history(log_of(A), 12);
        let last = heads.last().unwrap().position;
        let at = |position: Position| usize::try_from(position.0 / 2).unwrap();
        let mut durable = Position::ZERO;
        let mut accepted = heads[0];
        let mut link: Option<(InboundSubscription, OutboundSubscription)> = None;
        let mut line: Vec<Block> = Vec::new();
        let largest = blocks.iter().map(|block| block.bytes().len() as u64).max().unwrap();
        let mut asked = accepted.position;
        let run = steps.into_iter().chain((0..200).map(|round| match round % 3 {
            0 => Step::Send,
            1 => Step::Deliver,
            _ => Step::Commit(3),
        }));
        for step in run {
            let (inbound, outbound) = link.get_or_insert_with(|| {
                line.clear();
                asked = accepted.position;
                let inbound = InboundSubscription::new(&accepted, durable, window);
                let outbound = start(&inbound.subscribe(), &heads, &blocks).unwrap();
                (inbound, outbound)
            });
            match step {
                Step::Send => {
                    if outbound.wants_bytes(last, usize::MAX).is_some() {
                        let from = at(outbound.sent());
                        let count = outbound.handle_read(&blocks[from..]);
                        prop_assert!(count > 0);
                        line.extend_from_slice(&blocks[from..from + count]);
                    }
                }
                Step::Deliver => {
                    if !line.is_empty() {
                        let block = line.remove(0);
                        prop_assert_eq!(inbound.handle_block(&block), Ok(Verdict::Persist));
                        accepted = heads[at(inbound.accepted())];
                    }
                }
                Step::Commit(count) => {
                    durable = Position(durable.0 + 2 * u64::from(count)).min(accepted.position);
                    if let Some(ack) = inbound.handle_durable(durable).unwrap() {
                        prop_assert!(ack.durable <= durable);
                        outbound.handle_ack(ack).unwrap();
                    }
                }
                Step::Cut => {
                    link = None;
                    continue;
                }
            }
            prop_assert!(outbound.durable() <= durable, "believed before it was on disk");
            // What came on this subscription and is not durable is bounded by the window and one
            // block.
            let from = at(asked.max(durable));
            let underway = bytes(&blocks[from..at(outbound.sent()).max(from)]);
            prop_assert!(underway <= window + largest, "{underway} bytes are underway");
        }
        prop_assert_eq!(durable, last, "it stalled");
    }
}
