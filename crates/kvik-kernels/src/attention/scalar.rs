//! The reference: what a fold computes, one row after the other.

use super::{
    Partials, Queries, TILE_TOKENS, Tile, TileShape,
    tile::{GROUP_TOKENS, from_bf16, to_bf16},
};

pub(super) fn fold(shape: TileShape, queries: &Queries<'_>, tile: &Tile<'_>, partials: &mut Partials<'_>) {
    let pairs = shape.key_pairs();
    let stride = shape.value_stride();
    for (row, &position) in queries.positions.iter().enumerate() {
        let visible = tile.visible(queries.reach, position);
        if visible == 0 {
            continue;
        }
        let query = &queries.packed[row * pairs..(row + 1) * pairs];
        let sees = |token: usize| visible >> token & 1 == 1;

        let mut scores = [f32::NEG_INFINITY; TILE_TOKENS];
        let mut max = partials.max[row];
        for token in (0..tile.len).filter(|&token| sees(token)) {
            scores[token] = score(query, tile, token) + tile.bias.map_or(0.0, |bias| bias[token]);
            max = max.max(scores[token]);
        }

        let rescale = (partials.max[row] - max).exp();
        let mut sum = 0.0;
        let mut weights = [0.0; TILE_TOKENS];
        for token in (0..tile.len).filter(|&token| sees(token)) {
            // The weight that multiplies the value and the one that is summed are the same rounded number, so
            // that the weights of a row add up to one exactly.
            weights[token] = from_bf16(to_bf16((scores[token] - max).exp()));
            sum += weights[token];
        }
        if let Some(scales) = tile.scales {
            weights.iter_mut().zip(scales.values).for_each(|(weight, scale)| *weight *= scale);
        }
        partials.max[row] = max;
        partials.sum[row] = partials.sum[row] * rescale + sum;

        let acc = &mut partials.acc[row * stride..(row + 1) * stride];
        for (dim, acc) in acc.iter_mut().enumerate() {
            *acc *= rescale;
            for token in 0..tile.len {
                let value = tile.values[token / 2 * 2 * stride + 2 * dim + token % 2];
                *acc += weights[token] * from_bf16(value);
            }
        }
    }
}

/// See [`super::column_sums`].
pub(super) fn add_columns(queries: &Queries<'_>, log_sum_exp: &[f32], tile: &Tile<'_>, columns: &mut [f32]) {
    let pairs = queries.packed.len() / queries.positions.len().max(1);
    for (row, &position) in queries.positions.iter().enumerate() {
        let visible = tile.visible(queries.reach, position);
        let query = &queries.packed[row * pairs..(row + 1) * pairs];
        for token in (0..tile.len).filter(|&token| visible >> token & 1 == 1) {
            let score = score(query, tile, token) + tile.bias.map_or(0.0, |bias| bias[token]);
            columns[token] += (score - log_sum_exp[row]).exp();
        }
    }
}

pub(super) fn score(query: &[u32], tile: &Tile<'_>, token: usize) -> f32 {
    let (group, lane) = (token / GROUP_TOKENS, token % GROUP_TOKENS);
    let keys = &tile.keys[group * GROUP_TOKENS * 2 * query.len()..];
    let mut score = 0.0;
    for (pair, &q) in query.iter().enumerate() {
        let key = &keys[(pair * GROUP_TOKENS + lane) * 2..][..2];
        score += from_bf16(q as u16) * from_bf16(key[0]);
        score += from_bf16((q >> 16) as u16) * from_bf16(key[1]);
    }
    score * tile.scales.map_or(1.0, |scales| scales.keys[token])
}
