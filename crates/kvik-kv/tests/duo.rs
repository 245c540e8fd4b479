//! DuoAttention against a numpy model of the paper: which heads are full, what each holds and what its queries see.

mod layer;

use std::{fs, path::Path};

use kvik_kernels::{Phase, ThreadPool};
use kvik_kv::{CacheError, Calibration, CalibrationHeader, KvShape, KvStore, LayerShape, Pipeline};
use serde::Deserialize;
use tempfile::NamedTempFile;

use layer::{CAPACITY, Run, Setting};

#[derive(Deserialize)]
struct Golden {
    group: usize,
    dim: usize,
    scale: f32,
    seed: u64,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    /// `[layers][kv_heads]`.
    gates: Vec<Vec<f32>>,
    full: f64,
    choose: String,
    sink: usize,
    recent: usize,
    chunks: Vec<usize>,
    /// Tokens decoded behind them.
    steps: usize,
    /// Chunks of a second prompt.
    second: Vec<usize>,
    is_full: Vec<Vec<bool>>,
    /// Runs of positions after each pass, `[passes][layers][kv_heads][runs]`.
    held: Vec<Vec<Vec<Vec<[u32; 2]>>>>,
    /// Of some queries of each pass: their row, and `[heads][dim]`.
    outputs: Option<Vec<Vec<(usize, Vec<Vec<f32>>)>>>,
}

/// A pass of a case.
enum Pass {
    Chunk(usize),
    LastChunk(usize),
    Token,
}

impl Case {
    fn passes(&self) -> Vec<Pass> {
        let prompt = |chunks: &[usize]| -> Vec<Pass> {
            let pass = |(index, &chunk): (usize, &usize)| match index + 1 == chunks.len() {
                true => Pass::LastChunk(chunk),
                false => Pass::Chunk(chunk),
            };
            chunks.iter().enumerate().map(pass).collect()
        };
        let mut passes = prompt(&self.chunks);
        passes.extend((0..self.steps).map(|_| Pass::Token));
        passes.extend(prompt(&self.second));
        passes
    }

