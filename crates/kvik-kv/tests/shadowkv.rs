//! ShadowKV against a numpy model of the paper, and what it owes a sequence whatever happens to it.

mod pass;

use std::{
    fs,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex},
};

use kvik_kernels::{
    Phase, ThreadPool,
    attention::{AttentionScratch, AttentionShape, PairLayout, PlaneKind, Reach, Rotary},
};
use kvik_kv::{
    CacheError, KvShape, KvStore, LayerShape, Method, OpenCache, Pipeline, SequenceCache, StepQueries,
};
use proptest::prelude::*;
use serde::Deserialize;

use pass::{New, layer_pass};

/// Attention layers only: keys, values and queries in, what is attended to out.
struct Model {
    pool: ThreadPool,
    store: KvStore,
    scratch: AttentionScratch,
    shape: AttentionShape,
    layers: usize,
}

impl Model {
    fn new(layers: usize, heads: usize, layer: LayerShape, rotary: Rotary) -> Self {
        let shape = AttentionShape {
            heads,
            kv_heads: layer.kv_heads,
            tile: layer.tile(),
            scale: (layer.key_dim as f32).powf(-0.5),
            reach: Reach::CAUSAL,
        };
        let mut kv = KvShape::unrotated(vec![layer; layers]);
        kv.rotary = vec![Some(Arc::new(rotary)); layers];
        Self {
            pool: ThreadPool::new(2),
            store: KvStore::new(kv, 3, 2000, 2000).unwrap(),
            scratch: AttentionScratch::new(2, &shape, 2000),
            shape,
            layers,
        }
    }

    fn sequence(&self, pipeline: &str) -> SequenceCache {
        self.store.sequence_with(&Pipeline::parse(pipeline).unwrap()).unwrap()
    }

    /// The methods of `pipeline`, and behind them one that looks.
    fn watched(&self, pipeline: &str, look: Look) -> SequenceCache {
        let pipeline = Pipeline::parse(pipeline).unwrap();
        let mut methods = pipeline.methods(self.store.shape()).unwrap();
        methods.push(Box::new(look));
        self.store.sequence_of(methods)
    }

    /// Adds tokens; what they attend to, `[layers][tokens, heads, dim]`.
    fn step(
        &mut self,
        cache: &mut SequenceCache,
        phase: Phase,
        new: impl Fn(usize) -> New,
    ) -> Result<Vec<Vec<f32>>, CacheError> {
        let Self { pool, store, scratch, shape, layers } = self;
        let tokens = new(0).keys.len() / (shape.kv_heads * shape.tile.key_dim);
        cache.reserve(store, tokens)?;
        let mut all = Vec::new();
        for layer in 0..*layers {
            all.push(layer_pass(pool, store, &mut [cache], layer, shape, phase, &new(layer), scratch)?);
        }
        cache.commit(pool, store, tokens, phase)?;
        Ok(all)
    }

    fn end_of_prompt(&mut self, cache: &mut SequenceCache) {
        cache.end_of_prompt(&self.pool, &mut self.store).unwrap();
    }
}

/// What a head's copies hold before the queries of a step attend.
#[derive(Clone, Default)]
struct Seen {
    positions: Vec<Vec<u32>>,
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    /// Keys and values of the whole head as its segments have them.
    all: [Vec<f32>; 2],
}

/// Notes what the copies of each head of the layer that attends last hold.
#[derive(Clone, Default)]
struct Look(Arc<Mutex<Vec<Seen>>>);

impl Method for Look {
    fn selects(&self) -> bool {
        true
    }

