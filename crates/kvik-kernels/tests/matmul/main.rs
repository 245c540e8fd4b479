//! Matrix products on every instruction set: against brute force in `f64`, against each other, and against themselves
//! in other batches and on other numbers of threads.

mod matrix;

use kvik_kernels::{
    Activation, Isa, Phase, Phases, ThreadPool,
    matmul::{Activations, GatedProduct, PackError, PackedMatrix, Product, matmul_gated_with, matmul_with},
    quant::TensorType,
};
use matrix::{Random, Stored};
use proptest::prelude::*;

fn run(isa: Isa, threads: usize, weight: &PackedMatrix, x: &[f32]) -> Vec<f32> {
    run_phases(isa, threads, weight, x, &Phases::all(x.len() / weight.in_features(), Phase::Decode))
}

fn run_phases(isa: Isa, threads: usize, weight: &PackedMatrix, x: &[f32], phases: &Phases) -> Vec<f32> {
    let rows = phases.rows();
    let pool = ThreadPool::new(threads);
    let mut acts = Activations::new();
    acts.set_for_isa(isa, &pool, x, phases, weight.in_features(), [weight]);
    let mut out = vec![f32::NAN; rows * weight.out_features()];
    matmul_with(isa, &pool, &acts, &mut [Product { weight, bias: None, out: &mut out, accumulate: false }]);
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn assert_close(stored: &Stored, x: &[f32], out: &[f32], exact: bool, what: &str) {
    for (row, (x, out)) in x.chunks(stored.in_features).zip(out.chunks(stored.out_features)).enumerate() {
        for (o, &got) in out.iter().enumerate() {
            let (want, bound) = stored.product(x, o, exact);
            let error = (f64::from(got) - want).abs();
            assert!(error <= bound, "{what}, row {row}, feature {o}: {got}, not {want} ± {bound:e}");
        }
    }
}

/// A type, with row and column counts that meet every remainder of tiles, panels, spans and chunks.
fn shapes() -> impl Strategy<Value = (TensorType, usize, usize, usize, u64)> {
    let ty = (0..TensorType::ALL.len()).prop_map(|i| TensorType::ALL[i]);
    let blocks = prop_oneof![4 => 1..4usize, 1 => 20..60usize];
    let rows = prop_oneof![4 => 1..16usize, 1 => 30..60usize];
    (ty, rows, 1..70usize, blocks, 1..300usize, any::<u64>()).prop_map(
        |(ty, rows, out, blocks, columns, seed)| {
            let columns = match ty.block_len() {
                1 => columns,
                32 => 32 * blocks,
                _ => 256 * blocks.div_ceil(8),
            };
            (ty, rows, out, columns, seed)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn products_are_those_of_the_decoded_weights((ty, rows, out_features, in_features, seed) in shapes()) {
        let mut random = Random(seed);
        let stored = Stored::random(ty, out_features, in_features, &mut random);
        let weight = stored.pack();
        let x = random.floats(rows * in_features);
        let reference = run(Isa::Scalar, 1, &weight, &x);
        for isa in Isa::available() {
            let out = run(isa, 1, &weight, &x);
            assert_close(&stored, &x, &out, false, &format!("{ty} on {isa}"));
            // All sets see the same codes, so that they differ by no more than the rounding of their sums.
            for (i, (got, want)) in out.iter().zip(&reference).enumerate() {
                let (row, o) = (i / out_features, i % out_features);
                let (_, rounding) = stored.product(&x[row * in_features..][..in_features], o, true);
                prop_assert!(f64::from((got - want).abs()) <= 2.0 * rounding, "{ty} on {isa}: {got}, not {want}");
            }
        }
    }

    #[test]
    fn nothing_but_rounding_is_lost_on_representable_activations((ty, rows, out, columns, seed) in shapes()) {
        let mut random = Random(seed);
        let stored = Stored::random(ty, out, columns, &mut random);
        let weight = stored.pack();
        let mut x: Vec<f32> = (0..rows * columns).map(|_| (random.next() % 32513) as f32 - 16256.0).collect();
        for block in x.chunks_mut(32) {
            block[0] = 16256.0;
            let scale = [0.125, 1.0, 4.0][random.next() as usize % 3];
            block.iter_mut().for_each(|x| *x *= scale);
        }
        for isa in Isa::available() {
            assert_close(&stored, &x, &run(isa, 1, &weight, &x), true, &format!("{ty} on {isa}"));
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_in_any_batch((ty, rows, out, columns, seed) in shapes()) {
        let mut random = Random(seed);
        let weight = Stored::random(ty, out, columns, &mut random).pack();
        let x = random.floats(rows * columns);
        for isa in Isa::available() {
            let batch = run(isa, 1, &weight, &x);
            for threads in [2, 3] {
                prop_assert_eq!(bits(&batch), bits(&run(isa, threads, &weight, &x)), "{} threads", threads);
            }
            let alone: Vec<f32> = x.chunks(columns).flat_map(|row| run(isa, 1, &weight, row)).collect();
            prop_assert_eq!(bits(&batch), bits(&alone), "{} on {}", ty, isa);
        }
    }

    #[test]
    fn prompts_are_multiplied_within_the_rounding_of_bf16((ty, rows, out_features, in_features, seed) in shapes()) {
        let mut random = Random(seed);
        let stored = Stored::random(ty, out_features, in_features, &mut random);
        let weight = stored.pack();
        let x = random.floats(rows * in_features);
        let prompt = Phases::all(rows, Phase::Prefill);
        for isa in Isa::available() {
            let out = run_phases(isa, 1, &weight, &x, &prompt);
            for (i, &got) in out.iter().enumerate() {
                let (row, o) = (i / out_features, i % out_features);
                let (want, bound) = stored.product_in_bf16(&x[row * in_features..][..in_features], o);
                let error = (f64::from(got) - want).abs();
                prop_assert!(error <= bound, "{ty} on {isa}: {got}, not {want} ± {bound:e}");
            }
        }
    }

    /// Each row of a batch of prompts and decoded tokens has the bits that it has alone in its phase.
    #[test]
    fn phases_share_a_batch_without_a_trace(
        (ty, rows, out, columns, seed) in shapes(),
        cuts in prop::collection::vec((1..40usize, any::<bool>()), 1..4),
    ) {
        let mut random = Random(seed);
        let weight = Stored::random(ty, out, columns, &mut random).pack();
        let mut phases = Phases::default();
        for (cut, prompt) in cuts {
            phases.push(cut.min(rows), if prompt { Phase::Prefill } else { Phase::Decode });
        }
        let x = random.floats(phases.rows() * columns);
        for isa in Isa::available() {
            let batch = run_phases(isa, 1, &weight, &x, &phases);
            prop_assert_eq!(bits(&batch), bits(&run_phases(isa, 3, &weight, &x, &phases)));
            for (rows, phase) in phases.runs() {
                for row in rows {
                    let x = &x[row * columns..][..columns];
                    let alone = run_phases(isa, 1, &weight, x, &Phases::all(1, phase));
                    prop_assert_eq!(bits(&alone), bits(&batch[row * out..][..out]), "{} on {}, row {}", ty, isa, row);
                }
            }
        }
    }

    #[test]
    fn packing_keeps_every_number((ty, _, out, columns, seed) in shapes(), piece in 1..50usize) {
        let stored = Stored::random(ty, out, columns, &mut Random(seed));
        let pool = ThreadPool::new(2);
        let mut builder = PackedMatrix::builder(ty, out, columns).unwrap();
        for rows in stored.bytes.chunks(piece * ty.bytes_for(columns).unwrap()) {
            builder.push_rows(&pool, rows).unwrap();
        }
        let weight = builder.finish().unwrap();
        let mut row = vec![0.0; columns];
        for o in 0..out {
            weight.dequantize_row(o, &mut row);
            prop_assert_eq!(bits(&row), bits(&stored.values[o * columns..][..columns]), "{} row {}", ty, o);
        }
    }
}

/// Large prefills cross the blocks of rows; their cuts must not show.
#[test]
fn long_prefills_are_cut_without_a_trace() {
    let mut random = Random(7);
    for (ty, rows) in [(TensorType::Q4_1, 97), (TensorType::Q6_K, 200), (TensorType::BF16, 193)] {
        let stored = Stored::random(ty, 50, 1024, &mut random);
        let weight = stored.pack();
        let x = random.floats(rows * 1024);
        // Blocks of prompts are longer.
        let x_of_prompt = random.floats(700 * 1024);
        let prompt = run_phases(Isa::active(), 2, &weight, &x_of_prompt, &Phases::all(700, Phase::Prefill));
        for row in [0, 349, 350, 511, 512, 699] {
            let x = &x_of_prompt[row * 1024..][..1024];
            let alone = run_phases(Isa::active(), 1, &weight, x, &Phases::all(1, Phase::Prefill));
            assert_eq!(bits(&alone), bits(&prompt[row * 50..][..50]), "{ty}, row {row} of a prompt");
        }
        let batch = run(Isa::active(), 2, &weight, &x);
        assert_close(&stored, &x, &batch, false, &format!("{ty}"));
        for row in [0, 95, 96, rows - 1] {
            let alone = run(Isa::active(), 1, &weight, &x[row * 1024..][..1024]);
            assert_eq!(bits(&alone), bits(&batch[row * 50..][..50]), "{ty}, row {row}");
        }
    }
}

/// The largest codes meet the largest activations: nothing may saturate on the way.
#[test]
fn extreme_codes_and_activations_do_not_saturate() {
    for ty in TensorType::ALL.into_iter().filter(|ty| ty.block_len() > 1) {
        for byte in [0x00, 0x7f, 0x80, 0x81, 0xff] {
            let stored = Stored::uniform(ty, 17, 512, byte);
            let weight = stored.pack();
            // Codes of 127 and 0, −127 and 0, 127 and −64, 126 and 63 in the high and low plane.
            for pattern in [[16256.0, 16256.0], [-16256.0, -16256.0], [16256.0, 16192.0], [16256.0, 16191.0]]
            {
                let x: Vec<f32> = (0..5 * 512).map(|i| pattern[usize::from(i % 32 > 0)]).collect();
                for isa in Isa::available() {
                    for rows in [1, 5] {
                        let x = &x[..rows * 512];
                        let what = format!("{ty} of {byte:#04x} times {pattern:?} on {isa}");
                        assert_close(&stored, x, &run(isa, 1, &weight, x), true, &what);
                    }
                }
            }
        }
    }
}

#[test]
fn products_of_one_region_are_those_of_several() {
    let mut random = Random(11);
    let pool = ThreadPool::new(2);
    let stored = [(TensorType::Q4_K, 40), (TensorType::Q8_0, 7), (TensorType::F32, 33)]
        .map(|(ty, out)| Stored::random(ty, out, 256, &mut random));
    let weights = stored.each_ref().map(Stored::pack);
    for isa in Isa::available() {
        for rows in [1, 3, 9] {
            let x = random.floats(rows * 256);
            let mut acts = Activations::new();
            acts.set_for_isa(isa, &pool, &x, &Phases::all(rows, Phase::Decode), 256, &weights);
            let mut outs = weights.each_ref().map(|weight| vec![0.0; rows * weight.out_features()]);
            let mut products: Vec<Product> = weights
                .iter()
                .zip(&mut outs)
                .map(|(weight, out)| Product { weight, bias: None, out, accumulate: false })
                .collect();
            matmul_with(isa, &pool, &acts, &mut products);
            for (weight, out) in weights.iter().zip(&outs) {
                assert_eq!(bits(out), bits(&run(isa, 1, weight, &x)), "{} on {isa}", weight.ty());
            }
        }
    }
}

#[test]
fn bias_and_residual_are_added_to_the_product() {
    let mut random = Random(12);
    let pool = ThreadPool::new(2);
    for ty in [TensorType::Q5_0, TensorType::F16] {
        let weight = Stored::random(ty, 35, 64, &mut random).pack();
        let (bias, residual, x) = (random.floats(35), random.floats(7 * 35), random.floats(7 * 64));
        let plain = run(Isa::active(), 1, &weight, &x);
        let mut acts = Activations::new();
        acts.set_for(&pool, &x, &Phases::all(7, Phase::Decode), 64, [&weight]);
        for (with_bias, accumulate) in [(true, false), (false, true), (true, true)] {
            let mut out = residual.clone();
            let bias_given = with_bias.then_some(&bias[..]);
            let product = Product { weight: &weight, bias: bias_given, out: &mut out, accumulate };
            matmul_with(Isa::active(), &pool, &acts, &mut [product]);
            for i in 0..out.len() {
                let sum = plain[i] + if with_bias { bias[i % 35] } else { 0.0 };
                assert_eq!(out[i], if accumulate { residual[i] + sum } else { sum }, "{ty}, element {i}");
            }
        }
    }
}

#[test]
fn a_gate_opens_what_it_gates() {
    let mut random = Random(13);
    for (ty, out_features) in
        [(TensorType::Q4_1, 40), (TensorType::Q6_K, 7), (TensorType::F32, 33), (TensorType::BF16, 16)]
    {
        let [gate, up] = [(); 2].map(|()| Stored::random(ty, out_features, 256, &mut random).pack());
        for isa in Isa::available() {
            for (rows, phase) in
                [(1, Phase::Decode), (9, Phase::Decode), (70, Phase::Decode), (50, Phase::Prefill)]
            {
                let x = random.floats(rows * 256);
                let phases = Phases::all(rows, phase);
                for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu, Activation::Relu]
                {
                    let mut want = run_phases(isa, 1, &gate, &x, &phases);
                    activation.gate(&mut want, &run_phases(isa, 1, &up, &x, &phases));
                    let pool = ThreadPool::new(2);
                    let mut acts = Activations::new();
                    acts.set_for_isa(isa, &pool, &x, &phases, 256, [&gate, &up]);
                    let mut out = vec![f32::NAN; rows * out_features];
                    let product = GatedProduct { gate: &gate, up: &up, activation, out: &mut out };
                    matmul_gated_with(isa, &pool, &acts, product);
                    for (got, want) in out.iter().zip(&want) {
                        // The activation is compiled with this set's instructions in one, the best set's in the other.
                        let bound = 1e-6 * want.abs().max(1e-3);
                        assert!(
                            (got - want).abs() <= bound,
                            "{ty} {activation:?} on {isa}: {got}, not {want}"
                        );
                    }
                }
            }
        }
    }
}

/// The two sides of a gate may be one matrix, down to a single panel.
#[test]
fn a_matrix_may_gate_itself() {
    let mut random = Random(15);
    let weight = Stored::random(TensorType::Q4_1, 16, 64, &mut random).pack();
    let x = random.floats(64);
    for isa in Isa::available() {
        for phase in [Phase::Decode, Phase::Prefill] {
            let phases = Phases::all(1, phase);
            let sums = run_phases(isa, 1, &weight, &x, &phases);
            let pool = ThreadPool::new(1);
            let mut acts = Activations::new();
            acts.set_for_isa(isa, &pool, &x, &phases, 64, [&weight]);
            let mut out = vec![f32::NAN; 16];
            let product =
                GatedProduct { gate: &weight, up: &weight, activation: Activation::Relu, out: &mut out };
            matmul_gated_with(isa, &pool, &acts, product);
            let want: Vec<f32> = sums.iter().map(|&sum| sum.max(0.0) * sum).collect();
            assert!(want.iter().any(|&product| product > 0.0));
            assert_eq!(out, want, "{isa}");
        }
    }
}

/// Not a number is not a number afterwards; zero and the smallest numbers do no harm.
#[test]
fn special_activations_are_not_hidden() {
    let mut random = Random(14);
    let weight = Stored::random(TensorType::Q4_0, 16, 64, &mut random).pack();
    for isa in Isa::available() {
        for special in [f32::NAN, f32::INFINITY, 0.0, 1e-44, 1e-37, 1e-35, 1e-33] {
            let mut x = vec![0.0; 64];
            x[40] = special;
            let out = run(isa, 1, &weight, &x);
            // No weight is larger than 0.08.
            let good =
                |y: &f32| if special.is_finite() { y.abs() <= 0.081 * special } else { !y.is_finite() };
            assert!(out.iter().all(good), "{special} on {isa}: {out:?}");
        }
    }
}

#[test]
fn wrong_rows_are_errors() {
    let pool = ThreadPool::new(1);
    assert!(matches!(PackedMatrix::builder(TensorType::Q4_K, 3, 128), Err(PackError::RaggedRow { .. })));
    assert!(matches!(
        PackedMatrix::builder(TensorType::F32, usize::MAX / 2, 1 << 20),
        Err(PackError::TooLarge { .. })
    ));
    let mut builder = PackedMatrix::builder(TensorType::Q8_0, 3, 32).unwrap();
    assert!(matches!(builder.push_rows(&pool, &[0; 33]), Err(PackError::WrongRows { missing: 3, .. })));
    builder.push_rows(&pool, &[0; 68]).unwrap();
    assert!(matches!(builder.push_rows(&pool, &[0; 68]), Err(PackError::WrongRows { missing: 1, .. })));
    assert!(matches!(builder.finish(), Err(PackError::MissingRows { missing: 1, .. })));
}

#[test]
fn packed_matrices_are_as_small_as_the_file() {
    for ty in TensorType::ALL {
        let stored = Stored::uniform(ty, 64, 768, 0);
        let ratio = stored.pack().bytes() as f64 / stored.bytes.len() as f64;
        assert!(ratio <= 1.03, "{ty} takes {ratio:.3} of its file");
    }
}
