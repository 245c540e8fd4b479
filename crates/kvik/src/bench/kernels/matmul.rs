//! Packed matrices times some rows: a decode step has few, a prefill chunk many.

use std::rc::Rc;

use kvik_kernels::{
    Phase, Phases, ThreadPool,
    matmul::{Activations, PackError, PackedMatrix, Product, matmul_with},
    quant::TensorType,
};

use super::{Kernel, KernelOptions, activations, copies_beyond_cache, in_words, tame_bytes};
use crate::bench::work::{ACTIVATION_PLANES, Work};

/// More rows than this are a prompt's.
const MOST_DECODED: usize = 64;

/// A shape with the numbers of rows that it is multiplied with.
pub(super) struct Shape {
    out_features: usize,
    in_features: usize,
    rows: &'static [usize],
}

/// The MLP of a small model, and its projection to the vocabulary.
pub(super) const SHAPES: [Shape; 2] = [
    Shape { out_features: 1536, in_features: 768, rows: &[1, 4, 16, 512] },
    Shape { out_features: 49152, in_features: 768, rows: &[1, 16] },
];

/// Products with matrices of one format and shape.
pub(super) fn kernels<'a>(
    pool: &'a ThreadPool,
    options: &KernelOptions,
    ty: TensorType,
    shape: &Shape,
) -> Result<Vec<Kernel<'a>>, PackError> {
    let &Shape { out_features, in_features, rows } = shape;
    let name = |rows: usize| format!("matmul {ty} {out_features}x{in_features}, {}", in_words(rows));
    let wanted: Vec<usize> = rows.iter().copied().filter(|&rows| options.wants(&name(rows))).collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let bytes = tame_bytes(out_features * in_features / ty.block_len() * ty.block_bytes());
    let copies = (0..copies_beyond_cache(bytes.len()))
        .map(|_| PackedMatrix::pack(pool, ty, out_features, in_features, &bytes))
        .collect::<Result<Vec<_>, _>>()?;
    let (copies, isa) = (Rc::new(copies), options.isa);
    let kernels = wanted.into_iter().map(|rows| {
        let mut acts = Activations::new();
        let phase = if rows > MOST_DECODED { Phase::Prefill } else { Phase::Decode };
        let x = activations(rows * in_features);
        acts.set_for_isa(isa, pool, &x, &Phases::all(rows, phase), in_features, [&copies[0]]);
        let (copies, mut out, mut next) = (Rc::clone(&copies), vec![0.0; rows * out_features], 0);
        let work = work(&copies[0], rows, phase == Phase::Prefill && isa.prefills_in_bf16());
        let call = Box::new(move || {
            let weight = &copies[next];
            next = (next + 1) % copies.len();
            matmul_with(
                isa,
                pool,
                &acts,
                &mut [Product { weight, bias: None, out: &mut out, accumulate: false }],
            );
        });
        Kernel { name: name(rows), work, compared: false, call }
    });
    Ok(kernels.collect())
}

fn work(weight: &PackedMatrix, rows: usize, in_bf16: bool) -> Work {
    let operations = 2.0 * (rows * weight.out_features() * weight.in_features()) as f64;
    let bytes = weight.bytes() as f64;
    match weight.ty() {
        TensorType::F32 | TensorType::F16 => Work { bytes, f32_ops: operations, ..Work::default() },
        _ if in_bf16 => Work { bytes, bf16_ops: operations, ..Work::default() },
        TensorType::BF16 => Work { bytes, f32_ops: operations, ..Work::default() },
        _ => Work { bytes, int8_ops: ACTIVATION_PLANES * operations, ..Work::default() },
    }
}
