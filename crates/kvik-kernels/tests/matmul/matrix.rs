//! Random stored matrices, and their products by brute force in `f64`.

use kvik_kernels::{
    ThreadPool,
    matmul::PackedMatrix,
    quant::{TensorType, dequantize},
};

/// A small counter-based generator: tests name their seed.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Uniform in −1..1.
    pub fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.uniform()).collect()
    }
}

/// A matrix as a file stores it, with what it decodes to.
pub struct Stored {
    pub ty: TensorType,
    pub out_features: usize,
    pub in_features: usize,
    pub bytes: Vec<u8>,
    pub values: Vec<f32>,
}

/// Where the half-precision numbers of a block are.
fn halves(ty: TensorType) -> &'static [usize] {
    match ty {
        TensorType::F32 | TensorType::F16 | TensorType::BF16 => &[],
        TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 => &[0],
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4_K | TensorType::Q5_K => &[0, 2],
        TensorType::Q6_K => &[208],
    }
}

impl Stored {
    /// Random codes, scales of one order of magnitude and both signs.
    pub fn random(ty: TensorType, out_features: usize, in_features: usize, random: &mut Random) -> Self {
        let elements = out_features * in_features;
        let mut bytes: Vec<u8> = match ty {
            TensorType::F32 => random.floats(elements).iter().flat_map(|x| x.to_le_bytes()).collect(),
            TensorType::F16 => {
                random.floats(elements).iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect()
            }
            TensorType::BF16 => {
                random.floats(elements).iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect()
            }
            _ => (0..ty.bytes_for(elements).unwrap()).map(|_| random.next() as u8).collect(),
        };
        for block in bytes.chunks_exact_mut(ty.block_bytes()) {
            for &at in halves(ty) {
                let scale = half::f16::from_f32(0.01 * random.uniform());
                block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        Self::new(ty, out_features, in_features, bytes)
    }

    /// The same code byte everywhere, scales of one.
    pub fn uniform(ty: TensorType, out_features: usize, in_features: usize, byte: u8) -> Self {
        let mut bytes = vec![byte; ty.bytes_for(out_features * in_features).unwrap()];
        for block in bytes.chunks_exact_mut(ty.block_bytes()) {
            for &at in halves(ty) {
                block[at..at + 2].copy_from_slice(&half::f16::ONE.to_le_bytes());
            }
        }
        Self::new(ty, out_features, in_features, bytes)
    }

    fn new(ty: TensorType, out_features: usize, in_features: usize, bytes: Vec<u8>) -> Self {
        let mut values = vec![0.0; out_features * in_features];
        dequantize(ty, &bytes, &mut values);
        Self { ty, out_features, in_features, bytes, values }
    }

    pub fn pack(&self) -> PackedMatrix {
        PackedMatrix::pack(&ThreadPool::new(1), self.ty, self.out_features, self.in_features, &self.bytes)
            .unwrap()
    }

    pub fn is_float(&self) -> bool {
        self.ty.block_len() == 1
    }

    /// `Σ_k x[k] · w[o, k]` in `f64`, and a bound on how far a correct kernel may be from it.
    ///
    /// The bound has two parts. Rounding: each of the `f32` operations on the sum is off by at most half a unit of the
    /// magnitudes added so far. Activations in 15 bits: each is off by at most half a step, `max |x| / 32512` of its block.
    /// With `exact`, the activations are representable and the second part is zero.
    pub fn product(&self, x: &[f32], o: usize, exact: bool) -> (f64, f64) {
        let weights = &self.values[o * self.in_features..][..self.in_features];
        let (mut sum, mut magnitude, mut steps) = (0.0, 0.0, 0.0);
        for (w, x) in weights.chunks(32).zip(x.chunks(32)) {
            let max_x = x.iter().fold(0.0f64, |max, x| max.max(f64::from(x.abs())));
            let max_w = w.iter().fold(0.0f64, |max, w| max.max(f64::from(w.abs())));
            for (&w, &x) in w.iter().zip(x) {
                sum += f64::from(w) * f64::from(x);
                steps += f64::from(w.abs()) * max_x / 32512.0;
            }
            // A scale and a minimum can cancel in the weight; each is below four times the block's largest weight.
            magnitude += if self.is_float() { max_w * max_x * 32.0 } else { 8.0 * max_w * max_x * 32.0 };
        }
        let operations = if self.is_float() { self.in_features } else { 4 + self.in_features / 8 };
        let rounding = operations as f64 * f64::from(f32::EPSILON) * magnitude;
        let steps = if self.is_float() || exact { 0.0 } else { 1.001 * steps };
        (sum, rounding + steps)
    }

    /// The product and a bound on the error of one whose operands were rounded to bf16: half a unit in the last of 8 bits,
    /// for each of both, and the `f32` rounding of the sum; or of one that is more exact.
    pub fn product_in_bf16(&self, x: &[f32], o: usize) -> (f64, f64) {
        let weights = &self.values[o * self.in_features..][..self.in_features];
        let magnitude: f64 = weights.iter().zip(x).map(|(&w, &x)| f64::from((w * x).abs())).sum();
        let (product, exact_bound) = self.product(x, o, false);
        (product, exact_bound + magnitude * (2.0 * 2f64.powi(-9) + 2f64.powi(-18)) * 1.001)
    }
}
