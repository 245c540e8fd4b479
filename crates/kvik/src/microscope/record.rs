//! What the microscope shows: the cache after the prompt and after every decoded token.

use serde::Serialize;

/// The whole record of a text.
#[derive(Debug, Default, Serialize)]
pub struct Record {
    /// The model's name.
    pub model: String,
    /// The pipeline.
    pub pipeline: String,
    /// Text of every token, prompt and answer.
    pub tokens: Vec<String>,
    /// How many of them are the prompt's.
    pub prompt_tokens: usize,
    /// KV heads of each layer.
    pub kv_heads: Vec<usize>,
    /// Bytes of an uncompressed bf16 cache for each token.
    pub bf16_bytes_per_token: usize,
    /// Kinds of rows that occur.
    pub kinds: Vec<RowKind>,
    /// After the prompt, then after each decoded token.
    pub moments: Vec<Moment>,
}

/// Where and how a row is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RowKind {
    /// Index of its segment in the head.
    pub segment: usize,
    /// Encoding of its key.
    pub keys: String,
    /// Encoding of its value.
    pub values: String,
    /// True if its key lies in a file and not in RAM.
    pub key_in_file: bool,
    /// The same of its value.
    pub value_in_file: bool,
}

/// The cache at one moment.
#[derive(Debug, Serialize)]
pub struct Moment {
    /// Tokens of the sequence.
    pub tokens: usize,
    /// Bytes of RAM that its cache takes.
    pub bytes: usize,
    /// Bytes of files that it takes.
    pub file_bytes: usize,
    /// Layer after layer, each with all its KV heads.
    pub heads: Vec<Head>,
}

/// The rows of a layer and KV head, by position.
#[derive(Debug, Serialize)]
pub struct Head {
    /// Runs of rows with consecutive positions and one kind: first position, rows, kind.
    pub runs: Vec<(u32, u32, u32)>,
    /// For each row of the runs, in their order, the attention that it got: 255 is the most of this head, on a logarithmic
    /// scale down to a thousandth of it. As base64.
    pub mass: String,
    /// Share of the attention that the eight rows with the most of it got.
    pub top8: f32,
}

impl Record {
    /// Index of a kind of rows, added if it is new.
    pub fn kind(&mut self, kind: RowKind) -> u32 {
        let found = self.kinds.iter().position(|known| *known == kind);
        let index = found.unwrap_or_else(|| {
            self.kinds.push(kind);
            self.kinds.len() - 1
        });
        index as u32
    }
}

impl Head {
    /// `rows` are positions and kinds in the cache's order, `mass` the attention of each.
    pub fn new(rows: Vec<(u32, u32)>, mass: &[f32]) -> Self {
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&row| rows[row].0);
        let mut runs: Vec<(u32, u32, u32)> = Vec::new();
        for &row in &order {
            let (position, kind) = rows[row];
            match runs.last_mut() {
                Some((first, len, same)) if *first + *len == position && *same == kind => *len += 1,
                _ => runs.push((position, 1, kind)),
            }
        }
        let of_row = |row: usize| mass.get(row).copied().unwrap_or(0.0);
        let most = mass.iter().copied().fold(0.0, f32::max);
        let bytes: Vec<u8> = order.iter().map(|&row| level(of_row(row), most)).collect();
        let mut sorted: Vec<f32> = mass.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let (top, all): (f32, f32) = (sorted.iter().take(8).sum(), sorted.iter().sum());
        Self { runs, mass: base64(&bytes), top8: if all > 0.0 { top / all } else { 0.0 } }
    }
}

/// `mass` over `most` on a logarithmic scale of three decades.
fn level(mass: f32, most: f32) -> u8 {
    if mass <= 0.0 || most <= 0.0 {
        return 0;
    }
    (255.0 * (1.0 + (mass / most).log10() / 3.0)).clamp(0.0, 255.0).round() as u8
}

/// Base64 with padding (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().enumerate().fold(0u32, |bits, (i, &byte)| bits | u32::from(byte) << (16 - 8 * i));
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit) & 63) as usize;
            text.push(if digit <= chunk.len() { DIGITS[index] as char } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_runs_by_position_and_mass_follows_them() {
        let head = Head::new(vec![(5, 0), (6, 0), (0, 1), (1, 1), (7, 1)], &[0.1, 1.0, 0.0, 0.001, 0.5]);
        assert_eq!(head.runs, [(0, 2, 1), (5, 2, 0), (7, 1, 1)]);
        assert_eq!(head.mass, base64(&[0, 0, 170, 255, level(0.5, 1.0)]));
        assert!((head.top8 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn base64_is_rfc_4648() {
        for (bytes, text) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
