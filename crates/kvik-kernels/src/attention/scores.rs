//! The scores themselves: products of queries with the keys of a tile, for methods that choose what attention visits by keys of
//! their own, such as means of cached ones.

use super::{Positions, Queries, Reach, TILE_TOKENS, Tile, TileShape, scalar};
use crate::Isa;

/// Products of `queries` with the keys of a tile into `out`, `[rows, TILE_TOKENS]`.
///
/// - `queries`: `[rows, key_pairs]`, as [`pack_query`](super::pack_query) packs them;
/// - `keys`: `[TileShape::key_len]`, in the kernels' layout.
///
/// # Panics
/// If a slice does not have its shape.
pub fn scores(isa: Isa, shape: TileShape, queries: &[u32], keys: &[u16], out: &mut [f32]) {
    let pairs = shape.key_pairs();
    assert_eq!(keys.len(), shape.key_len());
    assert_eq!(queries.len() % pairs, 0);
    assert_eq!(out.len(), queries.len() / pairs * TILE_TOKENS);
    let queries = Queries { packed: queries, positions: &[], reach: Reach::ALL };
    let tile =
        Tile { keys, values: &[], len: TILE_TOKENS, positions: Positions::From(0), bias: None, scales: None };
    match isa {
        // SAFETY: an `Isa` above Scalar only exists on a processor that has it, and the shapes were checked.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { super::avx2::scores(shape, &queries, &tile, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => unsafe {
            super::avx512::scores(shape, &queries, &tile, out)
        },
        _ => {
            for (query, out) in queries.packed.chunks_exact(pairs).zip(out.chunks_exact_mut(TILE_TOKENS)) {
                for (token, out) in out.iter_mut().enumerate() {
                    *out = scalar::score(query, &tile, token);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{PlaneKind, from_bf16, pack_query, to_bf16};

    #[test]
    fn every_instruction_set_gives_the_products() {
        for dim in [1, 7, 64, 96, 130] {
            let shape = TileShape { key_dim: dim, value_dim: dim };
            let number = |i: usize| from_bf16(to_bf16(((i * 37) % 101) as f32 / 50.0 - 1.0));
            let mut keys = vec![0; shape.key_len()];
            let key = |token: usize| (0..dim).map(|d| number(token * 131 + d)).collect::<Vec<f32>>();
            for token in 0..TILE_TOKENS {
                shape.write_row(PlaneKind::Keys, &mut keys, token, &key(token));
            }
            let query = |row: usize| (0..dim).map(|d| number(row * 17 + 3 * d)).collect::<Vec<f32>>();
            let mut packed = vec![0; 3 * shape.key_pairs()];
            for (row, packed) in packed.chunks_exact_mut(shape.key_pairs()).enumerate() {
                pack_query(&query(row), 0.5, packed);
            }
            for isa in [Isa::Scalar, Isa::Avx2.min(Isa::detect()), Isa::detect()] {
                let mut out = vec![f32::NAN; 3 * TILE_TOKENS];
                scores(isa, shape, &packed, &keys, &mut out);
                for (index, got) in out.into_iter().enumerate() {
                    let (row, token) = (index / TILE_TOKENS, index % TILE_TOKENS);
                    let products = query(row).into_iter().zip(key(token));
                    let want: f32 = products.map(|(q, k)| 0.5 * q * k).sum();
                    assert!((got - want).abs() < 1e-4, "{isa:?} {dim}: {got} {want}");
                }
            }
        }
    }
}
