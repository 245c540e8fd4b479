//! The trained copy of a model against the references of the engine's own, the gates' loss at its ends, and its gradient.

use std::path::{Path, PathBuf};

use burn::tensor::{Tensor, TensorData};
use kvik_kernels::ThreadPool;
use kvik_model::{Checkpoint, architectures::llama::Llama};
use kvik_train::{
    TrainError,
    duo::{
        Settings,
        data::Sequence,
        streams::streams,
        train::{distance, gradient, learning_rate},
    },
    frozen::{FrozenLlama, Mask},
};

const SETTINGS: Settings = Settings {
    steps: 100,
    min_tokens: 40,
    max_tokens: 40,
    keys: 1,
    words: 1,
    sink: 2,
    recent: 6,
    learning_rate: 0.02,
    penalty: 0.05,
    seed: 0,
};

fn path(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data").join(model)
}

fn load(model: &str) -> FrozenLlama {
    FrozenLlama::load(&Checkpoint::open(&path(model)).unwrap(), &ThreadPool::new(1)).unwrap()
}

/// A text of the models' alphabet, of which the last ten tokens count.
fn sequence() -> Sequence {
    let tokens: Vec<u32> = (0..40).map(|i| 3 + (i * 31 + i * i * 7) % 93).collect();
    Sequence { labels: 30..40, tokens }
}

fn gates(model: &FrozenLlama, gate: impl Fn(usize) -> f32) -> Tensor<2> {
    let shape = [model.layers(), model.kv_heads()];
    let numbers: Vec<f32> = (0..shape[0] * shape[1]).map(gate).collect();
    Tensor::from_data(TensorData::new(numbers, shape), model.device())
}

fn numbers<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.inner().into_data().iter::<f32>().collect()
}

#[test]
fn hidden_states_give_the_references_logits() {
    let models = ["tiny-models/llama", "tiny-models/llama-bias", "tiny-models/llama-tied", "tiny-gguf/llama"];
    for model in models {
        let (folder, frozen) = (path(model), load(model));
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        let golden: serde_json::Value = serde_json::from_slice(&read("golden.json")).unwrap();
        let logits: Vec<f32> = read("golden.f32")
            .chunks_exact(4)
            .map(|le| f32::from_le_bytes([le[0], le[1], le[2], le[3]]))
            .collect();
        let llama = Llama::load(&Checkpoint::open(&folder).unwrap(), &ThreadPool::new(1)).unwrap();
        let output = &llama.output.weight;
        let (vocabulary, hidden) = (output.out_features(), output.in_features());
        let mut compared = 0;
        for prompt in golden["prompts"].as_array().unwrap() {
            let ids: Vec<u32> =
                prompt["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            let first = prompt["first_row"].as_u64().unwrap() as usize;
            let mask = Mask::causal(ids.len(), frozen.device());
            let states = numbers(frozen.hidden_states(&ids, &mask, |_, attended| attended));
            for (row, state) in states.chunks_exact(hidden).enumerate() {
                for token in 0..vocabulary {
                    let mut weights = vec![0.0; hidden];
                    output.dequantize_row(token, &mut weights);
                    let got: f32 = weights.iter().zip(state).map(|(w, x)| w * x).sum();
                    let want = logits[(first + row) * vocabulary + token];
                    assert!((got - want).abs() < 1e-3 * (1.0 + want.abs()), "{model}: {got} {want}");
                    compared += 1;
                }
            }
        }
        assert_eq!(compared, logits.len(), "{model}");
    }
    let gemma = Checkpoint::open(&path("tiny-models/gemma3")).unwrap();
    let refused = FrozenLlama::load(&gemma, &ThreadPool::new(1)).err().unwrap();
    assert!(matches!(refused, TrainError::OtherArchitecture(_)), "{refused}");
}

#[test]
fn gates_of_1_lose_nothing_and_gates_of_0_are_sinks_and_a_window() {
    let (model, sequence) = (load("tiny-models/llama"), sequence());
    let open = gates(&model, |_| 1.0);
    let both = streams(&model, &sequence.tokens, &open, &SETTINGS);
    let (full, mixed) = (numbers(both.full), numbers(both.mixed));
    let far = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert_eq!(full, mixed);
    let (loss, slope) = gradient(&model, &sequence, &open, &SETTINGS);
    assert_eq!((loss.distance, loss.mean_gate), (0.0, 1.0));
    // Only the penalty moves them: it is the mean's share of each.
    let share = SETTINGS.penalty / (model.layers() * model.kv_heads()) as f32;
    assert!(numbers(slope).iter().all(|slope| (slope - share).abs() < 1e-6 * share));

    let shut = streams(&model, &sequence.tokens, &gates(&model, |_| 0.0), &SETTINGS);
    let mask = Mask::streaming(sequence.tokens.len(), SETTINGS.sink, SETTINGS.recent, model.device());
    let windowed = numbers(model.hidden_states(&sequence.tokens, &mask, |_, attended| attended));
    let mixed = numbers(shut.mixed);
    assert!(far(&mixed, &windowed) < 1e-6);
    assert!(far(&mixed, &numbers(shut.full)) > 1e-2, "the window hides what counts");
}

#[test]
fn the_gradient_is_that_of_finite_differences() {
    let (model, sequence) = (load("tiny-models/llama"), sequence());
    let at = |index: usize| 0.3 + 0.15 * index as f32;
    let (_, slopes) = gradient(&model, &sequence, &gates(&model, at), &SETTINGS);
    let slopes = numbers(slopes);
    let count = slopes.len();
    let loss = |moved: usize, by: f32| {
        let moved = |index: usize| at(index) + if index == moved { by } else { 0.0 };
        let mean = (0..count).map(moved).sum::<f32>() / count as f32;
        let distance = numbers(distance(&model, &sequence, &gates(&model, moved), &SETTINGS))[0];
        f64::from(distance) + f64::from(SETTINGS.penalty * mean)
    };
    const STEP: f32 = 0.02;
    for (index, &slope) in slopes.iter().enumerate() {
        let difference = (loss(index, STEP) - loss(index, -STEP)) / f64::from(2.0 * STEP);
        let error = (difference as f32 - slope).abs();
        assert!(error < 1e-2 * slope.abs(), "gate {index}: {slope}, and {difference} by differences");
    }
    // The distance takes part in it, and not the penalty alone.
    let share = SETTINGS.penalty / count as f32;
    assert!(slopes.iter().any(|slope| (slope - share).abs() > 0.05 * share), "{slopes:?}");
}

#[test]
fn the_learning_rate_goes_up_over_a_fifth_stays_and_goes_down() {
    let rate = |done| learning_rate(&SETTINGS, done) / SETTINGS.learning_rate;
    for (done, want) in [(0, 0.1), (10, 0.55), (20, 1.0), (50, 1.0), (79, 1.0), (89, 0.55), (99, 0.1)] {
        assert!((rate(done) - want).abs() < 1e-9, "{done}: {}", rate(done));
    }
}
