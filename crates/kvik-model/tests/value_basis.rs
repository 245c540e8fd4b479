//! Values in another basis: every architecture says the same, with other numbers in its cache.

use std::path::{Path, PathBuf};

use kvik_kernels::{Phase, ThreadPool};
use kvik_kv::{KvStore, LayerShape, Method, Pipeline, ValueBasis};
use kvik_model::{
    Checkpoint, Model,
    layers::{Logits, Span},
};

fn tiny_models() -> Vec<PathBuf> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data");
    let folders = ["tiny-models", "tiny-gguf"].map(|kind| std::fs::read_dir(data.join(kind)).unwrap());
    let folders = folders.into_iter().flatten().map(|entry| entry.unwrap().path());
    folders.filter(|folder| folder.join("golden.json").exists()).collect()
}

fn load(folder: &Path) -> Model {
    Model::load(&Checkpoint::open(folder).unwrap(), &ThreadPool::new(1), None).unwrap()
}

const TOKENS: [u32; 12] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8];

fn logits(model: &Model) -> Vec<f32> {
    let pool = ThreadPool::new(1);
    let mut store = KvStore::new(model.kv_shape().clone(), 1, TOKENS.len(), TOKENS.len()).unwrap();
    let mut workspace = model.workspace(1, TOKENS.len());
    let mut cache = store.sequence();
    let span = Span { cache: &mut cache, tokens: &TOKENS, logits: Logits::All, phase: Phase::Decode };
    model.forward(&pool, &mut workspace, &mut store, &mut [span]).unwrap().to_vec()
}

fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    let mean = want.iter().map(|&x| f64::from(x)).sum::<f64>() / want.len() as f64;
    let spread: f64 = want.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    let error: f64 = got.iter().zip(want).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
    (error / spread).sqrt()
}

/// Caches every value twice, the second time with the opposite sign.
struct Twice;

impl Method for Twice {
    fn value_bases(&self, _layer: usize, shape: LayerShape) -> Option<Vec<ValueBasis>> {
        let (dim, from) = (2 * shape.value_dim, shape.value_dim);
        let sign = |row: usize, column: usize| match row {
            row if row == column => 1.0,
            row if row == column + from => -1.0,
            _ => 0.0,
        };
        let into = (0..dim * from).map(|index| sign(index / from, index % from)).collect();
        let back = (0..from * dim).map(|index| 0.5 * sign(index % dim, index / dim)).collect();
        Some(vec![ValueBasis { dim, into, back }; shape.kv_heads])
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(Self)
    }
}

#[test]
fn every_architecture_says_the_same_in_any_basis() {
    let folders = tiny_models();
    assert!(folders.len() > 30);
    let pool = ThreadPool::new(2);
    for folder in folders {
        let plain = load(&folder);
        let want = logits(&plain);

        let mut wide = load(&folder);
        wide.change_value_bases(&pool, &[Box::new(Twice)]).unwrap();
        let dims = |model: &Model| model.kv_shape().layers.iter().map(|layer| layer.value_dim).sum::<usize>();
        assert_eq!(dims(&wide), 2 * dims(&plain));
        let error = relative_error(&logits(&wide), &want);
        assert!(error < 0.01, "{}, wide: {error}", folder.display());

        let mut turned = load(&folder);
        match turned.prepare_for(&pool, &Pipeline::parse("hadamard").unwrap()) {
            Ok(()) => {
                let got = logits(&turned);
                let error = relative_error(&got, &want);
                assert!(error < 0.01, "{}: {error}", folder.display());
                assert!(got != want, "{}: nothing was turned", folder.display());
            }
            Err(refused) => assert!(refused.to_string().contains("power of two"), "{refused}"),
        }
    }
}

#[test]
fn a_pipeline_that_changes_weights_needs_them_changed() {
    let folder = &tiny_models()[0];
    let pipeline = |text: &str| Pipeline::parse(text).unwrap();
    let mut model = load(folder);
    let refused = |model: &Model, text: &str| {
        let store = KvStore::new(model.kv_shape().clone(), 1, 64, 64).unwrap();
        store.sequence_with(&pipeline(text)).err().map(|error| error.to_string())
    };
    assert_eq!(refused(&model, "kivi"), None);
    assert!(refused(&model, "hadamard+kivi").unwrap().contains("load the model with this pipeline"));
    model.prepare_for(&ThreadPool::new(1), &pipeline("hadamard+kivi")).unwrap();
    assert_eq!(model.kv_shape().basis, "hadamard");
    assert_eq!(refused(&model, "hadamard+kivi"), None);
    assert_eq!(refused(&model, "streaming+hadamard"), None);
    assert_eq!(refused(&model, "full"), None);
    assert!(refused(&model, "kivi").unwrap().contains("weights were loaded hadamard"));
}