    fn pipeline(&self, gates: &NamedTempFile) -> String {
        let Self { full, choose, sink, recent, .. } = self;
        let path = gates.path().display();
        format!("duo(gates={path},full={full},choose={choose},sink={sink},recent={recent})")
    }
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/goldens/methods/duo.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// A file with `gates` of the model with this fingerprint.
fn file(gates: &[Vec<f32>], method: &str, fingerprint: &str) -> NamedTempFile {
    let header = CalibrationHeader {
        method: method.into(),
        model: "a test's model".into(),
        fingerprint: fingerprint.into(),
        data: "none".into(),
        settings: "{}".into(),
    };
    let bytes = Calibration::file(&header, &[("gates", &[gates.len(), gates[0].len()], &gates.concat())]);
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    file
}

fn shape(layers: usize, kv_heads: usize, dim: usize) -> KvShape {
    let layer = LayerShape { kv_heads, key_dim: dim, value_dim: dim, window: None };
    KvShape { fingerprint: "m".into(), ..KvShape::unrotated(vec![layer; layers]) }
}

/// Positions of a head in rising order, as runs.
fn runs(mut positions: Vec<u32>) -> Vec<[u32; 2]> {
    positions.sort_unstable();
    let mut runs: Vec<[u32; 2]> = Vec::new();
    for position in positions {
        match runs.last_mut() {
            Some(run) if run[1] == position => run[1] += 1,
            _ => runs.push([position, position + 1]),
        }
    }
    runs
}

#[test]
fn heads_hold_what_the_papers_model_says_after_every_chunk_and_token() {
    let pool = ThreadPool::new(2);
    let Golden { dim, cases, .. } = golden();
    for case in &cases {
        let (layers, kv_heads) = (case.gates.len(), case.gates[0].len());
        let gates = file(&case.gates, "duo", "m");
        let pipeline = case.pipeline(&gates);
        let mut store = KvStore::new(shape(layers, kv_heads, dim), 1, CAPACITY, CAPACITY).unwrap();
        let mut cache = store.sequence_with(&Pipeline::parse(&pipeline).unwrap()).unwrap();
        for (pass, held) in case.passes().into_iter().zip(&case.held) {
            let (tokens, phase) = match pass {
                Pass::Chunk(tokens) | Pass::LastChunk(tokens) => (tokens, Phase::Prefill),
                Pass::Token => (1, Phase::Decode),
            };
            cache.reserve(&mut store, tokens).unwrap();
            let rows = vec![0.5; tokens * kv_heads * dim];
            (0..layers).for_each(|layer| cache.append(&pool, &mut store, layer, &rows, &rows));
            cache.commit(&pool, &mut store, tokens, phase).unwrap();
            if let Pass::LastChunk(_) = pass {
                cache.end_of_prompt(&pool, &mut store).unwrap();
            }
            for (layer, held) in held.iter().enumerate() {
                for (kv_head, held) in held.iter().enumerate() {
                    let segments = cache.head(layer, kv_head).iter();
                    let positions = segments.flat_map(|s| (0..s.len()).map(|row| s.position(row)));
                    let got = runs(positions.collect());
                    assert_eq!(
                        got,
                        *held,
                        "{pipeline}: layer {layer}, head {kv_head}, {} tokens",
                        cache.len()
                    );
                    let tokens = cache.len();
                    let most = case.sink + case.recent;
                    assert!(case.is_full[layer][kv_head] == (got == [[0, tokens as u32]]) || tokens <= most);
                }
            }
        }
    }
}

#[test]
fn queries_see_what_the_papers_model_says() {
    let Golden { group, dim, scale, seed, cases } = golden();
    let mut compared = 0;
    for case in &cases {
        let Some(outputs) = &case.outputs else { continue };
        let kv_heads = case.gates[0].len();
        let setting = Setting { heads: group * kv_heads, kv_heads, dim, scale, frequencies: Vec::new() };
        let gates = file(&case.gates, "duo", "");
        let pipeline = case.pipeline(&gates);
        let mut run = Run::unwatched(&setting, false, seed, &pipeline);
        for (pass, queries) in case.passes().into_iter().zip(outputs) {
            let out = match pass {
                Pass::Chunk(tokens) | Pass::LastChunk(tokens) => run.step(tokens, Phase::Prefill),
                Pass::Token => run.step(1, Phase::Decode),
            };
            if let Pass::LastChunk(_) = pass {
                run.end_of_prompt();
            }
            for (row, want) in queries {
                let got = &out[row * group * kv_heads * dim..];
                for (got, want) in got.iter().zip(want.iter().flatten()) {
                    // Weights and rows are bf16 on some processors.
                    assert!((got - want).abs() < 2e-2, "{pipeline}, row {row}: {got} {want}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 2500, "{compared}");
}

/// Bits of everything that a sequence attends to under `pipeline`.
fn bits(pipeline: &str) -> Vec<u32> {
    let setting = Setting { heads: 8, kv_heads: 4, dim: 16, scale: 0.25, frequencies: Vec::new() };
    let mut run = Run::unwatched(&setting, false, 1, pipeline);
    let mut out = run.step(150, Phase::Prefill);
    run.end_of_prompt();
    (0..20).for_each(|_| out.extend(run.step(1, Phase::Decode)));
    out.into_iter().map(f32::to_bits).collect()
}

#[test]
fn no_streaming_head_changes_no_bit_and_only_streaming_heads_are_sinks_and_window() {
    let gates = file(&[vec![0.3, 0.4, 0.1, 0.2]], "duo", "");
    let duo = |more: &str| bits(&format!("duo(gates={},sink=4,recent=60{more})", gates.path().display()));
    let full = bits("full");
    assert!(duo(",full=1") == full);
    assert!(duo(",full=0") == bits("streaming(budget=64,sinks=4)"), "a prompt of one chunk is read exactly");
    assert!(duo(",full=0.5") != full);
    assert!(duo(",full=0.5") != duo(",full=0.5,choose=lowest"));
    // Head by head, a full head attends as with the whole cache and a streaming head as if all were.
    let rows = |bits: &[u32], head: usize| -> Vec<u32> {
        bits.chunks_exact(8 * 16).flat_map(|row| row[32 * head..32 * (head + 1)].to_vec()).collect()
    };
    let (half, streaming) = (duo(",full=0.5"), duo(",full=0"));
    for (head, is_full) in [true, true, false, false].into_iter().enumerate() {
        assert!(rows(&half, head) == rows(if is_full { &full } else { &streaming }, head), "{head}");
        assert!(rows(&full, head) != rows(&streaming, head));
    }
}

/// Bytes after each of `chunks` chunks of 64 tokens, and behind the prompt.
fn bytes(pipeline: &str, chunks: usize) -> (Vec<usize>, usize) {
    let setting = Setting { heads: 4, kv_heads: 4, dim: 64, scale: 0.125, frequencies: Vec::new() };
    let mut run = Run::unwatched(&setting, false, 1, pipeline);
    let each = |_| {
        run.step(64, Phase::Prefill);
        run.store.used_bytes()
    };
    let during = (0..chunks).map(each).collect();
    run.end_of_prompt();
    (during, run.store.used_bytes())
}

#[test]
fn memory_is_that_of_the_rows_kept_while_the_prompt_is_read_already() {
    let gates = file(&[vec![0.3, 0.4, 0.1, 0.2]], "duo", "");
    let path = gates.path().display();
    let (full, _) = bytes("full", 12);
    let (half, after) = bytes(&format!("duo(gates={path},full=0.5,sink=64,recent=64)"), 12);
    let row = full[11] / (12 * 64);
    for (chunk, &bytes) in half.iter().enumerate() {
        let tokens = 64 * (chunk + 1);
        assert_eq!(bytes, (2 * tokens + 2 * tokens.min(128)) * row / 4, "{chunk}");
    }
    assert_eq!(after, half[11]);
    // What it keeps can be coded, and chosen from once more.
    let (_, coded) = bytes(&format!("duo(gates={path},full=0.5,sink=64,recent=64)+kivi(residual=32)"), 12);
    assert!(3 * coded < after, "{coded} of {after}");
    let (_, chosen) = bytes(&format!("duo(gates={path},full=0.5,sink=64,recent=64)+h2o(budget=128)"), 12);
    assert_eq!(chosen, 4 * 128 * row / 4);
}

#[test]
fn other_peoples_gates_are_refused_with_what_to_do() {
    let shape = shape(2, 2, 8);
    let refused = |gates: &str| {
        let pipeline = Pipeline::parse(&format!("duo(gates={gates})")).unwrap();
        match pipeline.methods(&shape) {
            Err(CacheError::Method { method: "duo", reason }) => reason,
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{gates} is no file of this model"),
        }
    };
    let gates = [vec![0.1, 0.2], vec![0.3, 0.4]];
    let of = |file: &NamedTempFile| refused(&file.path().display().to_string());
    let right = file(&gates, "duo", "m");
    let pipeline = Pipeline::parse(&format!("duo(gates={})", right.path().display())).unwrap();
    assert!(pipeline.methods(&shape).is_ok());

    let bytes = fs::read(right.path()).unwrap();
    fs::write(right.path(), &bytes[..bytes.len() - 3]).unwrap();
    let reasons = [
        (of(&file(&gates, "duo", "another")), "another model"),
        (of(&file(&gates, "kvquant", "m")), "a calibration of kvquant"),
        (of(&file(&gates[..1], "duo", "m")), "[1, 2]"),
        (of(&file(&[vec![0.1, f32::NAN], vec![0.3, 0.4]], "duo", "m")), "no numbers"),
        (of(&right), "cannot use"),
        (refused("no/such/file"), "no/such/file"),
        (refused("auto"), "gates=FILE"),
    ];
    for (reason, says) in reasons {
        assert!(reason.contains(says) && reason.contains("kvik calibrate"), "{reason}");
    }
}
