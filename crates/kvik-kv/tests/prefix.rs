//! Exact prefixes: a sequence that begins with one goes on as if it had read it, and nobody else notices.

mod layer;

use kvik_kernels::Phase;
use kvik_kv::{Held, Pipeline};

use layer::{Run, Setting};

fn setting() -> Setting {
    Setting { heads: 4, kv_heads: 2, dim: 16, scale: 0.5, frequencies: vec![1.0, 0.5, 0.25, 0.125] }
}

const PIPELINES: [(&str, bool); 10] = [
    ("full", true),
    ("kivi(group=16,residual=16)", true),
    ("snapkv(budget=60,window=8)+kivi(group=16,residual=16)", true),
    ("snapkv(budget=60,window=40)", true),
    ("streaming(budget=60,positions=slot)", true),
    ("l2norm(budget=60,skip=0)", true),
    ("random(budget=60)", true),
    ("h2o(budget=60)", false),
    ("h2o(budget=60)+kivi(group=16,residual=16)", false),
    ("kivi(group=16,residual=16)+tier(ram=1MiB)", false),
];

#[test]
fn a_sequence_that_begins_with_a_prefix_gets_the_same_bits() {
    for (kv, begins) in PIPELINES {
        for len in [1, 64, 100, 128, 150] {
            let mut whole = Run::unwatched(&setting(), true, 0, kv);
            whole.step(90, Phase::Prefill);
            whole.step(len.max(91) - 90, Phase::Prefill);
            let before = (whole.cache.is_exact(), whole.cache.own_tokens().is_some());
            assert_eq!(before, (begins, begins), "{kv}");
            // The prefix is of a sequence that has read on, and is held by nobody else at the end.
            let mut run = Run::unwatched(&setting(), true, 0, "full");
            run.step(170, Phase::Prefill);
            let prefix = run.cache.exact_prefix(&mut run.store, len, None).unwrap();
            run.cache = run.store.sequence_with(&Pipeline::parse(kv).unwrap()).unwrap();
            assert_eq!(run.cache.start_from(&mut run.store, &prefix, len), begins, "{kv}");
            if !begins {
                continue;
            }
            drop(prefix);
            if len < 91 {
                run.step(91 - len, Phase::Prefill);
            }
            for run in [&mut whole, &mut run] {
                run.step(45, Phase::Prefill);
                run.end_of_prompt();
                assert_eq!(run.cache.is_exact(), kv == "full", "{kv}");
            }
            for step in 0..20 {
                let (expected, got) = (whole.step(1, Phase::Decode), run.step(1, Phase::Decode));
                assert_eq!(got, expected, "{kv}, {len} tokens, step {step}");
            }
            assert_eq!(run.cache.used_bytes(&run.store), whole.cache.used_bytes(&whole.store), "{kv}");
        }
    }
}

#[test]
fn prefixes_share_blocks_and_leave_nothing() {
    let mut run = Run::unwatched(&setting(), true, 0, "full");
    run.step(300, Phase::Prefill);
    let whole = run.store.used_bytes();
    let long = run.cache.exact_prefix(&mut run.store, 256, None).unwrap();
    let short = long.exact_prefix(&mut run.store, 100, None).unwrap();
    assert_eq!(run.store.used_bytes(), whole, "nothing was copied");
    assert_eq!(long.bytes_beside(&run.store, Some(&short)) * 2, long.bytes_beside(&run.store, None));
    let held = run.store.audit([&long, &short]).unwrap();
    // Four tiles of two heads with two planes, which the sequence holds too.
    assert_eq!((held.blocks, held.held_by_others), (16, 16));
    assert!(!short.reaches(&run.store, 101) && short.reaches(&run.store, 100));
    assert!(short.exact_prefix(&mut run.store, 0, None).is_none());

    // Another sequence with the same rows in blocks of its own is held from where the first ends.
    run.cache = run.store.sequence();
    run.step(300, Phase::Prefill);
    let joined = run.cache.exact_prefix(&mut run.store, 300, Some(&short)).unwrap();
    let tile = short.bytes_beside(&run.store, None) / 2;
    assert_eq!(joined.bytes_beside(&run.store, Some(&short)), 4 * tile, "one full tile is common");
    // Both write to the tile that they share in part.
    let before = short.bytes_beside(&run.store, None);
    run.cache = run.store.sequence();
    assert!(run.cache.start_from(&mut run.store, &short, 100));
    run.step(100, Phase::Prefill);
    assert_eq!(run.cache.bytes_beside(&run.store, Some(&short)), 3 * tile);
    assert_eq!(short.bytes_beside(&run.store, None), before);
    drop((long, short, joined));
    run.cache.clear();
    assert_eq!(run.store.audit([]), Ok(Held::default()));
    assert_eq!((run.store.used_bytes(), run.store.used_blocks()), (0, 0));
}
