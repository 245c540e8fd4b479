//! The exponential of softmax's weights, which are rounded to bf16 right after.

use std::arch::x86_64::*;

/// `2^x` with a relative error below 8e-5, a twentieth of what rounding the result to bf16 costs: `2^⌊x⌋` times a polynomial
/// of degree 3 in the rest (minimax).
#[target_feature(enable = "avx512f,avx512dq")]
#[inline]
pub(super) fn exp2(x: __m512) -> __m512 {
    let rest = _mm512_reduce_ps::<{ _MM_FROUND_TO_NEG_INF }>(x);
    let mut p = _mm512_set1_ps(0.078_024_52);
    for c in [0.226_067_16, 0.695_833_56, 0.999_925_2] {
        p = _mm512_fmadd_ps(p, rest, _mm512_set1_ps(c));
    }
    _mm512_scalef_ps(p, x)
}
