//! Blocks in a file against blocks in RAM: whatever is done with a sequence, attention gives the same bits.

mod pass;

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    ops::Range,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use kvik_kernels::{
    Phase, ThreadPool,
    attention::{Affine, AttentionScratch, AttentionShape, Codec, PlaneKind, Reach},
};
use kvik_kv::{
    CacheError, Evidence, KvShape, KvStore, LayerShape, Method, OpenCache, Pipeline, SequenceCache,
    SpillError, SpillFile, StepQueries,
};
use proptest::prelude::*;

use pass::{New, layer_pass};

const LAYERS: usize = 5;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 32;
/// Of a tile's plane of bf16 rows.
const PLANE_BYTES: usize = 64 * DIM * 2;
const CAPACITY: usize = 1500;

/// A model of attention layers only: numbers in, numbers out, through all hooks in their order.
struct Model {
    pool: ThreadPool,
    store: KvStore,
    scratch: AttentionScratch,
    shape: AttentionShape,
}

impl Model {
    fn new() -> Self {
        let layer = LayerShape { kv_heads: KV_HEADS, key_dim: DIM, value_dim: DIM, window: None };
        let mut layers = vec![layer; LAYERS];
        layers[1].window = Some(100);
        let shape = AttentionShape {
            heads: HEADS,
            kv_heads: KV_HEADS,
            tile: layer.tile(),
            scale: 0.3,
            reach: Reach { causal: true, window: None },
        };
        Self {
            pool: ThreadPool::new(2),
            store: KvStore::new(KvShape::unrotated(layers), 4, CAPACITY, CAPACITY).unwrap(),
            scratch: AttentionScratch::new(2, &shape, CAPACITY),
            shape,
        }
    }

    fn sequence(&self, pipeline: &str) -> SequenceCache {
        self.store.sequence_with(&Pipeline::parse(pipeline).unwrap()).unwrap()
    }

    /// Adds `tokens` tokens; the bits of what they attend to at all layers.
    fn step(
        &mut self,
        cache: &mut SequenceCache,
        tokens: usize,
        phase: Phase,
    ) -> Result<Vec<u32>, CacheError> {
        self.step_together(&mut [cache], tokens, phase)
    }

    /// [`Self::step`] for several sequences at once: layer after layer, the bits of all.
    fn step_together(
        &mut self,
        caches: &mut [&mut SequenceCache],
        tokens: usize,
        phase: Phase,
    ) -> Result<Vec<u32>, CacheError> {
        let result = self.try_step(caches, tokens, phase);
        if result.is_err() {
            for cache in caches {
                let len = cache.len();
                cache.truncate(&mut self.store, len);
            }
        }
        result
    }

    fn try_step(
        &mut self,
        caches: &mut [&mut SequenceCache],
        tokens: usize,
        phase: Phase,
    ) -> Result<Vec<u32>, CacheError> {
        let Self { pool, store, scratch, shape } = self;
        let new: Vec<Range<usize>> = caches.iter().map(|cache| cache.len()..cache.len() + tokens).collect();
        for cache in caches.iter_mut() {
            cache.reserve(store, tokens)?;
        }
        let mut bits = Vec::new();
        for layer in 0..LAYERS {
            let numbers = |what: usize, heads: usize| -> Vec<f32> {
                new.iter().flat_map(|new| rows(layer * 3 + what, new.clone(), heads * DIM)).collect()
            };
            let mut shape = *shape;
            shape.reach.window = store.shape().layers[layer].window.map(|window| window as u32);
            let new =
                New { keys: numbers(0, KV_HEADS), values: numbers(1, KV_HEADS), queries: numbers(2, HEADS) };
            let out = layer_pass(pool, store, caches, layer, &shape, phase, &new, scratch)?;
            bits.extend(out.iter().map(|number| number.to_bits()));
        }
        for cache in caches.iter_mut() {
            cache.commit(pool, store, tokens, phase)?;
        }
        Ok(bits)
    }

