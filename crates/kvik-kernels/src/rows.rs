//! Operations on one row of activations: norms and rotary positions.
//!
//! Each body is plain Rust over fixed-width lanes, written so that the compiler vectorises it, and compiled once per
//! instruction set. Reductions use sixteen lanes in every version, so the order of additions is the same everywhere.

/// Lanes of a reduction.
const LANES: usize = 16;

/// Upper part of ln 2 with trailing zero bits, so that `n · LN2_HIGH` is exact for small `n` (Cody and Waite 1980).
pub(crate) const LN2_HIGH: f32 = 0.693_145_75;
/// ln 2 minus [`LN2_HIGH`].
pub(crate) const LN2_LOW: f32 = 1.428_606_8e-6;

/// Compiles a function's body once per instruction set and picks one at run time.
macro_rules! per_isa {
    ($(#[$doc:meta])* $visibility:vis fn $name:ident($($arg:ident: $ty:ty),*) $body:block) => {
        $(#[$doc])*
        $visibility fn $name($($arg: $ty),*) {
            #[inline(always)]
            fn body($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) { body($($arg),*) }
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
                fn avx512($($arg: $ty),*) { body($($arg),*) }
                match $crate::Isa::active() {
                    // SAFETY: the active set is one that this processor has.
                    $crate::Isa::Avx512 | $crate::Isa::Avx512Bf16 | $crate::Isa::Amx => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::Isa::Scalar => {}
                }
            }
            body($($arg),*)
        }
    };
}

pub(crate) use per_isa;

per_isa! {
/// Root-mean-square norm (Zhang and Sennrich 2019): `out = x / sqrt(mean(x²) + epsilon) · weight`.
/// All slices are `[dim]`.
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let scale = 1.0 / (sum(x, |x| x * x) / x.len() as f32 + epsilon).sqrt();
    for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}
}

per_isa! {
/// Layer norm (Ba et al. 2016): `out = (x - mean) / sqrt(variance + epsilon) · weight + bias`. All slices are `[dim]`.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]) {
    let mean = sum(x, |x| x) / x.len() as f32;
    let variance = sum(x, |x| (x - mean) * (x - mean)) / x.len() as f32;
    let scale = 1.0 / (variance + epsilon).sqrt();
    for (((out, &x), &weight), &bias) in out.iter_mut().zip(x).zip(weight).zip(bias) {
        *out = (x - mean) * scale * weight + bias;
    }
}
}

per_isa! {
/// `out += x`.
pub fn add(out: &mut [f32], x: &[f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out += x;
    }
}
}

per_isa! {
/// `x *= factor`.
pub fn scale(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}
}

per_isa! {
/// Rotary position of one head (Su et al. 2021), first half against second half: dims `i` and `i + n` turn by the
/// angle whose cosine and sine are `cos[i]`, `sin[i]`, where `n` is their length. Dims past `2n` stay.
pub fn rotate_halves(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let (first, second) = head.split_at_mut(cos.len());
    for (((a, b), &cos), &sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}
}

per_isa! {
/// Rotary position of one head, even dims against odd dims: dims `2i` and `2i + 1` turn by the angle whose cosine and
/// sine are `cos[i]`, `sin[i]`. Dims past twice their length stay.
pub fn rotate_pairs(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((pair, &cos), &sin) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
        (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[1] * cos + pair[0] * sin);
    }
}
}

/// Sum of `f(x)` in sixteen lanes, joined pairwise.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += f(chunk[lane]);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// `e^x`, relative error below 3e-7; saturates to 0 and to about 2e38 instead of overflowing.
///
/// Cody-Waite reduction and a Taylor polynomial of degree 6 on `|r| <= ln 2 / 2`.
#[inline(always)]
pub(crate) fn exp_lane(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    // Adding and subtracting 1.5 · 2²³ rounds to an integer in the vector unit of every instruction set.
    const ROUND: f32 = 12_582_912.0;
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.0 / 720.0;
    for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    let power = f32::from_bits(((n as i32 + 127) << 23) as u32);
    let result = p * power;
    if x <= -87.0 { 0.0 } else { result }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(from: f32, to: f32) -> Vec<f32> {
        (0..=4000).map(|i| from + (to - from) * i as f32 / 4000.0).collect()
    }

    #[test]
    fn exponential_is_accurate_over_its_range() {
        for x in ramp(-86.0, 87.0) {
            let want = f64::from(x).exp();
            assert!((f64::from(exp_lane(x)) / want - 1.0).abs() < 3e-7, "exp({x})");
        }
        assert_eq!(exp_lane(0.0), 1.0);
        assert_eq!(exp_lane(-1e30), 0.0);
        assert!(exp_lane(1e30).is_finite());
    }

    #[test]
    fn norms_match_their_formulas_at_every_length() {
        for dim in [1, 5, 16, 31, 576] {
            let x: Vec<f32> = (0..dim).map(|i| ((i * 37 % 19) as f32 - 9.0) * 0.3 + 0.1).collect();
            let weight: Vec<f32> = (0..dim).map(|i| 0.5 + (i % 7) as f32 * 0.2).collect();
            let bias: Vec<f32> = (0..dim).map(|i| (i % 5) as f32 - 2.0).collect();
            let n = dim as f64;
            let wide = |i: usize| f64::from(x[i]);
            let square = (0..dim).map(|i| wide(i) * wide(i)).sum::<f64>() / n;
            let mean = (0..dim).map(wide).sum::<f64>() / n;
            let variance = (0..dim).map(|i| (wide(i) - mean).powi(2)).sum::<f64>() / n;
            let mut out = vec![0.0; dim];
            rms_norm(&x, &weight, 1e-5, &mut out);
            for i in 0..dim {
                let want = wide(i) / (square + 1e-5).sqrt() * f64::from(weight[i]);
                assert!((f64::from(out[i]) - want).abs() < 2e-6 * want.abs().max(1.0));
            }
            layer_norm(&x, &weight, &bias, 1e-5, &mut out);
            for i in 0..dim {
                let want =
                    (wide(i) - mean) / (variance + 1e-5).sqrt() * f64::from(weight[i]) + f64::from(bias[i]);
                assert!((f64::from(out[i]) - want).abs() < 5e-6 * want.abs().max(1.0));
            }
        }
    }

    #[test]
    fn rotations_turn_the_right_pairs() {
        let (cos, sin) = ([0.0, 1.0], [1.0, 0.0]);
        let mut head = [1.0, 2.0, 3.0, 4.0, 5.0];
        rotate_halves(&mut head, &cos, &sin);
        assert_eq!(head, [-3.0, 2.0, 1.0, 4.0, 5.0]);
        let mut head = [1.0, 2.0, 3.0, 4.0, 5.0];
        rotate_pairs(&mut head, &cos, &sin);
        assert_eq!(head, [-2.0, 1.0, 3.0, 4.0, 5.0]);
    }
}
