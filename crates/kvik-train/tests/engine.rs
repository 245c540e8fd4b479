//! The trained copy of a model and the engine say the same, for every kind of file that both read.

use std::path::Path;

use kvik_kernels::{Phase, ThreadPool};
use kvik_kv::KvStore;
use kvik_model::{
    Checkpoint, Model,
    architectures::llama::Llama,
    layers::{Logits, Span},
};
use kvik_train::frozen::{FrozenLlama, Mask};

const TOKENS: [u32; 24] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6, 4];

fn of_engine(checkpoint: &Checkpoint) -> Vec<f32> {
    let pool = ThreadPool::new(1);
    let model = Model::load(checkpoint, &pool, None).unwrap();
    let mut store = KvStore::new(model.kv_shape().clone(), 1, TOKENS.len(), TOKENS.len()).unwrap();
    let mut workspace = model.workspace(1, TOKENS.len());
    let mut cache = store.sequence();
    let span = Span { cache: &mut cache, tokens: &TOKENS, logits: Logits::All, phase: Phase::Decode };
    model.forward(&pool, &mut workspace, &mut store, &mut [span]).unwrap().to_vec()
}

fn of_copy(checkpoint: &Checkpoint) -> Vec<f32> {
    let pool = ThreadPool::new(1);
    let model = FrozenLlama::load(checkpoint, &pool).unwrap();
    let mask = Mask::causal(TOKENS.len(), model.device());
    let states = model.hidden_states(&TOKENS, &mask, |_, attended| attended);
    let states: Vec<f32> = states.into_data().iter::<f32>().collect();
    let output = &Llama::load(checkpoint, &pool).unwrap().output.weight;
    let mut row = vec![0.0; output.in_features()];
    let mut logits = Vec::new();
    for state in states.chunks(row.len()) {
        for token in 0..output.out_features() {
            output.dequantize_row(token, &mut row);
            logits.push(row.iter().zip(state).map(|(w, x)| w * x).sum());
        }
    }
    logits
}

fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    let mean = want.iter().map(|&x| f64::from(x)).sum::<f64>() / want.len() as f64;
    let spread: f64 = want.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    let error: f64 = got.iter().zip(want).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    (error / spread).sqrt()
}

#[test]
fn copy_and_engine_say_the_same() {
    let models = [
        "tiny-gguf/llama",
        "tiny-gguf/llama-mixed",
        "tiny-gguf/llama-tied-bf16",
        "tiny-gguf/llama-rope-llama3",
        "tiny-gguf/llama-rope-linear",
        "tiny-gguf/llama-rope-yarn",
        "tiny-models/llama",
        "tiny-models/llama-mha-odd-sizes",
    ];
    for name in models {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data").join(name);
        let checkpoint = Checkpoint::open(&path).unwrap();
        let (got, want) = (of_copy(&checkpoint), of_engine(&checkpoint));
        assert_eq!(got.len(), want.len());
        let error = relative_error(&got, &want);
        assert!(error < 1e-2, "{name}: {error}");
    }
}
