//! The plan against what it promises, for any sequences.

use super::*;
use proptest::prelude::*;

fn rank() -> impl Strategy<Value = Rank> {
    (-2i32..3, 0u64..50, 0u64..1000).prop_map(|(priority, served, arrival)| Rank {
        priority: Reverse(priority),
        served,
        arrival,
    })
}

fn view() -> impl Strategy<Value = View> {
    let counts = (0usize..400, 1usize..40, proptest::option::of(1usize..90), any::<bool>());
    (rank(), counts).prop_map(|(rank, (unread, unfollowed, piece, stepwise))| View {
        rank,
        // Half of them decode.
        unread: unread.saturating_sub(200),
        unfollowed: if unread > 200 { 0 } else { unfollowed.saturating_sub(30).max(1) },
        piece,
        stepwise: stepwise || piece.is_some(),
        suspect: false,
    })
}

/// What is left of a step beside decoding.
fn prefill_tokens(running: &[View], step_tokens: usize) -> usize {
    step_tokens - running.iter().filter(|view| view.decodes()).count()
}

/// The shares, and the views of all sequences, with those that were admitted.
fn planned(running: &[View], arriving: &[View], step_tokens: usize, room: usize) -> (Vec<Share>, Vec<View>) {
    let waiting: Vec<Rank> = arriving.iter().map(|view| view.rank).collect();
    let mut all = running.to_vec();
    let shares = plan(running, &waiting, prefill_tokens(running, step_tokens), &mut |index| {
        if all.len() == running.len() + room {
            return Admission::Full;
        }
        all.push(arriving[index]);
        Admission::Admitted(arriving[index])
    });
    (shares, all)
}

proptest! {
    #[test]
    fn every_step_keeps_its_promises(
        running in proptest::collection::vec(view(), 0..20),
        arriving in proptest::collection::vec(view(), 0..20),
        step_tokens in 21usize..300, room in 0usize..5,
    ) {
        let arriving: Vec<View> =
            arriving.into_iter().map(|view| View { unread: view.unread.max(1), unfollowed: 0, ..view }).collect();
        let (shares, all) = planned(&running, &arriving, step_tokens, room);
        let tokens_of = |sequence: usize| {
            shares.iter().filter(|share| share.sequence == sequence).map(|share| share.tokens).sum::<usize>()
        };

        // Each sequence has one share at most, in their order, and none without tokens.
        prop_assert!(shares.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
        prop_assert!(shares.iter().all(|share| share.tokens > 0));
        // Decoding never waits.
        for (index, view) in all.iter().enumerate().filter(|(_, view)| view.decodes()) {
            prop_assert_eq!(tokens_of(index), 1, "{:?}", view);
        }
        // Nobody gets more than there is to compute, and pieces are whole.
        for (index, view) in all.iter().enumerate().filter(|(_, view)| !view.decodes()) {
            let tokens = tokens_of(index);
            prop_assert!(tokens <= view.unread.max(view.unfollowed));
            if let Some(piece) = view.piece {
                prop_assert!(tokens == 0 || tokens == piece.min(view.unread));
            }
        }
        // The budget holds, but for the first piece of a step, which may be larger than what is left.
        let total: usize = shares.iter().map(|share| share.tokens).sum();
        let largest = all.iter().filter_map(|view| view.piece).max().unwrap_or(0);
        prop_assert!(total <= step_tokens + largest);
        if all.iter().all(|view| view.piece.is_none()) {
            prop_assert!(total <= step_tokens);
            // Nothing is left over while somebody has a prompt to read.
            let unread = all.iter().enumerate().any(|(index, view)| {
                !view.decodes() && tokens_of(index) < view.unread.max(view.unfollowed)
            });
            prop_assert!(!unread || total == step_tokens);
        }
        // Some prompt moves in every step.
        let reads = |view: &View| !view.decodes();
        if all.iter().any(reads) {
            prop_assert!(all.iter().enumerate().any(|(index, view)| reads(view) && tokens_of(index) > 0));
        }
        // Of those that read in any piece, nobody gets tokens while a better rank wants more.
        for (index, view) in all.iter().enumerate().filter(|(_, view)| reads(view) && view.piece.is_none()) {
            let wants = tokens_of(index) < view.unread.max(view.unfollowed);
            let overtaken = all.iter().enumerate().any(|(other, better)| {
                reads(better) && view.rank < better.rank && tokens_of(other) > 0 && better.piece.is_none()
            });
            prop_assert!(!(wants && overtaken), "{:?}", view);
        }
    }

    #[test]
    fn whoever_waits_is_admitted_in_the_order_of_ranks(
        ranks in proptest::collection::vec(rank(), 1..30), room in 1usize..10,
    ) {
        let mut order = Vec::new();
        let view = |rank| View { rank, unread: 10, unfollowed: 0, piece: None, stepwise: false, suspect: false };
        plan(&[], &ranks, 10_000, &mut |index| {
            if order.len() == room {
                return Admission::Full;
            }
            order.push(index);
            Admission::Admitted(view(ranks[index]))
        });
        prop_assert_eq!(order.len(), room.min(ranks.len()));
        prop_assert!(order.windows(2).all(|pair| ranks[pair[0]] <= ranks[pair[1]]));
        let last = ranks[order[order.len() - 1]];
        let skipped = (0..ranks.len()).filter(|index| !order.contains(index));
        prop_assert!(skipped.into_iter().all(|index| last <= ranks[index]));
    }
}

const READS: View = View {
    rank: Rank { priority: Reverse(0), served: 0, arrival: 5 },
    unread: 100,
    unfollowed: 0,
    piece: None,
    stepwise: false,
    suspect: false,
};

#[test]
fn a_better_rank_overtakes_a_prompt_that_is_being_read() {
    let (shares, _) = planned(
        &[READS],
        &[View { rank: Rank { arrival: 9, priority: Reverse(1), ..READS.rank }, unread: 30, ..READS }],
        64,
        1,
    );
    assert_eq!(shares, [Share { sequence: 0, tokens: 34 }, Share { sequence: 1, tokens: 30 }]);
    let (shares, _) = planned(&[READS], &[View { rank: Rank { arrival: 9, ..READS.rank }, ..READS }], 64, 1);
    assert_eq!(shares, [Share { sequence: 0, tokens: 64 }]);
}

#[test]
fn a_suspect_is_computed_alone() {
    let decodes = View { unread: 0, unfollowed: 1, ..READS };
    let (shares, all) = planned(&[decodes, View { suspect: true, ..READS }, READS], &[READS], 64, 1);
    assert_eq!((shares, all.len()), (vec![Share { sequence: 1, tokens: 63 }], 3));
}

#[test]
fn who_waits_for_later_is_passed_over() {
    let ranks = [READS.rank, Rank { arrival: 6, ..READS.rank }];
    let shares = plan(&[], &ranks, 64, &mut |index| match index {
        0 => Admission::Later,
        _ => Admission::Admitted(READS),
    });
    assert_eq!(shares, [Share { sequence: 0, tokens: 64 }]);
}

#[test]
fn the_youngest_of_the_lowest_priority_gives_way() {
    let rank = |priority: i32, arrival: u64| Rank { priority: Reverse(priority), served: 0, arrival };
    assert_eq!(victim([rank(0, 1), rank(-1, 2), rank(-1, 3), rank(0, 4)]), Some(2));
    assert_eq!(victim([]), None);
}