    fn end_of_prompt(&mut self, cache: &mut SequenceCache) -> Result<(), CacheError> {
        cache.end_of_prompt(&self.pool, &mut self.store)
    }
}

fn rows(what: usize, range: Range<usize>, width: usize) -> Vec<f32> {
    let number = |row: usize, column: usize| {
        let x = (row * 7919 + column * 104_729 + what * 1_299_709) as u64;
        let x = (x ^ 0x9e37).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((x >> 40) % 1024) as f32 / 256.0 - 2.0
    };
    range.flat_map(|row| (0..width).map(move |column| number(row, column))).collect()
}

/// What may happen to sequences.
#[derive(Clone, Debug)]
enum Event {
    Prompt(Vec<usize>),
    Decode(usize),
    /// Keeps so many thousandths of the tokens.
    Truncate(usize),
    /// Goes on with a copy, and keeps the original beside it.
    Fork,
    /// Goes on with the sequence that was put beside, if any.
    Swap,
    /// Forgets the sequence that was put beside.
    Drop,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => prop::collection::vec(1usize..200, 1..3).prop_map(Event::Prompt),
        4 => (1usize..12).prop_map(Event::Decode),
        2 => (0usize..1000).prop_map(Event::Truncate),
        2 => Just(Event::Fork),
        2 => Just(Event::Swap),
        1 => Just(Event::Drop),
    ]
}

/// Plays `events` on a sequence of `pipeline`; all bits that came out, and how much the file held at most.
fn play(pipeline: &str, events: &[Event]) -> (Vec<Vec<u32>>, usize) {
    let mut model = Model::new();
    let mut bits = Vec::new();
    let mut most_in_file = 0;
    {
        let mut cache = model.sequence(pipeline);
        let mut beside: Option<SequenceCache> = None;
        for event in events {
            match event {
                Event::Prompt(chunks) => {
                    for &chunk in chunks.iter().filter(|&&chunk| chunk > 0) {
                        if cache.len() + chunk < CAPACITY {
                            bits.push(model.step(&mut cache, chunk, Phase::Prefill).unwrap());
                            most_in_file = most_in_file.max(model.store.file_bytes());
                        }
                    }
                    model.end_of_prompt(&mut cache).unwrap();
                }
                Event::Decode(tokens) => {
                    for _ in 0..*tokens {
                        bits.push(model.step(&mut cache, 1, Phase::Decode).unwrap());
                    }
                }
                Event::Truncate(thousandths) => {
                    let len = cache.len() * thousandths / 1000;
                    bits.push(vec![cache.truncate(&mut model.store, len) as u32]);
                }
                Event::Fork => {
                    let fork = cache.fork(&mut model.store);
                    beside = Some(std::mem::replace(&mut cache, fork));
                }
                Event::Swap => {
                    if let Some(other) = &mut beside {
                        std::mem::swap(other, &mut cache);
                    }
                }
                Event::Drop => beside = None,
            }
            most_in_file = most_in_file.max(model.store.file_bytes());
        }
    }
    assert_eq!((model.store.used_bytes(), model.store.file_bytes()), (0, 0), "everything came back");
    (bits, most_in_file)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn whatever_happens_a_file_changes_no_bit(
        mut events in prop::collection::vec(event(), 1..10),
        methods in prop::sample::select(vec![
            "", "", "kivi(residual=32)+", "streaming(budget=300)+", "snapkv(budget=150)+", "l2norm(budget=200)+",
            "minicache(start=2,every=3)+", "random(budget=250)+", "shadowkv(rank=16,budget=64,outliers=2,local=1)+", "snapkv(budget=400)+kivi(residual=32,bits=4)+",
        ]),
        ram in prop::sample::select(vec![0usize, 200_000, 500_000]),
        prefetch in prop::sample::select(vec!["yes", "no"]),
    ) {
        events.insert(0, Event::Prompt(vec![300, 200]));
        let (want, _) = play(methods.strip_suffix('+').unwrap_or("full"), &events);
        let (got, most_in_file) = play(&format!("{methods}tier(ram={ram},prefetch={prefetch})"), &events);
        prop_assert_eq!(got.len(), want.len());
        for (index, (got, want)) in got.iter().zip(&want).enumerate() {
            prop_assert!(got == want, "step {index}");
        }
        prop_assert!(most_in_file > 0 || ram > 0);
    }
}

