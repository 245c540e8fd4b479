//! What lies between the large kernels: norms, the quantisation of activations, and the start of a parallel region.

use kvik_kernels::{
    Phase, Phases, ThreadPool,
    matmul::{Activations, PackError, PackedMatrix},
    quant::TensorType,
    rows::rms_norm,
};

use super::{Kernel, KernelOptions, activations, in_words, tame_bytes};
use crate::bench::work::Work;

/// Length of a hidden state.
const HIDDEN: usize = 576;
/// One token, and a prefill chunk.
const ROWS: [usize; 2] = [1, 512];

/// The small kernels that are wanted. They are too small to have a limit; what counts is their time.
pub(super) fn kernels<'a>(
    pool: &'a ThreadPool,
    options: &KernelOptions,
) -> Result<Vec<Kernel<'a>>, PackError> {
    let mut kernels =
        vec![kernel(format!("empty region on {} threads", pool.threads()), || pool.run(|_| ()))];
    for rows in ROWS {
        let (x, weight) = (activations(rows * HIDDEN), activations(HIDDEN));
        let mut out = vec![0.0; x.len()];
        kernels.push(kernel(format!("rms_norm {HIDDEN}, {}", in_words(rows)), move || {
            pool.for_each_row(&mut out, HIDDEN, |row, out| {
                rms_norm(&x[row * HIDDEN..(row + 1) * HIDDEN], &weight, 1e-5, out);
            });
        }));

        let bytes = tame_bytes(HIDDEN / TensorType::Q8_0.block_len() * TensorType::Q8_0.block_bytes());
        let weight = PackedMatrix::pack(pool, TensorType::Q8_0, 1, HIDDEN, &bytes)?;
        let (x, mut acts) = (activations(rows * HIDDEN), Activations::new());
        kernels.push(kernel(format!("quantise activations {HIDDEN}, {}", in_words(rows)), move || {
            acts.set_for(pool, &x, &Phases::all(rows, Phase::Decode), HIDDEN, [&weight]);
        }));
    }
    kernels.retain(|kernel| options.wants(&kernel.name));
    Ok(kernels)
}

fn kernel<'a>(name: String, call: impl FnMut() + 'a) -> Kernel<'a> {
    Kernel { name, work: Work::default(), compared: false, call: Box::new(call) }
}
