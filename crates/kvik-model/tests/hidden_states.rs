//! Hidden states behind the last norm: what the output matrix makes logits of.

use std::path::Path;

use kvik_kernels::ThreadPool;
use kvik_kv::KvStore;
use kvik_model::{
    Checkpoint, Model, Outputs,
    architectures::llama::Llama,
    layers::{Logits, Phase, Span},
};

const TOKENS: [u32; 12] = [5, 17, 3, 80, 42, 42, 9, 61, 33, 12, 7, 90];

/// What a pass over some sequences gives, each with the logits that it asks for.
fn run(folder: &Path, spans: &[(&[u32], Logits)]) -> Outputs {
    let pool = ThreadPool::new(2);
    let model = Model::load(&Checkpoint::open(folder).unwrap(), &pool, Some(64)).unwrap();
    let mut store = KvStore::new(model.kv_shape().clone(), spans.len(), 64, 64).unwrap();
    let mut workspace = model.workspace(2, 64);
    let mut caches: Vec<_> = spans.iter().map(|_| store.sequence()).collect();
    let mut spans: Vec<Span<'_>> = caches
        .iter_mut()
        .zip(spans)
        .map(|(cache, &(tokens, logits))| Span { cache, tokens, logits, phase: Phase::Prefill })
        .collect();
    model.run(&pool, &mut workspace, &mut store, &mut spans).unwrap()
}

#[test]
fn logits_are_the_output_matrix_times_hidden_states() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-models/llama");
    let logits = run(&folder, &[(&TOKENS, Logits::All)]).logits;
    let hidden = run(&folder, &[(&TOKENS, Logits::Hidden)]).hidden;
    assert_eq!((hidden.rows(), logits.rows()), (TOKENS.len(), TOKENS.len()));

    let network = Llama::load(&Checkpoint::open(&folder).unwrap(), &ThreadPool::new(1)).unwrap();
    let mut weights = vec![0.0; hidden.cols()];
    for id in 0..logits.cols() {
        network.output.weight.dequantize_row(id, &mut weights);
        for row in 0..hidden.rows() {
            let product: f32 = hidden.row(row).iter().zip(&weights).map(|(x, w)| x * w).sum();
            let got = logits.row(row)[id];
            assert!((got - product).abs() < 0.02 * (1.0 + product.abs()), "{row}, {id}: {got} {product}");
        }
    }
}

#[test]
fn spans_that_want_logits_and_hidden_states_go_together() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/tiny-models");
    for entry in std::fs::read_dir(tiny).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.join("config.json").exists() {
            continue;
        }
        let (a, b, c) = (&TOKENS[..5], &TOKENS[5..8], &TOKENS[2..11]);
        let mixed =
            run(&folder, &[(a, Logits::Last), (b, Logits::Hidden), (c, Logits::All), (a, Logits::Hidden)]);
        assert_eq!((mixed.logits.rows(), mixed.hidden.rows()), (1 + c.len(), b.len() + a.len()));
        let name = folder.display();
        let alone = |tokens, logits| run(&folder, &[(tokens, logits)]);
        assert_eq!(mixed.logits.row(0), &*alone(a, Logits::Last).logits, "{name}");
        let cols = mixed.logits.cols();
        assert_eq!(mixed.logits[cols..], *alone(c, Logits::All).logits, "{name}");
        let cols = mixed.hidden.cols();
        assert_eq!(mixed.hidden[..b.len() * cols], *alone(b, Logits::Hidden).hidden, "{name}");
        assert_eq!(mixed.hidden[b.len() * cols..], *alone(a, Logits::Hidden).hidden, "{name}");
        assert_eq!(alone(b, Logits::Hidden).logits.rows(), 0);
    }
}