/// A counter-based draw.
fn draw(seed: u64, index: &mut u64, below: usize) -> usize {
    *index += 1;
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ *index;
    for _ in 0..3 {
        x = (x ^ x >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
    (x >> 33) as usize % below.max(1)
}

/// Rewrites rows at random after every step and, with a file, also moves tiles at random before and after each verb. What it reads
/// goes to `seen`.
#[derive(Clone)]
struct Restless {
    seed: u64,
    index: u64,
    moves: u64,
    file: Option<SpillFile>,
    codec: Arc<dyn Codec>,
    seen: Arc<Mutex<Vec<f32>>>,
}

impl Restless {
    fn new(seed: u64, file: Option<SpillFile>) -> Self {
        Self {
            seed,
            index: 0,
            moves: 1 << 40,
            file,
            codec: Arc::new(Affine::new(4, 16)),
            seen: Arc::default(),
        }
    }

    fn rewrite(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        for (layer, kv_head) in cache.heads() {
            self.shift(cache)?;
            let rows = cache.rows(layer, kv_head);
            match draw(self.seed, &mut self.index, 8) {
                0 if rows > 20 => {
                    let dropped = draw(self.seed, &mut self.index, rows - 10);
                    let keep: Vec<u32> =
                        (0..rows as u32).filter(|&row| row as usize / 5 != dropped / 5).collect();
                    cache.retain(layer, kv_head, &keep)?;
                }
                1 | 2 if rows > 20 => {
                    let row = draw(self.seed, &mut self.index, rows);
                    cache.evict(layer, kv_head, row)?;
                }
                3 | 4 => {
                    let plane = if draw(self.seed, &mut self.index, 2) == 0 {
                        PlaneKind::Keys
                    } else {
                        PlaneKind::Values
                    };
                    let end = draw(self.seed, &mut self.index, rows);
                    cache.encode(layer, kv_head, plane, end, &self.codec)?;
                }
                5 => {
                    let start = draw(self.seed, &mut self.index, rows);
                    let some = start..rows.min(start + 70);
                    let mut seen = self.seen.lock().unwrap();
                    seen.extend(cache.keys(layer, kv_head, some.clone()));
                    seen.extend(cache.values(layer, kv_head, some));
                }
                6 => {
                    let mut seen = self.seen.lock().unwrap();
                    seen.extend(
                        cache.window_sums(layer, 4, kvik_kernels::attention::ColumnSums::Group).concat(),
                    );
                    seen.extend(&cache.statistics(layer, kv_head).accumulated);
                }
                _ => {}
            }
        }
        self.shift(cache)
    }

    /// Moves some tiles of one head.
    fn shift(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        let Some(file) = self.file.clone() else { return Ok(()) };
        let heads = cache.heads();
        let (layer, kv_head) = heads[draw(self.seed, &mut self.moves, heads.len())];
        for plane in [PlaneKind::Keys, PlaneKind::Values] {
            let tiles = cache.tiles(layer, kv_head);
            let start = draw(self.seed, &mut self.moves, tiles) as u32;
            let some = start..tiles as u32 + 2;
            match draw(self.seed, &mut self.moves, 5) {
                0 => cache.bring(layer, kv_head, plane, some)?,
                1 => cache.prefetch(layer, kv_head, plane, some),
                _ => cache.offload(&file, layer, kv_head, plane, some)?,
            }
        }
        Ok(())
    }
}

impl Method for Restless {
    fn evidence(&self) -> Evidence {
        Evidence { window: 4, accumulated: true, step: true }
    }

    fn selects(&self) -> bool {
        true
    }

    fn before_attention(
        &mut self,
        cache: &mut OpenCache<'_>,
        layer: usize,
        _queries: StepQueries<'_>,
    ) -> Result<(), CacheError> {
        self.shift(cache)?;
        for kv_head in 0..cache.layer(layer).kv_heads {
            let tiles = cache.tiles(layer, kv_head) as u32;
            let skip = draw(self.seed, &mut self.index, 6) as u32;
            let visits = (cache.layer(layer).window.is_none() && skip > 0)
                .then(|| (0..tiles).filter(|tile| tile % 6 != skip || tile + 1 == tiles).collect());
            cache.visit(layer, kv_head, visits);
        }
        self.shift(cache)
    }

    fn after_step(&mut self, cache: &mut OpenCache<'_>) -> Result<(), CacheError> {
        self.rewrite(cache)
    }

    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        self.rewrite(cache)
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_verb_works_on_blocks_wherever_they_lie(seed in any::<u64>(), prompt in 100usize..500) {
        let play = |file: Option<SpillFile>| {
            let mut model = Model::new();
            let method = Restless::new(seed, file);
            let seen = Arc::clone(&method.seen);
            let mut bits = Vec::new();
            {
                let mut cache = model.store.sequence_of(vec![Box::new(method)]);
                bits.push(model.step(&mut cache, prompt, Phase::Prefill).unwrap());
                model.end_of_prompt(&mut cache).unwrap();
                let mut fork = cache.fork(&mut model.store);
                for _ in 0..6 {
                    bits.push(model.step(&mut cache, 1, Phase::Decode).unwrap());
                    bits.push(model.step(&mut fork, 3, Phase::Decode).unwrap());
                    model.store.audit([&cache, &fork]).unwrap();
                    add_up(&model.store);
                }
                drop(cache);
                add_up(&model.store);
            }
            assert_eq!((model.store.used_bytes(), model.store.file_bytes()), (0, 0));
            assert_eq!(model.store.bytes_by_encoding(), []);
            let seen: Vec<u32> = seen.lock().unwrap().iter().map(|number| number.to_bits()).collect();
            (bits, seen)
        };
        let file = SpillFile::in_folder(&std::env::temp_dir()).unwrap();
        let (want, want_seen) = play(None);
        let (got, got_seen) = play(Some(file.clone()));
        prop_assert!(got == want);
        prop_assert!(got_seen == want_seen);
        prop_assert_eq!(file.used_bytes(), 0);
    }
}

/// Bytes by encoding are those of all blocks, in RAM and in files, whoever has left meanwhile.
fn add_up(store: &KvStore) {
    let parts = store.bytes_by_encoding();
    assert_eq!(parts.iter().map(|part| part.ram_bytes).sum::<usize>(), store.used_bytes());
    assert_eq!(parts.iter().map(|part| part.file_bytes).sum::<usize>(), store.file_bytes());
}

/// Notes the most RAM that the sequence takes, before each layer's queries choose and after each step.
struct Watch(Arc<AtomicUsize>);

impl Method for Watch {
    fn selects(&self) -> bool {
        true
    }

    fn before_attention(
        &mut self,
        cache: &mut OpenCache<'_>,
        _layer: usize,
        _queries: StepQueries<'_>,
    ) -> Result<(), CacheError> {
        self.0.fetch_max(cache.used_bytes(), Relaxed);
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(Self(Arc::clone(&self.0)))
    }
}

#[test]
fn ram_stays_within_the_budget_or_the_working_set() {
    let per_tile_of_all = 2 * PLANE_BYTES * KV_HEADS * LAYERS;
    for (ram, prefetch) in [(600_000, "yes"), (600_000, "no"), (1_000_000, "yes"), (0, "yes")] {
        let mut model = Model::new();
        let most = Arc::new(AtomicUsize::new(0));
        let mut methods: Vec<Box<dyn Method>> = vec![Box::new(Watch(Arc::clone(&most)))];
        let pipeline = Pipeline::parse(&format!("tier(ram={ram},prefetch={prefetch})")).unwrap();
        methods.extend(pipeline.methods(model.store.shape()).unwrap());
        let mut cache = model.store.sequence_of(methods);
        for _ in 0..20 {
            model.step(&mut cache, 64, Phase::Prefill).unwrap();
            // Between steps nothing is on its way but the first layer.
            let bound = ram.max(2 * 20 * 2 * PLANE_BYTES * KV_HEADS + 5 * per_tile_of_all);
            assert!(cache.used_bytes(&model.store) <= bound);
        }
        model.end_of_prompt(&mut cache).unwrap();
        most.store(0, Relaxed);
        for _ in 0..100 {
            model.step(&mut cache, 1, Phase::Decode).unwrap();
        }
        let most = most.load(Relaxed);
        // Two layers' streamed tiles, the recent ones of all layers, and the one layer with a window.
        let working_set = 2 * 18 * 2 * PLANE_BYTES * KV_HEADS + 5 * per_tile_of_all;
        assert!(most <= ram.max(working_set), "{most} bytes for a budget of {ram}");
        assert!(ram == 0 || most > ram * 4 / 5, "{most} bytes use too little of {ram}");
        let whole = 22 * per_tile_of_all;
        assert!(
            model.store.file_bytes() > whole - most - 22 * 2 * PLANE_BYTES * KV_HEADS,
            "one layer has a window"
        );
    }
}

#[test]
fn sequences_that_share_blocks_step_together_while_each_moves_them() {
    let play = |pipelines: [&str; 2]| {
        let mut model = Model::new();
        let mut first = model.sequence(pipelines[0]);
        let mut bits = vec![model.step(&mut first, 700, Phase::Prefill).unwrap()];
        model.end_of_prompt(&mut first).unwrap();
        let mut second = first.fork(&mut model.store);
        let mut third = model.sequence(pipelines[1]);
        bits.push(model.step(&mut third, 450, Phase::Prefill).unwrap());
        model.end_of_prompt(&mut third).unwrap();
        let before = model.store.used_bytes() + model.store.file_bytes();
        for _ in 0..70 {
            let all = &mut [&mut first, &mut third, &mut second];
            bits.push(model.step_together(all, 1, Phase::Decode).unwrap());
        }
        // What the two share is there once, in RAM and in the file at most.
        assert!(model.store.used_bytes() + model.store.file_bytes() < 2 * before);
        bits
    };
    let want = play(["full", "full"]);
    for tier in ["tier(ram=0)", "tier(ram=400000)", "tier(ram=300000,prefetch=no)"] {
        assert!(play([tier, "full"]) == want, "{tier}");
        assert!(play([tier, tier]) == want, "{tier}");
    }
}

#[test]
fn many_sequences_leave_neither_memory_nor_file_behind() {
    let file = tempfile::tempfile().unwrap();
    let handle = file.try_clone().unwrap();
    let file = SpillFile::from_file(file, Path::new("here"));
    let mut model = Model::new();
    for round in 0..60 {
        let mut cache = model.store.sequence_of(vec![Box::new(Restless::new(round, Some(file.clone())))]);
        model.step(&mut cache, 200 + round as usize, Phase::Prefill).unwrap();
        let mut fork = cache.fork(&mut model.store);
        model.step(&mut fork, 1, Phase::Decode).unwrap();
        drop(cache);
        model.step(&mut fork, 1, Phase::Decode).unwrap();
    }
    model.store.trim();
    assert_eq!((model.store.used_bytes(), model.store.file_bytes(), file.used_bytes()), (0, 0, 0));
    assert_eq!(handle.metadata().unwrap().len(), 0);
}

/// Takes everything that may go out of RAM after a prompt.
#[derive(Clone)]
struct Out(SpillFile);

impl Method for Out {
    fn end_of_prompt(&mut self, cache: &mut OpenCache<'_>, _turn: usize) -> Result<(), CacheError> {
        for (layer, kv_head) in cache.heads() {
            for plane in [PlaneKind::Keys, PlaneKind::Values] {
                let tiles = cache.tiles(layer, kv_head) as u32;
                cache.offload(&self.0, layer, kv_head, plane, 0..tiles)?;
                assert!((0..tiles - 1).all(|tile| !cache.in_ram(layer, kv_head, plane, tile)));
                assert!(cache.in_ram(layer, kv_head, plane, tiles - 1), "new rows go there");
            }
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn Method> {
        Box::new(self.clone())
    }
}

#[test]
fn a_flipped_bit_stops_the_step_and_the_sequence_begins_anew() {
    let mut handle: File = tempfile::tempfile().unwrap();
    let file = SpillFile::from_file(handle.try_clone().unwrap(), Path::new("the folder"));
    let mut model = Model::new();
    let mut cache = model.store.sequence_of(vec![Box::new(Out(file))]);
    model.step(&mut cache, 200, Phase::Prefill).unwrap();
    model.end_of_prompt(&mut cache).unwrap();
    let want = {
        let mut fork = cache.fork(&mut model.store);
        model.step(&mut fork, 1, Phase::Decode).unwrap()
    };
    // The fork brought all blocks back for both; they go out again as they are.
    model.end_of_prompt(&mut cache).unwrap();
    let mut byte = [0];
    handle.seek(SeekFrom::Start(PLANE_BYTES as u64 + 5)).unwrap();
    handle.read_exact(&mut byte).unwrap();
    handle.seek(SeekFrom::Start(PLANE_BYTES as u64 + 5)).unwrap();
    handle.write_all(&[byte[0] ^ 16]).unwrap();
    let error = model.step(&mut cache, 1, Phase::Decode).unwrap_err();
    assert!(matches!(error, CacheError::Spill(SpillError::Damaged { .. })), "{error}");
    assert!(error.to_string().contains("the folder") && error.to_string().contains("checksum"), "{error}");
    assert_eq!(cache.len(), 0, "nothing is computed from what is left");
    model.step(&mut cache, 200, Phase::Prefill).unwrap();
    assert!(model.step(&mut cache, 1, Phase::Decode).unwrap() == want);
}

#[test]
fn a_full_disk_says_so_and_loses_nothing() {
    let full = File::options().read(true).write(true).open("/dev/full").unwrap();
    let full = SpillFile::from_file(full, Path::new("/mnt/full"));
    let mut model = Model::new();
    let mut in_ram = model.sequence("full");
    let mut cache = model.store.sequence_of(vec![Box::new(Out(full))]);
    for cache in [&mut in_ram, &mut cache] {
        model.step(cache, 200, Phase::Prefill).unwrap();
    }
    let error = model.end_of_prompt(&mut cache).unwrap_err();
    assert!(matches!(error, CacheError::Spill(SpillError::Write { .. })), "{error}");
    assert!(error.to_string().contains("/mnt/full") && error.to_string().contains("make room"), "{error}");
    assert_eq!(cache.len(), 200);
    assert_eq!(cache.truncate(&mut model.store, 200), 200);
    assert!(
        model.step(&mut cache, 1, Phase::Decode).unwrap()
            == model.step(&mut in_ram, 1, Phase::Decode).unwrap()
    );
    assert_eq!(model.store.file_bytes(), 0);
}

#[test]
fn a_folder_that_cannot_be_written_to_is_refused_at_once() {
    let model = Model::new();
    let error =
        model.store.sequence_with(&Pipeline::parse("tier(path=/no/such/folder)").unwrap()).err().unwrap();
    assert!(
        error.to_string().starts_with("tier: ") && error.to_string().contains("/no/such/folder"),
        "{error}"
    );
}