    fn before_attention(
        &mut self,
        cache: &mut OpenCache<'_>,
        layer: usize,
        _queries: StepQueries<'_>,
    ) -> Result<(), CacheError> {
        let mut heads = Vec::new();
        for kv_head in 0..cache.layer(layer).kv_heads {
            let mut seen = Seen::default();
            for (index, segment) in cache.copies(layer, kv_head).iter().enumerate() {
                seen.positions.push((0..segment.len()).map(|row| segment.position(row)).collect());
                let (keys, values) = cache.read_copies(layer, kv_head, index)?;
                seen.keys.push(keys);
                seen.values.push(values);
            }
            let rows = cache.rows(layer, kv_head);
            seen.all = [cache.keys(layer, kv_head, 0..rows), cache.values(layer, kv_head, 0..rows)];
            heads.push(seen);
        }
        *self.0.lock().unwrap() = heads;
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

#[derive(Deserialize)]
struct Golden {
    tokens: usize,
    kv_heads: usize,
    heads: usize,
    dim: usize,
    frequencies: Vec<f32>,
    unit: f32,
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    rank: usize,
    chunk: usize,
    budget: usize,
    outliers: usize,
    local: usize,
    rows: usize,
    missed: f64,
    heads: Vec<GoldenHead>,
}

#[derive(Deserialize)]
struct GoldenHead {
    outliers: Vec<u32>,
    steps: Vec<GoldenStep>,
}

#[derive(Deserialize)]
struct GoldenStep {
    chosen: Vec<u32>,
    out: Vec<Vec<f32>>,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/goldens/methods/shadowkv.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

impl Golden {
    fn model(&self) -> Model {
        let layer =
            LayerShape { kv_heads: self.kv_heads, key_dim: self.dim, value_dim: self.dim, window: None };
        let rotary =
            Rotary { frequencies: self.frequencies.clone(), factor: 1.0, layout: PairLayout::Halves };
        Model::new(1, self.heads, layer, rotary)
    }

    /// The rows of some tokens; the prompt's queries are zeros.
    fn rows(&self, tokens: Range<usize>) -> New {
        let part = |numbers: &[f32], width: usize, tokens: Range<usize>| -> Vec<f32> {
            numbers[tokens.start * width..tokens.end * width].iter().map(|x| x * self.unit).collect()
        };
        let queries = match tokens.start.checked_sub(self.tokens) {
            Some(first) => part(&self.queries, self.heads * self.dim, first..tokens.end - self.tokens),
            None => vec![0.0; tokens.len() * self.heads * self.dim],
        };
        let width = self.kv_heads * self.dim;
        New {
            keys: part(&self.keys, width, tokens.clone()),
            values: part(&self.values, width, tokens),
            queries,
        }
    }
}

impl Case {
    fn pipeline(&self) -> String {
        let Self { rank, chunk, budget, outliers, local, .. } = self;
        format!("shadowkv(rank={rank},chunk={chunk},budget={budget},outliers={outliers},local={local})")
    }
}

fn chunks_of(positions: &[u32], chunk: usize) -> Vec<u32> {
    let mut chunks: Vec<u32> = positions.iter().map(|p| p / chunk as u32).collect();
    chunks.sort_unstable();
    for run in chunks.chunk_by(|a, b| a == b) {
        assert_eq!(run.len(), chunk, "chunks come whole and once");
    }
    chunks.dedup();
    chunks
}

#[test]
fn outliers_chosen_chunks_and_outputs_are_those_of_the_paper() {
    let golden = golden();
    for case in &golden.cases {
        let mut model = golden.model();
        let look = Look::default();
        let mut cache = model.watched(&case.pipeline(), look.clone());
        model.step(&mut cache, Phase::Prefill, |_| golden.rows(0..golden.tokens)).unwrap();
        model.end_of_prompt(&mut cache);
        for step in 0..case.heads[0].steps.len() {
            let at = golden.tokens + step;
            let out = model.step(&mut cache, Phase::Decode, |_| golden.rows(at..at + 1)).unwrap().remove(0);
            let seen = look.0.lock().unwrap().clone();
            let group = golden.heads / golden.kv_heads;
            for (kv_head, (head, seen)) in case.heads.iter().zip(&seen).enumerate() {
                let what = format!("{}, token {step}, head {kv_head}", case.pipeline());
                assert_eq!(chunks_of(&seen.positions[0], case.chunk), head.outliers, "{what}: outliers");
                assert_eq!(chunks_of(&seen.positions[1], case.chunk), head.steps[step].chosen, "{what}");
                for (member, want) in head.steps[step].out.iter().enumerate() {
                    let out = &out[(kv_head * group + member) * golden.dim..][..golden.dim];
                    for (got, want) in out.iter().zip(want) {
                        assert!((got - want).abs() < 0.03, "{what}: {got} {want}");
                    }
                }
            }
        }
        // What is rebuilt misses what the singular values that were left out say, and the rounding of bf16.
        let mut missed = 0.0;
        let new = golden.rows(0..golden.tokens);
        for (kv_head, seen) in look.0.lock().unwrap().iter().enumerate() {
            for row in 0..case.rows {
                let exact = &new.keys[(row * golden.kv_heads + kv_head) * golden.dim..][..golden.dim];
                let rebuilt = &seen.all[0][row * golden.dim..][..golden.dim];
                missed += exact.iter().zip(rebuilt).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            }
        }
        let (missed, rounding) = (missed.sqrt(), 0.005 * new.keys.iter().map(|k| k * k).sum::<f32>().sqrt());
        assert!(
            (missed - case.missed).abs() < 0.01 * case.missed + f64::from(rounding),
            "{}: {missed} {}",
            case.pipeline(),
            case.missed
        );
    }
}

const KV_HEADS: usize = 2;
const DIM: usize = 16;

fn noisy_model(layers: usize) -> Model {
    let layer = LayerShape { kv_heads: KV_HEADS, key_dim: DIM, value_dim: 24, window: None };
    let frequencies = (0..DIM / 2).map(|i| 0.1f32.powf(i as f32 / 3.0)).collect();
    let layout = PairLayout::Neighbours;
    Model::new(layers, 2 * KV_HEADS, layer, Rotary { frequencies, factor: 1.0, layout })
}

/// Noise, the same for a position whenever it is asked.
fn noise(layer: usize, tokens: Range<usize>) -> New {
    let rows = |what: usize, width: usize| -> Vec<f32> {
        let number = |row: usize, column: usize| {
            let x = (row * 7919 + column * 104_729 + (layer * 3 + what) * 1_299_709) as u64;
            let x = (x ^ 0x9e37).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            ((x >> 40) % 1024) as f32 / 256.0 - 2.0
        };
        tokens.clone().flat_map(|row| (0..width).map(move |column| number(row, column))).collect()
    };
    New {
        keys: rows(0, KV_HEADS * DIM),
        values: rows(1, KV_HEADS * 24),
        queries: rows(2, 2 * KV_HEADS * DIM),
    }
}

impl Model {
    fn prompt(&mut self, cache: &mut SequenceCache, tokens: usize) -> Vec<Vec<f32>> {
        let at = cache.len();
        let out = self.step(cache, Phase::Prefill, |layer| noise(layer, at..at + tokens)).unwrap();
        self.end_of_prompt(cache);
        out
    }

    fn decode(&mut self, cache: &mut SequenceCache) -> Vec<Vec<f32>> {
        let at = cache.len();
        self.step(cache, Phase::Decode, |layer| noise(layer, at..at + 1)).unwrap()
    }
}

#[test]
fn a_prompt_within_the_budget_keeps_every_bit() {
    let mut model = noisy_model(2);
    for pipeline in ["shadowkv(budget=512)", "shadowkv(rank=4,budget=320,outliers=8,local=1,values=file)"] {
        let (mut full, mut shadow) = (model.sequence("full"), model.sequence(pipeline));
        for tokens in [380, 7] {
            assert!(model.prompt(&mut full, tokens) == model.prompt(&mut shadow, tokens));
            for _ in 0..5 {
                assert!(model.decode(&mut full) == model.decode(&mut shadow), "{pipeline}");
            }
        }
        assert_eq!(full.used_bytes(&model.store), shadow.used_bytes(&model.store));
    }
}

#[test]
fn with_every_dimension_a_later_prompt_attends_as_to_the_full_cache() {
    let mut model = noisy_model(2);
    let mut full = model.sequence("full");
    let mut shadow = model.sequence("shadowkv(rank=32,budget=64,outliers=2)");
    model.prompt(&mut full, 700);
    model.prompt(&mut shadow, 700);
    let different = |a: &[Vec<f32>], b: &[Vec<f32>]| -> f32 {
        a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    // A decoded token sees its chunks only.
    assert!(different(&model.decode(&mut full), &model.decode(&mut shadow)) > 0.05);
    let (a, b) = (model.prompt(&mut full, 20), model.prompt(&mut shadow, 20));
    assert!(different(&a, &b) < 0.03, "{}", different(&a, &b));
    assert!(different(&a, &b) > 0.0, "coefficients are rounded");
}

#[test]
fn memory_is_what_the_parts_add_up_to() {
    let mut model = noisy_model(3);
    let (budget, outliers, rank, tokens) = (64, 4, 8, 1500);
    let mut cache = model.sequence(&format!("shadowkv(rank={rank},budget={budget},outliers={outliers})"));
    model.prompt(&mut cache, tokens);
    let rows = (tokens - 32) / 64 * 64;
    let tiles = |rows: usize| rows.div_ceil(64);
    let (key_tile, value_tile) = (64 * DIM * 2, 64 * 32 * 2);
    let per_layer = tiles(rows) * 64 * rank * 2
        + KV_HEADS
            * (tiles(rows) * value_tile
                + (tiles(tokens - rows) + tiles(outliers * 8) + tiles(budget)) * (key_tile + value_tile)
                + (tiles(outliers * 8) + tiles(budget)) * 64 * 4
                // Directions; landmarks and their rows, in whole tiles; slots.
                + rank * DIM * 2
                + tiles(rows / 8 - outliers) * key_tile
                + 4 * (rows / 8 - outliers + budget / 8));
    let exported = cache.export(&model.store, Vec::new()).unwrap_err().to_string();
    assert!(exported.contains("directions"), "{exported}");
    let angles = tokens * DIM / 2 * 8;
    assert_eq!(cache.used_bytes(&model.store), 3 * per_layer + angles);
    let fork = cache.fork(&mut model.store);
    drop(cache);
    drop(fork);
    assert_eq!(model.store.used_bytes(), 0);
}

#[test]
fn what_does_not_go_together_is_refused_with_the_reason() {
    let refuse = |text: &str, reason: &str| {
        let error = Pipeline::parse(text).unwrap_err().to_string();
        assert!(error.contains(reason), "{text}: {error}");
    };
    for text in ["snapkv+shadowkv", "streaming+shadowkv", "minicache+shadowkv", "shadowkv+snapkv"] {
        refuse(text, "must hold the whole prompt");
    }
    refuse("shadowkv(budget=100)", "multiple of its chunk of 8");
    refuse("shadowkv(chunk=5)", "one of 4, 8, 16");
    refuse("shadowkv(path=/tmp)", "values=file");
    refuse("kivi+shadowkv", "shadowkv+kivi");
    for text in ["shadowkv+kivi", "shadowkv+tier", "shadowkv(values=file)+kivi+tier"] {
        Pipeline::parse(text).unwrap();
    }
    let store = noisy_model(1).store;
    let error = store.sequence_with(&Pipeline::parse("shadowkv(rank=33)").unwrap()).err().unwrap();
    assert!(error.to_string().contains("more than the 32 dims"), "{error}");
}

#[test]
fn values_in_a_file_and_blocks_behind_tier_give_the_same_bits() {
    let mut model = noisy_model(3);
    let arguments = "rank=12,budget=64,outliers=2,local=2";
    let mut outs: Vec<Vec<Vec<Vec<f32>>>> = Vec::new();
    let pipelines = [
        "shadowkv(A)",
        "shadowkv(A,values=file)",
        "shadowkv(A)+tier(ram=0)",
        "shadowkv(A,values=file)+tier(ram=0)",
    ];
    for pipeline in pipelines {
        let mut cache = model.sequence(&pipeline.replace('A', arguments));
        let mut out = vec![model.prompt(&mut cache, 900)];
        (0..20).for_each(|_| out.push(model.decode(&mut cache)));
        out.push(model.prompt(&mut cache, 300));
        (0..20).for_each(|_| out.push(model.decode(&mut cache)));
        let values = 2 * 3 * KV_HEADS * 32 * 896;
        let file = cache.file_bytes(&model.store);
        assert_eq!(file >= values, pipeline != "shadowkv(A)", "{pipeline}: {file} bytes in the file");
        model.store.audit([&cache]).unwrap();
        let parts = model.store.bytes_by_encoding();
        assert_eq!(parts.iter().map(|part| part.ram_bytes).sum::<usize>(), model.store.used_bytes());
        assert_eq!(parts.iter().map(|part| part.file_bytes).sum::<usize>(), model.store.file_bytes());
        let names: Vec<&str> = parts.iter().map(|part| &*part.encoding).collect();
        assert_eq!(names, ["bf16", "bf16-copies", "low-rank"], "{pipeline}");
        // Outliers and slots are read by every query: they stay in RAM.
        assert!(parts[1].ram_bytes > 0 && parts[0].file_bytes == file - parts[2].file_bytes, "{parts:?}");
        outs.push(out);
    }
    for (out, pipeline) in outs.iter().zip(pipelines) {
        assert!(*out == outs[0], "{pipeline}");
    }
    assert_eq!((model.store.used_bytes(), model.store.file_bytes()), (0, 0));
}

#[test]
fn values_in_bits_are_near_values_in_full() {
    let mut model = noisy_model(2);
    let mut out = |pipeline: &str| {
        let mut cache = model.sequence(pipeline);
        model.prompt(&mut cache, 900);
        let out: Vec<f32> = (0..10).flat_map(|_| model.decode(&mut cache)).flatten().collect();
        (out, cache.used_bytes(&model.store))
    };
    let (exact, all) = out("shadowkv(rank=12,budget=64,outliers=2)");
    let (rounded, fewer) = out("shadowkv(rank=12,budget=64,outliers=2)+kivi(bits=8)");
    let most = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(most > 0.0 && most < 0.02, "{most}");
    assert!(fewer < all * 9 / 10, "{fewer} of {all} bytes");
}

/// What may happen to a sequence.
#[derive(Clone, Debug)]
enum Event {
    Prompt(usize),
    Decode(usize),
    /// Cuts so many tokens off.
    Cut(usize),
    /// Goes on with a copy, and lets the original decode in between.
    Fork,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (1usize..300).prop_map(Event::Prompt),
        4 => (1usize..8).prop_map(Event::Decode),
        1 => (0usize..12).prop_map(Event::Cut),
        1 => Just(Event::Fork),
    ]
}

/// The copies of every head are whole chunks, each once, with the numbers that their rows have.
fn check_copies(seen: &[Seen]) {
    for head in seen.iter().filter(|head| !head.positions.is_empty()) {
        chunks_of(&head.positions.concat(), 8);
        let (positions, keys, values) = (head.positions.concat(), head.keys.concat(), head.values.concat());
        let exact: usize = head.positions[..head.positions.len() - 1].iter().map(Vec::len).sum();
        for (row, &position) in positions.iter().enumerate() {
            let own = |numbers: &[f32], dim: usize, row: usize| numbers[row * dim..][..dim].to_vec();
            assert_eq!(
                own(&values, 24, row),
                own(&head.all[1], 24, position as usize),
                "values of {position}"
            );
            let rebuilt = own(&head.all[0], DIM, position as usize);
            if row >= exact {
                let near = own(&keys, DIM, row).iter().zip(&rebuilt).all(|(a, b)| (a - b).abs() < 0.04);
                assert!(near, "keys of {position}: {:?} {rebuilt:?}", own(&keys, DIM, row));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn copies_are_what_their_rows_are(events in prop::collection::vec(event(), 1..9), rank in 1usize..33) {
        let mut model = noisy_model(1);
        let look = Look::default();
        let mut cache = model.watched(&format!("shadowkv(rank={rank},budget=48,outliers=3,local=1)"), look.clone());
        model.prompt(&mut cache, 400);
        for event in events {
            match event {
                Event::Prompt(tokens) if cache.len() + tokens < 1900 => _ = model.prompt(&mut cache, tokens),
                Event::Prompt(_) => {}
                Event::Decode(tokens) => {
                    for _ in 0..tokens {
                        model.decode(&mut cache);
                        check_copies(&look.0.lock().unwrap());
                    }
                }
                Event::Cut(tokens) => {
                    let len = cache.len().saturating_sub(tokens);
                    if cache.truncate(&mut model.store, len) == 0 {
                        prop_assert_eq!(model.store.used_bytes(), 0);
                        model.prompt(&mut cache, 400);
                    }
                }
                Event::Fork => {
                    let fork = cache.fork(&mut model.store);
                    let mut original = std::mem::replace(&mut cache, fork);
                    // The two go on by themselves: the copy has what the original had.
                    let mut second = cache.fork(&mut model.store);
                    let first: Vec<_> = (0..3).map(|_| model.decode(&mut original)).collect();
                    check_copies(&look.0.lock().unwrap());
                    let again: Vec<_> = (0..3).map(|_| model.decode(&mut second)).collect();
                    check_copies(&look.0.lock().unwrap());
                    prop_assert!(first == again);
                }
            }
        }
        drop(cache);
        prop_assert_eq!(model.store.used_bytes(), 0);
    }
}

#[test]
fn a_later_prompt_like_the_first_shares_its_directions_and_another_gets_its_own() {
    let mut model = noisy_model(1);
    // Keys that vary along the first few dims of a pattern only.
    let along = |tokens: Range<usize>, pattern: usize| -> New {
        let mut new = noise(0, tokens.clone());
        for (row, keys) in tokens.zip(new.keys.chunks_exact_mut(KV_HEADS * DIM)) {
            let strength = ((row * 37) % 64) as f32 / 32.0 - 1.0;
            keys.fill(0.0);
            keys[pattern] = 2.0 * strength;
            keys[DIM + pattern] = 1.0;
        }
        new
    };
    for (second, names) in [(0, 1), (3, 2)] {
        let names_seen = Arc::new(Mutex::new(Vec::new()));
        let mut methods = Pipeline::parse("shadowkv(rank=4,budget=64,outliers=1)")
            .unwrap()
            .methods(model.store.shape())
            .unwrap();
        methods.push(Box::new(Names(Arc::clone(&names_seen))));
        let mut cache = model.store.sequence_of(methods);
        model.step(&mut cache, Phase::Prefill, |_| along(0..400, 0)).unwrap();
        model.end_of_prompt(&mut cache);
        model.step(&mut cache, Phase::Prefill, |_| along(400..800, second)).unwrap();
        model.end_of_prompt(&mut cache);
        let mut seen = std::mem::take(&mut *names_seen.lock().unwrap());
        assert_eq!(seen.len(), 2, "two parts");
        seen.dedup();
        assert_eq!(seen.len(), names, "the second prompt varies along dim {second}");
    }
}

/// Notes the encodings of the keys of head 0's segments.
struct Names(Arc<Mutex<Vec<String>>>);

impl Method for Names {
    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        let segments = cache.segments(0, 0).iter();
        let names = segments.filter_map(|segment| Some(segment.encoding(PlaneKind::Keys, 0)?.name()));
        *self.0.lock().unwrap() = names.collect();
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(Self(Arc::clone(&self.0)))
    }
}
